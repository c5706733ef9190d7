"""Worker half of the ``once`` points: one layer of one workload entry, its cases one after another."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable

from bitbench.execute.jobs import Job, Visit, derive_seed
from bitbench.execute.outcome import of_exception
from bitbench.execute.timed import context_for, layer_specs, opened
from bitbench.layers import registry as layer_registry
from bitbench.measure.memory import reset_peak
from bitbench.store.metrics import METRICS
from bitbench.store.schema import Record, Status
from bitbench.store.writer import utc_now
from bitbench.workloads import registry as workload_registry
from bitbench.workloads.base import Outcome


def measure_point(
    job: Job, visit: Visit, emit: Callable[[Record], None], announce: Callable[[str, int, str], None]
) -> None:
    """All missing replicates of one case. Gives one record each.

    ``announce(layer, replicate, stage)`` is called before work on a replicate starts. The seed of
    the context depends on the point only, so that all layers see the same data; ``replicate``
    numbers what differs.
    """
    (layer, case) = next(iter(visit.cases.items()))
    spec = layer_specs(job)[layer]
    announce(layer, visit.launches[0], "open")
    unsupported = layer_registry.get(spec.kind).unsupported(spec, job.device)
    if unsupported:
        for replicate in visit.launches:
            emit(
                Record(
                    case=case,
                    launch=replicate,
                    status=Status.UNSUPPORTED,
                    reason=unsupported,
                    started=utc_now(),
                )
            )
        return
    context = context_for(job, visit, derive_seed(job.seed, "once", visit.point))
    with opened(workload_registry.get(visit.workload), visit, context) as session:
        for replicate in visit.launches:
            announce(layer, replicate, "measure")
            started, clock = utc_now(), time.monotonic()
            status, reason, outcome = Status.OK, "", Outcome({})
            reset_peak()
            try:
                outcome = session.measure(layer, spec, replicate)
                unknown = (set(outcome.metrics) | set(outcome.replicates)) - set(METRICS)
                if unknown:
                    raise ValueError(f"metrics unknown to bitbench.store.metrics: {sorted(unknown)}")
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                status, reason = of_exception(error)
                outcome = Outcome({})
            emit(
                Record(
                    case=case,
                    launch=replicate,
                    status=status,
                    reason=reason,
                    kernel=outcome.kernel,
                    metrics=outcome.metrics,
                    replicates=outcome.replicates,
                    started=started,
                    wall_s=time.monotonic() - clock,
                )
            )
