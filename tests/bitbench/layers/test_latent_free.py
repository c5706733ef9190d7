"""Binary layers without a float copy: the same layer as ``binary`` once packed, flipped in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bitbench.layers import registry
from bitbench.layers.specs import BinarySpec, LatentFreeSpec
from bitbench.measure.memory import file_bytes, ledger
from bitbench.workloads.training import schedule
from impl.optim import DiodeMix
from impl.parameters import BinaryLinearParameter

KIND = registry.get("latent_free")


def spec(**fields: Any) -> LatentFreeSpec:
    return LatentFreeSpec.model_validate({"kind": "latent_free", **fields})


def test_packed_it_is_the_binary_layer() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(40, 24)
    x = torch.randn(5, 40)
    for own in ({}, {"activation_bits": 1}, {"activation_bits": None, "scale": "tensor"}):
        binary = registry.get("binary")
        other = BinarySpec.model_validate({"kind": "binary", **own})
        assert torch.equal(KIND.convert(spec(**own), linear)(x), binary.convert(other, linear)(x))
        assert KIND.cost(spec(**own), 40, 24) == binary.cost(other, 40, 24)


@pytest.mark.parametrize("bits", [None, 8, 1])
def test_both_forms_compute_the_same(bits: int | None) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(67, 24)
    x = torch.randn(9, 67)
    packed, training = (
        KIND.convert(spec(activation_bits=bits, form=form), linear) for form in ("packed", "training")
    )
    with torch.inference_mode():
        torch.testing.assert_close(training(x), packed(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("storage", "codes"), [("bit", 24 * 9), ("byte", 24 * 67)])
def test_training_keeps_signs_and_scales_only(storage: str, codes: int) -> None:
    own = spec(storage=storage)
    module = KIND.trainable(own, 67, 24, bias=True)
    cost = KIND.cost(KIND.in_training(own), 67, 24)
    assert (cost.codes_bytes, cost.scales_bytes) == (codes, 24 * 4)
    counted = ledger(module)
    assert counted == {
        "codes": codes,
        "scales": 96,
        "bias": 96,
        "buffers": 0,
        "slack": 0,
        "layer": codes + 192,
    }
    assert file_bytes(module) > counted["layer"]  # safetensors holds the decomposed tensors, and a head


def test_flips_and_nothing_else_lower_the_loss() -> None:
    """The weight stays signs times the scales it began with, and the product comes closer to its target."""
    torch.manual_seed(0)
    module = KIND.trainable(spec(activation_bits=None), 32, 16, bias=False)
    assert isinstance(module.weight, BinaryLinearParameter)
    scales = module.weight.scales.clone()
    wanted = torch.randn(16, 32).sign() * scales[:, None]
    optimiser = DiodeMix(module.parameters(), betas=(0.9, 0.98), threshold=2e-4)
    losses = []
    for step in range(200):
        optimiser.param_groups[0]["lr"] = 1e-3 * schedule(step, 200)
        optimiser.zero_grad()
        # A batch of its own each step: on one and the same, weights that stand in for each other would
        # go on flipping together.
        x = torch.randn(16, 32)
        loss = nn.functional.mse_loss(module(x), x @ wanted.T)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(module.weight.scales, scales)
    assert torch.equal(module.weight.dequantize().abs(), scales[:, None].expand(16, 32))


def test_storage_changes_no_number() -> None:
    assert KIND.numerics(spec(storage="bit")) == KIND.numerics(spec(storage="byte"))
    assert KIND.numerics(spec(scale="tensor")) != KIND.numerics(spec())
    one, other = (
        KIND.random(spec(storage=s, form="training"), 33, 8, bias=False, seed=1) for s in ("bit", "byte")
    )
    x = torch.randn(3, 33)
    assert torch.equal(one(x), other(x))


def test_what_a_latent_free_layer_has_not_is_refused() -> None:
    for fields in ({"group_size": 64}, {"ste": "clip"}, {"scale_dtype": "float16"}, {"storage": "nibble"}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            spec(**fields)
