import random
from types import SimpleNamespace

import pytest

from bitbench.pytest_plugin import timing
from bitbench.pytest_plugin.pair import Pair


class StepClock:
    """A timer under which a call takes as many nanoseconds as it says."""

    name = "steps"

    def block(self, call, calls):
        return sum(call() for _ in range(calls))


@pytest.fixture(autouse=True)
def steps(monkeypatch):
    monkeypatch.setattr(timing, "CpuTimer", StepClock)


def time_pair(pair, **options):
    return timing.time_pair(pair, **{"launch": 2, "rng": random.Random(0), "seconds": 0.01, **options})


def test_times_of_both_sides():
    result, found = time_pair(Pair(lambda: 200_000, baseline=lambda: 500_000), beside=["other (97 % cpu)"])
    (launched,) = found.launches
    assert result == 200_000
    assert launched.seconds == pytest.approx(2e-4)
    assert launched.baseline_seconds == pytest.approx(5e-4)
    assert launched.ratio == pytest.approx(2.5)
    assert (launched.launch, launched.beside, launched.notes) == (2, ["other (97 % cpu)"], [])
    assert launched.calls * 200_000 >= 1_000_000  # a block is long enough for the clock
    assert found.timer == "steps"


def test_without_a_baseline():
    _, found = time_pair(Pair(lambda: 200_000))
    assert found.launches[0].baseline_seconds is None
    assert found.launches[0].first == "target"
    assert found.speedup is None


def test_longer_for_more_seconds():
    def calls(seconds):
        made = []
        time_pair(Pair(lambda: made.append(1) or 1_000_000), seconds=seconds)
        return len(made)

    assert calls(0.05) > calls(0.01)


def test_build_order_comes_from_the_seed():
    def first(seed):
        pair = Pair(lambda: 200_000, baseline=lambda: 200_000)
        return time_pair(pair, rng=random.Random(seed))[1].launches[0].first

    assert [first(seed) for seed in range(8)] == [first(seed) for seed in range(8)]
    assert {first(seed) for seed in range(8)} == {"target", "baseline"}


def test_a_result_that_turns_wrong_while_timed():
    calls = iter(range(10**6))
    pair = Pair(lambda: 200_000 + next(calls), check=lambda result: result < 200_010)
    with pytest.raises(AssertionError, match="refused its result"):
        time_pair(pair)


def test_tracers_rest_while_the_clock_runs(monkeypatch):
    seen = []

    class Tracer:
        def __call__(self, *event):
            return self

    tracer = Tracer()

    class Clock(StepClock):
        def block(self, call, calls):
            seen.append((timing.sys.gettrace(), timing.sys.getprofile()))
            return super().block(call, calls)

    monkeypatch.setattr(timing, "CpuTimer", Clock)
    before = timing.sys.gettrace()
    timing.sys.settrace(tracer)
    try:
        time_pair(Pair(lambda: 200_000))
        assert timing.sys.gettrace() is tracer
    finally:
        timing.sys.settrace(before)
    assert set(seen) == {(None, None)}


@pytest.mark.parametrize(
    ("result", "device"),
    [
        (3, "cpu"),
        (None, "cpu"),
        (SimpleNamespace(device=SimpleNamespace(type="cuda")), "cuda"),
        (SimpleNamespace(device=SimpleNamespace(type="cpu")), "cpu"),
        (SimpleNamespace(device="cuda:1"), "cuda"),
        (SimpleNamespace(device="CUDA:0"), "cuda"),
        (SimpleNamespace(device="cpu"), "cpu"),
        ((3, SimpleNamespace(device="cuda:0")), "cuda"),
        ({"codes": SimpleNamespace(device="cuda:0")}, "cuda"),
        (SimpleNamespace(codes=SimpleNamespace(device="cuda:0")), "cuda"),
        ([1, 2], "cpu"),
    ],
)
def test_device_of_a_result(result, device):
    assert timing.device_of(result) == device


def test_results_on_a_gpu_are_timed_by_its_events(monkeypatch):
    class Events(StepClock):
        name = "events"

        def __init__(self, gpu):
            self.gpu = gpu

    monkeypatch.setattr(timing, "EventTimer", Events)
    monkeypatch.setattr(timing, "TorchGpu", object)

    class OnGpu(int):
        device = "cuda:0"

    _, found = time_pair(Pair(lambda: OnGpu(200_000)))
    assert found.timer == "events"
    assert found.machine["device"] == "cuda"


class TestMachine:
    def test_threads_and_version_of_torch(self, monkeypatch):
        fake = SimpleNamespace(__version__="9.9", get_num_threads=lambda: 7)
        monkeypatch.setitem(timing.sys.modules, "torch", fake)
        machine = timing.machine("cpu")
        assert (machine["torch"], machine["threads"], machine["device"]) == ("9.9", 7, "cpu")

    def test_without_torch(self, monkeypatch):
        monkeypatch.setitem(timing.sys.modules, "torch", None)
        monkeypatch.setitem(timing.sys.modules, "impl", None)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        machine = timing.machine("cpu")
        assert (machine["torch"], machine["threads"], machine["isa"]) == ("", 3, "")

    def test_a_module_of_the_same_name_as_impl(self, monkeypatch):
        monkeypatch.setitem(timing.sys.modules, "impl", SimpleNamespace())
        assert timing.machine("cpu")["isa"] == ""

    def test_instruction_set(self, monkeypatch):
        fake = SimpleNamespace(capabilities=lambda: SimpleNamespace(isa="avx2"))
        monkeypatch.setitem(timing.sys.modules, "impl", fake)
        assert timing.machine("cpu")["isa"] == "avx2"
