"""The residual block that the workload ``block`` times: how it is made, and whether it is right. Worker side:
imports torch."""

from __future__ import annotations

import copy
import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import impl
from bitbench.layers.base import LayerKind, LayerSpec
from bitbench.store.schema import Check
from bitbench.suite.convolutions import BlockShape, ConvShape
from bitbench.workloads.layer_check import check_seen, watched
from impl.layers.activations import SteSign
from impl.layers.threshold import ThresholdLayer
from impl.models.resnet import Block


class TimedBlock(Block):
    """A block with an activation of its own between the two convolutions."""

    between: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.between(self.norm1(self.conv1(x)))))
        total: Tensor = self.activation(y + self.shortcut(x))
        return total


def folded_block(kind: LayerKind, spec: LayerSpec, shape: BlockShape, *, seed: int) -> TimedBlock:
    """The block with ``kind``'s convolutions of random weights, batch norms drawn at random and folded into
    them; of a training form, which quantises its weight in every call, they are left as they are.

    The convolutions of a layer with ``signs: true`` exchange them as floats here; see :func:`timed_form`.
    """
    if getattr(spec, "signs", False):
        spec = spec.model_copy(update={"signs": False})
    only_signs = getattr(spec, "activation_bits", None) == 1
    seeds = itertools.count(seed)

    def conv(in_channels: int, out_channels: int, kernel: int, stride: int, padding: int) -> nn.Module:
        # The size of an image changes nothing of the weight.
        one = ConvShape(shape=[out_channels, in_channels], kernel=kernel, stride=stride, size=kernel)
        assert one.padding == padding
        return kind.random_conv2d(spec, one, bias=False, seed=next(seeds))

    rows, columns = shape.shape
    # After ReLU every sign is +1.
    block = TimedBlock(columns, rows, shape.stride, conv, F.hardtanh if only_signs else F.relu)
    block.between = SteSign() if only_signs else nn.ReLU()
    block.requires_grad_(False).eval()
    _draw_norms(block, torch.Generator().manual_seed(seed))
    if getattr(spec, "form", "packed") == "training":
        return block
    return _fold(block)


def _draw_norms(block: TimedBlock, generator: torch.Generator) -> None:
    """Batch norms as those of a trained network are: none that leaves its input as it is."""
    for norm in (part for part in block.modules() if isinstance(part, nn.BatchNorm2d)):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.normal_(0, 0.1, generator=generator)
        norm.running_var.uniform_(0.5, 1.5, generator=generator)
        norm.weight.uniform_(0.5, 1.5, generator=generator)
        norm.bias.normal_(0, 0.1, generator=generator)


def _fold(block: TimedBlock) -> TimedBlock:
    """``block`` with its batch norms in the weights of torch's convolutions, or the scales of packed ones."""
    if not isinstance(block.conv1, nn.Conv2d):
        return impl.fuse_batch_norms(block)
    for parent, conv, norm in (
        (block, "conv1", "norm1"),
        (block, "conv2", "norm2"),
        (block.shortcut, "0", "1"),
    ):
        if conv in parent._modules:
            before = parent.get_submodule(conv), parent.get_submodule(norm)
            parent.set_submodule(conv, fuse_conv_bn_eval(*before))  # type: ignore[arg-type,type-var]  # modules by name
            parent.set_submodule(norm, nn.Identity())
    return block


def timed_form(spec: LayerSpec, block: TimedBlock) -> TimedBlock:
    """What is timed of a folded ``block``: itself or, of a layer with ``signs: true``, one whose convolutions
    hand on a bit each (:func:`impl.fuse_thresholds`). It shares no module with ``block`` then."""
    if not getattr(spec, "signs", False):
        return block
    dtype = getattr(torch, getattr(spec, "dtype", "float32"))
    return impl.fuse_thresholds(copy.deepcopy(block), dtype)


def _convolutions(block: TimedBlock) -> list[nn.Module]:
    found = [block.conv1, block.conv2, *list(block.shortcut)[:1]]
    return [part.layer if isinstance(part, ThresholdLayer) else part for part in found]


def served(kind: LayerKind, block: TimedBlock) -> set[str]:
    """Kernels that served the last call of each convolution."""
    return {kind.kernel(part) for part in _convolutions(block)} - {""}


def check_block(kind: LayerKind, spec: LayerSpec, block: TimedBlock, x: Tensor, output: Tensor) -> Check:
    """Whether ``output`` is, to the last bit, what ``block``, folded, gives for ``x [batch, channels, size,
    size]``, and that is right: of sampled images each convolution against the exact reference on what it is
    given, and what follows it put together by other code than the block's.

    All outputs must be finite.
    """
    if getattr(spec, "signs", False):
        spec = spec.model_copy(update={"signs": False})
    with watched(_convolutions(block)) as seen:
        expected = block(x)
    if output.shape != expected.shape:
        raise RuntimeError(f"the output has shape {tuple(output.shape)}, not {tuple(expected.shape)}")
    (_, first), (middle, second) = seen[block.conv1], seen[block.conv2]
    around = block.shortcut[1](seen[block.shortcut[0]][1]) if len(block.shortcut) else x
    low, high = (-1.0, 1.0) if block.activation is F.hardtanh else (0.0, math.inf)
    sound = (
        bool(torch.isfinite(output).all())
        and torch.equal(output, expected)
        and torch.equal(middle, block.between(block.norm1(first)))
        and torch.equal(expected, (block.norm2(second) + around).clamp(low, high))
    )
    return check_seen(kind, spec, seen, sound=sound)
