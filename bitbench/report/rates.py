"""The gate's error rates as a Markdown page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tabulate import tabulate

from bitbench.analysis.rates import Rate, Rates

Z95 = 1.959964


def wilson(rate: Rate) -> tuple[float, float]:
    """Interval of a share at 95 %, sound at 0 and 1 too (Wilson, JASA 22, 1927).

    Resampled gates overlap, so this counts them for more than they are worth: it bounds the error
    of resampling, not of the pool itself.
    """
    if not rate.trials:
        return 0.0, 1.0
    n, p, z2 = rate.trials, rate.share, Z95 * Z95
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def page(
    found: Sequence[Rates],
    *,
    launches: int,
    source: str,
    machine: Mapping[str, object],
) -> str:
    """Everything about ``found``, one :class:`Rates` a way of drawing, from a pool of ``launches``."""
    rows = []
    for rates in found:
        rows.append(["A/A: gate calls something slower", rates.draw, _rate(rates.false_alarms)])
        rows.append(["A/A: a control moves, no time decides", rates.draw, _rate(rates.contaminated)])
        rows.append(["A/A: gate cannot prove itself", rates.draw, _rate(rates.unproven)])
        rows.append(["A/A: gate needs its second round", rates.draw, _rate(rates.confirmed)])
        for slowdown, rate in rates.alone.items():
            rows.append([f"+{100 * slowdown:g} % in one case: it is called slower", rates.draw, _rate(rate)])
        for slowdown, rate in rates.together.items():
            rows.append(
                [f"+{100 * slowdown:g} % in all cases: each is called slower", rates.draw, _rate(rate)]
            )
    first = found[0]
    header = ["case", "admitted", *(f"+{100 * s:g} % alone" for s in first.alone_by_case)]
    cases = [
        [
            case,
            _percent(first.admitted[case].share),
            *(_rate(by_case[case]) for by_case in first.alone_by_case.values()),
        ]
        for case in first.admitted
    ]
    told = ", ".join(f"{key} {value}" for key, value in machine.items() if value not in (None, "", []))
    return "\n".join(
        [
            "# How often the gate errs",
            "",
            f"{sentence(first, launches)}.",
            "",
            f"{launches} stored launches of `{source}`, resampled into {first.gates} gates of "
            f"{first.launches} launches a round, each with a calibration of its own. *consecutive*: rounds "
            "of successive launches, as a gate makes them; *scattered*: drawn as if launches were "
            "independent.",
            "",
            f"Machine: {told}",
            "",
            tabulate(rows, ["event", "draw", "rate (95 % interval of the resampling)"], tablefmt="github"),
            "",
            f"By case ({first.draw} draw):",
            "",
            tabulate(cases, header, tablefmt="github"),
            "",
        ]
    )


def _rate(rate: Rate) -> str:
    if not rate.trials:
        return "never tried"
    low, high = wilson(rate)
    return f"{_percent(rate.share)} ({_percent(low)} to {_percent(high)}; {rate.hits} of {rate.trials})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def sentence(found: Rates, launches: int) -> str:
    """The rates in one line, as the README quotes them."""
    seen = ", ".join(f"+{100 * s:g} % in {_percent(rate.share)} of them" for s, rate in found.alone.items())
    alarms = _percent(found.false_alarms.share)
    return (
        f"{launches} stored launches resampled into {found.gates:,} gates: {alarms} of them called something "
        f"slower where nothing was, and a slowdown of one case was found: {seen}"
    )
