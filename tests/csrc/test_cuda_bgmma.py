"""Products of bits by wgmma (csrc/cuda/binary_gemm_sm90a.cu), as the emulator runs them: operands that the
copy engine brings, descriptors, stages, tiles, sums to y and to signs, against the CPU's kernels and the
exact reference."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator
from ctypes import byref
from pathlib import Path

import numpy as np
import pytest
from conv_cases import CHANNELS_FIRST, CHANNELS_LAST, GAPS, ConvCase
from cuda_library import CudaLibrary, load_emulated
from kernel_cases import CASES, EXTREME_CASES, ZERO_CASES, Case, Problem, quantised, weight_of
from kernel_library import BASE3, BF16, BINARY, F16, F32, OK, SIGN, TERNARY, TWO_BIT, Guarded, Library
from operator_problems import ConvProblem, SignsProblem
from test_cuda_linear import check

LINE = 1024


@pytest.fixture(params=[(1, 1), (2, 3)], ids=["one_block", "three_blocks"])
def bgmma(request: pytest.FixtureRequest, cuda: CudaLibrary) -> CudaLibrary:
    seed, multiprocessors = request.param
    cuda.order(seed)
    cuda.emulate(90, multiprocessors)
    cuda.select_kernel("bgmma")
    return cuda


@pytest.fixture(autouse=True)
def as_it_was(cuda: CudaLibrary) -> Iterator[None]:
    yield
    cuda.select_kernel(None)
    cuda.emulate(80, 3)


def run(library: CudaLibrary, case: Case, codes_offset: int = 0) -> None:
    problem = Problem(case)
    check(problem, problem.run(library, codes_offset=codes_offset))
    assert library.last_kernel().endswith("/bgmma/sm_90")


def takes(case: Case) -> bool:
    whole = LINE if case.format == BINARY else LINE // 4
    return case.group_size == 0 or case.group_size >= case.cols or case.group_size % whole == 0


TABLE = [
    case
    for case in quantised(CASES) + EXTREME_CASES + ZERO_CASES
    if (case.format, case.activation) == (BINARY, SIGN)
    and takes(case)
    and case.cols * case.tokens <= 300_000  # longer ones take seconds
]


@pytest.mark.parametrize("case", TABLE, ids=lambda case: case.id)
def test_the_shapes_of_every_kernel(cuda: CudaLibrary, case: Case) -> None:
    cuda.order(zlib.crc32(case.id.encode()))
    cuda.emulate(90, 2)
    cuda.select_kernel("bgmma")
    run(cuda, case, codes_offset=case.rows % 2)


#: Tiles of 256 rows (one unit, more than half a tile a multiprocessor) and of 128, edges of both and of 64
#: and 128 tokens; columns that end within a word, a product, a line; more lines than stages; every dtype.
EDGES = [
    Case(BINARY, 1, 256, 1024, 0, SIGN, 128),
    Case(BINARY, 1, 255, 1023, 0, SIGN, 127, bias_dtype=F32),
    Case(BINARY, 1, 257, 1025, 0, SIGN, 129, y_dtype=BF16, bias_dtype=F16, scale_dtype=F16),
    Case(BINARY, 1, 129, 8192, 0, SIGN, 65, y_dtype=F16, bias_dtype=BF16),
    Case(BINARY, 1, 520, 1280, 0, SIGN, 140, BF16, F32, 3, 5),
    Case(BINARY, 1, 300, 300, 0, SIGN, 260, F16, BF16, 0, 1, per_tensor=1),
    Case(BINARY, 1, 8, 7168, 0, SIGN, 64, F32, F16, 0, 2),
]


@pytest.mark.parametrize("codes_offset", [0, 1])
@pytest.mark.parametrize("case", EDGES, ids=lambda case: case.id)
def test_edges_of_tiles(bgmma: CudaLibrary, case: Case, codes_offset: int) -> None:
    run(bgmma, case, codes_offset)


UNITS = [
    Case(BINARY, 3, 130, 1500, 0, SIGN, 70, bias_dtype=F32),
    Case(BINARY, 1, 140, 3072, 1024, SIGN, 66, y_dtype=BF16),
    Case(BINARY, 2, 33, 5000, 2048, SIGN, 131, F16, F16, 1, 0, BF16, F16),
    Case(BINARY, 2, 70, 2048, 1024, SIGN, 9),
]


@pytest.mark.parametrize("case", UNITS, ids=lambda case: case.id)
def test_components_and_segments(bgmma: CudaLibrary, case: Case) -> None:
    run(bgmma, case)


def test_orders_of_warps(bgmma: CudaLibrary) -> None:
    """Many schedules: in some the warps that put constants come last, in some the copies."""
    case = Case(BINARY, 2, 300, 300, 0, SIGN, 5)
    for seed in range(24):
        bgmma.order(seed)
        run(bgmma, case)


PLANES = [
    Case(TWO_BIT, 1, 130, 700, 0, TERNARY, 66),
    Case(BASE3, 1, 257, 1024, 0, TERNARY, 129, y_dtype=BF16, bias_dtype=F32),
    Case(TWO_BIT, 2, 65, 1100, 256, TERNARY, 70),
    Case(BASE3, 3, 20, 129, 0, TERNARY, 5, F16, F16),
]


@pytest.mark.parametrize("case", PLANES, ids=lambda case: case.id)
def test_ternary_values_in_planes(bgmma: CudaLibrary, case: Case) -> None:
    run(bgmma, case)


SIGNS = [EDGES[1], EDGES[4], EDGES[6], UNITS[0], UNITS[2]]


@pytest.mark.parametrize("case", SIGNS, ids=lambda case: case.id)
@pytest.mark.parametrize(("x_signs", "y_signs"), [(True, False), (False, True), (True, True)])
def test_from_and_to_signs(
    bgmma: CudaLibrary, library: Library, case: Case, x_signs: bool, y_signs: bool
) -> None:
    problem = SignsProblem(case, x_signs, y_signs)
    problem.run_cuda(bgmma).same(problem.run_cpu(library), case.id)
    assert bgmma.last_kernel().endswith("/bgmma/sm_90")


def pixels(rows: int, channels: int, size: tuple[int, int, int], **more: int) -> ConvCase:
    return ConvCase(BINARY, 1, rows, channels, 1, SIGN, 2, size, (1, 1, 1), **more)  # type: ignore[arg-type]


CONVS = [
    pixels(130, 65, (1, 5, 7), bias_dtype=F32),
    pixels(40, 1100, (2, 3, 5), y_dtype=BF16, y_layout=CHANNELS_LAST),
    pixels(257, 200, (1, 1, 70), y_dtype=F16, y_layout=GAPS, x_layout=CHANNELS_LAST),
    pixels(16, 128, (1, 12, 12), y_layout=CHANNELS_FIRST, padding_value=-1),
]


@pytest.mark.parametrize("case", CONVS, ids=lambda case: case.line.replace(" ", "_"))
def test_convolutions_of_single_pixels(bgmma: CudaLibrary, library: Library, case: ConvCase) -> None:
    for x_signs, y_signs in ((False, False), (True, False), (False, True), (True, True)):
        problem = ConvProblem(case, x_signs, y_signs)
        problem.run_cuda(bgmma).same(problem.run_cpu(library), f"signs {x_signs} {y_signs}: {case.line}")
        assert bgmma.last_kernel().endswith("/bgmma/sm_90")


#: Signs of tokens whose scale is 1 are told by integers alone.
ONES = [
    Case(BINARY, 1, 520, 1280, 0, SIGN, 140),
    Case(BINARY, 1, 255, 1023, 0, SIGN, 127),
    Case(BINARY, 1, 5, 7, 0, SIGN, 3),
    Case(BINARY, 1, 33, 2049, 0, SIGN, 130, scale_dtype=F16),
]


def ones(tokens: int, *others: float) -> np.ndarray:
    """Scales of 1, but for a few tokens."""
    scales = np.ones(tokens, np.float32)
    for place, other in enumerate(others, 1):
        scales[place * tokens // (len(others) + 1)] = other
    return scales


def bounds(rows: int, cols: int) -> dict[str, np.ndarray]:
    """Intervals of every kind: closed on both sides or one, all, of a single value, unordered, no number."""
    rng = np.random.default_rng(rows)
    spread = 1.5 * cols**0.5
    lower, upper = np.sort(rng.uniform(-spread, spread, (2, rows)).astype(np.float32), axis=0)
    lower[1::8], upper[2::8] = -np.inf, np.inf
    lower[3::8], upper[3::8] = upper[3::8], lower[3::8]
    lower[4::8], upper[4::8] = -np.inf, np.inf
    upper[5::8] = lower[5::8] = 0.0
    lower[6::16], upper[14::16] = np.nan, np.nan
    return {"lower": lower, "upper": upper}


@pytest.mark.parametrize("others", [(), (np.nan,), (np.nan, 0.5, -1.0)], ids=["ones", "nan", "others"])
@pytest.mark.parametrize("case", ONES, ids=lambda case: case.id)
def test_scales_of_one(bgmma: CudaLibrary, library: Library, case: Case, others: tuple[float, ...]) -> None:
    problem = SignsProblem(case, x_signs=True, y_signs=True)
    held = {**bounds(case.rows, case.cols), "x_scale": ones(case.tokens, *others)}
    problem.held |= {name: Guarded.of(values) for name, values in held.items()}
    problem.run_cuda(bgmma).same(problem.run_cpu(library), case.id)


@pytest.mark.parametrize(
    ("scale", "least", "most"),
    [
        (0.0, -np.inf, np.inf),
        (3e38, -1e30, 1e30),
        (np.inf, -np.inf, np.inf),
        (np.nan, -np.inf, np.inf),
        (-1.0, -900.0, 3.0e38),
        (1.0, -3.0e38, 900.0),
    ],
)
def test_scales_of_one_where_y_is_not_ordinary(
    bgmma: CudaLibrary, library: Library, scale: float, least: float, most: float
) -> None:
    """A row of the weight whose y overflows, is no number, or leaves what the next layer takes."""
    case = Case(BINARY, 1, 300, 1024, 0, SIGN, 70)
    problem = SignsProblem(case, x_signs=True, y_signs=True)
    scales = problem.scales.view(np.float32).copy()
    scales[77] = scale
    problem.scales = Guarded.of(scales)
    held = {**bounds(case.rows, case.cols), "x_scale": ones(case.tokens, np.nan)}
    held |= {"least": np.full(case.rows, -np.inf, np.float32), "most": np.full(case.rows, np.inf, np.float32)}
    held["least"][77], held["most"][77] = least, most
    problem.held |= {name: Guarded.of(values) for name, values in held.items()}
    problem.run_cuda(bgmma).same(problem.run_cpu(library), f"{scale} {least} {most}")


def test_scales_of_one_with_a_bias(bgmma: CudaLibrary, library: Library) -> None:
    """Of images: linear layers of these problems have none."""
    case = pixels(300, 65, (1, 9, 10), bias_dtype=BF16, y_layout=CHANNELS_LAST)
    problem = ConvProblem(case, x_signs=True, y_signs=True)
    problem.held["x_scale"] = Guarded.of(np.ones(case.samples, np.float32))
    problem.run_cuda(bgmma).same(problem.run_cpu(library), case.line)


def test_scales_of_infinity(bgmma: CudaLibrary, library: Library) -> None:
    """Every y of such a token is infinite, which its signs may be: what lies past the last column, zeros
    times infinity, must not make the token's scale NaN."""
    problem = SignsProblem(Case(BINARY, 1, 9, 1023, 0, SIGN, 5), x_signs=True, y_signs=True)
    problem.held["x_scale"] = Guarded.of(np.full(5, np.inf, np.float32))
    expected = problem.run_cpu(library)
    assert expected.scale is not None
    assert (expected.scale == 1.0).all()
    problem.run_cuda(bgmma).same(expected, "infinity")


def workspace(library: CudaLibrary, case: Case) -> int:
    """That the library asks for, before there is memory."""
    weight = weight_of(case.layout, Guarded(8), None, F32, (case.components, case.rows, 1))
    weight.codes_bytes = case.components * case.rows * -(-case.cols // 8)
    return library.cuda.bitimpl_cuda_linear_workspace(byref(weight), case.tokens, case.activation, 0)


GROUPS = "it takes scale groups of whole lines: multiples of 1024 columns, or of 256 of ternary weights"
COUNTS = "it counts up to 2^30 tokens and as many rows of all components"


@pytest.mark.parametrize(
    ("architecture", "case", "reason"),
    [
        (80, Case(BINARY, 1, 64, 64, 0, SIGN, 64), "it needs a device of architecture 9.0"),
        (100, Case(BINARY, 1, 64, 64, 0, SIGN, 64), "it needs a device of architecture 9.0"),
        (90, Case(BINARY, 1, 64, 2048, 512, SIGN, 64), GROUPS),
        (90, Case(BINARY, 1, 64, 64, 0, SIGN, 2**30 + 1), COUNTS),
        (90, Case(BINARY, 2, 2**29 + 1, 8, 0, SIGN, 64), COUNTS),
    ],
)
def test_refusals_say_why(cuda: CudaLibrary, architecture: int, case: Case, reason: str) -> None:
    cuda.emulate(architecture, 4)
    cuda.select_kernel("bgmma")
    needed = workspace(cuda, case)
    message = cuda.error()
    cuda.select_kernel(None)
    assert needed == -1
    assert message == f"kernel bgmma was chosen, but {reason}: choose another, or none"


def test_not_chosen_before_it_is_trusted(cuda: CudaLibrary, tmp_path: Path) -> None:
    case = Case(BINARY, 1, 130, 1024, 0, SIGN, 100)
    copy = load_emulated(Path(shutil.copy(cuda.path, tmp_path / "copy.so")))  # trust is for good
    copy.emulate(90, 4)

    def kernel_of(case: Case) -> str:
        problem = Problem(case)
        check(problem, problem.run(copy, codes_offset=0))
        return copy.last_kernel().split("/")[-2]

    assert kernel_of(case) != "bgmma"
    assert copy.cuda.bitimpl_cuda_trust(b"bgmma") == OK
    assert kernel_of(case) == "bgmma"
    assert kernel_of(Case(BINARY, 1, 130, 1023 - 128, 0, SIGN, 100)) != "bgmma"
    assert kernel_of(Case(BINARY, 1, 130, 1024, 0, SIGN, 95)) != "bgmma"
    assert kernel_of(Case(BINARY, 1, 95, 1024, 0, SIGN, 100)) != "bgmma"
    assert kernel_of(Case(BINARY, 1, 130, 1024, 8, SIGN, 100)) != "bgmma"  # which it refuses
    assert kernel_of(Case(TWO_BIT, 1, 130, 1024, 0, TERNARY, 100)) != "bgmma"  # planes do not pay
    copy.emulate(90, 132)
    assert kernel_of(case) != "bgmma"  # two tiles of 132
