"""``bitbench run`` from the outside: what it prints, leaves behind and answers."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitbench.cli import main
from bitbench.cli.run import terminate_as_interrupt
from bitbench.errors import Exit
from bitbench.store.reader import load_run
from bitbench.store.schema import Status

ROOT = Path(__file__).parents[3]
SUITE = """
schema: 1
name: tiny
title: A tiny suite
baseline: linear
launches: 2
device: DEVICE
layers:
  linear: {kind: linear}
  linear-bf16: {kind: linear, dtype: bfloat16}
workloads:
  - {kind: linear, shapes: [[64, 32]], tokens: TOKENS}
"""


def suite_in(folder: Path, *, device: str = "cpu", tokens: str = "[1]") -> Path:
    path = folder / "tiny.yaml"
    path.write_text(SUITE.replace("DEVICE", device).replace("TOKENS", tokens))
    return path


@pytest.fixture(autouse=True)
def _workers_find_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def places(folder: Path) -> list[str]:
    return ["--results", str(folder / "results"), "--reports", str(folder / "reports")]


def only_run(folder: Path) -> Path:
    (run,) = (folder / "results").iterdir()
    return run


def test_a_run_says_what_it_does_and_leaves_run_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["run", str(suite_in(tmp_path)), "--threads", "1", *places(tmp_path)])
    out = capsys.readouterr().out
    assert code == Exit.OK
    run = load_run(only_run(tmp_path))
    announced = out[: out.index(f"results: {run.path}")]
    for part in ("tiny: A tiny suite", "2 points, 2 layers, 4 cases, 2 launches; about", "; 1 thread\n"):
        assert part in announced
    assert run.missing() == set()
    assert {record.status for record in run.records} == {Status.OK}
    assert run.info.threads == 1
    assert run.info.environment["peaks"]["read_bytes_per_s"] > 0
    assert run.info.environment["device"] == "cpu"
    assert run.info.code.digest
    assert not (run.path / "cache").exists()
    report = tmp_path / "reports" / run.path.name
    assert {path.name for path in report.iterdir()} >= {"index.html", "report.md", "cases.csv"}
    assert str(report / "index.html") in out
    assert str(Path.home()) not in (run.path / "run.json").read_text()

    # A complete run resumed measures nothing and reports again.
    before = (run.path / "samples.jsonl").read_bytes()
    assert main(["run", str(tmp_path / "tiny.yaml"), "--resume", *places(tmp_path)]) == Exit.OK
    assert (run.path / "samples.jsonl").read_bytes() == before
    assert "6 of 6 measurements are there" in capsys.readouterr().out

    # Nor is it taken for a run of what the suite has become since.
    suite_in(tmp_path, tokens="[2]")
    assert main(["run", str(tmp_path / "tiny.yaml"), "--resume", *places(tmp_path)]) == Exit.USAGE
    assert "workloads[0].tokens[0]: 1 then, 2 now" in capsys.readouterr().err


def test_interrupt_says_how_to_go_on_and_resume_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = suite_in(tmp_path, tokens="[1, 2, 3, 4, 5, 6]")
    arguments = ["run", str(suite), "--threads", "1", *places(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys; from bitbench.cli import main; sys.exit(main({arguments!r}))"],
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    # Three records: the bytes of both layers and something of the first launch.
    while sum(p.read_bytes().count(b"\n") for p in tmp_path.glob("results/*/samples.jsonl")) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == Exit.INTERRUPTED
    run_dir = only_run(tmp_path)
    assert f"bitbench run --resume {run_dir}" in out
    kept = load_run(run_dir).records
    assert 3 <= len(kept) < 2 + 6 * 2 * 2

    # Another seed would be another run.
    assert main(["run", "--resume", str(run_dir), "--seed", "5", *places(tmp_path)]) == Exit.USAGE
    assert "--seed: 0 then, 5 now" in capsys.readouterr().err

    assert main(["run", "--resume", str(run_dir), "--device", "cpu", *places(tmp_path)]) == Exit.USAGE
    assert "goes on as it was begun" in capsys.readouterr().err
    assert main(["run", "--resume", str(run_dir), *places(tmp_path)]) == Exit.OK
    run = load_run(run_dir)
    assert run.missing() == set()
    assert run.records[: len(kept)] == kept
    lines = (run_dir / "samples.jsonl").read_text().splitlines()
    assert len(lines) == len(run.records)

    # A run is known by its name too.
    assert main(["run", "--resume", run_dir.name, *places(tmp_path)]) == Exit.OK


def test_the_device_can_be_chosen_in_place_of_the_suites(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = suite_in(tmp_path, device="cuda")
    assert main(["run", str(wanted), "--device", "cpu", "--launches", "1", *places(tmp_path)]) == Exit.OK
    run = load_run(only_run(tmp_path))
    assert run.info.environment["device"] == "cpu"
    assert run.info.suite["device"] == "cpu", "as it was resolved"
    assert main(["run", str(wanted), "--device", "gpu", *places(tmp_path)]) == Exit.USAGE
    assert "allowed: cpu, cuda" in capsys.readouterr().err


def test_a_suite_runs_without_what_it_would_fetch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitbench.data import fetch

    monkeypatch.setattr(fetch, "ensure", lambda name: pytest.fail(f"{name} was fetched"))
    path = suite_in(tmp_path)
    scored = "  - {kind: perplexity, model: smollm2-135m, text: sotu}\n"
    path.write_text(path.read_text() + scored)
    assert main(["run", str(path), "--random-weights", "--launches", "1", *places(tmp_path)]) == Exit.OK
    assert "perplexity is left out: it needs smollm2-135m, sotu" in capsys.readouterr().out
    run = load_run(only_run(tmp_path))
    assert {case.workload for case in run.cases} == {"linear"}
    again = ["run", str(path), "--resume", str(run.path), "--random-weights", *places(tmp_path)]
    assert main(again) == Exit.OK, "it is the same suite"


def test_terminate_is_an_interrupt() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminate_as_interrupt():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_cuda_suite_without_cuda_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert main(["run", str(suite_in(tmp_path, device="cuda")), *places(tmp_path)]) == Exit.USAGE
    told = capsys.readouterr().err
    assert "device cuda" in told
    assert "device: cpu" in told
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "no suite given"),
        (["run", "{suite}", "somewhere"], "--resume"),
        (["run", "{folder}/missing.yaml"], "missing.yaml"),
        (["run", "--resume"], "no run under"),
        (["run", "--resume", "{folder}"], "is not a run"),
        (["run", "--resume", "{folder}/gone"], "neither a run nor a suite"),
        (["run", "{suite}", "--resume"], "no run of suite 'tiny'"),
        (["run", "{suite}", "--only", "nothing-like-it"], "no case matches"),
        (["run", "{suite}", "--threads", "100000"], "100000 threads are more than"),
    ],
)
def test_wrong_usage_is_one_message_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    suite = suite_in(tmp_path)
    filled = [part.format(suite=suite, folder=tmp_path) for part in arguments]
    assert main([*filled, *places(tmp_path)]) == Exit.USAGE
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not list((tmp_path / "results").glob("*"))


def test_unwritable_results_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results").write_text("a file stands in the way")
    assert main(["run", str(suite_in(tmp_path)), *places(tmp_path)]) == Exit.USAGE
    assert "--results DIR" in capsys.readouterr().err


def test_unwritable_reports_directory_is_told_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reports").write_text("a file stands in the way")
    assert main(["run", str(suite_in(tmp_path)), *places(tmp_path)]) == Exit.USAGE
    assert "--reports DIR" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_a_report_interrupted_leaves_the_run_and_says_how_to_write_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitbench import report

    def interrupted(*_: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "write", interrupted)
    code = main(["run", str(suite_in(tmp_path)), "--only", "memory", "--threads", "1", *places(tmp_path)])
    assert code == Exit.INTERRUPTED
    run_dir = only_run(tmp_path)
    assert f"bitbench report {run_dir}" in capsys.readouterr().out
    assert load_run(run_dir).missing() == set()


def test_a_reader_who_leaves_is_no_failed_claim(tmp_path: Path) -> None:
    code = f"import sys; from bitbench.cli import main; sys.exit(main(['plan', {str(suite_in(tmp_path))!r}]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(60) == Exit.TOOL


def test_a_budget_says_how_far_it_came(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--budget", "1s", "--width", "2%", "--threads", "1"]
    assert main(["run", str(suite_in(tmp_path)), *asked, *places(tmp_path)]) == Exit.OK
    out = capsys.readouterr().out
    assert "in timed blocks" in out
    assert "intervals within 2.0%: 0 of 1 points; 1 stopped by the budget of 1 s" in out
    assert set(load_run(only_run(tmp_path)).ends[0].stops.values()) == {"budget"}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["--width", "1%"], "--width says when --budget may stop"),
        (["--budget", "soon"], "--budget soon: not a duration"),
        (["--budget", "1m", "--width", "1"], "--width 1: not a percentage"),
        (["--budget", "1m", "--quick"], "--quick run has none"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[str], told: str
) -> None:
    assert main(["run", str(suite_in(tmp_path)), *asked, *places(tmp_path)]) == Exit.USAGE
    assert told in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
