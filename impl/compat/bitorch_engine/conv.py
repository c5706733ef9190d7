"""Binary convolutions of bitorch_engine, by the names of its backends. Each runs on any device.

Against the original: height and width, and the two sizes of a kernel, are their own; dilation, groups,
bias, unbatched and strided inputs work; weights are initialised; packed weights serve every shape;
what the border holds is an argument; the forward and the backward pass are the same correlation, of
all channels, in the layout of ``nn.Conv2d``; it trains on every device.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from impl.checks import check_activations, check_positive
from impl.compat.bitorch_engine.sign_conv import SignConv2d
from impl.compat.bitorch_engine.sign_layer import ScaledSigns, SignLayer
from impl.compat.bitorch_engine.signs import precision_of
from impl.geometry import Sizes, check_padding_mode, conv_geometry, from_matrix, to_matrix
from impl.layers.calls import autocast
from impl.native.cuda import preferring
from impl.packing import pack_sign_rows, unpack_sign_rows
from impl.parameters import BinaryConvParameter, BinaryParameter


class BinaryConv2dBase(SignLayer):
    """y = sign(x) * sign(W) + bias, the correlation of ``nn.Conv2d``, with weight
    [out_channels, in_channels / groups, kernel height, kernel width] and sign(0) = +1.

    ``kernel_size``, ``stride``, ``padding`` and ``dilation`` are integers or pairs of height and width;
    ``padding`` also "same" or "valid". The border holds the sign ``padding_value``: -1, +1, or 0, which
    counts for nothing. The arguments are kept under their names, and in full in ``geometry``.

    Forms of the weight, packing and states: :class:`impl.compat.bitorch_engine.sign_layer.SignLayer`.
    ``qweight`` is uint8 [out_channels, ceil(kernel positions * in_channels / groups / 8)], the bits of
    :func:`impl.geometry.to_matrix` of the weight: each kernel position's channels together.

    The product of the signs is exact. y has the dtype of x, and is rounded once to it.
    """

    parameter_class: ClassVar[type[BinaryParameter]] = BinaryConvParameter

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float,
        symmetric: bool = True,
        *,
        groups: int = 1,
        bias: bool = False,
        padding_value: float = -1.0,
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
            dims=2,
            padding_value=padding_value,
        )
        shape = (out_channels, in_channels // geometry.groups, *geometry.kernel)
        super().__init__(shape, device, dtype, symmetric, bias)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, geometry.groups
        self.kernel_size, self.stride = _kept(kernel_size), _kept(stride)
        self.padding, self.dilation = _kept(padding), _kept(dilation)
        self.padding_value = padding_value
        self.geometry = geometry

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **options: Any) -> Self:
        """A layer with the weight, bias, shape, device, dtype and mode of ``conv``, which is not changed.

        ``options``: further keyword arguments of the class. Mind ``padding_value``, which is the class's
        default and not the zeros of ``conv`` where that is another. A ``bias`` that ``conv`` does not have
        starts at 0. TypeError for other modules,
        ValueError for a ``padding_mode`` other than "zeros".
        """
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"from_conv takes an nn.Conv2d, got {type(conv).__name__}")
        check_padding_mode(conv.padding_mode)
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            "meta",
            conv.weight.dtype,
            **{"groups": conv.groups, "bias": conv.bias is not None, **options},
        )
        return layer._filled(conv.weight, conv.bias, conv.weight.device).train(conv.training)

    def to_matrix(self, weight: Tensor) -> Tensor:
        """[out_channels, channels, *kernel] as the matrix that is packed."""
        return to_matrix(weight)

    def from_matrix(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`to_matrix`."""
        return from_matrix(matrix, self.geometry)

    def check_qweight(self, x: Tensor) -> Tensor:
        """Packed signs ``x`` as uint8 [out_channels, ceil(columns / 8)].

        Flat ones are taken to be the original's: the bits of the whole weight in its own order (out,
        in, height, width), least significant bit first, without gaps. TypeError or ValueError where the
        size does not fit or where bits beyond the last one are set.
        """
        if not isinstance(x, Tensor) or x.dim() != 1 or x.dtype != torch.uint8:
            return super().check_qweight(x)
        count = torch.Size(self.weight_shape).numel()
        needed = -(-count // 8)
        if x.numel() != needed:
            raise ValueError(f"{count} packed signs take {needed} bytes, got {x.numel()}")
        if count % 8 and not x.is_meta and int(x[-1]) >> (count % 8):
            raise ValueError(f"packed weights have bits set beyond their {count} signs: damaged")
        return pack_sign_rows(to_matrix(unpack_sign_rows(x, count).view(self.weight_shape)))

    def forward(self, x: Tensor) -> Tensor:
        """y [batch, out_channels, *output] of x [batch, in_channels, height, width], or both without
        batch, in the dtype of x (autocast's, where on).

        x: float32, bfloat16 or float16, any strides, empty batches included. TypeError or ValueError
        otherwise.
        """
        self._check_forward(x)
        if x.dim() == 3:
            return self._convolve(autocast(x.unsqueeze(0))).squeeze(0)
        return self._convolve(autocast(x))

    def _convolve(self, x: Tensor) -> Tensor:
        # Two tensors: torch.compile does not trace a function that is given one of them twice.
        scale_a, scale_w = (torch.ones((), dtype=torch.float32, device=x.device) for _ in range(2))
        y = SignConv2d.apply(x, *self._operands(), scale_a, scale_w, self.geometry, precision_of(x))
        return self._finish(y, x.dtype)

    def _check_forward(self, x: Tensor) -> None:
        check_activations(x)
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels or 0 in x.shape[-3:]:
            raise ValueError(
                f"the input must be [batch, in_channels = {self.in_channels}, height, width] or without "
                f"batch, got shape {list(x.shape)}"
            )
        self.geometry.output_size(tuple(x.shape[-2:]))

    def _finish(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        return (y if self.bias is None else y + self._per_channel(self.bias).to(y.dtype)).to(dtype)

    def _per_channel(self, values: Tensor) -> Tensor:
        return values.view(-1, 1, 1)

    def extra_repr(self) -> str:
        """Shape and form, as ``print(model)`` shows them."""
        form = "packed" if self.weight is None else f"weight={type(self.weight).__name__}"
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
            f"bias={self.bias is not None}, padding_value={self.padding_value:g}, {form}"
        )


class BinaryConv2dCPP(BinaryConv2dBase):
    """The layer that bitorch_engine runs on the CPU: the plain sign product, float weights, and a border
    of -1."""


class BinaryConv2dCutlass(ScaledSigns, BinaryConv2dBase):
    """The layer that bitorch_engine runs on CUTLASS, here on any device:

    y = scale_a scale_w (sign(x + bias_a) * sign(W)) + bias, with a border of 0 by default.

    On CUDA devices packed weights are multiplied by CUTLASS where it was built and may be used
    (``impl.capabilities().cuda.cutlass``), else by the kernels of other layers: the same numbers.
    ``bias_a`` has one value per input channel, ``scale_w`` with ``scale="row"`` one per output channel;
    otherwise as :class:`impl.compat.bitorch_engine.sign_layer.ScaledSigns` says. Gradients:
    :class:`impl.compat.bitorch_engine.sign_conv.SignConv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float,
        symmetric: bool = True,
        *,
        groups: int = 1,
        bias: bool = False,
        padding_value: float = 0.0,
        scale: str = "tensor",
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            device,
            dtype,
            symmetric,
            groups=groups,
            bias=bias,
            padding_value=padding_value,
        )
        self._add_scales(in_channels, scale)

    def _register_scale_w(self, scale_w: Tensor) -> None:
        self.scale_w = nn.Parameter(scale_w, requires_grad=False)

    def _convolve(self, x: Tensor) -> Tensor:
        shifted = self.set_activation(x)
        scale: Tensor = self.scale_a
        if not self.training and not self._learned_scale.is_set(scale):
            scale = self._learned_scale.of_rows(x.flatten(1)).view(-1, 1, 1, 1)
        scale_w = self.scale_w if self.scale == "tensor" else self._per_channel(self.scale_w)
        operands = self._operands()
        with preferring("cutlass", self.device):
            y = SignConv2d.apply(shifted, *operands, scale, scale_w, self.geometry, precision_of(x))
        return self._finish(y, x.dtype)


def _kept(value: Sizes | str) -> int | str | tuple[int, ...]:
    """An argument as attribute: a number stays one, as in the original."""
    return value if isinstance(value, int | str) else tuple(value)
