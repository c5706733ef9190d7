"""Worker half of a launch: visits timed points and times their layers side by side."""

from __future__ import annotations

import contextlib
import gc
import json
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from bitbench.execute.jobs import Job, Visit, derive_seed
from bitbench.execute.outcome import of_exception
from bitbench.layers import registry as layer_registry
from bitbench.layers.base import LayerSpec
from bitbench.measure.clock import (
    Budget,
    CpuTimer,
    CudaTimer,
    Series,
    Timer,
    shuffled,
    time_together,
    warm_up,
)
from bitbench.measure.roofline import Ruler
from bitbench.store.schema import Check, Record, Status
from bitbench.store.writer import utc_now
from bitbench.workloads import registry as workload_registry
from bitbench.workloads.base import Context, Session, Subject

Announce = Callable[[str, str], None]
"""Called with (layer, stage) before work on a layer starts."""


@dataclass
class Entrant:
    """A layer on its way through a point."""

    layer: str
    order: int
    subject: Subject
    call_ns: int = 0
    before: Check | None = None
    after: Check | None = None


class PointClock:
    """Measures one timed point in one launch. Gives one record a layer, whatever happens."""

    def __init__(
        self,
        job: Job,
        visit: Visit,
        emit: Callable[[Record], None],
        announce: Announce,
        ruler: Ruler,
        budget: Budget | None = None,
    ) -> None:
        self.job = job
        self.visit = visit
        self.launch = visit.launches[0]
        self.emit = emit
        self.announce = announce
        self.ruler = ruler
        # Not the job's list of layers: a point visited again after a crash keeps its streams.
        self.rng = random.Random(derive_seed(job.seed, self.launch, visit.point, "orders"))
        self.timer: Timer = CudaTimer() if job.device == "cuda" else CpuTimer()
        self.budget = budget or Budget()
        self.started = utc_now()
        self.clock = time.monotonic()

    def run(self) -> None:
        """Build, warm, check, time, check again; emit the records."""
        import torch

        specs = layer_specs(self.job)
        context = context_for(self.job, self.visit, derive_seed(self.job.seed, self.launch, self.visit.point))
        kind = workload_registry.get(self.visit.workload)
        with opened(kind, self.visit, context) as session:
            entrants = self._build(session, specs)
            with torch.inference_mode():
                self._prepare(entrants)
                series = self._time(entrants)
                for entrant in list(entrants.values()):
                    with self._attributed(entrant.layer, entrant.order, entrants):
                        self._conclude(entrant, series[entrant.layer])

    def _build(self, session: Session, specs: dict[str, LayerSpec]) -> dict[str, Entrant]:
        entrants: dict[str, Entrant] = {}
        for order, layer in enumerate(shuffled(list(self.visit.cases), self.rng)):
            self.announce(layer, "build")
            reason = layer_registry.get(specs[layer].kind).unsupported(specs[layer], self.job.device)
            if reason:
                self._fail(layer, order, Status.UNSUPPORTED, reason)
                continue
            with self._attributed(layer, order):
                entrants[layer] = Entrant(layer, order, session.build(layer, specs[layer]))
        return entrants

    def _prepare(self, entrants: dict[str, Entrant]) -> None:
        """Warm each layer up and check it; those that fail leave."""
        for entrant in list(entrants.values()):
            with self._attributed(entrant.layer, entrant.order, entrants):
                self.announce(entrant.layer, "warm-up")
                entrant.call_ns = warm_up(entrant.subject, self.timer, self.budget)
                self.announce(entrant.layer, "check")
                entrant.before = entrant.subject.check()
                if not entrant.before.passed:
                    self._incorrect(entrant, entrant.before, "before timing")
                    del entrants[entrant.layer]

    def _time(self, entrants: dict[str, Entrant]) -> dict[str, Series]:
        """Time all that are left. A layer that raises leaves, and the others start over."""
        while entrants:
            current = ""

            def turn(layer: str) -> None:
                nonlocal current
                current = layer
                self.announce(layer, "time")

            try:
                wanted = [s for e in entrants.values() if (s := e.subject.seconds) is not None]
                # Turns start from an order of their own, not from the build order.
                names = shuffled(list(entrants), self.rng)
                return time_together(
                    {name: entrants[name].subject for name in names},
                    rng=self.rng,
                    timer=self.timer,
                    budget=replace(self.budget, seconds=max([self.budget.seconds, *wanted])),
                    call_ns={name: entrants[name].call_ns for name in names},
                    announce=turn,
                )
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                self._fail(current, entrants.pop(current).order, *of_exception(error))
        return {}

    def _conclude(self, entrant: Entrant, series: Series) -> None:
        self.announce(entrant.layer, "check")
        subject = entrant.subject
        entrant.after = subject.check()
        if not entrant.after.passed:
            self._incorrect(entrant, entrant.after, "after timing")
            return
        seconds = median(series.samples_ns) / series.calls / 1e9
        metrics = {"cpu.utilisation": series.utilisation(self.job.threads), **subject.metrics()}
        work = subject.work()
        status, reason = Status.OK, ""
        if work is not None:
            reached = self.ruler.share(work, seconds)
            if reached is not None:
                metrics["roofline.share"] = reached
            too_fast = self.ruler.impossible(work, seconds)
            if too_fast:
                status, reason = Status.INVALID, too_fast
        invalid, fallback = subject.invalid(), subject.fallback()
        if invalid:
            status, reason = Status.INVALID, invalid
        if fallback:
            status, reason = Status.FALLBACK, fallback
        self.emit(
            Record(
                case=self.visit.cases[entrant.layer],
                launch=self.launch,
                status=status,
                reason=reason,
                calls=series.calls,
                samples_ns=series.samples_ns,
                order=entrant.order,
                kernel=subject.kernel,
                before=entrant.before,
                after=entrant.after,
                metrics=metrics,
                started=self.started,
                wall_s=time.monotonic() - self.clock,
            )
        )

    @contextlib.contextmanager
    def _attributed(
        self, layer: str, order: int, entrants: dict[str, Entrant] | None = None
    ) -> Iterator[None]:
        """An exception inside costs this layer only: it becomes its record, and the layer leaves."""
        try:
            yield
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self._fail(layer, order, *of_exception(error))
            if entrants is not None:
                entrants.pop(layer, None)

    def _incorrect(self, entrant: Entrant, check: Check, when: str) -> None:
        reason = (
            f"{when}: error {check.max_error:.3g} of the largest reference value, "
            f"tolerance {check.tolerance:.3g}, {check.compared} outputs compared"
        )
        self._fail(
            entrant.layer,
            entrant.order,
            Status.INCORRECT,
            reason,
            kernel=entrant.subject.kernel,
            before=entrant.before,
            after=entrant.after,
        )

    def _fail(self, layer: str, order: int, status: Status, reason: str, **fields: Any) -> None:
        self.emit(
            Record(
                case=self.visit.cases[layer],
                launch=self.launch,
                status=status,
                reason=reason,
                order=order,
                started=self.started,
                wall_s=time.monotonic() - self.clock,
                **fields,
            )
        )


def layer_specs(job: Job) -> dict[str, LayerSpec]:
    """The job's layers as their kinds describe them."""
    return {
        name: layer_registry.get(str(spec["kind"])).spec.model_validate_json(json.dumps(spec))
        for name, spec in job.layers.items()
    }


def context_for(job: Job, visit: Visit, seed: int) -> Context:
    """What the workload gets to know about this worker."""
    specs = layer_specs(job)
    return Context(
        device=job.device,
        threads=job.threads,
        seed=seed,
        cache_dir=Path(job.cache_dir),
        layers={name: spec for name, spec in specs.items() if name in visit.cases},
        baseline=job.baseline,
    )


@contextlib.contextmanager
def opened(kind: Any, visit: Visit, context: Context) -> Iterator[Session]:
    """The point's session, closed and freed at the end."""
    session: Session = kind.open(kind.spec.model_validate_json(json.dumps(visit.spec)), visit.params, context)
    try:
        yield session
    finally:
        session.close()
        del session
        gc.collect()
