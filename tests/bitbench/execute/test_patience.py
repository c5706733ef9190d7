"""How long a silent worker is waited for: the estimate, or what the suite says."""

from __future__ import annotations

from typing import Any

import pytest

from bitbench.execute.patience import Limits, Patience

LIMITS = Limits(start=7, least=3, factor=2)


def waits(plan: Any) -> dict[str, float]:
    patience = Patience(plan, LIMITS)
    return {case.layer: patience.of(case.point, case.id) for case in plan.cases}


def test_the_estimate_of_the_point_has_a_floor(plan_of: Any) -> None:
    assert waits(plan_of({"a": {}, "b": {}}, estimate=0.01)) == {"a": 3, "b": 3}
    assert waits(plan_of({"a": {}, "b": {}}, estimate=10.0)) == {"a": 40, "b": 40}


def test_an_entry_overrides_the_estimate_and_a_layer_overrides_the_entry(plan_of: Any) -> None:
    plan = plan_of({"a": {}, "b": {"timeout": 0.5}}, estimate=10.0, timeout=90)
    assert waits(plan) == {"a": 90, "b": 0.5}
    assert Patience(plan, LIMITS).of(plan.points[0].id) == 90
    assert waits(plan_of({"a": {}, "b": {"timeout": 50}}, timeout=2)) == {"a": 2, "b": 50}


def test_the_start_of_a_worker_is_no_part_of_a_point(plan_of: Any) -> None:
    assert Patience(plan_of({"a": {}}, timeout=1), LIMITS).of() == 7


def test_conditions_of_a_measurement_change_no_id(plan_of: Any) -> None:
    plain = plan_of({"a": {}})
    strict = plan_of({"a": {"timeout": 3, "require_backend": "kernel"}}, timeout=2, require_backend="kernel")
    assert [case.id for case in plain.cases] == [case.id for case in strict.cases]
    assert [case.numerics for case in plain.cases] == [case.numerics for case in strict.cases]


@pytest.mark.parametrize("seconds", [0, -1])
def test_no_time_at_all_is_refused(plan_of: Any, seconds: int) -> None:
    with pytest.raises(ValueError, match="timeout"):
        plan_of({"a": {"timeout": seconds}})
