"""Worker half of the ``once`` points: opened once, their layers measured one after another."""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Callable

from bitbench.execute.dispatch import dispatch_of, unmet
from bitbench.execute.isa import own_isa, use_isa
from bitbench.execute.jobs import Job, Visit, derive_seed
from bitbench.execute.outcome import end_if_lost, of_exception
from bitbench.execute.point import context_for, layer_specs, opened
from bitbench.execute.seeds import set_seeds
from bitbench.layers import registry as layer_registry
from bitbench.layers.base import LayerSpec
from bitbench.measure.memory import reset_peak
from bitbench.measure.timers import Gpu, TorchGpu
from bitbench.store.metrics import METRICS
from bitbench.store.schema import Record, Status
from bitbench.store.writer import utc_now
from bitbench.workloads import registry as workload_registry
from bitbench.workloads.base import Outcome, Session

Announce = Callable[[str, int, str], None]
"""Called with (layer, replicate, stage) before work on a replicate starts."""


def measure_point(job: Job, visit: Visit, emit: Callable[[Record], None], announce: Announce) -> None:
    """The visit's replicates of each of its layers. Gives one record each.

    The seed of the context depends on the point only, so that all layers see the same data;
    ``replicate`` numbers what differs.
    """
    specs = {name: spec for name, spec in layer_specs(job).items() if name in visit.cases}
    able = []
    for layer, spec in specs.items():
        reason = layer_registry.get(spec.kind).unsupported(spec, job.device)
        if not reason:
            able.append(layer)
            continue
        for replicate in visit.launches:
            emit(
                Record(
                    case=visit.cases[layer],
                    launch=replicate,
                    status=Status.UNSUPPORTED,
                    reason=reason,
                    started=utc_now(),
                )
            )
    if not able:
        return
    gpu = TorchGpu() if job.device == "cuda" else None
    context = context_for(job, visit, derive_seed(job.seed, "once", visit.point))
    with opened(workload_registry.get(visit.workload), visit, context) as session, own_isa():
        for layer in able:
            for replicate in visit.launches:
                announce(layer, replicate, "measure")
                # What shares this process must not show in a number: neither the random streams it
                # has used up nor the memory it has left behind.
                set_seeds(context.seed)
                gc.collect()
                emit(_measured(session, visit, layer, specs[layer], replicate, gpu))


def _measured(
    session: Session, visit: Visit, layer: str, spec: LayerSpec, replicate: int, gpu: Gpu | None
) -> Record:
    started, clock = utc_now(), time.monotonic()
    status, reason, outcome = Status.OK, "", Outcome({})
    reset_peak()
    try:
        use_isa(spec)
        outcome = session.measure(layer, spec, replicate)
        unknown = (set(outcome.metrics) | set(outcome.replicates)) - set(METRICS)
        if unknown:
            raise ValueError(f"metrics unknown to bitbench.store.metrics: {sorted(unknown)}")
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        end_if_lost(gpu)
        status, reason = of_exception(error)
        outcome = Outcome({})
    kind = layer_registry.get(spec.kind)
    if status is Status.OK and (other := unmet(kind, spec, visit.spec, outcome.kernel)):
        status, reason = Status.FALLBACK, other
    return Record(
        case=visit.cases[layer],
        launch=replicate,
        status=status,
        reason=reason,
        kernel=outcome.kernel,
        dispatch=dispatch_of(kind, spec, outcome.kernel),
        metrics=outcome.metrics,
        replicates=outcome.replicates,
        started=started,
        wall_s=time.monotonic() - clock,
    )
