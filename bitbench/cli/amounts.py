"""Durations and shares as a command line gives them."""

from __future__ import annotations

import re

from bitbench.errors import UserError

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0}
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")


def seconds(text: str, option: str) -> float:
    """Seconds of ``90s``, ``10m``, ``1h30m``.

    Raises :class:`UserError`, naming ``option``, for anything else and for no time at all.
    """
    match = _DURATION.fullmatch(text.strip().lower().replace(" ", ""))
    parts = match.groups() if match else ()
    total = sum(float(n) * unit for n, unit in zip(parts, _UNITS.values(), strict=False) if n)
    if total <= 0:
        raise UserError(f"{option} {text}: not a duration", "write it as 90s, 10m or 1h30m")
    return total


def share(text: str, option: str) -> float:
    """``1%`` as 0.01.

    Raises :class:`UserError`, naming ``option``, for anything else and for what is not between 0 and
    100 %.
    """
    match = _SHARE.fullmatch(text.strip())
    if match is None:
        raise UserError(f"{option} {text}: not a percentage", "write it as 1% or 0.5%")
    value = float(match.group(1)) / 100
    if not 0 < value < 1:
        raise UserError(f"{option} {text}: must lie between 0 and 100 %", "write it as 1% or 0.5%")
    return value
