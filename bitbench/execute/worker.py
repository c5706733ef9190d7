"""The worker process: ``python -m bitbench.execute.worker EVENTS_FD PARENT_PID``, job on stdin.

One process does one job (see :mod:`bitbench.execute.jobs`) and ends. A steered one reads commands
after its job, one a line, until there are no more (:mod:`bitbench.execute.steered`). It never outlives its
parent, and where memory runs out it is the process the kernel should take.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from bitbench.errors import UserError
from bitbench.execute.imports import import_from
from bitbench.execute.jobs import Job, Pair, Visit
from bitbench.execute.outcome import end_if_lost, of_exception
from bitbench.execute.seeds import set_seeds
from bitbench.measure.host import last_level_cache
from bitbench.measure.lifeline import end_with
from bitbench.measure.peaks import measure_peaks
from bitbench.measure.roofline import Peaks, Rulers
from bitbench.measure.timers import TorchGpu
from bitbench.store.schema import Record
from bitbench.store.writer import utc_now

OOM_SCORE = "800"
"""Raised so that the kernel takes the worker, not the runner that keeps the records."""


class Events:
    """The pipe to the runner. Each event leaves as one write of one line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def send(self, event: str, **fields: Any) -> None:
        self._stream.write(json.dumps({"event": event, **fields}) + "\n")
        self._stream.flush()

    def record(self, record: Record) -> None:
        self.send("record", record=record.model_dump(mode="json"))


def follow_parent(parent: int) -> None:
    """Die with the process ``parent`` (Linux), and be the first to go when memory runs out."""
    end_with(parent)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)


def set_threads(threads: int) -> None:
    """Threads of torch, and of native kernels, which share its pool."""
    import torch

    torch.set_num_threads(threads)


def do(job: Job, events: Events, commands: BinaryIO) -> None:
    """Do the whole job; what goes wrong in a case becomes its record."""
    if job.side_root:
        import_from(Path(job.side_root), job.side_packages)
    set_threads(job.threads)
    set_seeds(job.seed)
    gc.freeze()  # of torch nothing becomes garbage: collections between points pass over it
    if job.mode == "probe":
        from bitbench.execute.probe import facts

        try:
            events.send("facts", facts=facts(job))
        except UserError as error:
            events.send("refused", message=error.message, remedy=error.remedy)
        return
    known = {job.threads: job.peaks, **job.peaks_at}
    rulers = Rulers(
        {threads: Peaks(**peaks) for threads, peaks in known.items()},
        lambda threads: measure_peaks(job.device, threads, last_level_cache()),
    )
    if job.mode == "steered":
        from bitbench.execute.steered import obey

        obey(job, commands, events, rulers)
        return
    for visit in job.visits:
        _visit(job, visit, events, rulers)
    for peaks in rulers.changed():
        events.send("peaks", peaks=peaks.as_dict())


def _visit(job: Job, visit: Visit, events: Events, rulers: Rulers) -> None:
    from bitbench.execute.once import measure_point
    from bitbench.execute.timed import PointClock

    settled: set[Pair] = set()

    def emit(record: Record) -> None:
        settled.add((record.case, record.launch))
        events.record(record)

    def announce(layer: str, launch: int, stage: str) -> None:
        case = visit.cases[layer] if layer else ""
        events.send("at", point=visit.point, case=case, launch=launch, stage=stage)

    announce("", visit.launches[0], "open")
    try:
        if job.mode == "timed":
            launch = visit.launches[0]
            PointClock(job, visit, emit, lambda layer, stage: announce(layer, launch, stage), rulers).run()
        else:
            measure_point(job, visit, emit, announce)
    except Exception as error:  # the point could not be opened or closed: all its cases share that
        traceback.print_exc(file=sys.stderr)
        end_if_lost(TorchGpu() if job.device == "cuda" else None)
        status, reason = of_exception(error)
        for case in visit.cases.values():
            for launch in visit.launches:
                if (case, launch) not in settled:
                    events.record(
                        Record(case=case, launch=launch, status=status, reason=reason, started=utc_now())
                    )


def main() -> None:
    events_fd, parent = int(sys.argv[1]), int(sys.argv[2])
    follow_parent(parent)
    job = Job.model_validate_json(sys.stdin.buffer.readline())
    with os.fdopen(events_fd, "w", encoding="utf-8") as stream:
        events = Events(stream)
        do(job, events, sys.stdin.buffer)
        events.send("done")


if __name__ == "__main__":
    main()
