"""Which cases a selection such as ``{layer: ternary, tokens: [1, 16]}`` means. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def matches(wanted: Any, value: Any) -> bool:
    """Whether one wanted value, or one of a list of alternatives, equals ``value``.

    ``value`` may itself be a list (a shape): then ``wanted`` is such a list or a list of them.
    """
    if isinstance(wanted, list) and wanted != value:
        return any(matches(item, value) for item in wanted)
    # True == 1 in Python, but not in a suite.
    return isinstance(wanted, bool) == isinstance(value, bool) and bool(wanted == value)


def selects(where: Mapping[str, Any], *, layer: str, workload: str, params: Mapping[str, Any]) -> bool:
    """Whether a case is selected: every key of ``where`` matches. A key the case lacks selects
    nothing."""
    facts = {"layer": layer, "workload": workload, **params}
    return all(key in facts and matches(wanted, facts[key]) for key, wanted in where.items())
