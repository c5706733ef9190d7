"""Shape sets and what a shape may be."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from bitbench.suite.shapes import SHAPE_SETS, Shapes, check_shape

ADAPTER: TypeAdapter[list[list[int]]] = TypeAdapter(Shapes)


@pytest.mark.parametrize("name", SHAPE_SETS)
def test_named_sets_hold_possible_distinct_shapes(name: str) -> None:
    shapes = ADAPTER.validate_python(name)
    assert shapes == SHAPE_SETS[name]
    assert [check_shape(s) for s in shapes] == shapes
    assert len({tuple(s) for s in shapes}) == len(shapes)


def test_a_suites_own_set_goes_before_a_named_one() -> None:
    own = {"squares": [[3, 3]]}
    assert ADAPTER.validate_python("squares", context={"shapes": own}) == [[3, 3]]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("square", "did you mean 'squares'?"),
        ([[64, 0]], "in_features must be from 1 to 1048576, not 0"),
        ([[-1, 4]], "out_features must be from 1"),
        ([[1 << 20, 1 << 20]], "the limit is 4294967296"),
        ([[4]], "two whole numbers"),
        ([64, 64], "write [[64, 64]]"),
        ([], "is empty"),
    ],
)
def test_impossible_shapes(value: Any, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python(value)
    assert said in str(caught.value)
