"""What every layer, workload and reporter must fulfil, built in or a peer's. Torch-free."""

from __future__ import annotations

from pydantic import ValidationError

from bitbench.layers.base import LayerCost, LayerKind, LayerSpec
from bitbench.layers.registry import REGISTRY as LAYERS
from bitbench.plugins import Plugin
from bitbench.report.reporters import REGISTRY as REPORTERS
from bitbench.report.reporters import Reporter
from bitbench.workloads.base import WorkloadKind, WorkloadSpec
from bitbench.workloads.registry import REGISTRY as WORKLOADS

_IN, _OUT = 64, 32
"""Shape on which a cost model is tried."""


def examine_all() -> list[Plugin]:
    """Every registered layer kind, workload kind and reporter, and what is wrong with each."""
    return [
        *LAYERS.examine(layer_fault),
        *WORKLOADS.examine(workload_fault),
        *REPORTERS.examine(reporter_fault),
    ]


def layer_fault(name: str, kind: LayerKind) -> str:
    """What is wrong with a layer kind, or ``""``. Its cost model is tried on a small shape where
    the description needs no field beyond ``kind``."""
    if fault := _misnamed(name, kind) or _misdescribed(kind, LayerSpec):
        return fault
    try:
        spec = kind.spec(kind=name)
    except ValidationError:
        return ""  # it needs fields that only its author knows
    try:
        cost: object = kind.cost(spec, _IN, _OUT)  # a peer may answer anything
    except ImportError as error:
        return f"its cost model is not free of torch: {error}"
    except Exception as error:  # any failure of foreign code is its fault, named
        return f"its cost model fails on {_IN} x {_OUT}: {type(error).__name__}: {error}"
    if not isinstance(cost, LayerCost):
        return f"its cost model answers {type(cost).__name__}, not LayerCost"
    if cost.weight_bytes <= 0 or cost.macs_per_token <= 0:
        return f"its cost model counts {cost.weight_bytes} bytes and {cost.macs_per_token} operations"
    return ""


def workload_fault(name: str, kind: WorkloadKind) -> str:
    """What is wrong with a workload kind, or ``""``."""
    return _misnamed(name, kind) or _misdescribed(kind, WorkloadSpec)


def reporter_fault(name: str, reporter: Reporter) -> str:
    """What is wrong with a reporter, or ``""``."""
    return _misnamed(name, reporter)


def _misnamed(name: str, made: LayerKind | WorkloadKind | Reporter) -> str:
    own = getattr(made, "name", None)
    return "" if own == name else f"registered as {name!r}, but its class calls itself {own!r}"


def _misdescribed(kind: LayerKind | WorkloadKind, base: type) -> str:
    spec = getattr(kind, "spec", None)
    if isinstance(spec, type) and issubclass(spec, base):
        return ""
    return f"its description (spec) is not a subclass of {base.__name__}"
