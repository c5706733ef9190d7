"""Products of bits by CUTLASS, as far as they go without a GPU: everything around its sums, with plain loops
in the place of CUTLASS (csrc/emulator/contraction.cpp), against the CPU's kernels and conv2d of the signs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cuda_library
import kernel_cases
import numpy as np
import operator_problems
import pytest
import torch
from conv_cases import CHANNELS_FIRST, ConvCase
from cuda_library import CudaLibrary
from kernel_cases import Case, Problem
from kernel_library import BINARY, F32, INT8, OK, REPOSITORY, SIGN, Guarded, Library
from operator_problems import ConvProblem, SignsProblem
from test_cuda_bits import SIGN_CONVS, SIGN_LINEAR
from test_cuda_bits_guard_pages import GuardPages
from test_cuda_linear import check
from torch.nn import functional


@pytest.fixture
def cutlass(cuda: CudaLibrary) -> Iterator[CudaLibrary]:
    cuda.select_kernel("cutlass")
    yield cuda
    cuda.select_kernel(None)


def kernel_of(library: CudaLibrary) -> str:
    """Name of the kernel that served the last call."""
    name: str = library.cuda.bitimpl_cuda_last_kernel().decode()
    return name.split("/")[-2]


def is_volume(case: ConvCase) -> bool:
    one_tap = case.kernel == (1, 1, 1) and case.stride == (1, 1, 1) and not any(case.before + case.after)
    return not one_tap and (case.size[0] > 1 or case.kernel[0] > 1 or case.before[0] + case.after[0] > 0)


IMAGES = [case for case in SIGN_CONVS if not is_volume(case)]
VOLUMES = [case for case in SIGN_CONVS if is_volume(case)]


# ---- against the CPU ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", SIGN_LINEAR, ids=lambda case: case.id)
def test_linear(cutlass: CudaLibrary, case: Case) -> None:
    cutlass.order(zlib.crc32(case.id.encode()))
    for codes_offset in (0, 1):
        problem = Problem(case)
        check(problem, problem.run(cutlass, codes_offset=codes_offset))
    assert kernel_of(cutlass) == "cutlass"


@pytest.mark.parametrize("case", SIGN_LINEAR[::3], ids=lambda case: case.id)
@pytest.mark.parametrize(("x_signs", "y_signs"), [(True, False), (False, True), (True, True)])
def test_linear_from_and_to_signs(
    cutlass: CudaLibrary, library: Library, case: Case, x_signs: bool, y_signs: bool
) -> None:
    problem = SignsProblem(case, x_signs, y_signs)
    problem.run_cuda(cutlass).same(problem.run_cpu(library), case.id)


def same_as_on_the_cpu(cutlass: CudaLibrary, library: Library, case: ConvCase) -> None:
    cutlass.order(zlib.crc32(case.line.encode()))
    for x_signs, y_signs in ((False, False), (True, False), (False, True), (True, True)):
        problem = ConvProblem(case, x_signs, y_signs)
        problem.run_cuda(cutlass).same(problem.run_cpu(library), f"signs {x_signs} {y_signs}: {case.line}")


@pytest.mark.parametrize("case", IMAGES, ids=lambda case: case.line.replace(" ", "_"))
def test_convolutions(cutlass: CudaLibrary, library: Library, case: ConvCase) -> None:
    same_as_on_the_cpu(cutlass, library, case)


#: (rows, channels, groups, samples, size, kernel, stride, dilation, before, after): channels that are whole
#: vectors, with rows that are and are not; many samples, portion by portion; matrices of a 1 x 1 kernel.
OWN_SHAPES = [
    (8, 128, 1, 5, (1, 9, 11), (1, 3, 3), (1, 1, 1), (1, 1, 1), (0, 1, 1), (0, 1, 1)),
    (12, 256, 1, 1, (1, 20, 7), (1, 3, 2), (1, 2, 1), (1, 2, 2), (0, 2, 0), (0, 1, 1)),
    (10, 256, 2, 2, (1, 6, 6), (1, 2, 3), (1, 1, 2), (1, 1, 1), (0, 0, 1), (0, 1, 0)),
    (16, 384, 1, 2, (1, 40, 5), (1, 33, 1), (1, 1, 1), (1, 1, 1), (0, 16, 0), (0, 16, 0)),
    (20, 256, 2, 40, (1, 5, 5), (1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0), (0, 0, 0)),
    (6, 40, 1, 30, (1, 1, 17), (1, 1, 1), (1, 1, 1), (1, 1, 1), (0, 0, 0), (0, 0, 0)),
    (6, 40, 1, 3, (1, 4, 17), (1, 1, 1), (1, 1, 2), (1, 1, 1), (0, 0, 0), (0, 0, 0)),
]


@pytest.mark.parametrize("shape", OWN_SHAPES)
@pytest.mark.parametrize("padding_value", [-1, 0, 1])
def test_convolutions_of_whole_vectors(
    cutlass: CudaLibrary, library: Library, shape: tuple, padding_value: int
) -> None:
    rows, channels, groups, *rest = shape
    case = ConvCase(BINARY, 2, rows, channels, groups, SIGN, *rest, padding_value, bias_dtype=F32)
    same_as_on_the_cpu(cutlass, library, case)


# ---- against torch -----------------------------------------------------------------------------

TORCH_SHAPES = [
    # channels, rows, groups, size, kernel, stride, dilation, padding
    (3, 5, 1, (9, 8), (3, 3), (1, 1), (1, 1), (1, 1)),
    (33, 7, 1, (6, 11), (3, 2), (2, 1), (1, 2), (2, 1)),
    (64, 16, 1, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1)),
    (128, 8, 1, (7, 9), (5, 3), (2, 2), (1, 1), (3, 0)),
    (200, 12, 1, (5, 5), (1, 1), (1, 1), (1, 1), (0, 0)),
    (260, 6, 2, (6, 5), (3, 3), (1, 1), (2, 1), (2, 1)),
    (12, 12, 12, (7, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
]


@pytest.mark.parametrize("shape", TORCH_SHAPES, ids=lambda shape: f"{shape[0]}-{shape[1]}-{shape[2]}")
@pytest.mark.parametrize("padding_value", [-1, 0, 1])
def test_convolutions_are_those_of_torch_on_the_signs(
    cutlass: CudaLibrary, shape: tuple, padding_value: int
) -> None:
    """D5 (the CUTLASS convolution of bitorch_engine read channels-first memory as channels-last, an eighth
    of its channels, without K - 2p, and was tested against itself alone)."""
    channels, rows, groups, size, kernel, stride, dilation, padding = shape
    case = ConvCase(
        BINARY, 1, rows, channels, groups, SIGN, 2, (1, *size), (1, *kernel), (1, *stride), (1, *dilation),
        (0, *padding), (0, *padding), padding_value, y_layout=CHANNELS_FIRST,
    )  # fmt: skip
    problem = ConvProblem(case, x_signs=True)
    problem.scales = Guarded.of(np.ones(problem.scales_shape, np.float32))
    problem.held["x_scale"] = Guarded.of(np.ones(case.samples, np.float32))
    bits = problem.x.bytes.reshape(case.samples, *size, -1)
    x = np.unpackbits(bits, axis=-1, count=channels, bitorder="little").astype(np.float32) * 2 - 1
    w = problem.layout.codes().reshape(rows, *kernel, channels // groups).astype(np.float32)
    before_after = (padding[1], padding[1], padding[0], padding[0])
    expected = functional.conv2d(
        functional.pad(torch.from_numpy(x).permute(0, 3, 1, 2), before_after, value=padding_value),
        torch.from_numpy(w).permute(0, 3, 1, 2),
        None, stride, 0, dilation, groups,
    )  # fmt: skip
    y = problem.run_cuda(cutlass).y.view(np.float32).reshape(expected.shape)
    np.testing.assert_array_equal(y, expected.numpy())


# ---- what it takes, and when it is taken -----------------------------------------------------------


def error_of(library: CudaLibrary, problem: ConvProblem) -> str:
    call, _, _ = problem._descriptors()
    library.cuda.bitimpl_cuda_conv_workspace.restype = cuda_library.c_int64
    assert library.cuda.bitimpl_cuda_conv_workspace(cuda_library.byref(call), 0) == -1
    return library.error()


def test_volumes_are_refused(cutlass: CudaLibrary) -> None:
    assert VOLUMES
    for case in VOLUMES:
        message = error_of(cutlass, ConvProblem(case))
        assert "kernel cutlass was chosen, but it convolves images and signals, not volumes" in message


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"size": (1, 1 << 13, 1 << 12), "channels": 64}, "a sample has 2^31 bits or more"),
        ({"size": (1, 8, 8), "stride": (1, 1 << 28, 1)}, "windows of a sample reach over 2^31 bits or more"),
        ({"size": (1, 1 << 12, 1 << 11), "rows": 512}, "a sample of the output has 2^31 elements or more"),
    ],
)
def test_sizes_beyond_its_integers_are_refused(cutlass: CudaLibrary, changes: dict, reason: str) -> None:
    """CUTLASS adds up places in tensors as int32: a larger one would be read in the wrong place."""
    small = ConvProblem(ConvCase(BINARY, 1, 8, 8, 1, SIGN, 1, (1, 8, 8), (1, 2, 2)))
    call, _, _ = small._descriptors()
    case = replace(small.case, **changes)
    weight, conv = small.weight, small.conv
    weight.rows, weight.cols = case.rows, 4 * case.channels
    weight.codes_bytes = case.rows * case.channels // 2
    out = [
        (size - kernel) // stride + 1
        for size, kernel, stride in zip(case.size, case.kernel, case.stride, strict=True)
    ]
    for image, channels, sizes in ((call.x, case.channels, case.size), (call.y, case.rows, out)):
        image.channels = channels
        strides = np.cumprod([1, channels, *sizes[::-1]])
        for d in range(3):
            image.size[d], image.spatial_stride[d] = sizes[d], int(strides[3 - d])
        image.channel_stride, image.sample_stride = 1, int(strides[4])
    for d in range(3):
        conv.stride[d] = case.stride[d]
    library = cutlass.cuda
    library.bitimpl_cuda_conv_workspace.restype = cuda_library.c_int64
    assert library.bitimpl_cuda_conv_workspace(cuda_library.byref(call), 0) == -1
    assert f"kernel cutlass was chosen, but {reason}" in cutlass.error()


@pytest.fixture
def alone(cuda: CudaLibrary, tmp_path: Path) -> CudaLibrary:
    """The library once more: what it trusts and leaves out is for good."""
    path = tmp_path / cuda.path.name
    shutil.copy(cuda.path, path)
    return cuda_library.load_emulated(path)


def prefer(library: CudaLibrary, name: str | None) -> None:
    assert library.cuda.bitimpl_cuda_prefer_kernel(None if name is None else name.encode()) == OK


def test_it_serves_where_it_is_preferred_trusted_and_able(alone: CudaLibrary) -> None:
    image = replace(IMAGES[2], samples=1)
    assert served(alone, image) != "cutlass"  # never of itself
    prefer(alone, "cutlass")
    assert served(alone, image) != "cutlass"  # not before a GPU has run it
    assert alone.cuda.bitimpl_cuda_trust(b"cutlass") == OK
    assert served(alone, image) == "cutlass"
    assert served(alone, VOLUMES[0]) != "cutlass"  # it cannot: somebody else does
    alone.select_kernel("any")
    assert served(alone, image) == "any"
    alone.select_kernel(None)
    prefer(alone, None)
    assert served(alone, image) != "cutlass"
    prefer(alone, "cutlass")
    assert alone.cuda.bitimpl_cuda_avoid(b"cutlass", 0) == OK
    assert served(alone, image) != "cutlass"


def served(library: CudaLibrary, case: ConvCase) -> str:
    ConvProblem(case).run_cuda(library)
    return kernel_of(library)


def test_a_kernel_that_is_not_there_cannot_be_preferred(cuda: CudaLibrary) -> None:
    assert cuda.cuda.bitimpl_cuda_prefer_kernel(b"cutless") != OK
    assert 'there is no CUDA kernel "cutless": choose one of' in cuda.error()


def test_bytes_are_not_its_business(alone: CudaLibrary) -> None:
    prefer(alone, "cutlass")
    assert alone.cuda.bitimpl_cuda_trust(b"cutlass") == OK
    case = next(case for case in SIGN_LINEAR if case.components == 1)
    problem = Problem(replace(case, activation=INT8))
    check(problem, problem.run(alone, codes_offset=0))
    assert kernel_of(alone) != "cutlass"


def test_the_library_says_what_it_was_built_with(cuda: CudaLibrary) -> None:
    cuda.cuda.bitimpl_cuda_cutlass.restype = cuda_library.c_char_p
    assert cuda.cuda.bitimpl_cuda_cutlass() == b"emulated"
    assert "cutlass" in cuda.kernels()


# ---- memory --------------------------------------------------------------------------------------


def in_place() -> tuple[list[Case], list[ConvCase]]:
    """Calls whose codes serve as they lie, of rows that have to be filled up to four."""
    linear = [Case(BINARY, 1, rows, cols, 0, SIGN, 3) for rows, cols in ((3, 1024), (5, 128), (8, 256))]
    shapes = ((3, 128, 1), (5, 256, 1), (6, 256, 2), (8, 128, 1))
    images = [
        ConvCase(BINARY, 1, rows, channels, groups, SIGN, 2, (1, 4, 5), (1, 3, 3), before=(0, 1, 0))
        for rows, channels, groups in shapes
    ]
    return linear, images


def test_nothing_beside_the_buffers_is_touched(cuda: CudaLibrary) -> None:
    """In a process of its own, which a read beyond them would end."""
    done = subprocess.run(
        [sys.executable, __file__, str(cuda.path)],
        capture_output=True, text=True, check=False, timeout=120,
        env={"PYTHONPATH": f"{REPOSITORY}:{Path(__file__).parent}", "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode} after {done.stdout.splitlines()[-1:]}: {done.stderr}"
    assert len(done.stdout.splitlines()) == sum(map(len, in_place()))


def main(path: str) -> None:
    for module in (kernel_cases, operator_problems):
        module.Guarded = GuardPages  # type: ignore[attr-defined]
    library = cuda_library.load_emulated(Path(path))
    library.select_kernel("cutlass")
    linear, images = in_place()
    for token in linear:
        print(token.id, flush=True)
        Problem(token).run(library, codes_offset=0)
    for case in images:
        print(case.line, flush=True)
        ConvProblem(case).run_cuda(library)


if __name__ == "__main__":
    main(sys.argv[1])
