from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.analysis.discovery import benjamini_hochberg

P = st.lists(st.floats(0, 1), max_size=40)


def test_by_hand() -> None:
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
    assert benjamini_hochberg([]) == []
    assert benjamini_hochberg([0.2]) == [0.2]


@given(P)
def test_it_only_ever_weakens_and_keeps_the_order(p: list[float]) -> None:
    adjusted = benjamini_hochberg(p)
    assert all(a >= b - 1e-15 for a, b in zip(adjusted, p, strict=True))
    assert all(0 <= a <= 1 for a in adjusted)
    for i in range(len(p)):
        for j in range(len(p)):
            assert p[i] > p[j] or adjusted[i] <= adjusted[j]


@given(P, st.sampled_from([0.01, 0.05, 0.2]))
def test_it_rejects_what_the_step_up_rule_rejects(p: list[float], level: float) -> None:
    """The rule as Benjamini and Hochberg state it: the largest k with p_(k) <= k / m * level."""
    ranked = sorted(p)
    wanted = max((k for k in range(1, len(p) + 1) if ranked[k - 1] * len(p) / k <= level), default=0)
    assert sum(a <= level for a in benjamini_hochberg(p)) >= wanted
    assert sum(a <= level for a in benjamini_hochberg(p)) == sum(
        x <= (ranked[wanted - 1] if wanted else -1.0) for x in p
    )


@given(P)
def test_more_company_never_makes_a_value_stand_out_more(p: list[float]) -> None:
    assert all(
        more >= less - 1e-15
        for more, less in zip(benjamini_hochberg([*p, 1.0]), benjamini_hochberg(p), strict=False)
    )
