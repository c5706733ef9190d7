"""Sessions that do not time."""

import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PLUGIN = ("-p", "bitbench.pytest_plugin")
COUNTED = """
def test_counted(side_by_side):
    def target():
        log("calls", f"target {os.getpid()}")
        return 3
    result = side_by_side(target, baseline=lambda: log("calls", "baseline"), check=lambda r: r == 3)
    assert result == 3
"""


@pytest.mark.parametrize("arguments", [(), ("-p", "no:benchmark"), ("--benchmark-disable",)], ids=" ".join)
def test_each_side_is_called_once_and_checked(sessions, arguments):
    sessions.write("test_a.py", COUNTED)
    done = sessions.run(*arguments)
    assert done.returncode == 0, done.stdout
    target, baseline = sessions.lines("calls")
    assert target.startswith("target ")
    assert baseline == "baseline"
    assert "side by side" not in done.stdout
    assert "PytestBenchmarkWarning" not in done.stdout  # its fixture was not used


@pytest.mark.parametrize("answer", ["False", "0", "1 / 0"])
def test_a_wrong_result_fails(sessions, answer):
    sessions.write(
        "test_a.py", f"def test_wrong(side_by_side): side_by_side(lambda: 3, check=lambda r: {answer})"
    )
    done = sessions.run()
    assert done.returncode == 1
    assert ("refused its result" in done.stdout) == (answer != "1 / 0")


def test_setup_builds_each_side(sessions):
    sessions.write(
        "test_a.py",
        """
        def test_built(side_by_side):
            built = []
            def setup(side):
                built.append(side)
                return [side]
            seen = []
            result = side_by_side(lambda x: x[0], baseline=seen.extend, setup=setup,
                                  extra=lambda x: {"of": x[0]})
            assert result == "target" and seen == ["baseline"] and built == ["target", "baseline"]
        """,
    )
    assert sessions.run().returncode == 0


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (("--benchmark-json", "out.json"), {"PYTEST_XDIST_WORKER": "gw0"}),
        (("--benchmark-skip", "--bitbench-launches", "2"), {}),
        (("--collect-only", "--benchmark-json", "out.json"), {}),
        (("--setup-plan", "--bitbench-launches", "2"), {}),
        (("--setup-only", "--bitbench-launches", "2"), {}),
        (("--benchmark-disable", "--benchmark-json", "out.json"), {}),
    ],
    ids=["xdist", "skip", "collect-only", "setup-plan", "setup-only", "disabled"],
)
def test_no_launches_where_benchmarks_do_not_run(sessions, arguments, variables):
    sessions.write("test_a.py", COUNTED)
    done = sessions.run(*arguments, **variables)
    assert done.returncode == 0, done.stdout
    assert "launch 1 of" not in done.stdout
    assert len({line for line in sessions.lines("calls") if line.startswith("target")}) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--bitbench-launches", "0"), "'0' is not a number of launches: give 1 or more"),
        (("--bitbench-launches", "many"), "'many' is not a number of launches"),
        (("--bitbench-seconds", "0"), "'0' is not a time: give seconds above 0"),
        (("--bitbench-patience", "nan"), "'nan' is not a time"),
        (("--bitbench-launches", "2", "--benchmark-disable"), "exclude one another"),
        (("--bitbench-launches", "2", "-p", "no:benchmark"), "needs pytest-benchmark"),
    ],
)
def test_wrong_usage(sessions, arguments, message):
    sessions.write("test_a.py", COUNTED)
    done = sessions.run(*arguments)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_session_without_benchmarks_loads_nothing_of_weight(sessions):
    sessions.write(
        "test_a.py",
        """
        import sys
        def test_nothing():
            heavy = {"torch", "numpy", "pydantic", "psutil", "bitbench.measure", "bitbench.store"}
            assert heavy.isdisjoint(sys.modules)
        """,
    )
    assert sessions.run("-p", "no:hypothesispytest").returncode == 0


class TestLoadedTwice:
    def test_by_option_and_conftest(self, sessions):
        sessions.write("test_a.py", COUNTED)
        sessions.write("conftest.py", 'pytest_plugins = ["bitbench.pytest_plugin"]')
        assert sessions.run("-p", "bitbench.pytest_plugin").returncode == 0

    @pytest.mark.parametrize("option", [(), ("-p", "bitbench.pytest_plugin")], ids=["installed", "and -p"])
    def test_by_entry_point(self, sessions, option):
        """As an installation declares it: the entry point is read from pyproject.toml."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        declared = project["entry-points"]["pytest11"]
        metadata = sessions.folder / "site" / "bitbench_of_test-1.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: bitbench-of-test\nVersion: 1\n")
        (metadata / "entry_points.txt").write_text(
            "[pytest11]\n" + "".join(f"{name} = {value}\n" for name, value in declared.items())
        )
        sessions.write("test_a.py", COUNTED)
        command = [argument for argument in sessions.command() if argument not in PLUGIN]
        done = subprocess.run(
            [*command, *option, "--bitbench-launches", "1", "--bitbench-seconds", "0.002"],
            cwd=sessions.folder,
            env=sessions.environment(PYTHONPATH=str(metadata.parent)),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "launch 1 of 1" in done.stdout


def test_asking_twice_in_a_test(sessions):
    sessions.write(
        "test_a.py",
        """
        def test_twice(side_by_side):
            side_by_side(lambda: 1)
            with pytest.raises(RuntimeError, match="once in a test"):
                side_by_side(lambda: 1)
        """,
    )
    assert sessions.run().returncode == 0
