"""Figures as text: sensible significant digits, readable units, intervals on the same scale."""

from __future__ import annotations

import math
import re

from bitbench.analysis.statistics import Estimate

ABSENT = "n/a"
_TIME = [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")]
_BYTES = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B")]
_PLAIN_FROM, _PLAIN_BELOW = 1e-4, 1e5
"""Outside, numbers are written with an exponent."""
_WIDE = 10
"""An interval that reaches this many times beyond its value says little more than that it is wide."""
_MANY_IMAGES = 1000
_MIN_DIGITS, _MAX_DIGITS = 3, 4


def quantity(value: float, unit: str = "", digits: int = 3) -> str:
    """``0.0000123, "s"`` -> ``12.3 µs``; ``19.883, "x", 4`` -> ``19.88x``."""
    if math.isnan(value):
        return ABSENT
    factor, suffix = _scaled(value, unit)
    return f"{plain(value / factor, digits)}{suffix}"


def percent(share: float) -> str:
    """``0.951`` -> ``95 %``."""
    return ABSENT if math.isnan(share) else f"{100 * share:.0f} %"


def plain(value: float, digits: int = 3) -> str:
    """A number with ``digits`` significant digits; without an exponent where it stays readable."""
    if math.isinf(value) or math.isnan(value):
        return str(value)
    if value != 0 and not _PLAIN_FROM <= abs(value) < _PLAIN_BELOW:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.{_decimals(value, digits)}f}"


def estimate(found: Estimate | None, unit: str = "") -> str:
    """The value alone, with as many digits as its interval supports."""
    if found is None:
        return ABSENT
    text = quantity(found.value, unit, _digits(found))
    if found.exact:  # a count has no uncertain digits for zeros to stand for
        text = re.sub(r"(\.\d*?)0+(?=\D|$)", r"\1", text).replace(". ", " ").replace(".x", "x").rstrip(".")
    return text


def interval(found: Estimate | None, unit: str = "") -> str:
    """``[12.1, 12.6]`` in the unit :func:`estimate` chose. Where the replicates are too few for an
    interval, their range, which looks different and says so: ``n=2: 12.1 to 12.6``. Empty where
    there is neither."""
    if found is None:
        return ""
    factor, _ = _scaled(found.value, unit)
    if found.low is None or found.high is None:
        if found.least is None or found.most is None:
            return ""
        return f"n={found.n}: {plain(found.least / factor)} to {plain(found.most / factor)}"
    if found.high > _WIDE * abs(found.value) or found.low < found.value / _WIDE:
        # Each bound by itself: on a common number of decimals one of them would be a row of digits.
        return f"[{plain(found.low / factor, 2)}, {plain(found.high / factor, 2)}]"
    digits = _digits(found)
    if not _PLAIN_FROM <= abs(found.value / factor) < _PLAIN_BELOW:
        return f"[{plain(found.low / factor, digits)}, {plain(found.high / factor, digits)}]"
    decimals = _decimals(found.value / factor, digits)
    return f"[{found.low / factor:,.{decimals}f}, {found.high / factor:,.{decimals}f}]"


def with_interval(found: Estimate | None, unit: str = "") -> str:
    """``12.3 µs [12.1, 12.6]``, ``12.3 µs (n=2: 12.1 to 12.6)``."""
    beside = interval(found, unit)
    if found is not None and not found.has_interval and beside:
        beside = f"({beside})"
    return f"{estimate(found, unit)} {beside}".strip()


def in_percent(found: Estimate) -> str:
    """A share of images: ``0.9422`` of ten thousand -> ``94.22 %``."""
    return f"{100 * found.value:.{_of_images(found)}f} %"


def in_points(found: Estimate) -> str:
    """The difference of two such shares: ``-0.0123`` -> ``-1.23 points``."""
    return f"{100 * found.value:+.{_of_images(found)}f} points"


def percent_interval(found: Estimate) -> str:
    """``[93.75, 94.66]``, of a share or of a difference; empty where there is none."""
    if found.low is None or found.high is None:
        return ""
    decimals = _of_images(found)
    return f"[{100 * found.low:.{decimals}f}, {100 * found.high:.{decimals}f}]"


def _of_images(found: Estimate) -> int:
    """Decimals of a percentage that so many images support."""
    return 2 if found.n >= _MANY_IMAGES else 1


def spread(found: Estimate | None) -> str:
    """Half the interval as a share of the value, ``±0.4 %``: short where space is. Empty without one."""
    if found is None or found.low is None or found.high is None or found.value == 0:
        return ""
    half = 50 * (found.high - found.low) / abs(found.value)
    return f"±{plain(half, 2)} %" if half <= 100 else "±>100 %"


def shape_text(shape: object) -> str:
    """``[4096, 4096]`` -> ``4096x4096``."""
    return "x".join(str(n) for n in shape) if isinstance(shape, (list, tuple)) else str(shape)


def _scaled(value: float, unit: str) -> tuple[float, str]:
    """Factor to divide by, and the text that follows the number."""
    if unit in ("s", "B"):
        table = _TIME if unit == "s" else _BYTES
        for factor, name in table:
            # 999.6 ns would be printed as 1e3: step up a little before the power of ten.
            if abs(value) >= factor * 0.9995:
                return factor, f" {name}"
        factor, name = table[-1]
        return factor, f" {name}"
    if unit == "x":
        return 1.0, "x"
    return 1.0, f" {unit}" if unit else ""


def _digits(found: Estimate) -> int:
    """Significant digits: so many that the half-width shows one, at least 3 and at most 4."""
    if found.exact:
        return _MAX_DIGITS
    if found.low is None or found.high is None or found.value == 0:
        return 3
    half = (found.high - found.low) / 2
    if half <= 0 or not math.isfinite(half):
        return 3
    wanted = math.floor(math.log10(abs(found.value))) - math.floor(math.log10(half)) + 1
    return max(_MIN_DIGITS, min(_MAX_DIGITS, wanted))


def _decimals(value: float, digits: int) -> int:
    if value == 0:
        return 0
    magnitude = math.floor(math.log10(abs(value)))
    # Rounding may carry into the next power of ten: 9.996 has one decimal fewer at 3 digits.
    if float(f"{abs(value):.{digits - 1}e}") >= 10.0 ** (magnitude + 1):
        magnitude += 1
    return max(0, digits - 1 - magnitude)
