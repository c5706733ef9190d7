"""What linear and convolution layers with low-bit weights share: one life cycle, two forms.

*Training form*: ``weight`` is a float Parameter (the latent weight). Each forward quantises it, and
the activations where ``activation_bits`` is set, and passes the gradient straight through; so does
eval, hence the values used are never stale.

*Packed form*: ``codes`` (uint8 bytes in the layout of ``csrc/include/impl.h``), ``scales``
[components, rows or 1, groups] and the int64 header ``packing`` are buffers, the Parameter is
gone, and forward runs a kernel on the bytes. Packed weights are constants; the input and the bias
still receive gradients.

:meth:`QuantizedLayer.pack` and :meth:`QuantizedLayer.unpack` go from one to the other, and
``load_state_dict`` takes the form of the state that it is given.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from impl import decoding, native
from impl.checks import ACTIVATION_DTYPES, check_choice, check_group_size
from impl.layers.forms import TwoForms
from impl.packing import PackedWeight, check_scales
from impl.packing import pack as pack_codes
from impl.quantizers import ACTIVATION_BITS, STE, Quantized, straight_through

SCALES = ("row", "tensor")
SCALE_DTYPES = (torch.float32, torch.float16)


class QuantizedLayer(TwoForms, ABC):
    """Base of the layers with 1 to k-component low-bit weights.

    A weight is quantised and packed as the matrix [out_features, in_features]: one row an output.
    Attributes: ``components``, ``format``, ``activation_bits`` (None: float activations, 1: signs,
    2: ternary values, 8, 16), ``scale``
    ("row", "tensor" or None: as the rule says), ``group_size`` (columns that share a scale, or None),
    ``scale_dtype``, ``ste``.

    ``scale_dtype`` belongs to the packed weight as its codes do: ``.half()`` and ``.to(dtype)``
    cast the latent weight and the bias, but neither codes, nor header, nor scales.
    """

    formats: ClassVar[tuple[str, ...]]
    activations: ClassVar[tuple[int | None, ...]] = (None, *ACTIVATION_BITS)
    operation: ClassVar[str]
    """What the layer does with its weight, as in operator names: "linear" or "conv"."""

    def __init__(
        self,
        weight_shape: tuple[int, ...],
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
        self.out_features, self.in_features = weight_shape[0], math.prod(weight_shape[1:])
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
        self.weight = nn.Parameter(torch.empty(weight_shape, **factory))
        if bias:
            self.bias = nn.Parameter(torch.empty(self.out_features, **factory))
        else:
            self.register_parameter("bias", None)
        self._register_packed_buffers()
        self.reset_parameters()

    # ---- what a subclass says ---------------------------------------------------------------

    @abstractmethod
    def _quantize(self, weight: Tensor, *, final: bool) -> Quantized:
        """Codes and scales of the matrix ``weight``; ``final`` when packing: then NaN and infinity are
        errors, and time matters less than in a training step."""

    @abstractmethod
    def _activations(self, x: Tensor, bits: int | None) -> Tensor:
        """``x`` as the latent weight meets it, rounded to ``bits`` (None: not) in its own dtype."""

    @abstractmethod
    def _shape_repr(self) -> str:
        """The sizes of the layer, for ``print(model)``."""

    @classmethod
    def _options_for(cls, components: int) -> dict[str, Any]:
        """Arguments of the class for a weight of so many components."""
        if components != 1:
            raise ValueError(
                f"{cls.__name__} has one component, the codes have {components}: "
                f"use MultiTernary{cls.operation.capitalize()}"
            )
        return {}

    def _scale_rows(self) -> int:
        """Rows of scales that packing gives."""
        return 1 if self.scale == "tensor" else self.out_features

    def _to_matrix(self, weight: Tensor) -> Tensor:
        """``weight`` in its own shape as the matrix [out_features, in_features]."""
        return weight

    def _from_matrix(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`_to_matrix`, for some rows and any leading dimensions."""
        return matrix

    # ---- construction -----------------------------------------------------------------------

    def reset_parameters(self) -> None:
        """Initialise the latent weight and the bias as ``nn.Linear`` and ``nn.Conv2d`` do. Training
        form only."""
        weight = self._latent("reset_parameters()")
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            nn.init.uniform_(self.bias, -bound, bound)

    def _take(self, module: nn.Module, pack: bool) -> Self:
        """Take the float weight and bias of ``module``, whose like this layer was made, and its mode."""
        old, bias = module.weight, module.bias
        assert isinstance(old, Tensor)
        weight = old.detach() if pack else old.detach().clone()
        self.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
        if isinstance(bias, Tensor):
            self.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        self.train(module.training)
        return self.pack() if pack else self

    def _take_codes(self, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Self:
        """Take int8 ``codes`` [components, out_features, in_features], their scales and the bias."""
        if bias is not None:
            if tuple(bias.shape) != (self.out_features,):
                raise ValueError(f"bias must have shape [{self.out_features}], got {list(bias.shape)}")
            self.bias = nn.Parameter(bias.detach().clone())
        self._install(codes, scales.detach().clone())
        if self.group_size is None:
            self.scale = "row" if scales.shape[1] == self.out_features else "tensor"
        return self

    # ---- forward ----------------------------------------------------------------------------

    def _serve(self, kernel: Any) -> None:
        """Note what :attr:`last_kernel` answers from."""
        self.__dict__["_served"] = kernel

    @property
    def _operator(self) -> str:
        return native.operator_of(self.format, self.operation)

    def _fake_quantized_weight(self) -> Tensor:
        """The quantised weight in its own shape, with the gradient of ``ste`` to the latent one."""
        weight = self._latent("the latent weight")
        value = self._from_matrix(self._quantized(final=False).dequantize(weight.dtype))
        return straight_through(weight, value, self.ste)

    def _quantized(self, *, final: bool) -> Quantized:
        weight = self._to_matrix(self._latent("quantising").detach())
        quantized = self._quantize(weight, final=final)
        scales = quantized.scales.to(self.scale_dtype)
        if final and bool((~torch.isfinite(scales) | ((scales == 0) & (quantized.scales != 0))).any()):
            raise ValueError(f"a scale is too large or too small for {self.scale_dtype}: use torch.float32")
        return Quantized(quantized.codes, scales, quantized.group_size)

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
            header = self._header(self._scale_rows())
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
            weight = torch.empty(self.weight_shape, dtype=self._weight_dtype, device="meta")
        else:
            weight = self.dequantize(dtype=self._weight_dtype)
        self._become_latent(weight)
        return self

    def dequantize(self, rows: slice | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that forward uses, decoded: [rows, ...] of :attr:`weight_shape`.

        ``rows``: a slice of outputs with step 1, or None for all. In training form these are the
        quantised values of the current latent weight.
        """
        begin, end, step = (rows or slice(None)).indices(self.out_features)
        if step != 1:
            raise ValueError(f"rows must be a slice with step 1, got step {step}")
        if not self.is_packed:
            with torch.no_grad():
                return self._from_matrix(self._quantized(final=False).dequantize(dtype)[begin:end])
        return self._from_matrix(decoding.dequantize_rows(self.packed_weight, begin, end)).to(dtype)

    def _codes_and_scales(self) -> tuple[Tensor, Tensor]:
        """Codes int8 [k, *weight_shape] and float32 scales [k, out_features, groups] in either form."""
        if self.is_packed:
            assert self.scales is not None
            codes, scales = decoding.unpack_rows(self.packed_weight, 0, self.out_features), self.scales
        else:
            with torch.no_grad():
                quantized = self._quantized(final=False)
            codes, scales = quantized.codes, quantized.scales
        return self._from_matrix(codes), scales.to(torch.float32).expand(-1, self.out_features, -1)

    def _install(self, codes: Tensor, scales: Tensor) -> None:
        """Take int8 codes [k, out_features, in_features] and scales as packed form."""
        packed = PackedWeight(
            self.format,
            self.components,
            self.out_features,
            self.in_features,
            self.group_size,
            pack_codes(codes, self.format, self.group_size),
            scales.contiguous(),
        )
        header = self._header(scales.shape[1])
        self._become_packed(packed.codes, packed.scales, header.to_tensor().to(codes.device))

    def extra_repr(self) -> str:
        """Shape, format and form, as ``print(model)`` shows them."""
        parts = [self._shape_repr()]
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


def codes_of_components(codes: Tensor, scales: Tensor, dims: int) -> Tensor:
    """``codes`` with a first dimension for components, whether given or not; ``dims`` without it.

    TypeError or ValueError for anything that codes and scales cannot be.
    """
    for name, tensor in (("codes", codes), ("scales", scales)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    check_scales(scales)
    codes = codes.unsqueeze(0) if codes.dim() == dims else codes
    if codes.dim() != dims + 1:
        shape = "rows, cols" if dims == 2 else "out_channels, channels, *kernel"
        raise ValueError(f"codes must have shape [components, {shape}] or [{shape}], got {list(codes.shape)}")
    return codes
