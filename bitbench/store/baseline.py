"""The file of accepted figures that lies in the repository, and the record of who moved them and why."""

from __future__ import annotations

import json
import math
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bitbench.errors import UserError
from bitbench.plugins import advice
from bitbench.store.figures import Figure, FigureSet
from bitbench.store.metrics import METRICS
from bitbench.store.writer import utc_now, write_atomically

BASELINE_VERSION = 1
BENCHMARK_BASELINE = Path("tests/benchmarks/baseline.json")
"""Baseline of files that pytest-benchmark wrote."""

TIME_MOVED = 0.01
"""A ratio of times is remeasured at every acceptance: the log lists it only where it moved by more
than this and by more than three standard errors."""


class Moved(BaseModel):
    """One figure before and after. ``None``: it was not there, or is there no more."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, ser_json_inf_nan="strings")

    label: str
    metric: str
    before: float | None = Field(alias="from")
    after: float | None = Field(alias="to")


class Entry(BaseModel):
    """One acceptance."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    when: str
    """UTC, ISO 8601."""
    who: str
    why: str
    source: str = ""
    """The run or file whose figures were accepted."""
    commit: str = ""
    """The code they are of, where known."""
    added: int = 0
    """Figures that were not there before. They are not listed: they are in the file."""
    moved: list[Moved] = []
    """Figures with another value, and those that were removed."""


class Baseline(BaseModel):
    """Accepted figures and their history, the latest entry last."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = BASELINE_VERSION
    figures: FigureSet
    log: list[Entry] = []


def baseline_beside(suite_path: str | Path) -> Path:
    """Where the baseline of a suite lies: ``suites/gate.yaml`` -> ``suites/gate.baseline.json``."""
    path = Path(suite_path)
    return path.with_name(f"{path.stem}.baseline.json")


def load_baseline(path: Path) -> Baseline:
    """Read a baseline.

    Raises :class:`UserError` where there is none (with the command that makes one), it is damaged, or
    of a newer version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"there is no baseline {path}",
            f'make one: bitbench baseline accept SOURCE --baseline {path} --why "first figures"',
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", "restore it from version control") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UserError(
            f"{path} is not a baseline: it names no schema version", "name another file with --baseline"
        )
    if version > BASELINE_VERSION:
        raise UserError(
            f"{path} has schema version {version}; this bitbench reads up to {BASELINE_VERSION}",
            "install the newer bitbench that wrote it",
        )
    try:
        found = Baseline.model_validate(data)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in detail["loc"])
        raise UserError(
            f"{path} is damaged: {where}: {detail['msg']}", "restore it from version control"
        ) from error
    for label, own in found.figures.figures.items():
        for metric, figure in own.items():
            if metric not in METRICS:
                raise UserError(f"{path}: {label}: unknown metric {metric!r}", advice(metric, METRICS))
            if figure.kind == "time" and not figure.value > 0:
                where = f"figures.figures.{label}.{metric}"
                raise UserError(
                    f"{path} is damaged: {where}: a ratio of times must be above 0",
                    "restore it from version control",
                )
    return found


def save_baseline(path: Path, baseline: Baseline) -> None:
    """Write it, one figure a line: a reviewer sees in the diff what moved."""
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent}", "make it, or name another file with --baseline")
    write_atomically(path, render(baseline))


def render(baseline: Baseline) -> str:
    """The file's text: JSON, sorted, one figure or moved figure a line."""
    data = baseline.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    figures = data["figures"].pop("figures", {})
    log = data.pop("log", [])
    lines = [
        "{",
        f' "schema_version": {baseline.schema_version},',
        ' "figures": {',
        *(f"  {json.dumps(key)}: {_compact(value)}," for key, value in data["figures"].items()),
        '  "figures": {',
        *_blocks(
            {
                label: [f"{json.dumps(m)}: {_compact(f)}" for m, f in sorted(own.items())]
                for label, own in sorted(figures.items())
            }
        ),
        "  }",
        " },",
        ' "log": [',
    ]
    for index, entry in enumerate(log):
        moved = entry.pop("moved", [])
        head = ", ".join(f"{json.dumps(key)}: {_compact(value)}" for key, value in entry.items())
        comma = "," if index < len(log) - 1 else ""
        if not moved:
            lines.append(f"  {{{head}}}{comma}")
            continue
        lines.append(f'  {{{head}, "moved": [')
        lines += [f"   {_compact(item)}{',' if item is not moved[-1] else ''}" for item in moved]
        lines.append(f"  ]}}{comma}")
    return "\n".join([*lines, " ]", "}"]) + "\n"


def accept(
    earlier: Baseline | None, figures: FigureSet, *, who: str, why: str, source: str = "", commit: str = ""
) -> Baseline:
    """``figures`` as the new baseline, with an entry that says who accepted them, why, and what moved."""
    before = earlier.figures.figures if earlier else {}
    moved, added = changes(before, figures.figures)
    entry = Entry(when=utc_now(), who=who, why=why, source=source, commit=commit, added=added, moved=moved)
    return Baseline(figures=figures, log=[*(earlier.log if earlier else []), entry])


def changes(
    before: dict[str, dict[str, Figure]], after: dict[str, dict[str, Figure]]
) -> tuple[list[Moved], int]:
    """Figures whose value moved or that vanished, and how many are new."""
    moved = []
    added = 0
    for label, metric in dict.fromkeys(_names(before) + _names(after)):
        old, new = before.get(label, {}).get(metric), after.get(label, {}).get(metric)
        if old is None:
            added += 1
        elif new is None or _moved(old, new):
            value = None if new is None else new.value
            moved.append(Moved(label=label, metric=metric, before=old.value, after=value))
    return moved, added


def _names(figures: dict[str, dict[str, Figure]]) -> list[tuple[str, str]]:
    return [(label, metric) for label, own in figures.items() for metric in own]


def _moved(old: Figure, new: Figure) -> bool:
    if old.kind != "time" or new.kind != "time":
        return old.value != new.value
    if old.value <= 0 or new.value <= 0:
        return old.value != new.value
    squares = [f.log_sd**2 / f.launches for f in (old, new) if f.log_sd is not None and f.launches > 1]
    return abs(math.log(new.value / old.value)) > max(TIME_MOVED, 3 * math.sqrt(math.fsum(squares)))


def _blocks(groups: dict[str, list[str]]) -> list[str]:
    lines = []
    for index, (label, own) in enumerate(groups.items()):
        lines.append(f"   {json.dumps(label)}: {{")
        lines += [f"    {item}{',' if number < len(own) - 1 else ''}" for number, item in enumerate(own)]
        lines.append(f"   }}{',' if index < len(groups) - 1 else ''}")
    return lines


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
