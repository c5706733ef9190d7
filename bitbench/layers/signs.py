"""Binary layers between binary layers: signs in, signs out, a bit each. Worker side: imports torch when
called.

In a network batch norm and sign stand between two binary layers, and become one threshold for each output
(:func:`impl.fuse_thresholds`). Here thresholds are drawn, for measuring a layer alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bitbench.layers.specs import BinarySpec

_STREAM = 1
"""Added to the seed: thresholds are drawn apart from codes."""


def refuse(spec: BinarySpec) -> None:
    """Raise :class:`bitbench.workloads.base.Unsupported` where ``spec`` is of a layer between signs: it is
    neither trained nor made of a float layer."""
    from bitbench.workloads.base import Unsupported

    if spec.signs:
        raise Unsupported(
            "signs: true is for measuring speed and bytes of a binary layer between binary layers: its "
            "thresholds come from the batch norms of a trained network (impl.fuse_thresholds); name a layer "
            "without `signs`"
        )


def between_signs(layer: Any, dtype: str, seed: int) -> nn.Module:
    """The packed ``layer`` taking signs and giving signs: +1 where its product of signs is above a number of
    each output, half-way between two whole ones, so that no rounding decides which."""
    import torch

    from impl.layers.threshold import ThresholdLayer
    from impl.signs import Thresholds

    scales = layer.scales[0, :, 0].float().expand(layer.out_features)
    device = scales.device
    generator = torch.Generator(device).manual_seed(seed + _STREAM)
    # The deviation of a product of random signs: about as many outputs are +1 as -1.
    deviation = layer.in_features**0.5
    middle = torch.randn(layer.out_features, generator=generator, device=device).mul_(deviation).round_()
    lower = scales * (middle + 0.5)
    if layer.bias is not None:
        lower = lower + layer.bias.detach().float()
    most = torch.full_like(lower, torch.finfo(torch.float32).max)
    thresholds = Thresholds(lower, torch.full_like(lower, torch.inf), -most, most)
    return ThresholdLayer(layer, thresholds, True, getattr(torch, dtype)).eval()


def plus_minus(x: torch.Tensor) -> torch.Tensor:
    """-1 and +1 where ``x`` has them, in its type."""
    import torch

    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def signs_of(x: torch.Tensor) -> Any:
    """The :class:`impl.signs.Signs` of ``x [M, features]`` or ``x [batch, channels, height, width]``."""
    import torch

    from impl.packing.layout import pack_bits
    from impl.signs import Signs

    values = x.movedim(1, -1) if x.dim() == 4 else x
    scale = torch.ones(x.shape[0], device=x.device)
    return Signs(pack_bits(values >= 0), scale, int(values.shape[-1]))


def floats_of(y: Any) -> torch.Tensor:
    """-1 and +1 of :class:`impl.signs.Signs`, as :func:`signs_of` has them; NaN of what is no number."""
    import torch

    floats: torch.Tensor = y.to_float(torch.float32, y.bits.dim() == 4)
    return floats


def reached(values: torch.Tensor, module: Any, rows: slice) -> torch.Tensor:
    """-1 and +1 in float64: whether exact ``values [M, rows]`` or ``[batch, rows, height, width]`` reach the
    thresholds of ``module``."""
    import torch

    lower = module.thresholds.lower[rows].double()
    lower = lower.view(-1, 1, 1) if values.dim() == 4 else lower
    return torch.where(values >= lower, 1.0, -1.0).double()
