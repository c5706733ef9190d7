"""Where the time of a run goes: seconds by stage, from what workers say they are at. Torch-free."""

from __future__ import annotations

import time
from collections.abc import Callable

from bitbench.store.schema import Record

START = "start"
"""A worker process starts (interpreter, torch, kernels) or ends."""
IDLE = "idle"
"""Between workers: records written, jobs made."""
TIMED = "timed"
"""Inside timed blocks; a part of the stage ``time``, whose rest is untimed calls at each turn."""
TIME = "time"
MEASURE = "measure"


class Stages:
    """A stop watch with one hand: a stage lasts until the next one is entered."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._since = self._began
        self._stage = IDLE
        self._seconds: dict[str, float] = {}
        self.processes = 0
        """Workers started."""

    def enter(self, stage: str) -> None:
        """``stage`` starts now."""
        now = self._clock()
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + now - self._since
        self._since, self._stage = now, stage

    def starting(self) -> None:
        """A worker is started now."""
        self.processes += 1
        self.enter(START)

    def recorded(self, record: Record) -> None:
        """Count the timed blocks of ``record``."""
        if record.samples_ns:
            self._seconds[TIMED] = self._seconds.get(TIMED, 0.0) + sum(record.samples_ns) / 1e9

    @property
    def wall_s(self) -> float:
        """Seconds since this watch was made."""
        return self._clock() - self._began

    @property
    def start_seconds(self) -> float:
        """Mean seconds that a worker took to start and end; 0 before the first."""
        return self._seconds.get(START, 0.0) / self.processes if self.processes else 0.0

    def seconds(self) -> dict[str, float]:
        """Seconds by stage so far, longest first, to the millisecond."""
        self.enter(self._stage)
        return {k: round(v, 3) for k, v in sorted(self._seconds.items(), key=lambda item: -item[1])}


def sentence(wall_s: float, stages: dict[str, float]) -> str:
    """``160 s: 104 s in timed blocks (65 %), 20 s build, 12 s check, ...``; stages below 1 % are left
    out. What is measured once counts as measuring, not as overhead."""
    useful = stages.get(TIMED, 0.0)
    parts = [f"{useful:.0f} s in timed blocks ({useful / wall_s:.0%})"] if useful else []
    between = stages.get(TIME, 0.0) - useful
    rest = {name: s for name, s in stages.items() if name not in (TIMED, TIME)}
    rest |= {"untimed calls between blocks": between} if between > 0 else {}
    shown = sorted(rest.items(), key=lambda item: -item[1])
    parts += [f"{seconds:.1f} s {name}" for name, seconds in shown if seconds >= 0.01 * wall_s]
    return f"{wall_s:.0f} s: " + ", ".join(parts)
