"""Processor time of this process, up to date for all of its threads. Torch-free.

``time.process_time_ns`` adds up what the scheduler has booked so far. For a thread that is running
on another core that can be a whole tick old (4 ms where the kernel ticks 250 times a second), so a
block of a few milliseconds was given the helpers' work of the block before, or missed its own:
shares of 0.7 to 1.3 for threads that were busy all the time. Reading a thread's own clock makes the
scheduler book it up to that moment; after that the process's clock is right.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass

THREADS = "/proc/self/task"
THREAD_CLOCK = 0b110
"""Low bits of the id of a thread's clock in Linux: one thread rather than its process (4), time
booked by the scheduler (2). The thread's id stands above them, inverted."""


@dataclass(frozen=True)
class Use:
    """Processor time and the time on the wall at one moment, in nanoseconds."""

    wall_ns: int
    cpu_ns: int

    def since(self, earlier: Use) -> Use:
        """Both as differences."""
        return Use(self.wall_ns - earlier.wall_ns, self.cpu_ns - earlier.cpu_ns)


def now() -> Use:
    """Processor time of this process, all threads, and the monotonic clock. Takes some 10 us.

    Off Linux, where threads' clocks cannot be read like this, the process's clock as it stands.
    """
    with contextlib.suppress(OSError):
        for thread in os.listdir(THREADS):
            with contextlib.suppress(OSError):  # it may just have ended
                time.clock_gettime_ns(~int(thread) << 3 | THREAD_CLOCK)
    return Use(time.perf_counter_ns(), time.process_time_ns())


def seconds() -> float:
    """Processor seconds of this process, all threads: ``time.process_time`` brought up to date."""
    return now().cpu_ns / 1e9
