"""Other processes that disturb a measurement: those that burn processor time or hold the GPU.

Names only: a command line can hold secrets, and a published run must not. Torch-free.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import psutil

from bitbench.measure.nvml import Gpu, find_gpu

BUSY_SHARE = 0.2
"""Share of one processor above which a process counts as busy. What idles in the background (a
desktop, an agent that reports once a minute) stays below; a compiler or another measurement is far
above."""
LOOK_SECONDS = 0.5
"""Processor times advance in steps of 10 ms: over half a second that is 2 % of a processor."""
UNSEEN_SHARE = 0.1
"""Share of all the machine's work that must be unaccounted for before that is said: the machine's
time is counted in ticks, that of processes by the scheduler."""
UNSEEN = "processes not visible here, or too short to be named"
ELSEWHERE = "a process outside this container"


@dataclass(frozen=True)
class Seen:
    """One process at one moment."""

    name: str
    parent: int
    born: float
    """Creation time: tells a reused process id apart."""
    cpu_s: float
    """Processor seconds, user and system, of all its threads."""


Look = Callable[[], Mapping[int, Seen]]


def look() -> dict[int, Seen]:
    """All visible processes by id. Those that end while they are read are left out."""
    found = {}
    for process in psutil.process_iter():
        try:
            with process.oneshot():
                times = process.cpu_times()
                found[process.pid] = Seen(
                    process.name(), process.ppid(), process.create_time(), times.user + times.system
                )
        except psutil.Error:
            continue
    return found


def family(processes: Mapping[int, Seen], root: int) -> set[int]:
    """``root`` and all its descendants."""
    children: dict[int, list[int]] = {}
    for pid, seen in processes.items():
        children.setdefault(seen.parent, []).append(pid)
    ours, waiting = {root}, [root]
    while waiting:
        for child in children.get(waiting.pop(), []):
            if child not in ours:
                ours.add(child)
                waiting.append(child)
    return ours


class Foreign:
    """Watches what other processes use between one call of :meth:`busy` and the next.

    This process and its descendants (the workers) are not foreign.
    """

    def __init__(
        self, *, look: Look = look, clock: Callable[[], float] = time.monotonic, root: int | None = None
    ) -> None:
        self._look, self._clock = look, clock
        self._root = os.getpid() if root is None else root
        self._then = clock()
        self.processes = look()
        """All processes as last seen."""

    def busy(self) -> list[str]:
        """``python3 (97 % cpu)`` for every foreign process that used more than
        :data:`BUSY_SHARE` of a processor since the last call, busiest first. 100 % is one processor."""
        now, processes = self._clock(), self._look()
        elapsed = now - self._then
        shares = _shares(self.processes, processes, elapsed, family(processes, self._root))
        self._then, self.processes = now, processes
        return [f"{name} ({100 * share:.0f} % cpu)" for name, share in shares if share > BUSY_SHARE]


def _shares(
    before: Mapping[int, Seen], after: Mapping[int, Seen], elapsed: float, ours: Iterable[int]
) -> list[tuple[str, float]]:
    """Name and processors used of every process that is not ours and was there before, busiest first."""
    if elapsed <= 0:
        return []
    family_ids = frozenset(ours)
    found = [
        (seen.name, (seen.cpu_s - before[pid].cpu_s) / elapsed)
        for pid, seen in after.items()
        if pid in before and before[pid].born == seen.born and pid not in family_ids
    ]
    return sorted(found, key=lambda entry: -entry[1])


def gpu_holders(
    pids: Iterable[int], processes: Mapping[int, Seen], *, root: int | None = None, hidden: bool = False
) -> list[str]:
    """``gpu: ollama`` for every process with a context on the GPU that is not of our family.

    A driver may name processes by ids of another process namespace, which then mean nothing here;
    they could be our own workers. They count only with ``hidden``, which is for a moment when no
    worker of ours can be on the GPU.
    """
    ours = family(processes, os.getpid() if root is None else root)
    names = []
    for pid in pids:
        if pid in processes and pid not in ours:
            names.append(f"gpu: {processes[pid].name}")
        elif pid not in processes and hidden:
            names.append(f"gpu: {ELSEWHERE}")
    return sorted(set(names))


def busy_processes(seconds: float = LOOK_SECONDS, *, gpu: Gpu | None = None) -> list[str]:
    """Other processes at work now: ``python3 (97 % cpu)``, ``gpu: ollama``. Empty when undisturbed.

    Looks for ``seconds`` and returns, so it is for the start of a run; while one goes on,
    :class:`bitbench.measure.telemetry.Telemetry` watches. Must be called before workers are
    started: what is then on the GPU is foreign. Processor use that no visible process accounts for
    (another container, a storm of short processes) is listed as such.
    """
    then, before = time.monotonic(), look()
    machine_before = _machine_busy_s()
    time.sleep(seconds)
    elapsed, after = time.monotonic() - then, look()
    machine = (_machine_busy_s() - machine_before) / elapsed
    ours = family(after, os.getpid())
    shares = _shares(before, after, elapsed, ours)
    names = [f"{name} ({100 * share:.0f} % cpu)" for name, share in shares if share > BUSY_SHARE]
    own = sum(after[pid].cpu_s - before[pid].cpu_s for pid in ours if pid in before and pid in after)
    unseen = machine - own / elapsed - sum(share for _, share in shares)
    if unseen > max(BUSY_SHARE, UNSEEN_SHARE * machine):
        names.append(f"{UNSEEN} ({100 * unseen:.0f} % cpu)")
    device = find_gpu() if gpu is None else gpu
    try:
        return names + gpu_holders(device.read().pids, after, hidden=True)
    finally:
        if gpu is None:
            device.close()


def _machine_busy_s() -> float:
    """Processor seconds the whole machine has worked, as the kernel shows it to us."""
    times = psutil.cpu_times()
    worked = ("user", "nice", "system", "irq", "softirq")  # Linux keeps nice apart from user
    return sum(float(getattr(times, name, 0.0)) for name in worked)
