"""What the kernels must compute, in numpy, written from the text of csrc/include/impl.h alone.

Integer dot products are done in float64, which is exact below 2**53; everything after them is
float32 in the order that impl.h fixes, so results are compared bit for bit.
"""

from __future__ import annotations

import math

import numpy as np
from kernel_library import BASE3, BF16, BINARY, F16, F32, INT8, INT16, SIGN, TERNARY


def segments(cols: int, group_size: int) -> list[tuple[int, int]]:
    """First and last-plus-one column of every scale group."""
    size = group_size or cols
    return [(begin, min(begin + size, cols)) for begin in range(0, cols, size)]


def pack(codes: np.ndarray, fmt: int, group_size: int) -> np.ndarray:
    """int8 [components, rows, cols] -> the bytes of layout V1."""
    components, rows, cols = codes.shape
    if fmt == BINARY:
        return np.packbits(codes == 1, axis=2, bitorder="little").reshape(-1)
    per_byte, base = (5, 3) if fmt == BASE3 else (4, 4)
    groups = math.ceil(rows / per_byte)
    digits = np.ones((components, groups * per_byte, cols), dtype=np.int64)  # absent rows weigh zero
    digits[:, :rows] = codes.astype(np.int64) + 1
    places = base ** np.arange(per_byte)
    grouped = digits.reshape(components, groups, per_byte, cols)
    values = np.einsum("cgpk,p->cgk", grouped, places).astype(np.uint8)
    stream = []
    for block in range(0, groups, 4):
        for component in range(components):
            for begin, end in segments(cols, group_size):
                for step in range(begin, end, 64):
                    last = min(step + 64, end)
                    stream += [values[component, g, step:last] for g in range(block, min(block + 4, groups))]
    return np.concatenate(stream)


def codes_bytes(fmt: int, components: int, rows: int, cols: int) -> int:
    if fmt == BINARY:
        return components * rows * math.ceil(cols / 8)
    return components * math.ceil(rows / (5 if fmt == BASE3 else 4)) * cols


def dequantize(codes: np.ndarray, scales: np.ndarray, group_size: int) -> np.ndarray:
    """float32 [rows, cols]: the sum over components of scale * code, one rounding per step."""
    components, rows, cols = codes.shape
    total = np.zeros((rows, cols), dtype=np.float32)
    for c in range(components):
        for g, (begin, end) in enumerate(segments(cols, group_size)):
            scale = scales[c, :, g].astype(np.float32)[:, None]
            total[:, begin:end] += scale * codes[c, :, begin:end].astype(np.float32)
    return total


def quantize(x: np.ndarray, activation: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [M, K] -> integers as float64, activation scales float32 [M], NaN where a row is not finite."""
    finite = np.isfinite(x).all(axis=1)
    if activation == SIGN:
        mean = np.abs(x.astype(np.float64)).sum(axis=1) / x.shape[1]
        scale = np.where(finite, mean, np.nan).astype(np.float32)
        return np.where(x >= 0, 1.0, -1.0), scale
    if activation == TERNARY:
        magnitudes = np.abs(np.where(finite[:, None], x, np.float32(0)))
        delta = (0.75 * (magnitudes.astype(np.float64).sum(axis=1) / x.shape[1])).astype(np.float32)
        kept = magnitudes > delta[:, None]
        total, count = np.where(kept, magnitudes, 0).astype(np.float64).sum(axis=1), kept.sum(axis=1)
        scale = np.where(finite, total / np.maximum(count, 1), np.nan).astype(np.float32)
        return np.sign(x) * kept, scale
    limit = np.float32(127 if activation == INT8 else 32512)
    clean = np.where(finite[:, None], x, np.float32(0))
    amax = np.maximum(np.abs(clean).max(axis=1), np.float32(1e-5))
    factor = limit / amax
    q = np.clip(np.rint(clean * factor[:, None]), -limit, limit)
    assert factor.dtype == amax.dtype == q.dtype == np.float32
    return q.astype(np.float64), np.where(finite, amax / limit, np.float32(np.nan))


def linear(
    x: np.ndarray,
    codes: np.ndarray,
    scales: np.ndarray,
    group_size: int,
    activation: int,
    bias: np.ndarray | None,
) -> np.ndarray:
    """float32 [M, N] for integer activations, before the rounding to the output type."""
    assert activation in (SIGN, TERNARY, INT8, INT16)
    q, activation_scale = quantize(x, activation)
    components, rows, cols = codes.shape
    t = np.zeros((x.shape[0], rows), dtype=np.float32)
    for c in range(components):
        for g, (begin, end) in enumerate(segments(cols, group_size)):
            dot = q[:, begin:end] @ codes[c, :, begin:end].astype(np.float64).T
            t = t + scales[c, :, g].astype(np.float32)[None, :] * dot.astype(np.float32)
    y = t * activation_scale[:, None]
    return y if bias is None else y + bias.astype(np.float32)[None, :]


def float_linear(
    x: np.ndarray, codes: np.ndarray, scales: np.ndarray, group_size: int, bias: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """float64 [M, N] for float activations and, entry by entry, the size of what was added up."""
    weight = np.zeros(codes.shape[1:])
    size = np.zeros(codes.shape[1:])
    for c in range(codes.shape[0]):
        for g, (begin, end) in enumerate(segments(codes.shape[2], group_size)):
            part = scales[c, :, g].astype(np.float64)[:, None] * codes[c, :, begin:end]
            weight[:, begin:end] += part
            size[:, begin:end] += np.abs(part)
    wide = x.astype(np.float64)
    y, magnitude = wide @ weight.T, np.abs(wide) @ size.T
    if bias is not None:
        y, magnitude = y + bias.astype(np.float64), magnitude + np.abs(bias.astype(np.float64))
    return y, magnitude


# ---- number formats ------------------------------------------------------------------------------


def to_dtype(values: np.ndarray, dtype: int) -> np.ndarray:
    """float32 -> storage (float32 or uint16), rounded to nearest even."""
    values = values.astype(np.float32)
    if dtype == F32:
        return values
    if dtype == F16:
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    assert dtype == BF16
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def from_dtype(stored: np.ndarray, dtype: int) -> np.ndarray:
    """Storage -> float32, exact."""
    if dtype == F32:
        return stored
    if dtype == F16:
        return stored.view(np.float16).astype(np.float32)
    return (stored.astype(np.uint32) << 16).view(np.float32)
