"""The part of :mod:`bitbench.measure.fitness` that is about the GPU. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Mapping

from bitbench.measure.findings import Finding, degraded, fit, unfit
from bitbench.measure.foreign import gpu_holders, look
from bitbench.measure.nvml import CHOSEN, Gpu, GpuFacts, GpuState, find_gpu

GIB = 1024**3
BUSY_PERCENT = 5.0
"""Use of an idle GPU: a desktop stays below."""


def gpu(device: Gpu | None = None, environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """All findings about the first visible GPU."""
    found = find_gpu() if device is None else device
    try:
        facts = found.facts()
        if facts is None:
            return [fit("gpu", "none that NVML sees: suites measure the CPU, GPU figures are n/a")]
        state = found.read()
        holders = gpu_holders(state.pids, look(), hidden=True)
    finally:
        if device is None:
            found.close()
    return [
        _identity(facts),
        *_which(facts, environment),
        *_use(state, holders),
        *_settings(facts),
        *_health(facts, state),
    ]


def _identity(facts: GpuFacts) -> Finding:
    memory = f", {facts.memory_total / GIB:.0f} GiB" if facts.memory_total else ""
    return fit("gpu", f"{facts.name}{memory}, driver {facts.driver or 'unknown'}")


def _which(facts: GpuFacts, environment: Mapping[str, str]) -> list[Finding]:
    if facts.count < 2 or environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return []
    if not environment.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip().isdigit():
        return []  # chosen by UUID
    return [
        fit(
            "gpu order",
            f"{facts.count} GPUs, told apart by number",
            "where they differ, CUDA numbers by speed, the driver by slot: telemetry may be another's",
            "export CUDA_DEVICE_ORDER=PCI_BUS_ID",
        )
    ]


def _use(state: GpuState, holders: list[str]) -> list[Finding]:
    if state == GpuState():  # nothing at all can be read: one figure alone may be kept from this user
        return [
            unfit(
                "gpu use",
                "the GPU does not answer",
                "nothing can be measured on it",
                "sudo nvidia-smi --gpu-reset, or restart the machine",
            )
        ]
    used = "memory n/a" if state.memory_used is None else f"{state.memory_used / GIB:.1f} GiB in use"
    busy = state.percent is not None and state.percent > BUSY_PERCENT
    if not busy and not holders:
        share = "use n/a" if state.percent is None else "idle"
        return [fit("gpu use", f"{share}, {used}")]
    names = f": {', '.join(name.removeprefix('gpu: ') for name in holders)}" if holders else ""
    share = "" if state.percent is None else f"{state.percent:.0f} % busy, "
    return [
        degraded(
            "gpu use",
            f"{share}{used}{names}",
            "other work takes turns with what is measured, and its memory is missing",
            "end it (nvidia-smi lists it), or choose another GPU: export CUDA_VISIBLE_DEVICES=1",
        )
    ]


def _settings(facts: GpuFacts) -> list[Finding]:
    found = []
    smi = f"sudo nvidia-smi -i {facts.index}"
    if facts.persistence is False:
        found.append(
            degraded(
                "gpu daemon",
                "persistence mode is off",
                "the driver unloads between processes: each launch starts with its set-up and a low clock",
                f"{smi} -pm 1",
            )
        )
    if facts.mig:
        found.append(
            degraded(
                "gpu mig",
                "divided (MIG)",
                "a slice is measured, utilisation is n/a, and other slices share power and clock",
                f"{smi} -mig 0",
            )
        )
    limit, usual = facts.power_limit_w, facts.default_power_limit_w
    if limit is not None and usual is not None and limit < usual:
        found.append(
            degraded(
                "gpu power",
                f"limited to {limit:.0f} W of {usual:.0f} W",
                "the clock falls under load before the chip is at its limit",
                f"{smi} -pl {usual:.0f}",
            )
        )
    if facts.exclusive:
        found.append(
            degraded(
                "gpu mode",
                "one process at a time (exclusive)",
                "a comparison holds a process of each side on the GPU: the second is refused",
                f"{smi} -c 0",
            )
        )
    if facts.ecc is False:
        found.append(
            fit("gpu ecc", "off", "memory is larger and a little faster than on a machine with ECC: name it")
        )
    return found


def _health(facts: GpuFacts, state: GpuState) -> list[Finding]:
    found = []
    if facts.uncorrected_errors:
        found.append(
            unfit(
                "gpu memory",
                f"{facts.uncorrected_errors} uncorrected memory errors",
                "results can be wrong",
                "restart the machine; where they come back, replace the GPU (nvidia-smi -q -d ECC)",
            )
        )
    held = [word for word in state.throttle if word not in CHOSEN]
    if held:
        warmth = "" if state.temperature_c is None else f" at {state.temperature_c:.0f} degrees"
        found.append(
            degraded(
                "gpu clock",
                f"held down: {', '.join(held)}{warmth}",
                "times follow temperature and power rather than the kernel",
                "see to its cooling and power (nvidia-smi -q -d PERFORMANCE)",
            )
        )
    elif any(word in CHOSEN for word in state.throttle):
        found.append(fit("gpu clock", f"set by hand{_mhz(state.sm_mhz)}: steady, below the chip's best"))
    elif facts.max_sm_mhz is not None:
        found.append(
            fit(
                "gpu clock",
                f"free, up to {facts.max_sm_mhz:.0f} MHz",
                "it moves with temperature and load; side by side that cancels, between runs it does not",
                f"sudo nvidia-smi -i {facts.index} -lgc {0.8 * facts.max_sm_mhz:.0f} holds it, -rgc frees it",
            )
        )
    return found


def _mhz(clock: float | None) -> str:
    return "" if clock is None else f", {clock:.0f} MHz now"


def present() -> bool:
    """Whether NVML sees a GPU that may be used."""
    device = find_gpu()
    try:
        return device.facts() is not None
    finally:
        device.close()
