"""Trained convolutions converted by each layer kind: what they build stands in for what was there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bitbench.layers import registry
from bitbench.layers.base import LayerSpec
from bitbench.workloads.base import Unsupported

SPECS: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear"},
    "bf16": {"kind": "linear", "dtype": "bfloat16"},
    "binary": {"kind": "binary", "scale": "tensor"},
    "binary-w1a1": {"kind": "binary", "activation_bits": 1},
    "latent-free": {"kind": "latent_free"},
    "ternary": {"kind": "ternary", "format": "two_bit"},
    "ternary-float": {"kind": "ternary", "activation_bits": None},
    "ternary-training": {"kind": "ternary", "form": "training"},
    "k2": {"kind": "k_ternary", "k": 2, "scale_dtype": "float16"},
}


def spec_of(fields: dict[str, Any]) -> LayerSpec:
    return registry.get(fields["kind"]).spec.model_validate(fields)


def trained(*, bias: bool, kernel: int = 3) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(24, 10, kernel, stride=2, padding=kernel // 2, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [3, 1])
@pytest.mark.parametrize("name", SPECS)
@torch.inference_mode()
def test_a_converted_convolution_stands_in_for_the_float_one(name: str, bias: bool, kernel: int) -> None:
    spec = spec_of(SPECS[name])
    kind = registry.get(spec.kind)
    conv = trained(bias=bias, kernel=kernel)
    before = {key: value.clone() for key, value in conv.state_dict().items()}
    module = kind.convert_conv2d(spec, conv)
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    x = torch.randn(3, 24, 9, 7)
    y, plain, exact = module(x), conv(x), kind.conv2d_reference(spec, module, x)
    assert (y.dtype, y.shape) == (x.dtype, plain.shape)
    assert all(torch.equal(conv.state_dict()[key], value) for key, value in before.items())
    assert float((y - exact).abs().max() / exact.abs().max()) <= kind.tolerance(spec, 24 * kernel**2)
    assert (module.bias is not None) == bias
    # Even one bit a weight and an activation keeps the direction of the output.
    cosine = torch.cosine_similarity(y.flatten(), plain.flatten(), dim=0)
    assert cosine > {"binary-w1a1": 0.5, "linear": 1 - 1e-6, "bf16": 0.999}.get(name, 0.75)
    assert kind.fallback(spec, kind.kernel(module)) is None
    assert kind.dispatch(spec, kind.kernel(module))


@torch.inference_mode()
def test_one_wrong_weight_is_noticed() -> None:
    spec = spec_of(SPECS["ternary"])
    kind = registry.get("ternary")
    module = kind.convert_conv2d(spec, trained(bias=False))
    x = torch.randn(2, 24, 9, 9)
    y = module(x)
    module.codes[5] ^= 1
    exact = kind.conv2d_reference(spec, module, x)
    assert float((y - exact).abs().max() / exact.abs().max()) > kind.tolerance(spec, 24 * 9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "torch_int8"}, "a torch_int8 layer is a matrix product: there is no convolution of it"),
        ({"kind": "binary", "group_size": 64}, "leave group_size out"),
        ({"kind": "latent_free", "form": "training"}, "no latent-free training form"),
    ],
)
def test_what_has_no_convolution_says_so(fields: dict[str, Any], message: str) -> None:
    spec = spec_of(fields)
    with pytest.raises(Unsupported, match=message):
        registry.get(spec.kind).convert_conv2d(spec, trained(bias=False))
