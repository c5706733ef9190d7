"""What a run folder holds, as typed records. No input or output here.

``results/<run>/`` contains

=================  =======================================================================
``run.json``       one :class:`RunInfo`: suite as resolved, environment, code, seeds
``cases.jsonl``    one :class:`Case` a line, written before anything runs: no row can go missing
``samples.jsonl``  one :class:`Record` a line: the outcome of one case in one launch
``telemetry.jsonl``  one :class:`TelemetrySample` a line, about one a second
``end.jsonl``      one :class:`RunEnd` a line, one each time the run came to its end
=================  =======================================================================

A run that compares two versions of the library (``purpose`` other than ``run``) has two records
for each case and launch, told apart by ``side``.

Files are append-only text with one writer. A case is finished when each of its launches has a
record; what is missing is what ``--resume`` runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA_VERSION = 2
MAX_BLOCKS = 64

PROMPT_TOKENS = "prompt"
"""Param of a ``decode`` point that reads a prompt of so many tokens at once; one that decodes lacks it."""

IMPLIED_PARAMS: Mapping[str, Mapping[str, Any]] = {
    "decode": {"head": "float"},
    "perplexity": {"head": "float"},
    "image_accuracy": {"stem": "float", "head": "float"},
}
"""What a point of a workload means where its params do not say: left out of them, so that its cases keep
the ids that they had in runs stored before there was a choice."""

Phase = Literal["timed", "once"]
Replicate = Literal["launches", "seeds", "documents", "images", "exact"]
Purpose = Literal["run", "compare", "calibrate", "gate"]
Side = Literal["", "base", "head"]


class Status(StrEnum):
    """How one case ended in one launch. The set is closed."""

    OK = "ok"
    UNSUPPORTED = "unsupported"  # the layer cannot do this here: missing package, device, format
    OOM = "oom"
    TIMEOUT = "timeout"
    CRASH = "crash"  # the worker process died
    ERROR = "error"  # an exception, with its message as reason
    INCORRECT = "incorrect"  # the output disagreed with the reference, before or after timing
    FALLBACK = "fallback"  # another kernel than the named one served the call
    INVALID = "invalid"  # measured, but not to be believed: too small to be cold, above the roofline


class _Record(BaseModel):
    # Infinite errors are written as strings: JSON has no word for them.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Check(_Record):
    """Comparison of a case's output with the exact reference."""

    passed: bool
    max_error: float
    """Largest absolute difference, divided by the largest absolute reference value."""
    tolerance: float
    compared: int
    """Number of output elements compared."""


def all_params(workload: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """``params`` of a point of ``workload``, and those that they imply."""
    return {**IMPLIED_PARAMS.get(workload, {}), **params}


class Case(_Record):
    """One layer at one point. Identity is ``id``, a hash of everything that fixes the number."""

    id: str
    point: str
    """Id of the point; cases that share it are measured together."""
    workload: str
    """Workload kind, such as ``linear``."""
    entry: int
    """Position of the workload in the suite's list."""
    phase: Phase
    replicate: Replicate
    launches: int
    """Records this case needs: launches when timed, seeds when trained, else 1."""
    layer: str
    params: dict[str, Any]
    """The point: shape, tokens, cache state, measure, ... in the workload's words."""
    numerics: str
    """Cases with equal numerics give equal accuracy and are computed once."""

    @property
    def label(self) -> str:
        """Readable name, unique within a run: ``linear/2048x2048/tokens=1/cache=hot/ternary``."""
        parts = [self.workload]
        for key, value in self.params.items():
            if key == "shape":
                parts.append("x".join(str(n) for n in value))
            elif key == "measure":
                parts.append(str(value))
            else:
                parts.append(f"{key}={value}")
        return "/".join([*parts, self.layer])


class Record(_Record):
    """Outcome of one case in one launch (or for one seed)."""

    case: str
    launch: int
    side: Side = ""
    """Which version of the library, where two are compared; else empty."""
    status: Status
    reason: str = ""
    """Why the status is not ``ok``; empty otherwise."""
    calls: int = 0
    """Calls in each timed block."""
    samples_ns: list[int] = Field(default_factory=list, max_length=MAX_BLOCKS)
    """Duration of each timed block in nanoseconds, in the order measured."""
    order: int = 0
    """Position of the layer among those of its point when built: launches shuffle it."""
    stop: str = ""
    """Why the clock stopped taking blocks: ``seconds`` (the time for a layer was used up), ``blocks``
    (a call so long that the fewest blocks took more than that) or ``calls`` (the workload fixes how
    many calls make a block)."""
    timer: str = ""
    """What timed the blocks: ``cpu-clock``, ``cuda-events``, ``cuda-events-flush`` (cold: the device's
    cache is overwritten before each call) or ``cuda-graph`` (:mod:`bitbench.measure.timers`)."""
    notes: list[str] = Field(default_factory=list)
    """What a reader should know of a result that stands: throttled, suspiciously near the limit,
    other processes busy beside it."""
    kernel: str = ""
    """The kernel that served the calls, as reported by the layer."""
    dispatch: dict[str, str] = Field(default_factory=dict)
    """What ``kernel`` says, taken apart by the layer's kind: ``backend`` (native, torch), ``isa``,
    ``format``, ``packed`` (yes, no), ``activations``, ``device``, ... as far as the kind knows."""
    before: Check | None = None
    after: Check | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    """Other figures of this launch, named in :mod:`bitbench.store.metrics`."""
    replicates: dict[str, list[float]] = Field(default_factory=dict)
    """Figures per replicate inside this record (documents of a text, images), by metric name."""
    shared_from: str = ""
    """Id of the case that computed this accuracy, where numerics are equal."""
    started: str = ""
    """UTC, ISO 8601."""
    wall_s: float = 0.0

    @model_validator(mode="after")
    def _fields_fit_status(self) -> Record:
        if self.status is not Status.OK and not self.reason:
            raise ValueError(f"status {self.status.value} needs a reason")
        if self.samples_ns and self.calls < 1:
            raise ValueError("timed blocks need calls >= 1")
        if any(ns <= 0 for ns in self.samples_ns):
            raise ValueError("a timed block cannot take zero or negative time")
        return self


class CodeIdentity(_Record):
    """Which code ran."""

    bitbench: str
    impl: str
    commit: str = ""
    dirty: bool = False
    digest: str = ""
    """Hash over the sources that can change a number: tells two dirty checkouts apart, so that a
    resumed run cannot mix them."""
    native: dict[str, Any] = Field(default_factory=dict)
    """What ``impl.capabilities()`` said: library found, ISA, kernels."""
    label: str = ""
    """What the user calls this version where two are compared: ``main (1a2b3c4d)``; else empty."""


class RunInfo(_Record):
    """The head of a run: everything needed to read it and to run it again."""

    schema_version: int = SCHEMA_VERSION
    run: str
    created: str
    suite_path: str
    suite: dict[str, Any]
    """The suite as resolved (see :class:`bitbench.suite.schema.Suite`), plain JSON."""
    quick: bool = False
    seed: int = 0
    threads: int
    environment: dict[str, Any]
    code: CodeIdentity
    """The code that ran; of a comparison, that of the head side."""
    purpose: Purpose = "run"
    sides: dict[str, CodeIdentity] = Field(default_factory=dict)
    """``base`` and ``head`` of a comparison: what each side imported. Empty for a plain run."""
    slowdown: float = 0.0
    """Extra work put into the head side to prove that it shows: 0.1 means a tenth more."""


class RunEnd(_Record):
    """How a run came to its end, and where its time went."""

    finished: str
    """UTC, ISO 8601."""
    wall_s: float
    """Since the run was created or resumed."""
    stages_s: dict[str, float] = Field(default_factory=dict)
    """Seconds by stage: ``start`` (processes), ``open``, ``build``, ``warm-up``, ``check``,
    ``load`` (a layer kept at work alone on a GPU), ``judge`` (limits of the machine, figures beside the
    time), ``time`` (of it ``timed`` inside timed blocks), ``measure`` (what is measured once), ``idle``."""
    stops: dict[str, str] = Field(default_factory=dict)
    """By point id, why no further launch was made: ``launches``, ``width`` or ``budget``."""


class TelemetrySample(_Record):
    """State of the machine at one moment. ``None`` means: cannot be read here."""

    t: float
    """Seconds since the run was created or resumed."""
    launch: str
    """Name of the process being measured, ``once-3`` or ``launch-0``."""
    cpu_percent: float | None = None
    cpu_mhz: float | None = None
    load_1m: float | None = None
    cpu_steal_percent: float | None = None
    """Share of processor time that the hypervisor gave to others."""
    cpu_stalled_s: float | None = None
    """Seconds for which the control group's quota has held its processes, since it was made."""
    memory_used: int | None = None
    worker_rss: int | None = None
    gpu_percent: float | None = None
    """Share of the last period in which a kernel ran."""
    gpu_memory_percent: float | None = None
    """Share of the last period in which device memory was read or written."""
    gpu_memory_used: int | None = None
    gpu_power_w: float | None = None
    gpu_energy_j: float | None = None
    """The device's own counter since its driver was loaded."""
    gpu_sm_mhz: float | None = None
    gpu_memory_mhz: float | None = None
    gpu_temperature_c: float | None = None
    gpu_throttle: list[str] = Field(default_factory=list)
    """Reasons for which the clock is held down now, such as ``power``; none means free or unknown."""
    foreign: list[str] = Field(default_factory=list)
    """Other processes at work: ``python3 (97 % cpu)``, ``gpu: ollama``. Names only."""
