"""Binary multi-head attention of bitorch_engine."""

from __future__ import annotations

from typing import cast

import torch

from impl.compat.bitorch_engine.linear import BinaryLinearCutlass
from impl.layers.attention import BinaryMultiheadAttention, LearnableBias
from impl.layers.binary import BinaryLinear

__all__ = ["BMHA", "LearnableBias"]


class BMHA(BinaryMultiheadAttention):
    """:class:`impl.layers.BinaryMultiheadAttention` as the original builds it: ``q_linear``,
    ``k_linear``, ``v_linear`` and ``out`` are :class:`BinaryLinearCutlass` layers without bias, signs of
    weights times signs of activations, prepared and packed as those are.

    Shapes, masks, dropout and what is returned: as there. ValueError where ``hidden_dim`` is no multiple
    of ``num_heads``.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        num_heads: int,
        dtype: torch.dtype = torch.float,
        *,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
    ) -> None:
        # On the meta device: these projections are replaced.
        super().__init__(input_dim, hidden_dim, num_heads, dtype, dropout=dropout, device="meta")
        for name, old in list(self.named_children()):
            if isinstance(old, BinaryLinear):
                setattr(self, name, BinaryLinearCutlass(old.in_features, old.out_features, device, dtype))

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the projections' float tensors."""
        return cast("BinaryLinearCutlass", self.q_linear).dtype
