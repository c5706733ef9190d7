"""The GPU's part of the self-test on a device of our own making, with a host beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bitbench.measure.selftest import Check, Outcome
from bitbench.measure.selftest_gpu import gpu_checks, timers_against_host

LAUNCH_NS, FLUSH_NS, CYCLE_NS = 5_000, 30_000, 0.6


class Moment:
    def __init__(self, device: Device) -> None:
        self._device, self.at = device, 0.0

    def record(self) -> None:
        self.at = max(self._device.free, self._device.now)

    def synchronize(self) -> None:
        self._device.synchronize()

    def since(self, earlier: Any) -> float:
        return self._device.scale * (self.at - earlier.at)


class Device:
    """Work queues up on it; the host goes on until it synchronises."""

    def __init__(self, scale: float = 1.0) -> None:
        self.now = self.free = 0.0
        self.scale = scale
        """What its events make of the truth."""
        self._captured: list[int] | None = None

    def _queue(self, ns: float) -> None:
        self.now += LAUNCH_NS
        self.free = max(self.free, self.now) + ns

    def wait(self, cycles: int) -> None:
        if self._captured is not None:
            self._captured.append(cycles)
        else:
            self._queue(cycles * CYCLE_NS)

    def synchronize(self) -> None:
        self.now = max(self.now, self.free)

    def event(self) -> Moment:
        return Moment(self)

    def flush(self) -> None:
        self._queue(FLUSH_NS)

    def capture(self, call: Callable[[], Any], calls: int) -> Callable[[], None]:
        self._captured = []
        for _ in range(calls):
            call()
        total, self._captured = sum(self._captured), None
        return lambda: self._queue(total * CYCLE_NS)


def examined(device: Device) -> dict[str, Check]:
    found = timers_against_host(device.wait, device.synchronize, device, lambda: round(device.now))
    return {check.what: check for check in found}


def test_timers_that_agree() -> None:
    found = examined(Device())
    assert len(found) == 6
    assert {check.outcome for check in found.values()} == {Outcome.PASS}


def test_events_that_run_fast_are_found_out() -> None:
    found = examined(Device(scale=1.2))
    wrong = {name for name, check in found.items() if check.outcome is Outcome.FAIL}
    assert wrong == {
        f"{timer} against the host" for timer in ("cuda-events", "cuda-events-flush", "cuda-graph")
    }


def test_a_host_that_does_not_wait_for_the_device_is_found_out() -> None:
    class Hasty(Device):
        """Its synchronise returns half way."""

        def synchronize(self) -> None:
            self.now = max(self.now, self.now + (self.free - self.now) / 2)

    found = examined(Hasty())
    assert found["cuda-events against the host"].outcome is Outcome.FAIL


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (check,) = gpu_checks()
    assert check.outcome is Outcome.SKIPPED
