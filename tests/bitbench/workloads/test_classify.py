"""Training a classifier: paired across layers, scored on images never trained on. Synthetic images only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from layer_specs import layer

from bitbench.errors import UserError
from bitbench.store.metrics import METRICS
from bitbench.workloads.base import Context, Outcome, PointPlan, Unsupported
from bitbench.workloads.classify import ClassifySession, ClassifySpec, ClassifyWorkload

SPEC = ClassifySpec(kind="classify", images="synthetic", hidden=24, epochs=2, batch=50, lr=1e-2)
KINDS: list[dict[str, Any]] = [
    {"kind": "linear", "dtype": "bfloat16"},
    {"kind": "binary", "activation_bits": 8},
    {"kind": "binary", "activation_bits": 1},
    {"kind": "ternary", "activation_bits": 8},
    {"kind": "k_ternary", "k": 2, "activation_bits": 8},
    {"kind": "latent_free", "activation_bits": 8},
    {"kind": "latent_free", "activation_bits": None, "storage": "byte"},
]


def session(tmp_path: Path, **changes: Any) -> ClassifySession:
    made = ClassifyWorkload().open(
        SPEC.model_copy(update=changes), {}, Context("cpu", 1, 0, tmp_path, {}, "linear")
    )
    assert isinstance(made, ClassifySession)
    return made


def measure(tmp_path: Path, seed: int = 0, fields: dict[str, Any] | None = None, **changes: Any) -> Outcome:
    return session(tmp_path, **changes).measure("x", layer(**(fields or {"kind": "linear"})), seed)


def test_points_ask_for_one_record_a_seed() -> None:
    kind = ClassifyWorkload()
    params = {"images": "synthetic", "hidden": 24, "epochs": 2}
    assert kind.points(SPEC) == [PointPlan(params, "once", "seeds", launches=5)]
    default = ClassifySpec(kind="classify", images="mnist")
    quick = kind.quick(default)
    assert (quick.seeds, quick.epochs) == (1, 1)
    assert kind.data(SPEC) == []
    assert kind.data(quick) == ["mnist"]
    seconds = kind.estimate(default, kind.points(default)[0], layer(kind="ternary"))
    assert kind.estimate(SPEC, kind.points(SPEC)[0], layer(kind="linear")) < 1
    assert 1 < kind.estimate(default, kind.points(default)[0], layer(kind="linear")) < seconds < 30


def test_training_tells_the_classes_apart(tmp_path: Path) -> None:
    outcome = measure(tmp_path)
    assert outcome.metrics["training.accuracy"] > 0.9
    assert outcome.metrics["training.seconds"] > 0
    assert set(outcome.metrics) <= set(METRICS)
    # With a step so small that nothing is learned, one image in ten is right by luck.
    assert measure(tmp_path, lr=1e-12).metrics["training.accuracy"] < 0.4


@pytest.mark.parametrize("fields", KINDS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_every_kind_learns(tmp_path: Path, fields: dict[str, Any]) -> None:
    metrics = measure(tmp_path, 0, fields, epochs=4).metrics
    assert metrics["training.accuracy"] > 0.8
    assert metrics != measure(tmp_path, 0, epochs=4).metrics


def test_a_seed_gives_the_same_number_and_another_seed_another(tmp_path: Path) -> None:
    one, same, other = (measure(tmp_path, seed, epochs=1).metrics for seed in (4, 4, 5))
    assert one["training.loss"] == same["training.loss"]
    assert one["training.accuracy"] == same["training.accuracy"]
    assert one["training.loss"] != other["training.loss"]
    shifted = measure(tmp_path, 0, epochs=1, first_seed=4).metrics
    assert shifted["training.loss"] == one["training.loss"]


def test_layers_of_one_seed_start_equal_and_see_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from impl.models.mlp import MLP

    seen: dict[str, list[torch.Tensor]] = {}
    starts: dict[str, torch.Tensor] = {}
    name = ""
    forward = MLP.forward

    def spy(self: MLP, x: torch.Tensor) -> torch.Tensor:
        starts.setdefault(name, self.layers[0].weight.detach().clone())
        seen.setdefault(name, []).append(x.clone())
        return forward(self, x)

    monkeypatch.setattr(MLP, "forward", spy)
    for name, fields in (  # noqa: B007 - the spy reads it
        ("linear", {"kind": "linear"}),
        ("ternary", {"kind": "ternary"}),
        ("flips", {"kind": "latent_free"}),
    ):
        measure(tmp_path, 1, fields, epochs=1)
    for other in ("ternary", "flips"):
        assert all(torch.equal(a, b) for a, b in zip(seen["linear"], seen[other], strict=True))
    assert torch.equal(starts["linear"], starts["ternary"])
    assert torch.equal(starts["linear"] >= 0, starts["flips"].dequantize() >= 0)
    assert not torch.equal(seen["linear"][0], seen["linear"][1])


def test_every_image_is_seen_once_an_epoch_and_normalised(tmp_path: Path) -> None:
    made = session(tmp_path)
    values = made._normalised(made.train[0])
    assert abs(float(values.mean())) < 1e-3
    assert float(values.std()) == pytest.approx(1, abs=1e-3)
    assert made.steps_per_epoch == 40
    assert session(tmp_path, batch=60).steps_per_epoch == 33  # the last 20 fill no batch


def test_what_cannot_be_trained_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="inference"):
        measure(tmp_path, 0, {"kind": "torch_int8"})
    with pytest.raises(UserError, match="has 2000 to train on, less than a batch of 4000"):
        session(tmp_path, batch=4000)


def test_divergence_is_an_error_and_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = session(tmp_path, epochs=1)
    monkeypatch.setattr(ClassifySession, "_fit", lambda *_: float("nan"))
    with pytest.raises(ArithmeticError, match="training x diverged"):
        made.measure("x", layer(kind="linear"), 0)


def test_bad_entries_are_refused() -> None:
    for fields, message in (
        ({"images": "mnits"}, "did you mean 'mnist'"),
        ({"lr": 0.0}, "greater than 0"),
        ({"batch": 1}, "greater than or equal to 2"),
        ({"epoch": 3}, "Extra inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            ClassifySpec.model_validate(SPEC.model_dump() | fields)


@pytest.mark.parametrize(
    "entry", ["kind='classify', images='mnist'", "kind='train_step', shapes=[[64, 32]], tokens=[8]"]
)
def test_planning_needs_no_torch(entry: str) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from bitbench.workloads.registry import get\n"
        "from bitbench.layers.registry import get as layer\n"
        f"fields = dict({entry}); kind = get(fields['kind']); spec = kind.spec(**fields)\n"
        "one = layer('latent_free').spec(kind='latent_free')\n"
        "layer('latent_free').cost(one, 8, 8)\n"
        "print([kind.estimate(spec, p, one) for p in kind.points(kind.quick(spec))], kind.data(spec))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
