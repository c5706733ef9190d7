"""Every record says what served it; what another kernel served than required is no result."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bitbench.execute.dispatch import dispatch_of, names, unmet
from bitbench.execute.jobs import Setting, timed_job
from bitbench.execute.judge import Judgement, judge
from bitbench.layers import registry
from bitbench.layers.base import LayerKind
from bitbench.measure.clock import Series
from bitbench.measure.neighbours import Neighbours
from bitbench.measure.roofline import Peaks, Ruler, Work
from bitbench.store.reader import RunData
from bitbench.store.schema import Record, Status
from bitbench.workloads.base import Subject

NATIVE = "ternary_linear/base3/int8/gemv/avx512"
TORCH = "ternary_linear/base3/int8/reference/torch"


def spec_of(kind: str, **fields: Any) -> Any:
    return registry.get(kind).spec.model_validate({"kind": kind, **fields})


def test_kernels_that_served_one_case_are_taken_apart_together() -> None:
    kind = registry.get("ternary")
    both = f"{NATIVE}, {NATIVE.replace('gemv', 'gemm')}"
    assert dispatch_of(kind, spec_of("ternary"), both) == {
        "backend": "native",
        "isa": "avx512",
        "operator": "ternary_linear",
        "packed": "yes",
        "format": "base3",
        "activations": "int8",
        "road": "gemv+gemm",
    }
    assert dispatch_of(kind, spec_of("ternary"), "") == {}
    assert names(both) == [NATIVE, NATIVE.replace("gemv", "gemm")]


@pytest.mark.parametrize(
    ("layer", "entry", "kernel", "met"),
    [
        (None, None, TORCH, True),
        ("native", None, NATIVE, True),
        ("avx512", None, NATIVE, True),
        ("avx2", None, NATIVE, False),
        ("native", None, TORCH, False),
        ("native", None, f"{NATIVE}, {TORCH}", False),
        ("native", None, "", False),
        ("torch", None, TORCH, True),
        (None, "native", NATIVE, True),
        (None, "native", TORCH, False),
        ("native", "avx2", NATIVE, False),
    ],
)
def test_every_kernel_must_be_the_required_one(
    layer: str | None, entry: str | None, kernel: str, met: bool
) -> None:
    spec = spec_of("ternary", require_backend=layer)
    reason = unmet(registry.get("ternary"), spec, {"require_backend": entry}, kernel)
    assert (reason is None) == met
    if reason is not None:
        assert f"requires {entry if layer in (None, 'native') and entry else layer}" in reason


def test_an_entry_leaves_alone_what_its_backend_never_serves() -> None:
    kernel = "torch/linear/float32/cpu"
    assert unmet(registry.get("linear"), spec_of("linear"), {"require_backend": "native"}, kernel) is None
    assert unmet(registry.get("linear"), spec_of("linear"), {"require_backend": "torch"}, kernel) is None


class Timed(Subject):
    def __init__(self, kernel: str = "fake/kernel", **says: Any) -> None:
        self.kernel = kernel
        self.says = says

    def call(self) -> None:
        raise AssertionError("unused")

    check = call

    def fallback(self) -> str | None:
        return self.says.get("fallback")

    def invalid(self) -> str | None:
        return self.says.get("invalid")

    def work(self) -> Work | None:
        return self.says.get("work")


def judged(plan: Any, subject: Subject, seconds: float = 1.0) -> Judgement:
    job = timed_job(plan, Setting("cpu", 1, "", {}), 0, {(case.id, 0) for case in plan.cases})
    peaks = Peaks(read_bytes_per_s=1e9, fp32_per_s=1e9)
    series: Any = SimpleNamespace(
        samples_ns=[round(seconds * 1e9)] * 3, calls=1, utilisation=lambda threads: 1.0
    )
    assert set(Series.__dataclass_fields__) >= {"samples_ns", "calls"}
    ruler = Ruler(peaks, lambda: peaks)
    return judge(subject, series, job, ruler, visit=job.visits[0], layer="a", neighbours=Neighbours(0))


def test_levels_become_notes_and_statuses(plan_of: Any) -> None:
    plan = plan_of({"a": {}})
    cold = Work(10**9, 1, "fp32", from_memory=True)
    fine = judged(plan, Timed(work=cold), 2.0)
    assert (fine.status, fine.notes, fine.reason) == (Status.OK, [], "")
    assert fine.metrics["roofline.share"] == pytest.approx(0.5)
    near = judged(plan, Timed(work=cold), 0.95)
    assert near.status is Status.OK
    assert [note.partition(":")[0] for note in near.notes] == ["suspicious"]
    wrong = judged(plan, Timed(work=cold), 0.5)
    assert wrong.status is Status.INVALID
    assert "came from a cache" in wrong.reason
    assert judged(plan, Timed()).notes == []


def test_what_says_most_is_told_first(plan_of: Any) -> None:
    cold = Work(10**9, 1, "fp32", from_memory=True)
    everything = Timed(work=cold, invalid="too small", fallback="another kernel ran")
    assert judged(plan_of({"a": {}}), everything, 0.5).status is Status.FALLBACK
    small = judged(plan_of({"a": {}}), Timed(work=cold, invalid="too small"), 0.5)
    assert (small.status, small.reason) == (Status.INVALID, "too small")


def by_layer(run: RunData) -> dict[str, Record]:
    layers = {case.id: case.layer for case in run.cases}
    return {layers[record.case]: record for record in run.records}


@pytest.mark.parametrize("where", ["layer", "entry"])
def test_a_run_refuses_what_another_kernel_served(
    plan_of: Any, run_of: Any, tmp_path: Path, where: str
) -> None:
    asked = {"require_backend": "kernel"}
    own = asked if where == "layer" else {}
    plan = plan_of(
        {"good": own, "other": {**own, "served_by": "fake/other"}}, **(asked if where == "entry" else {})
    )
    found = by_layer(run_of(plan, tmp_path / "run"))
    assert found["good"].status is Status.OK
    assert found["good"].dispatch == {"backend": "kernel"}
    assert found["other"].status is Status.FALLBACK
    assert found["other"].dispatch == {"backend": "other"}
    what = "layer" if where == "layer" else "workload"
    assert found["other"].reason == f"fake/other served the call; the {what} requires kernel"
    assert found["other"].samples_ns, "what was measured is kept"


def test_what_is_measured_once_is_held_to_it_too(plan_of: Any, run_of: Any, tmp_path: Path) -> None:
    plan = plan_of({"a": {"require_backend": "kernel"}}, timed=0, exact=1)
    found = by_layer(run_of(plan, tmp_path / "run"))
    assert found["a"].status is Status.FALLBACK
    assert "does not say what served" in found["a"].reason


@pytest.mark.parametrize("kind", ["linear", "torch_int8", "binary", "ternary", "k_ternary"])
def test_kinds_name_every_backend_they_can_tell(kind: str) -> None:
    """What a kind says of a kernel name lies within what a suite may require of it."""
    found: LayerKind = registry.get(kind)
    samples = {
        "linear": ["torch/linear/bfloat16/cuda"],
        "torch_int8": ["torch/quantized_linear_dynamic/onednn"],
        "binary": ["binary_linear/binary/sign/gemm/avx2", "binary_linear/latent/torch"],
        "ternary": [NATIVE, TORCH, "ternary_linear/two_bit/float/decode+mm/portable"],
        "k_ternary": [NATIVE],
    }[kind]
    for name in samples:
        said = found.dispatch(spec_of(kind), name)
        assert {said["backend"], said.get("isa", said["backend"])} <= set(found.backends)
        assert said["packed"] in ("yes", "no")
    for strange in ("", "x", "torch", "ternary_linear/base3", "other/linear/float32/cpu"):
        assert found.dispatch(spec_of(kind), strange) == {}
