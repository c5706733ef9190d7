"""What the checks of layers share: no wrong output passes, whatever the right one is."""

from __future__ import annotations

import math

import pytest
import torch

from bitbench.layers import registry
from bitbench.workloads.layer_check import Comparison, Made, poison


def compare(*parts: tuple[list[float], list[float]]) -> Comparison:
    comparison = Comparison()
    for got, exact in parts:
        comparison.add(torch.tensor(got), torch.tensor(exact, dtype=torch.float64))
    return comparison


def test_the_largest_difference_counts_against_the_largest_output() -> None:
    check = compare(([1.0, 2.5], [1.0, 2.0]), ([-4.0], [-4.0])).check(0.2, sound=True)
    assert (check.passed, check.max_error, check.tolerance, check.compared) == (True, 0.125, 0.2, 3)
    assert not compare(([1.0, 2.5], [1.0, 2.0])).check(0.2, sound=True).passed


@pytest.mark.parametrize(
    ("got", "exact", "sound"),
    [
        ([1.0, math.nan], [1.0, 2.0], True),
        ([1.0, math.inf], [1.0, 2.0], True),
        ([1.0, 2.0], [1.0, math.nan], True),
        ([1.0, 2.0], [1.0, 2.0], False),
        ([0.0, 1e-9], [0.0, 0.0], True),
    ],
)
def test_what_is_no_number_or_not_sound_is_infinitely_wrong(
    got: list[float], exact: list[float], sound: bool
) -> None:
    check = compare((got, exact), ([3.0], [3.0]) if exact[0] else ([0.0], [0.0])).check(10.0, sound=sound)
    assert not check.passed
    assert check.max_error == math.inf


def test_all_zero_is_right_where_all_is_zero() -> None:
    check = compare(([0.0, 0.0], [0.0, 0.0])).check(0.0, sound=True)
    assert check.passed
    assert check.max_error == 0.0


def test_a_layer_falls_back_where_one_of_its_kernels_does() -> None:
    kind = registry.get("ternary")
    spec = kind.spec.model_validate({"kind": "ternary"})
    made = Made(kind, spec, torch.nn.Identity(), rows=4, columns=8)
    native = "ternary_linear/base3/int8/gemv/avx2"
    reference = "ternary_linear/base3/int8/torch"
    assert kind.fallback(spec, native) is None
    assert made.fallback(native) is None
    assert made.fallback(f"{native}, {reference}") == kind.fallback(spec, reference) is not None
    assert made.cost == kind.cost(spec, 8, 4)
    assert made.tolerance == kind.tolerance(spec, 8)
    assert made.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_of_the_output_is_left_full_of_nan(dtype: torch.dtype) -> None:
    filled: list[torch.Tensor] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = func(*args, **(kwargs or {}))
            if func in (torch.Tensor.fill_, torch.Tensor.new_full):
                filled.append(result)
            return result

    with Watch():
        poison(torch.ones(3, 5, dtype=dtype), (3, 7))
    assert [(tuple(t.shape), t.dtype) for t in filled] == [
        *[((3, 7), dtype)] * 2,
        ((3, 7), torch.float32),
    ]
    assert all(t.isnan().all() for t in filled)
