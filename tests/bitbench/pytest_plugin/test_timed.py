"""Sessions that time: what the launches do, and what becomes of their times."""

import os
import signal
import subprocess
import time

import pytest

from bitbench.pytest_plugin.exchange import read_benchmark
from bitbench.pytest_plugin.records import KEY, Measured

MANY = """
@pytest.mark.parametrize("n", range(6))
def test_many(side_by_side, n):
    def setup(side):
        log("visits", f"{os.getpid()} {n} {side}")
        return n
    side_by_side(lambda x: sum(range(100 + x)), baseline=lambda x: sum(range(200)), setup=setup,
                 check=lambda r: r == sum(range(100 + n)),
                 extra={"kernel": "sum", "exact": {"memory.codes_bytes": n}, "shape": [n]})

def test_alone(side_by_side):
    log("alone", os.getpid())
    side_by_side(lambda: 1)

def test_other():
    log("others", os.getpid())
"""


@pytest.fixture
def many(sessions):
    sessions.write("test_many.py", MANY)
    return sessions


def test_launches_become_an_entry_of_pytest_benchmark(many):
    done = many.timed("--benchmark-json", "out.json", launches=3)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "launch 3 of 3: 7 benchmarks side by side" in done.stdout
    entries = many.entries()
    assert len(entries) == 7
    entry = entries["test_many[4]"]
    found = Measured.model_validate(entry["extra_info"][KEY])
    assert [launch.launch for launch in found.launches] == [0, 1, 2]
    assert entry["stats"]["data"] == [launch.seconds for launch in found.launches]
    assert entry["stats"]["rounds"] == entry["options"]["launches"] == 3
    assert entry["extra_info"]["shape"] == [4]
    assert (found.kernel, found.exact, found.timer) == ("sum", {"memory.codes_bytes": 4}, "cpu-clock")
    assert found.speedup is not None
    assert found.speedup.low is not None
    assert found.speedup.low < found.speedup.value < found.speedup.high
    assert found.machine["threads"] >= 1
    alone = Measured.model_validate(entries["test_alone"]["extra_info"][KEY])
    assert alone.speedup is None
    figures = read_benchmark(many.folder / "out.json").figures()
    assert len(figures.figures) == 6
    assert figures.figures["test_many.py::test_many[4]"]["time.speedup"].launches == 3

    # Every launch is a process of its own, visits everything once, and nothing but the benchmarks.
    assert len(set(many.lines("alone"))) == 4
    assert len(many.lines("others")) == 1
    visits: dict[str, list[tuple[str, str]]] = {}
    for line in many.lines("visits"):
        pid, n, side = line.split()
        visits.setdefault(pid, []).append((n, side))
    *launches, session = visits.values()
    assert len(launches) == 3
    assert all(len(visited) == len(set(visited)) == 12 for visited in launches)
    # In another order each time, of benchmarks and of sides.
    assert len({tuple(n for n, _ in visited) for visited in launches}) == 3
    assert [n for n, _ in session] == sorted(n for n, _ in session)
    first = {visited[i][1] for visited in launches for i in range(0, 12, 2)}
    assert first == {"target", "baseline"}


def test_seed_decides_the_order(many):
    def order(seed: str) -> list[str]:
        (many.folder / "visits").unlink(missing_ok=True)
        assert many.timed("--bitbench-seed", seed, launches=1).returncode == 0
        return [line.split(" ", 1)[1] for line in many.lines("visits")]

    assert order("1") == order("1") != order("2")


def test_only_what_the_session_selected(many):
    many.write(
        "sub dir/test_more.py",
        """
        @pytest.mark.skip(reason="not today")
        def test_skipped(side_by_side): side_by_side(lambda: log("skipped", 1))
        class TestIn:
            def test_class(self, side_by_side): side_by_side(lambda: 1)
        """,
    )
    done = many.run(
        *("--benchmark-only", "--bitbench-launches", "2", "--bitbench-seconds", "0.002"),
        *("-k", "class or skipped or (many and (1 or 5))", "--benchmark-json=out.json"),
        *("--junitxml", "j.xml", "--", "sub dir", "test_many.py"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(many.entries()) == {"test_many[1]", "test_many[5]", "test_class"}
    assert not many.lines("skipped")
    assert not many.lines("others")
    assert 'skipped="1"' in (many.folder / "j.xml").read_text()


def test_called_from_another_folder(many):
    many.write("deep/down/test_more.py", "def test_here(side_by_side): side_by_side(lambda: 1)")
    done = many.run("test_more.py", "--bitbench-launches=1", "--benchmark-json=out.json", cwd="deep/down")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(many.entries("deep/down/out.json")) == {"test_here"}


def test_launches_write_nothing_of_the_session(many):
    """Saved runs, caches and temporary folders are the session's alone; comparisons work."""
    many.write(
        "test_tmp.py",
        """
        def test_tmp(side_by_side, tmp_path):
            log("tmp", tmp_path)
            side_by_side(lambda: 1)
        """,
    )
    many.write("test_red.py", "def test_red(): assert False")
    many.run("test_red.py")
    saving = ("--benchmark-save", "one", "--basetemp", "mine", "--lf", "--lfnf=all", "test_tmp.py")
    done = many.timed(*saving)
    assert done.returncode == 0, done.stdout + done.stderr
    saved = list(many.folder.glob(".benchmarks/*/*.json"))
    assert [path.name for path in saved] == ["0001_one.json"]
    places = many.lines("tmp")
    assert len(places) == 3
    assert [str(many.folder / "mine") in place for place in places] == [False, False, True]
    assert "test_red.py::test_red" in (many.folder / ".pytest_cache/v/cache/lastfailed").read_text()

    comparing = ("--benchmark-compare=0001", "--benchmark-compare-fail=mean:1000")
    compared = many.timed(*comparing, "test_tmp.py")
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert "(NOW)" in compared.stdout
    assert "(0001_one)" in compared.stdout
    assert len(list(many.folder.glob(".benchmarks/*/*.json"))) == 1


def test_options_and_fixtures_of_a_conftest_reach_the_launches(sessions):
    sessions.write(
        "conftest.py",
        """
        def pytest_addoption(parser): parser.addoption("--size", type=int)
        @pytest.fixture(scope="session")
        def size(request): return request.config.getoption("--size")
        """,
    )
    sessions.write(
        "test_a.py",
        """
        def test_size(side_by_side, size):
            log("sizes", size)
            side_by_side(lambda: size)
        """,
    )
    assert sessions.timed("--size", "7").returncode == 0
    assert sessions.lines("sizes") == ["7"] * 3


BAD = """
import signal, sys
@pytest.fixture
def launch(request):
    plugin = request.config.pluginmanager.get_plugin("bitbench-launch")
    return None if plugin is None else plugin._job.launch

def test_good(side_by_side): side_by_side(lambda: 1)
def test_wrong(side_by_side, launch): side_by_side(lambda: 1, check=lambda r: launch != 1)
def test_killed(side_by_side, launch):
    if launch == 0: os.kill(os.getpid(), signal.SIGKILL)
    side_by_side(lambda: 1)
def test_left(side_by_side, launch):
    if launch == 1: os._exit(0)
    side_by_side(lambda: 1)
def test_kernel(side_by_side, launch): side_by_side(lambda: 1, extra={"kernel": f"k{launch}"})
def test_skipping(side_by_side, launch):
    if launch == 0: pytest.skip("not here")
    side_by_side(lambda: 1)
def test_forgot(side_by_side, launch):
    if launch is None: side_by_side(lambda: 1)
def test_late(side_by_side, launch):
    side_by_side(lambda: 1)
    assert launch != 1, "wrong afterwards"
def test_setup(side_by_side, launch):
    side_by_side(lambda x: 1, setup=lambda side: {}["nothing"] if launch == 0 else 1)
def test_changing(side_by_side, launch):
    names = iter("ab")
    side_by_side(lambda: 1, extra=lambda: {"kernel": next(names) if launch == 0 else "a"})
@pytest.mark.skipif("'bitbench.pytest_plugin.launch' in sys.modules")
def test_missing(side_by_side): side_by_side(lambda: 1)
"""


def test_a_launch_that_fails_fails_its_benchmark_and_no_other(sessions):
    sessions.write("test_bad.py", BAD)
    sessions.write(
        "conftest.py",
        """
        def pytest_collection_modifyitems(config, items):
            if config.pluginmanager.hasplugin("bitbench-launch"):
                items[:] = [item for item in items if item.name != "test_missing"]
        """,
    )
    done = sessions.timed("--benchmark-json", "out.json", "-x", "--maxfail=50")
    assert done.returncode == 1, done.stdout + done.stderr
    assert set(sessions.entries()) == {"test_good"}
    assert len(sessions.entries()["test_good"]["stats"]["data"]) == 2
    _, *parts = done.stdout.replace("_ test_", "\n=== test_").split("\n=== test_")
    said = {part.split(" ", 1)[0]: part for part in parts}
    expected = {
        "wrong": "launch 2: failed: AssertionError: the check of this benchmark refused its result",
        "killed": "launch 1: died: SIGKILL",
        "left": "launch 2: ended within this benchmark",
        "kernel": "the launches did not measure the same thing: kernel is 'k0' in launch 1, 'k1' in launch 2",
        "skipping": "launch 1: skipped: not here",
        "forgot": "launch 1 (2 launches failed): did not call side_by_side",
        "late": "launch 2: failed: AssertionError: wrong afterwards",
        "setup": "launch 1: failed: KeyError: 'nothing'",
        "changing": "launch 1: failed: RuntimeError: kernel 'a' served before timing, 'b' after it",
        "missing": "launch 1 (2 launches failed): did not collect this benchmark",
    }
    assert set(said) == set(expected)
    for name, message in expected.items():
        assert message in said[name], said[name]


def test_a_launch_that_is_stuck_is_ended(sessions):
    sessions.write(
        "test_a.py",
        """
        import sys, time
        def test_stuck(side_by_side):
            if "bitbench.pytest_plugin.launch" in sys.modules: time.sleep(600)
            side_by_side(lambda: 1)
        """,
    )
    done = sessions.timed("--bitbench-patience", "4", launches=1)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "launch 1: said nothing for 4 s and was ended (--bitbench-patience)" in done.stdout


def test_launch_that_cannot_start_says_why(sessions):
    sessions.write("test_a.py", "def test_one(side_by_side): side_by_side(lambda: 1)")
    sessions.write(
        "conftest.py",
        """
        def pytest_configure(config):
            if config.pluginmanager.hasplugin("bitbench-launch"):
                raise pytest.UsageError("no licence here")
        """,
    )
    done = sessions.timed("--benchmark-json", "out.json")
    assert done.returncode == 1
    assert "launch 1 (2 launches failed): ended with exit code 4; its last output:" in done.stdout
    assert "no licence here" in done.stdout


def test_collection_errors_start_no_launch(sessions):
    sessions.write("test_a.py", "def test_one(side_by_side): side_by_side(lambda: 1)")
    sessions.write("test_b.py", "import nothing_of_that_name")
    done = sessions.timed()
    assert done.returncode == pytest.ExitCode.INTERRUPTED
    assert "launch 1 of" not in done.stdout


def test_interrupt_ends_the_launch_too(sessions):
    sessions.write(
        "test_a.py",
        """
        import time
        def test_long(side_by_side):
            log("pid", os.getpid())
            time.sleep(600)
        """,
    )
    process = subprocess.Popen(
        sessions.command("--bitbench-launches", "1"),
        cwd=sessions.folder,
        env=sessions.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not sessions.lines("pid") and time.monotonic() < deadline:
            time.sleep(0.05)
        (pid,) = sessions.lines("pid")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == pytest.ExitCode.INTERRUPTED
    finally:
        process.kill()
        process.wait()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_profile_of_the_target(sessions):
    sessions.write(
        "test_a.py",
        """
        def named_function(): return sorted([3, 1, 2])
        def test_one(side_by_side): side_by_side(named_function)
        """,
    )
    done = sessions.timed("--benchmark-cprofile", "cumtime", launches=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "named_function" in done.stdout.split("cProfile", 1)[1]
