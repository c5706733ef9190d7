"""A step of training: forward, backward and update of one layer, checked, timed and weighed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from layer_specs import layer

from bitbench.layers import registry
from bitbench.store.metrics import METRICS
from bitbench.workloads.base import Context, Unsupported
from bitbench.workloads.train_step import (
    TrainStepSession,
    TrainStepSpec,
    TrainStepSubject,
    TrainStepWorkload,
)
from impl.optim import DiodeMix

SPEC = TrainStepSpec(kind="train_step", shapes=[[24, 40]], tokens=[9])
KINDS: list[dict[str, Any]] = [
    {"kind": "linear"},
    {"kind": "linear", "dtype": "bfloat16"},
    {"kind": "binary", "activation_bits": 1},
    {"kind": "binary", "activation_bits": 8},
    {"kind": "ternary", "activation_bits": None},
    {"kind": "ternary", "activation_bits": 8},
    {"kind": "k_ternary", "k": 2, "activation_bits": 8},
    {"kind": "latent_free", "activation_bits": 8},
    {"kind": "latent_free", "activation_bits": None, "storage": "byte"},
]
every_kind = pytest.mark.parametrize("fields", KINDS, ids=lambda f: "-".join(map(str, f.values())))


def session(
    tmp_path: Path, shape: tuple[int, int] = (24, 40), tokens: int = 9, **changes: Any
) -> TrainStepSession:
    params = {"shape": list(shape), "tokens": tokens}
    spec = SPEC.model_copy(update=changes)
    return TrainStepWorkload().open(spec, params, Context("cpu", 1, 5, tmp_path, {}, "linear"))


def subject(tmp_path: Path, fields: dict[str, Any], **changes: Any) -> TrainStepSubject:
    return session(tmp_path, **changes).build("x", layer(**fields))


def test_each_shape_and_batch_is_timed_and_weighed() -> None:
    kind = TrainStepWorkload()
    spec = TrainStepSpec(kind="train_step", shapes=[[8, 4], [4, 8]], tokens=[1, 3])
    points = kind.points(spec)
    assert [point.phase for point in points] == ["timed", "once"] * 4
    assert points[1].params == {"shape": [8, 4], "tokens": 1, "measure": "memory"}
    assert points[1].replicate == "exact"
    assert len(kind.points(spec.model_copy(update={"memory": False}))) == 4
    assert len(kind.points(kind.quick(spec))) == 2
    for point in points:
        assert 0 < kind.estimate(spec, point, layer(kind="linear")) < 1


@every_kind
@pytest.mark.parametrize("bias", [False, True])
def test_a_step_is_checked_in_the_clock_s_inference_mode(
    tmp_path: Path, fields: dict[str, Any], bias: bool
) -> None:
    made = subject(tmp_path, fields, bias=bias)
    with torch.inference_mode():
        before = made.check()
        for _ in range(3):
            y = made.call()
        after = made.check()
    assert tuple(y.shape) == (9, 24)
    assert before.passed, before
    assert after.passed, after
    assert before.compared == 9 * 24
    assert registry.get(fields["kind"]).dispatch(layer(**fields), made.kernel)["backend"] == "torch"
    assert made.fallback() is None
    # Nothing of a step is left but what it learned.
    assert all(parameter.grad is None for parameter in made.module.parameters())


@every_kind
def test_a_step_descends(tmp_path: Path, fields: dict[str, Any]) -> None:
    """The given gradient of the output is that of the sum of its products with the output: this must
    fall, by very little where the learning rate is as small as it is, by flips where weights flip."""
    made = subject(tmp_path, fields)
    gradient = made._output_gradient
    for group in made._optimiser.param_groups:
        group["lr"] = max(group["lr"], 1e-2)

    def value() -> float:
        with torch.no_grad():
            return float((made.module(made._x) * gradient).sum())

    before = value()
    for _ in range(60):
        made.call()
    assert value() < before - 1


@pytest.mark.parametrize(("shape", "tokens"), [((1, 1), 1), ((3, 7), 1), ((13, 31), 33), ((600, 8), 2)])
@pytest.mark.parametrize("fields", [KINDS[0], KINDS[3], KINDS[7]], ids=["linear", "binary", "latent-free"])
def test_any_shape_passes_its_check(
    tmp_path: Path, fields: dict[str, Any], shape: tuple[int, int], tokens: int
) -> None:
    assert subject(tmp_path, fields, shape=shape, tokens=tokens).check().passed


def test_wrong_outputs_missing_gradients_and_broken_updates_fail_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fresh() -> TrainStepSubject:
        made = subject(tmp_path, {"kind": "linear"})
        assert made.check().passed
        return made

    made = fresh()
    forward = made.module.forward
    monkeypatch.setattr(made.module, "forward", lambda x: forward(x) * (1 + 1e-3))
    assert not made.check().passed
    made = fresh()
    made.module.weight.requires_grad_(False)  # frozen behind the optimizer's back: x still has a gradient
    assert made.check().passed
    made._x.requires_grad_(False)
    made.module.weight.requires_grad_(True)
    assert not made.check().passed
    made = fresh()
    made._optimiser.param_groups[0]["lr"] = float("nan")
    assert not made.check().passed
    made = fresh()
    made._output_gradient.zero_()
    assert not made.check().passed


def test_the_update_belongs_to_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for fields, optimiser in (
        (KINDS[0], torch.optim.AdamW),
        (KINDS[3], torch.optim.AdamW),
        (KINDS[7], DiodeMix),
    ):
        made = subject(tmp_path, fields)
        assert type(made._optimiser) is optimiser
        steps: list[int] = []
        real = made._optimiser.step
        monkeypatch.setattr(made._optimiser, "step", lambda: (steps.append(1), real()))  # noqa: B023
        made.call()
        made.call()
        assert len(steps) == 2


def test_what_is_kept_between_steps_is_counted_to_the_byte(tmp_path: Path) -> None:
    def kept(**fields: Any) -> float:
        outcome = session(tmp_path, bias=True).measure("x", layer(**fields), 0)
        assert set(outcome.metrics) <= set(METRICS)
        assert outcome.kernel
        return outcome.metrics["memory.training_bytes"]

    weights, outputs, step = 24 * 40, 24, 4
    # Weight, two averages, and AdamW's count of steps; the same of the bias.
    assert kept(kind="linear") == 12 * (weights + outputs) + 2 * step
    assert kept(kind="ternary") == 12 * (weights + outputs) + 2 * step
    flipped = 8 * weights + 4 * outputs + step + 12 * outputs + step
    assert kept(kind="latent_free", storage="byte") == weights + flipped
    assert kept(kind="latent_free", storage="bit") == weights / 8 + flipped


def test_the_peak_of_a_step_holds_the_gradient_and_the_output(tmp_path: Path) -> None:
    rows, cols, tokens = 1024, 1024, 256
    made = session(tmp_path, shape=(rows, cols), tokens=tokens)
    metrics = made.measure("x", layer(kind="linear"), 0).metrics
    least = 4 * rows * cols + 4 * tokens * rows
    assert least <= metrics["memory.peak_bytes"] < 4 * least
    total = metrics["memory.training_bytes"] + metrics["memory.peak_bytes"]
    assert metrics["memory.training_peak_bytes"] == total


def test_layers_get_the_same_batch(tmp_path: Path) -> None:
    made = session(tmp_path)
    one, other, narrow = (
        made.build("x", layer(**fields))
        for fields in (KINDS[0], KINDS[5], {"kind": "linear", "dtype": "bfloat16"})
    )
    assert torch.equal(one._x, other._x)
    assert torch.equal(one._output_gradient, other._output_gradient)
    assert torch.equal(one._x.detach().bfloat16(), narrow._x.detach())
    assert one.work() == other.work()
    assert one.work().operations == 6 * 24 * 40 * 9
    assert narrow.work().compute == "bf16"


def test_what_cannot_be_trained_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="inference"):
        subject(tmp_path, {"kind": "torch_int8"})
