"""Linear layer with group-wise quantised weights and float activations: MPQ, GPTQ's layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impl.checks import ACTIVATION_DTYPES, check_activations, check_positive
from impl.layers.calls import autocast
from impl.layers.nbit.gptq import fit_whole, pack_zeros, unpack_zeros
from impl.layers.nbit.groupwise_state import PACKED, parameter_of, read_layout, state_of
from impl.parameters import MPQWeightParameter
from impl.parameters.bitstream import CODES, pack_words

BITS = (1, 2, 3, 4, 5, 6, 7, 8)


class GroupwiseLinear(nn.Module):
    """y = x W + bias, W [in_features, out_features] in codes of ``bits`` bits.

    ``group_size`` input features (-1: all) share a scale and a zero for each output feature:
    w = scale * code - zero, with ``asym`` scale * (code - zero). Any in_features: the packed words are
    filled up with copies of the last input feature, which nothing reads.

    ``weight`` is an :class:`impl.parameters.MPQWeightParameter`; it takes gradients, and an optimizer
    that calls its ``update`` (:class:`impl.optim.DiodeMix`) trains the codes without a float copy.
    ``state_dict`` holds plain tensors: ``qweight`` (int32 words), ``scales`` and ``zeros`` (float32
    [groups, out_features]), ``groups`` and ``order`` (int32, group and input feature of each packed row)
    and the header ``layout``; loading is strict and checks them.

    There is no kernel: torch multiplies by the decoded weight, so memory is saved and time is not. y
    has the dtype of x, with the rounding of a float product in that dtype.
    """

    weight: MPQWeightParameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bits: int = 4,
        group_size: int = 128,
        asym: bool = False,
        requires_grad: bool = True,
    ) -> None:
        super().__init__()
        self.in_features = check_positive("in_features", in_features)
        self.out_features = check_positive("out_features", out_features)
        if isinstance(bits, bool) or bits not in BITS:
            raise ValueError(f"bits must be an integer from 1 to 8, got {bits!r}")
        if group_size != -1:
            check_positive("group_size", group_size)
        self.bits, self.group_size, self.asym = bits, group_size, bool(asym)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in ACTIVATION_DTYPES:
            raise TypeError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
        device = torch.get_default_device() if device is None else torch.device(device)
        words = torch.zeros(self._word_rows(), self.out_features, dtype=torch.int32, device="cpu")
        ones = torch.ones(self._group_count, self.out_features, device="cpu")
        self._become(self._parameter(words, ones, torch.zeros_like(ones), dtype).to(device), requires_grad)
        if bias:
            self.bias = nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        GroupwiseLinear.reset_parameters(self)

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> Self:
        """The layer with the quantised weight of ``linear``, its bias, device, dtype and mode.

        ``options`` are keyword arguments of the class. ValueError for NaN and infinity.
        """
        return cls._like(linear, **options).quantize_(linear.weight.detach().t())

    @classmethod
    def _like(cls, linear: nn.Linear, **options: Any) -> Self:
        """The layer with the size, bias, device, dtype and mode of ``linear``, but its weight, for which
        nothing is allocated or drawn, to be taken yet."""
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"from_linear takes an nn.Linear, got {type(linear).__name__}")
        layer = cls._on_meta(linear, **options)
        if layer.bias is not None:
            # A layer may be asked for a bias where `linear` has none, whatever nn.Linear declares.
            given, dtype = cast("Tensor | None", linear.bias), layer.bias.dtype
            if given is None:
                zeros = torch.zeros(layer.out_features, dtype=dtype, device=linear.weight.device)
                layer.bias = nn.Parameter(zeros)
            else:
                layer.bias = nn.Parameter(given.detach().to(dtype, copy=True), given.requires_grad)
        return layer.train(linear.training)

    @classmethod
    def _on_meta(cls, linear: nn.Linear, **options: Any) -> Self:
        """A layer of the size and dtype of ``linear``, on the meta device."""
        return cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            "meta",
            linear.weight.dtype,
            **options,
        )

    # ---- weights ----------------------------------------------------------------------------

    def reset_parameters(self) -> None:
        """Draw weight and bias as ``nn.Linear`` does, and quantise the weight."""
        bound = self.in_features**-0.5
        if not self.weight.is_meta:
            shape = (self.in_features, self.out_features)
            drawn = torch.empty(shape, dtype=torch.float32, device=self.weight.device)
            self.quantize_(nn.init.uniform_(drawn, -bound, bound))
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def quantize_(self, weight: Tensor, *, whole_zeros: bool = False) -> Self:
        """Take the codes of the float ``weight`` [in_features, out_features]; the parameter is replaced.

        Codes span the extremes of each group. ``whole_zeros`` (with ``asym``, 2 bits or more) makes the
        zeros whole numbers in 1 .. 2^bits - 1, which is what :meth:`to_gptq` writes. ValueError for
        another shape, NaN and infinity.
        """
        shape = (self.in_features, self.out_features)
        if tuple(weight.shape) != shape:
            raise ValueError(
                f"the weight must be [in_features, out_features] = {list(shape)}, got {list(weight.shape)}"
            )
        values = weight.detach().to(torch.float32)
        values = torch.cat([values, values[-1:].expand(self._padded - len(values), -1)])
        if not whole_zeros:
            parameter = self._float_parameter(values, self.weight.dtype)
        else:
            if not self.asym or self.bits < 2:
                raise ValueError("whole_zeros needs asym=True and at least 2 bits")
            codes, scales, zeros = fit_whole(
                values, self._group_map(values.device), self._group_count, self.bits
            )
            parameter = self._parameter(pack_words(codes, self.bits), scales, zeros, self.weight.dtype)
        self._become(parameter, self.weight.requires_grad)
        return self

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The decoded weight as ``nn.Linear`` has it: [out_features, in_features]."""
        with torch.no_grad():
            decoded = cast("MPQWeightParameter", self.weight.to(dtype)).dequantize()
        return decoded[: self.in_features].t()

    @property
    def stored_bytes(self) -> int:
        """Bytes kept for the weight: codes, scales, zeros and the maps of its groups and its order."""
        return self.weight.stored_bytes

    # ---- GPTQ's layout ----------------------------------------------------------------------

    @classmethod
    def from_gptq(
        cls,
        qweight: Tensor,
        qzeros: Tensor,
        scales: Tensor,
        g_idx: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        bits: int,
        offset: int = 1,
    ) -> Self:
        """A layer from the tensors of a GPTQ checkpoint (:mod:`impl.layers.nbit.gptq`).

        ``g_idx`` None: runs of in_features / groups. ``offset``: what was taken off the zeros, 1, or 0 in the
        second version of the format. The layer's dtype is that of ``scales``. ValueError for tensors
        that do not belong together.
        """
        if qweight.dtype != torch.int32 or qweight.dim() != 2 or qweight.shape[0] % bits:
            raise ValueError(
                f"qweight must be int32 [in_features / 32 * {bits}, out_features], got {qweight.dtype} "
                f"{list(qweight.shape)}"
            )
        words, out_features = qweight.shape
        in_features = words // bits * CODES
        groups = scales.shape[0]
        size = -(-in_features // groups)
        layer = cls(
            in_features,
            out_features,
            bias is not None,
            "meta",
            scales.dtype,
            bits=bits,
            group_size=size if groups > 1 else -1,
            asym=True,
        )
        zeros = unpack_zeros(qzeros, bits, out_features, offset=offset)
        layer._become(
            MPQWeightParameter(
                qweight,
                scales=scales,
                zeros=zeros,
                g_idx=g_idx,
                w_bit=bits,
                asym=True,
                group_size=size,
                dtype=scales.dtype,
            ),
            True,
        )
        if bias is not None:
            if tuple(bias.shape) != (out_features,):
                raise ValueError(f"bias must have shape [{out_features}], got {list(bias.shape)}")
            layer.bias = nn.Parameter(bias.detach().clone())
        return layer

    def to_gptq(self, *, offset: int = 1) -> dict[str, Tensor]:
        """``qweight``, ``qzeros``, ``scales`` (in the layer's dtype), ``g_idx`` and perhaps ``bias``.

        ValueError where the layout has no place for the weight: without ``asym``, with several widths, or
        with zeros that are not whole (:meth:`quantize_` with ``whole_zeros`` makes them so).
        """
        weight = self.weight
        if not weight.asym or len(weight.regions) > 1:
            raise ValueError("GPTQ's layout holds asym=True weights of one width: build the layer as such")
        if self._padded != self.in_features:
            raise ValueError(
                f"GPTQ's layout holds multiples of {CODES} input features, this layer has {self.in_features}"
            )
        in_order = torch.empty_like(weight.groups)
        in_order[weight.order] = weight.groups
        codes = torch.empty_like(weight.integers())
        codes[weight.order] = weight.integers()
        state = {
            "qweight": pack_words(codes, self.bits),
            "qzeros": pack_zeros(weight.zeros, self.bits, offset=offset),
            "scales": weight.scales.to(weight.dtype),
            "g_idx": in_order.to(torch.int32),
        }
        if self.bias is not None:
            state["bias"] = self.bias.detach().clone()
        return state

    # ---- forward ----------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """y [..., out_features] of x [..., in_features], in the dtype of x (autocast's, where on).

        x: float32, bfloat16 or float16, any leading dimensions and strides, empty batches included.
        TypeError or ValueError otherwise.
        """
        check_activations(x, self.in_features)
        x = autocast(x)
        if self._padded != self.in_features:
            x = F.pad(x, (0, self._padded - self.in_features))
        # The product keeps the codes for the backward pass, not their values.
        y = x @ self.weight.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self._describe()}, asym={self.asym}"
        )

    # ---- parts that layers of several widths do otherwise -----------------------------------

    def _describe(self) -> str:
        return f"bits={self.bits}, group_size={self.group_size}"

    @property
    def _padded(self) -> int:
        """Packed rows."""
        return -(-self.in_features // CODES) * CODES

    def _word_rows(self) -> int:
        return self._padded // CODES * self.bits

    @property
    def _group_count(self) -> int:
        return 1 if self.group_size == -1 else -(-self.in_features // self.group_size)

    def _group_map(self, device: torch.device) -> Tensor:
        """int64 [packed rows]: runs of group_size, rows past the last input feature in the last group."""
        size = self.in_features if self.group_size == -1 else self.group_size
        rows = torch.arange(self._padded, device=device)
        return torch.div(rows, size, rounding_mode="floor").clamp_max(self._group_count - 1)

    def _float_parameter(self, values: Tensor, dtype: torch.dtype) -> MPQWeightParameter:
        groups = self._group_map(torch.device("cpu"))
        return MPQWeightParameter(values, w_bit=self.bits, q_group_map=groups, asym=self.asym, dtype=dtype)

    def _parameter(
        self, words: Tensor, scales: Tensor, zeros: Tensor, dtype: torch.dtype
    ) -> MPQWeightParameter:
        return MPQWeightParameter(
            words,
            scales=scales,
            zeros=zeros,
            q_group_map=self._group_map(torch.device("cpu")),
            w_bit=self.bits,
            asym=self.asym,
            dtype=dtype,
        )

    def _check_regions(self, regions: list[tuple[int, int]], groups: int) -> None:
        """ValueError where a state of such (packed rows, bits) and so many groups does not fit."""
        own = self._expected_regions()
        if regions != own:
            raise ValueError(f"the state has (rows, bits) {regions}, this layer {own}")
        if groups != self._group_count:
            raise ValueError(
                f"the state has {groups} groups, this layer {self._group_count}: build it with the "
                "group_size of the state"
            )

    def _expected_regions(self) -> list[tuple[int, int]]:
        return [(self._padded, self.bits)]

    # ---- states -----------------------------------------------------------------------------

    def _become(self, parameter: Tensor, requires_grad: bool) -> None:
        self.weight = MPQWeightParameter(parameter, requires_grad)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.weight.dtype not in ACTIVATION_DTYPES:
            raise TypeError(
                f"the layer cannot be cast to {self.weight.dtype}: use float32, bfloat16 or float16"
            )
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(prefix + "weight", None)
        state = state_of(self.weight, self.in_features)
        destination.update({prefix + name: state[name] for name in PACKED})

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
        """Load the plain tensors into the parameter, after checking that they fit this layer."""
        held = {name: state_dict[prefix + name] for name in PACKED if prefix + name in state_dict}
        missing_keys += [prefix + name for name in PACKED if name not in held]
        if len(held) == len(PACKED):
            try:
                self._take(held, bool(local_metadata.get("assign_to_params_buffers")))
            except (TypeError, ValueError) as error:
                error_msgs.append(f"{prefix.rstrip('.') or type(self).__name__}: {error}")
        others = {key: value for key, value in state_dict.items() if key not in {prefix + n for n in held}}
        weight = self._parameters.pop("weight")
        try:
            super()._load_from_state_dict(
                others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )
        finally:
            self._parameters["weight"] = weight

    def _take(self, held: Mapping[str, Tensor], assign: bool) -> None:
        asym, in_features, out_features, regions = read_layout(held["layout"])
        for what, value, own in (
            ("asym", asym, self.asym),
            ("in_features", in_features, self.in_features),
            ("out_features", out_features, self.out_features),
        ):
            if value != own:
                raise ValueError(f"the state has {what} {value}, this layer {own}")
        self._check_regions(regions, held["scales"].shape[0])
        loaded: Tensor = parameter_of(held, regions, asym, self.weight.dtype)
        if not (assign and self.weight.is_meta):
            loaded = loaded.to(self.weight.device)
        if not self.weight.is_meta and self.weight._keeps_alike(loaded):
            with torch.no_grad():
                self.weight.copy_(loaded)
        else:
            self._become(loaded, self.weight.requires_grad)
