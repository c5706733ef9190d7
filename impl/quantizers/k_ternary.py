"""k-ternary codes: a weight as the sum of k ternary matrices, each with its own scales.

The greedy decomposition ternarises what the components before it have left over. The joint refit
then treats a row as what it is, a scalar quantiser with the 3^k levels c . a (c in {-1, 0, +1}^k, a
the k scales), and alternates as Lloyd does: the nearest level for every weight, then least-squares
scales for those codes. Both steps can only lower the squared error. Since only a row's number and
sum of weights per level enter, a step works on sorted magnitudes and their prefix sums and costs
O(3^k log n) a row, whatever its length n: many steps from several starts are affordable, and the
start matters most (greedy scales are far from the best ones).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from impl.checks import check_choice, check_components, check_group_size, check_weight
from impl.quantizers.rules import RULES, sorted_rows, ternarize_rows
from impl.quantizers.weights import Quantized, allocate, blocks

# Beyond this many components the 3^k levels outnumber the weights of a row: the first ones are
# fitted jointly, then the rest to what they leave over.
MAX_JOINT_COMPONENTS = 5

# Largest level over largest magnitude, for starts with evenly spaced levels (scales in the ratio
# 1 : 1/3 : 1/9 ...). Rows with heavy tails want their levels nearer to zero.
_START_RANGES = (0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 1.0)
# Steps from each start before the worse one is given up, and then from the better one. On twelve
# matrices of SmolLM2-135M 4 + 12 come within 1 % of the error of 20 from both, in 0.7 (groups of 64)
# to 0.8 (rows) of the time.
_TRIAL_STEPS = 4
_MAX_STEPS = 12
_MIN_IMPROVEMENT = 5e-4  # relative, of a block's squared error in one step


def quantize_k_ternary(
    weight: Tensor,
    k: int,
    *,
    group_size: int | None = None,
    rule: str = "optimal",
    refit: bool = True,
    check_finite: bool = True,
) -> Quantized:
    """Sum of ``k`` ternary components of ``weight`` [rows, cols], scales per row or per group.

    Greedy with ``rule`` (see :data:`impl.quantizers.RULES`), then, with ``refit``, scales and codes
    fitted jointly; no row (or group) comes out with a larger squared error than greedy gave it.
    For k > 5 the refit fits five components at a time, each five to what those before leave over.
    """
    weight = check_weight(weight, check_finite=check_finite)
    check_components(k)
    check_group_size(group_size)
    check_choice("ternary rule", rule, RULES)
    codes, scales = allocate(weight, k, group_size)
    width = weight.shape[1] if group_size is None else min(group_size, weight.shape[1])
    # The tables of the refit have an entry per level and row: as many rows as fit with them.
    levels = 3 ** min(k, MAX_JOINT_COMPONENTS) if refit else 0
    for block in blocks(weight, group_size, cost=max(1, -(-levels // width))):
        x = block.values(weight)
        candidate = _greedy(x, k, rule)
        if refit:
            candidate = _refit(x, candidate, rule)
        block.store(codes, candidate.codes, scales, candidate.scales)
    return Quantized(codes, scales, group_size)


@dataclass(frozen=True, eq=False)
class _Solution:
    """Codes int8 [k, rows, n] and scales float32 [k, rows]."""

    codes: Tensor
    scales: Tensor

    def residual(self, x: Tensor) -> Tensor:
        """What decoding leaves over of ``x`` [rows, n]."""
        decoded = torch.zeros_like(x)
        for codes, scales in zip(self.codes, self.scales, strict=True):
            decoded += codes * scales.unsqueeze(-1)
        return x - decoded

    def squared_error(self, x: Tensor) -> Tensor:
        """Squared error of each row of ``x`` [rows, n], float64 [rows]."""
        return self.residual(x).to(torch.float64).square_().sum(dim=-1)


def _greedy(x: Tensor, k: int, rule: str) -> _Solution:
    residual = x.clone()
    parts = []
    for _ in range(k):
        codes, scale = ternarize_rows(residual, rule)
        residual -= codes * scale
        parts.append((codes, scale.squeeze(-1)))
    return _Solution(torch.stack([c for c, _ in parts]), torch.stack([s for _, s in parts]))


def _refit(x: Tensor, greedy: _Solution, rule: str) -> _Solution:
    k = greedy.codes.shape[0]
    joint = min(k, MAX_JOINT_COMPONENTS)
    if k == 1:
        candidate = _greedy(x, 1, "optimal")
    else:
        candidate = _assign(x, _fit_levels(x, greedy.scales[:joint]))
    if k > joint:
        rest = candidate.residual(x)
        tail = _refit(rest, _greedy(rest, k - joint, rule), rule)
        candidate = _Solution(
            torch.cat([candidate.codes, tail.codes]), torch.cat([candidate.scales, tail.scales])
        )
    # Measured on what is returned, after rounding to float32.
    better = candidate.squared_error(x) < greedy.squared_error(x)
    return _Solution(
        torch.where(better.unsqueeze(-1), candidate.codes, greedy.codes),
        torch.where(better, candidate.scales, greedy.scales),
    )


class _SortedRows:
    """What the joint refit needs of its rows: magnitudes in order, their prefix sums and energy.

    Levels and rows are symmetric about zero, so the magnitudes and the levels >= 0 are enough.
    """

    def __init__(self, x: Tensor) -> None:
        self.magnitudes = sorted_rows(x.abs())
        self.prefix = torch.nn.functional.pad(self.magnitudes.cumsum(-1, dtype=torch.float64), (1, 0))
        self.energy = self.magnitudes.to(torch.float64).square_().sum(-1)
        self.largest = self.magnitudes[:, -1:].to(torch.float64)

    def statistics(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """How many magnitudes lie nearest to each level [rows, L], and their sums; float64."""
        bounds = torch.searchsorted(self.magnitudes, _midpoints(levels).to(torch.float32))
        bounds = torch.nn.functional.pad(bounds, (1, 0))
        bounds = torch.nn.functional.pad(bounds, (0, 1), value=self.magnitudes.shape[-1])
        return bounds.diff(dim=-1).to(torch.float64), self.prefix.gather(-1, bounds).diff(dim=-1)

    def error(self, levels: Tensor, counts: Tensor, sums: Tensor) -> Tensor:
        """Squared error [rows] of rounding to the nearest level."""
        return self.energy + (levels * (levels * counts - 2 * sums)).sum(-1)


def _fit_levels(x: Tensor, greedy_scales: Tensor) -> Tensor:
    """Scales [rows, k], float32 and not negative, whose 3^k levels fit the rows of ``x`` best."""
    rows = _SortedRows(x)
    starts = (greedy_scales.T.to(torch.float64), _best_even_start(rows, greedy_scales.shape[0]))
    (first, first_error), (second, second_error) = (_alternate(rows, s, _TRIAL_STEPS) for s in starts)
    better = torch.where((first_error <= second_error).unsqueeze(-1), first, second)
    return _alternate(rows, better, _MAX_STEPS)[0].to(torch.float32)


def _best_even_start(rows: _SortedRows, k: int) -> Tensor:
    """Scales [rows, k] in the ratio 1 : 1/3 : 1/9 ..., of the best range among a few, row by row."""
    ratios = 3.0 ** -torch.arange(k, dtype=torch.float64, device=rows.energy.device)
    best_scales, best_error = torch.zeros_like(rows.largest * ratios), rows.energy
    for reach in _START_RANGES:
        scales = rows.largest * (ratios * (reach / float(ratios.sum())))
        levels, _ = _levels(scales)
        error = rows.error(levels, *rows.statistics(levels))
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scales = torch.where(better.unsqueeze(-1), scales, best_scales)
    return best_scales


def _alternate(rows: _SortedRows, scales: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Alternate nearest levels and least-squares scales; the best scales seen and their error."""
    k = scales.shape[-1]
    combinations = _combinations(k, scales.device)
    products = (combinations.unsqueeze(-1) * combinations.unsqueeze(-2)).view(-1, k * k)
    best_scales, best_error = scales, torch.full_like(rows.energy, torch.inf)
    for _ in range(steps):
        scales = scales.abs().sort(dim=-1, descending=True).values
        levels, order = _levels(scales)
        counts, sums = rows.statistics(levels)
        error = rows.error(levels, counts, sums)
        better = error < best_error
        gain = (best_error - error).clamp_min(0).sum()
        best_error = torch.where(better, error, best_error)
        best_scales = torch.where(better.unsqueeze(-1), scales, best_scales)
        if bool(gain <= _MIN_IMPROVEMENT * best_error.sum()):
            break
        # From the order of levels back to that of combinations: sums over codes are products.
        by_combination = combinations.new_zeros(2, len(order), len(combinations))
        by_combination[0].scatter_(-1, order, counts)
        by_combination[1].scatter_(-1, order, sums)
        scales = _solve_normal(by_combination[0] @ products, by_combination[1] @ combinations)
    return best_scales, best_error


def _assign(x: Tensor, scales: Tensor) -> _Solution:
    """The nearest of the 3^k levels of ``scales`` (float32 [rows, k]) for every weight."""
    levels, order = _levels(scales)
    nearest = torch.searchsorted(_midpoints(levels), x.abs())
    # A component with scale 0 has no say: its codes are 0.
    combinations = _combinations(scales.shape[-1], x.device).to(torch.int8)
    table = combinations[order] * (scales != 0).unsqueeze(-2)
    sign = x.sign().to(torch.int8)
    codes = torch.stack([table[..., c].gather(-1, nearest) * sign for c in range(scales.shape[-1])])
    return _Solution(codes, scales.T)


def _solve_normal(normal: Tensor, moments: Tensor) -> Tensor:
    """Solve the normal equations, [rows, k * k] and [rows, k]; k is small, rows are many.

    Elimination without pivoting, all rows at once. A component that depends on the ones before
    it (equal codes, no codes) has a pivot of zero and gets the scale 0: still a least-squares
    solution, as the right-hand side lies in the range of the matrix.
    """
    k = moments.shape[-1]
    matrix = normal.T.reshape(k, k, -1)  # rows of the weight last: contiguous arithmetic
    right = moments.T.contiguous()
    # Entries are integers up to n: rounding leaves less than this of a pivot that is truly zero.
    tolerance = 1e-10 * matrix.diagonal().T
    inverse_pivots = []
    for i in range(k):
        pivot = matrix[i, i]
        regular = pivot > tolerance[i]
        inverse = torch.where(regular, 1 / torch.where(regular, pivot, 1.0), 0.0)
        inverse_pivots.append(inverse)
        for j in range(i + 1, k):
            factor = matrix[j, i] * inverse
            matrix[j, i + 1 :] -= factor * matrix[i, i + 1 :]
            right[j] -= factor * right[i]
    solution = torch.zeros_like(right)
    for i in reversed(range(k)):
        known = (matrix[i, i + 1 :] * solution[i + 1 :]).sum(0)
        solution[i] = (right[i] - known) * inverse_pivots[i]
    return solution.T


def _levels(scales: Tensor) -> tuple[Tensor, Tensor]:
    """The levels >= 0 of ``scales`` [rows, k], ascending, and which combination each one is.

    Both are [rows, (3^k + 1) / 2]: of the 3^k levels, symmetric about zero, the upper half with
    the middle one.
    """
    combinations = _combinations(scales.shape[-1], scales.device)
    levels, order = (scales @ combinations.T.to(scales.dtype)).sort(dim=-1, stable=True)
    middle = combinations.shape[0] // 2
    return levels[:, middle:].contiguous(), order[:, middle:]


def _midpoints(levels: Tensor) -> Tensor:
    return (levels[:, 1:] + levels[:, :-1]) / 2


def _combinations(k: int, device: torch.device) -> Tensor:
    """All code vectors of k components, float64 [3^k, k]."""
    return torch.tensor(
        list(itertools.product((-1.0, 0.0, 1.0), repeat=k)), dtype=torch.float64, device=device
    )
