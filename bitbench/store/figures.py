"""Figures by name, whatever measured them: what a baseline is made of and is held against."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FigureKind = Literal["exact", "accuracy", "time"]


class Figure(BaseModel):
    """One figure of one case."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    kind: FigureKind
    """``exact``: bytes, judged by equality. ``accuracy``: within ``tolerance``. ``time``: a ratio to
    ``nn.Linear`` measured beside it, judged by its interval, and only on a like machine."""
    value: float
    tolerance: float = 0.0
    """Accuracy: relative difference that counts as none."""
    log_mean: float | None = None
    log_sd: float | None = None
    """Time: mean and standard deviation over launches of the ratio's logarithm."""
    launches: int = 0


class FigureSet(BaseModel):
    """All figures of one measurement, by case label and metric name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    """What they are of: ``suites/gate.yaml``, ``tests/benchmarks``."""
    machine: dict[str, Any] = Field(default_factory=dict)
    """What times depend on: processor, device, threads, torch, instruction set."""
    figures: dict[str, dict[str, Figure]] = Field(default_factory=dict)


def machine_of(environment: dict[str, Any], threads: int, native: dict[str, Any]) -> dict[str, Any]:
    """What times depend on besides the code, from a run's description of itself.

    ``environment`` and ``native`` are those of :class:`~bitbench.store.schema.RunInfo` (``native``
    from its code identity). Missing facts are left empty.
    """

    def part(name: str) -> dict[str, Any]:
        found = environment.get(name)
        return found if isinstance(found, dict) else {}

    cpu, torch = part("cpu"), part("torch")
    gpus = [gpu for gpu in environment.get("gpus") or [] if isinstance(gpu, dict)]
    return {
        "processor": cpu.get("model", ""),
        "processors": cpu.get("usable_logical"),
        "governor": cpu.get("governor", ""),
        "device": environment.get("device", ""),
        "gpus": [str(gpu.get("name", "")) for gpu in gpus],
        "driver": sorted({str(gpu["driver"]) for gpu in gpus if gpu.get("driver")}),
        "threads": threads,
        "torch": torch.get("version", ""),
        "isa": native.get("isa", ""),
    }
