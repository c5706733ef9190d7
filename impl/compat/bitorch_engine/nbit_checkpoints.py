"""Scales and zeros as the checkpoints of bitorch_engine's group-wise layers hold them.

*GPTQ*: ``scales`` as floats, whole zeros packed in ``qzeros``. *GBA* (GreenBitAI's models): scales and
zeros are 4-bit integers themselves, ``qstatistic`` = 16 * scale + zero, scale = (integer -
``qscales_zeros``) * ``qscales_scales`` and the same for zeros, with own statistics for each group and
``dq_group_size`` output channels, or (``dq_mode`` 1) for each output channel; for groups of 256 and
more, ``scales`` and ``zeros`` as floats. *GBA, asym*: integers ``qscales`` and packed ``qzeros``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from impl.layers.nbit.gptq import unpack_zeros

PLAIN_FROM = 256
"""Groups of so many input channels have float scales and zeros."""


def statistics(
    held: Mapping[str, Tensor],
    *,
    groups: int,
    out_channels: int,
    w_bit: int,
    group_size: int,
    dq_group_size: int,
    asym: bool,
    gptq: bool,
) -> tuple[Tensor, Tensor]:
    """Scales and zeros, float32 [groups, out_channels], from the tensors ``held`` of a state.

    KeyError for one that is missing, ValueError for one that does not fit.
    """
    shape = (groups, out_channels)
    if gptq:
        return _plain(held, "scales", shape), _packed_zeros(held, shape, w_bit)
    if asym:
        if _is_plain(held, group_size, ("scales",)):
            return _plain(held, "scales", shape), _packed_zeros(held, shape, w_bit)
        scales = _requantised(held, held["qscales"], "qscales", shape, dq_group_size)
        return scales, _packed_zeros(held, shape, w_bit)
    if _is_plain(held, group_size, ("scales", "zeros")):
        return _plain(held, "scales", shape), _plain(held, "zeros", shape)
    both = held["qstatistic"].to(torch.uint8)
    return (
        _requantised(held, both >> 4, "qscales", shape, dq_group_size),
        _requantised(held, both & 15, "qzeros", shape, dq_group_size),
    )


def _is_plain(held: Mapping[str, Tensor], group_size: int, names: tuple[str, ...]) -> bool:
    """Whether the floats count: for large groups, unless they are what a constructor leaves there."""
    if group_size < PLAIN_FROM or any(name not in held for name in names):
        return False
    blank = {"scales": 1, "zeros": 0}
    return any(bool((held[name] != blank[name]).any()) for name in names)


def _plain(held: Mapping[str, Tensor], name: str, shape: tuple[int, int]) -> Tensor:
    if tuple(held[name].shape) != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(held[name].shape)}")
    return held[name].to(torch.float32)


def _packed_zeros(held: Mapping[str, Tensor], shape: tuple[int, int], w_bit: int) -> Tensor:
    qzeros = held["qzeros"]
    zeros = unpack_zeros(qzeros, w_bit, shape[1])
    if zeros.shape[0] != shape[0]:
        raise ValueError(f"qzeros must have {shape[0]} groups, got {list(qzeros.shape)}")
    return zeros.to(torch.float32)


def _requantised(
    held: Mapping[str, Tensor], integers: Tensor, name: str, shape: tuple[int, int], dq_group_size: int
) -> Tensor:
    groups, out_channels = shape
    if integers.numel() < groups * out_channels or integers.shape[0] != groups:
        raise ValueError(f"{name} must hold {groups} groups of {out_channels}, got {list(integers.shape)}")
    values = integers.reshape(groups, -1)[:, :out_channels].to(torch.float32)
    zeros, scales = (
        _for_each(held[f"{name}_{what}"], f"{name}_{what}", shape, dq_group_size)
        for what in ("zeros", "scales")
    )
    return (values - zeros) * scales


def _for_each(given: Tensor, name: str, shape: tuple[int, int], dq_group_size: int) -> Tensor:
    """float32 [groups or 1, out_channels] of statistics of blocks of ``dq_group_size`` output channels,
    or of each of them."""
    groups, out_channels = shape
    values = given.to(torch.float32)
    if tuple(values.shape) == (1, out_channels, 1):
        return values.view(1, out_channels)
    blocks = -(-out_channels // dq_group_size)
    if tuple(values.shape) != (groups, blocks, 1):
        raise ValueError(
            f"{name} must have shape {[groups, blocks, 1]} or {[1, out_channels, 1]} for "
            f"dq_group_size={dq_group_size}, got {list(values.shape)}"
        )
    return values.squeeze(2).repeat_interleave(dq_group_size, dim=1)[:, :out_channels]
