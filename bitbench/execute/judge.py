"""What a timed series of a subject amounts to: its status, and the figures that go with it."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from bitbench.execute.jobs import Job
from bitbench.measure.clock import Series
from bitbench.measure.roofline import Ruler
from bitbench.store.schema import Status
from bitbench.workloads.base import Subject


@dataclass(frozen=True)
class Judgement:
    status: Status
    reason: str
    metrics: dict[str, float]


def judge(subject: Subject, series: Series, job: Job, ruler: Ruler) -> Judgement:
    """Status and figures of a subject whose outputs were right before and after timing."""
    seconds = median(series.samples_ns) / series.calls / 1e9
    metrics = {"cpu.utilisation": series.utilisation(job.threads), **subject.metrics()}
    work = subject.work()
    status, reason = Status.OK, ""
    if work is not None:
        reached = ruler.share(work, seconds)
        if reached is not None:
            metrics["roofline.share"] = reached
        too_fast = ruler.impossible(work, seconds)
        if too_fast:
            status, reason = Status.INVALID, too_fast
    invalid, fallback = subject.invalid(), subject.fallback()
    if invalid:
        status, reason = Status.INVALID, invalid
    if fallback:
        status, reason = Status.FALLBACK, fallback
    return Judgement(status, reason, metrics)
