"""State of the machine beside the measurement, about once a second. Torch-free.

A thread of the runner, not of the worker: reading ``/proc`` costs the measured process nothing
but a fraction of a millisecond of some core.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import psutil

from bitbench.measure.host import load_1m, memory_available, memory_limit
from bitbench.store.schema import TelemetrySample

PERIOD_SECONDS = 1.0
MEMORY_SHORT = 0.03
"""Share of the memory below which a killed worker is taken to have run out of it."""


@dataclass(frozen=True)
class GpuState:
    percent: float | None = None
    memory_used: int | None = None
    power_w: float | None = None
    sm_mhz: float | None = None


class Gpu(Protocol):
    def read(self) -> GpuState: ...

    def close(self) -> None: ...


class NoGpu:
    """Stands where no NVIDIA driver answers."""

    def read(self) -> GpuState:
        return GpuState()

    def close(self) -> None:
        return


class Nvml:
    """The first NVIDIA GPU, by NVML. Every figure may be missing on its own."""

    def __init__(self) -> None:
        import pynvml

        self._nvml: Any = pynvml
        pynvml.nvmlInit()
        try:
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        except pynvml.NVMLError:
            pynvml.nvmlShutdown()
            raise

    def read(self) -> GpuState:
        nvml, handle = self._nvml, self._handle
        utilisation = self._try(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        memory = self._try(lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used)
        power = self._try(lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000)
        clock = self._try(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
        return GpuState(utilisation, None if memory is None else int(memory), power, clock)

    def _try(self, call: Callable[[], float]) -> float | None:
        try:
            return float(call())
        except self._nvml.NVMLError:
            return None

    def close(self) -> None:
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()


def find_gpu() -> Gpu:
    """The first GPU if NVML and a driver are there."""
    try:
        return Nvml()
    except Exception:  # NVMLError lives in a module that may itself be missing
        return NoGpu()


class Telemetry:
    """Samples the machine until stopped. ``watch`` says which process is being measured."""

    def __init__(
        self,
        write: Callable[[TelemetrySample], None],
        *,
        gpu: Gpu | None = None,
        period: float = PERIOD_SECONDS,
    ) -> None:
        self._write = write
        self._gpu = gpu if gpu is not None else find_gpu()
        self._period = period
        self._start = time.monotonic()
        self._stop = threading.Event()
        self._launch = ""
        self._process: psutil.Process | None = None
        self._lowest = 1.0
        self.error: Exception | None = None
        """What ended the sampling early, such as a full disk."""
        self._thread = threading.Thread(target=self._loop, name="bitbench-telemetry", daemon=True)

    def start(self) -> Telemetry:
        psutil.cpu_percent(None)  # the first call only sets the mark
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._gpu.close()

    def watch(self, launch: str, pid: int | None) -> None:
        """From now on, ``launch`` is being measured in process ``pid``."""
        process = None
        if pid is not None:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
        self._launch, self._process, self._lowest = launch, process, 1.0

    def memory_was_short(self) -> bool:
        """Whether available memory fell to next to nothing since the last :meth:`watch`."""
        return self._lowest < MEMORY_SHORT

    def sample(self) -> TelemetrySample:
        """One reading."""
        memory = psutil.virtual_memory()
        self._lowest = min(self._lowest, memory_available() / max(1, memory_limit()))
        gpu = self._gpu.read()
        return TelemetrySample(
            t=round(time.monotonic() - self._start, 3),
            launch=self._launch,
            cpu_percent=psutil.cpu_percent(None),
            cpu_mhz=_cpu_mhz(),
            load_1m=load_1m(),
            memory_used=int(memory.used),
            worker_rss=self._rss(),
            gpu_percent=gpu.percent,
            gpu_memory_used=gpu.memory_used,
            gpu_power_w=gpu.power_w,
            gpu_sm_mhz=gpu.sm_mhz,
        )

    def _rss(self) -> int | None:
        if self._process is None:
            return None
        try:
            return int(self._process.memory_info().rss)
        except psutil.Error:
            return None

    def _loop(self) -> None:
        while not self._stop.wait(self._period):
            try:
                self._write(self.sample())
            except Exception as error:
                self.error = error
                return


def _cpu_mhz() -> float | None:
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError):
        return None
    return float(frequency.current) if frequency else None
