"""Linear layers of bitorch_engine with group-wise quantised weights: MPQ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from impl.compat.bitorch_engine import nbit_checkpoints
from impl.layers.nbit import GroupwiseLinear
from impl.layers.nbit.groupwise_state import state_of
from impl.parameters import MPQWeightParameter


class MPQLinearBase(GroupwiseLinear):
    """y = x W + bias, W [in_channels, out_channels] in codes of ``w_bit`` bits with float activations.

    w = scale * code - zero, with ``asym`` scale * (code - zero). ``group_size`` input channels share a
    scale and a zero, -1: all. ``use_gba_quant`` False is GPTQ's format, which is ``asym``. A new layer holds
    random weights.

    ``load_state_dict`` takes the layer's own states (:class:`impl.layers.nbit.GroupwiseLinear`) and
    those of bitorch_engine: of GreenBitAI's models (scales and zeros that are quantised themselves,
    described by ``dq_group_size`` and ``dq_mode``) and of GPTQ. Those are decoded while loading, so that
    nothing is left for :meth:`prepare_params`.

    ``qweight`` is the :class:`impl.parameters.MPQWeightParameter` of the layer, ``scales``, ``zeros`` and
    ``g_idx`` what it holds. y has the dtype of x, whatever ``dtype`` is.
    """

    widths: ClassVar[tuple[int, ...]] = (1, 2, 4, 8)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        a_bit: int = 16,
        w_bit: int = 4,
        dtype: torch.dtype = torch.half,
        group_size: int = -1,
        use_gba_quant: bool = True,
        dq_group_size: int = -1,
        dq_mode: int = 2,
        disable_bias: bool = True,
        asym: bool = False,
        requires_grad: bool = True,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        self.a_bit, self.w_bit, self.use_gba_quant = a_bit, w_bit, bool(use_gba_quant)
        if dq_mode not in (1, 2):
            raise ValueError(f"dq_mode must be 1 or 2, got {dq_mode!r}")
        self.dq_mode, self.disable_bias = dq_mode, bool(disable_bias)
        self.dq_group_size = out_channels if dq_group_size == -1 else dq_group_size
        self._check_arguments(group_size)
        super().__init__(
            in_channels,
            out_channels,
            not disable_bias,
            device,
            dtype,
            bits=w_bit,
            group_size=in_channels if group_size == -1 else group_size,
            asym=asym or not use_gba_quant,
            requires_grad=requires_grad,
        )

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, device: torch.device | str | None = None, **options: Any
    ) -> Self:
        """The layer with the quantised weight of ``linear``, its bias, device, dtype and mode.

        ``device`` None: that of ``linear``. ``options``: further keyword arguments of the class; a bias
        that ``linear`` does not have starts at 0. ValueError for NaN and infinity.
        """
        layer = super().from_linear(linear, **options)
        return layer if device is None else layer.to(device)

    @classmethod
    def _on_meta(cls, linear: nn.Linear, **options: Any) -> Self:
        options = {"dtype": linear.weight.dtype, "disable_bias": linear.bias is None, **options}
        return cls(linear.in_features, linear.out_features, **options, device="meta")

    # ---- what the layer is ------------------------------------------------------------------

    @property
    def in_channels(self) -> int:
        """``in_features`` by the name of bitorch_engine."""
        return self.in_features

    @property
    def out_channels(self) -> int:
        """``out_features`` by the name of bitorch_engine."""
        return self.out_features

    @property
    def maxq(self) -> int:
        """Largest code."""
        return (1 << self.w_bit) - 1

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weight outside, and of the bias."""
        return self.weight.dtype

    @property
    def requires_grad(self) -> bool:
        """Whether the weight is trained."""
        return self.weight.requires_grad

    @property
    def qweight(self) -> MPQWeightParameter:
        """The weight."""
        return self.weight

    @property
    def scales(self) -> Tensor:
        """Scale of each group, float32 [groups, out_channels]."""
        return self.weight.scales

    @property
    def zeros(self) -> Tensor:
        """Zero of each group, float32 [groups, out_channels]."""
        return self.weight.zeros

    @property
    def g_idx(self) -> Tensor:
        """Group of each input channel, int32 [in_channels]."""
        groups = torch.empty_like(self.weight.groups)
        groups[self.weight.order] = self.weight.groups
        return groups[: self.in_features].to(torch.int32)

    @property
    def privileged_grad(self) -> Tensor | None:
        """The gradient that an update of the weight uses: float [in_channels, out_channels], or None."""
        return self.weight.update_gradient()

    # ---- weights ----------------------------------------------------------------------------

    def prepare_params(self) -> None:
        """Make the parameters ready. They are: checkpoints are decoded while they are loaded."""

    def generate_quantized_weight(self, qweight_only: bool = False) -> None:
        """The weight is never anything else than quantised: nothing is done."""

    def check_parameters(self) -> None:
        """ValueError for arguments that the layer does not take, as its constructor does."""
        self._check_arguments(self.group_size)

    def set_qweight_data(self, data: Tensor) -> None:
        """Take a copy of the words ``data``, int32 [in_channels / 32 * w_bit, out_channels]; other integers
        are taken modulo 2^32. Scales and zeros stay. ValueError for another shape."""
        words, held = as_words(data), self.weight.codes
        if words.shape != held.shape:
            raise ValueError(f"qweight must have shape {list(held.shape)}, got {list(words.shape)}")
        held.copy_(words)

    def set_scales(self, scales: Tensor) -> None:
        """Take a copy of ``scales`` [groups, out_channels]. ValueError for another shape or NaN."""
        self._set("scales", scales)

    def set_zeros(self, zeros: Tensor) -> None:
        """Take a copy of ``zeros`` [groups, out_channels]. ValueError for another shape or NaN."""
        self._set("zeros", zeros)

    def _set(self, name: str, values: Tensor) -> None:
        held: Tensor = getattr(self.weight, name)
        if values.shape != held.shape:
            raise ValueError(f"{name} must have shape {list(held.shape)}, got {list(values.shape)}")
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name} must be finite")
        held.copy_(values.detach())

    def _check_arguments(self, _group_size: int) -> None:
        if self.w_bit not in self.widths:
            raise ValueError(
                f"w_bit must be one of {', '.join(map(str, self.widths))} for {type(self).__name__}, got "
                f"{self.w_bit!r}"
            )
        if self.a_bit != 16:
            raise ValueError(f"a_bit must be 16, as activations stay float, got {self.a_bit!r}")

    # ---- states -----------------------------------------------------------------------------

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        rest = (prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if prefix + "layout" in state_dict or prefix + "qweight" not in state_dict:
            super()._load_from_state_dict(state_dict, *rest)
            return
        held = {name: state_dict[prefix + name] for name in self._theirs if prefix + name in state_dict}
        others = {key: value for key, value in state_dict.items() if key not in {prefix + n for n in held}}
        try:
            translated = state_of(self._decoded(held), self.in_features)
            bias = others.get(prefix + "bias")
            if self.bias is None and bias is not None:
                if bool(bias.any()):
                    raise ValueError("it has a bias: build the layer with disable_bias=False")
                del others[prefix + "bias"]  # bitorch_engine writes zeros
        except (KeyError, TypeError, ValueError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            error_msgs.append(f"{prefix.rstrip('.') or type(self).__name__}: a bitorch_engine state: {what}")
            return
        others |= {prefix + name: tensor for name, tensor in translated.items()}
        super()._load_from_state_dict(others, *rest)

    _theirs: ClassVar[tuple[str, ...]] = (
        "qweight", "g_idx", "wf", "qzeros", "qscales", "qstatistic", "qzeros_zeros", "qzeros_scales",
        "qscales_zeros", "qscales_scales", "scales", "zeros",
    )  # fmt: skip
    """Tensors of bitorch_engine's layers; ``wf`` are shifts for its unpacking, which nothing needs."""

    def _decoded(self, held: Mapping[str, Tensor]) -> MPQWeightParameter:
        scales, zeros = nbit_checkpoints.statistics(
            held,
            groups=self._group_count,
            out_channels=self.out_features,
            w_bit=self.w_bit,
            group_size=self.in_features if self.group_size == -1 else self.group_size,
            dq_group_size=self.dq_group_size,
            asym=self.asym,
            gptq=not self.use_gba_quant,
        )
        return MPQWeightParameter(
            held["qweight"],
            scales=scales,
            zeros=zeros,
            g_idx=held["g_idx"],
            w_bit=self.w_bit,
            asym=self.asym,
            dtype=self.weight.dtype,
        )


class MPQLinearCuda(MPQLinearBase):
    """:class:`MPQLinearBase` with 1, 2, 4 or 8 bits, on any device."""


class MPQLinearMlx(MPQLinearBase):
    """:class:`MPQLinearBase` with 2, 4 or 8 bits and groups of 32, 64 or 128, on any device."""

    widths = (2, 4, 8)

    def _check_arguments(self, group_size: int) -> None:
        super()._check_arguments(group_size)
        if group_size not in (32, 64, 128):
            raise ValueError(f"group_size must be 32, 64 or 128 for MPQLinearMlx, got {group_size}")


def as_words(data: Tensor) -> Tensor:
    """Integers as int32, modulo 2^32. TypeError for floats."""
    if data.is_floating_point():
        raise TypeError(f"qweight must hold integers, got {data.dtype}")
    words = data.detach().to(torch.int64) & 0xFFFFFFFF
    return (words - ((words >> 31) << 32)).to(torch.int32)
