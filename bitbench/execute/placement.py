"""Which cores the two processes of a launch work on: the same ones, since they take turns. Torch-free.

Left to the scheduler, one side may get the quieter core for a whole launch. Measured on two cores
beside busy neighbours, the same code on both sides, in three interleaved runs of eight launches: the
median spread over cases was 4 to 9 % then, and 1 to 3 % on shared cores.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from bitbench.measure.host import CPU_DIR, cpu_list, read, usable_cpus


def cores() -> list[int]:
    """One logical processor of each physical core that can be used, cores of one socket together."""
    found: dict[tuple[int, int], int] = {}
    for cpu in sorted(usable_cpus()):
        folder = CPU_DIR / f"cpu{cpu}" / "topology"
        package = read(folder / "physical_package_id")
        first = min(cpu_list(read(folder / "thread_siblings_list")) or {cpu})
        found.setdefault((int(package) if package.isdigit() else 0, first), cpu)
    return [found[core] for core in sorted(found)]


def seats(threads: int, found: Sequence[int], start: int) -> set[int]:
    """Processors for ``threads`` threads: neighbouring cores from the one numbered ``start`` on, round
    the end. Empty where there are fewer cores than threads: then the scheduler decides."""
    if threads > len(found):
        return set()
    return {found[(start + i) % len(found)] for i in range(threads)}


def seat(pid: int, processors: set[int]) -> None:
    """Keep the process ``pid``, all its threads and those it will start on ``processors``; nothing
    where that is not possible (another system than Linux, a sandbox)."""
    if not processors or not hasattr(os, "sched_setaffinity"):
        return
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # it may just have ended
                os.sched_setaffinity(int(thread.name), processors)
