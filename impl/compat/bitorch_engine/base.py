"""The base of bitorch_engine's binary linear layers: signs of the input times signs of the weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor, nn

from impl.checks import ACTIVATION_DTYPES, check_activations, check_positive
from impl.compat.bitorch_engine.signs import (
    SignLinear,
    bytes_per_row,
    check_packed,
    pack_signs,
    unpack_signs,
)
from impl.layers.calls import autocast

WORD_BITS = (8, 16, 32, 64)


class LayerRecipe(Protocol):
    """What bitorch hands to ``create_clone_from``: the layer to be replaced."""

    @property
    def layer(self) -> nn.Module: ...


class BinaryLinearBase(nn.Module):
    """y = sign(x) sign(W)^T + bias with weight [out_features, input_features], sign(0) = +1.

    ``weight`` is a float Parameter; its gradient, and that of x where |x| <= 1, pass the sign straight
    through. :meth:`generate_quantized_weight` packs the signs into ``qweight``, uint8
    [out_features, ceil(input_features / 8)], one layout for every class and device. While ``weight`` is
    there, it is what forward uses and ``state_dict`` holds; with ``qweight_only=True`` it goes, and
    forward runs the kernel on the bits. ``load_state_dict`` takes either form.

    Attributes: ``input_features`` (also ``in_features``), ``output_features`` (also ``out_features``),
    ``bits_binary_word`` (bits of a packing word; words are little-endian, so all sizes describe the
    same bytes), ``symmetric``. ``device`` and ``dtype`` are those the layer has now.

    The sign product is exact. y has the dtype of x, and is rounded once to it.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    qweight: Tensor | None
    _place: Tensor

    def __init__(
        self,
        input_features: int,
        out_features: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float,
        symmetric: bool = True,
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.input_features = check_positive("input_features", input_features)
        self.output_features = check_positive("out_features", out_features)
        if dtype not in ACTIVATION_DTYPES:
            raise TypeError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
        self.symmetric = symmetric
        self.bits_binary_word = 8
        # Moves and casts with the module: the device and dtype of a layer without float tensors.
        self.register_buffer("_place", torch.empty(0, device=device, dtype=dtype), persistent=False)
        self.register_parameter("weight", None)
        self.register_buffer("qweight", None)
        self.register_parameter("bias", self._new_parameter(self.output_features) if bias else None)
        BinaryLinearBase.reset_parameters(self)  # a subclass has its own parameters yet to come

    # ---- what the layer is ------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Device of the layer's weight, packed or not."""
        held = self.qweight if self.weight is None else self.weight
        return self._place.device if held is None else held.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the layer's float tensors."""
        return self._place.dtype if self.weight is None else self.weight.dtype

    @property
    def in_features(self) -> int:
        """``input_features`` by the name that ``nn.Linear`` gives it."""
        return self.input_features

    @property
    def out_features(self) -> int:
        """``output_features`` by the name that ``nn.Linear`` gives it."""
        return self.output_features

    def set_bits_binary_word(self, num_bit: int) -> None:
        """Set ``bits_binary_word``: 8, 16, 32 or 64. ValueError for others."""
        if num_bit not in WORD_BITS:
            raise ValueError(f"a packing word has {', '.join(map(str, WORD_BITS))} bits, got {num_bit!r}")
        self.bits_binary_word = num_bit

    def extra_repr(self) -> str:
        """Shape and form, as ``print(model)`` shows them."""
        form = "packed" if self.weight is None else f"weight={type(self.weight).__name__}"
        return (
            f"input_features={self.input_features}, out_features={self.output_features}, "
            f"bias={self.bias is not None}, {form}"
        )

    # ---- weights ----------------------------------------------------------------------------

    def reset_parameters(self) -> None:
        """Draw a float weight and the bias anew, as ``nn.Linear`` does; packed bits are dropped."""
        if type(self.weight) is not nn.Parameter:
            self.weight = self._new_parameter(self.output_features, self.input_features)
        self._drop_qweight()
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.input_features)
            nn.init.uniform_(self.bias, -bound, bound)

    def set_weight_data(self, x: Tensor) -> None:
        """Take a copy of ``x`` [out_features, input_features] as float weight; packed bits are dropped.

        TypeError where ``x`` is not of the layer's dtype, ValueError where it has another shape.
        """
        if x.dtype != self.dtype:
            raise TypeError(
                f"the weight must be {self.dtype} as the layer is, got {x.dtype}: convert one with .to()"
            )
        shape = (self.output_features, self.input_features)
        if tuple(x.shape) != shape:
            raise ValueError(f"the weight must have shape {list(shape)}, got {list(x.shape)}")
        self.weight = nn.Parameter(x.detach().to(self.device, copy=True))
        self._drop_qweight()

    def prepare_params(self) -> None:
        """Make the parameters ready to be trained. A float weight is: nothing is done here."""

    def generate_quantized_weight(self, qweight_only: bool = False) -> None:
        """Pack the signs of the weight into ``qweight``; with ``qweight_only`` drop the weight.

        No-op where only the packed bits are left. ValueError where the weight holds NaN or infinity.
        """
        if self.weight is None:
            self._operands()  # complains where there are no bits either
            return
        packed = pack_signs(self.weight)
        if qweight_only:
            self._become_packed(packed)
        else:
            self.register_buffer("qweight", packed, persistent=False)

    def set_quantized_weight_data(self, x: Tensor) -> None:
        """Take the packed signs ``x``, uint8 [out_features, ceil(input_features / 8)] or flat.

        Where there is a weight, it takes these signs and keeps its magnitudes (zeros get the mean one),
        so that training goes on from them; otherwise ``x`` becomes ``qweight``. TypeError or
        ValueError where ``x`` does not fit.
        """
        packed = check_packed(x.detach(), self.output_features, self.input_features)
        packed = packed.to(self.device, copy=True)
        if self.weight is None:
            self._become_packed(packed)
            return
        with torch.no_grad():
            magnitude = self.weight.detach().to(torch.float32).abs()
            mean = magnitude.mean()
            magnitude = torch.where(magnitude == 0, torch.where(mean == 0, 1.0, mean), magnitude)
            self.weight.copy_(unpack_signs(packed, self.input_features) * magnitude)
        self.register_buffer("qweight", packed, persistent=False)

    @property
    def opt_weight(self) -> Tensor:
        """The weight in training mode, the packed signs in eval mode, packed from it as it is now.

        Where only the packed signs are left: those, in either mode.
        """
        if not self.training:
            self.generate_quantized_weight()
            assert self.qweight is not None
            return self.qweight
        weight, packed = self._operands()
        operand = weight if packed is None else packed
        assert operand is not None
        return operand

    # ---- forward ----------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """y [..., out_features] of x [..., input_features], in the dtype of x (autocast's, where on).

        x: float32, bfloat16 or float16, any leading dimensions and strides, empty batches included; or
        signs packed as ``qweight`` is, uint8 [..., ceil(input_features / 8)], for y in the layer's
        dtype. TypeError or ValueError otherwise.
        """
        self._check_forward(x)
        if x.dtype == torch.uint8:
            x = unpack_signs(x, self.input_features).to(self.dtype)
        x = autocast(x)
        # Two tensors: torch.compile does not trace a function that is given one of them twice.
        scale_a, scale_w = (torch.ones((), dtype=torch.float32, device=x.device) for _ in range(2))
        return self._finish(SignLinear.apply(x, *self._operands(), scale_a, scale_w), x.dtype)

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

    def _operands(self) -> tuple[Tensor | None, Tensor | None]:
        """The weight, or the packed signs where it is gone; the other is None."""
        if self.weight is None and self.qweight is None:
            raise RuntimeError(
                "this layer has neither weight nor qweight: give it one with set_weight_data or "
                "set_quantized_weight_data"
            )
        return self.weight, None if self.weight is not None else self.qweight

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
        layer = cls(columns, rows, device, dtype=weight.dtype, bias=bias is not None, **options)
        layer.set_weight_data(weight)
        if layer.bias is not None:
            with torch.no_grad():
                layer.bias.copy_(bias)
        return layer.train(training)

    # ---- states -----------------------------------------------------------------------------

    def _new_parameter(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(shape, device=self.device, dtype=self.dtype))

    def _drop_qweight(self) -> None:
        self.register_buffer("qweight", None)

    def _become_packed(self, packed: Tensor) -> None:
        self.weight = None
        self.register_buffer("qweight", packed)  # persistent: it is the only copy

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take the form of the state given, after checking that it fits this layer."""
        try:
            self._adopt_form(state_dict, prefix)
        except (TypeError, ValueError) as error:
            error_msgs.append(f"{prefix.rstrip('.') or type(self).__name__}: {error}")
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

        # Loading with assign=True replaces tensors, but knows nothing of this one.
        self._place = torch.empty(0, device=self.device, dtype=self.dtype)

    def _adopt_form(self, state_dict: dict[str, Any], prefix: str) -> None:
        weight, packed = state_dict.get(prefix + "weight"), state_dict.get(prefix + "qweight")
        if packed is not None:
            if weight is not None:
                raise ValueError("the state holds a weight and packed signs: keep one of them")
            packed = check_packed(packed, self.output_features, self.input_features)
            state_dict[prefix + "qweight"] = packed  # a copy of the caller's dictionary
            if self.weight is not None or self.qweight is None:
                self._become_packed(torch.empty(packed.shape, dtype=torch.uint8, device=self.device))
        elif weight is not None:
            shape = (self.output_features, self.input_features)
            if tuple(weight.shape) != shape:
                raise ValueError(f"weight has shape {list(weight.shape)}, this layer needs {list(shape)}")
            self._drop_qweight()
            if self.weight is None or is_prepared(weight) != is_prepared(self.weight):
                self.weight = self._weight_like(weight)

    def _weight_like(self, weight: Tensor) -> nn.Parameter:
        """Memory for a weight of the kind of ``weight``: float, or signs to train by flips."""
        if not is_prepared(weight):
            return self._new_parameter(self.output_features, self.input_features)
        shape = (self.output_features, self.input_features)
        return trained_by_flips(torch.ones(shape, dtype=torch.int8, device=self.device), self.dtype)


def trained_by_flips(weight: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """The signs of int8 ``weight`` as a parameter without a float copy: one byte a weight inside,
    ``dtype`` outside."""
    from impl.parameters import BinaryLinearParameter  # on first use: most layers never need it

    # A Tensor subclass that answers isinstance(..., nn.Parameter), which the checker cannot know.
    return cast("nn.Parameter", BinaryLinearParameter(weight, scale="tensor", dtype=dtype))


def is_prepared(weight: Tensor | None) -> bool:
    """Whether ``weight`` is one to train by flips of its sign, rather than a float one."""
    from impl.parameters import BinaryLinearParameter

    return weight is not None and (weight.dtype == torch.int8 or isinstance(weight, BinaryLinearParameter))
