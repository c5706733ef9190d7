"""Two sides in turns: who is measured when, what a failure on one side costs, what is stored."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bitbench.errors import ToolError
from bitbench.execute import paired
from bitbench.execute.losses import DEATHS
from bitbench.execute.lots import Lots
from bitbench.execute.paired import execute_paired
from bitbench.execute.partner import Partner
from bitbench.execute.patience import Limits
from bitbench.execute.runner import Machine
from bitbench.execute.sides import SideCode
from bitbench.layers.registry import REGISTRY as LAYERS
from bitbench.store.reader import RunData, load_run
from bitbench.store.schema import Case, CodeIdentity, Record, Side, Status
from bitbench.suite.expand import Plan, expand
from bitbench.suite.schema import Suite
from bitbench.workloads.registry import REGISTRY as WORKLOADS

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
ENTRY_POINTS = """
[bitbench.layers]
sided = sided_kinds:SidedLayer

[bitbench.workloads]
sided = sided_kinds:SidedWorkload
"""

LIBRARY = """
import os, signal, time

SIDE = {side!r}
DEEDS = {deeds!r}
calls = 0


def log(*words):
    with open(os.environ["SIDED_LOG"], "a") as file:
        file.write(" ".join(map(str, (SIDE, os.getpid(), *words))) + "\\n")


def do(what, layer):
    deed = DEEDS.get((what, layer))
    if deed == "abort":
        os.abort()
    if deed == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "hang":
        time.sleep(3600)
    if deed == "raise":
        raise ValueError(f"{{layer}} raises")
    if deed == "raise, then abort":
        Bomb()
        raise ValueError(f"{{layer}} raises")


class Bomb:  # goes off when it is collected
    def __init__(self):
        self.itself = self

    def __del__(self):
        os.abort()


def build(layer):
    log("build", layer)
    do("build", layer)


def reset(layer):
    global calls
    log("calls", layer, calls)
    calls = 0


def call(layer):
    global calls
    calls += 1
    do("call", layer)
    time.sleep(0.0002)
    return calls


def right(layer, check):
    if check > 1:
        do("conclude", layer)
    return DEEDS.get(("check", layer)) != "wrong"


def size(layer):
    return {size}


do("import", "")
"""


class Notes:
    """A sink that remembers, and does what a test asks when a record comes."""

    def __init__(self) -> None:
        self.total = 0
        self.records: list[Record] = []
        self.notes: list[str] = []
        self.ended = False
        self.on_record: Callable[[Record], None] = lambda record: None
        self.on_at: Callable[[Case, str], None] = lambda case, stage: None

    def started(self, records: int, seconds: float) -> None:
        self.total = records

    def extended(self, records: int, seconds: float) -> None:
        self.total += records

    def at(self, launch: str, case: Case, stage: str) -> None:
        self.on_at(case, stage)

    def recorded(self, case: Case, record: Record, seconds: float) -> None:
        self.records.append(record)
        self.on_record(record)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def finished(self) -> None:
        self.ended = True


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Installs the plug-in for this process and its workers; yields the log of what the sides did."""
    installed = tmp_path / "site"
    info = installed / "sided_kinds-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sided-kinds\nVersion: 0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    paths = [str(installed), str(HERE / "paired_plugin")]
    for path in paths:
        monkeypatch.syspath_prepend(path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*paths, str(ROOT)]))
    monkeypatch.setenv("BITBENCH_LOCK_DIR", str(tmp_path / "locks"))
    found = tmp_path / "sided.log"
    found.touch()
    monkeypatch.setenv("SIDED_LOG", str(found))
    _forget()
    yield found
    sys.modules.pop("sided_kinds", None)
    _forget()


def _forget() -> None:
    for registry in (LAYERS, WORKLOADS):
        registry.__dict__.pop("_peers", None)
        registry._loaded.pop("sided", None)


@pytest.fixture
def compare(log: Path, tmp_path: Path) -> Callable[..., RunData]:
    """Measures a plan of sided layers; ``base`` and ``head`` say what goes wrong on a side."""

    def run(
        plan: Plan,
        base: dict[tuple[str, str], str] | None = None,
        head: dict[tuple[str, str], str] | None = None,
        sink: Notes | None = None,
        **options: Any,
    ) -> RunData:
        run_dir = tmp_path / "run"
        run_dir.mkdir(exist_ok=True)
        return execute_paired(
            plan,
            run_dir,
            (_side(tmp_path, "base", base or {}), _side(tmp_path, "head", head or {})),
            sink=sink or Notes(),
            machine=Machine("cpu", 1),
            purpose="compare",
            suite_path="suite.yaml",
            **{"limits": Limits(start=120, least=60), **options},
        )

    return run


def _side(folder: Path, side: Side, deeds: dict[tuple[str, str], str]) -> SideCode:
    package = folder / side / "sidelib"
    package.mkdir(parents=True, exist_ok=True)
    size = 8 if side == "base" else 9
    (package / "__init__.py").write_text(LIBRARY.format(side=side, deeds=deeds, size=size))
    code = CodeIdentity(bitbench="0", impl="0", digest=side, label=f"version {side}")
    return SideCode(side, f"version {side}", str(package.parent), ["sidelib"], code)


def make_plan(
    *layers: str, launches: int = 1, max_calls: int | None = None, seed: int = 0, **workload: Any
) -> Plan:
    suite = Suite.model_validate(
        {
            "schema": 1,
            "name": "sides",
            "baseline": layers[0],
            "launches": launches,
            "seed": seed,
            "layers": {name: {"kind": "sided", "max_calls": max_calls} for name in layers},
            "workloads": [{"kind": "sided", **workload}],
        }
    )
    return expand(suite)


def outcomes(run: RunData, launch: int | None = None) -> dict[tuple[str, str], Status]:
    """Status by side and layer."""
    layers = {case.id: case.layer for case in run.cases}
    chosen = [r for r in run.records if launch is None or r.launch == launch]
    return {(record.side, layers[record.case]): record.status for record in chosen}


def reasons(run: RunData) -> dict[tuple[str, str], str]:
    layers = {case.id: case.layer for case in run.cases}
    return {(record.side, layers[record.case]): record.reason for record in run.records}


def assert_complete(run: RunData) -> None:
    """Every case has one record of each side for each launch."""
    seen = Counter((record.case, record.launch, record.side) for record in run.records)
    wanted = {(c.id, n, s) for c in run.cases for n in range(c.launches) for s in paired.SIDES}
    assert set(seen) == wanted
    assert set(seen.values()) == {1}
    lines = (run.path / "samples.jsonl").read_text().splitlines()
    assert len(lines) == len(wanted)


def said(log: Path, what: str) -> list[list[str]]:
    """What the sides logged of ``what``: side, process id, and the rest."""
    lines = [line.split() for line in log.read_text().splitlines()]
    return [[side, pid, *rest] for side, pid, word, *rest in lines if word == what]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def assert_all_ended(log: Path) -> None:
    pids = {int(line.split()[1]) for line in log.read_text().splitlines()}
    assert pids
    assert not any(map(alive, pids))


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


def test_what_only_one_side_can_do_is_measured_on_that_side(compare: Any) -> None:
    run = compare(
        make_plan("good", "new", "wrong", "late"),
        base={("build", "new"): "raise"},
        head={("check", "wrong"): "wrong", ("call", "late"): "raise"},
    )
    assert_complete(run)
    assert outcomes(run) == {
        ("base", "good"): Status.OK,
        ("head", "good"): Status.OK,
        ("base", "new"): Status.ERROR,
        ("head", "new"): Status.OK,
        ("base", "wrong"): Status.OK,
        ("head", "wrong"): Status.INCORRECT,
        ("base", "late"): Status.OK,
        ("head", "late"): Status.ERROR,
    }
    assert reasons(run)["base", "new"] == "ValueError: new raises"
    layers = {case.id: case.layer for case in run.cases}
    timed = {(r.side, layers[r.case]) for r in run.records if r.samples_ns}
    assert timed == {key for key, status in outcomes(run).items() if status is Status.OK}


@pytest.mark.parametrize("when", ["build", "call", "conclude"])
def test_a_dead_worker_costs_its_case_on_both_sides(compare: Any, log: Path, when: str) -> None:
    sink = Notes()
    run = compare(make_plan("good", "dies", "fine"), head={(when, "dies"): "abort"}, sink=sink)
    assert_complete(run)
    found = outcomes(run)
    assert found["head", "dies"] is Status.CRASH
    told = reasons(run)
    assert "SIGABRT" in told["head", "dies"]
    assert "logs/launch-0-head.log" in told["head", "dies"]
    if found["base", "dies"] is not Status.OK:  # its record may have come before
        assert when != "build" or found["base", "dies"] is Status.ERROR
        assert told["base", "dies"].startswith("not measured: the head side was lost at this case")
    assert {found[side, layer] for side in ("base", "head") for layer in ("good", "fine")} == {Status.OK}
    assert len(sink.notes) == 1
    assert_all_ended(log)


def test_a_case_that_kills_again_is_given_up_and_the_other_side_measured_alone(compare: Any) -> None:
    sink = Notes()
    run = compare(make_plan("good", "dies", launches=4), head={("call", "dies"): "kill"}, sink=sink)
    assert_complete(run)
    assert len(sink.notes) == DEATHS
    for launch in range(4):
        found = outcomes(run, launch)
        assert found["base", "good"] is found["head", "good"] is Status.OK
        assert found["head", "dies"] is Status.CRASH
        assert found["base", "dies"] is (Status.ERROR if launch < DEATHS else Status.OK)
    last = [r for r in run.records if r.launch == 3 and r.status is Status.CRASH]
    assert last[0].reason.startswith("not tried after 2 losses: the worker died of SIGKILL")


def test_a_hang_is_ended_and_not_waited_for_again(compare: Any, log: Path) -> None:
    sink = Notes()
    run = compare(
        make_plan("good", "hangs", launches=2),
        base={("call", "hangs"): "hang"},
        sink=sink,
        limits=Limits(start=120, least=3, factor=0),
    )
    assert_complete(run)
    assert outcomes(run, 0)["base", "hangs"] is Status.TIMEOUT
    assert outcomes(run, 0)["head", "hangs"] is Status.ERROR
    assert outcomes(run, 1)["base", "hangs"] is Status.TIMEOUT
    assert outcomes(run, 1)["head", "hangs"] is Status.OK
    assert "3 s" in next(r.reason for r in run.records if r.status is Status.TIMEOUT)
    assert len(sink.notes) == 1
    assert_all_ended(log)


def test_a_process_that_dies_after_its_last_record_ends_no_run_in_a_circle(compare: Any) -> None:
    """All layers of the point have failed on this side, and cleaning up after them kills it."""
    run = compare(make_plan("a", launches=3), head={("build", "a"): "raise, then abort"})
    assert_complete(run)
    for launch in range(3):
        found = outcomes(run, launch)
        assert found["head", "a"] in (Status.ERROR, Status.CRASH)
        assert found["base", "a"] is (Status.ERROR if launch < DEATHS else Status.OK)


def test_the_time_of_what_is_measured_once_is_told_by_stage(compare: Any) -> None:
    (end,) = compare(make_plan("a", timed=0, exact=1)).ends
    assert {"start", "open", "measure"} <= set(end.stages_s)


def test_a_library_that_kills_when_imported_costs_its_side_only(compare: Any) -> None:
    run = compare(make_plan("a", "b", launches=3, exact=1), base={("import", ""): "abort"})
    assert_complete(run)
    assert {status for (side, _), status in outcomes(run).items() if side == "base"} == {Status.CRASH}
    assert {status for (side, _), status in outcomes(run, 2).items() if side == "head"} == {Status.OK}


def test_a_worker_lost_while_the_other_side_works(compare: Any, log: Path) -> None:
    sink = Notes()

    def kill(case: Case, stage: str) -> None:
        if stage == "time" and not sink.notes:
            pids = [int(pid) for side, pid, *_ in said(log, "build") if side == "base"]
            os.kill(pids[-1], signal.SIGKILL)

    sink.on_at = kill
    run = compare(make_plan("a", "b", "c"), sink=sink)
    assert_complete(run)
    lost = [key for key, status in outcomes(run).items() if status is not Status.OK]
    assert len(lost) == 2
    assert {side for side, _ in lost} == {"base", "head"}
    assert len({layer for _, layer in lost}) == 1


def test_an_interrupt_keeps_whole_pairs(compare: Any, log: Path, tmp_path: Path) -> None:
    sink = Notes()

    def interrupt(record: Record) -> None:
        if len(sink.records) == 4:
            raise KeyboardInterrupt

    sink.on_record = interrupt
    with pytest.raises(KeyboardInterrupt):
        compare(make_plan("a", "b", launches=3), sink=sink)
    run = load_run(tmp_path / "run")
    assert Counter(record.side for record in run.records) == {"base": 2, "head": 2}
    assert run.ends == []
    assert sink.ended
    assert_all_ended(log)


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


@pytest.mark.parametrize("gone", ["base", "head"])
def test_a_side_that_failed_keeps_its_reason_beside_a_slowdown_that_cannot_be(
    compare: Any, gone: str
) -> None:
    plan = make_plan("plain", "short", max_calls=8)
    run = compare(plan, slowdown={"short": 0.1}, **{gone: {("build", "short"): "raise"}})
    assert_complete(run)
    assert reasons(run)[gone, "short"] == "ValueError: short raises"
    wanted = Status.OK if gone == "head" else Status.UNSUPPORTED
    assert outcomes(run)["head" if gone == "base" else "base", "short"] is wanted


def test_a_worker_that_cannot_start_is_a_fault_of_the_tool(
    compare: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('no torch here')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(broken.parent), os.environ["PYTHONPATH"]]))
    with pytest.raises(ToolError, match="no torch here"):
        compare(make_plan("a"))


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
