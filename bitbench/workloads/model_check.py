"""Whether the layers of a whole model compute what they should, on the activations of a real step.

Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bitbench.store.schema import Check
from bitbench.workloads.conversions import Converted
from bitbench.workloads.language_model import HEAD
from bitbench.workloads.layer_check import Comparison, combined, watched
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
    with watched(layers.values()) as seen:
        step()
    return combined([_compare(converted, layer, *seen[layer], seed) for layer in layers.values()])


def _compare(converted: Converted, layer: nn.Module, x: Tensor, y: Tensor, seed: int) -> Check:
    kind, spec = converted.kind, converted.spec
    x, y = x.flatten(0, -2), y.flatten(0, -2)
    tokens = sampled_tokens(x)
    comparison = Comparison()
    for rows in sampled_rows(y.shape[-1], seed):
        comparison.add(y[tokens][:, rows], kind.reference(spec, layer, x[tokens], rows))
    return comparison.check(kind.tolerance(spec, x.shape[-1]), sound=bool(y.isfinite().all()))
