"""What the tests of bitorch_engine's binary layers share: signs, layers by form, images of any geometry."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from impl.compat.bitorch_engine import (
    BinaryConv2dCutlass,
    BinaryLinearBase,
    BinaryLinearCPP,
    BinaryLinearCuda,
    BinaryLinearCutlass,
)

# Linear layers without and with scales and a shift of the activations.
PLAIN = [BinaryLinearBase, BinaryLinearCPP]
SCALED = [BinaryLinearCuda, BinaryLinearCutlass]


def is_scaled(cls):
    return cls in (*SCALED, BinaryConv2dCutlass)


def sign(x):
    return torch.where(x >= 0, 1.0, -1.0)


def calibrated(cls, *arguments, **options):
    """A layer with random scales and shift, float weight."""
    layer = cls(*arguments, **options)
    if is_scaled(cls):
        with torch.no_grad():
            layer.scale_a.fill_(1.25)
            layer.scale_w.copy_(torch.rand_like(layer.scale_w) + 0.5)
            layer.bias_a.normal_(std=0.3)
    return layer


def forms(cls):
    """The forms that a layer's weight takes."""
    return ["float", "packed", *(["prepared"] if is_scaled(cls) else [])]


def in_form(layer, form, x):
    """``layer`` in one of its forms, the scale of its activations set by ``x``."""
    layer(x)
    if form == "prepared":
        layer.prepare_params()
    if form == "packed":
        layer.generate_quantized_weight(qweight_only=True)
    return layer


@st.composite
def convolutions(draw):
    """Channels, kernel and so on, and an image that is at least as large as the dilated kernel."""
    groups = draw(st.integers(1, 3))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, dilation, stride = draw(pair), draw(pair), draw(pair)
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    size = [
        max(1, reach * (taps - 1) + 1 - 2 * side) + draw(st.integers(0, 4))
        for taps, reach, side in zip(kernel, dilation, padding, strict=True)
    ]
    return {
        "arguments": (
            groups * draw(st.integers(1, 11)),
            groups * draw(st.integers(1, 4)),
            kernel,
            stride,
            padding,
            dilation,
        ),
        "options": {
            "groups": groups,
            "bias": draw(st.booleans()),
            "padding_value": draw(st.sampled_from([-1.0, 0.0, 1.0])),
        },
        "image": (draw(st.integers(0, 3)), *size),
    }
