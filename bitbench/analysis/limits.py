"""Which limit of the machine binds a timed layer: its memory bandwidth or its arithmetic."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from bitbench.analysis.summary import CaseSummary, Summary
from bitbench.errors import UserError
from bitbench.layers import registry
from bitbench.measure.roofline import Peaks, Work, bound
from bitbench.suite.convolutions import ConvShape


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
        if case.case.workload == "linear":
            (rows, columns), calls = params["shape"], int(params["tokens"])
        elif case.case.workload == "conv2d":
            shape = ConvShape(**{name: params[name] for name in ConvShape.model_fields})
            rows, columns, calls = shape.out_channels, shape.columns, shape.pixels * int(params["batch"])
        else:
            return ""
        kind = registry.get(str(description.get("kind")))
        cost = kind.cost(kind.spec.model_validate(description), columns, rows)
    except (UserError, ValidationError):
        return ""
    # A share was stated, so if bandwidth binds, the weights did come from memory.
    operations = 2 * cost.macs_per_token * calls
    isa = str(description.get("isa") or "")
    binding = bound(Work(cost.weight_bytes, operations, cost.compute, from_memory=True, isa=isa), limits)
    return "" if binding is None else binding.limit
