"""A comparison and a gate as plain data: what ``--json`` of ``compare`` and ``gate`` writes.

Numbers are as computed, not rounded: times in seconds, bytes in bytes, shares as fractions. What
is not finite is written as a string (``"inf"``): JSON has no word for it.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from bitbench.analysis.comparison import Compared, Comparison
from bitbench.analysis.gate import GateResult, GateRow, Proof
from bitbench.analysis.statistics import Estimate
from bitbench.report.compared import word

SCHEMA = 1
"""Version of these files. Fields may be added without raising it."""


def comparison_data(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON-ready data."""
    return {
        "schema": SCHEMA,
        "base": comparison.base,
        "head": comparison.head,
        "paired": comparison.paired,
        "contaminated": comparison.contaminated,
        "differences": [asdict(found) for found in comparison.differences],
        "only_base": list(comparison.only_base),
        "only_head": list(comparison.only_head),
        "notes": list(comparison.notes),
        "results": [_compared(result) for result in comparison.results],
    }


def gate_data(result: GateResult, *, strict: bool = False) -> dict[str, Any]:
    """The gate as JSON-ready data; ``exit_code`` is what the command ends with."""
    return {
        "schema": SCHEMA,
        "outcome": result.outcome.value,
        "reason": result.reason,
        "exit_code": int(result.exit_code(strict=strict)),
        "warnings": list(result.warnings),
        "proof": None if result.proof is None else _proof(result.proof),
        "rows": [_row(row) for row in result.rows],
        "comparison": comparison_data(result.comparison),
    }


def to_json(data: dict[str, Any]) -> str:
    """As text, one trailing newline."""
    return json.dumps(_finite(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _compared(result: Compared) -> dict[str, Any]:
    verdict = result.verdict
    return {
        "case": result.case.id,
        "label": result.case.label,
        "metric": result.metric,
        "kind": result.kind,
        "word": word(result),
        "reason": verdict.reason,
        "moved": result.moved,
        "control": result.control,
        "effect": _estimate(verdict.effect),
        "base": _estimate(result.base),
        "head": _estimate(result.head),
        "spread": result.spread,
        "minimum_effect": verdict.minimum_effect,
        "detectable": verdict.detectable,
        "p": verdict.p,
        "corrected_over": verdict.corrected_over,
        "rounds": verdict.rounds,
    }


def _row(row: GateRow) -> dict[str, Any]:
    return {
        "label": row.compared.case.label,
        "metric": row.compared.metric,
        "word": word(row.compared),
        "role": row.role.value,
        "threshold": row.threshold,
        "fails": row.fails,
        "why": row.why,
    }


def _proof(proof: Proof) -> dict[str, Any]:
    return {
        "holds": not proof.failure,
        "failure": proof.failure,
        "slowdown": proof.slowdown,
        "null": None if proof.null is None else _compared(proof.null),
        "slowed": None if proof.slowed is None else _compared(proof.slowed),
    }


def _estimate(found: Estimate | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "confidence": found.confidence,
        "exact": found.exact,
    }


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
