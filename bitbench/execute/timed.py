"""A launch in one process: the layers of each timed point take turns, side by side."""

from __future__ import annotations

from dataclasses import replace

from bitbench.execute.point import TimedPoint
from bitbench.measure.clock import Series, shuffled, time_together


class PointClock(TimedPoint):
    """Measures one timed point in one launch. Gives one record a layer, whatever happens."""

    def run(self) -> None:
        """Build, warm, check, time, check again; emit the records."""
        with self.opened():
            timed = self._time()
            if seconds := self.loads():
                for layer in timed:
                    self.load(layer, seconds)
            timed = {layer: series for layer, series in timed.items() if layer in self.entrants}
            # The baseline first: what the others say may refer to its time.
            for layer in sorted(timed, key=lambda name: name != self.job.baseline):
                self.conclude(layer, timed[layer])

    def _time(self) -> dict[str, Series]:
        """Time all that are left. A layer that raises leaves, and the others start over."""
        while self.entrants:
            current = ""

            def turn(layer: str) -> None:
                nonlocal current
                current = layer
                self.announce(layer, "time")
                self.enter(layer)

            try:
                wanted = [s for e in self.entrants.values() if (s := e.subject.seconds) is not None]
                # Turns start from an order of their own, not from the build order.
                names = shuffled(list(self.entrants), self.rng)
                with self.neighbours.busy():
                    return time_together(
                        {name: self.entrants[name].subject for name in names},
                        rng=self.rng,
                        timer=self.timer,
                        budget=replace(self.budget, seconds=max([self.budget.seconds, *wanted])),
                        call_ns={name: self.entrants[name].call_ns for name in names},
                        announce=turn,
                        timers={name: self.entrants[name].timer for name in names},
                        steps={name: self.entrants[name].step for name in names},
                        most={name: self.entrants[name].most for name in names},
                        fixed={
                            name: calls
                            for name in names
                            if (calls := self.entrants[name].subject.block_calls) is not None
                        },
                    )
            except Exception as error:
                self.leave(current, error)
        return {}
