"""``head: same``: the output head is replaced by what replaces the layers of the blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from layer_specs import layer
from torch import nn

from bitbench.data.models import load_causal_lm
from bitbench.layers.cast import CastEmbedding, CastLinear
from bitbench.store.schema import all_params
from bitbench.suite.expand import expand
from bitbench.suite.schema import Suite
from bitbench.workloads.base import Context
from bitbench.workloads.decode import DecodeSpec
from bitbench.workloads.language_model import build_model, float_bytes, split_numbers
from bitbench.workloads.perplexity import PerplexitySpec
from impl.models.llama import Llama

TINY = "tiny-random"
VOCAB, HIDDEN = 256, 64
TERNARY = {"kind": "ternary", "format": "base3", "activation_bits": 8}
BF16 = {"kind": "linear", "dtype": "bfloat16"}
LOW_BIT = [
    TERNARY,
    {"kind": "binary", "activation_bits": 1},
    {"kind": "k_ternary", "k": 2, "group_size": 32},
    {"kind": "torch_int8"},
]


def decode(head: str) -> DecodeSpec:
    return DecodeSpec(kind="decode", model=TINY, head=head, prompt_tokens=6, tokens=5)  # type: ignore[arg-type]


def score(head: str) -> PerplexitySpec:
    return PerplexitySpec(kind="perplexity", model=TINY, head=head, text="synthetic", windows=2, length=40)  # type: ignore[arg-type]


def context(folder: Path) -> Context:
    return Context("cpu", 1, 0, folder, {}, "linear")


@pytest.mark.parametrize("fields", LOW_BIT, ids=lambda fields: str(fields["kind"]))
def test_the_head_is_one_of_the_layers(open_points: Callable[..., Any], fields: Any) -> None:
    spec = layer(**fields)
    for _ in range(2):  # converted, then read from the cache
        [session] = open_points(decode("same"), {"x": spec})
        subject = session.build("x", spec)
        assert type(subject.model.head) is type(subject.model.blocks[0].attention.query)
        assert subject.converted.layers["head"] is subject.model.head
        assert type(subject.model.embedding) is nn.Embedding
        check = subject.check()
        assert check.passed, check
        assert check.compared == 3 * (64 + 32 + 32 + 64 + 160 + 160 + 64) + VOCAB
        assert subject.fallback() is None
        assert len(subject.converted.layers) == 22


def test_left_float_the_head_is_the_embedding(open_points: Callable[..., Any]) -> None:
    [session] = open_points(decode("float"))
    subject = session.build("x", layer(**TERNARY))
    assert subject.model.head.weight is session.lm.model.embedding.weight
    assert "head" not in subject.converted.layers


def test_a_wrong_head_fails_the_check(open_points: Callable[..., Any]) -> None:
    """Nothing but the head is wrong, and only in one row."""
    [session] = open_points(decode("same"))
    subject = session.build("x", layer(**TERNARY))
    assert subject.check().passed
    head, plain = subject.model.head, subject.model.head.forward

    def wrong(x: torch.Tensor) -> torch.Tensor:
        y = plain(x).clone()
        y[..., 200] += 1.0
        return y

    head.forward = wrong
    assert not subject.check().passed
    head.forward = lambda x: plain(x).index_fill(-1, torch.tensor([7]), math.nan)
    check = subject.check()
    assert not check.passed
    assert check.max_error == math.inf


def test_bytes_of_the_whole_model(open_points: Callable[..., Any]) -> None:
    """A packed head comes on top of the float embedding that it was tied to."""
    size = {}
    for head in ("float", "same"):
        [session] = open_points(decode(head))
        subject = session.build("x", layer(**TERNARY))
        subject.timed(0.1)
        size[head] = subject.metrics()["memory.model_bytes"]
    packing = 8 * subject.model.head.packing.numel()
    codes, scales = -(-VOCAB // 5) * HIDDEN, 4 * VOCAB
    assert size["same"] - size["float"] == codes + scales + packing


def test_the_float32_head_stays_tied(open_points: Callable[..., Any]) -> None:
    [session] = open_points(decode("same"), {"linear": layer(kind="linear")})
    subject = session.build("linear", layer(kind="linear"))
    assert subject.model.head.weight is subject.model.embedding.weight
    assert "head" in subject.converted.layers
    subject.timed(0.1)
    metrics = subject.metrics()
    assert metrics["memory.model_ratio"] == 1
    assert metrics["memory.model_bytes"] == float_bytes(session.lm.model)


def test_a_head_of_another_float_type_takes_the_embedding_with_it(open_points: Callable[..., Any]) -> None:
    """Else a bf16 model would count one matrix twice, once of them in float32."""
    [session] = open_points(decode("same"))
    subject = session.build("x", layer(**BF16))
    model = subject.model
    assert isinstance(model.head, CastLinear)
    assert isinstance(model.embedding, CastEmbedding)
    assert model.embedding.weight.data_ptr() == model.head.weight.data_ptr()
    ids = torch.tensor([[3, 250]])
    found = model.embedding(ids)
    assert found.dtype == torch.float32
    exact = session.lm.model.embedding(ids)
    torch.testing.assert_close(found, exact, rtol=2**-8, atol=0)
    subject.timed(0.1)
    norms, rotation = 4 * 64 * 7, 8 * 512 * 8
    assert subject.metrics()["memory.model_bytes"] == 2 * (145_856 - 64 * 7) + norms + rotation
    # The shared float model is untouched.
    assert type(session.lm.model.embedding) is nn.Embedding
    assert type(session.lm.model.head) is nn.Linear


def test_an_untied_embedding_stays_float(tmp_path: Path) -> None:
    from dataclasses import replace

    lm = load_causal_lm(TINY)
    untied = Llama(replace(lm.model.config, tie_embeddings=False)).requires_grad_(False)
    untied.load_state_dict(lm.model.state_dict())
    made = build_model(replace(lm, model=untied), layer(**BF16), context(tmp_path), head="same")
    assert isinstance(made.model.head, CastLinear)
    assert type(made.model.embedding) is nn.Embedding


def test_quality_pays_for_the_head(open_points: Callable[..., Any]) -> None:
    losses = {}
    for head in ("float", "same"):
        [session] = open_points(score(head))
        losses[head] = session.measure("x", layer(**TERNARY), 0).metrics["quality.perplexity"]
        assert session.measure("linear", layer(kind="linear"), 0).metrics["quality.perplexity"] > 1
    assert losses["same"] != losses["float"]


def test_blocks_are_converted_once_for_both_heads(tmp_path: Path) -> None:
    lm, spec = load_causal_lm(TINY), layer(**TERNARY)
    folder = tmp_path / "conversions"
    build_model(lm, spec, context(tmp_path))
    [blocks] = folder.glob("*.safetensors")
    written = blocks.stat().st_mtime_ns
    build_model(lm, spec, context(tmp_path), head="same")
    assert len(list(folder.glob("*.safetensors"))) == 2
    assert blocks.stat().st_mtime_ns == written


def test_both_heads_are_points_of_their_own() -> None:
    suite = Suite.model_validate(
        {
            "schema": 1,
            "name": "heads",
            "baseline": "linear",
            "layers": {"linear": {"kind": "linear"}},
            "workloads": [
                {"kind": "decode", "model": TINY},
                {"kind": "decode", "model": TINY, "head": "same"},
                {"kind": "perplexity", "model": TINY, "text": "synthetic", "head": "same"},
            ],
        }
    )
    points = expand(suite).points
    assert [p.params.get("head") for p in points] == [None, "same", "same"]
    assert [all_params(p.workload, p.params)["head"] for p in points] == ["float", "same", "same"]
    assert len({p.id for p in points}) == 3
    assert points[1].label == "decode/model=tiny-random/head=same/tokens=32"


def test_the_estimate_counts_the_head_where_it_belongs() -> None:
    total, blocks = 145_856, 129_024
    assert split_numbers(decode("float")) == (blocks, total - blocks)
    assert split_numbers(decode("same")) == (total, 0)


@pytest.mark.parametrize("head", ["packed", True, None])
def test_other_heads_are_refused(head: Any) -> None:
    with pytest.raises(ValueError, match="'float' or 'same'"):
        DecodeSpec.model_validate({"kind": "decode", "model": TINY, "head": head})


def test_weights_that_do_not_fit_are_refused_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bitbench.execute.outcome import of_exception
    from bitbench.store.schema import Status
    from bitbench.workloads import language_model

    lm = load_causal_lm(TINY)
    needed = 4 * (129_024 + 160 * 64)  # fp32 blocks, and the largest layer while it is made
    monkeypatch.setattr(language_model, "memory_available", lambda: needed)
    build_model(lm, layer(kind="linear"), context(tmp_path))
    monkeypatch.setattr(language_model, "memory_available", lambda: needed - 1)
    with pytest.raises(MemoryError, match=r"take 0.00 GiB .* name fewer `layers`") as caught:
        build_model(lm, layer(kind="linear"), context(tmp_path))
    assert of_exception(caught.value)[0] is Status.OOM
    build_model(lm, layer(**TERNARY), context(tmp_path))  # a twentieth fits

    freed: list[int] = []
    monkeypatch.setattr(language_model, "trim", lambda: freed.append(1))
    monkeypatch.setattr(language_model, "memory_available", lambda: needed if freed else 0)
    build_model(lm, layer(kind="linear"), context(tmp_path))
