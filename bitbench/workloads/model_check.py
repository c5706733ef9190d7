"""Whether the layers of a whole model compute what they should, on the activations of a real step.

Importing this module imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from bitbench.store.schema import Check
from bitbench.workloads.language_model import HEAD, Converted
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
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_hook(_keep(seen, name)).remove)
        step()
    checks = [_compare(converted, layer, *seen[name], seed) for name, layer in layers.items()]
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
    worst, largest, compared = 0.0, 1e-30, 0
    for rows in sampled_rows(y.shape[-1], seed):
        exact = kind.reference(spec, layer, x[tokens], rows).double()
        # NaN has no place in an order, and the worst check is looked for.
        error = (y[tokens][:, rows].double() - exact).abs().nan_to_num(nan=math.inf)
        worst, largest = max(worst, float(error.max())), max(largest, float(exact.abs().max()))
        compared += exact.numel()
    if not bool(y.isfinite().all()):
        worst = math.inf
    error_share = worst / largest
    tolerance = kind.tolerance(spec, x.shape[-1])
    return Check(
        passed=error_share <= tolerance, max_error=error_share, tolerance=tolerance, compared=compared
    )


def _keep(seen: dict[str, tuple[Tensor, Tensor]], name: str) -> Callable[..., None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[name] = (inputs[0].detach().clone(), output.detach().clone())

    return hook
