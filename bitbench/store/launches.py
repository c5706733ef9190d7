"""Many launches of a few cases, one number a side and launch: what error rates are resampled from.

A run folder keeps every timed block; hundreds of launches of that are too much to publish. This
file holds what is judged, the time of one call in each launch, in some hundred kilobytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bitbench.errors import UserError
from bitbench.store.writer import write_atomically

LAUNCHES_VERSION = 1
LAUNCHES_FILE = "launches.json"

Role = Literal["case", "null", "slower", "control"]


class LaunchTimes(BaseModel):
    """One timed case over all launches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    """Of the case as it is, without what was put in."""
    role: Role
    """``case``: a case of the suite. ``null`` and ``slower``: the gate's own proof.
    ``control``: one that no change can affect."""
    slowdown: float
    """Extra work of the head side: 0.05 means 5 % more calls than booked."""
    like: list[str]
    """Key of the cases whose variances are pooled with this one's."""
    base_ns: list[float]
    """Nanoseconds of one call, the median of a launch's blocks, by launch."""
    head_ns: list[float]

    @model_validator(mode="after")
    def _sound(self) -> LaunchTimes:
        if len(self.base_ns) != len(self.head_ns):
            raise ValueError(f"{len(self.base_ns)} launches of base, {len(self.head_ns)} of head")
        if not all(0 < ns < float("inf") for ns in (*self.base_ns, *self.head_ns)):
            raise ValueError("a time must be positive and finite")
        return self


class LaunchPool(BaseModel):
    """Launches of one machine and version, held against itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = LAUNCHES_VERSION
    created: str
    """UTC, ISO 8601."""
    suite: str
    """Path of the suite measured."""
    code: str
    """Which version was on both sides."""
    machine: dict[str, Any] = Field(default_factory=dict)
    """What times depend on: see :func:`bitbench.store.figures.machine_of`."""
    launches: int
    times: list[LaunchTimes]
    left_out: list[str] = Field(default_factory=list)
    """Labels of cases that failed in a launch, or one of whose slowed twins did."""

    @model_validator(mode="after")
    def _one_length(self) -> LaunchPool:
        wrong = [entry.label for entry in self.times if len(entry.base_ns) != self.launches]
        if wrong:
            raise ValueError(f"{wrong[0]} has not the {self.launches} launches of the file")
        return self


def save_launches(folder: Path, pool: LaunchPool) -> Path:
    """Write ``launches.json`` into ``folder`` and return its path."""
    path = folder / LAUNCHES_FILE
    write_atomically(path, json.dumps(pool.model_dump(mode="json"), separators=(",", ":")) + "\n")
    return path


def load_launches(folder: Path) -> LaunchPool:
    """Read it; :class:`UserError` where it is missing, damaged or of a newer version."""
    path = folder / LAUNCHES_FILE
    remedy = "make one with: bitbench rates suites/gate.yaml"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no {LAUNCHES_FILE}", remedy) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", remedy) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > LAUNCHES_VERSION:
        raise UserError(
            f"{path} has schema version {version}; this bitbench reads up to {LAUNCHES_VERSION}",
            "install the newer bitbench that wrote it",
        )
    try:
        return LaunchPool.model_validate(data)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in detail["loc"])
        raise UserError(f"{path} is damaged: {where}: {detail['msg']}", remedy) from error
