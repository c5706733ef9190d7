"""Checks across the parts of a suite: names that must exist, selections that must select."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from bitbench.layers import registry as layer_registry
from bitbench.plugins import advice, join_names
from bitbench.store.schema import Case, all_params
from bitbench.suite.expand import entry_layers, entry_points, expand, timing_conditions, variants
from bitbench.suite.problems import Loc, Problem, known_values, translate
from bitbench.suite.schema import Claim, Suite
from bitbench.suite.select import counterpart, describe, facts_of, holds, selects
from bitbench.workloads.base import PointPlan, WorkloadSpec


def unknown_names(data: dict[str, Any]) -> Iterator[Problem]:
    """References to layers and workloads that the file does not define, and repeated claim ids.

    Works on the raw file, so that these are reported together with errors of form.
    """
    layers = data.get("layers")
    if not isinstance(layers, dict):
        return
    baseline = data.get("baseline")
    if isinstance(baseline, str) and baseline not in layers:
        yield _no_layer(("baseline",), baseline, layers)
    workloads = [w for w in _list(data, "workloads") if isinstance(w, dict)]
    for i, entry in enumerate(_list(data, "workloads")):
        for j, name in enumerate(_list(entry, "layers")):
            if name not in layers:
                yield _no_layer(("workloads", i, "layers", j), name, layers)
    kinds = list(dict.fromkeys(str(w.get("kind")) for w in workloads))
    seen: dict[Any, int] = {}
    for i, claim in enumerate(_list(data, "claims")):
        if not isinstance(claim, dict):
            continue
        for key in ("where", "of"):
            chosen = claim.get(key)
            wanted = chosen.get("layer") if isinstance(chosen, dict) else None
            for name in wanted if isinstance(wanted, list) else [wanted]:
                if name is not None and name not in layers:
                    yield _no_layer(("claims", i, key, "layer"), name, layers)
        where = claim.get("where")
        kind = where.get("workload") if isinstance(where, dict) else None
        if isinstance(kind, str) and kind not in kinds:
            yield Problem(
                ("claims", i, "where", "workload"),
                f"this suite has no workload {kind!r}",
                advice(kind, kinds, label="its workloads"),
            )
        if claim.get("id") in seen:
            yield Problem(
                ("claims", i, "id"),
                f"the id {claim['id']!r} was given before, to claims[{seen[claim['id']]}]",
                "ids name claims in reports: each is used once",
            )
        seen.setdefault(claim.get("id"), i)


def impossible_selections(suite: Suite) -> Iterator[Problem]:
    """Variants that are no valid entries, backends that nothing here has, exclusions and claims that
    select nothing."""
    yield from _impossible_backends(suite)
    sound = True
    for i, entry in enumerate(suite.workloads):
        for problem in _entry_problems(entry, suite, ("workloads", i)):
            sound = False
            yield problem
    if not sound:
        return
    cases = expand(suite).cases
    for i, claim in enumerate(suite.claims):
        if not any(selects(claim.where, case) for case in cases):
            yield _selects_nothing(claim, cases, ("claims", i, "where"))
        elif claim.of is not None:
            yield from _impossible_ratio(claim, claim.of, cases, ("claims", i, "of"))


def _entry_problems(entry: WorkloadSpec, suite: Suite, loc: Loc) -> Iterator[Problem]:
    fields = entry.model_dump(mode="json", exclude={"include", "zip", "exclude"})
    broken = False
    for j, item in enumerate(entry.include):
        try:
            type(entry).model_validate({**fields, **item}, context={"shapes": suite.shapes})
        except ValidationError as error:
            broken = True
            yield from translate(error, {**fields, **item}, (*loc, "include", j))
    if broken:
        return
    try:
        variants(entry, suite)
        everything = entry_points(entry.model_copy(update={"exclude": []}), suite)
        kept = entry_points(entry, suite)
    except ValueError as error:
        yield Problem((*loc, "zip") if entry.zip else loc, str(error))
        return
    params = [all_params(entry.kind, plan.params) for _, plan in everything]
    for j, item in enumerate(entry.exclude):
        if not any(holds(item, point) for point in params):
            yield _blame(item, params, (*loc, "exclude", j), "excludes nothing")
    yield from _idle_conditions(entry, everything, loc)
    if not kept:
        yield Problem(
            (*loc, "exclude"), "every point of this workload is excluded", "remove an exclusion, or the entry"
        )


def _idle_conditions(
    entry: WorkloadSpec, points: list[tuple[WorkloadSpec, PointPlan]], loc: Loc
) -> Iterator[Problem]:
    """``threads`` and ``neighbours`` of a variant that times nothing: they would change nothing."""
    timed = [spec for spec, plan in points if plan.phase == "timed"]
    idle = [spec for spec, _ in points if spec not in timed]
    for name in dict.fromkeys(name for spec in idle for name in timing_conditions(spec)):
        included = [j for j, item in enumerate(entry.include) if name in item]
        own = getattr(entry, name) is not None or not included
        where: Loc = (*loc, name) if own else (*loc, "include", included[0], name)
        yield Problem(
            where,
            f"nothing is timed here, and {name!r} changes nothing else",
            f"remove {name!r}, or have the workload time something",
        )


def _impossible_backends(suite: Suite) -> Iterator[Problem]:
    """``require_backend`` that no kind it applies to can be served by, or can tell."""
    for name, layer in suite.layers.items():
        can = layer_registry.get(layer.kind).backends
        if layer.require_backend is not None and layer.require_backend not in can:
            yield _no_backend(("layers", name, "require_backend"), layer.require_backend, [layer.kind], can)
    for i, entry in enumerate(suite.workloads):
        measured = [layer for name, layer in suite.layers.items() if entry_layers(entry, suite, name)]
        kinds = list(dict.fromkeys(layer.kind for layer in measured))
        can = tuple(dict.fromkeys(b for kind in kinds for b in layer_registry.get(kind).backends))
        if entry.require_backend is not None and entry.require_backend not in can:
            yield _no_backend(("workloads", i, "require_backend"), entry.require_backend, kinds, can)


def _no_backend(loc: Loc, wanted: str, kinds: list[str], can: tuple[str, ...]) -> Problem:
    what = f"a layer of kind {join_names(kinds)}"
    if not can:
        return Problem(loc, f"{what} does not tell what serves it", "drop require_backend here")
    return Problem(loc, f"{what} is never served by {wanted!r}", advice(wanted, can, label="it can be"))


def _impossible_ratio(claim: Claim, of: dict[str, Any], cases: list[Case], loc: Loc) -> Iterator[Problem]:
    """``of`` that no case the claim is about can be divided by."""
    about = [case for case in cases if selects(claim.where, case)]
    if any(other is not None and other != case for case in about for other in [counterpart(of, case, cases)]):
        return
    known = list(dict.fromkeys(key for case in cases for key in facts_of(case)))
    unknown = [key for key in of if key not in known]
    if unknown:
        yield Problem((*loc, unknown[0]), f"no point has {unknown[0]!r}", advice(unknown[0], known))
        return
    yield Problem(
        loc,
        f"no case that the claim is about has another like it with {describe(of)}",
        "`of` names another layer of the same point, or what another point of the workload differs in",
    )


def _selects_nothing(claim: Claim, cases: list[Case], loc: Loc) -> Problem:
    return _blame(claim.where, [facts_of(case) for case in cases], loc, "selects no case")


def _blame(wanted: dict[str, Any], facts: list[dict[str, Any]], loc: Loc, what: str) -> Problem:
    """Name the first key of a selection after which nothing is left."""
    known = list(dict.fromkeys(key for fact in facts for key in fact))
    left = facts
    for key, value in wanted.items():
        if key not in known and value is not None:
            return Problem((*loc, key), f"{what}: no point has {key!r}", advice(key, known))
        still = [fact for fact in left if holds({key: value}, fact)]
        if not still:
            there = known_values(fact[key] for fact in left if key in fact)
            told = f"there it is one of: {there}" if there else f"{key!r} does not go with the keys before it"
            return Problem((*loc, key), f"{what}: {key} is never {_plain(value)} here", told)
        left = still
    return Problem(loc, what, "")


def _plain(value: Any) -> str:
    if isinstance(value, list) and value and all(isinstance(v, int) for v in value):
        return "x".join(map(str, value))
    return repr(value)


def _no_layer(loc: Loc, name: Any, layers: dict[str, Any]) -> Problem:
    return Problem(loc, f"this suite has no layer {name!r}", advice(name, layers, label="its layers"))


def _list(data: Any, key: str) -> list[Any]:
    found = data.get(key) if isinstance(data, dict) else None
    return found if isinstance(found, list) else []
