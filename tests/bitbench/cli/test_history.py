"""``bitbench history`` on stored runs."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitbench.cli import main
from bitbench.cli.history import course
from bitbench.errors import Exit
from bitbench.store.baseline import Baseline, Entry, Moved, save_baseline
from bitbench.store.figures import FigureSet
from bitbench.store.schema import Case, CodeIdentity, Record, RunInfo, Status

SUITE = "h"


def write_run(results: Path, day: int, speed: float = 2.0, *, size: float = 100.0, **fields: Any) -> Path:
    """A run of two layers; ``speed`` is that of ternary against linear."""
    rng = random.Random(day)
    layers = {"linear": {"kind": "linear"}, "ternary": {"kind": "ternary"}}
    timed = [
        Case(
            id=f"t-{layer}", point="p", workload="linear", entry=0, phase="timed", replicate="launches",
            launches=5, layer=layer, params={"shape": [64, 32], "tokens": 1}, numerics=layer,
        )
        for layer in layers
    ]  # fmt: skip
    once = Case(
        id="b", point="q", workload="linear", entry=0, phase="once", replicate="exact", launches=1,
        layer="ternary", params={"shape": [64, 32], "measure": "memory"}, numerics="ternary",
    )  # fmt: skip
    records = [Record(case="b", launch=0, status=Status.OK, metrics={"memory.layer_bytes": size})]
    for launch in range(5):
        for case in timed:
            seconds = 1e-3 / (speed if case.layer == "ternary" else 1.0) * math.exp(rng.gauss(0, 0.002))
            records.append(
                Record(
                    case=case.id, launch=launch, status=Status.OK, calls=1, samples_ns=[round(seconds * 1e9)]
                )
            )
    info = RunInfo(
        **{
            "run": f"{SUITE}-{day:02}",
            "created": f"2026-01-{day:02}T00:00:00Z",
            "suite_path": str(results.parent / f"{SUITE}.yaml"),
            "suite": {"name": SUITE, "baseline": "linear", "layers": layers},
            "threads": 1,
            "environment": {"cpu": {"model": "Example CPU"}, "device": "cpu", "torch": {"version": "2.8"}},
            "code": CodeIdentity(bitbench="1", impl="1", commit="abcdef0123"),
            **fields,
        }
    )
    path = results / info.run
    path.mkdir(parents=True)
    (path / "run.json").write_text(info.model_dump_json() + "\n")
    for name, lines in (("cases", [*timed, once]), ("samples", records)):
        (path / f"{name}.jsonl").write_text(
            "".join(line.model_dump_json(exclude_defaults=True) + "\n" for line in lines)
        )
    return path


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Ten runs; from the sixth on ternary is a fifth faster and a byte larger."""
    folder = tmp_path / "results"
    for day in range(1, 11):
        write_run(folder, day, 2.0 if day < 6 else 2.4, size=100.0 if day < 6 else 101.0)
    return folder


def data(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["history", *arguments, "--json"]) == Exit.OK
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_step_is_found_and_named(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = data(capsys, SUITE, "--results", str(results), "--case", "*ternary")
    (machine,) = found["machines"]
    (case,) = machine["cases"]
    assert case["label"] == "linear/64x32/tokens=1/ternary"
    assert [point["run"] for point in case["points"]] == [f"{SUITE}-{day:02}" for day in range(1, 11)]
    assert case["points"][0]["value"] == pytest.approx(2.0, rel=0.01)
    (step,) = case["steps"]
    assert (step["run"], step["at"], step["direction"], step["accepted"]) == (
        f"{SUITE}-06",
        5,
        "better",
        None,
    )
    assert step["after"] / step["before"] == pytest.approx(1.2, rel=0.02)


def test_the_terminal_tells_it_in_a_line(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "--results", str(results)]) == Exit.OK
    out = capsys.readouterr().out
    assert "h: time.speedup; 10 runs on Example CPU, cpu, 1 thread, torch 2.8" in out
    assert "(+20 %, better) since h-06 (2026-01-06T00:00:00Z)" in out
    assert "h-03 abcdef0" in out, "of few cases every value is listed"


def test_bytes_step_by_equality_and_acceptance_is_shown(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = [Moved(label="linear/64x32/memory/ternary", metric="memory.layer_bytes", before=100, after=101)]
    entry = Entry(when="2026-01-06T08:00:00Z", who="Ada", why="a wider header", moved=moved)
    save_baseline(tmp_path / f"{SUITE}.baseline.json", Baseline(figures=FigureSet(source=SUITE), log=[entry]))
    found = data(capsys, "--results", str(results), "--metric", "memory.layer_bytes")
    (step,) = found["machines"][0]["cases"][0]["steps"]
    assert (step["before"], step["after"], step["direction"]) == (100, 101, "worse")
    assert step["accepted"]["why"] == "a wider header"
    assert main(["history", "--results", str(results), "--metric", "memory.layer_bytes"]) == Exit.OK
    assert "accepted by Ada: a wider header" in capsys.readouterr().out


def test_what_tells_nothing_is_left_out_and_said(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(results, 11, quick=True)
    write_run(results, 12, slowdown=0.1)
    (write_run(results, 13) / "run.json").write_text("{")
    torn = write_run(results, 14) / "samples.jsonl"
    torn.write_text("nonsense\n" + torn.read_text())
    write_run(results, 15, suite={"name": "other", "baseline": "linear", "layers": {}})
    found = data(capsys, SUITE, "--results", str(results))
    assert len(found["machines"][0]["runs"]) == 10
    told = " ".join(found["notes"])
    for part in ("h-11 is left out: a quick run", "h-12 is left out: slowed down by 10 %", "h-13", "h-14"):
        assert part in told
    assert "h-15" not in told, "a run of another suite is not missing here"


def test_other_machines_have_their_own_histories(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(results, 11, threads=2)
    found = data(capsys, SUITE, "--results", str(results))
    assert [machine["machine"]["threads"] for machine in found["machines"]] == [2, 1]
    assert [len(machine["runs"]) for machine in found["machines"]] == [1, 10]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--metric", "time.speedupp"], "did you mean 'time.speedup'?"),
        (["--metric", "quality.perplexity"], "figures that such cases have: memory.layer_bytes, time."),
        (["--case", "nothing*"], "figures that such cases have: none"),
        (["--baseline", "gone.json"], "there is no baseline gone.json"),
        (["unknown"], "no run of suite 'unknown'"),
        (["gone.yaml"], "gone.yaml"),
    ],
)
def test_mistakes_are_told(
    results: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["history", *arguments, "--results", str(results)]) == Exit.USAGE
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_no_runs_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["history", "--results", str(tmp_path)]) == Exit.USAGE
    assert "no run under" in capsys.readouterr().err


def test_a_figure_that_is_not_finite_is_left_out(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = write_run(results, 11, size=math.inf)
    write_run(results, 12, size=101.0)
    found = data(capsys, "--results", str(results), "--metric", "memory.layer_bytes")
    ((case,),) = (machine["cases"] for machine in found["machines"])
    runs = [point["run"] for point in case["points"]]
    assert broken.name not in runs
    assert len(runs) == 11


def test_a_half_written_last_line_is_told(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (results / f"{SUITE}-10" / "samples.jsonl").open("a") as file:
        file.write("{")
    assert (
        "h-10/samples.jsonl: the last line was half written"
        in data(capsys, "--results", str(results))["notes"][0]
    )


def test_courses_are_drawn_from_least_to_most() -> None:
    assert course([1.0, 2.0, 1.5]) == "▁█▅"
    assert course([3.0, 3.0]) == "▅▅"
    assert len(course([float(n) for n in range(100)])) == 24


def test_neither_torch_nor_the_layers_are_needed(results: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['impl'] = None; from bitbench.cli import main; "
        f"raise SystemExit(main(['history', '--results', {str(results)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
