"""The GPU beside the measurement, behind a small port: :class:`Gpu`. Torch-free.

Figures come from NVML (nvidia-ml-py). What they are, by its reference:

* utilisation: share of the last sample period (1/6 to 1 s, by product) in which at least one
  kernel ran, or device memory was read or written. It says nothing of how full the GPU was.
* power: milliwatts, averaged over a second on recent products.
* energy: a counter in millijoules since the driver was loaded (Volta and later).
* clocks in MHz, temperature in degrees Celsius, memory in bytes.

Every figure may be missing on its own: a device under MIG has no utilisation, an old one no energy
counter, a container may not see processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

HELD_DOWN: dict[int, str] = {
    0x02: "application clocks",
    0x04: "power",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal",
    0x40: "thermal (hardware)",
    0x80: "power brake",
    0x100: "display clocks",
}
"""Bits of ``nvmlDeviceGetCurrentClocksEventReasons``. Bit 0x01 (idle) holds nothing down."""

CHOSEN = frozenset({"application clocks", "display clocks"})
"""Held down because somebody set it so: steady, which is what a measurement wants."""


@dataclass(frozen=True)
class GpuState:
    """The device at one moment. None: cannot be read here."""

    percent: float | None = None
    """Share of the last sample period in which a kernel ran."""
    memory_percent: float | None = None
    """Share of the last sample period in which device memory was read or written."""
    memory_used: int | None = None
    power_w: float | None = None
    energy_j: float | None = None
    """Since the driver was loaded."""
    sm_mhz: float | None = None
    memory_mhz: float | None = None
    temperature_c: float | None = None
    throttle: tuple[str, ...] = ()
    """Values of :data:`HELD_DOWN`; none means free or unknown."""
    pids: tuple[int, ...] = ()
    """Processes with a compute context, by the ids the driver gives."""


@dataclass(frozen=True)
class GpuFacts:
    """What stays the same while nobody changes it. None: cannot be read here."""

    index: int
    name: str
    count: int
    """GPUs in the machine."""
    driver: str | None = None
    memory_total: int | None = None
    persistence: bool | None = None
    mig: bool | None = None
    ecc: bool | None = None
    uncorrected_errors: int | None = None
    """ECC errors that could not be corrected, since the driver was loaded."""
    exclusive: bool | None = None
    """Compute mode lets one process at a time use the device."""
    power_limit_w: float | None = None
    default_power_limit_w: float | None = None
    max_sm_mhz: float | None = None


class Gpu(Protocol):
    """One GPU, or none."""

    def read(self) -> GpuState: ...

    def facts(self) -> GpuFacts | None:
        """None where there is no GPU."""
        ...

    def close(self) -> None: ...


class NoGpu:
    """Stands where no NVIDIA driver answers."""

    def read(self) -> GpuState:
        return GpuState()

    def facts(self) -> GpuFacts | None:
        return None

    def close(self) -> None:
        return


class Nvml:
    """One GPU by NVML. ``library`` stands in for the module ``pynvml``.

    ``visible`` is the first entry of ``CUDA_VISIBLE_DEVICES``: an index or a UUID. Raises the
    library's ``NVMLError`` where there is no driver or no such device.
    """

    def __init__(self, library: Any = None, visible: str = "0") -> None:
        if library is None:
            import pynvml

            library = pynvml
        self._nvml: Any = library
        self._nvml.nvmlInit()
        try:
            self._handle = self._find(visible)
        except self._nvml.NVMLError:
            self._nvml.nvmlShutdown()
            raise

    def _find(self, visible: str) -> Any:
        nvml = self._nvml
        if visible.isdigit():
            return nvml.nvmlDeviceGetHandleByIndex(int(visible))
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            if str(nvml.nvmlDeviceGetUUID(handle)).startswith(visible):  # CUDA takes a prefix, NVML does not
                return handle
        return nvml.nvmlDeviceGetHandleByUUID(visible)  # a MIG instance, or an error of its own

    def read(self) -> GpuState:
        nvml, handle = self._nvml, self._handle
        used = self._ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        memory = self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        processes = self._ask(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle)) or []
        return GpuState(
            percent=None if used is None else float(used.gpu),
            memory_percent=None if used is None else float(used.memory),
            memory_used=None if memory is None else int(memory.used),
            power_w=self._thousandth(lambda: nvml.nvmlDeviceGetPowerUsage(handle)),
            energy_j=self._thousandth(lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle)),
            sm_mhz=self._number(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            memory_mhz=self._number(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
            temperature_c=self._number(self._temperature),
            throttle=self._throttle(),
            pids=tuple(int(process.pid) for process in processes),
        )

    def facts(self) -> GpuFacts:
        nvml, handle = self._nvml, self._handle
        mode = self._ask(lambda: nvml.nvmlDeviceGetComputeMode(handle))
        memory = self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        errors = self._ask(
            lambda: nvml.nvmlDeviceGetTotalEccErrors(
                handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
            )
        )
        return GpuFacts(
            index=self._ask(lambda: int(nvml.nvmlDeviceGetIndex(handle))) or 0,
            name=self._ask(lambda: str(nvml.nvmlDeviceGetName(handle))) or "unnamed GPU",
            count=self._ask(lambda: int(nvml.nvmlDeviceGetCount())) or 1,
            driver=self._ask(lambda: str(nvml.nvmlSystemGetDriverVersion())),
            memory_total=None if memory is None else int(memory.total),
            persistence=self._ask(lambda: bool(nvml.nvmlDeviceGetPersistenceMode(handle))),
            mig=self._ask(lambda: bool(nvml.nvmlDeviceGetMigMode(handle)[0])),
            ecc=self._ask(lambda: bool(nvml.nvmlDeviceGetEccMode(handle)[0])),
            uncorrected_errors=None if errors is None else int(errors),
            exclusive=None if mode is None else mode == nvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS,
            power_limit_w=self._thousandth(lambda: nvml.nvmlDeviceGetPowerManagementLimit(handle)),
            default_power_limit_w=self._thousandth(
                lambda: nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle)
            ),
            max_sm_mhz=self._number(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
        )

    def close(self) -> None:
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def _temperature(self) -> float:
        """By the function of recent drivers, else by the one that CUDA 14 will drop."""
        nvml, handle = self._nvml, self._handle
        if hasattr(nvml, "nvmlDeviceGetTemperatureV"):
            with contextlib.suppress(nvml.NVMLError):
                return float(nvml.nvmlDeviceGetTemperatureV(handle, nvml.NVML_TEMPERATURE_GPU))
        return float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))

    def _throttle(self) -> tuple[str, ...]:
        """As :meth:`_temperature`: the newer name first."""
        nvml, handle = self._nvml, self._handle
        bits: int | None = None
        if hasattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons"):
            bits = self._ask(lambda: int(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)))
        if bits is None:
            bits = self._ask(lambda: int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)))
        return tuple(word for bit, word in HELD_DOWN.items() if (bits or 0) & bit)

    def _ask(self, question: Callable[[], T]) -> T | None:
        try:
            return question()
        except self._nvml.NVMLError:
            return None

    def _number(self, question: Callable[[], Any]) -> float | None:
        found = self._ask(question)
        return None if found is None else float(found)

    def _thousandth(self, question: Callable[[], Any]) -> float | None:
        found = self._number(question)
        return None if found is None else found / 1000


def find_gpu(environment: Mapping[str, str] = os.environ) -> Gpu:
    """The GPU that torch calls ``cuda:0`` if NVML and a driver are there.

    ``CUDA_VISIBLE_DEVICES`` decides, as for torch; an empty list or -1 hides them all. By index the
    two agree where ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` or the GPUs are alike.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    if visible in ("", "-1"):
        return NoGpu()
    try:
        return Nvml(visible=visible)
    except Exception:  # NVMLError lives in a module that may itself be missing
        return NoGpu()
