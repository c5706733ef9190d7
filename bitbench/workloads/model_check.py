"""Whether the layers of a whole model compute what they should, on the activations of a real step.

Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from bitbench.store.schema import Check
from bitbench.workloads.conversions import Converted
from bitbench.workloads.language_model import HEAD
from bitbench.workloads.layer_check import Comparison
from bitbench.workloads.linear import sampled_rows, sampled_tokens

if TYPE_CHECKING:
    from torch import Tensor, nn


def check_layers(converted: Converted, step: Callable[[], Any], seed: int) -> Check:
    """Each projection of the first, middle and last block, and the head where it was replaced, against
    the exact reference while ``step`` runs the model.

    Of large layers some output features and tokens are compared, drawn by ``seed``; all outputs must be
    finite.
    """
    count = len(converted.model.blocks)
    chosen = tuple(f"blocks.{index}." for index in sorted({0, count // 2, count - 1}))
    layers = {
        name: layer for name, layer in converted.layers.items() if name == HEAD or name.startswith(chosen)
    }
    seen = watched(layers, step)
    return combined([_compare(converted, layer, *seen[name], seed) for name, layer in layers.items()])


def watched(
    layers: Mapping[str, nn.Module], step: Callable[[], Any], rows: Sequence[int] | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """What each of ``layers`` last read and gave while ``step`` ran, of a batch only these ``rows``."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_hook(_keep(seen, name, rows)).remove)
        step()
    return seen


def combined(checks: Sequence[Check]) -> Check:
    """The worst of ``checks``, passed where all are."""
    worst = max(checks, key=lambda check: check.max_error / check.tolerance)
    return worst.model_copy(
        update={
            "passed": all(check.passed for check in checks),
            "compared": sum(check.compared for check in checks),
        }
    )


def _compare(converted: Converted, layer: nn.Module, x: Tensor, y: Tensor, seed: int) -> Check:
    kind, spec = converted.kind, converted.spec
    x, y = x.flatten(0, -2), y.flatten(0, -2)
    tokens = sampled_tokens(x)
    comparison = Comparison()
    for rows in sampled_rows(y.shape[-1], seed):
        comparison.add(y[tokens][:, rows], kind.reference(spec, layer, x[tokens], rows))
    return comparison.check(kind.tolerance(spec, x.shape[-1]), sound=bool(y.isfinite().all()))


def _keep(
    seen: dict[str, tuple[Tensor, Tensor]], name: str, rows: Sequence[int] | None
) -> Callable[..., None]:
    chosen = slice(None) if rows is None else list(rows)

    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[name] = (inputs[0][chosen].detach().clone(), output[chosen].detach().clone())

    return hook
