"""Accuracy computed once for all layers of equal numerics. Torch-free."""

from __future__ import annotations

from typing import Any

from bitbench.store.schema import Case, Record
from bitbench.store.writer import utc_now

NOT_ACCURACY = frozenset({"training.seconds"})


def copied(source: Record, case: Case) -> Record:
    """The accuracy of ``source`` as the record of an equal case. Bytes and seconds stay behind:
    they belong to the layer that was measured."""
    return Record(
        case=case.id,
        launch=source.launch,
        status=source.status,
        metrics=_accuracy(source.metrics),
        replicates=_accuracy(source.replicates),
        shared_from=source.case,
        started=utc_now(),
    )


def _accuracy(metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in metrics.items()
        if name.startswith(("quality.", "training.")) and name not in NOT_ACCURACY
    }
