"""Which limit of the machine binds a timed layer: its memory bandwidth or its arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from bitbench.analysis.summary import CaseSummary, Summary
from bitbench.errors import UserError
from bitbench.layers import registry
from bitbench.measure.roofline import Peaks, Work, bound
from bitbench.suite.convolutions import BlockShape, ConvShape


def peaks(summary: Summary, threads: int | None = None) -> Peaks | None:
    """The limits measured at the start of the run, for the number of ``threads`` that a point names;
    None where it has none."""
    environment = summary.run.info.environment
    found = environment.get("peaks")
    if threads is not None and threads != summary.run.info.threads:
        found = environment.get("peaks_at", {}).get(str(threads))
    if not isinstance(found, dict) or not found.get("read_bytes_per_s"):
        return None
    return Peaks(**{name: found[name] for name in Peaks.__dataclass_fields__ if name in found})


def binding_limit(summary: Summary, case: CaseSummary) -> str:
    """``memory`` or ``compute`` for a single layer with a share of its limit; empty where the
    description of the layer cannot tell (a kind that is not installed here, or has changed since)."""
    params = case.case.params
    limits = peaks(summary, params.get("threads"))
    if limits is None or "roofline.share" not in case.series:
        return ""
    description: dict[str, Any] = summary.layers[case.case.layer]
    try:
        kind = registry.get(str(description.get("kind")))
        spec = kind.spec.model_validate(description)
        costs = [
            (kind.cost(spec, columns, rows), calls)
            for rows, columns, calls in _products(case.case.workload, params)
        ]
    except (UserError, ValidationError):
        return ""
    if not costs:
        return ""
    # A share was stated, so if bandwidth binds, the weights did come from memory.
    work = Work(
        sum(cost.weight_bytes for cost, _ in costs),
        sum(2 * cost.macs_per_token * calls for cost, calls in costs),
        costs[0][0].compute,
        from_memory=True,
        isa=str(description.get("isa") or ""),
    )
    binding = bound(work, limits)
    return "" if binding is None else binding.limit


def _products(workload: str, params: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Output and input features of each matrix that a call multiplies by, and how many inputs it meets: one
    of a layer, several of a block; none where this is neither."""
    if workload == "linear":
        rows, columns = params["shape"]
        return [(rows, columns, int(params["tokens"]))]
    if workload == "conv2d":
        shapes = [ConvShape(**{name: params[name] for name in ConvShape.model_fields})]
    elif workload == "block":
        shapes = BlockShape(**{name: params[name] for name in BlockShape.model_fields}).convolutions
    else:
        return []
    return [(one.out_channels, one.columns, one.pixels * int(params["batch"])) for one in shapes]
