"""Accuracies that moved: which way is better depends on the figure."""

from __future__ import annotations

import pytest

from bitbench.analysis.moved import compare_figure
from bitbench.analysis.statistics import Series
from bitbench.analysis.verdicts import Word
from bitbench.store.schema import Case

CASE = Case(
    id="c",
    point="p",
    workload="classify",
    entry=0,
    phase="once",
    replicate="seeds",
    launches=4,
    layer="ternary",
    params={},
    numerics="n",
)
SEEDS = (0.0, 1e-4, -1e-4, 5e-5)


@pytest.mark.parametrize(
    ("metric", "factor", "moved"),
    [
        ("training.accuracy", 0.9, "worse"),
        ("training.accuracy", 1.02, "better"),
        ("training.accuracy", 1.001, ""),
        ("training.bits_per_byte", 0.9, "better"),
        ("training.bits_per_byte", 1.1, "worse"),
        ("training.bits_per_byte", 1.001, ""),
    ],
)
@pytest.mark.parametrize("seeds", [4, 1], ids=["by interval", "by value"])
def test_an_accuracy_moves_the_way_its_metric_says(
    metric: str, factor: float, moved: str, seeds: int
) -> None:
    base = Series({i: 0.95 + x for i, x in enumerate(SEEDS[:seeds])}, "linear")
    head = Series({i: factor * value - SEEDS[i] / 2 for i, value in base.values.items()}, "linear")
    found = compare_figure(CASE, metric, base, head, "base")
    assert found.moved == moved
    assert found.verdict.word is (Word.MOVED if moved else Word.SAME)
    assert found.regressed == (moved == "worse")
