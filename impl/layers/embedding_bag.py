"""Embedding bags with binary and ternary rows: the rows of each bag reduced to one.

Rows are read as by the embeddings of :mod:`impl.layers.embedding`, in either form, and reduced in
float32. Each bag's gradient goes to the rows of that bag.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impl.checks import check_choice
from impl.layers.calls import is_plain
from impl.layers.embedding import INDEX_DTYPES, BinaryTable, EmbeddingTable, TernaryTable
from impl.quantizers import straight_through


class BagReduction(EmbeddingTable):
    """The forward of ``nn.EmbeddingBag``. Further attributes: ``mode``, ``include_last_offset``."""

    replaces: ClassVar[type[nn.Embedding] | type[nn.EmbeddingBag]] = nn.EmbeddingBag
    returns_padding: ClassVar[bool] = False
    modes: ClassVar[tuple[str, ...]] = ("sum", "mean", "max")

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        mode: str = "mean",
        include_last_offset: bool = False,
        **options: Any,
    ) -> None:
        """``options`` are the keyword arguments of the embedding with the same kind of rows."""
        super().__init__(num_embeddings, embedding_dim, padding_idx, device, dtype, **options)
        self.mode = check_choice("mode", mode, self.modes)
        self.include_last_offset = include_last_offset

    @classmethod
    def _options_of(cls, embedding: nn.Embedding | nn.EmbeddingBag, pack: bool) -> dict[str, Any]:
        own = {"mode": embedding.mode, "include_last_offset": embedding.include_last_offset}
        return {**super()._options_of(embedding, pack), **own}

    def forward(
        self, index: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """One row per bag, in :attr:`weight_dtype`.

        ``index`` is int64 or int32 [..., length]: a bag for each position of the leading dimensions,
        result [..., embedding_dim]. Or it is [n] with ``offsets`` [bags] (with
        ``include_last_offset`` [bags + 1], the last one n): where each bag begins, result
        [bags, embedding_dim]. ``per_sample_weights``, in the shape of ``index`` and only with the
        mode ``sum``, multiply the rows; they receive gradients.

        Indices equal to ``padding_idx`` are left out; a bag of nothing is zero. Raises IndexError for
        indices outside the table, ValueError and TypeError for operands that do not fit.
        """
        index = self._check_index(index)
        if offsets is None:
            if index.dim() < 2:
                raise ValueError(
                    f"an index of shape {list(index.shape)} is one row of indices: give offsets, or an "
                    "index [..., length] with a bag in each row"
                )
            bags: tuple[int, ...] = index.shape[:-1]
            starts = torch.arange(math.prod(bags), device=index.device) * index.shape[-1]
        else:
            starts = self._check_offsets(offsets, index)
            bags = (starts.shape[0] - int(self.include_last_offset),)
        flat = index.reshape(-1)
        weights = self._check_weights(per_sample_weights, index)
        reduced = self._reduce(flat, starts, offsets is not None and self.include_last_offset, weights)
        return reduced.to(self.weight_dtype).view(*bags, self.embedding_dim)

    def _reduce(self, index: Tensor, starts: Tensor, ends_given: bool, weights: Tensor | None) -> Tensor:
        """float32 [bags, embedding_dim] of the rows ``index`` [n]."""
        rows = self._rows(index).to(torch.float32)
        if weights is not None:  # not left to torch, which drops their gradient where the table has none
            rows = rows * weights.unsqueeze(1)
        return self._reduce_rows(rows, index, starts, ends_given, self.mode)

    def _reduce_rows(
        self,
        rows: Tensor,
        index: Tensor,
        starts: Tensor,
        ends_given: bool,
        mode: str,
    ) -> Tensor:
        """``rows`` [n, d] (float32), those at ``index`` [n], reduced bag by bag: [bags, d].

        torch's own reductions over a table of the rows at hand. Rows at ``padding_idx`` are hidden here:
        torch would have to know the number of rows, which a graph compiled or exported for any batch
        size does not.
        """
        # One more row, as torch reduces no empty table.
        position = torch.arange(rows.shape[0], device=index.device)

        def reduce(values: Tensor, how: str) -> Tensor:
            table = F.pad(values, (0, 0, 0, 1))
            return F.embedding_bag(position, table, starts, mode=how, include_last_offset=ends_given)

        if self.padding_idx is None:
            return reduce(rows, mode)
        hidden = (index == self.padding_idx).unsqueeze(1)
        if mode == "sum":
            return reduce(rows.masked_fill(hidden, 0), "sum")
        shown = reduce((~hidden).to(rows.dtype), "sum")
        if mode == "mean":
            return reduce(rows.masked_fill(hidden, 0), "sum") / shown.clamp_min(1)
        return reduce(rows.masked_fill(hidden, -torch.inf), "max").masked_fill(shown == 0, 0)

    def _check_offsets(self, offsets: Tensor, index: Tensor) -> Tensor:
        """``offsets`` as int64, if they cut ``index`` into bags."""
        if index.dim() != 1:
            raise ValueError(
                f"offsets belong to an index [n], got the shape {list(index.shape)}: leave them out, its "
                "rows are the bags"
            )
        if not isinstance(offsets, Tensor) or offsets.dtype not in INDEX_DTYPES or offsets.dim() != 1:
            got = f"{offsets.dtype} {list(offsets.shape)}" if isinstance(offsets, Tensor) else repr(offsets)
            raise TypeError(f"offsets must be an int64 or int32 tensor [bags], got {got}")
        if offsets.device != index.device:
            raise ValueError(f"the offsets are on {offsets.device}, the index on {index.device}: use .to()")
        if self.include_last_offset and offsets.shape[0] == 0:
            raise ValueError("include_last_offset needs at least one offset, the number of indices: got none")
        if not torch.compiler.is_compiling() and offsets.is_cpu and is_plain(offsets) and offsets.numel():
            count = index.shape[0]
            first, last = int(offsets[0]), int(offsets[-1])
            fits = last == count if self.include_last_offset else last <= count
            if first != 0 or not fits or bool((offsets.diff() < 0).any()):
                end = f"{count}" if self.include_last_offset else f"at most {count}"
                raise ValueError(
                    f"offsets must rise from 0 to {end}, the number of indices, and never fall: "
                    f"got {first} .. {last}"
                )
        return offsets.to(torch.int64)

    def _check_weights(self, weights: Tensor | None, index: Tensor) -> Tensor | None:
        """``weights`` as float32 [n], if they can multiply the rows at ``index``."""
        if weights is None:
            return None
        if self.mode != "sum":
            raise ValueError(f"per_sample_weights need mode='sum', this layer has {self.mode!r}")
        if not isinstance(weights, Tensor) or not weights.is_floating_point():
            got = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
            raise TypeError(f"per_sample_weights must be a floating-point tensor, got {got}")
        if weights.shape != index.shape:
            raise ValueError(
                f"per_sample_weights must have the index's shape {list(index.shape)}, "
                f"got {list(weights.shape)}"
            )
        return weights.reshape(-1).to(torch.float32)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode}"


class BinaryEmbeddingBag(BagReduction, BinaryTable):
    """``nn.EmbeddingBag`` with rows of -1 and +1 times a scale: 1 bit per weight once packed.

    Besides "sum", "mean" and "max" there is the mode "majority" of bitorch_engine: the vote of the
    signs of a bag's rows, -1 or +1 in the dtype of the weight, with +1 where they tie. Scales have no
    part in it, and the gradient of a bag passes whole to each of its rows' signs.
    """

    modes: ClassVar[tuple[str, ...]] = ("sum", "mean", "max", "majority")

    def _reduce(self, index: Tensor, starts: Tensor, ends_given: bool, weights: Tensor | None) -> Tensor:
        if self.mode != "majority":
            return super()._reduce(index, starts, ends_given, weights)
        signs = self._signs(index).to(torch.float32)
        votes = self._reduce_rows(signs, index, starts, ends_given, "sum")
        one = torch.ones_like(index, dtype=torch.float32).unsqueeze(1)
        voters = self._reduce_rows(one, index, starts, ends_given, "sum")
        decision = torch.where(votes.detach() >= 0, 1.0, -1.0) * (voters > 0)
        # Adds an exact zero that carries the gradient.
        return decision + (votes - votes.detach())

    def _signs(self, index: Tensor) -> Tensor:
        """Signs [n, embedding_dim] of the rows ``index`` [n], with the gradient of ``ste``."""
        if self.codes is not None:
            return self._packed_codes(index)
        rows = F.embedding(index, self._latent("a lookup"), self.padding_idx)
        return straight_through(rows, torch.where(rows >= 0, 1.0, -1.0), self.ste)


class TernaryEmbeddingBag(BagReduction, TernaryTable):
    """``nn.EmbeddingBag`` with rows of -1, 0 and +1 times a scale: 1.6 (``base3``) or 2
    (``two_bit``) bits per weight once packed. Its further options are those of
    :class:`impl.layers.embedding.TernaryEmbedding`."""
