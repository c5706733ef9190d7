"""``low_rank``: W = U V with U [out, r] and V [r, in], another way to make a layer smaller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from bitbench.layers.base import LayerCost, LayerKind, LayerSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

BYTES = 4
"""The factors are kept in float32."""


class LowRankSpec(LayerSpec):
    """Two thin matrices in place of one."""

    rank: int = Field(default=16, ge=1)
    """Columns of U; at most the smaller side of the layer is of use."""


class LowRank(LayerKind):
    """Two ``nn.Linear`` in a row; the second carries the bias."""

    name = "low_rank"
    spec = LowRankSpec

    def cost(self, spec: LowRankSpec, in_features: int, out_features: int) -> LayerCost:
        weights = spec.rank * (in_features + out_features)
        return LayerCost(
            codes_bytes=BYTES * weights,
            scales_bytes=0,
            format_bits=8.0 * BYTES * weights / (in_features * out_features),
            macs_per_token=weights,
            compute="fp32",
        )

    def numerics(self, spec: LowRankSpec) -> dict[str, Any]:
        return {"rank": spec.rank}

    def random(
        self, spec: LowRankSpec, in_features: int, out_features: int, *, bias: bool, seed: int
    ) -> nn.Module:
        import torch

        made = self.trainable(spec, in_features, out_features, bias=bias)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.uniform_(-1, 1, generator=generator)
        return made.requires_grad_(False).eval()

    def convert(self, spec: LowRankSpec, linear: nn.Linear) -> nn.Module:
        """The best approximation of that rank, by the singular value decomposition (Eckart, Young)."""
        import torch

        with torch.no_grad():
            left, values, right = torch.linalg.svd(linear.weight.detach().float(), full_matrices=False)
            rank = min(spec.rank, len(values))
            made = self.trainable(
                LowRankSpec(kind=self.name, rank=rank),
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
            )
            made[0].weight.copy_(right[:rank])  # type: ignore[operator, index]
            made[1].weight.copy_(left[:, :rank] * values[:rank])  # type: ignore[operator, index]
            if linear.bias is not None:
                made[1].bias.copy_(linear.bias)  # type: ignore[operator, index]
        return made.requires_grad_(False).eval()

    def trainable(self, spec: LowRankSpec, in_features: int, out_features: int, *, bias: bool) -> Any:
        from torch import nn

        return nn.Sequential(
            nn.Linear(in_features, spec.rank, bias=False), nn.Linear(spec.rank, out_features, bias=bias)
        )

    def reference(self, spec: LowRankSpec, module: Any, x: torch.Tensor, rows: slice) -> torch.Tensor:
        narrow, wide = module[0].weight.double(), module[1].weight[rows].double()
        expected = x.double() @ (wide @ narrow).T
        return expected if module[1].bias is None else expected + module[1].bias[rows].double()

    def tolerance(self, spec: LowRankSpec, in_features: int) -> float:
        return 1e-5
