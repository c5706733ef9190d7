"""``python -m bitbench.on_gpu``, with commands of our own in place of builds and suites."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from bitbench import on_gpu
from bitbench.on_gpu import Deadline, Step

ROOT = Path(__file__).parents[2]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path


def alive(pid: int) -> bool:
    """Whether a process runs: one that has ended may wait for whoever inherited it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def perform(work: Path, *steps: Step, seconds: float = 60.0) -> list[tuple[str, str]]:
    done = on_gpu.perform(steps, Deadline(seconds), work, work, dict(os.environ))
    return [(one.step, one.word) for one in done]


def test_it_fits_ten_minutes_and_names_what_exists() -> None:
    steps = on_gpu.steps(ROOT, Path("/work"), "90a", 16)
    assert [step.name for step in steps] == [
        *("configure", "build", "tests-gpu", "doctor", "selftest"),
        *("gpu", "vision", "llm", "kernels", "tests-emulated"),
    ]
    assert [step.name for step in steps if step.vital] == ["configure", "build"]
    for step in steps:
        for word in step.command:
            if word.startswith("suites/"):
                assert (ROOT / word).is_file()
    text = " ".join(word for step in steps for word in step.command)
    assert "-DBITIMPL_CUDA_ARCHITECTURES=90a" in text
    assert text.count("--device cuda") == text.count("--random-weights") == 4
    assert "tests/csrc/test_cuda_linear.py" in text


def test_the_suites_it_runs_are_valid_as_it_runs_them() -> None:
    from bitbench.suite.drawn import with_random_weights
    from bitbench.suite.expand import expand
    from bitbench.suite.load import load_suite

    found = {}
    for step in on_gpu.steps(ROOT, Path("/work"), "90a", 16):
        words = list(step.command)
        if "run" not in words:
            continue
        only = [words[i + 1] for i, word in enumerate(words) if word == "--only"]
        suite, _ = with_random_weights(load_suite(ROOT / words[words.index("run") + 1]))
        plan = expand(suite, device="cuda", only=only or None)
        assert not plan.data()
        found[step.name] = {point.workload for point in plan.points}
    assert found == {
        "gpu": {"linear"},
        "vision": {"conv2d", "block"},
        "llm": {"linear", "decode"},
        "kernels": {"linear"},
    }


def test_steps_run_in_order_and_their_output_is_kept(work: Path) -> None:
    done = perform(
        work,
        Step("one", python("print('hello')"), 30),
        Step("two", python("raise SystemExit(3)"), 30),
        Step("three", ("/no/such/program",), 30),
        Step("four", python("raise SystemExit(1)"), 30, advice=True),
    )
    assert done == [
        ("one", "ok"),
        ("two", "failed (3)"),
        ("three", "failed (No such file or directory)"),
        ("four", "ok"),
    ]
    assert (work / "logs" / "00-one.log").read_text() == "hello\n"


def test_without_a_build_nothing_follows(work: Path) -> None:
    done = perform(
        work, Step("build", python("raise SystemExit(1)"), 30, vital=True), Step("x", python(""), 30)
    )
    assert done == [("build", "failed (1)")]


def test_a_step_is_asked_to_end_and_may_put_its_things_away(work: Path) -> None:
    code = (
        "import signal, time, pathlib\n"
        "def end(*_):\n"
        "    pathlib.Path('kept').write_text('all of it'); raise SystemExit(130)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(60)\n"
    )
    assert perform(work, Step("run", python(code), 3, least=1)) == [("run", "ended after 3 s")]
    assert (work / "kept").read_text() == "all of it"


def test_one_that_does_not_end_is_killed_with_its_children(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_gpu, "END_SECONDS", 0.2)
    code = (
        "import signal, subprocess, sys, time, pathlib\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "pathlib.Path('child').write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    perform(work, Step("run", python(code), 3, least=1))
    child = int((work / "child").read_text())
    deadline = time.monotonic() + 20  # the signal is sent; a busy machine may take its time over it
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def test_what_there_is_no_time_for_is_not_begun(work: Path) -> None:
    late = Step("late", python("open('begun', 'w')"), 60)
    assert perform(work, late, seconds=30) == [("late", "not begun")], "20 s are kept for its end"
    assert not (work / "begun").exists()


def test_time_passes() -> None:
    clock = Clock()
    deadline = Deadline(100, clock)
    clock.now = 30
    assert deadline.left == 70


def test_a_run_cut_short_is_reported_too(work: Path) -> None:
    for name in ("cut", "whole"):
        (work / "results" / name).mkdir(parents=True)
        (work / "results" / name / "run.json").write_text("{}")
    (work / "results" / "empty").mkdir()
    (work / "reports" / "whole").mkdir(parents=True)
    assert [run.name for run in on_gpu.unreported(work)] == ["cut"]


def test_the_archive_holds_logs_runs_and_reports_without_caches(work: Path) -> None:
    for name in ("logs/a.log", "results/r/run.json", "results/r/cache/conversions/x", "reports/r/index.html"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(name)
    (work / "csrc").mkdir()
    with tarfile.open(on_gpu.pack(work, work / "out")) as archive:
        files = sorted(member.name for member in archive if member.isfile())
    assert files == ["on-gpu/logs/a.log", "on-gpu/reports/r/index.html", "on-gpu/results/r/run.json"]


def test_an_archive_too_large_goes_without_what_can_be_made_again(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_gpu, "MOST_BYTES", 20_000)
    (work / "results").mkdir()
    (work / "results" / "run.json").write_bytes(os.urandom(10_000))
    (work / "reports").mkdir()
    (work / "reports" / "index.html").write_bytes(os.urandom(30_000))
    archive = on_gpu.pack(work, work / "out")
    assert archive.stat().st_size < 20_000
    with tarfile.open(archive) as packed:
        assert "on-gpu/results/run.json" in packed.getnames()


@pytest.mark.parametrize(
    ("said", "built"), [("9.0\n", "90a"), ("8.6\n8.6\n", "86"), ("8.0\n9.0\n", "80;90a"), ("", "")]
)
def test_it_builds_for_the_gpus_that_are_there(said: str, built: str) -> None:
    assert on_gpu.architectures_of(said) == built


def test_steps_use_these_sources_and_what_was_built_here() -> None:
    given = {
        "PYTHONPATH": "/carried", "HOME": "/home/x", "BITIMPL_BACKEND": "torch", "BITIMPL_ISA": "avx2",
        "BITIMPL_CUDA_LIBRARY_PATH": "/another",
    }  # fmt: skip
    made = on_gpu.environment(Path("/src"), Path("/src/build/on-gpu"), given)
    assert made["PYTHONPATH"] == "/src:/carried"
    assert made["BITIMPL_LIBRARY_PATH"] == "/src/build/on-gpu/csrc"
    assert made["BITIMPL_CUDA_LIBRARY_PATH"] == made["BITIMPL_LIBRARY_PATH"]
    assert made["HOME"] == "/home/x"
    assert not {"BITIMPL_BACKEND", "BITIMPL_ISA"} & set(made)


def test_a_step_that_does_not_exist_is_refused_before_anything_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(on_gpu, "unfit", lambda root: "")
    monkeypatch.setattr(on_gpu, "gpus", lambda: "9.0")
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: pytest.fail("something was removed"))
    with pytest.raises(SystemExit, match="2"):
        on_gpu.main(["--only", "tset", "--out", str(tmp_path)])
    assert "unknown step tset: allowed are" in capsys.readouterr().err


def test_a_machine_that_cannot_is_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def here(gpus: str, cmake: str | None, lacking: list[str]) -> str:
        monkeypatch.setattr(on_gpu, "gpus", lambda: gpus)
        monkeypatch.setattr("shutil.which", lambda name: cmake)
        monkeypatch.setattr(on_gpu, "missing", lambda names: lacking)
        return on_gpu.unfit(ROOT)

    assert here("9.0", "/bin/cmake", []) == ""
    assert "pydantic, typer" in here("9.0", "/bin/cmake", ["pydantic", "typer"])
    assert "cmake" in here("9.0", None, [])
    assert "no GPU" in here("", "/bin/cmake", [])
    assert "no checkout" in on_gpu.unfit(tmp_path)
    assert on_gpu.main(["--out", str(tmp_path)]) == 2
    assert "no GPU" in capsys.readouterr().err


def test_missing_modules_are_found_without_being_imported() -> None:
    assert on_gpu.missing(["json", "no_such_module_at_all"]) == ["no_such_module_at_all"]
    assert not on_gpu.missing(on_gpu.NEEDED)


def test_it_imports_nothing_that_a_machine_may_lack() -> None:
    names = [*on_gpu.NEEDED, *on_gpu.NEEDED_BY_TESTS]
    code = f"import sys\nfor n in {names!r}: sys.modules[n] = None\nimport bitbench.on_gpu"
    done = subprocess.run(python(code), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_all_of_it_leaves_one_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "ROOT", tmp_path)
    monkeypatch.setattr(on_gpu, "unfit", lambda root: "")
    monkeypatch.setattr(on_gpu, "gpus", lambda: "9.0")
    bad: list[Any] = [Step("a", python("print(1)"), 20), Step("b", python("raise SystemExit(1)"), 20)]
    monkeypatch.setattr(on_gpu, "steps", lambda *_: bad)
    assert on_gpu.main(["--out", str(tmp_path / "out"), "--minutes", "2"]) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["on-gpu.tar.gz"]
    assert on_gpu.main(["--out", str(tmp_path / "out"), "--minutes", "2", "--only", "a"]) == 0
    with tarfile.open(tmp_path / "out" / "on-gpu.tar.gz") as archive:
        summary = archive.extractfile("on-gpu/logs/summary.txt")
        assert summary is not None
        assert summary.read().decode().split() == ["0", "s", "a:", "ok"]


def test_the_command_line_runs_from_plain_sources() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bitbench", "--version"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("bitbench")
