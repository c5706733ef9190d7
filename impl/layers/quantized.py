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
from abc import abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from impl import decoding, native
from impl.layers.low_bit_weight import LowBitWeight
from impl.packing import check_scales
from impl.quantizers import ACTIVATION_BITS, straight_through


class QuantizedLayer(LowBitWeight):
    """Base of the layers with 1 to k-component low-bit weights.

    A weight is quantised and packed as the matrix [out_features, in_features]: one row an output.
    Attributes: ``components``, ``format``, ``activation_bits`` (None: float activations, 1: signs,
    2: ternary values, 8, 16), ``scale``
    ("row", "tensor" or None: as the rule says), ``group_size`` (columns that share a scale, or None),
    ``scale_dtype``, ``ste``.

    ``scale_dtype`` belongs to the packed weight as its codes do: ``.half()`` and ``.to(dtype)``
    cast the latent weight and the bias, but neither codes, nor header, nor scales.
    """

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
        super().__init__(
            weight_shape,
            bias,
            device,
            dtype,
            format=format,
            components=components,
            scale=scale,
            group_size=group_size,
            scale_dtype=scale_dtype,
            ste=ste,
        )

    # ---- what a subclass says ---------------------------------------------------------------

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
