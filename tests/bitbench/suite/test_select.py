"""Selections: equality, alternatives, and what they are not."""

from __future__ import annotations

from typing import Any

import pytest

from bitbench.store.schema import Case
from bitbench.suite.select import counterpart, describe, holds, matches, selects


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
    assert holds({"threads": None, "tokens": 1}, case.params), "null: those without it"
    assert not holds({"tokens": None}, case.params)
    assert holds({"threads": [1, None]}, case.params)


def test_the_counterpart_differs_in_what_is_named_and_in_nothing_else() -> None:
    def case(id: str, layer: str = "ternary", *, entry: int = 0, **params: Any) -> Case:
        return Case(
            id=id, point=f"p-{entry}-{params}", workload="linear", entry=entry, phase="timed",
            replicate="launches", launches=5, layer=layer, params={"shape": [2, 2], **params}, numerics="n",
        )  # fmt: skip

    plain, other = case("a", tokens=1), case("b", "linear", tokens=1)
    one, busy = case("c", tokens=1, threads=1), case("d", tokens=1, threads=1, neighbours="all")
    cases = [plain, other, one, busy]
    assert counterpart({"layer": "linear"}, plain, cases) == other
    assert counterpart({"threads": 1}, plain, cases) == one
    assert counterpart({"threads": None}, one, cases) == plain
    assert counterpart({"neighbours": None}, busy, cases) == one
    assert counterpart({"neighbours": None, "threads": None, "layer": "linear"}, busy, cases) == other
    # The same params in another entry, with a bias say.
    elsewhere = case("e", tokens=1, threads=1, entry=1)
    assert counterpart({"threads": 1}, plain, [*cases, elsewhere]) == one
    assert counterpart({"threads": 1}, plain, [plain, elsewhere]) == elsewhere
    assert (
        counterpart({"threads": 1}, plain, [plain, elsewhere, case("f", tokens=1, threads=1, entry=2)])
        is None
    )
    assert counterpart({"layer": "linear"}, plain, [plain, case("g", "linear", tokens=1, entry=1)]) is None
    assert counterpart({"threads": 2}, plain, cases) is None
    assert counterpart({"layer": "linear"}, one, cases) is None
    assert (
        describe({"shape": [2, 2], "threads": None, "layer": ["a"]}) == "shape=2x2, no threads, layer=['a']"
    )


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
