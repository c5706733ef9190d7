"""Files of pytest-benchmark: read as figures, and written from a stored run. Torch-free, pytest-free.

Read, a file gives what a gate can judge: the ratio to the baseline timed beside each benchmark, and
counted figures, both from ``extra_info["bitbench"]``. Benchmarks of other projects have neither;
their times are read too, but times of two sessions on machines one knows little of are for telling
only (:meth:`BenchmarkFile.unjudged`).

Written from a run, every timed case becomes an entry, one value a launch, so that
``pytest-benchmark compare`` and whatever else reads such files can show it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bitbench.analysis.figures import RATIO, head_of, time_figure
from bitbench.analysis.statistics import Estimate, Series, log_mean
from bitbench.analysis.summary import CaseSummary, summarise
from bitbench.errors import UserError
from bitbench.pytest_plugin.descriptive import describe
from bitbench.pytest_plugin.records import KEY, SCHEMA_VERSION, Launched, Measured, measured
from bitbench.report.numbers import with_interval
from bitbench.store.figures import Figure, FigureSet, machine_of
from bitbench.store.reader import RunData, load_run
from bitbench.store.schema import Record
from bitbench.store.writer import write_atomically

FORMAT_VERSION = "5.1.0"
"""Version of pytest-benchmark whose files have the fields written here."""

LATENCY = "time.latency"
SHOWN = 5
"""Benchmarks of others whose times are told."""


class _Foreign(BaseModel):
    """A part of a file that another program wrote: what is not asked for may be anything."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Stats(_Foreign):
    """Times of one benchmark, in seconds."""

    mean: float = Field(ge=0, allow_inf_nan=False)
    stddev: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    rounds: int = Field(default=1, ge=1)


class Entry(_Foreign):
    """One benchmark."""

    fullname: str = Field(min_length=1)
    stats: Stats
    extra_info: dict[str, Any] = Field(default_factory=dict)


class _File(_Foreign):
    benchmarks: list[Entry]
    machine_info: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class BenchmarkFile:
    """A file of pytest-benchmark."""

    path: Path
    entries: dict[str, Entry]
    """By full name, such as ``tests/benchmarks/test_linear.py::test_kernel[binary-1]``."""
    measured: dict[str, Measured]
    """Those that bitbench's fixture timed."""
    machine_info: dict[str, Any]

    def figures(self) -> FigureSet:
        """What can be judged; benchmarks without such a figure are left out.

        Raises :class:`UserError` where the entries come from more than one machine.
        """
        figures = {name: own for name, found in self.measured.items() if (own := _figures(found))}
        return FigureSet(source=self._source(), machine=self._machine(), figures=figures)

    def times(self) -> dict[str, Estimate]:
        """Time of one call by full name, for showing: seconds, with the interval over launches where
        bitbench timed it, else the mean over the rounds of one process, without."""
        return {
            name: log_mean([launch.seconds for launch in self.measured[name].launches])
            if name in self.measured
            else Estimate(entry.stats.mean, n=entry.stats.rounds)
            for name, entry in self.entries.items()
        }

    def unjudged(self) -> list[str]:
        """What nobody can judge, in words: the times of benchmarks that bitbench's fixture did not time."""
        foreign = {name: time for name, time in self.times().items() if name not in self.measured}
        told = [
            f"{name}: {with_interval(time, 's')} in one process, beside no baseline: only shown"
            for name, time in list(foreign.items())[:SHOWN]
        ]
        return told if len(foreign) <= SHOWN else [*told, f"and {len(foreign) - SHOWN} more"]

    def _source(self) -> str:
        """The folder that holds all benchmarks of the file."""
        folders = [os.path.dirname(name.partition("::")[0]) for name in self.entries]
        return os.path.commonpath(folders) or "."

    def _machine(self) -> dict[str, Any]:
        machines = {name: found.machine for name, found in self.measured.items()}
        if not machines:
            return {"processor": _brand(self.machine_info)}
        (first_name, first), *others = machines.items()
        for name, machine in others:
            if machine != first:
                key = next(key for key in {**first, **machine} if first.get(key) != machine.get(key))
                raise UserError(
                    f"{self.path} mixes machines: {key} is {first.get(key)!r} for {first_name}, "
                    f"{machine.get(key)!r} for {name}",
                    "measure all benchmarks of a file on one machine with one number of threads",
                )
        return first


def read_benchmark(path: Path) -> BenchmarkFile:
    """Read and check a file that pytest-benchmark wrote.

    Raises :class:`UserError` where there is none, it is empty, cut off, another thing, or holds no
    benchmark; the message says which, where, and what makes a good one.
    """
    again = f"write it again: pytest tests/benchmarks --benchmark-json {path}"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"there is no file {path}", again.replace("write it again", "make it")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}", again) from error
    if not text.strip():
        raise UserError(f"{path} is empty: pytest-benchmark writes nothing where no benchmark ran", again)
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not whole JSON: {error}", again) from error
    if not isinstance(data, dict) or not isinstance(data.get("benchmarks"), list):
        raise UserError(f"{path} is not a pytest-benchmark file: it has no list 'benchmarks'", again)
    if not data["benchmarks"]:
        raise UserError(f"{path} holds no benchmark: none ran, or all failed", again)
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{path} is damaged: {_first(error)}", again) from error
    entries: dict[str, Entry] = {}
    for entry in file.benchmarks:
        if entry.fullname in entries:
            raise UserError(f"{path} holds {entry.fullname} twice", again)
        entries[entry.fullname] = entry
    found = {name: _measured(path, entry) for name, entry in entries.items() if KEY in entry.extra_info}
    return BenchmarkFile(path, entries, found, file.machine_info)


def _measured(path: Path, entry: Entry) -> Measured:
    data = entry.extra_info[KEY]
    where = f"{path}: {entry.fullname}: extra_info.{KEY}"
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UserError(f"{where} names no schema version", "it was not written by bitbench's fixture")
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{where} has schema version {version}; this bitbench reads up to {SCHEMA_VERSION}",
            "install the newer bitbench that wrote it",
        )
    try:
        return Measured.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where} is damaged: {_first(error)}", "measure again") from error


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in detail["loc"])
    return f"{where}: {detail['msg']}" if where else str(detail["msg"])


def _figures(found: Measured) -> dict[str, Figure]:
    figures = {name: Figure(kind="exact", value=value) for name, value in found.exact.items()}
    ratios = {launch.launch: ratio for launch in found.launches if (ratio := launch.ratio) is not None}
    if ratios:
        figures[RATIO] = time_figure(Series(ratios, "log"))
    return figures


def _brand(machine_info: dict[str, Any]) -> str:
    cpu = machine_info.get("cpu")
    return str(cpu.get("brand_raw", "")) if isinstance(cpu, dict) else ""


# ---- out of a run --------------------------------------------------------------------------------


def export_run(run: Path, file: Path) -> int:
    """Write the stored run in folder ``run`` as a pytest-benchmark file; how many entries it holds.

    Raises :class:`UserError` where the run timed nothing that ended ok, or ``file`` cannot be written.
    """
    data = benchmark_of_run(load_run(run))
    if not data["benchmarks"]:
        raise UserError(
            f"run {run.name} timed nothing that ended ok: there is nothing to write to {file}",
            "go on with bitbench run --resume, or name another run",
        )
    if not file.parent.is_dir():
        raise UserError(f"there is no folder {file.parent}", "make it, or name another file")
    write_atomically(file, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return len(data["benchmarks"])


def benchmark_of_run(run: RunData) -> dict[str, Any]:
    """A stored run as the content of a pytest-benchmark file; of a run with two sides, the head's first
    round.

    Only timed cases that ended ok have an entry, as a failed benchmark has none in pytest-benchmark;
    ``bitbench`` at the top names the others with the reason.
    """
    summary = summarise(head_of(run))
    info = run.info
    machine = machine_of(info.environment, info.threads, info.code.native)
    timed = [found for found in summary.cases if found.case.phase == "timed"]
    left_out = [found for found in timed if LATENCY not in found.series]
    beside = {(found.case.point, found.case.layer): found for found in timed}
    records = {(record.case, record.launch): record for record in summary.run.records}
    entry = partial(_entry, summary.baseline, beside, records, machine)
    return {
        "machine_info": _machine_info(info.environment),
        "commit_info": {"id": info.code.commit or "unversioned", "dirty": info.code.dirty},
        "benchmarks": [entry(found) for found in timed if LATENCY in found.series],
        "datetime": info.created,
        "version": FORMAT_VERSION,
        "bitbench": {
            "run": info.run,
            "left_out": {found.case.label: f"{found.status}: {found.reason}" for found in left_out},
        },
    }


def _entry(
    baseline: str,
    beside: dict[tuple[str, str], CaseSummary],
    records: dict[tuple[str, int], Record],
    machine: dict[str, Any],
    found: CaseSummary,
) -> dict[str, Any]:
    case = found.case
    latency = found.series[LATENCY].values
    reference = beside.get((case.point, baseline)) if case.layer != baseline else None
    against = None if reference is None else reference.series.get(LATENCY)
    launches = [
        Launched(
            launch=launch,
            seconds=seconds,
            calls=records[case.id, launch].calls,
            baseline_seconds=None if against is None else against.values.get(launch),
            notes=list(records[case.id, launch].notes),
        )
        for launch, seconds in sorted(latency.items())
    ]
    one = measured(launches, kernel=", ".join(found.kernels), machine=machine)
    return {
        "group": case.label.removesuffix(f"/{case.layer}"),
        "name": case.label,
        "fullname": case.label,
        "params": case.params,
        "param": case.layer,
        "extra_info": {KEY: one.model_dump(mode="json")},
        "options": {"timer": "bitbench.measure.clock", "disable_gc": True, "launches": len(launches)},
        "stats": describe([launch.seconds for launch in launches]),
    }


def _machine_info(environment: dict[str, Any]) -> dict[str, Any]:
    """The part of pytest-benchmark's description that a run knows. The name of the machine is not in it:
    a run does not record it."""

    def part(name: str) -> dict[str, Any]:
        found = environment.get(name)
        return found if isinstance(found, dict) else {}

    cpu, system = part("cpu"), part("system")
    return {
        "node": "",
        "processor": str(cpu.get("model", "")),
        "machine": str(system.get("machine", "")),
        "python_implementation": str(system.get("implementation", "")),
        "python_version": str(system.get("python", "")),
        "release": str(system.get("kernel", "")),
        "system": str(system.get("os", "")),
        "cpu": {"brand_raw": str(cpu.get("model", "")), "count": cpu.get("logical")},
    }
