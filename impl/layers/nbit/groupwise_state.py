"""The plain tensors that ``state_dict`` holds of a group-wise weight, and their checks on loading."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from impl.parameters import MPQWeightParameter
from impl.parameters.mpq import WIDTHS

VERSION = 1
PACKED = ("qweight", "scales", "zeros", "groups", "order", "layout")
"""Names of the tensors."""


def state_of(weight: MPQWeightParameter, in_features: int) -> dict[str, Tensor]:
    """The tensors of ``weight``, sharing its memory; ``layout`` is int64: version, asym, in_features,
    out_features, then packed rows and bits of each region."""
    layout = [VERSION, int(weight.asym), in_features, weight.shape[1], *itertools.chain(*weight.regions)]
    return {
        "qweight": weight.codes.detach(),
        "scales": weight.scales.detach(),
        "zeros": weight.zeros.detach(),
        "groups": weight.groups.to(torch.int32),
        "order": weight.order.to(torch.int32),
        "layout": torch.tensor(layout, dtype=torch.int64, device="cpu"),
    }


def read_layout(layout: Tensor) -> tuple[bool, int, int, list[tuple[int, int]]]:
    """asym, in_features, out_features and the regions that ``layout`` tells of."""
    if (
        layout.is_meta
        or layout.dtype != torch.int64
        or layout.dim() != 1
        or len(layout) < 6
        or len(layout) % 2
    ):
        raise ValueError(
            f"layout must be int64 numbers, four and two for each region, got {layout.dtype} "
            f"{list(layout.shape)} on {layout.device}"
        )
    version, asym, in_features, out_features, *rest = layout.tolist()
    if version != VERSION:
        raise ValueError(
            f"the state has version {version}, this release reads {VERSION}: use the release that wrote it"
        )
    return bool(asym), in_features, out_features, list(zip(rest[::2], rest[1::2], strict=True))


def parameter_of(
    held: Mapping[str, Tensor], regions: Sequence[tuple[int, int]], asym: bool, dtype: torch.dtype
) -> MPQWeightParameter:
    """The weight that the tensors ``held`` make up. TypeError or ValueError where they do not belong
    together, or are damaged."""
    for name in ("scales", "zeros"):
        if held[name].dtype != torch.float32 or not bool(torch.isfinite(held[name]).all()):
            raise ValueError(f"{name} must be finite float32 numbers, got {held[name].dtype}: damaged?")
    single = len(regions) == 1
    return MPQWeightParameter(
        held["qweight"],
        scales=held["scales"],
        zeros=held["zeros"],
        q_group_map=held["groups"],
        q_perm=held["order"],
        w_bit=regions[0][1] if single else -1,
        rows=None if single else region_ends(regions),
        asym=asym,
        dtype=dtype,
    )


def region_ends(regions: Sequence[tuple[int, int]]) -> list[int]:
    """The argument ``rows`` of :class:`impl.parameters.MPQWeightParameter` for (packed rows, bits), ...

    ValueError for widths that it does not know, or in another order than 8, 6, 5, 4, 3, 2.
    """
    widths = [bits for _, bits in regions]
    if any(bits not in WIDTHS for bits in widths) or widths != sorted(set(widths), reverse=True):
        raise ValueError(f"regions must be of {WIDTHS} bits, each once, widest first; got {widths}")
    rows = {bits: count for count, bits in regions}
    return list(itertools.accumulate(rows.get(bits, 0) for bits in WIDTHS))
