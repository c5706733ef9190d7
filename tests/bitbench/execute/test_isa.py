"""A layer that names an instruction set gets that one and no other, and leaves the process as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitbench.execute.isa import own_isa, use_isa
from bitbench.execute.jobs import Setting, once_groups, once_job, timed_job
from bitbench.execute.once import measure_point
from bitbench.execute.timed import PointClock
from bitbench.layers import registry
from bitbench.layers.base import LayerSpec
from bitbench.measure.clock import Budget
from bitbench.measure.roofline import Peaks, Rulers
from bitbench.store.schema import Record, Status
from bitbench.suite.expand import expand
from bitbench.suite.schema import Suite
from bitbench.workloads.base import Unsupported
from impl import native

LAYERS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear"},
    "ternary": {"kind": "ternary"},
    "plain": {"kind": "ternary", "isa": "portable"},
    "binary": {"kind": "binary", "isa": "portable", "activation_bits": 1},
    "foreign": {"kind": "ternary", "isa": "neon"},
}

needs_native = pytest.mark.skipif(
    not native.available(), reason="no native library: a C++ compiler builds it"
)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = native.isa() if native.available() else ""
    yield
    if before:
        assert native.isa() == before


def spec_of(**fields: Any) -> LayerSpec:
    return registry.get("ternary").spec.model_validate({"kind": "ternary", **fields})


def plan_of(workload: dict[str, Any], layers: dict[str, dict[str, Any]] = LAYERS) -> Any:
    return expand(
        Suite.model_validate(
            {"schema": 1, "name": "isas", "baseline": "linear", "launches": 1, "layers": layers}
            | {"workloads": [workload]}
        )
    )


def run(plan: Any, tmp_path: Path) -> dict[str, Record]:
    missing = {(case.id, 0) for case in plan.cases}
    records: list[Record] = []
    if plan.points[0].phase == "timed":
        job = timed_job(plan, Setting("cpu", 1, str(tmp_path), {}), 0, missing)
        rulers = Rulers({}, lambda threads: Peaks())
        for visit in job.visits:
            PointClock(job, visit, records.append, lambda *_: None, rulers, Budget(0.01, 100_000)).run()
    else:
        (group,) = once_groups(plan)
        job = once_job(plan, Setting("cpu", 1, str(tmp_path), {}), 0, group, missing)
        for visit in job.visits:
            measure_point(job, visit, records.append, lambda *_: None)
    layer_of = {case.id: case.layer for case in plan.cases}
    return {layer_of[record.case]: record for record in records}


@needs_native
def test_every_call_of_a_layer_is_served_by_its_own_instruction_set(tmp_path: Path) -> None:
    plan = plan_of({"kind": "linear", "shapes": [[40, 64]], "tokens": [3], "memory": False})
    records = run(plan, tmp_path)
    assert {layer: record.status for layer, record in records.items() if layer != "foreign"} == {
        layer: Status.OK for layer in LAYERS if layer != "foreign"
    }
    # One kernel each: what was checked, before and after, is what was timed.
    assert records["plain"].kernel.endswith("/portable")
    assert records["binary"].dispatch["isa"] == "portable"
    assert records["ternary"].dispatch["isa"] == native.isa()
    assert not [record.kernel for record in records.values() if ", " in record.kernel]


@needs_native
def test_bytes_and_whole_models_too(tmp_path: Path) -> None:
    layers = {name: LAYERS[name] for name in ("linear", "ternary", "plain")}
    workload = {"kind": "linear", "shapes": [[40, 64]], "exclude": [{"tokens": 1}]}
    records = run(plan_of(workload, layers), tmp_path)
    assert records["plain"].kernel.endswith("/portable")
    assert records["ternary"].dispatch["isa"] == native.isa()


@needs_native
def test_one_that_is_not_there_is_unsupported_and_names_those_that_are(tmp_path: Path) -> None:
    absent = next(isa for isa in ("neon", "avx2") if isa not in native.supported_isas())
    with own_isa(), pytest.raises(Unsupported, match=f"isa: {absent} is not usable.*portable"):
        use_isa(spec_of(isa=absent))
    layers = {"linear": LAYERS["linear"], "foreign": {"kind": "ternary", "isa": absent}}
    plan = plan_of({"kind": "linear", "shapes": [[40, 64]], "memory": False}, layers)
    assert run(plan, tmp_path)["foreign"].status is Status.UNSUPPORTED


@needs_native
def test_what_was_chosen_for_the_process_is_given_back() -> None:
    before = native.isa()
    with own_isa():
        use_isa(spec_of(isa="portable"))
        assert native.isa() == "portable"
        use_isa(spec_of())
        assert native.isa() == before
        use_isa(spec_of(isa="portable"))
    assert native.isa() == before
    try:
        native.select_isa("portable")
        with own_isa():
            use_isa(spec_of(isa=before))
            assert native.isa() == before
        assert native.isa() == "portable"
    finally:
        native.select_isa(before)


def test_the_torch_reference_is_no_instruction_set() -> None:
    with native.backend("torch"), own_isa(), pytest.raises(Unsupported, match="BITIMPL_BACKEND=torch"):
        use_isa(spec_of(isa="portable"))


def test_without_kernels_there_is_nothing_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "why_not", lambda: "no compiler")
    with own_isa(), pytest.raises(Unsupported, match="no compiler"):
        use_isa(spec_of(isa="portable"))


def test_another_kernel_than_that_of_the_instruction_set_is_a_fallback() -> None:
    kind = registry.get("ternary")
    served = "ternary_linear/base3/int8/gemv/avx512"
    assert kind.fallback(spec_of(), served) is None
    assert kind.fallback(spec_of(isa="avx512"), served) is None
    for other in (served, "ternary_conv/base3/int8/gemm/avx512"):
        assert "not a native avx2" in str(kind.fallback(spec_of(isa="avx2"), other))


def test_a_layer_without_one_is_what_it_was_before_there_was_a_choice() -> None:
    assert "isa" not in spec_of().model_dump(mode="json")
    assert spec_of(isa="avx2").model_dump(mode="json")["isa"] == "avx2"
    cases = plan_of({"kind": "linear", "shapes": [[4, 8]], "memory": False}).cases
    ids = {case.layer: (case.id, case.numerics) for case in cases}
    assert ids["ternary"][0] != ids["plain"][0]
    assert ids["ternary"][1] == ids["plain"][1], "the numbers are the same on every instruction set"


def test_the_training_form_has_no_instruction_set() -> None:
    with pytest.raises(ValueError, match="training form"):
        spec_of(isa="avx2", form="training")
