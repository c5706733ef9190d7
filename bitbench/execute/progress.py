"""How a run shows that it is alive. Torch-free.

The runner talks to a :class:`Sink`. On a terminal that is a live display, elsewhere plain lines;
tests use one that remembers.
"""

from __future__ import annotations

import time
from collections import deque
from statistics import median
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from bitbench.store.schema import Case, Record, Status

REFRESH_PER_SECOND = 2.0
"""Low on purpose: drawing takes processor time from what is being measured."""
PLAIN_SECONDS = 10.0
"""Longest silence of the plain display while records arrive."""
SHOWN = 5


_ACCURACY = ("quality.perplexity", "quality.accuracy", "training.bits_per_byte", "training.accuracy")
"""What a line tells of a case that was not timed, where it has one of these."""


class Sink(Protocol):
    """Receives what happens in a run, in order."""

    def started(self, records: int, seconds: float) -> None:
        """``records`` outcomes are to come, in about ``seconds``."""

    def extended(self, records: int, seconds: float) -> None:
        """So many more outcomes are to come than :meth:`started` said."""

    def at(self, launch: str, case: Case, stage: str) -> None:
        """Work on ``case`` starts."""

    def recorded(self, case: Case, record: Record, seconds: float) -> None:
        """An outcome is stored; ``seconds`` of the estimate are done with it."""

    def note(self, message: str) -> None:
        """Something worth a line."""

    def finished(self) -> None:
        """The run ended, complete or not."""


class Pace:
    """Remaining time: the estimate of what is left, corrected by how the estimate has held."""

    def __init__(self, records: int, seconds: float) -> None:
        self.records = records
        self.seconds = max(seconds, 1e-9)
        self.done_records = 0
        self.done_seconds = 0.0
        self._start = time.monotonic()

    def extend(self, records: int, seconds: float) -> None:
        self.records += records
        self.seconds += seconds

    def advance(self, seconds: float) -> None:
        self.done_records += 1
        self.done_seconds += seconds

    def elapsed(self) -> float:
        return time.monotonic() - self._start

    def remaining(self) -> float:
        """Seconds left. The correction fades in over the first tenth of the run."""
        left = max(0.0, self.seconds - self.done_seconds)
        share = min(1.0, self.done_seconds / self.seconds)
        if self.done_seconds <= 0:
            return left
        trust = min(1.0, share / 0.1)
        factor = self.elapsed() / self.done_seconds
        return left * (1 - trust + trust * factor)


def duration(seconds: float) -> str:
    """``8 s``, ``2 min 05 s``, ``1 h 02 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def result_line(case: Case, record: Record) -> str:
    """One outcome in one line: ``linear/.../ternary  41.2 us``."""
    if record.status is not Status.OK:
        return f"{case.label}  {record.status.value}: {record.reason}"
    if record.samples_ns:
        return f"{case.label}  {time_text(median(record.samples_ns) / record.calls / 1e9)}"
    if record.shared_from:
        return f"{case.label}  same numerics as {record.shared_from}"
    shown = next((name for name in _ACCURACY if name in record.metrics), "")
    return f"{case.label}  " + (f"{shown.rpartition('.')[2]} {record.metrics[shown]:.4g}" if shown else "ok")


def time_text(seconds: float) -> str:
    """Three digits and a unit: ``41.2 us``."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


class PlainSink:
    """Lines for logs: each failure once, progress every few seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pace = Pace(0, 0.0)
        self._last = 0.0
        self._told: set[tuple[str, Status, str]] = set()

    def started(self, records: int, seconds: float) -> None:
        self._pace = Pace(records, seconds)
        self._last = time.monotonic()

    def extended(self, records: int, seconds: float) -> None:
        self._pace.extend(records, seconds)

    def at(self, launch: str, case: Case, stage: str) -> None:  # noqa: ARG002 - too much for a log
        return

    def recorded(self, case: Case, record: Record, seconds: float) -> None:
        self._pace.advance(seconds)
        late = time.monotonic() - self._last >= PLAIN_SECONDS
        last = self._pace.done_records == self._pace.records
        failure = (case.layer, record.status, record.reason)
        if record.status is not Status.OK and failure not in self._told:
            self._told.add(failure)
            self._say(result_line(case, record))
        if late or last:
            self._last = time.monotonic()
            left = f", about {duration(self._pace.remaining())} left"
            if last:
                left = f" in {duration(self._pace.elapsed())}"
            done = f"{self._pace.done_records}/{self._pace.records}"
            self._say(f"[{done}{left}] {result_line(case, record)}")

    def note(self, message: str) -> None:
        self._say(message)

    def finished(self) -> None:
        return

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveSink:
    """A bar, the point being measured, the time left and the last results."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pace = Pace(0, 0.0)
        self._bar = Progress(
            BarColumn(bar_width=40),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._task: TaskID | None = None
        self._where = ""
        self._last: deque[tuple[Status, str]] = deque(maxlen=SHOWN)
        self._live = Live(console=console, refresh_per_second=REFRESH_PER_SECOND, get_renderable=self._render)

    def started(self, records: int, seconds: float) -> None:
        self._pace = Pace(records, seconds)
        self._task = self._bar.add_task("", total=self._pace.seconds, left="")
        self._live.start()

    def extended(self, records: int, seconds: float) -> None:
        self._pace.extend(records, seconds)
        if self._task is not None:
            self._bar.update(self._task, total=self._pace.seconds)

    def at(self, launch: str, case: Case, stage: str) -> None:
        self._where = f"{launch}: {case.label} ({stage})"

    def recorded(self, case: Case, record: Record, seconds: float) -> None:
        self._pace.advance(seconds)
        self._last.append((record.status, result_line(case, record)))

    def note(self, message: str) -> None:
        self._console.print(message, markup=False, highlight=False)

    def finished(self) -> None:
        if self._pace.done_records == self._pace.records:
            self._where = ""
        self._live.stop()

    def _render(self) -> RenderableType:
        if self._task is not None:
            pace = self._pace
            left = f"{pace.done_records}/{pace.records}, about {duration(pace.remaining())} left"
            if pace.done_records == pace.records:
                left = f"{pace.done_records}/{pace.records} in {duration(pace.elapsed())}"
            self._bar.update(self._task, completed=pace.done_seconds, left=left)
        where = Text(self._where, style="bold", overflow="ellipsis", no_wrap=True)
        lines: list[RenderableType] = [self._bar, where]
        for status, line in self._last:
            style = "dim" if status is Status.OK else "red"
            lines.append(Text(f"  {line}", style=style, overflow="ellipsis", no_wrap=True))
        return Group(*lines)


def sink_for(console: Console) -> Sink:
    """The live display on a terminal, plain lines elsewhere."""
    return LiveSink(console) if console.is_terminal else PlainSink(console)
