"""``bitbench baseline``, and ``bitbench gate`` on what is stored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bitbench.cli import main
from bitbench.errors import Exit
from bitbench.store.reader import load_run
from bitbench.store.schema import Record, Status
from bitbench.store.writer import CASES_FILE, RUN_FILE, SAMPLES_FILE

LAUNCHES = 10


@pytest.fixture
def run(run_maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run without failures, ten launches, of ``suites/llm.yaml``; the working folder is new."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_maker, "FAILURES", [])
    path: Path = run_maker.write_run(tmp_path / "results", launches=LAUNCHES)
    stored = load_run(path)
    measured = {record.case for record in stored.records}
    cases = [case for case in stored.cases if case.id in measured]
    (path / CASES_FILE).write_text("".join(case.model_dump_json() + "\n" for case in cases))
    rewrite_info(path, suite_path="suites/llm.yaml", threads=1)
    Path("suites").mkdir()
    return path


def rewrite_info(path: Path, **changes: Any) -> None:
    head = path / RUN_FILE
    head.write_text(json.dumps({**json.loads(head.read_text()), **changes}))


def rewrite(path: Path, change: Any) -> None:
    """Replace each record by ``change(record)``; None drops it."""
    records = [change(record) for record in load_run(path).records]
    text = "".join(r.model_dump_json(exclude_defaults=True) + "\n" for r in records if r is not None)
    (path / SAMPLES_FILE).write_text(text)


def accept(*arguments: str) -> int:
    return main(["baseline", "accept", *arguments])


def accepted(run: Path, *options: str) -> dict[str, Any]:
    assert accept(str(run), "--why", "first figures", "--who", "Ada", *options) == Exit.OK
    found: dict[str, Any] = json.loads(Path("suites/llm.baseline.json").read_text())
    return found


def id_of(path: Path, layer: str, measure: str = "") -> str:
    cases = load_run(path).cases
    return next(
        c.id for c in cases if c.layer == layer and (not measure or c.params.get("measure") == measure)
    )


def test_accepting_writes_the_file_beside_the_suite_and_signs_it(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = accepted(run)
    (entry,) = found["log"]
    assert (entry["who"], entry["why"], entry["source"]) == ("Ada", "first figures", run.name)
    assert entry["added"] == sum(len(own) for own in found["figures"]["figures"].values())
    out = capsys.readouterr().out
    assert "written: suites/llm.baseline.json" in out
    assert f"{entry['added']} figures added" in out
    assert main(["baseline", "show", "suites/llm.yaml"]) == Exit.OK
    assert "Ada: first figures" in capsys.readouterr().out


def test_what_moved_is_logged_and_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accepted(run)

    def grown(record: Record) -> Record:
        metrics = {k: v + 8 if k == "memory.scales_bytes" and v else v for k, v in record.metrics.items()}
        return record.model_copy(update={"metrics": metrics})

    rewrite(run, grown)
    assert accept(run.name, "--why", "scales are padded", "--who", "Bob") == Exit.OK
    log = json.loads(Path("suites/llm.baseline.json").read_text())["log"]
    assert [entry["who"] for entry in log] == ["Ada", "Bob"]
    assert log[1]["moved"]
    assert {moved["metric"] for moved in log[1]["moved"]} == {"memory.scales_bytes"}
    assert all(moved["to"] == moved["from"] + 8 for moved in log[1]["moved"])
    assert "scales are padded" in capsys.readouterr().out


def test_the_same_again_moves_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accepted(run)
    accepted(run)
    assert "nothing moved" in capsys.readouterr().out


def test_git_signs_where_nobody_else_does(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.name")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "Grace")
    assert accept(str(run), "--why", "w") == Exit.OK
    assert json.loads(Path("suites/llm.baseline.json").read_text())["log"][0]["who"] == "Grace"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["accept"], "nothing to accept"),
        (["accept", "RUN"], "not moved without a reason"),
        (["accept", "RUN", "--why", "  "], "not moved without a reason"),
        (["accept", "gone", "--why", "w"], "there is no gone"),
        (["accept", "suites", "--why", "w"], "suites is not a run"),
        (["accept", "RUN", "--why", "w", "--who", "A", "--baseline", "no/b.json"], "there is no folder no"),
        (["shout"], "unknown action 'shout'"),
        (["show"], "there is no baseline suites/gate.baseline.json"),
        (["show", "RUN"], "there is no baseline suites/llm.baseline.json"),
    ],
)
def test_wrong_usage_is_told_with_2(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["baseline", *[str(run) if word == "RUN" else word for word in arguments]]) == Exit.USAGE
    assert message in capsys.readouterr().err
    assert not list(Path("suites").iterdir())


def test_nobody_to_sign_is_told(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert accept(str(run), "--why", "w") == Exit.USAGE
    assert "--who NAME" in capsys.readouterr().err


def fail(record: Record) -> Record:
    if record.launch == 0 and record.samples_ns:
        return Record(case=record.case, launch=0, status=Status.CRASH, reason="SIGSEGV")
    return record


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: rewrite(path, fail), "crash: SIGSEGV"),
        (lambda path: rewrite(path, lambda r: None if r.launch else r), "1 of 10 launches"),
        (lambda path: rewrite_info(path, quick=True), "quick run"),
        (lambda path: rewrite_info(path, slowdown=0.1), "slowed down on purpose"),
    ],
)
def test_a_doubtful_run_cannot_become_a_baseline(
    run: Path, spoil: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(run)
    assert accept(str(run), "--why", "w", "--who", "A") == Exit.USAGE
    assert message in capsys.readouterr().err
    assert not list(Path("suites").iterdir())


def test_an_empty_run_holds_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(run, lambda record: None)
    assert accept(str(run), "--why", "w", "--who", "A") == Exit.TOOL
    assert main(["gate", str(run)]) == Exit.TOOL
    assert capsys.readouterr().err.count("holds no measurement") == 2


# --- the gate on a stored run -------------------------------------------------------------------


def judged(run: Path, *options: str) -> tuple[int, dict[str, Any]]:
    code = main(["gate", str(run), "--json", "gate.json", *options])
    return code, json.loads(Path("gate.json").read_text())


def slowed(factor: float, layer: str, path: Path) -> Any:
    ids = {case.id for case in load_run(path).cases if case.layer == layer}

    def change(record: Record) -> Record:
        if record.case not in ids:
            return record
        return record.model_copy(update={"samples_ns": [round(ns * factor) for ns in record.samples_ns]})

    return change


def test_the_run_that_was_accepted_passes(run: Path) -> None:
    accepted(run)
    code, found = judged(run)
    assert code == Exit.OK
    assert found["outcome"] == "passed"
    assert found["proof"] is None
    assert {row["role"] for row in found["rows"] if row["metric"] == "memory.layer_bytes"} == {"gating"}


def test_one_byte_more_fails_on_whatever_machine(run: Path) -> None:
    accepted(run)
    rewrite(run, lambda r: r.model_copy(update={"metrics": {
        k: v + (k == "memory.layer_bytes") for k, v in r.metrics.items()}}))  # fmt: skip
    assert judged(run)[0] == Exit.FAILED
    rewrite_info(run, threads=2)
    assert judged(run)[0] == Exit.FAILED


def test_a_slower_ratio_fails_on_the_same_machine_and_is_only_shown_on_another(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = load_run(run).info.environment
    rewrite_info(run, environment={**environment, "torch": {"version": "2.13.0"}})
    accepted(run)
    rewrite(run, slowed(1.2, "ternary", run))
    code, found = judged(run)
    assert code == Exit.FAILED
    failing = [row for row in found["rows"] if row["fails"]]
    assert failing
    assert {(row["metric"], row["label"].rpartition("/")[2]) for row in failing} == {
        ("time.speedup", "ternary")
    }
    rewrite_info(run, environment={**environment, "torch": {"version": "9.9.9"}})
    code, found = judged(run)
    assert code == Exit.OK
    (warning,) = [text for text in found["warnings"] if "only shown, not gated (another machine" in text]
    assert "torch" in warning
    assert "9.9.9" in warning
    assert "9.9.9" in capsys.readouterr().out


def test_a_case_that_fails_now_fails_the_gate(run: Path) -> None:
    accepted(run)
    id = next(c.id for c in load_run(run).cases if c.replicate == "exact" and c.layer == "ternary")

    def crash(record: Record) -> Record:
        if record.case != id:
            return record
        return Record(case=id, launch=record.launch, status=Status.CRASH, reason="SIGSEGV")

    rewrite(run, crash)
    code, found = judged(run)
    assert code == Exit.FAILED
    reasons = {r["reason"] for r in found["comparison"]["results"] if r["case"] == id}
    assert reasons == {"crash: SIGSEGV"}


def test_a_missing_baseline_names_the_command_that_makes_one(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gate", str(run)]) == Exit.USAGE
    err = capsys.readouterr().err
    assert "there is no baseline suites/llm.baseline.json" in err
    assert "bitbench baseline accept SOURCE" in err


def test_a_cut_off_baseline_is_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accepted(run)
    path = Path("suites/llm.baseline.json")
    path.write_text(path.read_text()[:300])
    assert main(["gate", str(run)]) == Exit.USAGE
    assert "suites/llm.baseline.json cannot be read" in capsys.readouterr().err


def test_a_file_of_pytest_benchmark_has_its_own_baseline(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bitbench.pytest_plugin.exchange import export_run

    Path("tests/benchmarks").mkdir(parents=True)
    export_run(run, Path("b.json"))
    assert main(["gate", "b.json"]) == Exit.USAGE
    assert "there is no baseline tests/benchmarks/baseline.json" in capsys.readouterr().err
    assert accept("b.json", "--why", "w", "--who", "A") == Exit.OK
    assert main(["gate", "b.json"]) == Exit.OK
    shutil.copy("b.json", "cut.json")
    Path("cut.json").write_text(Path("b.json").read_text()[:100])
    assert main(["gate", "cut.json"]) == Exit.USAGE
    assert "is not whole JSON" in capsys.readouterr().err


def test_benchmarks_of_others_are_shown_or_nothing_is_judged(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bitbench.pytest_plugin.exchange import export_run

    Path("tests/benchmarks").mkdir(parents=True)
    foreign = {"fullname": "test_sort.py::test_sort", "stats": {"mean": 2e-3, "rounds": 20}}
    Path("foreign.json").write_text(json.dumps({"benchmarks": [foreign]}))
    for command in (["gate", "foreign.json"], ["baseline", "accept", "foreign.json", "--why", "w"]):
        assert main(command) == Exit.TOOL
        assert "foreign.json holds nothing that can be judged" in capsys.readouterr().err

    export_run(run, Path("b.json"))
    data = json.loads(Path("b.json").read_text())
    Path("b.json").write_text(json.dumps({**data, "benchmarks": [*data["benchmarks"], foreign]}))
    assert accept("b.json", "--why", "w", "--who", "A") == Exit.OK
    capsys.readouterr()
    assert main(["gate", "b.json"]) == Exit.OK
    assert "test_sort.py::test_sort: 2.00 ms in one process" in capsys.readouterr().out


def test_a_baseline_of_other_cases_leaves_nothing_to_judge(run: Path) -> None:
    accepted(run)
    path = Path("suites/llm.baseline.json")
    path.write_text(path.read_text().replace("2048x2048", "9x9").replace("4096x4096", "8x9"))
    path.write_text(path.read_text().replace("8192x2048", "7x9").replace("smollm2-135m", "another"))
    code, found = judged(run)
    assert code == Exit.TOOL
    assert (found["outcome"], found["reason"]) == ("broken", "nothing was measured that could be compared")
    assert any("of the baseline were not measured" in text for text in found["warnings"])


def test_a_time_that_fails_on_another_machine_blames_no_code(run: Path) -> None:
    accepted(run)
    cases = load_run(run).cases
    ids = {c.id for c in cases if (c.workload, c.phase, c.layer) == ("linear", "timed", "ternary")}

    def crash(record: Record) -> Record:
        if record.case not in ids:
            return record
        return Record(case=record.case, launch=record.launch, status=Status.OOM, reason="no memory")

    rewrite(run, crash)
    assert judged(run)[0] == Exit.FAILED
    rewrite_info(run, threads=2)
    code, found = judged(run)
    assert code == Exit.OK
    missing = [row for row in found["rows"] if row["word"] == "not comparable"]
    assert {row["role"] for row in missing if row["metric"] == "time.speedup"} == {"shown"}
    assert any("oom: no memory" in text for text in found["warnings"])


@pytest.mark.parametrize("unknown", [{"model": ""}, {}])
def test_times_of_a_machine_that_nobody_knows_are_only_shown(run: Path, unknown: dict[str, str]) -> None:
    """Two such machines look alike without being so."""
    environment = load_run(run).info.environment
    rewrite_info(run, environment={**environment, "cpu": unknown})
    accepted(run)
    rewrite(run, slowed(1.2, "ternary", run))
    code, found = judged(run)
    assert code == Exit.OK
    assert any("it is not known on which machine" in text for text in found["warnings"])


def test_what_is_wrong_with_a_run_is_told_beside_its_verdict(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (run / SAMPLES_FILE).open("a") as file:
        file.write('{"case": "x", "lau')
    accepted(run)
    assert "the last line was half written" in capsys.readouterr().out
    rewrite_info(run, quick=True)
    code, found = judged(run)
    assert code == Exit.OK
    assert found["warnings"][0].endswith("the last line was half written and is left out (18 bytes)")
    assert "it is a quick run, which measures a small part" in found["warnings"]


def test_a_long_list_of_objections_is_counted(run: Path) -> None:
    accepted(run)
    rewrite(run, lambda r: None if r.launch == LAUNCHES - 1 and r.samples_ns else r)
    warnings = judged(run)[1]["warnings"]
    assert sum("has 9 of 10 launches" in text for text in warnings) == 5
    assert any(text.endswith("more that a baseline would not be made of") for text in warnings)
