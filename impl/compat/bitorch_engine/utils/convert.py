"""``bitorch_engine.utils.convert``: linear layers of a model by quantised ones.

Against the original: replaced layers keep their weight, bias and device (its own are fresh random ones
without bias), and containers of every kind hold replacements.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from impl.checks import check_choice
from impl.compat.bitorch_engine.linear import BinaryLinearCuda
from impl.compat.bitorch_engine.nbit import Q4LinearCutlass
from impl.compat.bitorch_engine.nbit_groupwise import MPQLinearCuda
from impl.convert_tools import collect_layers, replace_layers, replace_linear_layers

__all__ = [
    "collect_layers",
    "get_mpq_config",
    "quantize_linear_with_binary_linear_cuda",
    "quantize_linear_with_mpq_linear_cuda",
    "quantize_linear_with_q4_linear_cutlass",
    "replace_layers",
]

MPQ_STRATEGIES = ("2-8-32", "2-32-32", "2-128-32", "4-128-256", "8-128-256")
"""Bits of a weight, weights that share a scale, and scales that share one of their own."""


def get_mpq_config(mpq_strategy: str | None = None) -> dict[str, Any]:
    """Keyword arguments of :class:`MPQLinearCuda` for one of :data:`MPQ_STRATEGIES`; None is "2-32-32".

    ValueError for others.
    """
    strategy = check_choice("mpq_strategy", mpq_strategy or "2-32-32", MPQ_STRATEGIES)
    w_bit, group_size, dq_group_size = (int(number) for number in strategy.split("-"))
    return {
        "dq_mode": 2,
        "use_gba_quant": True,
        "asym": False,
        "w_bit": w_bit,
        "group_size": group_size,
        "dq_group_size": dq_group_size,
    }


def quantize_linear_with_binary_linear_cuda(
    module: nn.Module, names_to_replace: Iterable[str], parent_name: str = ""
) -> list[nn.Module]:
    """Replace linear layers by ``BinaryLinearCuda``, in place, on the device where each is; it computes
    with the signs of weight and input. What is kept, left alone and raised is as for
    :func:`impl.convert_tools.quantize_linear_with`."""
    make = BinaryLinearCuda.from_linear
    return replace_linear_layers(module, names_to_replace, BinaryLinearCuda, make, parent_name)


def quantize_linear_with_mpq_linear_cuda(
    module: nn.Module,
    names_to_replace: Iterable[str],
    mpq_strategy: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    parent_name: str = "",
) -> list[nn.Module]:
    """Replace linear layers by ``MPQLinearCuda`` of a strategy of :func:`get_mpq_config` and of ``dtype``,
    in place, on the device where each is. What is kept, left alone and raised is as for
    :func:`impl.convert_tools.quantize_linear_with`."""
    config = get_mpq_config(mpq_strategy)

    def make(linear: nn.Linear) -> MPQLinearCuda:
        return MPQLinearCuda.from_linear(linear, dtype=dtype, **config)

    return replace_linear_layers(module, names_to_replace, MPQLinearCuda, make, parent_name)


def quantize_linear_with_q4_linear_cutlass(
    module: nn.Module, names_to_replace: Iterable[str], parent_name: str = ""
) -> list[nn.Module]:
    """Replace linear layers by ``Q4LinearCutlass``, in place, on the device where each is. What is kept,
    left alone and raised is as for :func:`impl.convert_tools.quantize_linear_with`."""
    make = Q4LinearCutlass.from_linear
    return replace_linear_layers(module, names_to_replace, Q4LinearCutlass, make, parent_name)
