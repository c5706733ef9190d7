"""Selections: equality, alternatives, and what they are not."""

from __future__ import annotations

from typing import Any

import pytest

from bitbench.store.schema import Case
from bitbench.suite.select import holds, matches, selects


@pytest.mark.parametrize(
    ("wanted", "value", "same"),
    [
        (1, 1, True),
        (1, 2, False),
        ([1, 16], 16, True),
        ([1, 16], 2, False),
        ([64, 32], [64, 32], True),
        ([64, 32], [32, 64], False),
        ([[64, 32], [8, 8]], [8, 8], True),
        ([[64, 32], [8, 8]], [9, 9], False),
        ([64, 32], 64, True),
        (True, 1, False),
        (1, True, False),
        (True, True, True),
        ("1", 1, False),
        ([], 1, False),
    ],
)
def test_matches(wanted: Any, value: Any, same: bool) -> None:
    assert matches(wanted, value) is same


def test_every_key_must_match_and_missing_keys_select_nothing() -> None:
    case = Case(
        id="c", point="p", workload="linear", entry=0, phase="timed", replicate="launches", launches=5,
        layer="ternary", params={"tokens": 1}, numerics="n",
    )  # fmt: skip
    assert selects({}, case)
    assert selects({"layer": ["binary", "ternary"], "workload": "linear", "tokens": 1}, case)
    assert not selects({"layer": "ternary", "tokens": 2}, case)
    assert not selects({"cache": "hot"}, case)
    assert holds({"tokens": [1, 2]}, case.params)
    assert not holds({"layer": "ternary"}, case.params)


def test_a_float_head_is_selected_where_params_leave_it_out() -> None:
    def of(workload: str, **params: Any) -> Case:
        return Case(
            id="c", point="p", workload=workload, entry=0, phase="timed", replicate="launches", launches=5,
            layer="ternary", params=params, numerics="n",
        )  # fmt: skip

    for workload in ("decode", "perplexity"):
        assert selects({"head": "float"}, of(workload))
        assert not selects({"head": "same"}, of(workload))
        assert selects({"head": ["same", "float"]}, of(workload))
        assert not selects({"head": "float"}, of(workload, head="same"))
        assert selects({"head": "same"}, of(workload, head="same"))
    assert not selects({"head": "float"}, of("linear"))
