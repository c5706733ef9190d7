"""What a machine was found to be able to see, kept beside other caches. No statistics here.

A calibration is of one suite on one machine: it is found by the hash of what its numbers depend on,
so that it expires by itself where processor, device, threads, torch or driver change. Cases of the
suite that it does not know make it expire, and so does other code where one of its cases failed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bitbench.cache import CACHE_VARIABLE, cache_root
from bitbench.errors import ToolError, UserError
from bitbench.store.writer import write_atomically

CALIBRATION_VERSION = 1
FOLDER = "calibrations"


class CaseCalibration(BaseModel):
    """One timed case held against itself. Everything but ``launches`` is on the scale of the natural
    logarithm of base time / head time, unless said otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    launches: int
    """Launches in which both sides were measured."""
    mean: float = 0.0
    spread: float | None = None
    """Standard deviation over launches; None where there are too few."""
    autocorrelation: float | None = None
    """Between one launch and the next; None where it cannot be told."""
    floor: float = 0.0
    """How far the two sides lie apart without cause (99 % bound): a relative difference."""
    equivalence: float | None = None
    """Relative difference within which this many launches show sameness, 99 times of 100."""
    sees_80: float | None = None
    """Smallest relative slowdown that the gate calls *slower* with a probability of 80 %; None where
    it never would."""
    sees_95: float | None = None
    admitted: bool = False
    why: str = ""
    """Why it is not admitted."""


class Calibration(BaseModel):
    """One machine, one suite."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = CALIBRATION_VERSION
    created: str
    """UTC, ISO 8601."""
    suite: str
    """Its name."""
    machine: dict[str, Any]
    """What times depend on: see :func:`bitbench.store.figures.machine_of`."""
    launches: int
    code: str = ""
    """Digest of the sources that were measured."""
    bias: float = 0.0
    """Standard deviation, over cases, of what the two sides differ by without cause."""
    autocorrelation: float | None = None
    """Mean over cases."""
    cases: dict[str, CaseCalibration] = Field(default_factory=dict)
    """By case id."""

    def admitted(self) -> set[str]:
        """Ids of the cases that may gate."""
        return {case for case, found in self.cases.items() if found.admitted}


def calibration_path(suite: str, machine: Mapping[str, Any], launches: int) -> Path:
    """Where the calibration of this suite on this machine lies, whether it exists or not."""
    key = json.dumps([machine, launches, CALIBRATION_VERSION], sort_keys=True, default=str)
    safe = re.sub(r"[^A-Za-z0-9._+-]", "-", suite)
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return cache_root() / FOLDER / f"{safe}-{digest}.json"


def save_calibration(path: Path, calibration: Calibration) -> None:
    """Write it; :class:`ToolError` where the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ToolError(
            f"cannot make the folder {path.parent}: {error.strerror or error}",
            f"name another file with --calibration FILE, or another cache with {CACHE_VARIABLE}",
        ) from error
    write_atomically(path, json.dumps(calibration.model_dump(mode="json"), indent=1) + "\n")


def load_calibration(path: Path) -> Calibration:
    """Read one; :class:`UserError` where it is none, is damaged, or is of a newer version."""
    remedy = "make a new one with: bitbench calibrate SUITE --calibration FILE"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no calibration {path}", remedy) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", remedy) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or version < 1:
        raise UserError(f"{path} is not a calibration: it names no schema version", remedy)
    if version > CALIBRATION_VERSION:
        raise UserError(
            f"{path} has schema version {version}; this bitbench reads up to {CALIBRATION_VERSION}",
            "install the newer bitbench that wrote it, or calibrate again",
        )
    try:
        return Calibration.model_validate(data)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in detail["loc"])
        raise UserError(f"{path} is not a calibration: {where}: {detail['msg']}", remedy) from error


def expired(
    calibration: Calibration,
    machine: Mapping[str, Any],
    launches: int,
    cases: Collection[str],
    code: str = "",
) -> list[str]:
    """Why a calibration does not hold here and now, a reason an item; empty where it does.

    ``cases`` are the ids of the timed cases at hand: each must be among the calibrated ones. ``code`` is
    the digest of the sources that would be measured now: a case that failed in a launch says nothing
    about other code, which may well be able to do it.
    """
    reasons = [
        f"{name}: {_said(calibration.machine.get(name))} then, {_said(machine.get(name))} now"
        for name in dict.fromkeys([*calibration.machine, *machine])
        if calibration.machine.get(name) != machine.get(name)
    ]
    if calibration.launches != launches:
        reasons.append(f"launches: {calibration.launches} then, {launches} now")
    unknown = sum(case not in calibration.cases for case in cases)
    if unknown:
        reasons.append(
            f"the suite has changed: {unknown} of its {len(cases)} timed cases were not calibrated"
        )
    failed = [calibration.cases[c] for c in cases if c in calibration.cases]
    failed = [found for found in failed if found.launches < calibration.launches]
    if failed and code != calibration.code:
        reasons.append(
            f"the code has changed: {len(failed)} of {len(cases)} timed cases failed in what was calibrated"
        )
    return reasons


def find_calibration(
    suite: str,
    machine: Mapping[str, Any],
    launches: int,
    cases: Collection[str],
    file: Path | None = None,
    *,
    code: str = "",
) -> tuple[Calibration | None, str]:
    """The calibration that holds here, or None and why there is none, in one line.

    ``file`` is where it lies if not in the cache, ``code`` the digest of what would be calibrated now.
    """
    path = file or calibration_path(suite, machine, launches)
    if path.exists():
        found = load_calibration(path)
        reasons = expired(found, machine, launches, cases, code)
        if not reasons:
            return found, ""
        return None, f"the calibration in {path} has expired ({'; '.join(reasons)})"
    if file is not None:
        return None, f"there is no calibration {file} yet"
    older = _newest(suite)
    if older is None:
        return None, f"suite {suite!r} was never calibrated on this machine"
    reasons = expired(older, machine, launches, cases, code)
    return None, f"the last calibration of suite {suite!r} has expired ({'; '.join(reasons)})"


def _newest(suite: str) -> Calibration | None:
    found = []
    for path in (cache_root() / FOLDER).glob("*.json"):
        try:
            calibration = load_calibration(path)
        except UserError:  # of another version, or torn: it explains nothing
            continue
        if calibration.suite == suite:
            found.append(calibration)
    return max(found, key=lambda calibration: calibration.created, default=None)


def _said(value: Any) -> str:
    if value is None or value == "" or value == []:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
