"""The reading of a prompt, timed beside decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layer_specs import layer

from bitbench.data.models import load_causal_lm
from bitbench.errors import UserError
from bitbench.workloads.base import PointPlan
from bitbench.workloads.decode import DecodeSpec, DecodeSubject, DecodeWorkload
from bitbench.workloads.prefill import PrefillSubject, prefill_seconds

TINY = "tiny-random"


def entry(**fields: Any) -> DecodeSpec:
    return DecodeSpec.model_validate(
        {"kind": "decode", "model": TINY, "prompt_tokens": 6, "tokens": 5, "prefill": [20], **fields}
    )


def test_each_length_is_a_timed_point_beside_decoding() -> None:
    kind = DecodeWorkload()
    model = {"model": TINY, "head": "same"}
    assert kind.points(entry(head="same", prefill=[20, 64])) == [
        PointPlan({**model, "tokens": 5}, "timed", "launches"),
        PointPlan({**model, "measure": "prefill", "prompt": 20}, "timed", "launches"),
        PointPlan({**model, "measure": "prefill", "prompt": 64}, "timed", "launches"),
    ]
    [plain] = kind.points(entry(prefill=[]))
    assert plain.params == {"model": TINY, "tokens": 5}, "a float head goes without saying"
    assert kind.quick(entry(prefill=[128, 512])).prefill == [64]
    assert kind.quick(entry(prefill=[32, 512])).prefill == [32]


def test_a_call_reads_the_whole_prompt_anew(open_points: Callable[..., Any]) -> None:
    decoding, reading = open_points(entry())
    assert isinstance(decoding.build("x", layer(kind="linear")), DecodeSubject)
    subject = reading.build("x", layer(kind="linear"))
    assert isinstance(subject, PrefillSubject)
    assert reading.prompt.shape == (1, 20)
    first, second = subject.call(), subject.call()
    assert torch.equal(first, second)
    assert subject.cache.length == 20
    with torch.no_grad():
        whole = load_causal_lm(TINY).model(reading.prompt)[:, -1]
    torch.testing.assert_close(first, whole, rtol=1e-4, atol=1e-5)
    assert (subject.max_calls, subject.block_calls) == (None, None)
    assert subject.kernel == "torch/linear/float32/cpu"


@pytest.mark.parametrize("head", ["float", "same"])
def test_the_check_is_of_many_tokens(open_points: Callable[..., Any], head: str) -> None:
    """16 of the 20 tokens or a few more, in three blocks; the head sees the last position only."""
    reading = open_points(entry(head=head))[1]
    for fields in ({"kind": "ternary"}, {"kind": "torch_int8"}):
        subject = reading.build("x", layer(**fields))
        check = subject.check()
        assert check.passed, check
        outputs = 3 * (64 + 32 + 32 + 64 + 160 + 160 + 64)
        assert 14 * outputs <= check.compared <= 16 * outputs + 256
    broken = subject.converted.layers["blocks.1.feed_forward.up"]
    plain = broken.forward
    broken.forward = lambda x: plain(x) * 1.5
    assert not subject.check().passed


def test_a_prompt_beyond_the_context_is_refused(open_points: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="a prompt of 513 tokens exceeds the context of tiny-random, 512"):
        open_points(entry(prefill=[513]))
    open_points(entry(prefill=[512]))
    open_points(entry(prompt_tokens=500, tokens=12, prefill=[512]))


@pytest.mark.parametrize(
    ("prefill", "message"),
    [([1], "greater than or equal to 2"), ([0], "greater"), (["8"], "valid integer"), (64, "valid list")],
)
def test_other_lengths_are_refused(prefill: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entry(prefill=prefill)


def test_the_estimate_grows_with_the_prompt() -> None:
    linear, ternary = layer(kind="linear"), layer(kind="ternary", activation_bits=8)
    long, short = prefill_seconds(linear, 10**9, 512), prefill_seconds(linear, 10**9, 128)
    assert 3 * short < long < 4 * short, "the weights are read once whatever the length"
    assert prefill_seconds(ternary, 10**9, 512) < long / 2
    assert prefill_seconds(linear, 1000, 2) > 0.1
