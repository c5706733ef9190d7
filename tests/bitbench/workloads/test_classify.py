"""Training a classifier: paired across layers, scored on images never trained on. Synthetic images only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layer_specs import layer

from bitbench.data.images import ImageSet, Split, load_images
from bitbench.errors import UserError
from bitbench.execute.outcome import of_exception
from bitbench.layers import registry
from bitbench.store.metrics import METRICS
from bitbench.store.schema import Status
from bitbench.suite.expand import settings
from bitbench.workloads import image_network, training
from bitbench.workloads.base import Context, Incorrect, Outcome, PointPlan, Unsupported
from bitbench.workloads.classify import ClassifySession, ClassifySpec, ClassifyWorkload
from bitbench.workloads.classify_speed import NetworkSession
from bitbench.workloads.network_subject import NetworkSubject
from impl import native
from impl.layers.quantized import QuantizedLayer

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
        if self.training:
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
    values = made.images.normalised(made.images.train[0])
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
        ({"widths": [8, 16]}, "widths is no field of network: mlp"),
        ({"ends": "same"}, "ends is no field of network: mlp"),
        ({"network": "resnet"}, "hidden is no field of network: resnet"),
        ({"network": "resnet", "hidden": 256, "widths": [8, 16]}, "as many of both"),
        ({"network": "resnet", "hidden": 256, "widths": [8], "blocks": [0]}, "at least 1"),
        ({"timed_batch": [0]}, "greater than or equal to 1"),
        ({"train_images": 1}, "greater than or equal to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            ClassifySpec.model_validate(SPEC.model_dump() | fields)


# --- the residual network -------------------------------------------------------------------------

RESNET = ClassifySpec(
    kind="classify",
    images="synthetic",
    network="resnet",
    widths=[8, 16],
    blocks=[1, 1],
    epochs=2,
    batch=50,
    lr=1e-2,
)


def residual(tmp_path: Path, fields: dict[str, Any], **changes: Any) -> dict[str, float]:
    context = Context("cpu", 1, 0, tmp_path, {}, "linear")
    made = ClassifyWorkload().open(RESNET.model_copy(update=changes), {}, context)
    return made.measure("x", layer(**fields), 0).metrics


@pytest.mark.parametrize("spec", [SPEC, RESNET], ids=lambda spec: spec.network)
def test_images_may_have_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: ClassifySpec) -> None:
    """One channel holds the picture, the others noise: a network that mixed them up would learn nothing."""
    grey = load_images("synthetic")
    draw = np.random.default_rng(0)

    def coloured(split: Split) -> Split:
        images = draw.integers(0, 256, (*split.images.shape, 3), dtype=np.uint8)
        images[..., 1] = split.images
        return Split(images, split.labels)

    colours = ImageSet(coloured(grey.train), coloured(grey.test))
    monkeypatch.setattr(image_network, "load_images", lambda _: colours)
    context = Context("cpu", 1, 0, tmp_path, {}, "linear")
    made = ClassifyWorkload().open(spec, {}, context)
    assert isinstance(made, ClassifySession)
    assert made.images.train[0].shape == (2000, 3, 12, 12)
    assert torch.equal(made.images.test[0][:, 1], torch.tensor(grey.test.images))
    assert made.measure("x", layer(kind="linear"), 0).metrics["training.accuracy"] > 0.5


def test_its_points_say_what_it_is() -> None:
    kind = ClassifyWorkload()
    spec = RESNET.model_copy(update={"timed_batch": [1, 20], "train_images": 500, "ends": "same"})
    network = {"images": "synthetic", "network": "resnet", "widths": "8-16", "blocks": "1-1", "ends": "same"}
    assert kind.points(spec) == [
        PointPlan({**network, "train_images": 500, "epochs": 2}, "once", "seeds", launches=5),
        PointPlan({**network, "batch": 1}, "timed", "launches"),
        PointPlan({**network, "batch": 20}, "timed", "launches"),
    ]
    quick = kind.quick(spec.model_copy(update={"images": "mnist", "train_images": None}))
    assert (quick.seeds, quick.epochs, quick.train_images, quick.timed_batch) == (1, 1, 10_000, [1])
    assert kind.quick(spec).train_images == 500
    whole = spec.model_copy(update={"images": "mnist", "train_images": None})
    linear, ternary = layer(kind="linear"), layer(kind="ternary")
    [point, *timed] = kind.points(whole)
    assert 10 < kind.estimate(whole, point, linear) < kind.estimate(whole, point, ternary) < 300
    assert kind.estimate(whole.model_copy(update={"autocast": True}), point, linear) < kind.estimate(
        whole, point, linear
    )
    assert all(0 < kind.estimate(whole, one, ternary) < 2 for one in timed)
    assert all(kind.estimate_on_gpu(whole, one, ternary) > 0 for one in (point, *timed))


def test_entries_of_before_keep_their_ids() -> None:
    """Fields that came later are part of what an entry is only where they say something."""
    assert settings(SPEC) == {
        "images": "synthetic", "hidden": 24, "epochs": 2, "batch": 50, "first_seed": 0, "lr": 1e-2,
    }  # fmt: skip
    timed = SPEC.model_copy(update={"timed_batch": [8]})
    assert settings(timed) == settings(SPEC)
    assert settings(RESNET)["widths"] == [8, 16]
    assert settings(SPEC.model_copy(update={"autocast": True}))["autocast"] is True


@pytest.mark.parametrize(
    "fields", [{"kind": "linear"}, *KINDS[1:]], ids=lambda f: "-".join(map(str, f.values()))
)
def test_it_learns_with_every_kind_and_packs_to_the_same_classes(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    metrics = residual(tmp_path, fields)
    assert set(metrics) <= set(METRICS)
    assert metrics["training.accuracy"] > 0.5
    assert metrics["training.packed_agreement"] >= 0.999
    assert abs(metrics["training.packed_accuracy"] - metrics["training.accuracy"]) <= 1e-3
    ratio = metrics["memory.model_ratio"]
    assert ratio == 1 if fields["kind"] == "linear" else 3 < ratio < 20


def test_its_ends_stay_float_unless_the_entry_says_otherwise(tmp_path: Path) -> None:
    for ends, wanted in (("float", 5), ("same", 7)):
        made = ClassifyWorkload().open(
            RESNET.model_copy(update={"ends": ends}), {}, Context("cpu", 1, 0, tmp_path, {}, "linear")
        )
        assert isinstance(made, ClassifySession)
        spec = layer(kind="ternary")
        model: Any = made._network(registry.get("ternary"), spec, 0)
        assert sum(isinstance(part, QuantizedLayer) for part in model.modules()) == wanted
        assert isinstance(model.stem, torch.nn.Conv2d) == (ends == "float")
        assert isinstance(model.head, torch.nn.Linear) == (ends == "float")


def test_layers_that_see_only_signs_are_not_given_relu(tmp_path: Path) -> None:
    made = ClassifyWorkload().open(RESNET, {}, Context("cpu", 1, 0, tmp_path, {}, "linear"))
    assert isinstance(made, ClassifySession)
    for bits, wanted in ((1, torch.nn.functional.hardtanh), (8, torch.nn.functional.relu)):
        model: Any = made._network(registry.get("binary"), layer(kind="binary", activation_bits=bits), 0)
        assert model.activation is wanted


def test_fewer_images_and_shorter_floats_are_as_asked_for(tmp_path: Path) -> None:
    context = Context("cpu", 1, 0, tmp_path, {}, "linear")
    made = ClassifyWorkload().open(RESNET.model_copy(update={"train_images": 120}), {}, context)
    assert isinstance(made, ClassifySession)
    assert (made.steps_per_epoch, len(made.images.train[1])) == (2, 120)
    assert len(made.images.test[1]) == 500
    plain, short = (residual(tmp_path, {"kind": "ternary"}, epochs=1, autocast=on) for on in (False, True))
    assert plain["training.loss"] != short["training.loss"]
    assert short["training.accuracy"] > 0.3


def test_a_packed_network_that_classifies_otherwise_is_incorrect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two components fitted anew to the latent weight are no longer what was trained."""
    import impl

    fields = {"kind": "k_ternary", "k": 2}
    assert residual(tmp_path, fields, epochs=1)["training.packed_agreement"] >= 0.999
    monkeypatch.setattr("bitbench.workloads.classify.packed", impl.pack)
    with pytest.raises(Incorrect, match="of 500 images otherwise than as it was trained") as caught:
        residual(tmp_path, fields, epochs=1)
    assert of_exception(caught.value)[0] is Status.INCORRECT


def test_packing_keeps_what_training_used() -> None:
    made = registry.get("k_ternary").trainable(layer(kind="k_ternary"), 33, 20, bias=False)
    before = made.dequantize()
    assert torch.equal(training.packed(made).dequantize(), before)


def test_what_cannot_be_trained_in_it_says_so(tmp_path: Path) -> None:
    for fields, message in (
        ({"kind": "torch_int8"}, "no convolution to train"),
        ({"kind": "linear", "dtype": "bfloat16"}, "float32 throughout"),
        ({"kind": "ternary", "group_size": 8}, "group_size=8"),
        ({"kind": "binary", "activation_bits": 1, "signs": True}, "without `signs`"),
    ):
        with pytest.raises(Unsupported, match=message):
            residual(tmp_path, fields)


# --- its speed ------------------------------------------------------------------------------------

TIMED: list[dict[str, Any]] = [
    {"kind": "linear"},
    {"kind": "binary", "activation_bits": 1},
    {"kind": "ternary"},
    {"kind": "ternary", "form": "training"},
    {"kind": "k_ternary"},
    {"kind": "latent_free"},
]


def subject_of(tmp_path: Path, fields: dict[str, Any], spec: ClassifySpec, batch: int = 7) -> NetworkSubject:
    context = Context("cpu", 1, 0, tmp_path, {}, "linear")
    made = ClassifyWorkload().open(spec, {"batch": batch}, context)
    assert isinstance(made, NetworkSession)
    return made.build("x", layer(**fields))


@pytest.mark.parametrize("spec", [SPEC, RESNET], ids=lambda spec: spec.network)
@pytest.mark.parametrize("fields", TIMED, ids=lambda fields: "-".join(map(str, fields.values())))
@torch.inference_mode()
def test_timed_networks_are_packed_and_right(
    tmp_path: Path, fields: dict[str, Any], spec: ClassifySpec
) -> None:
    subject = subject_of(tmp_path, fields, spec)
    check = subject.check()
    assert check.passed, check
    assert check.compared > 3 * 10
    assert subject.call().shape == (7, 10)
    kind = registry.get(fields["kind"])
    said = {kind.dispatch(layer(**fields), name)["packed"] for name in subject.kernel.split(", ")}
    assert said == {"no" if fields["kind"] == "linear" or "form" in fields else "yes"}
    if native.available():
        assert subject.fallback() is None


@torch.inference_mode()
def test_a_batch_may_be_larger_than_the_test_set_and_wrong_layers_are_caught(tmp_path: Path) -> None:
    subject = subject_of(tmp_path, {"kind": "ternary"}, RESNET, batch=501)
    assert subject.call().shape == (501, 10)
    assert torch.equal(subject.x[0], subject.x[500])
    seen: Any = next(iter(subject.converted.layers.values()))
    seen.register_forward_hook(lambda _, __, y: y * 1.001)
    assert not subject.check().passed


@pytest.mark.parametrize(
    "entry",
    [
        "kind='classify', images='mnist'",
        "kind='classify', images='mnist', network='resnet', timed_batch=[1]",
        "kind='train_step', shapes=[[64, 32]], tokens=[8]",
    ],
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
