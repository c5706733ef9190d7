"""What a workload is: points to visit, and what happens there.

A workload has a torch-free half (:meth:`WorkloadKind.points`, :meth:`~WorkloadKind.quick`,
:meth:`~WorkloadKind.estimate`), used to check and plan a suite, and a worker half
(:meth:`~WorkloadKind.open`), which runs in a worker process and imports torch there.

``timed`` points are measured by the clock in :mod:`bitbench.measure`: the session builds one
:class:`Subject` a layer and the clock interleaves them. ``once`` points are measured by the
session itself, one layer at a time, in processes apart from the timed ones. What a session holds
(a loaded model, a tokenised text) serves all its layers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from bitbench.layers.base import LayerSpec
from bitbench.measure.roofline import Work
from bitbench.store.schema import Check, Phase, Replicate


class When(BaseModel):
    """Condition under which a workload entry is measured."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    device: Literal["cpu", "cuda"]
    """Device the run must be on; elsewhere the entry's points are left out."""


class WorkloadSpec(BaseModel):
    """A workload entry of a suite. Each kind adds its own fields; unknown ones are refused.

    The fields below are common to all kinds and are applied by :mod:`bitbench.suite.expand`, in
    this order; a kind's :meth:`WorkloadKind.points` returns the plain product of its lists and
    never looks at them:

    1. ``zip`` narrows lists so that they advance together instead of being multiplied,
    2. ``include`` adds the points of variants of this entry,
    3. ``exclude`` drops points.

    YAML types are taken as written (strict): a quoted ``"1"`` is no number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    kind: str
    layers: list[str] | None = None
    """Names of the suite's layers to measure here; None means all."""
    launches: int | None = Field(default=None, ge=1)
    """Launches of this entry's timed points; None means the suite's number."""
    zip: list[list[str]] = []
    """Groups of fields of this entry whose lists have one length and advance together."""
    include: list[dict[str, Any]] = []
    """Variants of this entry: each item replaces some of its fields, and its points are added."""
    exclude: list[dict[str, Any]] = []
    """Partial points to drop, in terms of a point's params: ``{tokens: 512, cache: cold}``. A
    list gives alternatives (``tokens: [16, 512]``); a shape is itself a list, ``[out, in]``."""
    when: When | None = None
    """Measure this entry only on such a device."""
    threads: int | None = Field(default=None, ge=1)
    """Threads at this entry's timed points, no more than the run has; None means the run's number. A
    point that names a number carries it among its params."""
    neighbours: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
    """Processes that keep a core busy each, as other programs would, while the calls of this entry's timed
    points are timed; ``all``: one for each processor that the run may use, and no more can be asked for.
    A point that names them carries them among its params. None: the machine is left alone."""
    require_backend: str | None = None
    """What must serve the calls of this entry's layers, such as ``native`` or an instruction set;
    layers of kinds that it never serves (``nn.Linear``) are left alone."""
    load: float | None = Field(default=None, ge=2.5, le=60)
    """On a GPU: seconds for which each layer is kept at work alone, in the first launch, after timing. What
    the driver says of use, power and clock is an average over up to a second, which layers that take turns
    of milliseconds share; a layer under load has figures of its own, the energy of a call among them."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds a layer may take for one stage of a case (build, warm-up, a turn of timing, one
    measurement) before it counts as hung; a layer's own ``timeout`` goes before."""

    @field_validator("neighbours", mode="before")
    @classmethod
    def _countable(cls, value: Any) -> Any:
        if value in (None, "all") or (type(value) is int and value >= 1):
            return value
        raise PydanticCustomError(
            "neighbours", "must be a whole number from 1 on, or all, not {value}", {"value": repr(value)}
        )


@dataclass(frozen=True)
class PointPlan:
    """One place to visit."""

    params: dict[str, Any]
    phase: Phase
    replicate: Replicate
    launches: int | None = None
    """Records needed; None means the suite's number of launches."""


@dataclass(frozen=True)
class Context:
    """What a worker knows besides the point."""

    device: str
    threads: int
    """Threads in use at this point."""
    seed: int
    """Derived from the run's seed, the launch and the point."""
    cache_dir: Path
    """Shared by the workers of a run; conversions are kept here. Removed when the run ends."""
    layers: Mapping[str, LayerSpec]
    """The layers measured at this point, in suite order."""
    baseline: str


@dataclass(frozen=True)
class Outcome:
    """What a ``once`` measurement found."""

    metrics: dict[str, float]
    replicates: dict[str, list[float]] = field(default_factory=dict)
    kernel: str = ""


class Subject(ABC):
    """One layer at one timed point, ready to be called."""

    kernel: str = ""
    max_calls: int | None = None
    """Most calls between two resets (a decoder's context is finite); None means no limit."""
    seconds: float | None = None
    """Time to spend on the timed blocks of this layer in one launch, for calls so long that the
    clock's usual budget would hold only a few; None leaves it at that."""
    block_calls: int | None = None
    """Calls of every timed block, where a call's time depends on how many came before it since the
    last reset (a decoder's past grows): all layers of a point then do the same. None leaves the
    number to the clock."""
    flush: bool = False
    """On a GPU: cold because the clock overwrites the device's cache before each call."""
    replayable: bool = False
    """On a GPU: each call launches the same kernels on the same buffers (or the next of a rotation, or
    those of its place in a block of :attr:`block_calls`), so that a graph may stand for it. It neither
    waits for the device nor decides anything by what is on it."""
    many_kernels: bool = False
    """On a GPU: a call launches so many kernels that the host, not the device, sets its time where they
    are launched one by one. It is replayed however long it is."""
    rotation: int = 1
    """Buffers that successive calls go through in turn."""

    def reset(self) -> None:  # noqa: B027 - a hook, empty for most subjects
        """Untimed, before each block."""

    @abstractmethod
    def call(self) -> Any:
        """The timed work."""

    @abstractmethod
    def check(self) -> Check:
        """Compare the output with the exact reference. Called before and after timing."""

    def fallback(self) -> str | None:
        """Why the kernel that ran is not the one the layer's name promises, or None."""
        return None

    def invalid(self) -> str | None:
        """Why the measurement could not be what the point says, or None."""
        return None

    def timed(self, seconds: float) -> None:  # noqa: B027 - a hook, empty for most subjects
        """Told the time of a call in this launch (median of the blocks, in seconds) once the output
        was right after timing too. The baseline is told first, and :meth:`metrics` asked afterwards."""

    def work(self) -> Work | None:
        """What one call must do at least, for the roofline; None where that is not one number."""
        return None

    def metrics(self) -> dict[str, float]:
        """Other figures of this launch, measured outside the timed blocks."""
        return {}


class Session(ABC):  # noqa: B024 - timed and once sessions implement different methods
    """A point opened in a worker."""

    def build(self, layer: str, spec: LayerSpec) -> Subject:  # noqa: ARG002
        """Timed points: the layer made ready. Raise :class:`Unsupported` where it cannot be."""
        raise TypeError(f"{type(self).__name__} has no timed points")

    def measure(self, layer: str, spec: LayerSpec, replicate: int) -> Outcome:  # noqa: ARG002
        """Once points: run the measurement of one layer; ``replicate`` numbers the seed.

        Called for one layer after the other: what one made must be free again when it returns.
        """
        raise TypeError(f"{type(self).__name__} has no once points")

    def close(self) -> None:  # noqa: B027 - a hook, empty for most sessions
        """Free what :meth:`build` made."""


class Unsupported(Exception):
    """The layer cannot do this here. The message says why and what would help."""


class Incorrect(Exception):
    """What was measured is not what it must be. The message says by how much."""


class WorkloadKind(ABC):
    """One kind of workload. Stateless; registered once under its name."""

    name: ClassVar[str]
    spec: ClassVar[type[WorkloadSpec]]
    axes: ClassVar[tuple[str, ...]] = ()
    """Fields of the spec that only say which points exist (``shapes``, ``tokens``, ``seeds``,
    ``memory``). All its other own fields (``bias``, ``steps``) fix what is measured at a point and
    so belong to the identity of every case."""
    growing: ClassVar[tuple[str, ...]] = ()
    """Params (numbers, or lists of them) along which a call only ever needs more memory and time:
    a layer that ran out of either is not tried at larger values."""

    @abstractmethod
    def points(self, spec: Any) -> list[PointPlan]:
        """All points of this entry, in the order written: the product of its lists. Torch-free."""

    @abstractmethod
    def quick(self, spec: Any) -> WorkloadSpec:
        """The same entry cut down for ``--quick``. Torch-free."""

    @abstractmethod
    def estimate(self, spec: Any, plan: PointPlan, layer: LayerSpec) -> float:
        """Seconds one launch of one layer takes here on an idle machine of two cores, to plan with;
        :meth:`estimate_open` apart. Torch-free."""

    def estimate_on_gpu(self, spec: Any, plan: PointPlan, layer: LayerSpec) -> float:
        """The same on a large GPU. Torch-free."""
        return self.estimate(spec, plan, layer)

    def estimate_open(self, spec: Any, plan: PointPlan) -> float:  # noqa: ARG002
        """Seconds :meth:`open` takes: once for all layers of a point that share a process."""
        return 0.0

    def data(self, spec: Any) -> list[str]:  # noqa: ARG002
        """Catalog names this entry needs; fetched before anything is measured."""
        return []

    @abstractmethod
    def open(self, spec: Any, params: dict[str, Any], context: Context) -> Session:
        """Worker half."""
