"""Two sides in turns: who is measured when, by what code, and what is stored."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sided import Notes, assert_all_ended, assert_complete, make_plan, outcomes, reasons, said

from bitbench.execute import paired
from bitbench.execute.lots import Lots
from bitbench.execute.partner import Partner
from bitbench.store.schema import Record, Status

ROOT = Path(__file__).parents[3]


def test_both_sides_are_measured_alike_and_from_their_own_code(
    compare: Any, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    real = Partner.ask

    def ask(self: Partner, command: Any, *answers: Any, **options: Any) -> Any:
        if command.do in ("open", "time"):
            asked.append((self.side, command.layer))
        return real(self, command, *answers, **options)

    monkeypatch.setattr(Partner, "ask", ask)
    sink = Notes()
    plan = make_plan("a", "b", launches=2, timed=2, exact=1)
    run = compare(plan, sink=sink)
    assert_complete(run)
    assert sink.ended
    assert sink.total == len(sink.records) == 2 * (2 * 2 * 2 + 2)
    assert set(outcomes(run).values()) == {Status.OK}
    bytes_by_side = {r.side: r.metrics["memory.layer_bytes"] for r in run.records if not r.samples_ns}
    assert bytes_by_side == {"base": 8.0, "head": 9.0}
    # Two records of a launch and case: the same numbers of calls and blocks, in steps of 5 %.
    twins: dict[tuple[str, int], list[Record]] = {}
    for record in run.records:
        twins.setdefault((record.case, record.launch), []).append(record)
    for base, head in (pair for pair in twins.values() if pair[0].samples_ns):
        assert base.calls == head.calls
        assert base.calls % 20 == 0
        assert len(base.samples_ns) == len(head.samples_ns) >= 2
        assert base.order == head.order
        assert base.kernel == "sided/kernel"
    # Turns: mirrored pairs, each starting with the side that the pair before did not start with.
    stretches = [list(asked) for layer, asked in itertools.groupby(asked, lambda turn: turn[1]) if layer]
    assert len(stretches) == 2 * 2 * 2
    for stretch in stretches:
        quads = [tuple(side for side, _ in quad) for quad in _quads(stretch)]
        first = quads[0]
        assert first in (("base", "head", "head", "base"), ("head", "base", "base", "head"))
        swapped = ("head", "base", "base", "head") if first[0] == "base" else ("base", "head", "head", "base")
        assert quads == [swapped if n % 2 else first for n in range(len(quads))]
    # A fresh pair of processes each launch, and one for each side's bytes.
    assert len({(side, pid) for side, pid, *_ in said(log, "open")}) == 2 * 2 + 2
    caches = {side: rest[-1] for side, _, *rest in said(log, "open")}
    assert caches["base"] != caches["head"]
    assert not (run.path / "cache").exists()
    assert_all_ended(log)


def _quads(stretch: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    assert len(stretch) % 4 == 0
    return [stretch[i : i + 4] for i in range(0, len(stretch), 4)]


def test_the_head_of_the_run_names_both_versions(compare: Any) -> None:
    run = compare(make_plan("a", "b"), slowdown={"b": 0.05})
    info = run.info
    assert info.purpose == "compare"
    assert {side: code.label for side, code in info.sides.items()} == {
        "base": "version base",
        "head": "version head",
    }
    assert info.code.digest == "head"
    assert info.slowdown == 0.05
    assert [end.stops for end in run.ends] == [dict.fromkeys({c.point for c in run.cases}, "launches")]


def test_the_time_of_what_is_measured_once_is_told_by_stage(compare: Any) -> None:
    (end,) = compare(make_plan("a", timed=0, exact=1)).ends
    assert {"start", "open", "measure"} <= set(end.stages_s)


def test_the_confirmation_round_reverses_the_orders_of_the_launches_it_confirms(
    compare: Any, log: Path
) -> None:
    plan = make_plan("a", "b", launches=2, timed=3, exact=1)
    wanted = {case.id for case in plan.cases if case.phase == "timed" and case.layer == "b"}
    first = compare(plan)
    before = said(log, "open")
    assert len(first.ends) == 1
    run = compare(plan, launches=range(2, 4), only=wanted, reverse=True, append=True)
    after = said(log, "open")[len(before) :]
    again = [record for record in run.records if record.launch >= 2]
    assert {record.case for record in again} == wanted
    assert Counter(record.launch for record in again) == {2: 2 * 3, 3: 2 * 3}
    assert [record for record in run.records if record.launch < 2] == first.records
    assert len(run.ends) == 2
    visits = [(side, n) for side, _, n, _ in before][2:]  # without the bytes of each side
    confirmed = [(side, n) for side, _, n, _ in after]
    half = len(confirmed) // 2
    assert len(visits) == len(confirmed) == 12
    for launch in (0, 1):
        part = slice(launch * half, (launch + 1) * half)
        assert confirmed[part] == visits[part][::-1]


def test_the_slowed_layer_makes_more_calls_than_are_booked(compare: Any, log: Path) -> None:
    run = compare(make_plan("plain", "slow"), slowdown={"slow": 0.15})
    layers = {case.id: case.layer for case in run.cases}
    booked = {(r.side, layers[r.case]): r.calls for r in run.records}
    assert len(set(booked.values())) <= 2
    made: dict[tuple[str, str], Counter[int]] = {}
    for side, _, layer, calls in said(log, "calls"):
        made.setdefault((side, layer), Counter())[int(calls)] += 1
    for (side, layer), calls in booked.items():
        factor = 1.15 if (side, layer) == ("head", "slow") else 1.0
        blocks = len(next(r for r in run.records if (r.side, layers[r.case]) == (side, layer)).samples_ns)
        assert made[side, layer][round(calls * factor)] >= blocks - 1
    assert made["head", "slow"][booked["head", "slow"]] == 0


def test_a_layer_that_cannot_be_slowed_says_so(compare: Any) -> None:
    run = compare(make_plan("plain", "short", max_calls=8), slowdown={"short": 0.1})
    assert_complete(run)
    assert outcomes(run) == {
        ("base", "plain"): Status.OK,
        ("head", "plain"): Status.OK,
        ("base", "short"): Status.OK,
        ("head", "short"): Status.UNSUPPORTED,
    }
    assert "cannot be slowed down by 10.0%" in reasons(run)["head", "short"]


def test_points_layers_and_sides_start_in_orders_drawn_anew() -> None:
    orders = [Lots(seed, 0, None).order(paired.SIDES, "start") for seed in range(40)]
    assert {tuple(order) for order in orders} == {("base", "head"), ("head", "base")}
    lots = [Lots(0, launch, None).order(list("abcdef"), "points") for launch in range(20)]
    assert len({tuple(order) for order in lots}) > 10
    assert Lots(0, 30, 7).order(list("abcdef"), "points") == lots[7][::-1]


def test_the_parent_half_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['impl'] = None\n"
        "import bitbench.execute.paired, bitbench.execute.sides, bitbench.cli.compare\n"
        "import bitbench.workloads.self_proof\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
