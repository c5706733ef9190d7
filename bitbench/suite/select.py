"""Which cases a selection such as ``{layer: ternary, tokens: [1, 16]}`` means. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    """Whether every key of ``where`` matches that of ``facts``: one that they lack is matched by None alone,
    and an empty ``where`` by everything."""
    return all(matches(wanted, facts.get(key)) for key, wanted in where.items())


def facts_of(case: Case) -> dict[str, Any]:
    """What a claim can select a case by: its layer, its workload and its point's parameters,
    the implied ones too."""
    return {"layer": case.layer, "workload": case.workload, **all_params(case.workload, case.params)}


def selects(where: Mapping[str, Any], case: Case) -> bool:
    """Whether ``where`` selects the case."""
    return holds(where, facts_of(case))


def counterpart(of: Mapping[str, Any], case: Case, cases: Iterable[Case]) -> Case | None:
    """The one of ``cases`` that is like ``case`` but for what ``of`` says (None: lacks it), or None.

    Where ``of`` names a layer alone, it is one of the same point. Else it is of the same entry of the suite
    if there is such a one; None where several are left, told apart by what is no param.
    """
    wanted = {key: value for key, value in (facts_of(case) | dict(of)).items() if value is not None}
    like = [other for other in cases if facts_of(other) == wanted and other.phase == case.phase]
    if set(of) <= {"layer"}:
        return next((other for other in like if other.point == case.point), None)
    like = [other for other in like if other.entry == case.entry] or like
    return like[0] if len(like) == 1 else None


def describe(where: Mapping[str, Any]) -> str:
    """A selection in words: ``layer=ternary, shape=4096x4096, no threads``."""
    parts = []
    for key, value in where.items():
        if value is None:
            parts.append(f"no {key}")
            continue
        if key == "shape" and isinstance(value, list) and all(isinstance(n, int) for n in value):
            value = "x".join(str(n) for n in value)
        parts.append(f"{key}={value}")
    return ", ".join(parts) or "anything"
