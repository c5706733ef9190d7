"""What a machine can tell apart: the same code held against itself (A/A). Pure functions.

Two sides that run the same code differ from launch to launch (*spread*) and may differ on average,
because something about being base or head is not symmetrical (*bias*). The spread says how small a
slowdown can be seen and whether a case may gate at all; the bias is what a gate must not take for
a slowdown, however many launches show it.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bitbench.analysis.rounds import CONFIRMING, SCREENING
from bitbench.analysis.statistics import MIN_REPLICATES, launch_latency
from bitbench.analysis.student import student_quantile
from bitbench.analysis.verdicts import MINIMUM_EFFECT
from bitbench.store.calibration import Calibration, CaseCalibration
from bitbench.store.reader import RunData
from bitbench.store.schema import Case, Record, Status
from bitbench.store.writer import utc_now

MAX_SPREAD = 0.03
"""Launch-to-launch spread up to which a case may gate. Ten launches of 3 % leave a standard error of
1 %: a slowdown of 5 % is then still four of them beyond the minimum effect."""

BOUND = 0.99


def log_ratios(records: Iterable[Record]) -> dict[str, dict[int, float]]:
    """Natural logarithm of base time / head time, by case id and launch, where both sides are ok."""
    seconds: dict[tuple[str, int], dict[str, float]] = {}
    for record in records:
        if record.status is Status.OK and record.samples_ns and record.side:
            here = seconds.setdefault((record.case, record.launch), {})
            here[record.side] = launch_latency(record.samples_ns, record.calls)
    ratios: dict[str, dict[int, float]] = {}
    for (case, launch), sides in seconds.items():
        if "base" in sides and "head" in sides:
            ratios.setdefault(case, {})[launch] = math.log(sides["base"] / sides["head"])
    return ratios


def autocorrelation(values: Sequence[float]) -> float | None:
    """Correlation of each value with the next, -1 to 1; None for fewer than four or equal values.

    Notes
    -----
    Launches are taken for independent. Positive values say that the machine is slow or fast for
    longer than a launch, and that the intervals are too short.
    """
    if len(values) < 4:
        return None
    mean = statistics.fmean(values)
    total = math.fsum((value - mean) ** 2 for value in values)
    if total == 0.0:
        return None
    return math.fsum((a - mean) * (b - mean) for a, b in itertools.pairwise(values)) / total


def bias_spread(means: Sequence[float], errors: Sequence[float], df: int) -> float:
    """Standard deviation, over cases, of the true differences behind A/A ``means``.

    Notes
    -----
    Without bias the squares of mean / standard error follow Student's t squared and average
    df / (df - 2) (two degrees of freedom and fewer: no bias is told). What they exceed that by is
    bias: the value is the t^2 at which sum of mean^2 / (error^2 + t^2) meets its expectation, the
    estimate of Paule and Mandel (J. Res. NBS 87, 1982) with a known mean of zero. Zero where the
    means scatter no more than their errors explain.
    """
    pairs = [(m * m, e * e) for m, e in zip(means, errors, strict=True) if e > 0]
    if df <= 2 or not pairs:
        return 0.0
    expected = len(pairs) * df / (df - 2)

    def excess(variance: float) -> float:
        return math.fsum(m / (e + variance) for m, e in pairs) - expected

    if excess(0.0) <= 0.0:
        return 0.0
    low, high = 0.0, max(m for m, _ in pairs)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return math.sqrt(high)


def floor(mean: float, error: float, bias: float, df: int) -> float:
    """Relative difference that this case's two sides show without cause, as a 99 % bound; ``df``
    belongs to ``error``.

    Notes
    -----
    Given the bias's spread over cases, what a case's own mean says of its own bias is its mean
    shrunk by bias^2 / (bias^2 + error^2), with an error of its own. The noise of the mean is left
    out on purpose: the test that uses this bound accounts for noise itself, and counting it twice
    would blind the gate on exactly the cases that need care.
    """
    if bias == 0.0:
        return 0.0
    share = bias * bias / (bias * bias + error * error)
    return math.expm1(abs(mean) * share + student_quantile(BOUND, df) * math.sqrt(share) * error)


def sees(probability: float, threshold: float, spread: float, launches: int, family: int) -> float | None:
    """Smallest relative slowdown called *slower* with ``probability``, both rounds taken together.

    ``threshold`` is the relative slowdown that counts as none, ``family`` the cases judged together:
    the only slow one among them meets the screening level divided by their number. None where even
    a doubled time would not be seen.

    Notes
    -----
    The noncentral t distribution by the normal approximation of Johnson and Welch (Biometrika 31,
    1940). The variances are not pooled here, so that the figure is what the case can do alone.
    """
    df = launches - 1
    error = spread / math.sqrt(launches)
    first = student_quantile(1 - SCREENING / max(1, family), df)
    second = student_quantile(1 - CONFIRMING, df)

    def power(slowdown: float) -> float:
        beyond = math.log1p(slowdown) - math.log1p(threshold)
        if error == 0.0:
            return 1.0 if beyond > 0 else 0.0
        return _reaches(beyond / error, first, df) * _reaches(beyond / error, second, df)

    low, high = threshold, 1.0
    if power(high) < probability:
        return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= probability else (middle, high)
    return high


def equivalence(offset: float, spread: float, launches: int) -> float:
    """Relative difference within which ``launches`` launches show sameness 99 times of 100, of two
    sides that differ by ``offset``: the interval at 99 % and the scatter of its middle fit inside."""
    df = launches - 1
    half = student_quantile((1 + BOUND) / 2, df)
    return math.expm1(math.log1p(offset) + 2 * half * spread / math.sqrt(launches))


def calibrate_run(
    run: RunData,
    *,
    cases: Sequence[Case],
    gateable: Iterable[str],
    machine: dict[str, Any],
    launches: int,
) -> Calibration:
    """What ``run``, both sides of which are the same code, says about each of ``cases``.

    ``gateable`` are the cases that may gate if they are quiet enough, ``machine`` is what the
    calibration holds on, ``launches`` the number that a gate is to make.
    """
    failed: dict[str, str] = {}
    for record in run.records:
        if record.status is not Status.OK:
            failed.setdefault(record.case, f"{record.status.value}: {record.reason}")
    labels = {case.id: case.label for case in cases}
    found, bias = calibrate_cases(labels, log_ratios(run.records), failed, gateable=gateable)
    serial = [case.autocorrelation for case in found.values() if case.autocorrelation is not None]
    return Calibration(
        created=utc_now(),
        suite=str(run.info.suite["name"]),
        machine=machine,
        launches=launches,
        code=run.info.code.digest,
        bias=bias,
        autocorrelation=statistics.fmean(serial) if serial else None,
        cases=found,
    )


def calibrate_cases(
    labels: Mapping[str, str],
    ratios: Mapping[str, Mapping[int, float]],
    failures: Mapping[str, str],
    *,
    gateable: Iterable[str],
) -> tuple[dict[str, CaseCalibration], float]:
    """Calibrations by case id, and the bias's spread over cases.

    ``labels`` names every timed case, ``ratios`` is what :func:`log_ratios` gave, ``failures`` says
    why a case has none, ``gateable`` are the cases that would gate together if admitted.
    """
    values = {case: [found[n] for n in sorted(found)] for case, found in ratios.items()}
    known = {case: found for case, found in values.items() if len(found) >= MIN_REPLICATES and case in labels}
    spreads = {case: statistics.stdev(found) for case, found in known.items()}
    errors = {case: spreads[case] / math.sqrt(len(found)) for case, found in known.items()}
    means = {case: statistics.fmean(found) for case, found in known.items()}
    df = min((len(found) for found in known.values()), default=1) - 1
    bias = bias_spread(list(means.values()), list(errors.values()), df)
    quiet = {case for case, spread in spreads.items() if spread <= MAX_SPREAD and case not in failures}
    family = len(quiet & set(gateable))
    cases = {}
    for case, label in labels.items():
        if case not in known:
            count = len(values.get(case, ()))
            why = failures.get(case) or f"{count} of the {MIN_REPLICATES} launches that a spread needs"
            cases[case] = CaseCalibration(label=label, launches=count, why=why)
            continue
        count = len(known[case])
        offset = floor(means[case], errors[case], bias, count - 1)
        threshold = max(MINIMUM_EFFECT, offset)
        cases[case] = CaseCalibration(
            label=label,
            launches=count,
            mean=means[case],
            spread=spreads[case],
            autocorrelation=autocorrelation(known[case]),
            floor=offset,
            equivalence=equivalence(offset, spreads[case], count),
            sees_80=sees(0.80, threshold, spreads[case], count, family),
            sees_95=sees(0.95, threshold, spreads[case], count, family),
            admitted=case in quiet,
            why=failures.get(case) or ("" if case in quiet else too_noisy(spreads[case])),
        )
    return cases, bias


def too_noisy(spread: float) -> str:
    """``spread 4.1 % exceeds 3 %``"""
    return f"spread {100 * spread:.1f} % exceeds {100 * MAX_SPREAD:g} %"


def _reaches(noncentrality: float, quantile: float, df: int) -> float:
    """P(t > quantile) of a noncentral t."""
    bent = quantile * (1 - 1 / (4 * df))
    return statistics.NormalDist().cdf((noncentrality - bent) / math.sqrt(1 + quantile**2 / (2 * df)))
