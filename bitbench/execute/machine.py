"""The machine a run is made on, as a worker process that can import torch finds it. Torch-free."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitbench.errors import ToolError, UserError
from bitbench.execute.jobs import Job
from bitbench.execute.patience import Limits
from bitbench.execute.process import Hang, Worker
from bitbench.measure import host


@dataclass
class Machine:
    """What a probe found: see :func:`bitbench.execute.probe.facts`."""

    device: str
    threads: int
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def peaks(self) -> dict[str, Any]:
        peaks: dict[str, Any] = self.facts.get("peaks", {})
        return peaks

    @property
    def peaks_at(self) -> dict[int, dict[str, Any]]:
        """Limits with other numbers of threads."""
        return {int(threads): peaks for threads, peaks in self.facts.get("peaks_at", {}).items()}

    def take_peaks(self, environment: dict[str, Any]) -> None:
        """Take the limits that a stored run was measured by."""
        self.facts["peaks"] = environment.get("peaks", {})
        self.facts["peaks_at"] = environment.get("peaks_at", {})


def default_threads() -> int:
    """Threads where neither suite nor user names a number: the physical cores available."""
    return host.physical_cores()


def probe(
    device: str,
    threads: int,
    logs: Path,
    *,
    peaks: bool = True,
    also: Collection[int] = (),
    limits: Limits | None = None,
) -> Machine:
    """Ask a worker about the machine: resolved device, torch, kernels and, with ``peaks``, limits, for
    ``threads`` threads and for those of the numbers ``also`` that are smaller.

    ``device`` is ``auto``, ``cpu`` or ``cuda``. Raises :class:`UserError` where CUDA is asked for
    and missing, :class:`ToolError` where no worker can run.
    """
    job = Job(
        mode="probe",
        name="probe",
        seed=0,
        device=device,
        threads=threads,
        measure_peaks=peaks,
        measure_peaks_at=sorted(number for number in also if number < threads),
    )
    with Worker(job, logs / "probe.log") as worker:
        try:
            event = worker.next_event((limits or Limits()).start)
        except Hang:
            raise ToolError("the worker that looks at the machine does not answer") from None
        if event is None:
            raise ToolError(
                f"the worker that looks at the machine died: {worker.last_words() or 'no message'}",
                "check that torch can be imported: python -c 'import torch'",
            )
        if event["event"] == "refused":
            raise UserError(event["message"], event["remedy"])
    return Machine(event["facts"]["device"], threads, event["facts"])
