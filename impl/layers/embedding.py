"""Embeddings with binary and ternary rows.

*Training form*: ``weight`` is a float Parameter [num_embeddings, embedding_dim]. A lookup quantises
the rows that it reads (all of them only where they share one scale) and passes the gradient
straight through to them.

*Packed form*: the buffers ``codes``, ``scales`` and ``packing`` of the linear layers, with one row
per embedding; a lookup decodes the rows that it reads. Packed rows are constants.

``load_state_dict`` takes the form of the state that it is given. No state is shared between
instances, and whatever a packed state holds, all zeros included, is what a lookup returns.
"""

from __future__ import annotations

import operator
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impl.checks import SCALES, check_choice, check_positive
from impl.layers.calls import is_plain
from impl.layers.lookup import gather_codes, gather_scales
from impl.layers.low_bit_weight import LowBitWeight
from impl.quantizers import RULES, Quantized, quantize_binary, quantize_ternary, straight_through

INDEX_DTYPES = (torch.int64, torch.int32)


class EmbeddingTable(LowBitWeight):
    """What embeddings and embedding bags share: a low-bit table and its rows by index.

    Attributes: ``num_embeddings``, ``embedding_dim``, ``padding_idx`` (None, or counted from 0),
    ``format``, ``scale`` ("row" or "tensor"), ``group_size`` (columns that share a scale, or None),
    ``scale_dtype`` (float32 or float16), ``ste``.

    The latent weight is drawn from N(0, 1), as ``nn.Embedding`` draws it, with the row
    ``padding_idx`` zero. As a third of such weights lie outside -1 .. 1, the default estimator is
    ``identity``: ``clip`` would never move them.
    """

    replaces: ClassVar[type[nn.Embedding] | type[nn.EmbeddingBag]]
    returns_padding: ClassVar[bool]
    """Whether a lookup of ``padding_idx`` returns its row; else the index is left out."""

    num_embeddings: int
    embedding_dim: int
    scale: str

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        scale: str = "row",
        group_size: int | None = None,
        scale_dtype: torch.dtype = torch.float32,
        ste: str = "identity",
        format: str | None = None,
    ) -> None:
        self.num_embeddings = check_positive("num_embeddings", num_embeddings)
        self.embedding_dim = check_positive("embedding_dim", embedding_dim)
        self.padding_idx = _check_padding(padding_idx, self.num_embeddings)
        format = self.formats[0] if format is None else format
        if format == "binary" and scale == "tensor" and padding_idx is not None and self.returns_padding:
            raise ValueError(
                f"padding_idx={padding_idx} needs a row of zeros, which binary codes have only through "
                "a scale of their own: use scale='row', or TernaryEmbedding"
            )
        super().__init__(
            (self.num_embeddings, self.embedding_dim),
            False,
            device,
            dtype,
            format=format,
            components=1,
            scale=check_choice("scale", scale, SCALES),
            group_size=group_size,
            scale_dtype=scale_dtype,
            ste=ste,
        )

    # ---- construction -----------------------------------------------------------------------

    def reset_parameters(self) -> None:
        """Draw the latent weight anew. Training form only."""
        weight = self._latent("reset_parameters()")
        nn.init.normal_(weight)
        if self.padding_idx is not None:
            with torch.no_grad():
                weight[self.padding_idx].zero_()

    @classmethod
    def from_embedding(
        cls, embedding: nn.Embedding | nn.EmbeddingBag, *, pack: bool = True, **options: Any
    ) -> Self:
        """The layer that replaces a trained ``embedding``: weight, ``padding_idx``, device and dtype
        are kept, and of an ``nn.EmbeddingBag`` the mode and ``include_last_offset``.

        ``options`` are keyword arguments of the class. ``embedding`` is not changed; a layer in
        training form (``pack=False``) gets its own copy of the weight. Raises TypeError for another
        kind of module; ValueError where the weight holds NaN or infinity, for ``max_norm``, and in
        training form for ``sparse`` and ``scale_grad_by_freq``, which these layers do not have.
        """
        if not isinstance(embedding, cls.replaces):
            raise TypeError(
                f"{cls.__name__}.from_embedding takes an nn.{cls.replaces.__name__}, "
                f"got {type(embedding).__name__}"
            )
        if embedding.max_norm is not None:
            raise ValueError(
                f"max_norm={embedding.max_norm} rescales the float weight at each lookup, which quantised "
                "rows do not do: rescale the weight once and set max_norm=None"
            )
        if not pack and (embedding.sparse or embedding.scale_grad_by_freq):
            raise ValueError(
                f"sparse={embedding.sparse}, scale_grad_by_freq={embedding.scale_grad_by_freq}: gradients "
                "here are dense and unscaled: set both to False, or pack"
            )
        old = embedding.weight
        table = cls(
            embedding.num_embeddings,
            embedding.embedding_dim,
            device="meta",  # nothing is allocated or drawn: the weight comes from `embedding`
            dtype=old.dtype,
            **{**cls._options_of(embedding, pack), **options},
        )
        weight = old.detach() if pack else old.detach().clone()
        table.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
        table.train(embedding.training)
        return table.pack() if pack else table

    @classmethod
    def _options_of(cls, embedding: nn.Embedding | nn.EmbeddingBag, pack: bool) -> dict[str, Any]:  # noqa: ARG003
        """Arguments of the class that ``embedding``, or going to packed form, decides."""
        return {"padding_idx": embedding.padding_idx}

    # ---- rows by index ----------------------------------------------------------------------

    def _rows(self, index: Tensor) -> Tensor:
        """Values [n, embedding_dim] of the rows ``index`` [n], in :attr:`weight_dtype`."""
        if self.codes is not None:
            assert self.scales is not None
            scales = gather_scales(self.scales, self.num_embeddings, index)
            codes = self._packed_codes(index)
            return Quantized(codes.unsqueeze(0), scales.unsqueeze(0), self.group_size).dequantize(
                self._weight_dtype
            )
        weight = self._latent("a lookup")
        if self.scale == "tensor":  # all rows have a say in the scale
            table = straight_through(weight, self._quantized_matrix(weight.detach(), final=False), self.ste)
            return F.embedding(index, table, self.padding_idx)
        rows = F.embedding(index, weight, self.padding_idx)
        if rows.shape[0] == 0:
            return rows
        return straight_through(rows, self._quantized_matrix(rows.detach(), final=False), self.ste)

    def _packed_codes(self, index: Tensor) -> Tensor:
        assert self.codes is not None
        return gather_codes(
            self.codes, self.format, self.num_embeddings, self.embedding_dim, self.group_size, index
        )

    def _check_index(self, index: Tensor) -> Tensor:
        """Return ``index`` if it holds row numbers. On the CPU their range is checked here, with
        the value in the message; elsewhere by torch, which need not wait for the device."""
        if not isinstance(index, Tensor):
            raise TypeError(f"the index must be a torch.Tensor, got {type(index).__name__}")
        if index.dtype not in INDEX_DTYPES:
            raise TypeError(f"the index must be int64 or int32, got {index.dtype}: convert it with .long()")
        table = self.codes if self.weight is None else self.weight
        assert table is not None
        if index.device != table.device:
            raise ValueError(
                f"the index is on {index.device}, the table on {table.device}: move one with .to()"
            )
        if not torch.compiler.is_compiling() and index.is_cpu and is_plain(index) and index.numel():
            low, high = (int(value) for value in torch.aminmax(index))
            if low < 0 or high >= self.num_embeddings:
                raise IndexError(
                    f"index {low if low < 0 else high} is outside the table: num_embeddings = "
                    f"{self.num_embeddings} allows 0 .. {self.num_embeddings - 1}"
                )
        return index

    def extra_repr(self) -> str:
        """Shape, format and form, as ``print(model)`` shows them."""
        parts = [str(self.num_embeddings), str(self.embedding_dim)]
        if self.padding_idx is not None:
            parts.append(f"padding_idx={self.padding_idx}")
        parts.append(f"format={self.format}")
        parts.append(f"scale={self.scale}" if self.group_size is None else f"group_size={self.group_size}")
        parts.append("packed" if self.is_packed else f"training, ste={self.ste}")
        return ", ".join(parts)


class BinaryTable(EmbeddingTable):
    """Rows of -1 and +1 times the scale mean|w| (Rastegari et al., 2016) over exactly
    ``embedding_dim`` weights; sign(0) = +1. A row of zeros has the scale 0 and stays zero."""

    formats: ClassVar[tuple[str, ...]] = ("binary",)

    def _quantize(self, weight: Tensor, *, final: bool) -> Quantized:
        return quantize_binary(weight, scale=self.scale, group_size=self.group_size, check_finite=final)


class TernaryTable(EmbeddingTable):
    """Rows of -1, 0 and +1 times a scale, by one of :data:`impl.quantizers.RULES`."""

    formats: ClassVar[tuple[str, ...]] = ("base3", "two_bit")

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        scale: str = "row",
        group_size: int | None = None,
        scale_dtype: torch.dtype = torch.float32,
        ste: str = "identity",
        format: str | None = None,
        rule: str = "absmean",
    ) -> None:
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx,
            device,
            dtype,
            scale=scale,
            group_size=group_size,
            scale_dtype=scale_dtype,
            ste=ste,
            format=format,
        )
        self.rule = check_choice("rule", rule, RULES)

    @classmethod
    def _options_of(cls, embedding: nn.Embedding | nn.EmbeddingBag, pack: bool) -> dict[str, Any]:
        return {**super()._options_of(embedding, pack), "rule": "optimal" if pack else "absmean"}

    def _quantize(self, weight: Tensor, *, final: bool) -> Quantized:
        return quantize_ternary(
            weight, rule=self.rule, scale=self.scale, group_size=self.group_size, check_finite=final
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rule={self.rule}"


class Lookup(EmbeddingTable):
    """The forward of ``nn.Embedding``."""

    replaces: ClassVar[type[nn.Embedding] | type[nn.EmbeddingBag]] = nn.Embedding
    returns_padding: ClassVar[bool] = True

    def forward(self, index: Tensor) -> Tensor:
        """Rows [*index.shape, embedding_dim] in :attr:`weight_dtype`; ``index`` int64 or int32 of any
        shape, empty and zero-dimensional ones included.

        The row ``padding_idx`` is returned like any other (zeros, unless it was given other values)
        but receives no gradient. Raises IndexError for indices outside the table.
        """
        index = self._check_index(index)
        return self._rows(index.reshape(-1)).view(*index.shape, self.embedding_dim)


class BinaryEmbedding(Lookup, BinaryTable):
    """``nn.Embedding`` with rows of -1 and +1 times a scale: 1 bit per weight once packed."""


class TernaryEmbedding(Lookup, TernaryTable):
    """``nn.Embedding`` with rows of -1, 0 and +1 times a scale: 1.6 (``base3``) or 2 (``two_bit``)
    bits per weight once packed.

    ``rule`` as for :class:`impl.BitLinear`: ``absmean`` in training, ``optimal`` where
    :meth:`from_embedding` packs trained weights. The scale is per row by default.
    """


def _check_padding(padding_idx: int | None, num_embeddings: int) -> int | None:
    """``padding_idx`` counted from 0; negative ones count from the end."""
    if padding_idx is None:
        return None
    if isinstance(padding_idx, bool) or not hasattr(padding_idx, "__index__"):
        raise TypeError(f"padding_idx must be an integer or None, got {padding_idx!r}")
    number = operator.index(padding_idx)
    if not -num_embeddings <= number < num_embeddings:
        raise ValueError(
            f"padding_idx must lie in {-num_embeddings} .. {num_embeddings - 1} "
            f"(num_embeddings = {num_embeddings}), got {number}"
        )
    return number % num_embeddings
