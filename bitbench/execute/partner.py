"""Parent half of a steered worker: one side of a pair, told what to do step by step. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from bitbench.errors import ToolError
from bitbench.execute import outcome
from bitbench.execute.jobs import Job
from bitbench.execute.patience import Patience
from bitbench.execute.process import Hang, Worker
from bitbench.execute.steered import Command
from bitbench.measure import host
from bitbench.store.schema import Record, Side, Status


class Lost(Exception):
    """A side's process died or hung."""

    def __init__(self, side: Side, status: Status, reason: str, case: str, stage: str) -> None:
        super().__init__(reason)
        self.side = side
        self.status = status
        self.reason = reason
        self.case = case
        """The case it worked on last; empty where it was opening or freeing a point."""
        self.stage = stage


class Partner:
    """One side's process. Use as a context manager: leaving it ends the process."""

    def __init__(
        self,
        job: Job,
        log: Path,
        *,
        record: Callable[[Side, Record], None],
        at: Callable[[str, str], None],
        tick: Callable[[], None],
        memory_was_short: Callable[[], bool],
    ) -> None:
        self.side: Side = job.side
        self._record = record
        self._at = at
        self._tick = tick
        self._memory_was_short = memory_was_short
        self._kills = host.oom_kills()
        self._point = ""
        self._case = ""
        self._stage = "start"
        self._log = log
        self._worker = Worker(job, log)

    @property
    def pid(self) -> int:
        return self._worker.process.pid

    def ready(self, patience: float) -> None:
        """Wait until it can be told what to do; :class:`ToolError` where it cannot start."""
        try:
            self._answer(lambda: patience, "ready")
        except Lost as lost:
            raise ToolError(
                f"the worker of {self._log.stem} could not start ({lost.reason}): "
                f"{self._worker.last_words() or 'no message'}",
                f"see {self._log}",
            ) from None

    def ask(self, command: Command, patience: Patience, *answers: str, case: str = "") -> dict[str, Any]:
        """Give ``command`` (about ``case``) and wait for one of its ``answers``.

        Raises :class:`Lost` when the process dies, or gives no sign of life for as long as ``patience``
        lasts.
        """
        self._case, self._stage = case, command.do
        if command.visit is not None:
            self._point = command.visit.point
        self._worker.send(command)
        return self._answer(lambda: patience.of(self._point, self._case), *answers)

    def _answer(self, patience_of: Callable[[], float], *answers: str) -> dict[str, Any]:
        worker = self._worker
        while True:
            patience = patience_of()
            try:
                event = worker.next_event(patience, self._tick)
            except Hang:
                worker.kill()
                what = f"no sign of life for {patience:.0f} s while in stage {self._stage!r}"
                raise self._lost(Status.TIMEOUT, what) from None
            if event is None:
                code = worker.wait()
                short = host.oom_kills() > self._kills or self._memory_was_short()
                status, reason = outcome.of_death(code, short, f"{self._log.parent.name}/{self._log.name}")
                raise self._lost(status, f"{reason} (stage {self._stage})")
            if event["event"] == "at":
                self._case, self._stage = event["case"], event["stage"]
                self._at(self._case, self._stage)
            elif event["event"] == "record":
                self._record(self.side, Record.model_validate(event["record"]))
            elif event["event"] in answers:
                return event
            else:
                raise ToolError(f"{self._log.stem} answered {event['event']!r} to {self._stage!r}")

    def _lost(self, status: Status, reason: str) -> Lost:
        return Lost(self.side, status, reason, self._case, self._stage)

    def __enter__(self) -> Partner:
        self._worker.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.__exit__(kind, value, trace)
