"""The operator library: how an operator is registered, and how one reads its packed weight."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from impl.packing import FORMATS, PackedWeight
from impl.quantizers import ACTIVATION_BITS

#: activation_bits that every operator takes; 0 stands for float activations.
ACTIVATIONS = (0, *ACTIVATION_BITS)
FORMAT_NAMES = {number: name for name, number in FORMATS.items()}

_library = torch.library.Library("bitimpl", "DEF")


def register(
    name: str,
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> None:
    """Define ``bitimpl::name`` with one kernel for every device, its fake and its gradient."""
    _library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"bitimpl::{name}", fake, lib=_library)
    torch.library.register_autograd(f"bitimpl::{name}", backward, setup_context=setup_context, lib=_library)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """For products that are exact: autocast would round them to its dtype."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


#: Types of devices whose products of bfloat16 gradients stay in bfloat16.
BFLOAT16_PRODUCTS = frozenset({"cuda"})


def product_dtype(grad: Tensor) -> torch.dtype:
    """What a gradient is multiplied in: bfloat16 where it is that and the device multiplies it fast, else
    float32 (float16 has not the range of scales and sums)."""
    in_bfloat16 = grad.dtype == torch.bfloat16 and grad.device.type in BFLOAT16_PRODUCTS
    return torch.bfloat16 if in_bfloat16 else torch.float32


def packed_weight(
    codes: Tensor, scales: Tensor, rows: int, cols: int, components: int, group_size: int, format: int
) -> PackedWeight:
    """The weight that an operator's arguments describe; ``group_size`` 0 stands for none."""
    if format not in FORMAT_NAMES:
        raise ValueError(f"format={format} is unknown, the formats are {FORMATS}")
    return PackedWeight(
        format=FORMAT_NAMES[format],
        components=components,
        rows=rows,
        cols=cols,
        group_size=group_size or None,
        codes=codes,
        scales=scales,
    )


def check_device(x: Tensor, device: torch.device) -> Tensor:
    """Return ``x`` if it is on ``device``, that of the packed weight; else ValueError."""
    if x.device != device:
        raise ValueError(f"the input is on {x.device}, the packed weight on {device}: move one with .to()")
    return x
