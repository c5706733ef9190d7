"""A converted classifier as it is timed: called on the images it should be, right in every layer, and wrong
layers caught. Synthetic images only; ``classify`` times its own networks in ``test_classify.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layer_specs import layer
from torch import nn

from bitbench.data.images import load_test_images
from bitbench.layers import registry
from bitbench.workloads.base import Session
from bitbench.workloads.image_accuracy import ImageAccuracySpec
from bitbench.workloads.network_subject import NetworkSubject

FIELDS = {"kind": "image_accuracy", "model": "tiny-resnet-random", "images": "synthetic", "memory": False}
TERNARY = {"kind": "ternary", "activation_bits": 8}
BLOCKS = {f"stages.{stage}.0.conv{n}" for stage in (0, 1) for n in (1, 2)} | {"stages.1.0.shortcut.0"}
Open = Callable[..., list[Session]]
LAYERS: list[dict[str, Any]] = [
    {"kind": "linear"},
    {"kind": "linear", "dtype": "bfloat16"},
    {"kind": "binary"},
    {"kind": "binary", "activation_bits": 1},
    {**TERNARY, "format": "two_bit"},
    {"kind": "ternary", "activation_bits": None},
    {"kind": "k_ternary", "k": 3},
    {"kind": "k_ternary", "k": 2, "form": "training"},
]


def subject_of(open_points: Open, fields: dict[str, Any], **changes: Any) -> NetworkSubject:
    session = open_points(ImageAccuracySpec(**{**FIELDS, "batch": [7], **changes}))[1]
    subject = session.build("x", layer(**fields))
    assert isinstance(subject, NetworkSubject)
    return subject


@pytest.mark.parametrize("fields", LAYERS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_every_replaced_layer_is_checked_while_the_network_runs(
    open_points: Open, fields: dict[str, Any]
) -> None:
    subject = subject_of(open_points, fields, stem="same", head="same")
    assert subject.call().shape == (7, 10)
    check = subject.check()
    assert check.passed, check
    described = layer(**fields)
    assert check.tolerance <= registry.get(described.kind).tolerance(described, 144), "its widest sum"
    # Three of seven images: stem, both blocks of each stage and the shortcut, and the head.
    places = 8 * 144 * 3 + 16 * 36 * 3 + 10
    ends = 8 * 144 + 10 if fields == {"kind": "linear"} else 0  # which stay what they are
    assert check.compared == 3 * (places - ends)
    assert subject.fallback() is None
    assert subject.kernel


def test_the_calls_are_on_the_first_test_images(open_points: Open) -> None:
    subject = subject_of(open_points, {"kind": "linear"})
    first = torch.tensor(load_test_images("synthetic").images[:7])[:, None].float() / 255
    assert torch.equal(subject.x, first)


def test_float_convolutions_are_given_the_memory_format_that_suits_them(open_points: Open) -> None:
    for fields in LAYERS[:2]:
        model = subject_of(open_points, fields).converted.model
        inputs: list[torch.Tensor] = []
        weights = [part.weight for part in model.modules() if isinstance(part, nn.Conv2d)]
        model.stages[1][0].conv2.register_forward_hook(lambda _, x, y, to=inputs: to.extend((x[0], y)))
        model(torch.rand(2, 1, 12, 12))
        assert all(x.is_contiguous(memory_format=torch.channels_last) for x in (*weights, *inputs))


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_a_wrong_layer_anywhere_does_not_pass(open_points: Open, name: str) -> None:
    subject = subject_of(open_points, TERNARY)
    wrong = subject.converted.layers[name]
    forward = wrong.forward
    wrong.forward = lambda x: forward(x) * 1.01
    assert not subject.check().passed


def test_a_wrong_image_of_the_batch_does_not_pass(open_points: Open) -> None:
    subject = subject_of(open_points, TERNARY)
    layer = subject.converted.layers["stages.0.0.conv2"]
    forward = layer.forward

    def last_one_is_wrong(x: torch.Tensor) -> torch.Tensor:
        y = forward(x)
        y[-1, 3, 5, 5] += y.abs().max()
        return y

    layer.forward = last_one_is_wrong
    assert not subject.check().passed


def test_logits_that_are_no_numbers_do_not_pass(open_points: Open) -> None:
    session = open_points(ImageAccuracySpec(**FIELDS, batch=[7]))[1]
    session.classifier.model.head.bias[0] = float("inf")
    assert not session.build("x", layer(**TERNARY)).check().passed
