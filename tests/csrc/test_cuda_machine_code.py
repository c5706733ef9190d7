"""Each kernel for Hopper holds the instruction it is built around, and nothing of it lies in local memory.

Of the library that BITIMPL_CUDA_LIBRARY_PATH names, where it does; else of the sources, compiled here.
"""

from __future__ import annotations

import os
from pathlib import Path

import machine_code
import pytest
from machine_code import Kernel

#: What a kernel's products are made by: IDP dot products of four bytes, POPC set bits of a word, IMMA a
#: warp's integer matrix product, BMMA that of bits, IGMMA a warpgroup's, BGMMA a warpgroup's of bits, FFMA
#: float32.
PRODUCTS = {
    "any_kernel": "IDP",
    "conv_any_kernel": "IDP",
    "gather_kernel": "IDP",
    "gemv_kernel": "IDP",
    "popcount_kernel": "POPC",
    "binary_bytes_kernel": "IDP",
    "float_kernel": "FFMA",
    "binary_float_kernel": "FFMA",
    "small_batch_kernel": "IMMA",
    "gemm_kernel": "IMMA",
    "wgmma_kernel": "IGMMA",
    "bmma_kernel": "BMMA",
    "bgmma_kernel": "BGMMA",
    "input_grad_kernel": "IMMA",
    "prepare_bits_kernel": "POPC",
}
#: IGMMA or BGMMA for each WARPGROUP.ARRIVE where the compiler has not put the products one behind the other,
#: as it does (saying so as C7510 or its like) when registers of a product in flight are written.
FEWEST_IN_A_GROUP = 4


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> list[Kernel]:
    compiler = machine_code.nvcc()
    if compiler is None:
        pytest.skip("no nvcc: install the CUDA toolkit to test the machine code of the kernels")
    library = os.environ.get("BITIMPL_CUDA_LIBRARY_PATH")
    if library:
        files = [Path(library)]
    else:
        files = machine_code.compile_sources(compiler, tmp_path_factory.mktemp("machine_code"))
    return [kernel for file in files for kernel in machine_code.disassemble(file)]


#: conv_any_kernel<true, ..>: groups of one channel, which leave no four bytes to multiply at once.
SINGLE_CHANNELS = "conv_any_kernelILb1E"


def test_each_kernel_is_built_around_its_instruction(kernels: list[Kernel]) -> None:
    missing = [
        f"{kernel.symbol} without {PRODUCTS[kernel.name]}"
        for kernel in kernels
        if kernel.name in PRODUCTS
        and kernel.counts[PRODUCTS[kernel.name]] == 0
        and SINGLE_CHANNELS not in kernel.symbol
    ]
    assert missing == []
    assert set(PRODUCTS) <= {kernel.name for kernel in kernels}


def test_nothing_lies_in_local_memory(kernels: list[Kernel]) -> None:
    local = [
        f"{kernel.symbol}: {kernel.counts['LDL']} loads, {kernel.counts['STL']} stores"
        for kernel in kernels
        if kernel.counts["LDL"] + kernel.counts["STL"] > 0
    ]
    assert local == []


def test_products_of_a_warpgroup_overlap(kernels: list[Kernel]) -> None:
    groups = {
        kernel.symbol: (kernel.counts[PRODUCTS[kernel.name]], kernel.opcodes.count("WARPGROUP.ARRIVE"))
        for kernel in kernels
        if PRODUCTS.get(kernel.name) in ("IGMMA", "BGMMA")
    }
    # Of bytes two formats, 32 and 64 columns, one and two planes, but for base3's two of 64; of bits 128 and
    # 256 columns, each to signs, float and half.
    assert len(groups) == 7 + 6
    one_by_one = {name: n for name, n in groups.items() if n[0] < FEWEST_IN_A_GROUP * n[1]}
    assert one_by_one == {}


def test_a_warpgroup_multiplies_bits_by_and_alone(kernels: list[Kernel]) -> None:
    of_bits = [kernel for kernel in kernels if kernel.name == "bgmma_kernel"]
    products = {opcode for kernel in of_bits for opcode in kernel.opcodes if opcode.startswith("BGMMA")}
    assert products == {"BGMMA.64x256x256.AND.POPC", "BGMMA.64x128x256.AND.POPC"}
    copies = [kernel.symbol for kernel in of_bits if "UTMALDG.2D" not in kernel.opcodes]
    assert copies == []


def test_a_warp_multiplies_bits_by_and_alone(kernels: list[Kernel]) -> None:
    of_bits = [kernel for kernel in kernels if kernel.name == "bmma_kernel"]
    assert len(of_bits) == 18  # blocks of four sizes, copies of three widths, one sum and several; matrices
    products = {opcode for kernel in of_bits for opcode in kernel.opcodes if opcode.startswith("BMMA")}
    assert products == {"BMMA.168256.AND.POPC"}
    assert [kernel.symbol for kernel in of_bits if kernel.counts["CALL"] > 0] == []


@pytest.mark.parametrize("number", ["80", "90a"])
def test_cutlass_multiplies_bits_by_and_alone(tmp_path: Path, number: str) -> None:
    """Hopper's tensor cores have no exclusive or: a subroutine of two products would stand for each."""
    compiler, headers = machine_code.nvcc(), machine_code.cutlass_headers()
    if compiler is None:
        pytest.skip("no nvcc: install the CUDA toolkit to test the machine code of the kernels")
    if headers is None:
        pytest.skip("no headers of CUTLASS: pip install --no-deps nvidia-cutlass to test its machine code")
    files = machine_code.compile_cutlass(compiler, tmp_path, headers, number)
    kernels = [kernel for file in files for kernel in machine_code.disassemble(file)]
    of_cutlass = [kernel for kernel in kernels if kernel.name == machine_code.CUTLASS_KERNEL]
    assert len(of_cutlass) == 3  # matrices, and images by two kinds of iterators
    for kernel in of_cutlass:
        products = {opcode for opcode in kernel.opcodes if opcode.startswith("BMMA")}
        assert products == {"BMMA.168256.AND.POPC"}
        assert not [opcode for opcode in kernel.opcodes if opcode.startswith("CALL")]
    assert [kernel.symbol for kernel in kernels if kernel.counts["LDL"] + kernel.counts["STL"] > 0] == []


def test_the_listing_is_read_as_it_is_written() -> None:
    listing = """
		Function : _ZN7bitimpl4cuda39_GLOBAL__N__fefb3da7_7_gemm_cu_c09cf64112wgmma_kernelILi2EEEvNS1_3JobE
	.headerflags	@"EF_CUDA_TEXREF_UNIFIED"
        /*0000*/                   LDC R1, c[0x0][0x28] ;    /* 0x00000a00ff017b82 */
                                                             /* 0x000fe20000000800 */
        /*0010*/              @!P2 STL.64 [R1+0x8], R4 ;     /* 0x0000000401007387 */
        /*0020*/                   WARPGROUP.ARRIVE ;        /* 0x00000000000079c5 */
		Function : _ZN7bitimpl4cuda12_GLOBAL__N_110any_kernelENS0_10LinearTaskE
        /*0000*/              @UP0 IDP.4A.U8.S8 R1, R2, R3, R1 ;
"""
    first, second = machine_code.read(listing)
    assert (first.name, second.name) == ("wgmma_kernel", "any_kernel")
    assert first.opcodes == ("LDC", "STL.64", "WARPGROUP.ARRIVE")
    assert first.counts["STL"] == 1
    assert second.counts["IDP"] == 1
