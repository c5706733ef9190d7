"""A suite whose models are drawn at random, for machines that can fetch nothing. Torch-free."""

from __future__ import annotations

from pydantic import ValidationError

from bitbench.data.architectures import ARCHITECTURES, drawn_name
from bitbench.errors import UserError
from bitbench.suite.schema import Suite
from bitbench.workloads import registry
from bitbench.workloads.base import WorkloadSpec


def with_random_weights(suite: Suite) -> tuple[Suite, list[str]]:
    """``suite`` with nothing to fetch, and what became of the entries that had, a line each.

    A model is replaced by random weights in its shape, under a name that says so (``smollm2-135m-random``):
    times and bytes do not depend on the numbers. What does, such as perplexity, and what needs data of
    another sort, is left out.

    Raises :class:`UserError` where that leaves nothing.
    """
    kept: list[WorkloadSpec] = []
    notes: list[str] = []
    for entry in suite.workloads:
        wanted = registry.get(entry.kind).data(entry)
        if not wanted:
            kept.append(entry)
            continue
        drawn = _drawn(entry)
        if drawn is None:
            notes.append(f"{entry.kind} is left out: it needs {', '.join(wanted)}")
            continue
        notes.append(f"{entry.kind} runs {drawn.model}, random weights in the shape of {entry.model}")  # type: ignore[attr-defined]  # those with data have one
        kept.append(drawn)
    if not kept:
        raise UserError(
            f"suite {suite.name!r} has nothing to measure without its data: {'; '.join(notes)}",
            "run it where there is a network, or after `bitbench data fetch`",
        )
    return suite.model_copy(update={"workloads": kept}), notes


def _drawn(entry: WorkloadSpec) -> WorkloadSpec | None:
    """The entry with random weights in its model's place; None where it cannot do with them."""
    model = getattr(entry, "model", None)
    if model is None or drawn_name(model) not in ARCHITECTURES:
        return None
    try:
        made = type(entry).model_validate({**entry.model_dump(mode="json"), "model": drawn_name(model)})
    except ValidationError:  # its predictions are to be judged
        return None
    return None if registry.get(made.kind).data(made) else made
