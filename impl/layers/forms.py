"""A module whose weight is either latent (a float Parameter) or packed (bytes in buffers).

What every such layer needs to live as a module does: moving, casting, copying, and loading a
state of either form into either form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from impl import native
from impl.checks import ACTIVATION_DTYPES
from impl.packing import Header, PackedWeight, check_packed, read_header

#: Buffers of the packed form.
PACKED = ("codes", "scales", "packing")


class TwoForms(nn.Module):
    """Base of layers that hold ``weight`` while training and ``codes``, ``scales`` and ``packing``
    once packed, never both."""

    in_features: int
    out_features: int
    components: int
    format: str
    group_size: int | None
    scale_dtype: torch.dtype

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    codes: Tensor | None
    scales: Tensor | None
    packing: Tensor | None

    _weight_dtype: torch.dtype
    _weight_requires_grad: bool

    def __init__(self) -> None:
        super().__init__()
        self._prepared: Any = None  # what calls keep between them; says nothing that the buffers do not
        self._served: native.DescribedLinear | str = ""

    def _register_packed_buffers(self) -> None:
        for name in PACKED:
            self.register_buffer(name, None)

    @property
    def is_packed(self) -> bool:
        """Whether the layer is in packed form."""
        return self._buffers["codes"] is not None

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the latent weight."""
        return self.out_features, self.in_features

    @property
    def weight_dtype(self) -> torch.dtype:
        """Dtype of the latent weight; in packed form, the one that :meth:`unpack` restores."""
        return self._weight_dtype if self.weight is None else self.weight.dtype

    @property
    def packed_weight(self) -> PackedWeight:
        """The packed weight: codes, scales and shape, sharing the layer's buffers.

        RuntimeError in training form.
        """
        if self.codes is None or self.scales is None:
            raise RuntimeError(f"this {type(self).__name__} is in training form: call pack() first")
        return PackedWeight(
            self.format,
            self.components,
            self.out_features,
            self.in_features,
            self.group_size,
            self.codes,
            self.scales,
        )

    @property
    def last_kernel(self) -> str:
        """Which implementation served the last eager call: a kernel's name such as
        ``ternary_linear/base3/int8/gemv/avx512``, or one ending in ``/torch``."""
        served = self._served
        return served if isinstance(served, str) else served.kernel

    def share_packed(self, other: TwoForms) -> Self:
        """Take the packed buffers of ``other`` as they are, shared with it, and return the layer.

        ValueError where ``other`` has another shape, format, number of components or group size;
        RuntimeError where it is in training form.
        """
        theirs = other.packed_weight
        if other._header(1) != self._header(1):  # whatever shares a scale
            raise ValueError(f"the packed weight of {other} does not fit {self}")
        self._become_packed(theirs.codes, theirs.scales)
        self.packing = other.packing
        return self

    def _header(self, scale_rows: int) -> Header:
        """Header of this layer's packed weight with so many rows of scales."""
        return Header(
            self.format, self.components, self.out_features, self.in_features, self.group_size, scale_rows,
            kernel=self.weight_shape[2:],
        )  # fmt: skip

    def _latent(self, what: str) -> nn.Parameter:
        if self.weight is None:
            raise RuntimeError(
                f"{what} needs the latent weight, this {type(self).__name__} is packed: unpack() it"
            )
        return self.weight

    def _become_packed(self, codes: Tensor, scales: Tensor) -> None:
        if self.weight is not None:
            self._weight_dtype, self._weight_requires_grad = self.weight.dtype, self.weight.requires_grad
        self.weight = None
        self.codes, self.scales = codes, scales
        self.packing = self._header(scales.shape[1]).to_tensor().to(codes.device)
        self.scale_dtype = scales.dtype
        self._prepared = None

    def _become_latent(self, weight: Tensor) -> None:
        self.codes = self.scales = self.packing = None
        self.weight = nn.Parameter(weight, requires_grad=self._weight_requires_grad)
        self._prepared = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast: ``fn`` may change the device of packed buffers, never their dtype."""
        held = {name: tensor for name in PACKED if (tensor := self._buffers[name]) is not None}
        if not held:
            super()._apply(fn, recurse)
            return self
        for name in PACKED:
            self._buffers[name] = None
        self._prepared = None
        try:
            super()._apply(fn, recurse)
            moved = {name: _keep_dtype(fn, tensor) for name, tensor in held.items()}
            if held["packing"].is_meta and not moved["packing"].is_meta:  # to_empty(): fill what is known
                moved["packing"].copy_(self._header(held["scales"].shape[1]).to_tensor())
            probe = torch.empty(0, dtype=self._weight_dtype, device=held["codes"].device)
            dtype = fn(probe).dtype
            self._weight_dtype = dtype if dtype in ACTIVATION_DTYPES else self._weight_dtype
        except BaseException:
            self._buffers.update(held)
            raise
        self._buffers.update(moved)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Pointers into memory stay behind when the layer is copied or pickled."""
        return {**self.__dict__, "_prepared": None, "_served": self.last_kernel}

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
            _adopt_form(self, state_dict, prefix)
        except ValueError as error:
            error_msgs.append(str(error))
            return
        self._prepared = None
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _keep_dtype(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """``fn(tensor)``, or where ``fn`` casts only its move to another device."""
    moved = fn(tensor)
    return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)


def _adopt_form(layer: TwoForms, state: Mapping[str, Any], prefix: str) -> None:
    """Bring ``layer`` into the form of the state under ``prefix``, with memory for it to fill.

    Raises ValueError, with the layer unchanged, where the state does not fit. A state that lacks
    keys changes nothing: the strict load that follows names them.
    """
    name = prefix.rstrip(".") or type(layer).__name__
    packed = [key for key in PACKED if prefix + key in state]
    if packed and prefix + "weight" in state:
        raise ValueError(f"{name}: the state holds a latent weight and packed codes: keep one of them")
    if packed and hasattr(layer.weight, "full_tensor"):  # a DTensor
        raise ValueError(
            f"{name}: the layer is sharded over processes and takes a latent weight only: load the packed "
            "state before sharding"
        )
    if len(packed) == len(PACKED):
        header = _check_packed(layer, {key: state[prefix + key] for key in PACKED}, name)
        device = (layer.codes if layer.weight is None else layer.weight).device  # type: ignore[union-attr]
        scales = torch.empty(header.scales_shape, dtype=state[prefix + "scales"].dtype, device=device)
        current = layer.scales
        if current is None or current.shape != scales.shape or current.dtype != scales.dtype:
            codes = torch.empty(header.codes_bytes, dtype=torch.uint8, device=device)
            layer._become_packed(codes, scales)
    elif prefix + "weight" in state and layer.is_packed:
        weight = state[prefix + "weight"]
        shape = layer.weight_shape
        if tuple(weight.shape) != shape:
            raise ValueError(f"{name}: weight has shape {list(weight.shape)}, this layer needs {list(shape)}")
        assert layer.codes is not None
        layer._become_latent(torch.empty(shape, dtype=layer.weight_dtype, device=layer.codes.device))


def _check_packed(layer: TwoForms, tensors: Mapping[str, Tensor], name: str) -> Header:
    """The header of a packed state that fits ``layer``; ValueError saying what does not."""
    packing = tensors["packing"]
    if packing.is_meta:
        raise ValueError(f"{name}.packing is on the meta device: a header without values cannot be checked")
    try:
        header = read_header(packing)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    differences = [
        f"{what} {found!r}, this layer has {own!r}"
        for what, found, own in (
            ("format", header.format, layer.format),
            ("components", header.components, layer.components),
            ("out_features", header.rows, layer.out_features),
            ("in_features", header.cols, layer.in_features),
            ("group_size", header.group_size, layer.group_size),
            ("kernel", header.kernel, layer.weight_shape[2:]),
        )
        if found != own
    ]
    if differences:
        raise ValueError(
            f"{name}: the packed state has {'; '.join(differences)}: build the layer as the state was built"
        )
    try:
        check_packed(header, tensors["codes"], tensors["scales"])
    except ValueError as error:
        raise ValueError(f"{name}.{error}") from error
    return header
