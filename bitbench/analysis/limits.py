"""Which limit of the machine binds a timed layer: its memory bandwidth or its arithmetic."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from bitbench.analysis.summary import CaseSummary, Summary
from bitbench.errors import UserError
from bitbench.layers import registry
from bitbench.measure.roofline import Peaks, Work, bound


def peaks(summary: Summary) -> Peaks | None:
    """The limits measured at the start of the run; None where it has none."""
    found = summary.run.info.environment.get("peaks")
    if not isinstance(found, dict) or not found.get("read_bytes_per_s"):
        return None
    return Peaks(**{name: found[name] for name in Peaks.__dataclass_fields__ if name in found})


def binding_limit(summary: Summary, case: CaseSummary) -> str:
    """``memory`` or ``compute`` for a single layer with a share of its limit; empty where the
    description of the layer cannot tell (a kind that is not installed here, or has changed since)."""
    limits = peaks(summary)
    if limits is None or "roofline.share" not in case.series or case.case.workload != "linear":
        return ""
    description: dict[str, Any] = summary.layers[case.case.layer]
    rows, columns = case.case.params["shape"]
    try:
        kind = registry.get(str(description.get("kind")))
        cost = kind.cost(kind.spec.model_validate(description), columns, rows)
    except (UserError, ValidationError):
        return ""
    tokens = int(case.case.params["tokens"])
    # A share was stated, so if bandwidth binds, the weights did come from memory.
    work = Work(cost.weight_bytes, 2 * cost.macs_per_token * tokens, cost.compute, from_memory=True)
    binding = bound(work, limits)
    return "" if binding is None else binding.limit
