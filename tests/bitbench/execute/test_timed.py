"""Orders inside a point: drawn per launch, mirrored, rotated, and stored as used."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from bitbench.execute import timed
from bitbench.execute.jobs import Setting, Visit, timed_job
from bitbench.execute.timed import PointClock
from bitbench.measure.clock import Budget, Series
from bitbench.measure.roofline import Peaks, Rulers
from bitbench.measure.timers import CpuTimer
from bitbench.store.schema import Record, Status

LAYERS = ("a", "b", "c", "d")
QUICK = Budget(seconds=0.0005, block_ns=20_000)


def visit_once(
    plan: Any, launch: int, tmp_path: Path, device: str = "cpu"
) -> tuple[list[tuple[str, str]], dict[str, Record]]:
    """Measures the plan's only point in this process: what was announced, and the records."""
    missing = {(case.id, launch) for case in plan.cases}
    job = timed_job(plan, Setting(device, 1, str(tmp_path), {}), launch, missing)
    (visit,) = job.visits
    stages: list[tuple[str, str]] = []
    records: list[Record] = []
    clock = PointClock(
        job,
        visit,
        records.append,
        lambda layer, stage: stages.append((layer, stage)),
        Rulers({}, lambda threads: Peaks()),
        QUICK,
    )
    clock.run()
    layer_of = {case: layer for layer, case in visit.cases.items()}
    return stages, {layer_of[record.case]: record for record in records}


def orders(plan: Any, launch: int, tmp_path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Layers as built, and as timed in the first round."""
    stages, records = visit_once(plan, launch, tmp_path)
    built = tuple(layer for layer, stage in stages if stage == "build")
    timed = tuple(layer for layer, stage in stages if stage == "time")
    assert [records[layer].order for layer in built] == [0, 1, 2, 3]
    assert timed[:4] == timed[4:8][::-1], "the second round mirrors the first"
    return built, timed[:4]


def test_build_and_start_order_are_drawn_per_launch(plan_of: Any, tmp_path: Path) -> None:
    plan = plan_of({name: {} for name in LAYERS}, launches=24)
    found = [orders(plan, launch, tmp_path) for launch in range(24)]
    # Were either fixed, its set would hold one item. 24 fair draws of a first layer out of four
    # miss one of them with a probability of 0.4 %; the seed is fixed, so this never flickers.
    assert {built[0] for built, _ in found} == set(LAYERS)
    assert {first[0] for _, first in found} == set(LAYERS)
    assert len({built for built, _ in found}) > 8
    assert len({first for _, first in found}) > 8
    assert any(built != first for built, first in found), "one order would serve for both"


def test_orders_repeat_with_the_seed(plan_of: Any, tmp_path: Path) -> None:
    plan = plan_of({name: {} for name in LAYERS}, launches=2)
    assert orders(plan, 1, tmp_path) == orders(plan, 1, tmp_path)


def test_each_case_is_announced_before_work_on_it_starts(plan_of: Any, tmp_path: Path) -> None:
    stages, records = visit_once(plan_of({"a": {}, "b": {}}), 0, tmp_path)
    for layer in ("a", "b"):
        own = [stage for name, stage in stages if name == layer]
        assert own[:3] == ["build", "warm-up", "check"]
        assert own[-2:] == ["check", "judge"]
        assert own[3:-2] == ["time"] * len(own[3:-2])
        assert len(own[3:-2]) >= 2
        assert records[layer].status is Status.OK


def test_a_subject_may_ask_for_more_time(
    plan_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: list[float] = []
    real = timed.time_together

    def spy(*arguments: Any, **options: Any) -> Any:
        budgets.append(options["budget"].seconds)
        return real(*arguments, **options)

    monkeypatch.setattr(timed, "time_together", spy)
    visit_once(plan_of({"a": {}, "b": {"seconds": 0.01}}), 0, tmp_path)
    visit_once(plan_of({"a": {}, "b": {}}), 0, tmp_path)
    assert budgets == [0.01, QUICK.seconds]


def test_a_layer_that_raises_while_timed_does_not_cost_the_others(plan_of: Any, tmp_path: Path) -> None:
    plan = plan_of({"a": {}, "bad": {"does": "raise", "at": "call"}, "c": {}})
    _, records = visit_once(plan, 0, tmp_path)
    assert {name: record.status for name, record in records.items()} == {
        "a": Status.OK,
        "bad": Status.ERROR,
        "c": Status.OK,
    }


def test_a_point_that_cannot_be_opened_fails_as_a_whole(
    plan_of: Any, run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of({"a": {}, "b": {}})
    monkeypatch.delenv("FAKE_LOG")
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "no" / "such" / "folder"))
    run = run_of(plan, tmp_path / "run")
    assert [record.status for record in run.records] == [Status.ERROR, Status.ERROR]
    assert all(record.reason.startswith("FileNotFoundError") for record in run.records)


def test_visits_survive_json(plan_of: Any) -> None:
    plan = plan_of({"a": {}})
    job = timed_job(plan, Setting("cpu", 1, "", {}), 0, {(plan.cases[0].id, 0)})
    assert type(job).model_validate_json(job.model_dump_json()) == job
    assert isinstance(job.visits[0], Visit)


def test_a_clock_that_runs_backwards_makes_a_result_invalid(
    plan_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = CpuTimer.block
    blocks = iter(range(10**6))

    def back(self: CpuTimer, call: Any, calls: int) -> int:
        duration = real(self, call, calls)
        return -duration if next(blocks) == 3 else duration

    monkeypatch.setattr(CpuTimer, "block", back)
    _, records = visit_once(plan_of({"a": {}, "b": {}}), 0, tmp_path)
    statuses = [record.status for record in records.values()]
    assert sorted(statuses) == [Status.INVALID, Status.OK], "one block of one layer"
    (bad,) = (record for record in records.values() if record.status is Status.INVALID)
    assert "by cpu-clock: the clock stood still or ran backwards" in bad.reason
    assert bad.samples_ns == []


def test_a_record_says_which_timer_served_and_why_it_stopped(plan_of: Any, tmp_path: Path) -> None:
    _, records = visit_once(plan_of({"a": {}, "b": {"does": "slow"}}), 0, tmp_path)
    assert {record.timer for record in records.values()} == {"cpu-clock"}
    # A call of 2 ms is longer than the whole budget of half a millisecond.
    assert {name: record.stop for name, record in records.items()} == {"a": "seconds", "b": "blocks"}


def test_the_baseline_is_concluded_first(plan_of: Any, tmp_path: Path) -> None:
    for launch in range(4):
        stages, _ = visit_once(plan_of({"z": {}, "a": {}, "b": {}}, launches=4), launch, tmp_path)
        judged = [layer for layer, stage in stages if stage == "judge"]
        assert judged[0] == "z"
        assert sorted(judged) == ["a", "b", "z"]


class FakeGpu:
    """Enough of a device for the choice of a timer; its calls take the time of the host."""

    def capture(self, call: Any, calls: int) -> Any:
        return lambda: [call() for _ in range(calls)]

    def flush(self) -> None:
        return

    def synchronize(self) -> None:
        return

    def event(self) -> Any:
        return HostEvent()


class HostEvent:
    def record(self) -> None:
        self.at = time.perf_counter_ns()

    def synchronize(self) -> None:
        return

    def since(self, earlier: Any) -> float:
        return float(self.at - earlier.at)


@pytest.mark.parametrize(
    ("subject", "timer"),
    [
        ({}, "cuda-events"),
        ({"flush": True}, "cuda-events-flush"),
        ({"replayable": True}, "cuda-graph"),
        ({"replayable": True, "does": "slow"}, "cuda-events"),
    ],
)
def test_a_gpu_is_timed_as_the_cache_and_the_size_of_a_call_ask_for(
    plan_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subject: dict[str, Any], timer: str
) -> None:
    import fake_kinds

    for name in ("flush", "replayable"):
        monkeypatch.setattr(fake_kinds.FakeSubject, name, bool(subject.pop(name, False)))
    monkeypatch.setattr("bitbench.execute.point.TorchGpu", FakeGpu)
    _, records = visit_once(plan_of({"a": subject}), 0, tmp_path, device="cuda")
    assert records["a"].timer == timer


def test_a_point_is_measured_with_its_own_threads(
    plan_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    shared_among: list[int] = []
    real = Series.utilisation

    def utilisation(self: Series, threads: int) -> float:
        shared_among.append(threads)
        return real(self, threads)

    monkeypatch.setattr(Series, "utilisation", utilisation)

    before = torch.get_num_threads()
    plan = plan_of({"a": {}, "b": {}}, threads=1)
    missing = {(case.id, 0) for case in plan.cases}
    job = timed_job(plan, Setting("cpu", 2, str(tmp_path), {}), 0, missing)
    (visit,) = job.visits
    seen: list[int] = []
    records: list[Record] = []
    rulers = Rulers({}, lambda threads: Peaks())
    try:
        PointClock(
            job, visit, records.append, lambda *_: seen.append(torch.get_num_threads()), rulers, QUICK
        ).run()
        assert torch.get_num_threads() == 2, "the run's, for the next point"
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
    assert [record.status for record in records] == [Status.OK] * 2
    # Their processor time is a share of one thread's time, not of the run's two.
    assert shared_among == [1, 1]


def test_more_threads_than_the_run_has_are_unsupported(plan_of: Any, run_of: Any, tmp_path: Path) -> None:
    run = run_of(plan_of({"a": {}, "b": {}}, exact=1, threads=7), tmp_path / "run")
    found = {(record.status, record.reason) for record in run.records}
    assert found == {
        (Status.OK, ""),
        (
            Status.UNSUPPORTED,
            "7 threads are more than the 1 of the run: give --threads 7 where there are as many cores",
        ),
    }


@pytest.fixture
def on_fake_gpu(monkeypatch: pytest.MonkeyPatch) -> type[Any]:
    """Layers are measured on :class:`FakeGpu`; the class of its subjects, to be changed."""
    import fake_kinds

    monkeypatch.setattr("bitbench.execute.point.TorchGpu", FakeGpu)
    monkeypatch.setattr(fake_kinds.FakeSubject, "replayable", True)
    subject: type[Any] = fake_kinds.FakeSubject
    return subject


def test_what_is_replayed_says_what_a_launched_call_takes(
    plan_of: Any, tmp_path: Path, on_fake_gpu: Any
) -> None:
    _, records = visit_once(plan_of({"a": {}, "b": {"does": "slow"}}), 0, tmp_path, device="cuda")
    assert 0 < records["a"].metrics["time.eager"] < 1e-4
    assert records["a"].calls % 20 == 0, "whole graphs"
    assert "time.eager" not in records["b"].metrics, "it is too long to be replayed"


def test_a_call_of_many_kernels_is_replayed_however_long_it_is(
    plan_of: Any, tmp_path: Path, on_fake_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_fake_gpu, "many_kernels", True)
    monkeypatch.setattr(on_fake_gpu, "block_calls", 3)
    monkeypatch.setattr(on_fake_gpu, "max_calls", 3)
    captured: list[int] = []
    real = FakeGpu.capture
    monkeypatch.setattr(FakeGpu, "capture", lambda *a: captured.append(a[2]) or real(*a))
    _, records = visit_once(plan_of({"a": {"does": "slow"}}), 0, tmp_path, device="cuda")
    assert (records["a"].timer, records["a"].calls) == ("cuda-graph", 3)
    assert captured == [3], "all its blocks are one graph"


def test_what_cannot_be_captured_is_launched_and_says_so(
    plan_of: Any, tmp_path: Path, on_fake_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def capture(self: Any, call: Any, calls: int) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(FakeGpu, "capture", capture)
    _, records = visit_once(plan_of({"a": {}}), 0, tmp_path, device="cuda")
    assert records["a"].status is Status.OK
    assert records["a"].timer == "cuda-events"
    assert records["a"].notes == [
        "launched call by call, for it cannot be captured: operation not permitted when stream is capturing"
    ]


def test_a_flushed_layer_is_called_a_few_times_a_block(
    plan_of: Any, tmp_path: Path, on_fake_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_fake_gpu, "replayable", False)
    monkeypatch.setattr(on_fake_gpu, "flush", True)
    _, records = visit_once(plan_of({"a": {}}), 0, tmp_path, device="cuda")
    assert 1 <= records["a"].calls <= 32


@pytest.mark.parametrize(
    ("launch", "flush", "loaded"), [(0, False, True), (1, False, False), (0, True, False)]
)
def test_layers_are_kept_at_work_alone_in_the_first_launch(
    plan_of: Any,
    tmp_path: Path,
    on_fake_gpu: Any,
    monkeypatch: pytest.MonkeyPatch,
    launch: int,
    flush: bool,
    loaded: bool,
) -> None:
    from bitbench.execute.point import TimedPoint

    monkeypatch.setattr(on_fake_gpu, "flush", flush)
    real = TimedPoint.loads
    monkeypatch.setattr(TimedPoint, "loads", lambda point: min(0.01, real(point)))
    plan = plan_of({"a": {}, "b": {"does": "slow"}}, launches=2, load=2.5)
    stages, records = visit_once(plan, launch, tmp_path, device="cuda")
    under_load = [layer for layer, stage in stages if stage == "load"]
    assert sorted(under_load) == (["a", "b"] if loaded else [])
    names = [stage for _, stage in stages]
    if loaded:
        assert names.index("load") > max(i for i, stage in enumerate(names) if stage == "time")
        assert names.index("load") < names.index("judge")
        assert records["a"].metrics["gpu.calls_per_s"] > records["b"].metrics["gpu.calls_per_s"] > 50
    else:
        assert not any("gpu.calls_per_s" in record.metrics for record in records.values())
    assert {record.status for record in records.values()} == {Status.OK}


def test_a_processor_is_not_kept_at_work(plan_of: Any, tmp_path: Path) -> None:
    stages, _ = visit_once(plan_of({"a": {}}, load=2.5), 0, tmp_path)
    assert "load" not in {stage for _, stage in stages}


def test_a_worker_that_has_lost_its_gpu_ends_in_the_case_that_lost_it(
    plan_of: Any, tmp_path: Path, on_fake_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every later call of the process would fail, and be blamed for it."""

    class Ended(BaseException):
        pass

    def end(code: int) -> None:
        raise Ended(code)

    def lost(self: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("os._exit", end)
    monkeypatch.setattr(FakeGpu, "synchronize", lost)
    from bitbench.execute.outcome import DEVICE_LOST, of_death

    with pytest.raises(Ended) as ended:
        visit_once(plan_of({"a": {}, "b": {}}), 0, tmp_path, device="cuda")
    assert ended.value.args == (DEVICE_LOST,)
    status, reason = of_death(DEVICE_LOST, False, "logs/launch-0.log")
    assert status is Status.CRASH
    assert "an error on the GPU" in reason


def test_an_error_that_leaves_the_gpu_usable_costs_its_layer_alone(
    plan_of: Any, tmp_path: Path, on_fake_gpu: Any
) -> None:
    plan = plan_of({"a": {}, "bad": {"does": "memory", "at": "build"}})
    _, records = visit_once(plan, 0, tmp_path, device="cuda")
    assert {name: record.status for name, record in records.items()} == {"a": Status.OK, "bad": Status.OOM}
