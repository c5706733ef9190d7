"""What a suite file may say, as strict types. No input or output here.

Layers and workloads are unions over the registered kinds; which kinds exist is looked up when a
suite is validated, so importing this module imports no workload and no plug-in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from bitbench.layers import registry as layer_registry
from bitbench.layers.base import LayerSpec
from bitbench.plugins import advice
from bitbench.store.metrics import METRICS, WITHOUT_RATIO
from bitbench.suite.shapes import Shape
from bitbench.workloads import registry as workload_registry
from bitbench.workloads.base import WorkloadSpec

SUITE_SCHEMA = 1
"""Version of the suite format this code reads."""

NAME = r"^[A-Za-z0-9][A-Za-z0-9._+-]*$"
"""Names become parts of file names and case labels."""

Name = Annotated[str, Field(pattern=NAME, max_length=64)]
Spec = TypeVar("Spec", bound=BaseModel)


def _kind_of(value: Any, what: str, kinds: list[str]) -> str:
    """The ``kind`` of a layer or workload entry, known to exist."""
    if not isinstance(value, dict):
        raise PydanticCustomError(
            "not_a_mapping",
            "a {what} is a mapping such as {example}, not {value}",
            {"what": what, "example": f"{{kind: {kinds[0]}}}", "value": repr(value)},
        )
    if "kind" not in value:
        raise PydanticCustomError(
            "kind_missing", "a {what} needs a kind; {advice}", {"what": what, "advice": advice("", kinds)}
        )
    kind = value["kind"]
    if kind not in kinds:
        raise PydanticCustomError(
            "kind_unknown",
            "unknown {what} kind {kind}; {advice}",
            {"what": what, "kind": repr(kind), "advice": advice(kind, kinds)},
        )
    return str(kind)


def _parser(
    what: str, base: type[Spec], kinds: Callable[[], list[str]], spec: Callable[[str], type[Spec]]
) -> Callable[[Any, ValidationInfo], Spec]:
    """A validator that reads ``kind`` and hands over to that kind's own model."""

    def parse(value: Any, info: ValidationInfo) -> Spec:
        if isinstance(value, base):
            return value
        kind = _kind_of(value, what, kinds())
        return spec(kind).model_validate(value, context={"shapes": info.data.get("shapes", {})})

    return parse


AnyLayer = Annotated[
    SerializeAsAny[LayerSpec],
    BeforeValidator(
        _parser("layer", LayerSpec, layer_registry.kinds, lambda kind: layer_registry.get(kind).spec)
    ),
]
AnyWorkload = Annotated[
    SerializeAsAny[WorkloadSpec],
    BeforeValidator(
        _parser(
            "workload", WorkloadSpec, workload_registry.kinds, lambda kind: workload_registry.get(kind).spec
        )
    ),
]


class Claim(BaseModel):
    """A statement that a run passes, fails or cannot decide.

    ``where`` selects cases by ``layer``, ``workload`` and any of a point's params (see
    :func:`bitbench.suite.select.selects`); the claim is about every selected case that carries the
    metric. With ``of``, the bounded value is the metric of the selected case divided by that of the
    case that differs from it in what ``of`` names: another layer at the same point (``of: {layer: k2}``),
    or the same layer at another point (``of: {threads: 1}``). A param that is null selects, and means,
    cases without it: ``where: {threads: null}`` are those with the run's own number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    id: Name
    says: str = Field(min_length=1)
    metric: str
    where: dict[str, Any] = {}
    of: dict[str, Any] | None = Field(default=None, min_length=1)
    at_least: float | None = None
    at_most: float | None = None
    between: list[float] | None = None
    gating: bool = False
    """Whether failing turns the exit code to 1. Other claims are only reported."""

    @field_validator("metric")
    @classmethod
    def _metric_exists(cls, metric: str) -> str:
        if metric not in METRICS:
            raise PydanticCustomError(
                "metric",
                "unknown metric {metric}; {advice}",
                {"metric": repr(metric), "advice": advice(metric, METRICS)},
            )
        return metric

    @field_validator("between")
    @classmethod
    def _ordered(cls, between: list[float] | None) -> list[float] | None:
        if between is not None and (len(between) != 2 or between[0] > between[1]):
            raise PydanticCustomError(
                "between", "must be [low, high] with low <= high, not {value}", {"value": between}
            )
        return between

    @model_validator(mode="after")
    def _has_ratio(self) -> Claim:
        if self.of is not None and self.metric in WITHOUT_RATIO:
            raise PydanticCustomError(
                "of",
                "{metric} is right or wrong image by image and has no ratio: leave out of, and claim "
                "quality.accuracy_change, the difference from the baseline",
                {"metric": self.metric},
            )
        return self

    @model_validator(mode="after")
    def _one_bound(self) -> Claim:
        given = [n for n in ("at_least", "at_most", "between") if getattr(self, n) is not None]
        if len(given) != 1:
            raise PydanticCustomError(
                "bound",
                "a claim needs exactly one of at_least, at_most and between; this one has {given}",
                {"given": " and ".join(given) or "none"},
            )
        return self


class Suite(BaseModel):
    """A suite: layers, the workloads to measure them in, and the claims to check."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, validate_by_name=True
    )

    schema_version: Literal[1] = Field(alias="schema")
    """Version of the suite format: 1."""
    name: Name
    """Short name; runs and reports are called after it."""
    title: str = ""
    """One line for the head of the report."""
    baseline: str
    """The layer that ratios are given against."""
    shapes: dict[Name, list[Shape]] = {}
    """The suite's own shape sets, [out_features, in_features] each."""
    layers: dict[Name, AnyLayer] = Field(min_length=1)
    """Layers under test, by the name they have in the report."""
    workloads: list[AnyWorkload] = Field(min_length=1)
    claims: list[Claim] = []
    launches: int = Field(default=5, ge=1, le=1000)
    """Fresh processes per timed point: what an interval over time is taken over."""
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    threads: int | None = Field(default=None, ge=1, le=4096)
    """Threads a worker may use; None means the physical cores."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to measure; auto means the GPU where there is one."""
    cites: list[str] = []
    """Names of other suites whose newest stored run the report quotes."""

    def resolved(self) -> dict[str, Any]:
        """The suite as plain JSON, names of shape sets replaced; ``Suite.model_validate`` reads it."""
        return self.model_dump(mode="json", by_alias=True)
