"""What linear and convolution layers of integer weights and activations share.

*Training form*: ``weight`` is a float Parameter. *Packed form*: ``qweight`` (uint8, the layout of
:func:`impl.layers.nbit.integers.pack_codes`), ``scales`` (float32) and the int64 header ``layout``
(version, bits, rows, columns) are buffers, and the Parameter is gone. ``load_state_dict`` takes
either form into either form, strictly.

There is no kernel for these layers: torch multiplies the integer codes, in float32 or float64, where
their sums are exact. So with integer activations the result is the same to the bit in either form, in
training and in eval, for every batch size, thread count and device; with float activations it has the
rounding of torch's float product. It is not faster than a float layer.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from impl.checks import ACTIVATION_DTYPES, SCALES, check_choice
from impl.layers.calls import autocast, refuse_derivatives
from impl.layers.learned_scale import LearnedScale
from impl.layers.nbit import integers
from impl.layers.nbit.activations import (
    ACTIVATION_SCALES,
    LearnedStep,
    quantize_dynamic,
    quantize_learned,
)
from impl.layers.nbit.states import PACKED, check_packed, header


class IntegerLayer(nn.Module, ABC):
    """Base of layers y = product(code_x, code_w) scale_w scale_x + bias.

    Weights: scale_w = max|w| / L of each output channel (``scale="row"``) or of all ("tensor"), codes of
    ``weight_bits``. Activations: codes of ``activation_bits``, or None for float activations, then
    with an ordinary float product. ``activation_scale``: "dynamic" or "learned"
    (:mod:`impl.layers.nbit.activations`); a learned one is the Parameter ``scale_a``, which starts at
    0 and takes 2 mean|x| / sqrt(L) of the first batch in training mode (run one before compiling, and
    before wrapping in DDP, whose ranks see different batches). Until then eval is dynamic.

    float32: t = scale_w * float(sum of code products), y = t * scale_x, + bias, then rounded once to
    the dtype of x. The weight's gradient passes straight through.

    ``.half()`` and ``.to(dtype)`` cast weight, bias and ``scale_a``, never codes and scales.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    scale_a: nn.Parameter | None
    qweight: Tensor | None
    scales: Tensor | None
    layout: Tensor | None

    def __init__(
        self,
        weight_shape: tuple[int, ...],
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        *,
        weight_bits: int,
        activation_bits: int | None,
        activation_scale: str,
        scale: str,
    ) -> None:
        super().__init__()
        self.weight_bits = integers.check_bits("weight_bits", weight_bits)
        if activation_bits is not None:
            integers.check_bits("activation_bits", activation_bits)
        self.activation_bits = activation_bits
        self.activation_scale = check_choice("activation_scale", activation_scale, ACTIVATION_SCALES)
        if activation_bits is None and activation_scale == "learned":
            raise ValueError(
                "activation_scale='learned' needs activation_bits: float activations have no scale"
            )
        self.scale = check_choice("scale", scale, SCALES)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in ACTIVATION_DTYPES:
            raise TypeError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
        self._weight_shape = weight_shape
        self._weight_dtype = dtype  # in packed form, what unpack() returns to
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(weight_shape, **factory))
        if bias:
            self.bias = nn.Parameter(torch.empty(weight_shape[0], **factory))
        else:
            self.register_parameter("bias", None)
        if activation_scale == "learned":
            self.scale_a = nn.Parameter(torch.zeros((), device=device, dtype=torch.float32))
        else:
            self.register_parameter("scale_a", None)
        self._learned_scale = LearnedScale("scale_a", self._scale_factor())
        self._weight_requires_grad = True
        for name in PACKED:
            self.register_buffer(name, None)
        IntegerLayer.reset_parameters(self)

    # ---- what a subclass says ---------------------------------------------------------------

    @abstractmethod
    def _check_input(self, x: Tensor) -> None:
        """TypeError or ValueError for an ``x`` that the layer does not take."""

    @abstractmethod
    def _sample_dims(self, x: Tensor) -> tuple[int, ...]:
        """The dimensions of x that share an activation scale."""

    @abstractmethod
    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's float product: ``F.linear`` or ``F.conv``; weight in :attr:`weight_shape`."""

    @abstractmethod
    def _integer_product(self, codes: Tensor, weight: Tensor) -> Tensor:
        """The exact product of int8 activations and int8 weights [out, rest]: float32."""

    @abstractmethod
    def _over_outputs(self, values: Tensor) -> Tensor:
        """[out] or [1] shaped so that it broadcasts over the output channels of y."""

    def _weight_scales(self, weight: Tensor) -> Tensor:
        """float32 [out] or [1] of the float32 matrix ``weight``."""
        return integers.absmax_scales(weight, self.weight_bits, self.scale)

    def _code_range(self) -> tuple[int, int]:
        """Least and largest code of a weight."""
        high = integers.largest_code(self.weight_bits)
        return -high, high

    def _scale_factor(self) -> float:
        """A learned scale starts at so many times mean|x|."""
        bits = self.activation_bits
        return 0.0 if bits is None else 2 / math.sqrt(integers.largest_code(bits))

    def _shifted(self, x: Tensor) -> Tensor:
        """What is quantised in place of x."""
        return x

    # ---- what the layer is ------------------------------------------------------------------

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight, packed or not."""
        return self._weight_shape

    @property
    def is_packed(self) -> bool:
        """Whether the layer is in packed form."""
        return self.weight is None

    @property
    def weight_dtype(self) -> torch.dtype:
        """Dtype of the float weight; in packed form, the one that :meth:`unpack` restores."""
        return self._weight_dtype if self.weight is None else self.weight.dtype

    @property
    def weight_device(self) -> torch.device:
        """Device of the weight, packed or not."""
        held = self.qweight if self.weight is None else self.weight
        assert held is not None
        return held.device

    def extra_repr(self) -> str:
        """Widths and form, as ``print(model)`` shows them."""
        activations = "float" if self.activation_bits is None else self.activation_bits
        parts = [f"bias={self.bias is not None}", f"weight_bits={self.weight_bits}"]
        parts += [f"activation_bits={activations}", f"scale={self.scale}"]
        if self.activation_bits is not None:
            parts.append(f"activation_scale={self.activation_scale}")
        return ", ".join([*parts, "packed" if self.is_packed else "training"])

    def reset_parameters(self) -> None:
        """Draw weight and bias as torch's layers do; a learned scale starts again. Training form only."""
        weight = self._latent("reset_parameters()")
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self._weight_shape[1:]))
            nn.init.uniform_(self.bias, -bound, bound)
        self._reset_scale()

    def _reset_scale(self) -> None:
        if self.scale_a is not None:
            nn.init.zeros_(self.scale_a)
            self._learned_scale.forget()

    # ---- forward ----------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """y in the dtype of x (autocast's, where on). x: float32, bfloat16 or float16, any strides,
        empty batches included; NaN or infinity makes its own row or sample NaN. TypeError or
        ValueError otherwise."""
        self._check_input(x)
        if self.is_packed:
            refuse_derivatives(x)
        x = autocast(x)
        x = self._shifted(x).to(x.dtype)
        if self.activation_bits is None:
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return self._product(x, self._with_gradient(self.dequantize(x.dtype)), bias)
        scale = self._activation_scale(x)
        with torch.no_grad():
            codes, step = self._quantized(x, scale, self.activation_bits)
            weight_codes, weight_scales = self._codes_and_scales()
            y = self._over_outputs(weight_scales) * self._integer_product(codes, weight_codes) * step
            if self.bias is not None:
                y = y + self._over_outputs(self.bias.to(torch.float32))
        involved = (x, self.weight, self.bias, scale)
        if torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in involved
        ):
            if scale is None:
                rounded = (codes * step).to(x.dtype) + (x - x.detach())  # plus a zero with the gradient
            else:
                rounded = LearnedStep.apply(x, scale, integers.largest_code(self.activation_bits))
            bias = None if self.bias is None else self.bias.to(x.dtype)
            weight = self._with_gradient(self._decoded(weight_codes, weight_scales, x.dtype))
            carrier = self._product(rounded, weight, bias)
            y = integers.ExactValue.apply(carrier, y)
        return y.to(x.dtype)

    def _activation_scale(self, x: Tensor) -> Tensor | None:
        scale = self.scale_a
        if scale is None:
            return None
        if self.training and not self._learned_scale.is_set(scale):
            self._learned_scale.calibrate(scale, x)
        return scale if self._learned_scale.is_set(scale) else None

    def _quantized(self, x: Tensor, scale: Tensor | None, bits: int) -> tuple[Tensor, Tensor]:
        """int8 codes of x and their step size; ``scale`` None: dynamic."""
        dims = self._sample_dims(x)
        return quantize_dynamic(x, bits, dims) if scale is None else quantize_learned(x, scale, bits, dims)

    def _with_gradient(self, value: Tensor) -> Tensor:
        """The quantised weight ``value`` with the gradient of the weight where there is one."""
        weight = self.weight
        return value if weight is None else value + (weight - weight.detach()).to(value.dtype)

    def _codes_and_scales(self, *, final: bool = False) -> tuple[Tensor, Tensor]:
        """int8 codes [out, rest] and float32 scales [out] or [1], of the weight as it is now."""
        cols = math.prod(self._weight_shape[1:])
        if self.weight is None:
            assert self.qweight is not None
            assert self.scales is not None
            return integers.unpack_codes(self.qweight, cols, self.weight_bits), self.scales
        matrix = integers.weight_matrix(self.weight, final=final)
        scales = self._weight_scales(matrix)
        return integers.nearest_codes(matrix, scales, *self._code_range()), scales

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that forward uses, decoded, in :attr:`weight_shape`."""
        with torch.no_grad():
            return self._decoded(*self._codes_and_scales(), dtype)

    @torch.no_grad()
    def _decoded(self, codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
        return (codes * scales.unsqueeze(1)).to(dtype).reshape(self._weight_shape)

    # ---- from one form to the other ---------------------------------------------------------

    def pack(self) -> Self:
        """Go to packed form and return the layer: the float weight is freed. No-op when packed.

        ValueError where the weight holds NaN or infinity.
        """
        if self.weight is not None:
            with torch.no_grad():
                codes, scales = self._codes_and_scales(final=True)
                self._become_packed(integers.pack_codes(codes, self.weight_bits), scales)
        return self

    def unpack(self) -> Self:
        """Go to training form and return the layer: ``weight`` holds the decoded values, frozen where it
        was before packing. No-op in training form."""
        if self.weight is None:
            self._become_latent(self.dequantize(self.weight_dtype))
        return self

    def _taken_from(self, old: nn.Module, pack: bool) -> Self:
        """Bring this layer, built on the meta device, to that of ``old``, copy its weight and bias, take its
        mode, and pack if asked for. Nothing is drawn."""
        assert isinstance(old.weight, Tensor)
        self.to_empty(device=old.weight.device)
        self._reset_scale()
        weight, bias = self._latent("from_linear()"), old.bias
        with torch.no_grad():
            weight.copy_(old.weight)
            if self.bias is not None:
                assert isinstance(bias, Tensor)
                self.bias.copy_(bias)
                self.bias.requires_grad_(bias.requires_grad)
        weight.requires_grad_(old.weight.requires_grad)
        self.train(old.training)
        return self.pack() if pack else self

    def _latent(self, what: str) -> nn.Parameter:
        if self.weight is None:
            raise RuntimeError(
                f"{what} needs the float weight, this {type(self).__name__} is packed: unpack() it"
            )
        return self.weight

    def _become_packed(self, packed: Tensor, scales: Tensor) -> None:
        if self.weight is not None:
            self._weight_requires_grad = self.weight.requires_grad
            self._weight_dtype = self.weight.dtype
        self.weight = None
        self.register_buffer("qweight", packed)
        self.register_buffer("scales", scales)
        self.register_buffer("layout", self._header().to(packed.device))

    def _header(self) -> Tensor:
        return header(self.weight_bits, self._weight_shape[0], math.prod(self._weight_shape[1:]))

    def _become_latent(self, weight: Tensor) -> None:
        for name in PACKED:
            self.register_buffer(name, None)
        self.weight = nn.Parameter(weight, requires_grad=self._weight_requires_grad)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast: the scales of packed weights change their device, never their dtype."""
        scales, layout = self.scales, self.layout
        if scales is not None:
            dtype = fn(torch.empty(0, dtype=self._weight_dtype, device=scales.device)).dtype
            self._weight_dtype = dtype if dtype in ACTIVATION_DTYPES else torch.float32
        super()._apply(fn, recurse)
        moved = self.scales
        if layout is not None and layout.is_meta and self.layout is not None and not self.layout.is_meta:
            self.layout.copy_(self._header())  # to_empty(): fill what is known
        if scales is not None and moved is not None and moved.dtype != scales.dtype:
            self.scales = scales.to(moved.device)
        self._learned_scale.forget()
        return self

    # ---- states -----------------------------------------------------------------------------

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
        if self.scale_a is not None:
            self._learned_scale.forget()
            self._learned_scale.is_set(self.scale_a)  # looks now, so that forward need not

    def _adopt_form(self, state: Mapping[str, Any], prefix: str) -> None:
        """Bring the layer into the form of the state, with memory for it to fill; a state that lacks keys
        changes nothing, and the strict load that follows names them."""
        held = {name: state[prefix + name] for name in PACKED if prefix + name in state}
        if held and prefix + "weight" in state:
            raise ValueError("the state holds a float weight and packed codes: keep one of them")
        if len(held) == len(PACKED):
            check_packed(
                held,
                self._header(),
                scale_count=1 if self.scale == "tensor" else self._weight_shape[0],
                code_range=self._code_range(),
            )
            if self.weight is not None or self.qweight is None or self.scales is None:
                place = self.weight_device
                self._become_packed(
                    torch.empty_like(held["qweight"], device=place),
                    torch.empty_like(held["scales"], device=place),
                )
        elif prefix + "weight" in state and self.weight is None:
            shape = tuple(state[prefix + "weight"].shape)
            if shape != self._weight_shape:
                raise ValueError(
                    f"weight has shape {list(shape)}, this layer needs {list(self._weight_shape)}"
                )
            self._become_latent(torch.empty(shape, dtype=self.weight_dtype, device=self.weight_device))
