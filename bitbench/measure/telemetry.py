"""State of the machine beside the measurement. Torch-free.

A thread of the runner, not of the worker: reading ``/proc`` costs the measured process nothing
but a fraction of a millisecond of some core. A sample a second is written; the GPU, where there is
one, is read several times as often and kept in memory, for figures over the windows of single
points (:meth:`Telemetry.over`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from bitbench.measure.foreign import Foreign, gpu_holders
from bitbench.measure.host import cpu_stalled_s, load_1m, memory_available, memory_limit
from bitbench.measure.nvml import Gpu, find_gpu
from bitbench.measure.windows import Moment, figures, remarks
from bitbench.store.schema import TelemetrySample

PERIOD_SECONDS = 1.0
GPU_READS = 5
"""GPU readings for each sample written."""
FOREIGN_SAMPLES = 5
"""Samples between two looks at all processes: on a machine with thousands, one takes tens of ms."""
KEPT = 3600 * GPU_READS
"""Moments kept in memory: an hour, far longer than any window asked for."""
MEMORY_SHORT = 0.03
"""Share of the memory below which a killed worker is taken to have run out of it."""


@dataclass
class _Watch:
    """What is being measured. A sample that is under way when the next process comes keeps the
    old one, so that nothing seen of one process is booked to another."""

    launch: str = ""
    process: psutil.Process | None = None
    lowest: float = 1.0
    """Smallest share of the memory that was available."""


class Telemetry:
    """Samples the machine until stopped. ``watch`` says which process is being measured."""

    def __init__(
        self,
        write: Callable[[TelemetrySample], None],
        *,
        gpu: Gpu | None = None,
        foreign: Foreign | None = None,
        period: float = PERIOD_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._write = write
        self._gpu = gpu if gpu is not None else find_gpu()
        self._has_gpu = self._gpu.facts() is not None
        self._foreign = foreign
        self._period = period
        self._clock = clock
        self._start = clock()
        self._stop = threading.Event()
        self._watch = _Watch()
        self._lock = threading.Lock()
        self._moments: deque[Moment] = deque(maxlen=KEPT)
        self._steal = _StealMeter()
        self._busy: list[str] = []
        self._samples = 0
        self.error: Exception | None = None
        """What ended the sampling early, such as a full disk."""
        self._thread = threading.Thread(target=self._loop, name="bitbench-telemetry", daemon=True)

    def start(self) -> Telemetry:
        psutil.cpu_percent(None)  # the first call only sets the mark
        if self._foreign is None:
            self._foreign = Foreign()
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._gpu.close()

    def watch(self, launch: str, pid: int | None) -> None:
        """From now on, ``launch`` is being measured in process ``pid``."""
        process = None
        if pid is not None:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
        self._watch = _Watch(launch, process)

    def memory_was_short(self) -> bool:
        """Whether available memory fell to next to nothing since the last :meth:`watch`."""
        return self._watch.lowest < MEMORY_SHORT

    def over(self, started: float, ended: float, *, calls: int = 0) -> dict[str, float]:
        """Figures of the GPU between two instants of ``time.monotonic()``, by metric name.

        ``gpu.utilisation`` and ``gpu.memory_utilisation`` (0 to 1), ``gpu.power_w``,
        ``gpu.sm_mhz``, and with ``calls`` ``gpu.energy_j`` a call. What cannot be said is absent:
        everything without a GPU, means over a window that ends before NVML's own averaging has
        left the time before it behind, energy over less than 2 s. ``calls`` is for a window filled
        with calls of one layer and nothing else; the device's idle power is part of the energy.
        """
        return figures(self._within(started, ended), started, ended, calls=calls)

    def notes(self, started: float, ended: float) -> list[str]:
        """What disturbed the machine between two instants of ``time.monotonic()``: ``throttled:
        power (3 of 4 readings)``, ``other processes: cc1plus (98 % cpu)``. For ``Record.notes``.

        What was seen one period before ``started`` counts too: a window can be shorter than that.
        """
        return remarks(self._within(started - self._period, ended))

    def sample(self) -> TelemetrySample:
        """One reading, remembered for :meth:`over`."""
        watch = self._watch
        memory = psutil.virtual_memory()
        watch.lowest = min(watch.lowest, memory_available() / max(1, memory_limit()))
        gpu = self._gpu.read()
        if self._samples % FOREIGN_SAMPLES == 0 and self._foreign is not None:
            self._busy = self._foreign.busy() + gpu_holders(gpu.pids, self._foreign.processes)
        self._samples += 1
        moment = Moment(self._clock(), gpu, tuple(self._busy), self._steal.percent(), cpu_stalled_s())
        self._remember(moment)
        return TelemetrySample(
            t=round(moment.at - self._start, 3),
            launch=watch.launch,
            cpu_percent=psutil.cpu_percent(None),
            cpu_mhz=_cpu_mhz(),
            load_1m=load_1m(),
            cpu_steal_percent=moment.steal_percent,
            cpu_stalled_s=moment.stalled_s,
            memory_used=int(memory.used),
            worker_rss=_rss(watch.process),
            gpu_percent=gpu.percent,
            gpu_memory_percent=gpu.memory_percent,
            gpu_memory_used=gpu.memory_used,
            gpu_power_w=gpu.power_w,
            gpu_energy_j=gpu.energy_j,
            gpu_sm_mhz=gpu.sm_mhz,
            gpu_memory_mhz=gpu.memory_mhz,
            gpu_temperature_c=gpu.temperature_c,
            gpu_throttle=list(gpu.throttle),
            foreign=list(moment.foreign),
        )

    def _glance(self) -> None:
        """Only the GPU, only remembered."""
        self._remember(Moment(self._clock(), self._gpu.read()))

    def _remember(self, moment: Moment) -> None:
        with self._lock:
            self._moments.append(moment)

    def _within(self, started: float, ended: float) -> list[Moment]:
        with self._lock:
            return [moment for moment in self._moments if started <= moment.at <= ended]

    def _loop(self) -> None:
        reads = GPU_READS if self._has_gpu else 1
        turn = 0
        while not self._stop.wait(self._period / reads):
            turn += 1
            try:
                if turn % reads:
                    self._glance()
                else:
                    self._write(self.sample())
            except Exception as error:
                self.error = error
                return


class _StealMeter:
    """Share of processor time that the hypervisor gave to others, between one call and the next."""

    def __init__(self) -> None:
        self._before = psutil.cpu_times()

    def percent(self) -> float | None:
        """None off Linux, or when no tick has passed."""
        before, self._before = self._before, psutil.cpu_times()
        if not hasattr(self._before, "steal"):
            return None
        elapsed = _all_ticks(self._before) - _all_ticks(before)
        return 100 * max(0.0, self._before.steal - before.steal) / elapsed if elapsed > 0 else None


def _all_ticks(times: Any) -> float:
    """Seconds of all states. Guests are counted within user time already."""
    guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return float(sum(times) - guests)


def _rss(process: psutil.Process | None) -> int | None:
    if process is None:
        return None
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return None


def _cpu_mhz() -> float | None:
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError):
        return None
    return float(frequency.current) if frequency else None
