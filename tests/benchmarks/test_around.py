"""What surrounds the linear kernels: packing, decoding, quantising activations and weights.

nn.Linear on one token stands beside them as a unit of what the machine can do at that moment: a
ratio to it moves with the code, not with the machine.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from impl import decoding
from impl.packing import PackedWeight, pack, unpack
from impl.quantizers import quantize_activations, quantize_binary, quantize_ternary

FORMATS = ("binary", "two_bit", "base3")
LEVELS = {8: 127, 16: 32512}


def layout(codes: np.ndarray, format: str) -> np.ndarray:
    """int8 [1, rows, cols] to the bytes of layout 1, written from the text of ``impl.h``."""
    _, rows, cols = codes.shape
    if format == "binary":
        return np.packbits(codes == 1, axis=2, bitorder="little").reshape(-1)
    per_byte, base = (5, 3) if format == "base3" else (4, 4)
    groups = -(-rows // per_byte)
    digits = np.ones((groups * per_byte, cols), dtype=np.int64)
    digits[:rows] = codes[0].astype(np.int64) + 1
    values = (digits.reshape(groups, per_byte, cols) * base ** np.arange(per_byte)[:, None]).sum(1)
    stream = [
        values[group, step : step + 64]
        for block in range(0, groups, 4)
        for step in range(0, cols, 64)
        for group in range(block, min(block + 4, groups))
    ]
    return np.concatenate(stream).astype(np.uint8)


@pytest.mark.parametrize("format", FORMATS)
def test_pack(format, beside_linear, weight_codes):
    codes, _ = weight_codes(format)
    expected = torch.from_numpy(layout(codes.numpy(), format))
    beside_linear(
        lambda: codes.clone(),
        lambda own: pack(own, format),
        check=lambda packed: torch.equal(packed, expected),
        extra={"exact": {"memory.codes_bytes": expected.numel()}},
    )


@pytest.mark.parametrize("format", FORMATS)
def test_unpack(format, beside_linear, weight_codes):
    codes, _ = weight_codes(format)
    _, rows, cols = codes.shape
    beside_linear(
        lambda: pack(codes, format),
        lambda packed: unpack(packed, format, 1, rows, cols),
        check=lambda found: torch.equal(found, codes),
    )


@pytest.mark.parametrize("group_size", [None, 64], ids=["rows", "g64"])
@pytest.mark.parametrize("format", FORMATS)
def test_decode(format, group_size, beside_linear, weight_codes):
    """Packed bytes to float32, by the native kernels where they are."""
    codes, scales = weight_codes(format, 1, group_size)
    rows, cols = codes.shape[1:]
    expected = codes[0] * scales[0].repeat_interleave(cols // scales.shape[2], dim=1)
    beside_linear(
        lambda: PackedWeight.from_codes(codes, scales, format, group_size),
        lambda weight: decoding.dequantize_rows(weight, 0, rows),
        check=lambda found: torch.equal(found, expected),
    )


@pytest.mark.parametrize("tokens", [1, 64], ids=lambda m: f"M{m}")
@pytest.mark.parametrize("bits", [1, 8, 16])
def test_quantize_activations(bits, tokens, beside_linear, activations):
    x = activations(tokens)

    def check(found: tuple[torch.Tensor, torch.Tensor]) -> bool:
        q, scale = (part.numpy() for part in found)
        values = x.numpy()
        if bits == 1:
            mean = np.abs(values.astype(np.float64)).mean(1, keepdims=True)
            return bool((q == np.where(values >= 0, 1, -1)).all() and np.allclose(scale, mean, rtol=2.0**-23))
        amax = np.abs(values).max(1, keepdims=True)
        level = np.float32(LEVELS[bits])
        codes = np.clip(np.rint(values * (level / amax)), -level, level)
        return bool((q == codes).all() and (scale == amax / level).all())

    beside_linear(lambda: x.clone(), lambda own: quantize_activations(own, bits), tokens=tokens, check=check)


@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_quantize_weights(kind, beside_linear, activations):
    """The rules cheap enough for every step of training."""
    weight = activations(1024)

    def check(found) -> bool:
        codes, scale = found.codes[0], found.scales.flatten()
        if kind == "binary":
            expected, mean = torch.where(weight >= 0, 1, -1), weight.abs().mean(1)
        else:
            # From the scale found: a weight on the threshold must not hang on how its mean was summed.
            expected, mean = weight.sign() * (weight.abs() > scale / 2), weight.abs().mean().reshape(1)
        return torch.equal(codes, expected.to(torch.int8)) and torch.allclose(scale, mean, rtol=1e-6)

    rule = quantize_binary if kind == "binary" else lambda own: quantize_ternary(own, rule="absmean")
    beside_linear(lambda: weight.clone(), rule, check=check)
