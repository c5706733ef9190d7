"""Linear layer with weights of several widths in one matrix: MBWQ, and the rows of exllamav2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from impl.checks import check_positive
from impl.layers.nbit.groupwise import GroupwiseLinear
from impl.layers.nbit.groupwise_state import region_ends
from impl.parameters import MPQWeightParameter
from impl.parameters.bitstream import CODES
from impl.parameters.mpq import WIDTHS


class MixedGroupwiseLinear(GroupwiseLinear):
    """y = x W + bias, the input features of W in regions of ``bits`` bits each, widest first.

    bits: widths of the regions, of 8, 6, 5, 4, 3 and 2, descending.
    proportions: share of the input features in each; regions hold multiples of 32, the last takes the rest.
    group_size: input features that share a scale and a zero; groups begin anew with each region.

    :meth:`quantize_` puts the input features that matter most into the widest region: those with the
    largest ``importance`` (such as the mean square of the activations; None: alike) times sum(w^2).
    Everything else as :class:`GroupwiseLinear` says.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bits: Sequence[int] = (4, 2),
        proportions: Sequence[float] = (0.5, 0.5),
        group_size: int = 32,
        requires_grad: bool = True,
    ) -> None:
        self.regions = _regions(check_positive("in_features", in_features), tuple(bits), tuple(proportions))
        self.widths = tuple(bits)
        super().__init__(
            in_features,
            out_features,
            bias,
            device,
            dtype,
            bits=max(self.widths),
            group_size=group_size,
            requires_grad=requires_grad,
        )

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, importance: Tensor | None = None, **options: Any) -> Self:
        """As :meth:`GroupwiseLinear.from_linear`, with the ``importance`` [in_features] of the inputs."""
        return cls._like(linear, **options).quantize_(linear.weight.detach().t(), importance=importance)

    def quantize_(
        self, weight: Tensor, *, whole_zeros: bool = False, importance: Tensor | None = None
    ) -> Self:
        """As :meth:`GroupwiseLinear.quantize_`, the most important input features first."""
        if importance is not None and (
            tuple(importance.shape) != (self.in_features,) or not bool((importance >= 0).all())
        ):
            raise ValueError(
                f"importance must be [{self.in_features}] numbers of at least 0, got {list(importance.shape)}"
            )
        self._importance = importance
        try:
            return super().quantize_(weight, whole_zeros=whole_zeros)
        finally:
            del self._importance

    @property
    def bits_per_weight(self) -> float:
        """Mean width of the codes, without scales, zeros and maps."""
        return sum(rows * bits for rows, bits in self.regions) / sum(rows for rows, _ in self.regions)

    def _describe(self) -> str:
        parts = ", ".join(f"{rows} x {bits} bits" for rows, bits in self.regions)
        return f"rows=({parts}), group_size={self.group_size}"

    @property
    def _group_count(self) -> int:
        return sum(-(-rows // self._run(rows)) for rows, _ in self.regions)

    def _run(self, rows: int) -> int:
        """Rows of a group in a region of ``rows``."""
        return rows if self.group_size == -1 else self.group_size

    def _group_map(self, device: torch.device) -> Tensor:
        parts, first = [], 0
        for rows, _ in self.regions:
            run = self._run(rows)
            parts.append(torch.arange(rows, device=device).div(run, rounding_mode="floor") + first)
            first += -(-rows // run)
        return torch.cat(parts)

    def _float_parameter(self, values: Tensor, dtype: torch.dtype) -> MPQWeightParameter:
        score = values.square().sum(1)
        if self._importance is not None:
            score[: self.in_features] *= self._importance.to(score)
        score[self.in_features :] = -1  # rows that only fill up come last
        order = torch.argsort(score, descending=True, stable=True)
        return self._built(values, dtype, q_perm=order)

    def _parameter(
        self, words: Tensor, scales: Tensor, zeros: Tensor, dtype: torch.dtype
    ) -> MPQWeightParameter:
        return self._built(words, dtype, scales=scales, zeros=zeros)

    def _built(self, data: Tensor, dtype: torch.dtype, **operands: Any) -> MPQWeightParameter:
        groups = self._group_map(torch.device("cpu"))
        rows = region_ends(self.regions)
        return MPQWeightParameter(
            data, rows=rows, q_group_map=groups, asym=self.asym, dtype=dtype, **operands
        )

    def _word_rows(self) -> int:
        return sum(rows // CODES * bits for rows, bits in self.regions)

    def _expected_regions(self) -> list[tuple[int, int]]:
        return list(self.regions)


def _regions(
    features: int, bits: tuple[int, ...], proportions: tuple[float, ...]
) -> tuple[tuple[int, int], ...]:
    """(packed rows, bits) of each region that is not empty."""
    if (
        not bits
        or any(width not in WIDTHS for width in bits)
        or list(bits) != sorted(set(bits), reverse=True)
    ):
        raise ValueError(f"bits must be descending numbers of {WIDTHS}, got {bits}")
    if len(proportions) != len(bits) or min(proportions) < 0 or abs(sum(proportions) - 1) > 1e-6:
        raise ValueError(f"proportions must be {len(bits)} numbers that sum to 1, got {proportions}")
    blocks = -(-features // CODES)
    regions, begin, share = [], 0, 0.0
    for width, proportion in zip(bits, proportions, strict=True):
        share += proportion
        end = blocks if width == bits[-1] else round(share * blocks)
        if end > begin:
            regions.append(((end - begin) * CODES, width))
        begin = end
    return tuple(regions)
