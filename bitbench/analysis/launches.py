"""From a run with slowed twins of its layers to launches, and from launches to a pool to draw from.

``bitbench rates`` measures every quantised layer as it is and once for each slowdown, under the names
``ternary``, ``ternary+5`` and ``ternary+10``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bitbench.analysis.compare import is_control
from bitbench.analysis.moderation import like
from bitbench.analysis.rates import Pool
from bitbench.analysis.statistics import launch_latency
from bitbench.errors import ToolError, UserError
from bitbench.store.launches import LaunchPool, LaunchTimes, Role
from bitbench.store.reader import RunData
from bitbench.store.schema import Case, Status
from bitbench.workloads.self_proof import NULL, SLOWER

SLOWDOWNS = (0.05, 0.10)

Chosen = tuple[Case, str, float, Role]
"""A case, the label of what it is a twin of, what was put in, and what it is for."""


def twin(layer: str, slowdown: float) -> str:
    """``ternary+5`` for a slowdown of 5 %."""
    return f"{layer}+{100 * slowdown:g}"


def launches_of(
    run: RunData, machine: Mapping[str, Any], slowdowns: Sequence[float] = SLOWDOWNS
) -> LaunchPool:
    """The launches of ``run`` in which everything was measured on both sides.

    A case that failed in any launch, or one of whose slowed twins did, is left out, as a calibration
    does not admit it.

    Raises :class:`UserError` where the run has no slowed twins, :class:`ToolError` where nothing, or not
    the gate's own proof, was measured without a failure.
    """
    if not run.records:
        raise ToolError(f"run {run.info.run} holds no measurement", "make another with: bitbench rates SUITE")
    planned = {(case.point, case.layer): case for case in run.cases if case.phase == "timed"}
    twinned = [c for (point, layer), c in planned.items() if (point, twin(layer, slowdowns[0])) in planned]
    if not twinned:
        raise UserError(
            f"{run.path} holds no slowed twins of its layers: it is not a run of `bitbench rates`",
            "make one with: bitbench rates suites/gate.yaml",
        )
    seconds = _seconds(run)
    whole = {place: case for place, case in planned.items() if case.id in seconds}
    chosen, left_out = _chosen(whole, twinned, run.info.suite["layers"], slowdowns)
    missing = {"case", "null", "slower"} - {role for *_, role in chosen}
    if missing:
        what = "the gate's own proof" if "case" not in missing else "no case with its slowed twins"
        verb = "did not go" if "case" not in missing else "went"
        raise ToolError(
            f"{run.path} cannot be judged: {what} {verb} through all launches without a failure",
            f"see the records in {run.path}",
        )
    order = sorted(set.intersection(*(set(seconds[case.id]) for case, *_ in chosen)))
    code = run.info.sides["head"]
    return LaunchPool(
        created=run.info.created,
        suite=run.info.suite_path,
        code=code.label or code.commit,
        machine=dict(machine),
        launches=len(order),
        left_out=left_out,
        times=[
            LaunchTimes(
                label=label,
                role=role,
                slowdown=slowdown,
                like=[str(part) for part in _parts(like(case))],
                base_ns=[round(seconds[case.id][i]["base"], 2) for i in order],
                head_ns=[round(seconds[case.id][i]["head"], 2) for i in order],
            )
            for case, label, slowdown, role in chosen
        ],
    )


def _seconds(run: RunData) -> dict[str, dict[int, dict[str, float]]]:
    """Nanoseconds of one call by case, launch and side: of cases that never failed, and of launches in
    which both sides were measured."""
    failed = {record.case for record in run.records if record.status is not Status.OK}
    found: dict[str, dict[int, dict[str, float]]] = {}
    for record in run.records:
        if record.case not in failed and record.samples_ns and record.side:
            here = found.setdefault(record.case, {}).setdefault(record.launch, {})
            here[record.side] = 1e9 * launch_latency(record.samples_ns, record.calls)
    both = {
        case: {launch: sides for launch, sides in launches.items() if len(sides) == 2}
        for case, launches in found.items()
    }
    return {case: launches for case, launches in both.items() if launches}


def _chosen(
    whole: Mapping[tuple[str, str], Case],
    twinned: Sequence[Case],
    layers: Mapping[str, Mapping[str, Any]],
    slowdowns: Sequence[float],
) -> tuple[list[Chosen], list[str]]:
    """What is kept of the cases that went well, and the labels of those with twins that are not."""
    chosen: list[Chosen] = []
    left_out = []
    for case in twinned:
        own = [(case.point, case.layer), *((case.point, twin(case.layer, s)) for s in slowdowns)]
        if all(place in whole for place in own):
            put_in = (0.0, *slowdowns)
            chosen += [(whole[p], case.label, s, "case") for p, s in zip(own, put_in, strict=True)]
        else:
            left_out.append(case.label)
    for case in whole.values():
        if case.layer == NULL:
            chosen.append((case, case.label, 0.0, "null"))
        elif case.layer == SLOWER:
            chosen.append((case, case.label, float(case.params["slowdown"]), "slower"))
        elif is_control(case, layers):
            chosen.append((case, case.label, 0.0, "control"))
    return chosen, left_out


def pool_of(launches: LaunchPool) -> Pool:
    """Logarithms of base / head by case label.

    Raises :class:`UserError` where the launches lack a twin or a half of the proof.
    """
    logs = {
        (entry.role, entry.label, entry.slowdown): [
            math.log(base / head) for base, head in zip(entry.base_ns, entry.head_ns, strict=True)
        ]
        for entry in launches.times
    }
    slowdowns = sorted({s for role, _, s in logs if role == "case" and s})
    labels = [label for role, label, s in logs if role == "case" and not s]
    proof = {role: found for (role, _, _), found in logs.items() if role in ("null", "slower")}
    wanted = {("case", label, s) for label in labels for s in slowdowns}
    if not wanted or not wanted <= logs.keys() or len(proof) != 2:
        raise UserError(
            f"the launches of {launches.suite} are not whole: a slowed twin or the proof is missing",
            "measure them again: bitbench rates suites/gate.yaml",
        )
    return Pool(
        null={label: logs["case", label, 0.0] for label in labels},
        slowed={s: {label: logs["case", label, s] for label in labels} for s in slowdowns},
        like={entry.label: tuple(entry.like) for entry in launches.times},
        proof_null=proof["null"],
        proof_slower=proof["slower"],
        controls={label: found for (role, label, _), found in logs.items() if role == "control"},
    )


def _parts(key: object) -> tuple[object, ...]:
    return key if isinstance(key, tuple) else (key,)
