"""Latent weights into packed codes, scales and masks, as the emulator runs it, against numpy and impl."""

from __future__ import annotations

import math
from collections.abc import Iterator
from ctypes import POINTER, Structure, byref, c_int32, c_int64, c_void_p

import numpy as np
import pytest
import torch
from cuda_library import CudaLibrary
from kernel_library import BASE3, BF16, BINARY, F16, F32, INVALID_ARGUMENT, OK, TWO_BIT, Guarded, Matrix
from kernel_reference import codes_bytes, from_dtype, pack, segments, to_dtype

from impl.quantizers import quantize_binary, quantize_ternary

RULES = {"absmean": 0, "absmax": 1, "twn": 2, "sign": 3}
TERNARY = ["absmean", "absmax", "twn"]
MADE = [*((rule, fmt) for rule in TERNARY for fmt in (TWO_BIT, BASE3)), ("sign", BINARY)]
#: (rows, cols, group_size): tails of row groups, steps, octets and words; more groups than a block holds.
SHAPES = [
    (1, 1, 0), (5, 9, 8), (16, 64, 0), (20, 63, 0), (21, 127, 64), (31, 256, 24), (4, 1032, 8), (5, 531, 8),
    (23, 1040, 520), (9, 1031, 0),
]  # fmt: skip


class LatentCall(Structure):
    _fields_ = [
        ("latent", Matrix),
        ("rule", c_int32),
        ("per_tensor", c_int32),
        ("format", c_int32),
        ("reserved", c_int32),
        ("group_size", c_int64),
        ("codes", c_void_p),
        ("codes_bytes", c_int64),
        ("scales", c_void_p),
        ("mask", c_void_p),
        ("workspace", c_void_p),
        ("workspace_bytes", c_int64),
    ]


@pytest.fixture(params=[1, 2], ids=["order1", "order2"])
def emulated(request: pytest.FixtureRequest, cuda: CudaLibrary) -> Iterator[CudaLibrary]:
    cuda.cuda.bitimpl_cuda_quantize_weight_workspace.restype = c_int64
    cuda.cuda.bitimpl_cuda_quantize_weight_workspace.argtypes = [c_int64, c_int32]
    cuda.cuda.bitimpl_cuda_quantize_weight.argtypes = [POINTER(LatentCall), c_int32, c_void_p]
    cuda.cuda.bitimpl_cuda_apply_mask.argtypes = [c_void_p, POINTER(Matrix), c_int32, c_void_p]
    cuda.order(request.param)
    cuda.emulate(80, 1)
    yield cuda
    cuda.emulate(80, 3)


def latent_weights(rows: int, cols: int, dtype: int = F32) -> np.ndarray:
    rng = np.random.default_rng([rows, cols])
    return to_dtype(rng.normal(0, 0.7, (rows, cols)).astype(np.float32), dtype)


def matrix_of(stored: np.ndarray, dtype: int, padding: int, offset: int = 0) -> tuple[Guarded, Matrix]:
    rows, cols = stored.shape
    wide = np.full((rows, cols + padding), 0xAA, stored.dtype)
    wide[:, :cols] = stored
    data = Guarded.of(wide, offset)
    return data, Matrix(data.pointer, dtype, 0, rows, cols, cols + padding)


def quantize(
    library: CudaLibrary, stored: np.ndarray, rule: str, fmt: int, *, dtype: int = F32, group_size: int = 0,
    per_tensor: bool = False, padding: int = 0, codes_offset: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Codes, scales and mask as they lie in memory."""
    rows, cols = stored.shape
    data, latent = matrix_of(stored, dtype, padding)
    codes = Guarded(codes_bytes(fmt, 1, rows, cols), codes_offset)
    scales = Guarded(4 * (1 if per_tensor else rows * len(segments(cols, group_size))))
    mask = Guarded(rows * math.ceil(cols / 8))
    size = library.cuda.bitimpl_cuda_quantize_weight_workspace(rows, per_tensor)
    assert (size > 0) == per_tensor
    workspace = Guarded(size, offset=1)
    call = LatentCall(
        latent, RULES[rule], per_tensor, fmt, 0, group_size, codes.pointer, codes.bytes.size, scales.pointer,
        mask.pointer, workspace.pointer, size,
    )  # fmt: skip
    assert library.cuda.bitimpl_cuda_quantize_weight(byref(call), 0, None) == OK, library.error()
    for name, buffer in [
        ("latent", data),
        ("codes", codes),
        ("scales", scales),
        ("mask", mask),
        ("workspace", workspace),
    ]:
        buffer.check(name)
    return codes.bytes, scales.view(np.float32), mask.bytes


def line_of(line: np.ndarray, rule: str) -> tuple[np.ndarray, np.float32]:
    """Codes and scale of a line, from the text of impl_cuda.h."""
    magnitude = np.abs(line)
    mean = np.float32(magnitude.astype(np.float64).sum() / line.size)
    if rule == "sign":
        return np.where(line >= 0, 1, -1).astype(np.int8), mean
    if rule == "absmax":
        scale = magnitude.max()
    elif rule == "absmean":
        scale = max(mean, np.float32(1e-5))
    if rule == "twn":
        threshold = np.float32(0.7) * mean
        kept = magnitude[magnitude > threshold].astype(np.float64)
        scale = np.float32(kept.sum() / kept.size) if kept.size else np.float32(0)
    else:
        threshold = scale / np.float32(2)
    return (np.sign(line) * (magnitude > threshold)).astype(np.int8), np.float32(scale)


def expected_of(
    weight: np.ndarray, rule: str, group_size: int, per_tensor: bool
) -> tuple[np.ndarray, np.ndarray]:
    if per_tensor:
        codes, scale = line_of(weight.reshape(-1), rule)
        return codes.reshape(1, *weight.shape), np.array([scale])
    codes = np.zeros((1, *weight.shape), np.int8)
    pieces = segments(weight.shape[1], group_size)
    scales = np.zeros((weight.shape[0], len(pieces)), np.float32)
    for row in range(weight.shape[0]):
        for s, (begin, end) in enumerate(pieces):
            codes[0, row, begin:end], scales[row, s] = line_of(weight[row, begin:end], rule)
    return codes, scales.reshape(-1)


@pytest.mark.parametrize(("rule", "fmt"), MADE)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_codes_scales_and_mask(
    emulated: CudaLibrary, shape: tuple[int, int, int], rule: str, fmt: int
) -> None:
    rows, cols, group_size = shape
    variant = rows + cols + RULES[rule]
    dtype, padding = [F32, BF16, F16][variant % 3], variant % 5
    stored = latent_weights(rows, cols, dtype)
    weight = from_dtype(stored, dtype)
    for per_tensor in [False, True] if group_size == 0 else [False]:
        packed, scales, mask = quantize(
            emulated, stored, rule, fmt, dtype=dtype, group_size=group_size, per_tensor=per_tensor,
            padding=padding, codes_offset=variant % 2,
        )  # fmt: skip
        codes, expected = expected_of(weight, rule, group_size, per_tensor)
        np.testing.assert_array_equal(scales, expected)
        np.testing.assert_array_equal(packed, pack(codes, fmt, group_size))
        bits = np.packbits(np.abs(weight) <= 1, axis=1, bitorder="little")
        np.testing.assert_array_equal(mask, bits.reshape(-1))


@pytest.mark.parametrize("rule", TERNARY)
@pytest.mark.parametrize("group_size", [None, 32])
def test_agrees_with_the_quantizers_of_impl(emulated: CudaLibrary, rule: str, group_size: int | None) -> None:
    """Whose float32 means may differ in their last bits, no weight of these between the two."""
    weight = latent_weights(22, 130)
    ours = quantize_ternary(torch.from_numpy(weight), rule=rule, group_size=group_size)
    per_tensor = ours.scales.shape[1:] == (1, 1)
    assert per_tensor == (rule == "absmean" and group_size is None)
    packed, scales, _ = quantize(
        emulated, weight, rule, BASE3, group_size=group_size or 0, per_tensor=per_tensor
    )
    np.testing.assert_array_equal(packed, pack(ours.codes.numpy(), BASE3, group_size or 0))
    np.testing.assert_allclose(scales, ours.scales.numpy().reshape(-1), rtol=1e-6)


@pytest.mark.parametrize(("scale", "group_size"), [("row", None), ("row", 32), ("tensor", None)])
def test_signs_agree_with_the_quantizer_of_impl(
    emulated: CudaLibrary, scale: str, group_size: int | None
) -> None:
    weight = latent_weights(22, 130)
    weight[3, 7], weight[4, 8] = 0.0, -0.0
    ours = quantize_binary(
        torch.from_numpy(weight), scale=scale, group_size=group_size, sum_dtype=torch.float64
    )
    packed, scales, _ = quantize(
        emulated, weight, "sign", BINARY, group_size=group_size or 0, per_tensor=scale == "tensor"
    )
    np.testing.assert_array_equal(packed, pack(ours.codes.numpy(), BINARY, 0))
    np.testing.assert_allclose(scales, ours.scales.numpy().reshape(-1), rtol=2**-23)


@pytest.mark.parametrize("per_tensor", [False, True], ids=["row", "tensor"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sign_that_is_not_finite_reaches_the_scale_of_its_line(
    emulated: CudaLibrary, value: float, per_tensor: bool
) -> None:
    weight = latent_weights(7, 70)
    weight[3, 66] = value
    packed, scales, mask = quantize(emulated, weight, "sign", BINARY, per_tensor=per_tensor)
    broken = np.array([True]) if per_tensor else np.arange(7) == 3
    np.testing.assert_array_equal(np.isnan(scales), broken & np.isnan(value))
    np.testing.assert_array_equal(np.isinf(scales), broken & np.isinf(value))
    np.testing.assert_array_equal(packed, np.packbits(weight >= 0, axis=1, bitorder="little").reshape(-1))
    assert mask.reshape(7, 9)[3, 8] >> 2 & 1 == 0


@pytest.mark.parametrize("per_tensor", [False, True], ids=["row", "tensor"])
@pytest.mark.parametrize("rule", TERNARY)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_reaches_the_scale_of_its_line(
    emulated: CudaLibrary, value: float, rule: str, per_tensor: bool
) -> None:
    weight = latent_weights(7, 70)
    weight[3, 66] = value
    packed, scales, _ = quantize(emulated, weight, rule, TWO_BIT, per_tensor=per_tensor)
    broken = np.array([True]) if per_tensor else np.arange(7) == 3
    np.testing.assert_array_equal(~np.isfinite(scales), broken)
    expected, finite = expected_of(np.nan_to_num(weight, posinf=0, neginf=0), rule, 0, per_tensor)
    expected[0, broken if not per_tensor else slice(None)] = 0
    np.testing.assert_array_equal(packed, pack(expected, TWO_BIT, 0))
    np.testing.assert_array_equal(scales[~broken], finite[~broken])


@pytest.mark.parametrize("per_tensor", [False, True], ids=["row", "tensor"])
@pytest.mark.parametrize(("rule", "scale"), [("absmean", 1e-5), ("absmax", 0), ("twn", 0)])
def test_zeros_stay_zeros(emulated: CudaLibrary, rule: str, scale: float, per_tensor: bool) -> None:
    packed, scales, mask = quantize(
        emulated, np.zeros((6, 11), np.float32), rule, BASE3, per_tensor=per_tensor
    )
    assert (scales == np.float32(scale)).all()
    np.testing.assert_array_equal(packed, pack(np.zeros((1, 6, 11), np.int8), BASE3, 0))
    np.testing.assert_array_equal(mask, np.tile(np.array([255, 7], np.uint8), 6))


@pytest.mark.parametrize(("dtype", "padding"), [(F32, 0), (BF16, 3), (F16, 4)])
@pytest.mark.parametrize("cols", [1, 8, 61, 1201])
def test_the_mask_clears_what_it_does_not_let_through(
    emulated: CudaLibrary, dtype: int, padding: int, cols: int
) -> None:
    rows = 37
    stored = latent_weights(rows, cols, dtype)
    inside = np.random.default_rng(1).integers(0, 4, (rows, cols)) > 0
    mask = Guarded.of(np.packbits(inside, axis=1, bitorder="little"))
    data, grad = matrix_of(stored, dtype, padding)
    status = emulated.cuda.bitimpl_cuda_apply_mask(mask.pointer, byref(grad), 0, None)
    assert status == OK, emulated.error()
    data.check("gradient")
    after = data.view(stored.dtype).reshape(rows, cols + padding)
    np.testing.assert_array_equal(after[:, :cols], np.where(inside, stored, 0).astype(stored.dtype))
    assert (after[:, cols:] == np.full(1, 0xAA, stored.dtype)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": 4}, "rule is 4: use 0 (absmean), 1 (absmax), 2 (twn) or 3 (sign)"),
        ({"rule": 3}, "format is 2 and rule 3: format 1 (binary) goes with rule 3 (sign), ternary"),
        ({"format": BINARY, "codes_bytes": 10}, "format is 1 and rule 0: format 1 (binary) goes with rule 3"),
        ({"codes_bytes": 17}, "codes hold 17 bytes, two_bit 1 x 5 x 9 takes 18"),
        ({"per_tensor": 1, "group_size": 8}, "per_tensor and group_size 8 exclude each other"),
        ({"per_tensor": 1, "workspace_bytes": 8}, "size it with bitimpl_cuda_quantize_weight_workspace"),
        ({"per_tensor": 1, "workspace": None}, "size it with bitimpl_cuda_quantize_weight_workspace"),
        ({"scales": None}, "scales lie at (nil): pass float32 memory, aligned"),
        ({"codes": None}, "codes is null: pass the packed bytes"),
    ],
)  # fmt: skip
def test_a_wrong_call_says_what_is_wrong(
    emulated: CudaLibrary, change: dict[str, int | None], message: str
) -> None:
    data, latent = matrix_of(latent_weights(5, 9), F32, 0)
    codes, scales = Guarded(18), Guarded(20)
    size = emulated.cuda.bitimpl_cuda_quantize_weight_workspace(5, 1)
    workspace = Guarded(size)
    call = LatentCall(
        latent, 0, 0, TWO_BIT, 0, 0, codes.pointer, 18, scales.pointer, None, workspace.pointer, size
    )
    assert emulated.cuda.bitimpl_cuda_quantize_weight(byref(call), 0, None) == OK, emulated.error()
    for name, value in change.items():
        setattr(call, name, value)
    assert emulated.cuda.bitimpl_cuda_quantize_weight(byref(call), 0, None) == INVALID_ARGUMENT
    assert message in emulated.error()
    data.check("latent")


def test_other_wrong_arguments(emulated: CudaLibrary) -> None:
    c = emulated.cuda
    assert c.bitimpl_cuda_quantize_weight(None, 0, None) == INVALID_ARGUMENT
    assert "call is null" in emulated.error()
    assert c.bitimpl_cuda_quantize_weight_workspace(0, 1) == -1
    assert "the weight has 0 rows" in emulated.error()
    _, grad = matrix_of(latent_weights(5, 9), F32, 0)
    assert c.bitimpl_cuda_apply_mask(None, byref(grad), 0, None) == INVALID_ARGUMENT
    assert "mask is null" in emulated.error()
    grad.row_stride = 8
    assert c.bitimpl_cuda_apply_mask(grad.data, byref(grad), 0, None) == INVALID_ARGUMENT
    assert "grad has row_stride 8 for 9 columns" in emulated.error()
