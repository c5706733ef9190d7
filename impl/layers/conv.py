"""The base of the binary, ternary and k-ternary convolutions."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from impl import native, ops
from impl.checks import check_positive
from impl.convolution import convolve
from impl.functional.conv_reference import check_image
from impl.geometry import Sizes, check_padding_mode, conv_geometry, from_matrix, to_matrix
from impl.layers.calls import autocast, is_plain, refuse_derivatives
from impl.layers.conv_attributes import ConvAttributes
from impl.layers.quantized import QuantizedLayer, codes_of_components
from impl.ops.conv import place_arguments, weight_arguments
from impl.ops.library import check_device
from impl.quantizers import fake_quantize_samples

_TORCH_CONVOLUTIONS: dict[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


class QuantizedConv(ConvAttributes, QuantizedLayer):
    """Base of the convolutions with 1 to k-component low-bit weights
    [out_channels, in_channels / groups, *kernel].

    ``y = layer(x)`` is the cross-correlation that ``nn.Conv2d`` computes, of x [batch, in_channels,
    *spatial] or [in_channels, *spatial]. Activations are quantised per sample, over channels and
    space; ``padding_value`` is what padding adds:

    ``activation_bits`` 1, 2 -1, +1, or 0: such positions count for nothing
    ``activation_bits`` else a value of the input, -1, 0 or +1, quantised with the rest of its sample

    Attributes: ``in_channels``, ``out_channels``, those of
    :class:`~impl.layers.quantized.QuantizedLayer`, and to read only ``kernel_size``, ``stride``,
    ``padding``, ``dilation``, ``groups`` as of ``nn.Conv2d``, ``padding_value`` and ``geometry`` (all of
    these as a :class:`~impl.geometry.ConvGeometry`).
    ``in_features`` and ``out_features`` are the sides of the matrix that the weight is packed as.
    """

    operation: ClassVar[str] = "conv"
    dims: ClassVar[int]
    """Spatial dimensions. A class without a number of its own stands for those of :attr:`by_dims`."""
    by_dims: ClassVar[dict[int, type[QuantizedConv]]]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes,
        padding: Sizes | str,
        dilation: Sizes,
        groups: int,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        *,
        padding_value: float,
        int8_training: bool,
        **options: Any,
    ) -> None:
        in_channels = check_positive("in_channels", in_channels)
        out_channels = check_positive("out_channels", out_channels)
        geometry = conv_geometry(
            (in_channels, out_channels),
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            dims=self._dims(),
            padding_value=padding_value,
        )
        shape = (out_channels, in_channels // geometry.groups, *geometry.kernel)
        super().__init__(shape, bias, device, dtype, group_size=None, **options)
        self.in_channels, self.out_channels = in_channels, out_channels
        self._take_geometry(geometry, padding)
        self.int8_training = int8_training

    @property
    def int8_training(self) -> bool:
        """False, and ValueError where it is set to True: training with int8 products is for linear layers."""
        return False

    @int8_training.setter
    def int8_training(self, value: bool) -> None:
        if type(value) is not bool:
            raise TypeError(f"int8_training must be True or False, got {value!r}")
        if value:
            raise ValueError(
                f"int8_training=True is for linear layers: {type(self).__name__} has no int8 product towards "
                "its input. Leave it out, and train convolutions in bfloat16 under torch.autocast"
            )

    @classmethod
    def _dims(cls) -> int:
        dims = getattr(cls, "dims", None)
        if dims is None:
            names = ", ".join(kind.__name__ for kind in cls.by_dims.values())
            raise TypeError(f"{cls.__name__} stands for any number of spatial dimensions: use {names}")
        return dims

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.in_channels // self.groups, *self.kernel_size

    def _to_matrix(self, weight: Tensor) -> Tensor:
        return to_matrix(weight)

    def _from_matrix(self, matrix: Tensor) -> Tensor:
        return from_matrix(matrix, self.geometry)

    # ---- construction -----------------------------------------------------------------------

    @classmethod
    def from_conv(cls, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, *, pack: bool = True, **options: Any) -> Self:
        """The layer that replaces a trained ``conv``: weight, bias, geometry, device and dtype are kept.

        A class such as ``BinaryConv`` gives the layer with the dimensions of ``conv``. ``options`` are
        keyword arguments of the class. ``conv`` is not changed; a layer in training form
        (``pack=False``) gets its own copy of the weight. Raises TypeError for another kind of module;
        ValueError where the weight holds NaN or infinity, or padding is not by zeros.
        """
        dims = next((n for kind, n in _TORCH_CONVOLUTIONS.items() if isinstance(conv, kind)), None)
        wanted = getattr(cls, "dims", dims)
        if dims is None or dims != wanted:
            kinds = [kind.__name__ for kind, n in _TORCH_CONVOLUTIONS.items() if wanted in (None, n)]
            raise TypeError(f"{cls.__name__}.from_conv takes an nn.{' or nn.'.join(kinds)}, "
                            f"got {type(conv).__name__}")  # fmt: skip
        check_padding_mode(conv.padding_mode)
        kind = cls._of_dims(dims)
        layer = kind(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            bias=conv.bias is not None,
            device="meta",  # nothing is allocated or drawn: the tensors come from `conv`
            dtype=conv.weight.dtype,
            **options,
        )
        return layer._take(conv, pack)

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scales: Tensor,
        bias: Tensor | None = None,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        *,
        padding_value: float = 0,
        format: str | None = None,
        activation_bits: int | None = None,
    ) -> Self:
        """A packed layer from int8 ``codes`` [components, out_channels, in_channels / groups, *kernel],
        or without the first dimension of a single component.

        Codes are -1 and +1 (binary) or -1, 0 and +1; ``scales`` [components, out_channels or 1, 1] are
        float32 or float16. ``format`` None is the first of the class's ``formats``. Raises
        ValueError or TypeError for tensors that no such layer has.
        """
        codes = codes_of_components(codes, scales, cls._dims() + 2)
        components, rows, channels, *kernel = codes.shape
        layer = cls(
            channels * groups,
            rows,
            tuple(kernel),
            stride,
            padding,
            dilation,
            groups,
            bias=bias is not None,
            device="meta",
            dtype=torch.float32 if bias is None else bias.dtype,
            padding_value=padding_value,
            format=format or cls.formats[0],
            scale_dtype=scales.dtype,
            activation_bits=activation_bits,
            **cls._options_for(components),
        )
        matrices = torch.stack([to_matrix(component) for component in codes])
        return layer._take_codes(matrices, scales, bias)

    @classmethod
    def _of_dims(cls, dims: int) -> type[Self]:
        """The class itself or, where it stands for several, the one with ``dims`` dimensions."""
        return cls if hasattr(cls, "dims") else cls.by_dims[dims]  # type: ignore[return-value]

    # ---- forward ----------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """y [batch, out_channels, *output] of x [batch, in_channels, *spatial], in the dtype of x
        (autocast's, where on); without the batch dimension where x has none.

        x: float32, bfloat16 or float16, any strides, empty batches included. y is contiguous, or
        channels-last where x is. Raises TypeError or ValueError naming what is wrong with x.
        """
        if isinstance(x, Tensor) and x.dim() == self.dims + 1:
            return self._forward(x.unsqueeze(0)).squeeze(0)
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        check_image(x, self.in_channels, self.geometry)
        if self._buffers["codes"] is None:
            return self._forward_latent(x)
        if not torch.compiler.is_compiling():
            y = self._forward_native(x)
            if y is not None:
                return y
        return self._forward_operator(x)

    def _forward_latent(self, x: Tensor) -> Tensor:
        x = autocast(x)
        if not torch.compiler.is_compiling():
            self._serve(f"{self._operator}/latent/torch")
        # In the dtype of x, as the kernels do: they take any, whatever the weight's was.
        bias = None if self.bias is None else self.bias.to(x.dtype)
        x = self._activations(x, self.activation_bits)
        return convolve(x, self._fake_quantized_weight().to(x.dtype), self.geometry, bias)

    def _activations(self, x: Tensor, bits: int | None) -> Tensor:
        return fake_quantize_samples(x, bits, self.geometry)

    def _forward_native(self, x: Tensor) -> Tensor | None:
        """Eager calls without the dispatcher, or None where this call needs it: transforms, devices
        without kernels, the torch backend."""
        codes, scales, bias = self._buffers["codes"], self._buffers["scales"], self._parameters["bias"]
        assert codes is not None
        assert scales is not None
        operation = native.operation_of(self.activation_bits, "conv")
        if not (is_plain(x) and native.serves(x, codes, operation, self.format)):
            return None
        x = autocast(x)
        prepared: native.DescribedConv | None = self._prepared
        if prepared is None or not prepared.matches(codes, scales, bias):
            prepared = native.prepare_conv(self.packed_weight, self.geometry, bias, self.activation_bits)
            self.__dict__["_prepared"] = prepared  # past nn.Module.__setattr__, which is slow
        learns = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
        y: Tensor = ops.ConvFunction.apply(x, bias, prepared) if learns else prepared(x)
        self._serve(native.last_kernel())
        return y

    def _forward_operator(self, x: Tensor) -> Tensor:
        refuse_derivatives(x)
        weight = self.packed_weight
        x = autocast(check_device(x, weight.codes.device))
        y: Tensor = getattr(torch.ops.bitimpl, self._operator)(
            x,
            weight.codes,
            weight.scales,
            self.bias,
            *weight_arguments(weight),
            self.activation_bits or 0,
            *place_arguments(self.geometry),
            self.padding_value,
        )
        if not torch.compiler.is_compiling():
            self._serve(native.last_kernel())
        return y

    def _shape_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        parts.append(f"stride={self.stride}")
        if self.geometry.pads:
            parts += [f"padding={self.padding!r}", f"padding_value={self.padding_value:g}"]
        if any(step != 1 for step in self.dilation):
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        return ", ".join(parts)
