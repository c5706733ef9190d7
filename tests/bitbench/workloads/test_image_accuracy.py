"""A converted image classifier, end to end on the built-in tiny one. Synthetic images only."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from layer_specs import layer
from torch import nn

from bitbench.data.images import Split, load_images, load_test_images
from bitbench.errors import UserError
from bitbench.layers.base import LayerSpec
from bitbench.layers.quantized import Quantized
from bitbench.store.metrics import METRICS
from bitbench.suite.expand import expand
from bitbench.suite.schema import Suite
from bitbench.workloads import image_accuracy
from bitbench.workloads.base import Context, Session, Unsupported
from bitbench.workloads.image_accuracy import (
    ImageAccuracySession,
    ImageAccuracySpec,
    ImageAccuracyWorkload,
    as_numbers,
)

TINY = "tiny-resnet-random"
FIELDS = {"kind": "image_accuracy", "model": TINY, "images": "synthetic"}
TERNARY = {"kind": "ternary", "activation_bits": 8}
BLOCKS = {f"stages.{stage}.0.conv{n}" for stage in (0, 1) for n in (1, 2)} | {"stages.1.0.shortcut.0"}
Open = Callable[..., list[Session]]


def spec(**changes: Any) -> ImageAccuracySpec:
    return ImageAccuracySpec(**{**FIELDS, **changes})


def scored(open_points: Open, fields: dict[str, Any], **changes: Any) -> dict[str, Any]:
    session = open_points(spec(memory=False, **changes))[0]
    return session.measure("x", layer(**fields), 0).replicates["quality.right"]


class TestPoints:
    def test_accuracy_bytes_and_batches_have_points_of_their_own(self) -> None:
        own = {"model": TINY, "images": "synthetic"}
        found = ImageAccuracyWorkload().points(spec(batch=[1, 8], count=100))
        assert [(point.params, point.phase, point.replicate) for point in found] == [
            ({**own, "count": 100}, "once", "images"),
            ({**own, "measure": "memory"}, "once", "exact"),
            ({**own, "batch": 1}, "timed", "launches"),
            ({**own, "batch": 8}, "timed", "launches"),
        ]
        ends = ImageAccuracyWorkload().points(spec(stem="same", memory=False))
        assert [point.params for point in ends] == [{**own, "stem": "same"}]

    def test_quick_scores_a_few_images_and_times_one_batch(self) -> None:
        quick = ImageAccuracyWorkload().quick
        assert (quick(spec(batch=[4, 1])).count, quick(spec(batch=[4, 1])).batch) == (200, [4])
        assert quick(spec(count=50)).count == 50

    def test_estimates_follow_the_work(self) -> None:
        kind = ImageAccuracyWorkload()
        real = spec(model="cifar-resnet18", images="cifar10", batch=[1, 64])
        plain, ternary, components, binary = (
            [kind.estimate(real, point, layer(**fields)) for point in kind.points(real)]
            for fields in ({"kind": "linear"}, TERNARY, {"kind": "k_ternary", "k": 3}, {"kind": "binary"})
        )
        assert 20 < plain[0] < 300
        assert components[0] - ternary[0] > 5, "three components take long to fit"
        assert plain[1] == components[1] > 0, "what is kept is only read"
        assert binary[3] > binary[2] > 0
        assert plain[3] > binary[3]
        few = real.model_copy(update={"count": 100})
        assert kind.estimate(few, kind.points(few)[0], layer(kind="linear")) == pytest.approx(
            plain[0] / 100, rel=0.01
        )
        assert kind.data(real) == ["cifar-resnet18", "cifar10"]
        assert kind.data(spec()) == []
        assert kind.estimate_open(real, kind.points(real)[0]) > 0 == kind.estimate_open(spec(), None)

    def test_layers_of_equal_numerics_are_scored_once(self) -> None:
        suite = Suite.model_validate(
            {
                "schema": 1, "name": "s", "baseline": "linear", "workloads": [FIELDS],
                "layers": {
                    "linear": {"kind": "linear"}, "ternary": TERNARY,
                    "two-bit": {**TERNARY, "format": "two_bit"}, "signs": {**TERNARY, "activation_bits": 1},
                },
            }
        )  # fmt: skip
        plan = expand(suite)
        numerics = {case.layer: case.numerics for case in plan.cases_at(plan.points[0])}
        assert numerics["ternary"] == numerics["two-bit"]
        assert len(set(numerics.values())) == 3
        seconds = list(plan.case_seconds(plan.points[0]).values())
        assert seconds[2] == 0 < seconds[1]


class TestAccuracy:
    def test_the_float_network_is_scored_image_by_image(self, open_points: Open) -> None:
        """As told one by one from the logits of a network built another way."""
        from bitbench.data.classifiers import load_classifier

        right = scored(open_points, {"kind": "linear"}, count=130)
        test = load_test_images("synthetic")
        model = load_classifier(TINY).model
        with torch.inference_mode():
            expected = [
                float(int(model(torch.tensor(image)[None, None].float() / 255).argmax()) == label)
                for image, label in zip(test.images[:130], test.labels[:130], strict=True)
            ]
        assert right == expected
        assert 0 < sum(right) < 130

    def test_all_images_are_scored_unless_told_otherwise(self, open_points: Open) -> None:
        outcome = open_points(spec(memory=False))[0].measure("x", layer(kind="linear"), 0)
        assert outcome.metrics["quality.images"] == 500
        assert len(outcome.replicates["quality.right"]) == 500
        assert outcome.metrics["quality.accuracy"] == sum(outcome.replicates["quality.right"]) / 500
        assert set(outcome.metrics) | set(outcome.replicates) <= set(METRICS)
        assert outcome.kernel == "torch/conv2d/float32/cpu"
        assert scored(open_points, {"kind": "linear"}, count=130) == outcome.replicates["quality.right"][:130]

    @pytest.mark.parametrize(
        "fields", [TERNARY, {"kind": "binary"}, {"kind": "k_ternary", "k": 3}, {"kind": "latent_free"}]
    )
    def test_low_bit_networks_compute_something_else(self, open_points: Open, fields: dict[str, Any]) -> None:
        session = open_points(spec())[0]
        x = as_numbers(session.pixels[:16])
        with torch.inference_mode():
            plain, other = (session.converted(layer(**f)).model(x) for f in ({"kind": "linear"}, fields))
        assert not torch.allclose(plain, other, rtol=1e-3)
        assert torch.allclose(plain, session.classifier.model(x))

    def test_colours_reach_the_network_by_channel(self, open_points: Open, monkeypatch: Any) -> None:
        pixels = torch.randint(256, (5, 12, 12, 3), dtype=torch.uint8)
        split = Split(pixels.numpy(), torch.arange(5).byte().numpy())
        monkeypatch.setattr(image_accuracy, "load_test_images", lambda _: split)
        monkeypatch.setattr(ImageAccuracySession, "_require", lambda *_: None)
        session = open_points(spec())[0]
        assert torch.equal(session.pixels[3, 2, 7, 4], pixels[3, 7, 4, 2])
        assert as_numbers(session.pixels).max() <= 1

    def test_numbers_that_are_none_are_an_error(self, open_points: Open, monkeypatch: Any) -> None:
        session = open_points(spec())[0]
        session.classifier.model.head.bias[3] = float("nan")
        with pytest.raises(ArithmeticError, match="with x gives NaN"):
            session.measure("x", layer(kind="linear"), 0)


class TestCalibration:
    def test_points_name_it_and_quick_keeps_it(self) -> None:
        kind = ImageAccuracyWorkload()
        scored, memory = kind.points(spec(calibration=300))
        assert scored.params == {"model": TINY, "images": "synthetic", "calibration": 300}
        assert "calibration" not in memory.params
        assert kind.quick(spec(calibration=300)).calibration == 300
        more, less = (
            kind.estimate(one, kind.points(one)[0], layer(**TERNARY))
            for one in (spec(calibration=500), spec())
        )
        assert more > less

    def test_the_norms_read_what_the_converted_layers_give(self, open_points: Open) -> None:
        """Afterwards each norm gives mean 0 and deviation 1 over the images, before its own scale."""
        session = open_points(spec(calibration=300))[0]
        assert session.training.shape == (300, 1, 12, 12)
        converted = session.converted(layer(**TERNARY))
        before = session.classifier.model.stages[1][0].norm2.running_var.clone()
        image_accuracy.take_statistics(converted.model, session.training)
        outputs: list[torch.Tensor] = []
        converted.model.stages[1][0].norm2.register_forward_hook(lambda _, x, y: outputs.append(y))
        with torch.inference_mode():
            converted.model(as_numbers(session.training))
        assert outputs[0].mean(dim=(0, 2, 3)).abs().max() < 0.01
        assert (outputs[0].var(dim=(0, 2, 3)) - 1).abs().max() < 0.05
        assert torch.equal(session.classifier.model.stages[1][0].norm2.running_var, before)
        assert not any(module.training for module in converted.model.modules())

    def test_it_is_done_before_scoring_and_for_each_layer_anew(self, open_points: Open) -> None:
        plain = scored(open_points, {"kind": "linear"})
        session = open_points(spec(calibration=300))[0]
        first, other, again = (
            session.measure("x", layer(**fields), 0).replicates["quality.right"]
            for fields in ({"kind": "linear"}, TERNARY, {"kind": "linear"})
        )
        assert first == again
        assert first != plain
        assert first != other
        assert scored(open_points, {"kind": "linear"}, calibration=100) != first

    def test_the_training_images_are_the_first_ones_and_enough(self, open_points: Open) -> None:
        session = open_points(spec(calibration=5))[0]
        train = load_images("synthetic").train
        assert torch.equal(session.training[:, 0], torch.tensor(train.images[:5]))
        with pytest.raises(UserError, match="calibration 2001 is more than the 2000 training images"):
            open_points(spec(calibration=2001))


class TestConversion:
    @pytest.mark.parametrize(
        ("ends", "replaced"),
        [
            ({}, set()),
            ({"stem": "same"}, {"stem"}),
            ({"head": "same"}, {"head"}),
            ({"stem": "same", "head": "same"}, {"stem", "head"}),
        ],
    )
    def test_first_convolution_and_head_stay_float_unless_told_otherwise(
        self, open_points: Open, ends: dict[str, str], replaced: set[str]
    ) -> None:
        converted = open_points(spec(**ends))[0].converted(layer(**TERNARY))
        assert set(converted.layers) == BLOCKS | replaced
        for name, module in converted.model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                assert name in {"stem", "head"} - replaced
        assert all(converted.model.get_submodule(name) is layer for name, layer in converted.layers.items())

    def test_the_float_network_and_what_stays_float_are_shared(self, open_points: Open) -> None:
        session = open_points(spec(head="same"))[0]
        before = {name: p.clone() for name, p in session.classifier.model.state_dict().items()}
        converted = session.converted(layer(**TERNARY))
        assert converted.model.stem.weight is session.classifier.model.stem.weight
        assert converted.model.norm.running_var is session.classifier.model.norm.running_var
        after = session.classifier.model.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())

    def test_a_run_converts_once(self, open_points: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another process, and an entry with another head, read what the first one kept."""
        calls = 0
        convert = Quantized.convert_conv2d

        def counted(self: Quantized, spec: Any, conv: nn.Conv2d) -> nn.Module:
            nonlocal calls
            calls += 1
            return convert(self, spec, conv)

        monkeypatch.setattr(Quantized, "convert_conv2d", counted)
        fields = {"kind": "k_ternary", "k": 2, "activation_bits": 8, "scale_dtype": "float16"}
        first = open_points(spec())[0].converted(layer(**fields))
        again = open_points(spec(head="same"))[0].converted(layer(**fields))
        assert calls == len(BLOCKS)
        x = torch.rand(3, 1, 12, 12)
        head = first.model.head
        with torch.inference_mode():
            again.model.head = head
            assert torch.equal(first.model(x), again.model(x))

    def test_what_has_no_convolution_says_so(self, open_points: Open) -> None:
        session = open_points(spec())[0]
        for fields, message in (
            ({"kind": "torch_int8"}, "there is no convolution of it"),
            ({"kind": "k_ternary", "group_size": 64}, "leave group_size out"),
            ({"kind": "latent_free", "form": "training"}, "no latent-free training form"),
        ):
            with pytest.raises(Unsupported, match=message):
                session.converted(layer(**fields))


class TestBytes:
    def test_of_the_replaced_weights_and_of_the_network(self, open_points: Open) -> None:
        session = open_points(spec())[1]
        plain = session.measure("x", layer(kind="linear"), 0).metrics
        assert plain["memory.weight_bytes"] == 4 * (72 * 8 * 2 + 72 * 16 + 144 * 16 + 8 * 16)
        assert (plain["memory.bits_per_weight"], plain["memory.weight_ratio"]) == (32, 1)
        assert (plain["memory.model_ratio"], plain["memory.file_ratio"]) == (1, 1)
        packed = session.measure("x", layer(**TERNARY), 0).metrics
        assert packed["memory.weight_ratio"] == pytest.approx(32 / packed["memory.bits_per_weight"])
        assert packed["memory.weight_ratio_bf16"] == packed["memory.weight_ratio"] / 2
        assert 1 < packed["memory.model_ratio"] < packed["memory.weight_ratio"] < 20
        assert 1 < packed["memory.file_ratio"] < 20
        assert set(packed) <= set(METRICS)
        with_ends = open_points(spec(stem="same", head="same"))[1].measure("x", layer(**TERNARY), 0).metrics
        assert with_ends["memory.model_bytes"] < packed["memory.model_bytes"]


def test_what_does_not_fit_together_is_refused(open_points: Open, monkeypatch: Any) -> None:
    for changes, message in (
        ({"count": 501}, "count 501 is more than the 500 test images of synthetic"),
        ({"batch": [600]}, "batch 600 is more than"),
    ):
        with pytest.raises(UserError, match=message):
            open_points(spec(**changes))
    split = load_test_images("synthetic")
    with monkeypatch.context() as patch:
        colour = Split(split.images[..., None].repeat(3, axis=-1), split.labels)
        patch.setattr(image_accuracy, "load_test_images", lambda _: colour)
        with pytest.raises(
            UserError, match="12 x 12 pixels in grey, synthetic holds 12 x 12 pixels in colour"
        ):
            open_points(spec())
    monkeypatch.setattr(image_accuracy, "load_test_images", lambda _: Split(split.images, split.labels + 3))
    with pytest.raises(UserError, match="tells 10 classes apart, synthetic has 13"):
        open_points(spec())


def test_bad_entries_are_refused() -> None:
    for fields, message in (
        ({"model": "cifar-resnet"}, "did you mean 'cifar-resnet18'"),
        ({"images": "cifar"}, "did you mean 'cifar10'"),
        ({"count": 2}, "greater than or equal to 3"),
        ({"batch": [0]}, "greater than or equal to 1"),
        ({"head": "binary"}, "'float' or 'same'"),
        ({"steam": "same"}, "Extra inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageAccuracySpec(**{**FIELDS, **fields})


def test_what_a_device_cannot_run_is_unsupported(tmp_path: Path) -> None:
    layers: dict[str, LayerSpec] = {}
    session = ImageAccuracyWorkload().open(spec(), {}, Context("cpu", 1, 0, tmp_path, layers, "linear"))
    session.context = Context("cuda", 1, 0, tmp_path, layers, "linear")
    with pytest.raises(Unsupported, match="avx2 names instructions of a CPU"):
        session.converted(layer(kind="binary", isa="avx2"))


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from bitbench.workloads.registry import get\n"
        "from bitbench.layers.registry import get as layer\n"
        "kind = get('image_accuracy'); one = layer('ternary').spec(kind='ternary')\n"
        "spec = kind.spec(kind='image_accuracy', model='cifar-resnet18', images='cifar10', batch=[1])\n"
        "print([kind.estimate(spec, p, one) for p in kind.points(kind.quick(spec))], kind.data(spec))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
