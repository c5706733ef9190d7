"""Packing and training on the device touch nothing beside their buffers, which end at pages without access.

The calls run in a process of their own, which a stray access would end.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import subprocess
import sys
from ctypes import byref, c_int32, c_int64, c_void_p
from pathlib import Path

import numpy as np
from cuda_library import CudaLibrary
from kernel_library import BASE3, BF16, BINARY, F32, OK, REPOSITORY, TWO_BIT, Matrix, Weight
from kernel_reference import codes_bytes, pack, segments
from test_cuda_quantize_weight import LatentCall

#: (components, rows, cols, group_size, tokens): loads of whole words and of single bytes, all tails.
SHAPES = [(1, 1, 1, 0, 1), (2, 7, 30, 8, 3), (1, 13, 100, 0, 33), (1, 33, 64, 0, 2), (2, 171, 72, 24, 5)]


class PageEnd:
    """A copy of an array in front of a page that must not be touched."""

    def __init__(self, array: np.ndarray) -> None:
        size = -(-max(array.nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, size + mmap.PAGESIZE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(c_void_p(base + size), mmap.PAGESIZE, 0) == 0, ctypes.get_errno()
        self._memory[size - array.nbytes : size] = array.tobytes()
        self.pointer = base + size - array.nbytes


def run(c: ctypes.CDLL, fmt: int, shape: tuple[int, int, int, int, int]) -> None:
    components, rows, cols, group_size, tokens = shape
    groups = len(segments(cols, group_size))
    rng = np.random.default_rng(0)
    codes = (rng.integers(0, 2, (components, rows, cols)) * 2 - 1).astype(np.int8)
    packed = PageEnd(pack(codes, fmt, group_size))
    size = codes_bytes(fmt, components, rows, cols)
    scales = PageEnd(np.ones((components, rows, groups), np.float32))
    weight = Weight(
        1, fmt, components, F32, rows, cols, group_size, packed.pointer, size, scales.pointer,
        rows * groups, groups, 1,
    )  # fmt: skip
    given, out = PageEnd(codes), PageEnd(np.zeros(size, np.uint8))
    arguments = (c_int32(fmt), c_int32(components), c_int64(rows), c_int64(cols), c_int64(group_size))
    assert (
        c.bitimpl_cuda_pack(
            *arguments, c_void_p(given.pointer), c_void_p(out.pointer), c_int64(size), 0, None
        )
        == OK
    )
    assert c.bitimpl_cuda_unpack(byref(weight), c_void_p(given.pointer), 0, None) == OK
    for dtype, kind in [(F32, np.float32), (BF16, np.uint16)]:
        floats = PageEnd(np.zeros((rows, cols), kind))
        assert (
            c.bitimpl_cuda_dequantize(
                byref(weight),
                c_int64(0),
                c_int64(rows),
                c_void_p(floats.pointer),
                dtype,
                c_int64(cols),
                0,
                None,
            )
            == OK
        )
        if fmt == BINARY:
            continue
        dy, dx = PageEnd(np.ones((tokens, rows), kind)), PageEnd(np.zeros((tokens, cols), kind))
        needed = c.bitimpl_cuda_input_grad_workspace(byref(weight), c_int64(tokens))
        workspace = PageEnd(np.zeros(needed, np.uint8))
        assert c.bitimpl_cuda_input_grad(
            byref(weight), byref(Matrix(dy.pointer, dtype, 0, tokens, rows, rows)),
            byref(Matrix(dx.pointer, dtype, 0, tokens, cols, cols)), c_void_p(workspace.pointer),
            c_int64(needed), 0, None,
        ) == OK  # fmt: skip
        if components > 1:
            continue
        latent, mask = (
            PageEnd(np.ones((rows, cols), kind)),
            PageEnd(np.zeros((rows, -(-cols // 8)), np.uint8)),
        )
        per_tensor = int(group_size == 0)
        needed = c.bitimpl_cuda_quantize_weight_workspace(c_int64(rows), per_tensor)
        workspace = PageEnd(np.zeros(needed, np.uint8))
        grad = Matrix(latent.pointer, dtype, 0, rows, cols, cols)
        call = LatentCall(
            grad, 2, per_tensor, fmt, 0, group_size, out.pointer, size, scales.pointer, mask.pointer,
            workspace.pointer, needed,
        )  # fmt: skip
        assert c.bitimpl_cuda_quantize_weight(byref(call), 0, None) == OK
        assert c.bitimpl_cuda_apply_mask(c_void_p(mask.pointer), byref(grad), 0, None) == OK


def test_nothing_beside_the_buffers_is_touched(cuda: CudaLibrary) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(cuda.path)],
        capture_output=True, text=True, check=False, timeout=120,
        env={"PYTHONPATH": f"{REPOSITORY}:{Path(__file__).parent}", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode} after {done.stdout.splitlines()[-1:]}: {done.stderr}"
    assert len(done.stdout.splitlines()) == 3 * len(SHAPES)


if __name__ == "__main__":
    library = ctypes.CDLL(sys.argv[1])
    library.bitimpl_cuda_input_grad_workspace.restype = c_int64
    library.bitimpl_cuda_quantize_weight_workspace.restype = c_int64
    for fmt, case in itertools.product([BINARY, TWO_BIT, BASE3], SHAPES):
        print(fmt, *case, flush=True)
        run(library, fmt, case)
