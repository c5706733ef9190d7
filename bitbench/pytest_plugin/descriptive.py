"""The descriptive statistics that an entry of a pytest-benchmark file holds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def describe(data: Sequence[float]) -> dict[str, Any]:
    """The fields of pytest-benchmark's ``stats`` for times in seconds, one a round.

    Quartiles are those of the inclusive method (linear between the values, as numpy's default);
    outliers are values beyond one standard deviation, and beyond 1.5 interquartile ranges outside the
    quartiles.
    """
    values = sorted(data)
    mean = statistics.fmean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    fence = 1.5 * (high - low)
    inside = [value for value in values if low - fence <= value <= high + fence]
    far = sum(abs(value - mean) > deviation for value in values)
    return {
        "min": values[0],
        "max": values[-1],
        "mean": mean,
        "stddev": deviation,
        "rounds": len(values),
        "median": middle,
        "iqr": high - low,
        "q1": low,
        "q3": high,
        "iqr_outliers": len(values) - len(inside),
        "stddev_outliers": far,
        "outliers": f"{far};{len(values) - len(inside)}",
        "ld15iqr": inside[0],
        "hd15iqr": inside[-1],
        "ops": len(values) / sum(values),
        "total": sum(values),
        "data": list(data),
        "iterations": 1,
    }
