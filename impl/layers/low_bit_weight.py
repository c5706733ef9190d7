"""The life cycle of a low-bit weight, of layers and of tables: made, packed, decoded, and packed again."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from impl import decoding
from impl.checks import ACTIVATION_DTYPES, SCALES, check_choice, check_group_size
from impl.layers.forms import TwoForms
from impl.packing import PackedWeight
from impl.packing import pack as pack_codes
from impl.packing.container import SCALE_DTYPES
from impl.quantizers import STE, Quantized


class LowBitWeight(TwoForms, ABC):
    """Base of modules with a weight of 1 to k low-bit components, latent or packed.

    A weight is quantised and packed as the matrix [out_features, in_features]. Attributes:
    ``components``, ``format``, ``scale`` ("row", "tensor" or None: as the rule says), ``group_size``
    (columns that share a scale, or None), ``scale_dtype`` (float32 or float16), ``ste``.
    """

    formats: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        weight_shape: tuple[int, ...],
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        *,
        format: str,
        components: int,
        scale: str | None,
        group_size: int | None,
        scale_dtype: torch.dtype,
        ste: str,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_shape[0], math.prod(weight_shape[1:])
        self.format = check_choice("format", format, self.formats)
        self.components = components
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
    def reset_parameters(self) -> None:
        """Draw the latent weight, and the bias where there is one, anew. Training form only."""

    def _scale_rows(self) -> int:
        """Rows of scales that packing gives."""
        return 1 if self.scale == "tensor" else self.out_features

    def _to_matrix(self, weight: Tensor) -> Tensor:
        """``weight`` in its own shape as the matrix [out_features, in_features]."""
        return weight

    def _from_matrix(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`_to_matrix`, for some rows and any leading dimensions."""
        return matrix

    def _quantized(self, *, final: bool) -> Quantized:
        return self._quantized_matrix(self._to_matrix(self._latent("quantising").detach()), final=final)

    def _quantized_matrix(self, weight: Tensor, *, final: bool) -> Quantized:
        """:meth:`_quantize` with scales in :attr:`scale_dtype`; ValueError where packing would lose one."""
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
        self._become_packed(packed.codes, packed.scales)
