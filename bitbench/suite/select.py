"""Which cases a selection such as ``{layer: ternary, tokens: [1, 16]}`` means. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitbench.store.schema import Case, all_params


def matches(wanted: Any, value: Any) -> bool:
    """Whether one wanted value, or one of a list of alternatives, equals ``value``.

    ``value`` may itself be a list (a shape): then ``wanted`` is such a list or a list of them.
    """
    if isinstance(wanted, list) and wanted != value:
        return any(matches(item, value) for item in wanted)
    # True == 1 in Python, but not in a suite.
    return isinstance(wanted, bool) == isinstance(value, bool) and bool(wanted == value)


def holds(where: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    """Whether every key of ``where`` is among ``facts`` and matches: a key that they lack selects
    nothing, an empty ``where`` everything."""
    return all(key in facts and matches(wanted, facts[key]) for key, wanted in where.items())


def facts_of(case: Case) -> dict[str, Any]:
    """What a claim can select a case by: its layer, its workload and its point's parameters,
    the implied ones too."""
    return {"layer": case.layer, "workload": case.workload, **all_params(case.workload, case.params)}


def selects(where: Mapping[str, Any], case: Case) -> bool:
    """Whether ``where`` selects the case."""
    return holds(where, facts_of(case))
