"""Multi-head attention with binary projections."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from impl.checks import check_positive
from impl.layers.activations import PerChannel
from impl.layers.binary import BinaryLinear
from impl.layers.calls import is_plain


class LearnableBias(PerChannel):
    """x + bias with one learnable value, at first 0, per channel: the shift that ReActNet (Liu et
    al., 2020) puts before a sign.

    ``dim`` is the channel dimension of the inputs: -1 for features, 1 for images. y has the dtype of x.
    """

    channels_argument: ClassVar[str] = "out_chn"

    def __init__(
        self,
        out_chn: int,
        dim: int = -1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(out_chn, dim)
        self.bias = nn.Parameter(torch.zeros(self.channels, device=device, dtype=dtype))

    @property
    def out_chn(self) -> int:
        """Number of channels, as the original calls it."""
        return self.channels

    def forward(self, x: Tensor) -> Tensor:
        """x [.., out_chn, ..] plus the bias, in the shape and dtype of x. ValueError for other channel
        counts: a single channel is not broadcast."""
        return x + self._along(self.bias, x)


class BinaryMultiheadAttention(nn.Module):
    """Multi-head self-attention whose four projections are :class:`impl.BinaryLinear` layers; scores,
    softmax and the sum over values stay float. The architecture is bitorch_engine's ``BMHA``.

    Attributes: ``input_dim``, ``hidden_dim``, ``num_heads``, ``head_dim`` = hidden_dim / num_heads,
    the projections ``q_linear``, ``k_linear``, ``v_linear`` [input_dim -> hidden_dim] and ``out``
    [hidden_dim -> input_dim], and ``dropout`` (of the scores, 0.1 as there).

    ``activation_bits``: None (float), 16, 8, 2, or 1, with which both operands of the projections are
    signs. ``ste`` and ``scale`` as in :class:`impl.BinaryLinear`. :func:`impl.pack` packs the
    projections and :func:`impl.unpack` unpacks them.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        num_heads: int,
        dtype: torch.dtype | None = None,
        *,
        dropout: float = 0.1,
        bias: bool = True,
        device: torch.device | str | None = None,
        activation_bits: int | None = None,
        scale: str = "row",
        ste: str = "clip",
    ) -> None:
        super().__init__()
        self.input_dim = check_positive("input_dim", input_dim)
        self.hidden_dim = check_positive("hidden_dim", hidden_dim)
        self.num_heads = check_positive("num_heads", num_heads)
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"hidden_dim must be a multiple of num_heads = {self.num_heads}, got {self.hidden_dim}"
            )
        self.head_dim = self.hidden_dim // self.num_heads

        def projection(in_features: int, out_features: int) -> BinaryLinear:
            return BinaryLinear(
                in_features,
                out_features,
                bias,
                device,
                dtype,
                activation_bits=activation_bits,
                scale=scale,
                ste=ste,
            )

        self.q_linear = projection(self.input_dim, self.hidden_dim)
        self.k_linear = projection(self.input_dim, self.hidden_dim)
        self.v_linear = projection(self.input_dim, self.hidden_dim)
        self.out = projection(self.hidden_dim, self.input_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_states: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Output [batch, length, input_dim] and scores [batch, num_heads, length, length].

        ``hidden_states`` is float32, bfloat16 or float16 [batch, length, input_dim]. The scores are
        those that weighed the values: after softmax and, in training, dropout.

        ``mask`` hides what is 0 or False, of any dtype: [batch, length] hides keys from all queries,
        [batch, length, length] and [batch, num_heads, length, length] say for each query which keys
        it sees; there every dimension but the last may be 1, to be shared. A query that sees nothing
        has scores of 0, hence the output of an all-zero value. Raises ValueError for other shapes
        and for additive masks.
        """
        if hidden_states.dim() != 3:
            raise ValueError(
                f"hidden_states must have shape [batch, length, input_dim = {self.input_dim}], "
                f"got {list(hidden_states.shape)}"
            )
        batch, length = hidden_states.shape[:2]
        query = self._heads(self.q_linear(hidden_states))
        key = self._heads(self.k_linear(hidden_states))
        value = self._heads(self.v_linear(hidden_states))
        logits = query @ key.transpose(-2, -1) / math.sqrt(self.head_dim)
        if mask is None:
            scores = logits.softmax(dim=-1)
        else:
            hidden = self._check_mask(mask, batch, length) == 0
            # The lowest finite number, not -inf: a row of nothing else has no softmax, and -1e9 is
            # beyond float16.
            lowest = torch.finfo(logits.dtype).min
            scores = logits.masked_fill(hidden, lowest).softmax(dim=-1).masked_fill(hidden, 0.0)
        scores = self.dropout(scores)
        attended = (scores @ value).transpose(1, 2).flatten(2)
        return self.out(attended), scores

    def _heads(self, projected: Tensor) -> Tensor:
        """[batch, length, hidden_dim] as [batch, num_heads, length, head_dim]."""
        return projected.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _check_mask(self, mask: Tensor, batch: int, length: int) -> Tensor:
        """``mask`` with four dimensions that broadcast to those of the scores."""
        if not isinstance(mask, Tensor):
            raise TypeError(f"mask must be a torch.Tensor, got {type(mask).__name__}")
        given = list(mask.shape)
        if mask.dim() == 2:
            mask = mask[:, None, None, :]
            allowed: tuple[tuple[int, ...], ...] = ((batch,), (1,), (1,), (length,))
        else:
            mask = mask.unsqueeze(1) if mask.dim() == 3 else mask
            allowed = ((batch, 1), (self.num_heads, 1), (length, 1), (length,))
        if mask.dim() != 4 or any(n not in sizes for n, sizes in zip(mask.shape, allowed, strict=True)):
            raise ValueError(
                f"mask must be [{batch}, {length}] (keys), [{batch} or 1, {length}, {length}] or "
                f"[{batch} or 1, {self.num_heads} or 1, {length}, {length}], got {given}: a mask of "
                "queries and keys for the whole batch is mask[None]"
            )
        readable = not torch.compiler.is_compiling() and mask.is_cpu and is_plain(mask)
        if readable and mask.is_floating_point() and bool((mask < 0).any()):
            raise ValueError(
                "mask holds negative numbers, as additive masks do; here 0 hides and all else shows: "
                "give mask == 0 of an additive one"
            )
        return mask

    def extra_repr(self) -> str:
        return f"{self.input_dim}, {self.hidden_dim}, num_heads={self.num_heads}"
