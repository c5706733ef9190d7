"""The base of bitorch_engine's binary linear layers: signs of the input times signs of the weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from impl.checks import check_activations, check_choice, check_positive
from impl.compat.bitorch_engine.sign_layer import SignLayer
from impl.compat.bitorch_engine.signs import BACKWARDS, SignLinear, bytes_per_row, precision_of
from impl.layers.calls import autocast
from impl.packing import unpack_sign_rows
from impl.parameters import BinaryLinearParameter, BinaryParameter


class LayerRecipe(Protocol):
    """What bitorch hands to ``create_clone_from``: the layer to be replaced."""

    @property
    def layer(self) -> nn.Module: ...


class BinaryLinearBase(SignLayer):
    """y = sign(x) sign(W)^T + bias with weight [out_features, input_features], sign(0) = +1.

    Gradients pass the sign of the weight straight through, and that of x where |x| <= 1. Forms of the
    weight, packing and states: :class:`impl.compat.bitorch_engine.sign_layer.SignLayer`; ``qweight`` is
    uint8 [out_features, ceil(input_features / 8)], one layout for every class and device.

    ``backward="int8"`` computes the gradient of x by exact int8 products, "float" in bfloat16 where x is that
    (autocast's, where on), else in float32: :class:`impl.compat.bitorch_engine.signs.SignLinear`.

    Attributes: ``input_features`` (also ``in_features``), ``output_features`` (also ``out_features``),
    ``bits_binary_word`` (bits of a packing word; words are little-endian, so all sizes describe the
    same bytes), ``symmetric``. ``device`` and ``dtype`` are those the layer has now.

    The sign product is exact. y has the dtype of x, and is rounded once to it.
    """

    parameter_class: ClassVar[type[BinaryParameter]] = BinaryLinearParameter

    def __init__(
        self,
        input_features: int,
        out_features: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float,
        symmetric: bool = True,
        *,
        bias: bool = False,
        backward: str = "float",
    ) -> None:
        check_choice("backward", backward, BACKWARDS)
        input_features = check_positive("input_features", input_features)
        out_features = check_positive("out_features", out_features)
        super().__init__((out_features, input_features), device, dtype, symmetric, bias)
        self.input_features, self.output_features = input_features, out_features
        self.backward = backward

    # ---- what the layer is ------------------------------------------------------------------

    @property
    def in_features(self) -> int:
        """``input_features`` by the name that ``nn.Linear`` gives it."""
        return self.input_features

    @property
    def out_features(self) -> int:
        """``output_features`` by the name that ``nn.Linear`` gives it."""
        return self.output_features

    def extra_repr(self) -> str:
        """Shape and form, as ``print(model)`` shows them."""
        form = "packed" if self.weight is None else f"weight={type(self.weight).__name__}"
        return (
            f"input_features={self.input_features}, out_features={self.output_features}, "
            f"bias={self.bias is not None}, {form}"
        )

    # ---- forward ----------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """y [..., out_features] of x [..., input_features], in the dtype of x (autocast's, where on).

        x: float32, bfloat16 or float16, any leading dimensions and strides, empty batches included; or
        signs packed as ``qweight`` is, uint8 [..., ceil(input_features / 8)], for y in the layer's
        dtype. TypeError or ValueError otherwise.
        """
        self._check_forward(x)
        if x.dtype == torch.uint8:
            x = unpack_sign_rows(x, self.input_features).to(self.dtype)
        x = autocast(x)
        # Two tensors: torch.compile does not trace a function that is given one of them twice.
        scale_a, scale_w = (torch.ones((), dtype=torch.float32, device=x.device) for _ in range(2))
        precision = precision_of(x, self.backward)
        return self._finish(SignLinear.apply(x, *self._operands(), scale_a, scale_w, precision), x.dtype)

    def _check_forward(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or x.dtype != torch.uint8:
            check_activations(x, self.input_features)
        elif x.dim() == 0 or x.shape[-1] != bytes_per_row(self.input_features):
            raise ValueError(
                f"{self.input_features} packed signs take {bytes_per_row(self.input_features)} bytes in the "
                f"last dimension, got shape {list(x.shape)}"
            )

    def _finish(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        return (y if self.bias is None else y + self.bias.to(y.dtype)).to(dtype)

    # ---- making layers from others ----------------------------------------------------------

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> Self:
        """A layer with the weight, bias, device, dtype and mode of ``linear``, which is not changed.

        ``options``: further keyword arguments of the class.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"from_linear takes an nn.Linear, got {type(linear).__name__}")
        return cls._from_tensors(linear.weight, linear.bias, linear.weight.device, linear.training, options)

    @classmethod
    def create_clone_from(cls, recipe: LayerRecipe, device: torch.device | str | None = None) -> Self:
        """The replacement of ``recipe.layer`` (anything with ``weight`` [out, in] and perhaps ``bias``),
        on ``device`` (None: where that layer is)."""
        old = recipe.layer
        weight, bias = getattr(old, "weight", None), getattr(old, "bias", None)
        if not isinstance(weight, Tensor):
            raise TypeError(f"{type(old).__name__} has no weight [out, in] to clone")
        return cls._from_tensors(weight, bias, device or weight.device, old.training, {})

    @classmethod
    def _from_tensors(
        cls,
        weight: Tensor,
        bias: Any,
        device: torch.device | str,
        training: bool,
        options: Mapping[str, Any],
    ) -> Self:
        rows, columns = weight.shape
        layer = cls(columns, rows, "meta", dtype=weight.dtype, bias=bias is not None, **options)
        return layer._filled(weight, bias, device).train(training)
