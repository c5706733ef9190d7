"""Worker half of a timed point: builds its layers, makes them ready, and turns what was timed into
records. How they are timed is the caller's: side by side in one process
(:mod:`bitbench.execute.timed`) or in turns with another process."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bitbench.execute.isa import own_isa, use_isa
from bitbench.execute.jobs import Job, Visit, derive_seed, layer_spec, threads_at
from bitbench.execute.judge import judge
from bitbench.execute.outcome import end_if_lost, of_exception, one_line
from bitbench.layers import registry as layer_registry
from bitbench.layers.base import LayerSpec
from bitbench.measure import host
from bitbench.measure.clock import Budget, Series, shuffled
from bitbench.measure.neighbours import Neighbours
from bitbench.measure.roofline import Rulers
from bitbench.measure.timers import (
    FLUSH_CALLS,
    GRAPH_BELOW_NS,
    CpuTimer,
    EventTimer,
    FlushTimer,
    GraphTimer,
    Timer,
    TorchGpu,
)
from bitbench.measure.warmup import Warmth, settle
from bitbench.store.schema import Check, Record, Status
from bitbench.store.writer import utc_now
from bitbench.workloads import registry as workload_registry
from bitbench.workloads.base import Context, Session, Subject, Unsupported

GPU_BLOCK_NS = 10_000_000
"""Shortest block on a device."""
LOAD_BLOCK_NS = 20_000_000

Announce = Callable[[str, str], None]
"""Called with (layer, stage) before work on a layer starts."""


@dataclass
class Entrant:
    """A layer on its way through a point."""

    layer: str
    order: int
    subject: Subject
    timer: Timer = field(default_factory=CpuTimer)
    step: int = 1
    """What the calls of a block are a multiple of, for the timer's sake."""
    most: int | None = None
    """Most calls of a block, for the timer's sake."""
    notes: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    """Figures that the ways of timing and loading it give."""
    warmth: Warmth | None = None
    before: Check | None = None
    after: Check | None = None

    @property
    def call_ns(self) -> int:
        """Nanoseconds of one call, by the warm-up."""
        assert self.warmth is not None
        return self.warmth.call_ns


class TimedPoint:
    """One timed point in one launch. Every layer of the visit gets one record, whatever happens:
    here when it fails on the way, from :meth:`conclude` when it was timed."""

    def __init__(
        self,
        job: Job,
        visit: Visit,
        emit: Callable[[Record], None],
        announce: Announce,
        rulers: Rulers,
        budget: Budget | None = None,
    ) -> None:
        self.job = job
        self.visit = visit
        self.launch = visit.launches[0]
        self.emit = emit
        self.announce = announce
        self.ruler = rulers.of(threads_at(job, visit))
        # Not the job's list of layers: a point visited again after a crash keeps its streams.
        self.rng = random.Random(derive_seed(job.seed, self.launch, visit.point, "orders"))
        self.gpu = TorchGpu() if job.device == "cuda" else None
        self.timer: Timer = CpuTimer() if self.gpu is None else EventTimer(self.gpu)
        """For layers that need no other (:attr:`Entrant.timer`)."""
        # On a device a block begins some microseconds after its first event: not to be a part of the result.
        self.budget = budget or (Budget() if self.gpu is None else Budget(block_ns=GPU_BLOCK_NS))
        self.specs = layer_specs(job)
        self.entrants: dict[str, Entrant] = {}
        """Layers still in the running, in the order built."""
        self.neighbours = Neighbours(0)
        """At work whenever layers warm up or are timed."""
        self.started = utc_now()
        self.clock = time.monotonic()

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Layers built, warm and checked; freed at the end."""
        import torch

        context = context_for(self.job, self.visit, derive_seed(self.job.seed, self.launch, self.visit.point))
        kind = workload_registry.get(self.visit.workload)
        with threads_of(self.job, self.visit), opened(kind, self.visit, context) as session, own_isa():
            self._build(session)
            with neighbours_of(self.visit) as self.neighbours, torch.inference_mode():
                self._prepare()
                yield
            self.entrants.clear()

    def _build(self, session: Session) -> None:
        specs = self.specs
        for order, layer in enumerate(shuffled(list(self.visit.cases), self.rng)):
            self.announce(layer, "build")
            reason = layer_registry.get(specs[layer].kind).unsupported(specs[layer], self.job.device)
            if reason:
                self.fail(layer, order, Status.UNSUPPORTED, reason)
                continue
            with self._attributed(layer, order):
                use_isa(specs[layer])
                self.entrants[layer] = Entrant(layer, order, session.build(layer, specs[layer]))

    def _prepare(self) -> None:
        """Warm each layer up and check it; those that fail leave."""
        for entrant in list(self.entrants.values()):
            with self._attributed(entrant.layer, entrant.order):
                self.announce(entrant.layer, "warm-up")
                self.enter(entrant.layer)
                with self.neighbours.busy():
                    self._warm(entrant)
                self.announce(entrant.layer, "check")
                entrant.before = entrant.subject.check()
                if not entrant.before.passed:
                    self._incorrect(entrant, entrant.before, "before timing")
                    del self.entrants[entrant.layer]

    def _warm(self, entrant: Entrant) -> None:
        """Warm a layer up, and settle by which timer it is timed."""
        subject = entrant.subject
        entrant.timer = self.timer
        if self.gpu is not None and subject.flush:
            entrant.timer, entrant.most = FlushTimer(self.gpu), FLUSH_CALLS
        # Also where it is replayed later: nothing may be launched for the first time while it is captured.
        entrant.warmth = settle(subject, entrant.timer, self.budget, most=entrant.most)
        if self.gpu is None or not subject.replayable:
            return
        if not subject.many_kernels and entrant.call_ns >= GRAPH_BELOW_NS:
            return
        eager = entrant.call_ns
        graph = GraphTimer(self.gpu, subject.rotation, size=subject.block_calls)
        try:
            entrant.warmth = settle(subject, graph, self.budget, step=graph.size)
        except RuntimeError as error:
            # Such as work that waits for the device. Where the error is another, it comes again.
            traceback.print_exc(file=sys.stderr)
            entrant.notes.append(f"launched call by call, for it cannot be captured: {one_line(str(error))}")
            entrant.warmth = settle(subject, entrant.timer, self.budget, most=entrant.most)
            return
        entrant.timer, entrant.step = graph, graph.size
        entrant.metrics["time.eager"] = eager / 1e9

    def enter(self, layer: str) -> None:
        """To be called, untimed, before ``layer`` is called after others may have been."""
        use_isa(self.specs[layer])

    def leave(self, layer: str, error: BaseException) -> None:
        """``layer`` raised ``error`` while it was timed: that becomes its record."""
        traceback.print_exc(file=sys.stderr)
        end_if_lost(self.gpu)
        self.fail(layer, self.entrants.pop(layer).order, *of_exception(error))

    def loads(self) -> float:
        """Seconds for which each layer is to be kept at work alone in this launch."""
        wanted: float | None = self.visit.spec.get("load")
        return wanted if wanted and self.gpu is not None and self.launch == 0 else 0.0

    def load(self, layer: str, seconds: float) -> None:
        """Keep ``layer`` at work alone, so that the machine's counters can be read beside it.

        The host waits for the device some fifty times a second and no more often. A layer that needs a flush
        before each call cannot be loaded: the device would be at work on flushes.
        """
        entrant = self.entrants[layer]
        subject = entrant.subject
        if subject.flush:
            return
        with self._attributed(layer, entrant.order):
            self.announce(layer, "load")
            self.enter(layer)
            calls = subject.block_calls or -(-LOAD_BLOCK_NS // entrant.call_ns // entrant.step) * entrant.step
            calls = min(calls, subject.max_calls or calls)
            made, started = 0, time.monotonic()
            while (elapsed := time.monotonic() - started) < seconds:
                subject.reset()
                entrant.timer.block(subject.call, calls)
                made += calls
            entrant.metrics["gpu.calls_per_s"] = made / elapsed

    def conclude(self, layer: str, series: Series) -> None:
        """Check ``layer`` again and give its record, with what was timed."""
        entrant = self.entrants[layer]
        warmth = entrant.warmth
        with self._attributed(layer, entrant.order):
            self.announce(layer, "check")
            self.enter(layer)
            entrant.after = entrant.subject.check()
            if not entrant.after.passed:
                self._incorrect(entrant, entrant.after, "after timing")
                return
            self.announce(layer, "judge")
            entrant.subject.timed(median(series.samples_ns) / series.calls / 1e9)
            judgement = judge(
                entrant.subject,
                series,
                self.job,
                self.ruler,
                visit=self.visit,
                layer=layer,
                neighbours=self.neighbours,
            )
            self.emit(
                Record(
                    case=self.visit.cases[layer],
                    launch=self.launch,
                    side=self.job.side,
                    status=judgement.status,
                    reason=judgement.reason,
                    calls=series.calls,
                    samples_ns=series.samples_ns,
                    order=entrant.order,
                    timer=series.timer,
                    stop=series.stop,
                    notes=[
                        *judgement.notes,
                        *entrant.notes,
                        *([warmth.note] if warmth is not None and warmth.note else []),
                    ],
                    kernel=entrant.subject.kernel,
                    dispatch=judgement.dispatch,
                    before=entrant.before,
                    after=entrant.after,
                    metrics={**judgement.metrics, **entrant.metrics},
                    started=self.started,
                    wall_s=time.monotonic() - self.clock,
                )
            )

    @contextlib.contextmanager
    def _attributed(self, layer: str, order: int) -> Iterator[None]:
        """An exception inside costs this layer only: it becomes its record, and the layer leaves."""
        try:
            yield
            if self.gpu is not None:
                self.gpu.synchronize()  # what goes wrong on the device does so in its own layer
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            end_if_lost(self.gpu)
            self.fail(layer, order, *of_exception(error))
            self.entrants.pop(layer, None)

    def _incorrect(self, entrant: Entrant, check: Check, when: str) -> None:
        reason = (
            f"{when}: error {check.max_error:.3g} of the largest reference value, "
            f"tolerance {check.tolerance:.3g}, {check.compared} outputs compared"
        )
        self.fail(
            entrant.layer,
            entrant.order,
            Status.INCORRECT,
            reason,
            kernel=entrant.subject.kernel,
            before=entrant.before,
            after=entrant.after,
        )

    def fail(self, layer: str, order: int, status: Status, reason: str, **fields: Any) -> None:
        """The record of a layer that did not come to be timed."""
        self.emit(
            Record(
                case=self.visit.cases[layer],
                launch=self.launch,
                side=self.job.side,
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
    return {name: layer_spec(job, name) for name in job.layers}


def context_for(job: Job, visit: Visit, seed: int) -> Context:
    """What the workload gets to know about this worker."""
    specs = layer_specs(job)
    return Context(
        device=job.device,
        threads=threads_at(job, visit),
        seed=seed,
        cache_dir=Path(job.cache_dir),
        layers={name: spec for name, spec in specs.items() if name in visit.cases},
        baseline=job.baseline,
    )


@contextlib.contextmanager
def threads_of(job: Job, visit: Visit) -> Iterator[None]:
    """The point's number of threads inside, the run's afterwards.

    Raises :class:`Unsupported` where that is more than the run has: its limits are those of its own
    number, and its processes may be kept on as many cores.
    """
    import torch

    wanted = threads_at(job, visit)
    if wanted > job.threads:
        raise Unsupported(
            f"{wanted} threads are more than the {job.threads} of the run: give --threads {wanted} where "
            "there are as many cores"
        )
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(job.threads)


def neighbours_of(visit: Visit) -> Neighbours:
    """The busy neighbours that the point asks for, none as a rule.

    Raises :class:`Unsupported` where those are more than the processors that the run may use.
    """
    wanted = visit.spec.get("neighbours")
    if wanted is None:
        return Neighbours(0)
    # This process may be kept on some of them; the one that runs it is not.
    usable = host.usable_beside(os.getppid()) or host.usable_cpus()
    count = len(usable) if wanted == "all" else int(wanted)
    if count > len(usable):
        raise Unsupported(
            f"{count} neighbours are more than the {len(usable)} processors that can be used here: write "
            f"`neighbours: all`, or at most {len(usable)}"
        )
    return Neighbours(count, usable)


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
