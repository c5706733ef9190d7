"""The plain loops that stand for CUTLASS in the emulator read what its iterators read, run on the host."""

from __future__ import annotations

import subprocess
from pathlib import Path

import machine_code
import pytest

#: (samples, columns, words, words from pixel to pixel, words beyond the taps of a row of w, size, kernel,
#: stride, dilation, before, after): one of everything, tiles cut by positions and by columns, channels beyond
#: a tile's 512 bits, groups beside each other, windows that see nothing but the border, kernels of either
#: kind of iterator.
CASES = [
    (1, 4, 4, 4, 0, (1, 1), (1, 1), (1, 1), (1, 1), (0, 0), (0, 0)),
    (2, 8, 4, 4, 0, (9, 11), (3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    (1, 132, 8, 8, 0, (13, 12), (3, 2), (1, 1), (1, 1), (0, 1), (1, 0)),
    (3, 4, 20, 20, 4, (5, 7), (2, 3), (2, 1), (1, 2), (1, 2), (0, 1)),
    (2, 12, 4, 12, 0, (6, 6), (3, 3), (1, 2), (2, 1), (2, 1), (2, 1)),
    (1, 16, 36, 40, 8, (4, 5), (1, 3), (1, 1), (1, 1), (0, 1), (0, 1)),
    (1, 4, 4, 4, 0, (2, 2), (2, 2), (1, 1), (1, 1), (3, 4), (5, 0)),
    (2, 8, 4, 4, 0, (4, 40), (1, 33), (1, 1), (1, 1), (0, 16), (0, 16)),
    (1, 4, 20, 24, 4, (70, 3), (34, 2), (3, 1), (1, 1), (5, 1), (2, 0)),
    (2, 4, 4, 8, 0, (9, 8), (32, 1), (1, 3), (1, 1), (31, 0), (31, 0)),
]


def line(case: tuple) -> str:
    samples, columns, words, pixel_stride, gap, size, kernel, stride, dilation, before, after = case
    taps = kernel[0] * kernel[1]
    out = [
        (size[d] + before[d] + after[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in (0, 1)
    ]
    sizes = (*size, *out, *kernel, *stride, *dilation, *before)
    return " ".join(map(str, (samples, columns, words, pixel_stride, taps * words + gap, *sizes)))


def test_cutlass_reads_what_the_loops_read(tmp_path: Path) -> None:
    compiler, headers = machine_code.nvcc(), machine_code.cutlass_headers()
    if compiler is None:
        pytest.skip("no nvcc: install the CUDA toolkit to compile CUTLASS")
    if headers is None:
        pytest.skip("no headers of CUTLASS: pip install --no-deps nvidia-cutlass to test what it reads")
    program = tmp_path / "iterators"
    source = Path(__file__).with_name("cutlass_iterators.cu")
    command = [
        compiler, "-std=c++17", "-O1", "-arch=sm_80", "-isystem", str(headers), str(source),
        "-o", str(program),
    ]  # fmt: skip
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-4000:]
    cases = "\n".join(map(line, CASES))
    done = subprocess.run([program], input=cases, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{len(CASES)} cases\n")
