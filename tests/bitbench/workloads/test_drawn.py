"""Models known by their shape alone: drawn layer by layer, never whole in float."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layer_specs import layer
from torch import nn

from bitbench.data.models import load_causal_lm, parameter_counts
from bitbench.layers import registry
from bitbench.layers.cast import CastLinear
from bitbench.store.metrics import METRICS
from bitbench.workloads.base import Unsupported
from bitbench.workloads.decode import DecodeSpec, DecodeWorkload
from bitbench.workloads.language_model import float_bytes
from bitbench.workloads.perplexity import PerplexitySpec
from impl.models.llama import PROJECTIONS

BITNET = "bitnet-2b-random"
KINDS = [
    {"kind": "linear"},
    {"kind": "linear", "dtype": "bfloat16"},
    {"kind": "torch_int8"},
    {"kind": "binary", "activation_bits": 8},
    {"kind": "ternary", "format": "base3", "scale": "tensor"},
    {"kind": "ternary", "format": "two_bit", "activation_bits": None},
    {"kind": "k_ternary", "k": 2},
    {"kind": "ternary", "form": "training"},
]


def named(fields: Any) -> str:
    return "-".join(str(value) for value in fields.values())


@pytest.mark.parametrize("head", ["float", "same"])
@pytest.mark.parametrize("fields", KINDS, ids=named)
def test_every_kind_decodes(open_points: Callable[..., Any], small: str, fields: Any, head: Any) -> None:
    entry = DecodeSpec(kind="decode", model=small, head=head, prompt_tokens=4, tokens=3, prefill=[9])
    spec = layer(**fields)
    for session in open_points(entry, {"linear": spec}):
        subject = session.build("linear", spec)
        check = subject.check()
        assert check.passed, check
        assert not any(parameter.is_meta for parameter in subject.model.parameters())
        subject.reset()
        assert torch.isfinite(subject.call()).all()
    subject = open_points(entry, {"linear": spec})[0].build("linear", spec)
    subject.timed(0.1)
    metrics = subject.metrics()
    assert set(metrics) <= set(METRICS)
    if fields == {"kind": "linear"}:
        assert metrics["memory.model_ratio"] == 1
    elif fields.get("form") != "training":
        assert metrics["memory.model_ratio"] > 1


def test_layers_of_a_shape_are_alike_in_memory_of_their_own(
    open_points: Callable[..., Any], small: str
) -> None:
    [session] = open_points(DecodeSpec(kind="decode", model=small, prompt_tokens=4, tokens=3))
    layers = session.build("x", layer(kind="ternary")).converted.layers
    assert set(layers) == {f"blocks.{i}.{part}" for i in range(4) for part in PROJECTIONS}
    alike = [layer for name, layer in layers.items() if name.endswith(("gate", "up"))]
    assert len({layer.codes.data_ptr() for layer in alike}) == 8
    assert all(torch.equal(layer.codes, alike[0].codes) for layer in alike)
    assert all(torch.equal(layer.scales, alike[0].scales) for layer in alike)


def test_the_float_blocks_are_never_there(open_points: Callable[..., Any], small: str) -> None:
    [session] = open_points(DecodeSpec(kind="decode", model=small, prompt_tokens=4, tokens=3))
    model = session.lm.model
    meta = {name for name, parameter in model.named_parameters() if parameter.is_meta}
    assert meta == {f"blocks.{i}.{part}.weight" for i in range(4) for part in PROJECTIONS}
    session.build("x", layer(kind="ternary"))
    assert {name for name, parameter in model.named_parameters() if parameter.is_meta} == meta
    assert model.head.weight is model.embedding.weight
    numbers = parameter_counts(small)[0]
    assert session.float_bytes == 4 * numbers + 8 * 64 * 8  # parameters and the rotary table


def test_each_launch_draws_its_own(tmp_path: Any, small: str) -> None:
    from bitbench.workloads.base import Context
    from bitbench.workloads.language_model import build_model

    lm = load_causal_lm(small)
    codes = [
        build_model(lm, layer(kind="ternary"), Context("cpu", 1, seed, tmp_path, {}, "linear"))
        .model.blocks[0]
        .attention.query.codes
        for seed in (1, 1, 2)
    ]
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])
    assert not (tmp_path / "conversions").exists()


def test_a_bfloat16_layer_casts(open_points: Callable[..., Any], small: str) -> None:
    [session] = open_points(DecodeSpec(kind="decode", model=small, prompt_tokens=4, tokens=3))
    model = session.build("x", layer(kind="linear", dtype="bfloat16")).model
    assert isinstance(model.blocks[3].feed_forward.down, CastLinear)
    assert type(model.head) is nn.Linear


def test_bitnet_has_the_published_shape() -> None:
    """2 412 820 480 numbers, as the published checkpoint counts them, 2 084 044 800 in the blocks."""
    from bitbench.data.architectures import ARCHITECTURES
    from impl.models.llama import Llama, LlamaConfig

    assert parameter_counts(BITNET) == (2_412_820_480, 2_084_044_800)
    with torch.device("meta"):
        model = Llama(LlamaConfig(**ARCHITECTURES[BITNET].config))
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_412_820_480
    linears = [m for m in model.blocks.modules() if isinstance(m, nn.Linear)]
    assert sum(m.weight.numel() for m in linears) == 2_084_044_800
    assert float_bytes(model) == 4 * 2_412_820_480 + 8 * 4096 * 64
    block = model.blocks[0]
    assert block.attention.sub_norm.weight.shape == (2560,)
    assert block.feed_forward.sub_norm.weight.shape == (6912,)
    assert block.feed_forward.squared


def test_counts_of_an_untied_plain_model(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from bitbench.data.architectures import ARCHITECTURES
    from impl.models.llama import Llama, LlamaConfig

    config = {**ARCHITECTURES[small].config, "tie_embeddings": False, "sub_norms": False}
    made = replace(ARCHITECTURES[small], config=config)
    model = Llama(LlamaConfig(**config))
    assert made.parameters == sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setitem(ARCHITECTURES, "untied", made)
    loaded = load_causal_lm("untied").model
    assert loaded.head.weight is not loaded.embedding.weight
    assert not loaded.head.weight.is_meta


def test_random_weights_are_not_scored() -> None:
    with pytest.raises(ValueError, match=r"'bitnet-2b-random' has random weights.*smollm2-135m"):
        PerplexitySpec(kind="perplexity", model=BITNET, text="synthetic")
    assert PerplexitySpec(kind="perplexity", model="tiny-random", text="synthetic")
    with pytest.raises(ValueError, match="did you mean 'bitnet-2b-random'"):
        DecodeSpec(kind="decode", model="bitnet-2b")


def test_nothing_is_fetched_and_the_estimate_is_of_the_layer() -> None:
    kind = DecodeWorkload()
    spec = DecodeSpec(kind="decode", model=BITNET, tokens=8, head="same")
    assert kind.data(spec) == []
    [plan] = kind.points(spec)

    def seconds(**fields: Any) -> float:
        return kind.estimate(spec, plan, registry.get(fields["kind"]).spec.model_validate(fields))

    full, half = seconds(kind="linear"), seconds(kind="linear", dtype="bfloat16")
    ternary = seconds(kind="ternary")
    assert 10 < full < 60
    assert full > 1.5 * half > 1.5 * ternary > 5
    assert 0.5 < kind.estimate_open(spec, plan) < 10


def test_a_kind_that_cannot_run_here_says_so(
    small: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitbench.workloads.base import Context
    from bitbench.workloads.language_model import build_model

    monkeypatch.setattr(type(registry.get("ternary")), "unsupported", lambda *_: "not today")
    with pytest.raises(Unsupported, match="not today"):
        build_model(
            load_causal_lm(small), layer(kind="ternary"), Context("cpu", 1, 0, tmp_path, {}, "linear")
        )
