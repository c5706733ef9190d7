"""Worker half of a comparison: one side's process, which does each step when it is told to.

After its job (see :mod:`bitbench.execute.jobs`) a steered worker reads commands, one
:class:`Command` a line, and answers each with one event:

==============  ============================================================================
``open``        builds, warms up and checks the layers of a point: ``opened`` with the nanoseconds
                of one call of each and what its blocks are bound to. Layers that fail have given
                their record and are not among them
``time``        one turn of one layer: ``timed``, or ``left`` where it raised (its record was sent)
``conclude``    checks that layer again and sends its record: ``concluded``
``close``       frees the point: ``closed``
==============  ============================================================================

Between commands it blocks on its input, and before it says that a point is open or a turn is over its
thread pool is asleep: while one side is timed, the other takes no processor time.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict

from bitbench.execute.jobs import Job, Visit
from bitbench.execute.outcome import of_exception
from bitbench.execute.point import TimedPoint
from bitbench.measure import cputime
from bitbench.measure.clock import Series, Stop, Turn, collector_off, take_turn
from bitbench.measure.roofline import Rulers
from bitbench.store.schema import Record
from bitbench.store.writer import utc_now

if TYPE_CHECKING:
    from bitbench.execute.worker import Events

IDLE_SHARE = 0.1
"""A pool counts as asleep when the process takes less than this share of a core."""
IDLE_SLICE = 0.002
IDLE_PATIENCE = 0.4
"""Longest wait for the pool. Waiting threads spin for some 10 ms (GNU) or 200 ms (Intel)."""


class Command(BaseModel):
    """What the runner says to a steered worker."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    do: Literal["open", "time", "conclude", "close"]
    visit: Visit | None = None
    """``open``: the point, with the layers to measure there."""
    layer: str = ""
    """``time`` and ``conclude``."""
    calls: int = 0
    """``time``: calls booked for each block. A layer in ``Job.slowdown`` makes more than these."""
    blocks: int = 0
    stop: Stop = "seconds"
    """``time``: why there are no more blocks, for the record."""


def obey(job: Job, commands: BinaryIO, events: Events, rulers: Rulers) -> None:
    """Carry out commands until there are no more."""
    events.send("ready")
    while (command := _next(commands)) is not None:
        if command.visit is None:
            raise ValueError(f"{command.do!r} without an open point")
        _SteeredPoint(job, command.visit, commands, events, rulers).run()


def _next(commands: BinaryIO) -> Command | None:
    line = commands.readline()
    return Command.model_validate_json(line) if line else None


class _SteeredPoint:
    """One point, from ``open`` to ``close``."""

    def __init__(self, job: Job, visit: Visit, commands: BinaryIO, events: Events, rulers: Rulers) -> None:
        self.job = job
        self.visit = visit
        self.commands = commands
        self.events = events
        self.settled: set[str] = set()
        self.series: dict[str, Series] = {}
        self.point = TimedPoint(job, visit, self._emit, self._announce, rulers)

    def run(self) -> None:
        """Whatever goes wrong, each layer of the visit gets one record and each command an answer."""
        answered = False
        try:
            self._announce("", "open")
            with self.point.opened(), collector_off():
                layers = self._ready()
                self._rest()
                self.events.send("opened", layers=layers)
                answered = True
                self._steps()
        except Exception as error:  # the point could not be opened or freed: all its layers share that
            traceback.print_exc(file=sys.stderr)
            status, reason = of_exception(error)
            for layer, case in self.visit.cases.items():
                if layer not in self.settled:
                    self._emit(
                        Record(
                            case=case,
                            launch=self.point.launch,
                            side=self.job.side,
                            status=status,
                            reason=reason,
                            started=utc_now(),
                        )
                    )
            if not answered:
                self.events.send("opened", layers={})
                self._steps()
        self.events.send("closed")

    def _ready(self) -> dict[str, dict[str, Any]]:
        return {
            layer: {
                "call_ns": entrant.call_ns,
                "max_calls": entrant.subject.max_calls,
                "block_calls": entrant.subject.block_calls,
                "seconds": entrant.subject.seconds,
            }
            for layer, entrant in self.point.entrants.items()
        }

    def _steps(self) -> None:
        while (command := _next(self.commands)) is not None and command.do != "close":
            if command.do == "time":
                self._turn(command)
            elif command.do == "conclude":
                self.point.conclude(command.layer, self.series.pop(command.layer))
                self.events.send("concluded", layer=command.layer)
            else:
                raise ValueError(f"{command.do!r} while a point is open")

    def _turn(self, command: Command) -> None:
        layer = command.layer
        series = self.series.setdefault(layer, Series(calls=command.calls))
        made = round(command.calls * (1 + self.job.slowdown.get(layer, 0.0)))
        entrant = self.point.entrants[layer]
        answer = "timed"
        try:
            self.point.enter(layer)
            with self.point.neighbours.busy():
                take_turn(entrant.subject, entrant.timer, Turn(made, command.blocks, command.stop), series)
        except Exception as error:
            self.point.leave(layer, error)
            answer = "left"
        self._rest()
        self.events.send(answer, layer=layer)

    def _rest(self) -> None:
        if self.job.threads > 1:
            come_to_rest()

    def _emit(self, record: Record) -> None:
        self.settled.update(layer for layer, case in self.visit.cases.items() if case == record.case)
        self.events.record(record)

    def _announce(self, layer: str, stage: str) -> None:
        case = self.visit.cases[layer] if layer else ""
        self.events.send("at", point=self.visit.point, case=case, launch=self.point.launch, stage=stage)


def come_to_rest(
    cpu: Callable[[], float] = cputime.seconds, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Wait until the threads that have helped no longer spin for their next piece of work."""
    waited = 0.0
    while waited < IDLE_PATIENCE:
        before = cpu()
        sleep(IDLE_SLICE)
        waited += IDLE_SLICE
        if cpu() - before < IDLE_SHARE * IDLE_SLICE:
            return
