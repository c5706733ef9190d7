"""What a timed series of a subject amounts to: its status, and the figures that go with it."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from bitbench.execute.dispatch import dispatch_of, unmet
from bitbench.execute.jobs import Job, Visit, layer_spec, threads_at
from bitbench.layers import registry
from bitbench.measure.clock import Series
from bitbench.measure.neighbours import Neighbours
from bitbench.measure.roofline import Ruler
from bitbench.store.schema import Status
from bitbench.workloads.base import Subject


@dataclass(frozen=True)
class Judgement:
    status: Status
    reason: str
    metrics: dict[str, float]
    notes: list[str]
    dispatch: dict[str, str]


def judge(
    subject: Subject,
    series: Series,
    job: Job,
    ruler: Ruler,
    *,
    visit: Visit,
    layer: str,
    neighbours: Neighbours,
) -> Judgement:
    """Status and figures of a subject whose outputs were right before and after timing.

    Where several things are wrong, the one that says most about the others is told: another kernel
    than the promised one, then a measurement that is not what the point says, then a time that
    nothing can take.
    """
    seconds = median(series.samples_ns) / series.calls / 1e9
    metrics = {"cpu.utilisation": series.utilisation(threads_at(job, visit)), **subject.metrics()}
    if neighbours.count:
        metrics["cpu.neighbours"] = float(neighbours.count)
    notes: list[str] = []
    work = subject.work()
    too_fast = None
    if work is not None:
        reached = ruler.share(work, seconds)
        if reached is not None:
            metrics["roofline.share"] = reached
        level = ruler.level(work, seconds)
        if level.word == "impossible":
            too_fast = level.why
        elif level.word == "suspicious":
            notes.append(f"suspicious: {level.why}")
    spec = layer_spec(job, layer)
    kind = registry.get(spec.kind)
    status, reason = Status.OK, ""
    if other := unmet(kind, spec, visit.spec, subject.kernel) or subject.fallback():
        status, reason = Status.FALLBACK, other
    elif wrong := subject.invalid() or _deserted(neighbours) or too_fast:
        status, reason = Status.INVALID, wrong
    return Judgement(status, reason, metrics, notes, dispatch_of(kind, spec, subject.kernel))


def _deserted(neighbours: Neighbours) -> str | None:
    """Why the machine was less busy than the point says, or None."""
    if not neighbours.lost:
        return None
    return f"{neighbours.lost} of {neighbours.count} busy neighbours ended before the point did"
