"""Busy neighbours: processes that keep a core busy each, as other programs on the machine do, while the
layers of a point are called.

``python -m bitbench.measure.neighbours PARENT`` is one of them. Between the times when they are wanted
they are stopped and take nothing. They end with the block that they were started for, and, whatever ends
the process that started them, with it; none lives longer than :data:`LONGEST_SECONDS`.

Imports nothing but the standard library: they start as fast as Python does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from types import TracebackType

from bitbench.measure.lifeline import end_with

LONGEST_SECONDS = 3600
"""Of a neighbour: longer than any point takes."""

GLANCE = 100_000
"""Turns of an empty loop, some milliseconds, between two looks at whether it is still wanted."""


class Neighbours:
    """``count`` of them, at work inside :meth:`busy` only. A context manager: they start when it is entered
    and are killed when it is left.

    ``processors``: where they may run; this process's own may be fewer, where it is kept on some. Which of
    them each takes is up to the scheduler, as with any other program.
    """

    def __init__(self, count: int, processors: Collection[int] = ()) -> None:
        self.count = count
        self._processors = processors
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Neighbours:
        try:
            self._running = [self._start() for _ in range(self.count)]
            for process in self._running:
                assert process.stdout is not None
                if not process.stdout.readline():
                    raise RuntimeError(f"a busy neighbour ended with code {process.wait()} as it started")
            self._tell(signal.SIGSTOP)
        except BaseException:
            self._end()
            raise
        return self

    def _start(self) -> subprocess.Popen[bytes]:
        # The group of this process: whoever ends that ends them too.
        command = [sys.executable, "-m", "bitbench.measure.neighbours", str(os.getpid())]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        if self._processors:
            with contextlib.suppress(OSError, AttributeError):
                os.sched_setaffinity(process.pid, self._processors)
        return process

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """They work inside, and rest before and after."""
        self._tell(signal.SIGCONT)
        try:
            yield
        finally:
            self._tell(signal.SIGSTOP)

    @property
    def lost(self) -> int:
        """How many have ended though they should not have."""
        return sum(process.poll() is not None for process in self._running)

    def _tell(self, number: signal.Signals) -> None:
        for process in self._running:
            process.send_signal(number)

    def _end(self) -> None:
        for process in self._running:
            process.kill()
        for process in self._running:
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._running = []

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()


def main() -> None:
    """One neighbour: works until it is no longer wanted."""
    parent = int(sys.argv[1])
    end_with(parent)
    until = time.monotonic() + LONGEST_SECONDS
    print(flush=True)
    while os.getppid() == parent and time.monotonic() < until:
        for _ in range(GLANCE):
            pass


if __name__ == "__main__":
    main()
