"""``bitbench gate`` from the outside, on a machine whose truth is known."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from bitbench.cache import cache_root
from bitbench.cli import main
from bitbench.errors import Exit, UserError
from bitbench.store.baseline import accept, save_baseline
from bitbench.store.figures import Figure, FigureSet
from bitbench.store.reader import load_run

ROOT = Path(__file__).parents[3]


def gate(lab: Any, *options: str) -> int:
    return main(["gate", str(lab.suite()), "--base", "main", *options])


def data(lab: Any, *options: str) -> tuple[int, dict[str, Any]]:
    code = gate(lab, "--json", "out/gate.json", *options)
    return code, json.loads(Path("out/gate.json").read_text())


def with_baseline(lab: Any, **layer_bytes: float) -> Path:
    figures = {
        f"linear/64x32/memory/{layer}": {"memory.layer_bytes": Figure(kind="exact", value=value)}
        for layer, value in layer_bytes.items()
    }
    path = lab.folder / "tiny.baseline.json"
    save_baseline(path, accept(None, FigureSet(source="tiny.yaml", figures=figures), who="A", why="w"))
    return path


def test_equal_versions_pass_and_the_gate_calibrates_first(
    lab: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = data(lab)
    out = capsys.readouterr().out
    assert code == Exit.OK
    assert found["outcome"] == "passed"
    assert found["proof"]["holds"]
    assert "suite 'tiny' was never calibrated on this machine: calibrating first" in out
    assert "gate passed" in out
    assert [r["purpose"] for r in lab.rounds][:2] == ["calibrate", "gate"]
    roles = {(row["label"].rpartition("/")[2], row["metric"]): row["role"] for row in found["rows"]}
    assert roles["ternary", "time.latency"] == "gating"
    assert roles["linear", "time.latency"] == "control"
    assert roles["self-proof-null", "time.latency"] == "proof"
    assert roles["ternary", "memory.layer_bytes"] == "gating"


def test_a_calibration_that_holds_is_used_again(lab: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(lab.suite())]) == Exit.OK
    out = capsys.readouterr().out
    assert "4 of 4 cases are quiet enough (10 launches)" in out
    assert str(next((cache_root() / "calibrations").iterdir())) in out
    assert gate(lab) == Exit.OK
    assert [r["purpose"] for r in lab.rounds].count("calibrate") == 1


def test_a_calibration_of_another_torch_has_expired(lab: Any, capsys: pytest.CaptureFixture[str]) -> None:
    main(["calibrate", str(lab.suite())])
    lab.facts["version"] = "2.14.0"
    assert gate(lab) == Exit.OK
    assert "has expired (torch: 2.13.0 then, 2.14.0 now): calibrating first" in capsys.readouterr().out


def test_a_slower_head_fails_after_a_second_round_of_fresh_reversed_launches(
    lab: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.slower["ternary"] = 0.05
    code, found = data(lab)
    assert code == found["exit_code"] == Exit.FAILED
    assert found["reason"] == "1 of 5 gating figures is worse"
    assert [row["label"] for row in found["rows"] if row["fails"]] == [
        "linear/64x32/tokens=1/cache=hot/ternary"
    ]
    again = lab.rounds[-1]
    assert again["launches"] == range(10, 20)
    assert again["reverse"]
    assert again["append"]
    assert len(again["only"]) == 1
    run = load_run(next(p for p in Path("results").iterdir() if "-gate-" in p.name))
    assert {r.launch for r in run.records if r.case in again["only"]} == set(range(20))
    assert "confirming 1 of 5 times" in capsys.readouterr().out


def test_a_faster_head_passes(lab: Any) -> None:
    lab.slower["ternary"] = -0.2
    code, found = data(lab, "--strict")
    assert code == Exit.OK
    assert found["outcome"] == "passed"


def test_a_noisy_case_is_shown_and_does_not_fail(lab: Any) -> None:
    lab.spread["ternary"] = 0.2
    lab.slower["ternary"] = 1.0
    code, found = data(lab)
    assert code == Exit.OK
    (row,) = [r for r in found["rows"] if r["label"].endswith("hot/ternary")]
    assert row["role"] == "shown"
    assert "exceeds 3 %" in row["why"]


@pytest.mark.parametrize("worse", [False, True])
@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ({"blind": True}, "a slowdown of 10 % put in on purpose came out same"),
        ({"null_bias": 0.2}, "the same code held against itself came out slower"),
        ({"null_bias": -0.2}, "the same code held against itself came out faster"),
        ({"dies": "self-proof-null"}, "the same code held against itself came out not comparable"),
    ],
)
def test_a_gate_that_cannot_prove_itself_ends_with_3(
    lab: Any, broken: dict[str, Any], told: str, worse: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in broken.items():
        setattr(lab, name, value)
    lab.slower["ternary"] = 0.1 if worse else 0.0
    code, found = data(lab, "--junit", "out/junit.xml", "--markdown", "out/comment.md")
    assert code == Exit.TOOL
    assert found["outcome"] == "broken"
    assert found["reason"].startswith("the gate could not prove itself")
    assert told in found["reason"]
    assert "gate broken" in capsys.readouterr().out
    assert "broken" in Path("out/comment.md").read_text()
    outcome = ElementTree.parse("out/junit.xml").getroot().findall(".//testcase[@name='outcome']/error")
    assert len(outcome) == 1
    # What came out wrong in the first round was given a second one before the gate gave up.
    assert lab.rounds[-1]["reverse"] == (not lab.dies or worse)


@pytest.mark.parametrize("percent", ["10", "5"])
def test_an_injected_slowdown_turns_the_gate_red_and_is_loud(
    lab: Any, percent: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = data(lab, "--inject", percent, "--markdown", "out/comment.md")
    assert code == Exit.FAILED
    failing = {row["label"].rpartition("/")[2] for row in found["rows"] if row["fails"]}
    assert failing == {"binary", "ternary"}
    told = f"SLOWED DOWN ON PURPOSE BY {percent} %"
    assert told in found["comparison"]["head"]
    assert any(told in text for text in found["warnings"])
    assert told in capsys.readouterr().out
    assert told in Path("out/comment.md").read_text()
    assert f"--inject {percent}" in Path("out/comment.md").read_text()


def test_a_case_that_dies_in_the_head_fails_the_gate(lab: Any) -> None:
    lab.dies = "ternary"
    code, found = data(lab)
    assert code == Exit.FAILED
    died = [row for row in found["rows"] if row["fails"]]
    assert {row["metric"] for row in died} == {"time.latency", "memory.layer_bytes"}


def test_bytes_are_held_against_the_base_side_where_there_is_no_baseline(
    lab: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.bytes["ternary"] = 901.0
    code, found = data(lab)
    assert code == Exit.FAILED
    assert [row["metric"] for row in found["rows"] if row["fails"]] == ["memory.layer_bytes"]
    assert any("there is no baseline" in text and "baseline accept" in text for text in found["warnings"])


def test_an_accepted_baseline_decides_on_bytes(lab: Any) -> None:
    lab.bytes["ternary"] = 901.0
    with_baseline(lab, linear=8192, binary=512, ternary=901)
    assert gate(lab) == Exit.OK
    with_baseline(lab, linear=8192, binary=512, ternary=900)
    assert gate(lab) == Exit.FAILED


def test_a_figure_that_the_baseline_lacks_is_shown_and_one_that_is_not_measured_named(lab: Any) -> None:
    lab.bytes["ternary"] = 901.0
    with_baseline(lab, linear=8192, binary=512, gone=7)
    code, found = data(lab)
    assert code == Exit.OK
    (row,) = [r for r in found["rows"] if r["label"].endswith("memory/ternary")]
    assert (row["role"], row["why"]) == ("shown", "not in the baseline yet")
    assert any("linear/64x32/memory/gone" in text for text in found["warnings"])


def test_a_named_baseline_must_exist(lab: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(lab, "--baseline", "none.json") == Exit.USAGE
    err = capsys.readouterr().err
    assert "there is no baseline none.json" in err
    assert "bitbench baseline accept" in err
    assert lab.rounds == []


@pytest.mark.parametrize(("threads", "launches"), [(2, "10"), (1, "4")])
def test_times_that_may_not_gate_leave_the_question_open(lab: Any, threads: int, launches: str) -> None:
    lab.slower["ternary"] = 0.3
    suite = str(lab.suite(threads))
    arguments = ["gate", suite, "--base", "main", "--launches", launches]
    assert main(arguments) == Exit.OK
    assert main([*arguments, "--strict"]) == Exit.INCONCLUSIVE


def test_a_moved_control_leaves_the_question_open(lab: Any) -> None:
    lab.slower |= {"ternary": 0.2, "linear": 0.2}
    code, found = data(lab, "--strict")
    assert code == Exit.INCONCLUSIVE
    assert "control moved" in found["comparison"]["contaminated"]


def test_files_are_written_before_the_exit_status_is_decided(lab: Any) -> None:
    lab.slower["ternary"] = 0.1
    assert gate(lab, "--junit", "a/j.xml", "--markdown", "b/c.md", "--json", "c/g.json") == Exit.FAILED
    root = ElementTree.parse("a/j.xml").getroot()
    assert int(root.get("failures", "0")) == 2  # the case, and the outcome
    assert "ternary" in Path("b/c.md").read_text()
    assert json.loads(Path("c/g.json").read_text())["exit_code"] == Exit.FAILED


def test_the_comment_names_the_command_that_repeats_it(lab: Any) -> None:
    gate(lab, "--only", "hot/ternary", "--markdown", "c.md", "--launches", "10")
    assert (
        f"bitbench gate {lab.folder}/tiny.yaml --base main --launches 10 --only hot/ternary"
        in Path("c.md").read_text()
    )


def test_an_interruption_ends_with_130(
    lab: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bitbench.execute.paired.execute_paired", interrupted)
    assert gate(lab) == Exit.INTERRUPTED
    assert main(["calibrate", str(lab.suite())]) == Exit.INTERRUPTED
    assert "Traceback" not in capsys.readouterr().err


def test_other_programs_at_work_are_named(lab: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lab.busy = ["make (180 % cpu)"]
    assert gate(lab) == Exit.OK
    assert "other processes are at work, which results will show: make (180 % cpu)" in capsys.readouterr().out


def test_the_device_is_held_for_the_whole_gate(lab: Any, capsys: pytest.CaptureFixture[str]) -> None:
    script = (
        "import sys\nfrom bitbench.measure.lock import device_lock\n"
        "with device_lock('cpu'):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdin is not None
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    assert gate(lab) == Exit.USAGE
    assert f"process {other.pid}" in capsys.readouterr().err
    assert lab.rounds == []
    let_go = threading.Timer(0.3, other.stdin.close)
    let_go.start()
    assert gate(lab, "--wait") == Exit.OK
    assert other.wait() == 0


def test_nothing_is_left_behind_where_nothing_was_measured(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise UserError("no")

    monkeypatch.setattr("bitbench.execute.paired.execute_paired", refused)
    assert gate(lab) == Exit.USAGE
    assert list(Path("results").iterdir()) == []


def test_more_threads_than_processors_are_refused(lab: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", str(lab.suite(4000)), "--base", "main"]) == Exit.USAGE
    assert "4000 threads are more than the" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to judge"),
        (["tiny.yaml"], "no --base is given"),
        (["gone-run"], "there is no gone-run"),
        (["tiny.yaml", "--base", "main", "--inject", "0.5"], "--inject 0.5 is not from 1 to 100"),
        (["tiny.yaml", "--base", "main", "--inject", "-10"], "--inject -10 is not from 1 to 100"),
        (["tiny.yaml", "--base", "main", "--inject", "nan"], "--inject nan is not from 1 to 100"),
        (["a.json", "--base", "main"], "is not a suite"),
        (["a.json", "--inject", "10"], "--inject has no meaning for a stored measurement"),
        (["a.json", "--head", "x"], "--head has no meaning for a stored measurement"),
        (["tiny.yaml", "--base", "main", "--only", "nothing"], "no case matches 'nothing'"),
        (["tiny.yaml", "--base", "main", "--only", "memory"], "times nothing that matches memory"),
        (["tiny.yaml", "--base", "main", "--calibration", "tiny.yaml"], "tiny.yaml cannot be read"),
    ],
)
def test_wrong_usage_is_told_with_2(
    lab: Any, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.suite()
    assert main(["gate", *arguments]) == Exit.USAGE
    assert message in capsys.readouterr().err
    assert lab.rounds == []


def test_a_case_that_the_base_does_not_know_is_shown_and_fails_nothing(lab: Any) -> None:
    lab.lacks = "ternary"
    code, found = data(lab, "--strict")
    assert code == Exit.OK
    lacking = [row for row in found["rows"] if row["label"].endswith("/ternary")]
    assert {(row["role"], row["word"]) for row in lacking} == {("shown", "not comparable")}
    assert all("base is error: TypeError: unknown option" in row["why"] for row in lacking)
    gating = {row["label"].rpartition("/")[2] for row in found["rows"] if row["role"] == "gating"}
    assert "binary" in gating


def test_what_the_base_learned_is_calibrated_anew(lab: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Else a case that was new once would never gate on this machine."""
    lab.lacks, lab.digest = "ternary", "before"
    assert gate(lab) == Exit.OK
    assert gate(lab) == Exit.OK
    assert [r["purpose"] for r in lab.rounds].count("calibrate") == 1
    lab.lacks, lab.digest = "", "after"
    lab.slower["ternary"] = 0.1
    capsys.readouterr()
    assert gate(lab) == Exit.FAILED
    told = "has expired (the code has changed: 1 of 4 timed cases failed in what was calibrated)"
    assert told in capsys.readouterr().out
    lab.digest = "later"
    assert gate(lab) == Exit.FAILED
    assert [r["purpose"] for r in lab.rounds].count("calibrate") == 2


def test_where_neither_side_can_be_measured_the_question_stays_open(lab: Any) -> None:
    lab.lacks = lab.dies = "ternary"
    code, found = data(lab, "--only", "memory/ternary", "--only", "hot/ternary")
    assert code == Exit.OK
    assert found["outcome"] == "inconclusive"
    assert found["reason"].startswith("nothing gates: ")


def test_a_reader_who_leaves_does_not_cost_the_files(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def left(*_: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("bitbench.report.compared.show_gate", left)
    monkeypatch.setattr("bitbench.cli.os.dup2", lambda *_: None)
    assert gate(lab, "--json", "gate.json") == Exit.TOOL
    assert json.loads(Path("gate.json").read_text())["exit_code"] == Exit.OK


@pytest.mark.parametrize("option", ["--json", "--junit", "--markdown"])
def test_a_folder_in_place_of_a_file_is_told_before_anything_is_measured(
    lab: Any, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    assert gate(lab, option, "out") == Exit.USAGE
    assert f"out is a folder\n  name a file with {option} FILE" in capsys.readouterr().err
    assert lab.rounds == []


def test_launches_of_single_entries_are_all_made_alike(lab: Any) -> None:
    """A second round is told from the first by the number of the launch."""
    text = lab.suite().read_text().replace("cache: [hot]}", "cache: [hot], launches: 12}")
    (lab.folder / "long.yaml").write_text(text)
    lab.slower["ternary"] = 0.1
    assert main(["gate", str(lab.folder / "long.yaml"), "--base", "main"]) == Exit.FAILED
    assert lab.rounds[-1]["launches"] == range(12, 24)


def test_neither_command_imports_torch() -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import bitbench.cli.gate, bitbench.cli.calibrate, bitbench.cli.baseline, bitbench.cli.gate_session\n"
        "import bitbench.analysis.gate_rules, bitbench.analysis.calibration, bitbench.execute.paired\n"
        "from bitbench.cli import main\n"
        "sys.exit(main(['gate', 'none']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == Exit.USAGE, done.stderr
    assert "there is no none" in done.stderr
