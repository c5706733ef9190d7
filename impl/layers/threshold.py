"""A packed layer between signs: it takes those of the layer before, or gives those of its own results."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from impl import native
from impl.checks import check_activations
from impl.functional.conv_reference import check_image
from impl.layers.base import QuantizedLinear
from impl.layers.calls import is_plain
from impl.layers.conv import QuantizedConv
from impl.signs import Signs, Thresholds


class ThresholdLayer(nn.Module):
    """A packed ``layer`` in a network whose binary layers hand signs to each other, a bit each.

    :func:`impl.fuse_thresholds` puts it there. For inference alone: it has no gradients.

    ``layer``: a packed linear layer or convolution; where ``takes_signs``, with ``activation_bits=1``.
    ``thresholds``: where its results, in the dtype ``dtype``, have the sign +1; None: they stay floats.
    ``any_rank``: whether a linear layer takes inputs of any leading dimensions, as signs without
    parameters per channel do, or [batch, in_features] alone, as batch norm does.

    Input and output are :class:`~impl.signs.Signs` or, at the ends of such a chain, tensors in ``dtype``
    as the layer itself takes and gives. Native kernels write and read the bits; where they do not serve
    (other devices, the torch backend, compilation, float activations) the layer is called with +-1 and
    its results are compared and packed with torch, with the same result.
    """

    _prepared: native.DescribedSigns | None = None

    def __init__(
        self,
        layer: QuantizedLinear | QuantizedConv,
        thresholds: Thresholds | None,
        takes_signs: bool,
        dtype: torch.dtype = torch.float32,
        any_rank: bool = True,
    ) -> None:
        super().__init__()
        if not layer.is_packed:
            raise RuntimeError(
                f"this {type(layer).__name__} is in training form, its weight still to be quantised: "
                "pack() it before it exchanges signs"
            )
        if takes_signs and layer.activation_bits != 1:
            raise ValueError(
                f"activation_bits={layer.activation_bits}: a layer that takes signs has activation_bits=1"
            )
        self.layer = layer.requires_grad_(False)
        self.takes_signs, self.dtype, self.any_rank = takes_signs, dtype, any_rank
        # Bit patterns, so that .half() and .to(dtype) leave them alone.
        bits = None if thresholds is None else torch.stack(list(thresholds)).contiguous().view(torch.int32)
        self.register_buffer("threshold_bits", bits)

    @property
    def thresholds(self) -> Thresholds | None:
        """The intervals of +1, or None where results stay floats."""
        bits = self._buffers["threshold_bits"]
        return None if bits is None else Thresholds(*bits.view(torch.float32).unbind())

    def forward(self, x: Tensor | Signs) -> Tensor | Signs:
        """y of x; see the class. TypeError or ValueError where x is not what the layer takes."""
        self._check(x)
        thresholds, layer = self.thresholds, self.layer
        image = isinstance(layer, QuantizedConv)
        if self._is_native(x):
            return self._native(x, thresholds)
        values = x.to_float(self.dtype, image) if isinstance(x, Signs) else x
        y: Tensor = layer(values)
        return y if thresholds is None else thresholds.signs_of(y, image)

    def _check(self, x: Tensor | Signs) -> None:
        if isinstance(x, Signs) != self.takes_signs:
            wanted = "impl.signs.Signs" if self.takes_signs else "a tensor"
            raise TypeError(f"this layer takes {wanted}, got {type(x).__name__}: call the whole network")
        layer = self.layer
        tensor = x.bits if isinstance(x, Signs) else x
        if isinstance(x, Signs):
            channels = layer.in_channels if isinstance(layer, QuantizedConv) else layer.in_features
            if x.channels != channels:
                raise ValueError(f"the layer takes {channels} channels, got signs of {x.channels}")
            x.check(isinstance(layer, QuantizedConv))
            dtype = self.dtype
        else:
            dtype = x.dtype
            if x.requires_grad and torch.is_grad_enabled():
                raise RuntimeError(
                    "a layer that gives signs has no gradient: call the network under torch.no_grad(), "
                    "or train the one that was not fused"
                )
        if torch.is_autocast_enabled(tensor.device.type):
            dtype = torch.get_autocast_dtype(tensor.device.type)
        if dtype != self.dtype:
            raise TypeError(
                f"this network was fused for {self.dtype}, got {dtype}: convert the input, or fuse with "
                f"dtype={dtype}"
            )
        dims = layer.dims + 2 if isinstance(layer, QuantizedConv) else 2
        if tensor.dim() != dims and (isinstance(layer, QuantizedConv) or not self.any_rank):
            raise ValueError(
                f"the input must have {dims} dimensions, batch included, once thresholds are fused: got "
                f"shape {tuple(tensor.shape)}"
            )

    def _is_native(self, x: Tensor | Signs) -> bool:
        codes = self.layer.codes
        assert codes is not None
        tensor = x.bits if isinstance(x, Signs) else x
        operation = "conv_signs" if isinstance(self.layer, QuantizedConv) else "linear_signs"
        return (
            self.layer.activation_bits is not None
            and not torch.compiler.is_compiling()
            and is_plain(tensor)
            and native.serves(tensor, codes, operation, self.layer.format)
        )

    def _native(self, x: Tensor | Signs, thresholds: Thresholds | None) -> Tensor | Signs:
        layer = self.layer
        if isinstance(x, Tensor):
            self._check_values(x)
        elif isinstance(layer, QuantizedConv):
            layer.geometry.output_size(tuple(x.bits.shape[1:-1]))  # refuses what the kernel does not fit
        codes, scales, bias = layer.codes, layer.scales, layer.bias
        assert codes is not None
        assert scales is not None
        assert layer.activation_bits is not None
        prepared = self._prepared
        if prepared is None or not (prepared.matches(codes, scales, bias) and prepared.gives(thresholds)):
            geometry = layer.geometry if isinstance(layer, QuantizedConv) else None
            prepared = native.prepare_signs(
                layer.packed_weight, bias, geometry, thresholds, layer.activation_bits
            )
            self.__dict__["_prepared"] = prepared
        y = prepared(x, self.dtype)
        layer._serve(native.last_kernel())
        return y

    def _check_values(self, x: Tensor) -> None:
        """As the layer itself checks its input."""
        if isinstance(self.layer, QuantizedConv):
            check_image(x, self.layer.in_channels, self.layer.geometry)
        else:
            check_activations(x, self.layer.in_features)

    def __getstate__(self) -> dict[str, Any]:
        # What calls keep between them holds addresses.
        return {name: value for name, value in self.__dict__.items() if name != "_prepared"}

    def extra_repr(self) -> str:
        takes = "signs" if self.takes_signs else "floats"
        gives = "floats" if self.threshold_bits is None else "signs"
        return f"{takes} to {gives}, dtype={self.dtype}"
