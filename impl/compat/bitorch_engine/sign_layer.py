"""What bitorch_engine's binary layers share: a weight of signs and the three forms that it takes."""

from __future__ import annotations

from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from impl.checks import ACTIVATION_DTYPES, SCALES, check_choice
from impl.compat.bitorch_engine.quant_operators import init_weight
from impl.compat.bitorch_engine.signs import check_packed, pack_signs, unpack_signs
from impl.layers.learned_scale import LearnedScale
from impl.parameters import BinaryParameter

WORD_BITS = (8, 16, 32, 64)


class SignLayer(nn.Module):
    """A layer that computes with the signs of its weight, sign(0) = +1.

    The weight has one of three forms:

    *float*     ``weight`` is a float Parameter; its gradient passes the sign straight through.
    *prepared*  ``weight`` is a :class:`impl.parameters.BinaryParameter`, one byte a weight, trained by
                flips of its sign. In ``state_dict`` it is int8.
    *packed*    ``qweight`` is uint8 [rows, ceil(columns / 8)], ``weight`` is None. The layer infers.

    :meth:`generate_quantized_weight` packs the signs as they are then; while there is a weight, it is
    what forward uses and ``state_dict`` holds. ``load_state_dict`` takes each form into each.
    """

    parameter_class: ClassVar[type[BinaryParameter]]
    activation_bits: ClassVar[int] = 1
    """Width of the inputs, of which only signs count: what :func:`impl.model_summary.summary` shows."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    qweight: Tensor | None
    weight_shape: tuple[int, ...]
    _place: Tensor

    def __init__(
        self,
        weight_shape: tuple[int, ...],
        device: torch.device | str | None,
        dtype: torch.dtype,
        symmetric: bool,
        bias: bool,
    ) -> None:
        super().__init__()
        if dtype not in ACTIVATION_DTYPES:
            raise TypeError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
        self.weight_shape = weight_shape
        self.symmetric = symmetric
        self.bits_binary_word = 8
        # Moves and casts with the module: the device and dtype of a layer without float tensors.
        self.register_buffer("_place", torch.empty(0, device=device, dtype=dtype), persistent=False)
        self.register_parameter("weight", None)
        self.register_buffer("qweight", None)
        self.register_parameter("bias", self._new_parameter(weight_shape[0]) if bias else None)
        SignLayer.reset_parameters(self)  # a subclass has its own parameters yet to come

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
    def columns(self) -> int:
        """Weights of each row (output) as a matrix."""
        return torch.Size(self.weight_shape[1:]).numel()

    def set_bits_binary_word(self, num_bit: int) -> None:
        """Set ``bits_binary_word``: 8, 16, 32 or 64. ValueError for others.

        Words are little-endian, so all sizes describe the same bytes."""
        if num_bit not in WORD_BITS:
            raise ValueError(f"a packing word has {', '.join(map(str, WORD_BITS))} bits, got {num_bit!r}")
        self.bits_binary_word = num_bit

    # ---- weights ----------------------------------------------------------------------------

    def to_matrix(self, weight: Tensor) -> Tensor:
        """``weight`` as the matrix [rows, columns] that is packed."""
        return weight

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`to_matrix`."""
        return matrix

    def _per_channel(self, values: Tensor) -> Tensor:
        """``values``, one per channel, in a shape that broadcasts against inputs and outputs."""
        return values

    def reset_parameters(self) -> None:
        """Draw a float weight and the bias anew, uniform within 1 / sqrt(columns) as torch's layers do;
        packed bits are dropped."""
        if type(self.weight) is not nn.Parameter:
            self.weight = self._new_parameter(*self.weight_shape)
        self._drop_qweight()
        bound = self.columns**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def _filled(self, weight: Tensor, bias: Tensor | None, device: torch.device | str) -> Self:
        """Bring this layer, built on the meta device, to ``device`` with copies of these tensors. Nothing
        is drawn; a bias that is not given starts at 0."""
        self.weight = None  # no memory for what is replaced
        self.to_empty(device=device)
        self._reset_scales()
        self.set_weight_data(weight)
        if self.bias is not None:
            with torch.no_grad():
                self.bias.copy_(torch.zeros_like(self.bias) if bias is None else bias)
        return self

    def _reset_scales(self) -> None:
        """Back to where scales and shifts start; a layer of plain signs has none."""

    def set_weight_data(self, x: Tensor) -> None:
        """Take a copy of ``x``, in the shape of the weight, as float weight; packed bits are dropped.

        TypeError where ``x`` is not of the layer's dtype, ValueError where it has another shape.
        """
        if x.dtype != self.dtype:
            raise TypeError(
                f"the weight must be {self.dtype} as the layer is, got {x.dtype}: convert one with .to()"
            )
        if tuple(x.shape) != self.weight_shape:
            raise ValueError(f"the weight must have shape {list(self.weight_shape)}, got {list(x.shape)}")
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
        packed = pack_signs(self.to_matrix(self.weight))
        if qweight_only:
            self._become_packed(packed)
        else:
            self.register_buffer("qweight", packed, persistent=False)

    def set_quantized_weight_data(self, x: Tensor) -> None:
        """Take the packed signs ``x``, as :meth:`check_qweight` does.

        Where there is a weight, it takes these signs and keeps its magnitudes (zeros get the mean one),
        so that training goes on from them; otherwise ``x`` becomes ``qweight``. TypeError or
        ValueError where ``x`` does not fit.
        """
        packed = self.check_qweight(x.detach()).to(self.device, copy=True)
        if self.weight is None:
            self._become_packed(packed)
            return
        with torch.no_grad():
            magnitude = self.weight.detach().to(torch.float32).abs()
            mean = magnitude.mean()
            magnitude = torch.where(magnitude == 0, torch.where(mean == 0, 1.0, mean), magnitude)
            self.weight.copy_(self.from_matrix(unpack_signs(packed, self.columns)) * magnitude)
        self.register_buffer("qweight", packed, persistent=False)

    def check_qweight(self, x: Tensor) -> Tensor:
        """``x`` as uint8 [rows, ceil(columns / 8)]; TypeError or ValueError where it is something else."""
        return check_packed(x, self.weight_shape[0], self.columns)

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

    def _operands(self) -> tuple[Tensor | None, Tensor | None]:
        """The weight, or the packed signs where it is gone; the other is None."""
        if self.weight is None and self.qweight is None:
            raise RuntimeError(
                "this layer has neither weight nor qweight: give it one with set_weight_data or "
                "set_quantized_weight_data"
            )
        return self.weight, None if self.weight is not None else self.qweight

    # ---- states -----------------------------------------------------------------------------

    def _new_parameter(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(shape, device=self.device, dtype=self.dtype))

    def _prepared(self, signs: Tensor) -> nn.Parameter:
        """The signs of int8 ``signs`` as a parameter without a float copy: one byte a weight inside,
        the layer's dtype outside."""
        parameter = self.parameter_class(signs, scale="tensor", dtype=self.dtype)
        # A Tensor subclass that answers isinstance(..., nn.Parameter), which the checker cannot know.
        return cast("nn.Parameter", parameter)

    def _drop_qweight(self) -> None:
        self.register_buffer("qweight", None)

    def _become_packed(self, packed: Tensor) -> None:
        self.weight = None
        self.register_buffer("qweight", packed)  # persistent: it is the only copy

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        prepared = trained_by_flips(self.weight)
        if prepared is not None and not keep_vars:
            # As the original holds it, and as any file format can.
            destination[prefix + "weight"] = prepared.codes

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
        # What is put into state_dict here goes into a copy of the caller's dictionary.
        weight, packed = state_dict.get(prefix + "weight"), state_dict.get(prefix + "qweight")
        if packed is not None:
            if weight is not None:
                raise ValueError("the state holds a weight and packed signs: keep one of them")
            packed = self.check_qweight(packed)
            state_dict[prefix + "qweight"] = packed
            if self.weight is not None or self.qweight is None:
                self._become_packed(torch.empty(packed.shape, dtype=torch.uint8, device=self.device))
        elif weight is not None:
            if tuple(weight.shape) != self.weight_shape:
                raise ValueError(
                    f"weight has shape {list(weight.shape)}, this layer needs {list(self.weight_shape)}"
                )
            prepared = weight.dtype == torch.int8 or isinstance(weight, BinaryParameter)
            if prepared and not isinstance(weight, BinaryParameter):
                weight = state_dict[prefix + "weight"] = self._prepared(weight.detach())
            elif not prepared and not weight.is_floating_point():
                raise TypeError(f"weight must be floating point, or int8 signs, got {weight.dtype}")
            self._drop_qweight()
            if self.weight is None or prepared != (trained_by_flips(self.weight) is not None):
                self.weight = self._weight_for(prepared)

    def _weight_for(self, prepared: bool) -> nn.Parameter:
        """Memory for a weight of either kind."""
        if not prepared:
            return self._new_parameter(*self.weight_shape)
        return self._prepared(torch.ones(self.weight_shape, dtype=torch.int8, device=self.device))


def trained_by_flips(weight: Tensor | None) -> BinaryParameter | None:
    """``weight`` if it is one without a float copy."""
    return weight if isinstance(weight, BinaryParameter) else None


class ScaledSigns(SignLayer):
    """Binary layers with learned activation scale and shift: signs of x + ``bias_a``, and the result
    times ``scale_a`` times ``scale_w``.

    ``bias_a`` (one per input channel) shifts the input, ``scale_a`` (a scalar) is both the magnitude of
    the activations and the window of their gradient; both are learned. ``scale_w`` is the mean
    magnitude of the weight, a scalar or with ``scale="row"`` one per output; it is a constant.

    ``scale_a`` starts at 0, and the first batch in training mode sets it to 2 mean|x| (4 mean|x| with
    ``symmetric=False``): run one before compiling, and before wrapping in DDP, whose ranks see
    different batches. In eval mode nothing is stored: until it is set, each sample takes its own
    2 (or 4) mean|x|.

    :meth:`prepare_params` and :meth:`set_weight_data` turn the weight into the *prepared* form of
    :class:`SignLayer` (trained by :class:`impl.optim.DiodeMix`); a float weight trains with any optimizer.
    """

    bias_a: nn.Parameter
    scale_a: nn.Parameter
    scale_w: Tensor

    def _add_scales(self, channels: int, scale: str) -> None:
        self.scale = check_choice("scale", scale, SCALES)
        factory: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        self.bias_a = nn.Parameter(torch.zeros(channels, **factory))
        self.scale_a = nn.Parameter(torch.zeros((), **factory))
        self._learned_scale = LearnedScale("scale_a", 2.0 if self.symmetric else 4.0)
        self._register_scale_w(torch.ones(() if scale == "tensor" else self.weight_shape[0], **factory))

    def _register_scale_w(self, scale_w: Tensor) -> None:
        self.register_buffer("scale_w", scale_w)

    def reset_parameters(self) -> None:
        """Draw a float weight and the bias anew; shift and scales start again, at 0 and at 1."""
        super().reset_parameters()
        self._reset_scales()

    def _reset_scales(self) -> None:
        with torch.no_grad():
            self.bias_a.zero_()
            self.scale_a.zero_()
            self.scale_w.fill_(1)
        self._learned_scale.forget()

    def prepare_params(self) -> None:
        """Keep of a float weight the signs about its mean, one byte each, and set ``scale_w`` to its mean
        magnitude. No-op where that is done, or where only the packed signs are left."""
        if self.weight is None or trained_by_flips(self.weight) is not None:
            return
        numbers, scale_w = init_weight(self.to_matrix(self.weight), scale=self.scale)
        with torch.no_grad():
            self.scale_w.copy_(scale_w)
        self.weight = self._prepared(self.from_matrix(numbers.detach()))
        self._drop_qweight()

    def set_weight_data(self, x: Tensor) -> None:
        """As :meth:`SignLayer.set_weight_data`, followed by :meth:`prepare_params`."""
        super().set_weight_data(x)
        self.prepare_params()

    def set_activation(self, x: Tensor) -> Tensor:
        """x + ``bias_a``; in training mode the first call sets ``scale_a`` from x.

        ValueError where that first x holds NaN or infinity.
        """
        if self.training and not self._learned_scale.is_set(self.scale_a):
            self._learned_scale.calibrate(self.scale_a, x)
        return x + self._per_channel(self.bias_a)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._learned_scale.forget()
        self._learned_scale.is_set(self.scale_a)  # looks now, so that forward need not
