"""Gradients in a low-rank space."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from impl.checks import check_choice, check_positive

PROJ_TYPES = ("std", "reverse_std", "right", "left", "full")
"""Names of the projections of a gradient G [m, n] onto rank r.

``left``         P^T G, [r, n]; P are the first r left singular vectors
``right``        G Q, [m, r]; Q are the first r right singular vectors
``std``          the one with the smaller state: right where m >= n, else left
``reverse_std``  the other one
``full``         P^T G Q, [r, r]
"""

_log = logging.getLogger(__name__)


class GaLoreProjector:
    """Projects the gradient of one weight matrix onto its main directions (GaLore, Zhao et al., 2024).

    rank: of the projected gradient; more than min(m, n) is min(m, n), which loses nothing.
    verbose: log (INFO) how much of the gradient's energy each new subspace holds.
    update_proj_gap: steps after which the subspace is taken from the gradient anew.
    scale: factor on what is projected back.
    proj_type: one of :data:`PROJ_TYPES`.

    Averages kept in the projected space go on through a change of the subspace, as in the paper's
    implementation. Attributes ``left`` [m, r] and ``right`` [n, r] hold the present subspace, or None.
    """

    def __init__(
        self,
        rank: int,
        verbose: bool = False,
        update_proj_gap: int = 200,
        scale: float = 1.0,
        proj_type: str = "std",
    ) -> None:
        self.rank = check_positive("rank", rank)
        self.verbose = verbose
        self.update_proj_gap = check_positive("update_proj_gap", update_proj_gap)
        self.scale = scale
        self.proj_type = check_choice("proj_type", proj_type, PROJ_TYPES)
        self.left: Tensor | None = None
        self.right: Tensor | None = None

    @torch.no_grad()
    def project(self, full_rank_grad: Tensor, iter: int) -> Tensor:
        """The gradient [m, n] in the subspace; a new subspace first where ``iter`` (from 0) is due."""
        if full_rank_grad.dim() != 2:
            raise ValueError(
                f"GaLore projects matrices, got shape {tuple(full_rank_grad.shape)}: flatten the gradient"
            )
        if (self.left is None and self.right is None) or iter % self.update_proj_gap == 0:
            self._find_subspace(full_rank_grad)
        low = full_rank_grad
        if self.left is not None:
            low = self.left.to(low.dtype).T @ low
        if self.right is not None:
            low = low @ self.right.to(low.dtype)
        return low

    @torch.no_grad()
    def project_back(self, low_rank_grad: Tensor) -> Tensor:
        """``low_rank_grad`` as a matrix [m, n], times ``scale``. RuntimeError before any project()."""
        if self.left is None and self.right is None:
            raise RuntimeError("there is no subspace yet: call project() first")
        full = low_rank_grad
        if self.left is not None:
            full = self.left.to(full.dtype) @ full
        if self.right is not None:
            full = full @ self.right.to(full.dtype).T
        return full * self.scale

    def low_rank_shape(self, rows: int, cols: int) -> tuple[int, int]:
        """Shape of the projected gradient of a matrix [rows, cols]."""
        rank = min(self.rank, rows, cols)
        left, right = self.sides(rows, cols)
        return rank if left else rows, rank if right else cols

    def sides(self, rows: int, cols: int) -> tuple[bool, bool]:
        """Whether the projection of a matrix [rows, cols] acts from the left, and from the right."""
        if self.proj_type == "full":
            return True, True
        if self.proj_type in ("left", "right"):
            return self.proj_type == "left", self.proj_type == "right"
        right = (rows >= cols) == (self.proj_type == "std")
        return not right, right

    def _find_subspace(self, gradient: Tensor) -> None:
        work = torch.promote_types(gradient.dtype, torch.float32)
        u, s, vh = torch.linalg.svd(gradient.to(work), full_matrices=False)
        rank = min(self.rank, s.numel())
        left, right = self.sides(*gradient.shape)
        self.left = u[:, :rank].contiguous() if left else None
        self.right = vh[:rank].T.contiguous() if right else None
        if self.verbose:
            energy = s.square()
            share = float(energy[:rank].sum() / energy.sum().clamp_min(torch.finfo(s.dtype).tiny))
            _log.info("rank %d of %d holds %.1f %% of the gradient's energy", rank, s.numel(), 100 * share)
