"""The linear layer of bitorch_engine with weights of several widths: MBWQ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from impl.checks import check_activations
from impl.compat.bitorch_engine.nbit_groupwise import MPQLinearBase, as_words
from impl.compat.bitorch_engine.nbit_tools import make_group_map, rows_of_groups
from impl.layers.nbit import MixedGroupwiseLinear
from impl.layers.nbit.groupwise_state import region_ends
from impl.parameters import MPQWeightParameter
from impl.parameters.bitstream import CODES

_UNIFORM = (2, 4)
_LEAST_GROUP = 32


class MBWQLinearCuda(MPQLinearBase):
    """y = (x * channel_scale) W + bias, W [in_channels, out_channels] with w = scale * code - zero.

    ``use_mbw``: input channels of 8, 6, 5, 4, 3 and 2 bits in one matrix, as exllamav2 writes them:
    ``q_groups`` (int16 [2 groups]) holds bits and first word row of each group, ``q_perm`` (int16
    [in_channels]) the input channel of each packed row. Else 2 or 4 bits throughout, in groups of
    ``group_size`` (32 or more) packed rows.

    How many groups and word rows there are is what a checkpoint says; ``groups`` and ``rows_packed`` are
    there for code that names them, and until then the weight has ``w_bit`` bits throughout. A new
    layer holds random weights. As in the original, ``set_qweight_data``, ``set_scales``, ``set_zeros``,
    ``q_perm`` and ``q_groups`` give a weight in parts, and :meth:`prepare_params` puts them together:
    forward wants that first. ``load_state_dict`` needs no preparation.
    """

    _staged: dict[str, Tensor]

    def __init__(
        self,
        *args: Any,
        use_mbw: bool = True,
        groups: int = 64,
        rows_packed: int = 64,
        **kwargs: Any,
    ) -> None:
        self.use_mbw, self.groups, self.rows_packed = bool(use_mbw), groups, rows_packed
        self._staged = {}
        super().__init__(*args, **kwargs)
        if self.in_features % CODES:
            raise ValueError(
                f"in_channels must be a multiple of {CODES}, got {self.in_features}: pad the input"
            )
        shape = (1, 1, self.in_features)
        scale = torch.ones(shape, dtype=self.dtype, device=self.weight.device)
        self.register_buffer("channel_scale", scale)

    channel_scale: Tensor

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        bits: Sequence[int] = (4, 2),
        proportions: Sequence[float] = (0.5, 0.5),
        group_size: int = 32,
        importance: Tensor | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> Self:
        """The layer with the weight of ``linear`` in codes of several widths, as
        :class:`impl.layers.nbit.MixedGroupwiseLinear` chooses them; bias, device, dtype and mode kept.

        ``device`` and ``options`` as for :meth:`MPQLinearBase.from_linear`.
        """
        mixed = MixedGroupwiseLinear.from_linear(
            linear, bits=bits, proportions=proportions, group_size=group_size, importance=importance
        )
        layer = cls._like(linear, w_bit=4, group_size=group_size, use_mbw=True, **options)
        layer._become(mixed.weight.to(layer.dtype), layer.weight.requires_grad)
        layer.channel_scale = torch.ones_like(layer.channel_scale, device=linear.weight.device)
        return layer if device is None else layer.to(device)

    # ---- the weight in parts ----------------------------------------------------------------

    @property
    def q_perm(self) -> Tensor:
        """Input channel of each packed row, int16 (modulo 2^16) [in_channels]."""
        return self._staged["q_perm"] if "q_perm" in self._staged else self.weight.order.to(torch.int16)

    @q_perm.setter
    def q_perm(self, value: Tensor) -> None:
        self._staged["q_perm"] = value

    @property
    def q_groups(self) -> Tensor:
        """Bits and first word row of each group, int16 [2 groups]."""
        if "q_groups" in self._staged:
            return self._staged["q_groups"]
        pairs, row = [], 0
        widths = torch.cat([torch.full((count,), bits) for count, bits in self.weight.regions])
        groups = self.weight.groups.cpu()
        for group in range(len(self.weight.scales)):
            inside = groups == group
            bits = int(widths[inside][0])
            pairs += [bits, row]
            row += int(inside.sum()) * bits // CODES
        return torch.tensor(pairs, dtype=torch.int16, device=self.weight.device)

    @q_groups.setter
    def q_groups(self, value: Tensor) -> None:
        self._staged["q_groups"] = value

    @property
    def q_group_map(self) -> Tensor:
        """Group of each packed row and rows left in it: :func:`make_group_map`."""
        return make_group_map(self.q_groups, self.weight.codes.shape[0])

    @property
    def rows(self) -> list[int]:
        """Cumulative packed rows of 8, 6, 5, 4, 3 and 2 bits; then which widths occur, bit w - 1 for w."""
        used = sum(1 << (bits - 1) for _, bits in self.weight.regions)
        return [*region_ends(self.weight.regions), used]

    def set_qweight_data(self, data: Tensor) -> None:
        """Give the int32 words [word rows, out_channels]; other integers are taken modulo 2^32."""
        self._staged["qweight"] = as_words(data)

    def set_scales(self, scales: Tensor) -> None:
        """Give the scales [groups, out_channels]."""
        self._staged["scales"] = scales

    def set_zeros(self, zeros: Tensor) -> None:
        """Give the zeros [groups, out_channels]."""
        self._staged["zeros"] = zeros

    def prepare_params(self) -> None:
        """Put the parts given together with those that the layer has. No-op where none was given.

        ValueError for parts that do not belong together, which stay for another try.
        """
        if not self._staged:
            return
        own = {
            "qweight": self.weight.codes,
            "scales": self.weight.scales,
            "zeros": self.weight.zeros,
            "q_perm": self.weight.order,
        }
        if self.use_mbw:
            own["q_groups"] = self.q_groups
        parameter = self._decoded({**own, **self._staged}).to(self.weight.device)
        self._become(parameter, self.weight.requires_grad)
        self._staged.clear()

    def forward(self, x: Tensor) -> Tensor:
        """As :meth:`MPQLinearBase.forward`. RuntimeError where :meth:`prepare_params` is due."""
        if self._staged:
            raise RuntimeError(
                f"parts of the weight wait ({', '.join(self._staged)}): call prepare_params() first"
            )
        check_activations(x, self.in_features)
        return super().forward((x * self.channel_scale.flatten()).to(x.dtype))

    # ---- decoding ---------------------------------------------------------------------------

    @staticmethod
    def q42fp_weight(
        qweight: Tensor, scales: Tensor, zeros: Tensor, group_size: int, bits: int, q_perm: Tensor
    ) -> Tensor:
        """The weight [in_channels, out_channels] of 4- or 2-bit codes, in the dtype of ``scales``."""
        return _uniform(_words(qweight), scales, zeros, group_size, bits, q_perm).dequantize()

    @staticmethod
    def exl2fp_weight(
        qweight: Tensor,
        scales: Tensor,
        zeros: Tensor,
        q_perm: Tensor,
        q_group_map: Tensor,
        rows: Sequence[int],
    ) -> Tensor:
        """The weight [in_channels, out_channels] of codes of several widths, in the dtype of ``scales``."""
        return MPQWeightParameter(
            _words(qweight),
            scales=scales,
            zeros=zeros,
            q_perm=_permutation(q_perm),
            q_group_map=q_group_map,
            rows=list(rows)[:6],
            dtype=scales.dtype,
        ).dequantize()

    # ---- states -----------------------------------------------------------------------------

    _theirs: ClassVar[tuple[str, ...]] = (*MPQLinearBase._theirs, "q_perm", "q_groups")

    def _decoded(self, held: Mapping[str, Tensor]) -> MPQWeightParameter:
        words, scales, zeros, q_perm = (held[name] for name in ("qweight", "scales", "zeros", "q_perm"))
        if self.use_mbw:
            group_map = make_group_map(held["q_groups"], words.shape[0])
            if group_map.numel() != 2 * self.in_features:
                raise ValueError(
                    f"q_groups tell of {group_map.numel() // 2} input channels, the layer has "
                    f"{self.in_features}"
                )
            parameter = MPQWeightParameter(
                words,
                scales=scales,
                zeros=zeros,
                q_perm=_permutation(q_perm),
                q_group_map=group_map,
                rows=rows_of_groups(held["q_groups"], words.shape[0]),
                dtype=self.dtype,
            )
        else:
            parameter = _uniform(words, scales, zeros, self.group_size, self.w_bit, q_perm, self.dtype)
        if tuple(parameter.shape) != (self.in_features, self.out_features):
            raise ValueError(
                f"the weight is {list(parameter.shape)}, the layer [{self.in_features}, {self.out_features}]"
            )
        return parameter

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._staged.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def _check_regions(self, regions: list[tuple[int, int]], groups: int) -> None:
        if self.use_mbw:
            region_ends(regions)
            if sum(rows for rows, _ in regions) != self.in_features:
                raise ValueError(f"the state has (rows, bits) {regions}, this layer {self.in_features} rows")
        else:
            super()._check_regions(regions, groups)

    def _check_arguments(self, group_size: int) -> None:
        if not self.use_mbw:
            if self.w_bit not in _UNIFORM:
                raise ValueError(f"w_bit must be 2 or 4 without use_mbw, got {self.w_bit!r}")
            if 0 <= group_size < _LEAST_GROUP:
                raise ValueError(
                    f"group_size must be at least {_LEAST_GROUP} without use_mbw, got {group_size}"
                )
        super()._check_arguments(group_size)


def _words(qweight: Tensor) -> Tensor:
    return qweight.codes if isinstance(qweight, MPQWeightParameter) else qweight.detach()


def _permutation(q_perm: Tensor) -> Tensor | None:
    """int64 order of rows from int16, which counts modulo 2^16; None for zeros, which stand for none."""
    order = q_perm.detach().to(torch.int64) & 0xFFFF
    return order if bool(order.any()) else None


def _uniform(
    words: Tensor,
    scales: Tensor,
    zeros: Tensor,
    group_size: int,
    bits: int,
    q_perm: Tensor,
    dtype: torch.dtype | None = None,
) -> MPQWeightParameter:
    rows = words.shape[0] // bits * CODES
    return MPQWeightParameter(
        words,
        scales=scales,
        zeros=zeros,
        q_perm=_permutation(q_perm),
        q_group_map=torch.arange(rows) // group_size,
        w_bit=bits,
        dtype=dtype or scales.dtype,
    )
