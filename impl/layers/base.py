"""What binary, ternary and k-ternary linear layers share: one life cycle, two forms.

*Training form*: ``weight`` is a float Parameter [out_features, in_features] (the latent weight).
Each forward quantises it, and the activations where ``activation_bits`` is set, and passes the
gradient straight through; so does eval, hence the values used are never stale.

*Packed form*: ``codes`` (uint8 bytes in the layout of ``csrc/include/impl.h``), ``scales``
[components, rows or 1, groups] and the int64 header ``packing`` are buffers, the Parameter is
gone, and forward runs a kernel on the bytes. Packed weights are constants; the input and the bias
still receive gradients.

:meth:`QuantizedLinear.pack` and :meth:`QuantizedLinear.unpack` go from one to the other, and
``load_state_dict`` takes the form of the state that it is given.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impl import decoding, native, ops
from impl.checks import ACTIVATION_DTYPES, check_activations, check_choice, check_group_size, check_positive
from impl.layers.calls import autocast, is_plain, refuse_derivatives
from impl.layers.forms import TwoForms
from impl.packing import FORMATS, Header, PackedWeight
from impl.packing import pack as pack_codes
from impl.quantizers import STE, Quantized, fake_quantize_activations, straight_through

SCALES = ("row", "tensor")
SCALE_DTYPES = (torch.float32, torch.float16)

_CPU = torch.device("cpu")


class QuantizedLinear(TwoForms, ABC):
    """Base of the linear layers with 1 to k-component low-bit weights.

    Attributes: ``in_features``, ``out_features``, ``components``, ``format``, ``activation_bits``
    (None: float activations), ``scale`` ("row", "tensor" or None: as the rule says),
    ``group_size`` (columns that share a scale, or None), ``scale_dtype``, ``ste``.

    ``scale_dtype`` belongs to the packed weight as its codes do: ``.half()`` and ``.to(dtype)``
    cast the latent weight and the bias, but neither codes, nor header, nor scales.
    """

    formats: ClassVar[tuple[str, ...]]
    activations: ClassVar[tuple[int | None, ...]]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        *,
        format: str,
        components: int,
        activation_bits: int | None,
        scale: str | None,
        group_size: int | None,
        scale_dtype: torch.dtype,
        ste: str,
    ) -> None:
        super().__init__()
        self.in_features = check_positive("in_features", in_features)
        self.out_features = check_positive("out_features", out_features)
        self.format = check_choice("format", format, self.formats)
        self.components = components
        if activation_bits is not None and type(activation_bits) is not int:
            raise TypeError(
                f"activation_bits must be an int or None, got {activation_bits!r} "
                f"({type(activation_bits).__name__})"
            )
        if activation_bits not in self.activations:
            raise ValueError(
                f"activation_bits={activation_bits!r}, {type(self).__name__} takes one of {self.activations}"
            )
        self.activation_bits = activation_bits
        if scale is not None:
            check_choice("scale", scale, SCALES)
        self.scale = scale
        self.group_size = check_group_size(group_size)
        if group_size is not None and scale == "tensor":
            raise ValueError(
                f"group_size={group_size} gives a scale per row and group: it excludes scale='tensor'"
            )
        if scale_dtype not in SCALE_DTYPES:
            raise TypeError(f"scale_dtype must be torch.float32 or torch.float16, got {scale_dtype}")
        self.scale_dtype = scale_dtype
        self.ste = check_choice("ste", ste, STE)
        self._weight_dtype = torch.get_default_dtype() if dtype is None else dtype
        if self._weight_dtype not in ACTIVATION_DTYPES:
            raise TypeError(
                f"dtype must be float32, bfloat16 or float16, got {self._weight_dtype}: "
                "convert the module with .float() first"
            )
        self._weight_requires_grad = True

        factory: dict[str, Any] = {"device": device, "dtype": self._weight_dtype}
        self.weight = nn.Parameter(torch.empty(self.out_features, self.in_features, **factory))
        if bias:
            self.bias = nn.Parameter(torch.empty(self.out_features, **factory))
        else:
            self.register_parameter("bias", None)
        self._register_packed_buffers()
        self.reset_parameters()

    # ---- what a subclass says ---------------------------------------------------------------

    @abstractmethod
    def _quantize(self, weight: Tensor, *, final: bool) -> Quantized:
        """Codes and scales of ``weight``; ``final`` when packing: then NaN and infinity are errors,
        and time matters less than in a training step."""

    # ---- construction -----------------------------------------------------------------------

    def reset_parameters(self) -> None:
        """Initialise the latent weight and the bias as ``nn.Linear`` does. Training form only."""
        weight = self._latent("reset_parameters()")
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            nn.init.uniform_(self.bias, -bound, bound)

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, pack: bool = True, **options: Any) -> Self:
        """The layer that replaces a trained ``linear``: weight, bias, device and dtype are kept.

        ``options`` are keyword arguments of the class. ``linear`` is not changed; a layer in
        training form (``pack=False``) gets its own copy of the weight. Raises ValueError where
        the weight holds NaN or infinity.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"from_linear takes an nn.Linear, got {type(linear).__name__}")
        old = linear.weight
        layer = cls(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            device="meta",  # nothing is allocated or drawn: the tensors come from `linear`
            dtype=old.dtype,
            **options,
        )
        weight = old.detach() if pack else old.detach().clone()
        layer.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=linear.bias.requires_grad)
        layer.train(linear.training)
        return layer.pack() if pack else layer

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scales: Tensor,
        bias: Tensor | None = None,
        *,
        format: str | None = None,
        activation_bits: int | None = None,
        group_size: int | None = None,
    ) -> Self:
        """A packed layer from int8 ``codes`` [components, rows, cols], or [rows, cols] of a single one.

        Codes are -1 and +1 (binary) or -1, 0 and +1; ``scales`` [components, rows or 1, groups] are
        float32 or float16. ``format`` None is the first of the class's ``formats``. Raises
        ValueError or TypeError for tensors that no such layer has.
        """
        for name, tensor in (("codes", codes), ("scales", scales)):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        codes = codes.unsqueeze(0) if codes.dim() == 2 else codes
        if codes.dim() != 3:
            raise ValueError(
                f"codes must have shape [components, rows, cols] or [rows, cols], got {list(codes.shape)}"
            )
        components, rows, cols = codes.shape
        layer = cls(
            cols,
            rows,
            bias=bias is not None,
            device="meta",
            dtype=torch.float32 if bias is None else bias.dtype,
            format=format or cls.formats[0],
            scale_dtype=scales.dtype,
            activation_bits=activation_bits,
            group_size=group_size,
            **cls._options_for(components),
        )
        if bias is not None:
            if tuple(bias.shape) != (rows,):
                raise ValueError(f"bias must have shape [{rows}], got {list(bias.shape)}")
            layer.bias = nn.Parameter(bias.detach().clone())
        layer._install(codes, scales.detach().clone())
        if group_size is None:
            layer.scale = "row" if scales.shape[1] == rows else "tensor"
        return layer

    @classmethod
    def _options_for(cls, components: int) -> dict[str, Any]:
        """Arguments of the class for a weight of so many components."""
        if components != 1:
            raise ValueError(
                f"{cls.__name__} has one component, the codes have {components}: use MultiTernaryLinear"
            )
        return {}

    # ---- forward ----------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """y [..., out_features] of x [..., in_features], in the dtype of x (autocast's, where on).

        x: float32, bfloat16 or float16, any leading dimensions and strides, empty batches
        included. Raises TypeError or ValueError naming what is wrong with x.
        """
        if self._buffers["codes"] is None:
            return self._forward_latent(x)
        if not torch.compiler.is_compiling():
            y = self._forward_native(x)
            if y is not None:
                return y
        return self._forward_operator(x)

    def _forward_latent(self, x: Tensor) -> Tensor:
        check_activations(x, self.in_features)
        x = autocast(x)
        if self.activation_bits is not None:
            x = fake_quantize_activations(x, self.activation_bits)
        if not torch.compiler.is_compiling():
            self.__dict__["_served"] = f"{self._operator}/latent/torch"
        # In the dtype of x, as the kernels do: they take any, whatever the weight's was.
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self._fake_quantized_weight().to(x.dtype), bias)

    def _forward_native(self, x: Tensor) -> Tensor | None:
        """Eager calls without the dispatcher, or None where this call needs it: transforms, other
        devices, the torch backend, or an input to complain about."""
        buffers, bias = self._buffers, self._parameters["bias"]
        codes, scales = buffers["codes"], buffers["scales"]
        assert codes is not None
        assert scales is not None
        if not (is_plain(x) and x.is_cpu and codes.is_cpu and native.uses_native(_CPU)):
            return None
        if x.dtype not in native.DTYPES or x.dim() == 0 or x.shape[-1] != self.in_features:
            return None
        if torch.is_autocast_enabled("cpu"):
            x = autocast(x)
        prepared = self._prepared
        if prepared is None or not prepared.matches(codes, scales, bias):
            prepared = native.PreparedLinear(self.packed_weight, bias, self.activation_bits)
            self.__dict__["_prepared"] = prepared  # past nn.Module.__setattr__, which takes 1 us
        self.__dict__["_served"] = prepared
        if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            y: Tensor = ops.PreparedFunction.apply(x, bias, prepared)
            return y
        return prepared(x)

    def _forward_operator(self, x: Tensor) -> Tensor:
        assert self.codes is not None
        assert self.scales is not None
        refuse_derivatives(x)
        x = autocast(ops.check_input(x, self.in_features, self.codes.device))
        y: Tensor = getattr(torch.ops.bitimpl, self._operator)(
            x,
            self.codes,
            self.scales,
            self.bias,
            self.out_features,
            self.in_features,
            self.components,
            self.group_size or 0,
            FORMATS[self.format],
            self.activation_bits or 0,
        )
        if not torch.compiler.is_compiling():
            self.__dict__["_served"] = native.last_kernel()
        return y

    def _fake_quantized_weight(self) -> Tensor:
        weight = self._latent("the latent weight")
        return straight_through(weight, self._quantized(final=False), self.ste)

    def _quantized(self, *, final: bool) -> Quantized:
        quantized = self._quantize(self._latent("quantising").detach(), final=final)
        scales = quantized.scales.to(self.scale_dtype)
        if final and bool((~torch.isfinite(scales) | ((scales == 0) & (quantized.scales != 0))).any()):
            raise ValueError(f"a scale is too large or too small for {self.scale_dtype}: use torch.float32")
        return Quantized(quantized.codes, scales, quantized.group_size)

    @property
    def _operator(self) -> str:
        return native.operator_of(self.format)

    # ---- from one form to the other ---------------------------------------------------------

    def pack(self) -> Self:
        """Go to packed form and return the layer: the float weight is freed. No-op when packed.

        Raises ValueError where the weight holds NaN or infinity, or where a scale does not fit
        ``scale_dtype``.
        """
        if self.is_packed:
            return self
        weight = self._latent("pack()")
        if weight.is_meta:
            header = Header(
                self.format,
                self.components,
                self.out_features,
                self.in_features,
                self.group_size,
                self._scale_rows(),
            )
            self._become_packed(
                torch.empty(header.codes_bytes, dtype=torch.uint8, device="meta"),
                torch.empty(header.scales_shape, dtype=self.scale_dtype, device="meta"),
                header.to_tensor().to("meta"),
            )
            return self
        with torch.no_grad():
            quantized = self._quantized(final=True)
        self._install(quantized.codes, quantized.scales)
        return self

    def unpack(self) -> Self:
        """Go to training form and return the layer: ``weight`` holds the decoded values, in
        :attr:`weight_dtype`, frozen where it was before packing. No-op in training form.

        Packing again restores the same codes and, but for rounding to that dtype, scales; with
        the rule ``absmean`` the scale shrinks by the share of non-zero weights, as it is the mean
        over zeros too.
        """
        if not self.is_packed:
            return self
        assert self.codes is not None
        if self.codes.is_meta:
            weight = torch.empty(self.out_features, self.in_features, dtype=self._weight_dtype, device="meta")
        else:
            weight = self.dequantize(dtype=self._weight_dtype)
        self._become_latent(weight)
        return self

    def dequantize(self, rows: slice | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that forward uses, decoded: [rows, in_features].

        ``rows``: a slice of output features with step 1, or None for all. In training form these
        are the quantised values of the current latent weight.
        """
        begin, end, step = (rows or slice(None)).indices(self.out_features)
        if step != 1:
            raise ValueError(f"rows must be a slice with step 1, got step {step}")
        if not self.is_packed:
            with torch.no_grad():
                return self._quantized(final=False).dequantize(dtype)[begin:end]
        return decoding.dequantize_rows(self.packed_weight, begin, end).to(dtype)

    def _codes_and_scales(self) -> tuple[Tensor, Tensor]:
        """Codes int8 [k, N, K] and float32 scales [k, N, G] in either form."""
        if self.is_packed:
            assert self.scales is not None
            codes, scales = decoding.unpack_rows(self.packed_weight, 0, self.out_features), self.scales
        else:
            with torch.no_grad():
                quantized = self._quantized(final=False)
            codes, scales = quantized.codes, quantized.scales
        return codes, scales.to(torch.float32).expand(-1, self.out_features, -1)

    def _scale_rows(self) -> int:
        return 1 if self.scale == "tensor" else self.out_features

    def _install(self, codes: Tensor, scales: Tensor) -> None:
        """Take int8 codes [k, N, K] and scales as packed form."""
        packed = PackedWeight(
            self.format,
            self.components,
            self.out_features,
            self.in_features,
            self.group_size,
            pack_codes(codes, self.format, self.group_size),
            scales.contiguous(),
        )
        self._become_packed(packed.codes, packed.scales, packed.header.to_tensor().to(codes.device))

    def extra_repr(self) -> str:
        """Shape, format and form, as ``print(model)`` shows them."""
        parts = [f"in_features={self.in_features}", f"out_features={self.out_features}"]
        if self.components > 1:
            parts.append(f"k={self.components}")
        parts += [f"bias={self.bias is not None}", f"format={self.format}"]
        parts.append(f"activation_bits={self.activation_bits}")
        if self.group_size is not None:
            parts.append(f"group_size={self.group_size}")
        elif self.scale is not None:
            parts.append(f"scale={self.scale}")
        parts.append("packed" if self.is_packed else f"training, ste={self.ste}")
        return ", ".join(parts)
