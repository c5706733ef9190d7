"""``bitorch_engine.utils.model_helper``: shapes for kernels, updates, and life of whole models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from impl.compat.bitorch_engine.quant_operators import init_weight
from impl.convert_tools import load_checkpoint, pack_bie_layers, prepare_bie_layers, save_checkpoint
from impl.parameters import LowBitParameter, Projector

__all__ = [
    "binary_matmul_forward_post_processing",
    "flatten_x",
    "init_weight",
    "load_checkpoint",
    "pack_bie_layers",
    "pad_embedding_dim",
    "pad_last_2_dims_to_multiple_of_128",
    "prepare_bie_layers",
    "qweight_update_fn",
    "save_checkpoint",
    "unflatten_x",
]

_TILE = 128


def flatten_x(x: Tensor) -> tuple[Tensor, list[int]]:
    """x [..., columns] as a matrix [rows, columns], and its leading dimensions for :func:`unflatten_x`.

    Any strides; a view where they allow one. ValueError for a tensor without dimensions.
    """
    if x.dim() == 0:
        raise ValueError("flatten_x takes a tensor [..., columns], got one without dimensions")
    *lead, columns = x.shape
    rows = 1
    for size in lead:
        rows *= size
    return x.reshape(rows, columns), lead


def unflatten_x(x: Tensor, shape: Sequence[int]) -> Tensor:
    """x [rows, columns] with the leading dimensions ``shape`` of :func:`flatten_x`: [*shape, columns].

    ValueError where they hold another number of rows.
    """
    if x.dim() != 2 or torch.Size(shape).numel() != x.shape[0]:
        raise ValueError(f"a tensor of shape {list(x.shape)} does not have the rows of {list(shape)}")
    return x.reshape(*shape, x.shape[1])


def pad_embedding_dim(weight: Tensor) -> Tensor:
    """``weight`` [num_embeddings, embedding_dim, ...] with embedding_dim filled up to a multiple of 8 by
    -1, in its own dtype; itself where there is nothing to fill.

    TypeError where an unsigned or bool dtype would have to hold the -1.
    """
    short = -weight.shape[1] % 8
    if short == 0:
        return weight
    if weight.dtype == torch.bool or not weight.dtype.is_signed:
        raise TypeError(f"{weight.dtype} cannot hold the -1 to pad with: pad the float weight")
    shape = [weight.shape[0], short, *weight.shape[2:]]
    return torch.cat((weight, weight.new_full(shape, -1)), dim=1)


def pad_last_2_dims_to_multiple_of_128(tensor: Tensor) -> tuple[Tensor, int]:
    """``tensor`` [..., rows, columns] with both filled up to multiples of 128 by zeros, and the number
    of rows added. ValueError for fewer than two dimensions."""
    if tensor.dim() < 2:
        raise ValueError(f"the tensor must have at least two dimensions, got shape {list(tensor.shape)}")
    rows, columns = (-size % _TILE for size in tensor.shape[-2:])
    padded = F.pad(tensor, (0, columns, 0, rows)) if rows or columns else tensor
    return padded, rows


def binary_matmul_forward_post_processing(
    tensor: Tensor, shape_pre: Sequence[int], x_pad_sec_last: int, y_pad_sec_last: int, k: int
) -> Tensor:
    """Sign products k - 2 t [*shape_pre, rows, columns] from numbers t [batch, rows, columns] of
    differing signs, without the ``x_pad_sec_last`` last rows and ``y_pad_sec_last`` last columns.

    ``k`` is the number of signs multiplied; positions that pad both operands alike do not differ and
    need no correction. ValueError where the batch is not that of ``shape_pre``.
    """
    if tensor.dim() != 3 or torch.Size(shape_pre).numel() != tensor.shape[0]:
        raise ValueError(
            f"a product of shape {list(tensor.shape)} does not have the batch of {list(shape_pre)}"
        )
    rows, columns = tensor.shape[1] - x_pad_sec_last, tensor.shape[2] - y_pad_sec_last
    return k - 2 * tensor[:, :rows, :columns].reshape(*shape_pre, rows, columns)


def qweight_update_fn(
    qweight: Tensor,
    exp_avg_s: Tensor | None = None,
    exp_avg_l: Tensor | None = None,
    step: Tensor | None = None,
    lr: float = 1e-4,
    weight_decay: float = 0.0,
    beta1: float = 0.99,
    beta2: float = 0.9999,
    eps: float = 1e-6,
    dtype: torch.dtype = torch.half,
    correct_bias: bool | None = None,
    projector: Projector | None = None,
    grad: Tensor | None = None,
) -> None:
    """One descent step of ``qweight`` by the rule of its class: ``type(qweight).update(...)``, see
    :meth:`impl.parameters.LowBitParameter.update`. TypeError for parameters of other classes."""
    if not isinstance(qweight, LowBitParameter):
        raise TypeError(
            f"qweight_update_fn takes a parameter of impl.parameters, got {type(qweight).__name__}: "
            "prepare the layer first"
        )
    qweight.update(
        qweight,
        exp_avg_s=exp_avg_s,
        exp_avg_l=exp_avg_l,
        step=step,
        lr=lr,
        weight_decay=weight_decay,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        dtype=dtype,
        correct_bias=correct_bias,
        projector=projector,
        grad=grad,
    )
