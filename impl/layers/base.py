"""The base of the binary, ternary and k-ternary linear layers."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impl import native, ops
from impl.checks import check_activations, check_positive
from impl.layers.calls import autocast, is_plain, refuse_derivatives
from impl.layers.quantized import QuantizedLayer, codes_of_components
from impl.packing import FORMATS
from impl.quantizers import fake_quantize_activations


class QuantizedLinear(QuantizedLayer):
    """Base of the linear layers with 1 to k-component low-bit weights [out_features, in_features].

    Attributes: ``in_features``, ``out_features``, and those of
    :class:`~impl.layers.quantized.QuantizedLayer`.
    """

    operation: ClassVar[str] = "linear"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        **options: Any,
    ) -> None:
        cols, rows = check_positive("in_features", in_features), check_positive("out_features", out_features)
        super().__init__((rows, cols), bias, device, dtype, **options)

    # ---- construction -----------------------------------------------------------------------

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, pack: bool = True, **options: Any) -> Self:
        """The layer that replaces a trained ``linear``: weight, bias, device and dtype are kept.

        ``options`` are keyword arguments of the class. ``linear`` is not changed; a layer in
        training form (``pack=False``) gets its own copy of the weight. Raises ValueError where
        the weight holds NaN or infinity.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"from_linear takes an nn.Linear, got {type(linear).__name__}")
        layer = cls(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            device="meta",  # nothing is allocated or drawn: the tensors come from `linear`
            dtype=linear.weight.dtype,
            **options,
        )
        return layer._take(linear, pack)

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
        codes = codes_of_components(codes, scales, 2)
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
        return layer._take_codes(codes, scales, bias)

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
        if not torch.compiler.is_compiling():
            self._serve(f"{self._operator}/latent/torch")
        # In the dtype of x, as the kernels do: they take any, whatever the weight's was.
        bias = None if self.bias is None else self.bias.to(x.dtype)
        x = self._activations(x, self.activation_bits)
        return F.linear(x, self._fake_quantized_weight().to(x.dtype), bias)

    def _activations(self, x: Tensor, bits: int | None) -> Tensor:
        return x if bits is None else fake_quantize_activations(x, bits)

    def _forward_native(self, x: Tensor) -> Tensor | None:
        """Eager calls without the dispatcher, or None where this call needs it: transforms, devices
        without kernels, the torch backend, or an input to complain about."""
        buffers, bias = self._buffers, self._parameters["bias"]
        codes, scales = buffers["codes"], buffers["scales"]
        assert codes is not None
        assert scales is not None
        if not is_plain(x):
            return None
        if x.is_cpu:
            if not (codes.is_cpu and native.serves_cpu()):
                return None
        elif not native.serves(x, codes, native.operation_of(self.activation_bits), self.format):
            return None
        if x.dtype not in native.DTYPES or x.dim() == 0 or x.shape[-1] != self.in_features:
            return None
        if torch.is_autocast_enabled("cpu" if x.is_cpu else "cuda"):
            x = autocast(x)
        prepared: native.DescribedLinear | None = self._prepared
        if prepared is None or not prepared.matches(codes, scales, bias):
            if codes.is_cpu:
                native.prefer_huge_pages(codes)
            prepared = native.prepare_linear(self.packed_weight, bias, self.activation_bits)
            self.__dict__["_prepared"] = prepared  # past nn.Module.__setattr__, which is slow
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
            self._serve(native.last_kernel())
        return y

    def _shape_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
