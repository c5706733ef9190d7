"""Parameters with weights -1 and +1, kept as one byte or one bit each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from impl.checks import SCALES, check_choice, check_weight
from impl.packing import pack_sign_rows, unpack_sign_rows
from impl.parameters.checks import check_data, check_dimensions, check_scales, outside_dtype
from impl.parameters.rules import (
    BLOCK,
    DIODE_MARGIN,
    Projector,
    Update,
    diode_flips,
    spread,
    state_shape,
)
from impl.parameters.tensor import LowBitParameter


class BinaryParameter(LowBitParameter):
    """A parameter whose values are sign * scale; there is no float copy of it.

    data: any of

        floating point  signs of the values (0 counts as +1) and the least-squares scale mean|w|
        int8            signs of the values (0 counts as +1), scale 1
        bool            True for +1, scale 1
        uint8           packed bits [rows, bytes], least significant first, bit 1 = +1: a matrix of
                        8 columns a byte, scale 1
        a binary parameter, whose signs and scales are copied

    requires_grad: as ``nn.Parameter``.
    scales: float [rows] or [1], finite and not negative, instead of those above; rows is the size of
        the first dimension.
    scale: "row" or "tensor", what shares a scale where ``scales`` is None.
    packed: True keeps bits, rows starting on a byte, as uint8 [rows, ceil(weights of a row / 8)];
        False one int8 (-1 or +1) a weight. None packs bool and uint8 data.
    dtype: floating dtype outside; None takes that of floating-point data, else float32.

    Attributes: ``codes`` (bytes or bits as above), ``scales`` (float32 [rows] or [1]), ``packed``.
    Scales are constants of the training: the optimizers flip signs.

    **The update** (:func:`impl.parameters.rules.diode_flips`) is descent: a weight flips when the long
    average of the votes of the gradient has the weight's own sign. ``lr`` is the size of a vote against
    the margin from which a weight starts, at first and after each flip, so a smaller ``lr`` makes flips
    rarer all through training and 0 ends them; ``eps`` is added to the denominator of a vote, so
    gradients far below it hardly count; ``weight_decay`` shrinks the long average by
    ``lr * weight_decay`` a step, as AdamW shrinks a weight: weights hold on to their sign less;
    ``correct_bias`` corrects the short average, which starts at zero (the long one does not); a
    ``projector`` keeps the short average in its low-rank space. :class:`impl.optim.DiodeMix` adds a
    threshold that the long average must pass.

    Raises TypeError or ValueError for other data, NaN and infinity included.
    """

    codes: Tensor
    scales: Tensor
    packed: bool

    _tensors = ("codes", "scales")
    _attributes = ("packed",)
    _dimensions: ClassVar[tuple[int, ...]] = (2, 3, 4, 5)

    def __new__(
        cls,
        data: Tensor | None = None,
        requires_grad: bool = True,
        *,
        scales: Tensor | None = None,
        scale: str = "row",
        packed: bool | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        check_choice("scale", scale, SCALES)
        data = check_data(data, cls._dimensions)
        check_dimensions(cls.__name__, data.shape, cls._dimensions)
        dtype = outside_dtype(dtype, data)
        if isinstance(data, BinaryParameter):
            packed = data.packed if packed is None else packed
        elif packed is None:
            packed = data.dtype in (torch.uint8, torch.bool)
        shape, signs, measured = _read(data, scale)
        tensors = {
            "codes": pack_sign_rows(signs) if packed else signs.reshape(shape),
            "scales": measured if scales is None else check_scales(scales, signs, scale),
        }
        return cls._wrap(shape, dtype, tensors, {"packed": packed}, requires_grad, is_param=True)

    def signs(self, rows: Tensor | slice | None = None) -> Tensor:
        """The signs -1 and +1, int8 [rows, weights of a row]; of ``rows`` (integers [n], or a slice) only."""
        codes = self._codes_of(rows)
        return unpack_sign_rows(codes, self.shape[1:].numel()) if self.packed else codes.flatten(1)

    def flip_(self, mask: Tensor) -> Self:
        """Change the sign of the weights where ``mask`` (bool, shape of the parameter) is True."""
        if mask.dtype != torch.bool or mask.shape != self.shape:
            raise ValueError(f"mask must be bool {tuple(self.shape)}, got {mask.dtype} {tuple(mask.shape)}")
        self._flip(mask.flatten(1), None)
        torch.autograd.graph.increment_version(self)
        return self

    def dequantize(self) -> Tensor:
        """sign * scale as an ordinary tensor of this shape and dtype, without gradient."""
        values = self.signs().to(self.dtype) * self.scales.to(self.dtype).unsqueeze(1)
        return values.reshape(self.shape)

    def rows(self, index: Tensor) -> Tensor:
        """The decoded rows ``index`` (integers, any shape) of the first dimension; only they are decoded."""
        flat = index.flatten()
        scales = self.scales if self.scales.numel() == 1 else self.scales.index_select(0, flat)
        values = self.signs(flat).to(self.dtype) * scales.to(self.dtype).unsqueeze(1)
        return values.reshape(*index.shape, *self.shape[1:])

    def initial_state(
        self, dtype: torch.dtype = torch.float32, projector: Projector | None = None
    ) -> tuple[Tensor, Tensor]:
        """Zeros, and -sign(w) u DIODE_MARGIN with u spread over (0, 1): the weights do not flip at once,
        nor all in the same step. The same in every process."""
        short = torch.zeros(state_shape(self.shape, projector), dtype=dtype, device=self.device)
        margins = spread(self.numel(), device=self.device).mul_(DIODE_MARGIN)
        long = -self.signs() * margins.reshape(self.shape[0], -1) if self.numel() else margins
        return short, long.reshape(self.shape).to(dtype)

    def _descend(self, update: Update) -> None:
        if update.exp_avg_l.shape != self.shape:
            raise ValueError(
                f"exp_avg_l must have the shape {tuple(self.shape)} of the binary parameter, got "
                f"{tuple(update.exp_avg_l.shape)}: start it with initial_state()"
            )
        rows = self._rows_to_update(update.grad)
        if rows is not None or update.projector is not None:
            self._flip(diode_flips(self.signs(rows), update, rows), rows)
            return
        step = max(1, BLOCK // max(1, self.shape[1:].numel()))
        for begin in range(0, self.shape[0], step):
            part = slice(begin, begin + step)
            self._flip(diode_flips(self.signs(part), update.part(part)), part)

    def _rows_to_update(self, _gradient: Tensor) -> Tensor | None:
        """The rows that a step may change; None for all."""
        return None

    def _codes_of(self, rows: Tensor | slice | None) -> Tensor:
        if rows is None:
            return self.codes
        return self.codes[rows] if isinstance(rows, slice) else self.codes.index_select(0, rows)

    def _flip(self, mask: Tensor, rows: Tensor | slice | None) -> None:
        codes = self._codes_of(rows)
        if self.packed:
            flipped = codes ^ pack_sign_rows(torch.where(mask, 1, -1).to(torch.int8))
        else:
            flipped = torch.where(mask.reshape(codes.shape), -codes, codes)
        if rows is None:
            self.codes.copy_(flipped)
        else:
            self.codes[rows] = flipped

    def _store(self, value: Tensor) -> None:
        scope = "tensor" if self.scales.numel() == 1 else "row"
        _, signs, measured = _read(value, scope)
        self.codes.copy_(pack_sign_rows(signs) if self.packed else signs.reshape(self.shape))
        self.scales.copy_(measured)


class BinaryLinearParameter(BinaryParameter):
    """Binary weight [out_features, in_features] of a linear layer; see :class:`BinaryParameter`."""

    _dimensions = (2,)


class BinaryConvParameter(BinaryParameter):
    """Binary weight [out_channels, in_channels / groups, *kernel] of a convolution; see
    :class:`BinaryParameter`."""

    _dimensions = (4, 3, 5)


class BinaryEmbeddingParameter(BinaryParameter):
    """Binary table [num_embeddings, embedding_dim]; see :class:`BinaryParameter`.

    ``active_indices`` (integers, any shape) are the rows that the next updates may change, with their
    averages; None, the default, takes the rows where the gradient is not zero. It belongs to this
    parameter alone. Leave it None where gradients are averaged over processes or accumulated: the
    gradient then holds rows that this process has not looked up, or not lately.
    """

    active_indices: Tensor | None = None

    _transient = ("active_indices",)
    _dimensions = (2,)

    def __new__(
        cls,
        data: Tensor | None = None,
        requires_grad: bool = True,
        active_indices: Tensor | None = None,
        *,
        scales: Tensor | None = None,
        scale: str = "row",
        packed: bool | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        self = super().__new__(
            cls, data, requires_grad, scales=scales, scale=scale, packed=packed, dtype=dtype
        )
        self.active_indices = active_indices
        return self

    def _rows_to_update(self, gradient: Tensor) -> Tensor:
        if self.active_indices is None:
            return (gradient != 0).any(dim=1).nonzero().squeeze(1)
        rows, count = self.active_indices, self.shape[0]
        if rows.dtype == torch.bool or rows.is_floating_point():
            raise TypeError(f"active_indices must be integers, got {rows.dtype}: pass numbers of rows")
        rows = rows.to(self.device, torch.int64).unique()
        if rows.numel() and (int(rows[0]) < 0 or int(rows[-1]) >= count):
            raise ValueError(
                f"active_indices must lie in 0 .. {count - 1}, got {int(rows[0])} .. {int(rows[-1])}"
            )
        return rows


def _read(data: Tensor, scope: str) -> tuple[Sequence[int], Tensor, Tensor]:
    """Shape outside, signs (int8 matrix) and scales (float32 [rows] or [1]) of what ``data`` holds."""
    shape: Sequence[int] = data.shape
    if isinstance(data, BinaryParameter):
        return shape, data.signs().clone(), data.scales.clone()
    if data.is_floating_point():
        matrix = data.flatten(1)
        if matrix.numel():
            check_weight(matrix, check_finite=True)
        signs = torch.where(matrix >= 0, 1, -1).to(torch.int8)
        return shape, signs, _mean_magnitude(matrix, scope)
    if data.dtype == torch.uint8:
        if data.dim() != 2:
            raise ValueError(f"packed bits must be uint8 [rows, bytes], got shape {tuple(data.shape)}")
        shape = (data.shape[0], 8 * data.shape[1])
        signs = unpack_sign_rows(data, shape[1])
    elif data.dtype in (torch.int8, torch.bool):
        positive = data if data.dtype == torch.bool else data >= 0
        signs = torch.where(positive, 1, -1).to(torch.int8).flatten(1)
    else:
        raise TypeError(f"data must be floating point, int8, bool or uint8 (packed bits), got {data.dtype}")
    count = 1 if scope == "tensor" else shape[0]
    return shape, signs, torch.ones(count, dtype=torch.float32, device=data.device)


def _mean_magnitude(matrix: Tensor, scope: str) -> Tensor:
    """mean|w|, the least-squares scale of signs, of each row or of the tensor.

    In float64 the mean of equal float32 magnitudes is exactly that magnitude: storing decoded values,
    as the first broadcast of ``DistributedDataParallel`` does, changes nothing.
    """
    if matrix.numel() == 0:
        count = matrix.shape[0] if scope == "row" else 1
        return torch.zeros(count, dtype=torch.float32, device=matrix.device)
    magnitude = matrix.abs()
    if scope == "tensor":
        return magnitude.mean(dtype=torch.float64).to(torch.float32).view(1)
    return magnitude.mean(dim=1, dtype=torch.float64).to(torch.float32)
