"""The peers' byte formats, decoded by our references: checked against plain Python, package or not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from bitbench.layers import registry
from bitbench.layers.peers.peer import blockwise_int8
from bitbench.workloads.base import Unsupported


def spec_of(**fields: Any) -> tuple[Any, Any]:
    kind = registry.get(fields["kind"])
    return kind, kind.spec.model_validate(fields)


def tq1_block(trits: list[int]) -> list[int]:
    """llama.cpp's ``block_tq1_0`` without its scale: trits 0, 1, 2 most significant first."""

    def byte(five: list[int]) -> int:
        value = 0
        for trit in five:
            value = 3 * value + trit
        return -(-value * 256 // 243)

    first = [byte([trits[32 * n + m] for n in range(5)]) for m in range(32)]
    second = [byte([trits[160 + 16 * n + m] for n in range(5)]) for m in range(16)]
    last = [byte([*(trits[240 + 4 * n + m] for n in range(4)), 0]) for m in range(4)]
    return first + second + last


def tq2_block(trits: list[int]) -> list[int]:
    """llama.cpp's ``block_tq2_0`` without its scale."""
    return [
        sum(trits[128 * half + 32 * n + m] << (2 * n) for n in range(4)) for half in (0, 1) for m in range(32)
    ]


@pytest.mark.parametrize(("type", "encode"), [("tq1_0", tq1_block), ("tq2_0", tq2_block)])
def test_ggml_blocks_are_decoded(type: str, encode: Any) -> None:
    kind, spec = spec_of(kind="ggml", type=type)
    trits = torch.randint(0, 3, (3, 2, 256), generator=torch.Generator().manual_seed(0))
    trits[0, 0], trits[0, 1] = 2, 0  # the largest byte and the smallest
    scales = torch.tensor([[0.5, 3.25], [1e-3, 2.0], [60000.0, 0.0]], dtype=torch.float16)
    rows = []
    for row in range(3):
        for block in range(2):
            stored = torch.tensor(encode(trits[row, block].tolist()), dtype=torch.uint8)
            rows.append(torch.cat([stored, scales[row, block].view(1).view(torch.uint8)]))
    codes = torch.stack(rows).view(3, -1)
    expected = ((trits - 1).double() * scales.double()[..., None]).flatten(1)
    assert torch.equal(kind.decoded(spec, SimpleNamespace(codes=codes), slice(0, 3)), expected)
    assert torch.equal(kind.decoded(spec, SimpleNamespace(codes=codes), slice(1, 2)), expected[1:2])
    assert codes.numel() == kind.cost(spec, 512, 3).weight_bytes


def test_q8_k_puts_the_largest_value_on_minus_127() -> None:
    kind, spec = spec_of(kind="ggml")
    x = torch.randn(4, 512, generator=torch.Generator().manual_seed(1))
    x[1, 256:] = 0
    x[2, 3], x[2, 300] = -9.0, 7.0
    x[3, :256] = torch.where(torch.arange(256) % 2 == 0, 2.0, -2.0)
    seen = kind.activations(spec, x)
    for token in range(4):
        for begin in (0, 256):
            part, got = x[token, begin : begin + 256], seen[token, begin : begin + 256]
            largest = max(part.tolist(), key=abs)
            if largest == 0:
                assert not got.any()
                continue
            inverse = torch.tensor(-127.0) / torch.tensor(largest)
            for value, found in zip(part, got, strict=True):
                q = min(127, round(float(value * inverse)))  # Python rounds half to even too
                assert float(found) == pytest.approx(q / float(inverse), rel=1e-6)


@pytest.mark.parametrize("width", [1, 100, 128, 300])
def test_blockwise_int8_is_what_it_says(width: int) -> None:
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(2))
    x[1, :128] = 0
    seen = blockwise_int8(x, 128)
    assert seen.shape == x.shape
    for token in range(3):
        for begin in range(0, width, 128):
            part, got = x[token, begin : begin + 128], seen[token, begin : begin + 128]
            amax = part.abs().max()
            if amax == 0:
                assert not got.any()
                continue
            inverse = torch.tensor(127.0) / amax
            q = [round(float(value * inverse)) for value in part]
            assert got.tolist() == pytest.approx([n * float(amax) / 127 for n in q], rel=1e-6)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("block_size", [32, 128])
def test_nbits_codes_are_decoded(bits: int, block_size: int) -> None:
    kind, spec = spec_of(kind="ort_matmul_nbits", bits=bits, block_size=block_size)
    in_features, blocks, per = 3 * block_size - 5, 3, 8 // bits
    generator = torch.Generator().manual_seed(3)
    levels = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (4, blocks, block_size), generator=generator)
    scales = torch.rand(4, blocks, generator=generator)
    stored = torch.zeros(4, blocks, block_size // per, dtype=torch.uint8)
    for place in range(block_size):
        code = (levels[..., place] + 2 ** (bits - 1)).to(torch.uint8)
        stored[..., place // per] |= code << (bits * (place % per))
    module = SimpleNamespace(codes=stored, scales=scales, in_features=in_features)
    expected = (levels.double() * scales.double()[..., None]).flatten(1)[:, :in_features]
    assert torch.equal(kind.decoded(spec, module, slice(0, 4)), expected)


def test_litespark_codes_are_decoded() -> None:
    kind, spec = spec_of(kind="litespark")
    codes = torch.tensor([[0b10_01_00_10, 0b01_01_01_00]], dtype=torch.uint8)
    module = SimpleNamespace(codes=codes, scales=torch.tensor([0.5]), in_features=6)
    assert kind.decoded(spec, module, slice(0, 1)).tolist() == [[0.5, -0.5, 0.0, 0.5, -0.5, 0.0]]


def test_ggml_refuses_rows_that_do_not_fill_blocks() -> None:
    from torch import nn

    kind, spec = spec_of(kind="ggml")
    with pytest.raises(Unsupported, match="blocks of 256 weights, and in_features=300"):
        kind.convert(spec, nn.Linear(300, 8))


def test_int_mm_refuses_sums_that_int32_cannot_hold() -> None:
    kind, spec = spec_of(kind="torch_int_mm")
    with pytest.raises(Unsupported, match="limit is in_features=133144"):
        kind.random(spec, 133_145, 1, bias=False, seed=0)
    module = kind.random(spec, 133_144, 2, bias=False, seed=0)
    module.codes.fill_(127)
    x = torch.ones(1, 133_144)
    exact = kind.reference(spec, module, x, slice(0, 2))
    torch.testing.assert_close(module(x).double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "ort_matmul_nbits", "bits": 3}, "Input should be 2 or 4"),
        ({"kind": "ort_matmul_nbits", "block_size": 100}, "32, 64, 128 or 256"),
        ({"kind": "ggml", "type": "q4_0"}, "'tq1_0' or 'tq2_0'"),
        ({"kind": "torch_int_mm", "bits": 8}, "Extra inputs"),
        ({"kind": "litespark", "format": "base3"}, "Extra inputs"),
    ],
)
def test_impossible_layers_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        registry.get(fields["kind"]).spec.model_validate(fields)
