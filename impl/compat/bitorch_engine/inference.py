"""bitorch_engine's linear layer by the widths of activations and weights."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from impl.compat.bitorch_engine.base import BinaryLinearBase, LayerRecipe
from impl.compat.bitorch_engine.linear import BinaryLinear
from impl.compat.bitorch_engine.nbit import nBitLinearBase


class QLinearInf(nn.Module):
    """The linear layer for activations of ``a_bit`` and weights of ``w_bit`` bits, in ``layer``:
    ``BinaryLinear`` where both are 1, ``nBitLinearBase`` where each is 4 or 8.

    ``input_features`` are features, not words of packed ones. Weights, packing and forward are those of
    ``layer``, which this class hands them on to. ValueError for other widths.
    """

    layer: BinaryLinearBase | nBitLinearBase

    def __init__(
        self,
        input_features: int,
        out_features: int,
        device: torch.device | str | None = None,
        a_bit: int = 1,
        w_bit: int = 1,
        bias: bool = False,
        *,
        dtype: torch.dtype = torch.float,
    ) -> None:
        super().__init__()
        if a_bit == w_bit == 1:
            self.layer = BinaryLinear(input_features, out_features, device, dtype=dtype, bias=bias)
        elif 1 in (a_bit, w_bit):
            raise ValueError(f"1 bit is for both operands or none, got a_bit={a_bit} and w_bit={w_bit}")
        else:
            self.layer = nBitLinearBase(input_features, out_features, a_bit, w_bit, device, dtype, bias=bias)
        self.input_features, self.output_features = input_features, out_features
        self.a_bit, self.w_bit = a_bit, w_bit

    @classmethod
    def can_clone(cls, recipe: LayerRecipe) -> tuple[bool, str]:
        """Whether :meth:`create_clone_from` takes ``recipe``, and if not, why."""
        try:
            _operands(recipe)
        except (TypeError, ValueError) as error:
            return False, str(error)
        return True, ""

    @classmethod
    def create_clone_from(cls, recipe: LayerRecipe, device: torch.device | str | None = None) -> Self:
        """The packed replacement of ``recipe.layer`` (anything with ``weight`` [out, in] and perhaps
        ``bias``), on ``device`` (None: where that layer is).

        Its widths are the ``bit_width`` of ``input_quantization`` and ``weight_quantization`` among
        ``recipe.kwargs``, as bitorch's quantisers have one; 1 where they are not there. TypeError or
        ValueError where that makes no layer.
        """
        weight, bias, a_bit, w_bit = _operands(recipe)
        rows, columns = weight.shape
        # On the meta device nothing is drawn: the numbers are those of the recipe.
        clone = cls(columns, rows, "meta", a_bit, w_bit, bias is not None, dtype=weight.dtype)
        plain = nn.Linear(columns, rows, bias is not None, device="meta", dtype=weight.dtype)
        plain.weight = nn.Parameter(weight.detach().to(device or weight.device))
        if bias is not None:
            plain.bias = nn.Parameter(bias.detach().to(plain.weight.device))
        widths: dict[str, Any] = {} if a_bit == 1 else {"a_bit": a_bit, "w_bit": w_bit}
        clone.layer = type(clone.layer).from_linear(plain, **widths)
        clone.generate_quantized_weight(qweight_only=True)
        return clone.train(recipe.layer.training)

    def prepare_params(self) -> None:
        """``layer.prepare_params()``."""
        self.layer.prepare_params()

    def generate_quantized_weight(self, qweight_only: bool = False) -> None:
        """``layer.generate_quantized_weight(qweight_only)``."""
        self.layer.generate_quantized_weight(qweight_only=qweight_only)

    def set_weight_data(self, x: Tensor) -> None:
        """``layer.set_weight_data(x)``."""
        self.layer.set_weight_data(x)

    def set_quantized_weight_data(self, x: Tensor) -> None:
        """``layer.set_quantized_weight_data(x)``."""
        self.layer.set_quantized_weight_data(x)

    @property
    def weight(self) -> Tensor | None:
        """``layer.weight``."""
        return self.layer.weight

    @property
    def opt_weight(self) -> Tensor:
        """``layer.opt_weight``."""
        return self.layer.opt_weight

    def forward(self, x: Tensor) -> Tensor:
        """``layer(x)``."""
        y: Tensor = self.layer(x)
        return y


def _operands(recipe: LayerRecipe) -> tuple[Tensor, Tensor | None, int, int]:
    """Weight, bias and widths of activations and weights that ``recipe`` describes."""
    old, options = recipe.layer, getattr(recipe, "kwargs", {})
    weight, bias = getattr(old, "weight", None), getattr(old, "bias", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise TypeError(f"{type(old).__name__} has no weight [out, in] to clone")
    a_bit, w_bit = (_width(options.get(f"{operand}_quantization")) for operand in ("input", "weight"))
    if not (a_bit == w_bit == 1 or {a_bit, w_bit} <= {4, 8}):
        raise ValueError(
            f"widths are both 1, or each 4 or 8 bits, got {a_bit} (inputs) and {w_bit} (weights)"
        )
    return weight, bias, a_bit, w_bit


def _width(quantization: Any) -> int:
    if quantization is None or quantization == "sign":
        return 1
    width = getattr(quantization, "bit_width", None)
    if not isinstance(width, int):
        raise TypeError(
            f"the quantiser {quantization!r} does not say its bit_width: give the quantiser itself"
        )
    return width
