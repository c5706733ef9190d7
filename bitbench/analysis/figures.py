"""The figures of a run that a baseline holds: bytes, accuracy, and ratios to the suite's baseline layer.

Times themselves stay out: they say as much of the machine as of the code.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from math import exp, log

from bitbench.analysis.statistics import Series
from bitbench.analysis.summary import CaseSummary, Summary, summarise
from bitbench.errors import UserError
from bitbench.store.figures import Figure, FigureSet, machine_of
from bitbench.store.metrics import METRICS
from bitbench.store.reader import RunData
from bitbench.workloads import self_proof

ACCURACY_TOLERANCES = {
    "quality.perplexity": 0.001,
    "quality.accuracy": 0.005,
    "training.bits_per_byte": 0.02,
    "training.accuracy": 0.005,
}
"""Accuracy figures that a baseline holds, and the relative difference that counts as none. The same
weights and text give the same perplexity but for the order of sums, which processors and versions of
torch choose differently, and the same accuracy but for the images whose two best classes are nearly
tied; training amplifies that step by step."""

RATIO = "time.speedup"


def figures_of_run(run: RunData) -> FigureSet:
    """Everything of ``run`` that a baseline holds. Of a run with two sides, the head's first round.

    Raises :class:`UserError` where the run holds no such figure.
    """
    found = figures_of_summary(summarise(head_of(run), judged=False))
    if not found.figures:
        raise UserError(
            f"run {run.info.run} holds no figure that a baseline could keep",
            "none of its cases ended ok with bytes, accuracy or a ratio; go on with bitbench run --resume",
        )
    return found


def figures_of_summary(summary: Summary) -> FigureSet:
    """The same of a run that is summarised already; empty where nothing ended well."""
    figures = {}
    for found in summary.cases:
        own = _figures(found, summary.baseline)
        if own and found.case.workload != self_proof.KIND:
            figures[found.case.label] = own
    info = summary.run.info
    machine = machine_of(info.environment, info.threads, info.code.native)
    return FigureSet(source=info.suite_path or str(info.suite["name"]), machine=machine, figures=figures)


def lost(summary: Summary) -> dict[str, str]:
    """By label, why a case has no figures: ``crash: the worker died of SIGSEGV``."""
    return {found.case.label: f"{found.status}: {found.reason}" for found in summary.cases if not found.ok}


def head_of(run: RunData) -> RunData:
    """``run`` itself; of a run with two sides, the head's first round as if it had been run alone."""
    if not run.info.sides:
        return run
    launches = {case.id: case.launches for case in run.cases}
    records = [
        record.model_copy(update={"side": ""})
        for record in run.records
        if record.side == "head" and record.launch < launches.get(record.case, 0)
    ]
    info = run.info.model_copy(update={"sides": {}, "purpose": "run"})
    return replace(run, info=info, records=records)


def _figures(found: CaseSummary, baseline: str) -> dict[str, Figure]:
    figures = {}
    for metric, series in found.series.items():
        if series.scale == "exact" and METRICS[metric].unit == "B":
            figures[metric] = Figure(kind="exact", value=series.estimate().value)
        elif metric in ACCURACY_TOLERANCES:
            tolerance = ACCURACY_TOLERANCES[metric]
            figures[metric] = Figure(kind="accuracy", value=series.estimate().value, tolerance=tolerance)
        elif metric == RATIO and found.case.layer != baseline:
            figures[metric] = time_figure(series)
    return figures


def time_figure(series: Series) -> Figure:
    """A ratio measured launch by launch; ``value`` is its geometric mean."""
    logs = [log(value) for value in series.values.values()]
    mean = statistics.fmean(logs)
    spread = statistics.stdev(logs) if len(logs) > 1 else None
    return Figure(kind="time", value=exp(mean), log_mean=mean, log_sd=spread, launches=len(logs))
