"""From the records of a run to one summary a case: status, figures over replicates, verdicts."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bitbench.analysis.moderation import Prior, common_priors, like
from bitbench.analysis.remarks import remarks
from bitbench.analysis.statistics import (
    DISPLAY_CONFIDENCE,
    Estimate,
    Scale,
    Series,
    launch_latency,
    launch_mean,
)
from bitbench.analysis.verdicts import Verdict, correct, judge, not_comparable
from bitbench.store.metrics import MEASURED_BYTES, METRICS
from bitbench.store.reader import RunData, collector_paused
from bitbench.store.schema import PROMPT_TOKENS, Case, Record, Status

MISSING = "missing"
"""Status of a case without any record: the run was interrupted before it."""

# Worst first. A case carries the worst status of its launches: averaging only the launches that
# went well would hide exactly the ones that are slow or wrong.
_SEVERITY = [
    Status.INCORRECT,
    Status.FALLBACK,
    Status.INVALID,
    Status.CRASH,
    Status.OOM,
    Status.TIMEOUT,
    Status.ERROR,
    Status.UNSUPPORTED,
]
_LOG_UNITS = {"s", "x", "tokens/s", "images/s", "B"}


@dataclass(frozen=True)
class Failure:
    """One record that is not ``ok``."""

    launch: int
    status: str
    reason: str


@dataclass(frozen=True)
class CaseSummary:
    """What a run says about one case."""

    case: Case
    status: str
    """``ok``, another :class:`~bitbench.store.schema.Status`, or ``missing``."""
    reason: str
    done: int
    """Records found, of ``case.launches`` wanted."""
    failures: tuple[Failure, ...]
    series: Mapping[str, Series]
    """Figures by metric name; empty unless every record is ``ok``."""
    kernels: tuple[str, ...] = ()
    verdict: Verdict | None = None
    """Against the suite's baseline; None for the baseline itself, untimed cases and quick runs."""
    verdict_best_float: Verdict | None = None
    """Against the fastest ``nn.Linear`` dtype at the same point."""
    shared_from: str = ""
    """Id of the case that computed this accuracy, where numerics are equal."""
    notes: tuple[str, ...] = ()
    """What a reader should know of a result that stands (:mod:`bitbench.analysis.remarks`)."""

    @property
    def ok(self) -> bool:
        return self.status == Status.OK

    @property
    def complete(self) -> bool:
        return self.done >= self.case.launches

    def value(self, metric: str, confidence: float = DISPLAY_CONFIDENCE) -> Estimate | None:
        """Estimate of ``metric`` (a name in :data:`~bitbench.store.metrics.METRICS`), or None."""
        series = self.series.get(metric)
        return None if series is None else series.estimate(confidence)


@dataclass(frozen=True)
class Summary:
    """All cases of a run in plan order, with what is needed to find them."""

    run: RunData
    cases: list[CaseSummary]
    baseline: str
    layers: dict[str, dict[str, Any]]
    """The suite's layers in suite order: name to description."""
    best_float: dict[str, str] = field(default_factory=dict)
    """Point id to the fastest ``kind: linear`` layer there."""

    @property
    def quick(self) -> bool:
        return self.run.info.quick

    def select(
        self, workload: str | None = None, layer: str | None = None, **params: Any
    ) -> list[CaseSummary]:
        """Cases of a workload and layer whose parameters have these values (None: absent)."""
        return list(self._matching(workload, layer, params))

    def one(self, workload: str, layer: str, **params: Any) -> CaseSummary | None:
        """The first such case, or None."""
        return next(self._matching(workload, layer, params), None)

    def _matching(
        self, workload: str | None, layer: str | None, params: dict[str, Any]
    ) -> Iterator[CaseSummary]:
        for summary in self.cases:
            case = summary.case
            if workload not in (None, case.workload) or layer not in (None, case.layer):
                continue
            if all(case.params.get(key) == value for key, value in params.items()):
                yield summary


@collector_paused()
def summarise(run: RunData, *, judged: bool = True) -> Summary:
    """Summary of a run, finished or not; without verdicts where not ``judged``.

    Notes
    -----
    Ratios are formed launch by launch against the layer measured beside this one at the same
    point. The fastest float layer is chosen per point by its mean over the launches; being the
    minimum of a few noisy numbers, it is a slightly hard opponent, never an easy one.

    Of a run that measured two versions in turns, the head's first round is summarised: the
    confirmation round measured again only what stood out, and would colour the figures.

    Verdicts rest on variances pooled over like cases, and each kind of verdict is corrected over
    all cases of the run.
    """
    suite = run.info.suite
    paired = bool(run.info.sides)
    launches = {case.id: case.launches for case in run.cases} if paired else {}
    layers: dict[str, dict[str, Any]] = dict(suite["layers"])
    baseline = str(suite["baseline"])
    records: dict[str, dict[int, Record]] = {}
    for record in run.records:
        if not paired or (record.side == "head" and record.launch < launches.get(record.case, 0)):
            records.setdefault(record.case, {})[record.launch] = record
    plain = [case_alone(case, records.get(case.id, {})) for case in run.cases]

    points: dict[str, dict[str, CaseSummary]] = {}
    for summary in plain:
        points.setdefault(summary.case.point, {})[summary.case.layer] = summary
    best_float = {
        point: name
        for point, beside in points.items()
        if (name := _fastest_float(beside, layers)) is not None
    }
    compared = [
        _with_ratios(summary, points[summary.case.point], baseline, best_float.get(summary.case.point))
        for summary in plain
    ]
    if judged and not run.info.quick:
        compared = _judged(compared, points, baseline, best_float)
    return Summary(run, compared, baseline, layers, best_float)


def case_alone(case: Case, records: Mapping[int, Record]) -> CaseSummary:
    """One case before any comparison, from its record of each launch."""
    ordered = [records[launch] for launch in sorted(records)]
    if not ordered:
        return CaseSummary(case, MISSING, "not measured: the run ended before it", 0, (), {})
    failed = [record for record in ordered if record.status is not Status.OK]
    kernels = tuple(dict.fromkeys(record.kernel for record in ordered if record.kernel))
    failures = tuple(Failure(record.launch, record.status.value, record.reason) for record in failed)
    shared_from = next((record.shared_from for record in ordered if record.shared_from), "")
    if failed:
        worst = min(failed, key=lambda record: _SEVERITY.index(record.status))
        return CaseSummary(
            case,
            worst.status.value,
            worst.reason,
            len(ordered),
            failures,
            {},
            kernels,
            shared_from=shared_from,
        )
    return CaseSummary(
        case,
        Status.OK.value,
        "",
        len(ordered),
        (),
        _series(case, ordered),
        kernels,
        shared_from=shared_from,
        notes=remarks(ordered),
    )


def _series(case: Case, records: list[Record]) -> dict[str, Series]:
    series: dict[str, Series] = {}
    timed = {r.launch: launch_latency(r.samples_ns, r.calls) for r in records if r.samples_ns}
    if timed:
        series["time.latency"] = Series(timed, "log")
        mean = {r.launch: launch_mean(r.samples_ns, r.calls) for r in records if r.samples_ns}
        series["time.mean"] = Series(mean, "log")
        if case.workload == "decode":  # one call decodes one token, or reads one prompt
            prompt = case.params.get(PROMPT_TOKENS)
            rate = "decode.tokens_per_second" if prompt is None else "decode.prefill_tokens_per_second"
            series[rate] = Series({i: (prompt or 1) / s for i, s in timed.items()}, "log")
        if case.workload in ("classify", "image_accuracy"):  # one call classifies a batch
            rate, batch = "inference.images_per_second", case.params["batch"]
            series[rate] = Series({i: batch / s for i, s in timed.items()}, "log")
    names = dict.fromkeys(name for record in records for name in record.metrics)
    for name in names:
        values = {r.launch: r.metrics[name] for r in records if name in r.metrics}
        series[name] = Series(values, _scale(name, case, values))
    for record in records:
        if nll := record.replicates.get("quality.nll"):
            # The geometric mean over documents of exp(nll) is the perplexity: exp(mean nll).
            series["quality.perplexity"] = Series({i: _exp(x) for i, x in enumerate(nll)}, "log")
            series["quality.nll"] = Series(dict(enumerate(nll)), "linear")
        if right := record.replicates.get("quality.right"):
            series["quality.accuracy"] = Series(dict(enumerate(right)), "share")
    return series


def _exp(x: float) -> float:
    return math.exp(x) if x < 709.0 else math.inf


def _scale(name: str, case: Case, values: Mapping[int, float]) -> Scale:
    """The scale on which a recorded figure scatters. Bytes are counted; only the high-water
    mark of a process is measured."""
    measured = name in MEASURED_BYTES
    if name in ("quality.tokens", "quality.images") or (
        not measured and (name.startswith("memory.") or case.replicate == "exact")
    ):
        return "exact"
    if METRICS[name].unit in _LOG_UNITS and all(value > 0 for value in values.values()):
        return "log"
    return "linear"


def _fastest_float(beside: dict[str, CaseSummary], layers: dict[str, dict[str, Any]]) -> str | None:
    latencies = {
        name: estimate.value
        for name, summary in beside.items()
        if layers.get(name, {}).get("kind") == "linear"
        and (estimate := summary.value("time.latency")) is not None
    }
    return min(latencies, key=lambda name: latencies[name]) if latencies else None


def _with_ratios(
    summary: CaseSummary, beside: Mapping[str, CaseSummary], baseline: str, best_float: str | None
) -> CaseSummary:
    """Add the ratios to the layers measured at the same point."""
    series = dict(summary.series)
    base = beside.get(baseline)
    if base is not None:
        _add_ratio(series, "time.speedup", base.series, series, "time.latency")
        _add_ratio(series, "quality.perplexity_ratio", series, base.series, "quality.perplexity")
        _add_change(series, "quality.accuracy_change", base.series, "quality.accuracy")
    if best_float is not None:
        _add_ratio(series, "time.speedup_best_float", beside[best_float].series, series, "time.latency")
    return replace(summary, series=series)


def _judged(
    cases: list[CaseSummary],
    points: Mapping[str, Mapping[str, CaseSummary]],
    baseline: str,
    best_float: Mapping[str, str],
) -> list[CaseSummary]:
    """Add the verdicts on every timed case, against the baseline and against the fastest float layer.

    The two are a family each; variances are pooled over like cases of the family, where those of
    one point count as one: they share the noise of the layer they are compared with.
    """
    timed = [i for i, found in enumerate(cases) if found.case.phase == "timed"]
    opponents = dict.fromkeys(timed, baseline)
    fastest = {i: best_float[cases[i].case.point] for i in timed if cases[i].case.point in best_float}
    verdicts = _verdicts(cases, points, opponents, "time.speedup")
    best = _verdicts(cases, points, fastest, "time.speedup_best_float")
    return [
        replace(found, verdict=verdicts.get(i), verdict_best_float=best.get(i))
        for i, found in enumerate(cases)
    ]


def _verdicts(
    cases: list[CaseSummary],
    points: Mapping[str, Mapping[str, CaseSummary]],
    opponents: Mapping[int, str],
    metric: str,
) -> dict[int, Verdict]:
    """Verdicts by position in ``cases``, each against the layer named for it; none against itself."""
    rivals = {i: name for i, name in opponents.items() if cases[i].case.layer != name}
    common = common_priors(
        (
            like(cases[i].case),
            cases[i].case.point,
            [math.log(value) for value in cases[i].series[metric].values.values()],
        )
        for i in rivals
        if metric in cases[i].series
    )
    found = [
        _verdict(cases[i], cases[i].series.get(metric), points[cases[i].case.point].get(name), name, common)
        for i, name in rivals.items()
    ]
    return dict(zip(rivals, correct(found), strict=True))


def _add_ratio(
    into: dict[str, Series],
    name: str,
    numerator: Mapping[str, Series],
    denominator: Mapping[str, Series],
    metric: str,
) -> None:
    above, below = numerator.get(metric), denominator.get(metric)
    ratio = None if above is None or below is None else above.ratio_to(below)
    # A perplexity that is infinite leaves a ratio of zero or none: no figure.
    if ratio is not None and all(value > 0 for value in ratio.values.values()):
        into[name] = ratio


def _add_change(into: dict[str, Series], name: str, base: Mapping[str, Series], metric: str) -> None:
    own, other = into.get(metric), base.get(metric)
    change = None if own is None or other is None else own.minus(other)
    if change is not None:
        into[name] = change


def _verdict(
    summary: CaseSummary,
    speedup: Series | None,
    other: CaseSummary | None,
    against: str,
    common: Mapping[Hashable, Prior | None],
) -> Verdict:
    if not summary.ok:
        return not_comparable(against, f"this case is {summary.status}: {summary.reason}")
    if other is None:
        return not_comparable(against, f"{against} was not measured at this point")
    if not other.ok:
        return not_comparable(against, f"{against} is {other.status} here: {other.reason}")
    if speedup is None:
        return not_comparable(against, f"no launch measured both this layer and {against}")
    return judge(speedup, against, prior=common.get(like(summary.case)))
