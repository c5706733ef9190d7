"""Packing, unpacking and decoding by the CUDA kernels, against the torch layouts."""

from __future__ import annotations

import pytest
import torch
from emulated import EmulatedLibrary
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weights import WEIGHTS, Drawn, ternary

from impl import decoding, native, packing
from impl.native.cuda import PreparedCudaLinear, devices
from impl.packing import layout
from impl.quantizers import Quantized

pytestmark = pytest.mark.usefixtures("on_cpu_tensors", "one_thread")
SHARED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def served(on_cpu_tensors: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The entry points that were called, in order."""
    entries: list[str] = []
    function = on_cpu_tensors.function

    def noted(name: str) -> object:
        entries.append(name)
        return function(name)

    monkeypatch.setattr(on_cpu_tensors, "function", noted)
    return entries


@SHARED
@given(drawn=WEIGHTS, strided=st.booleans())
def test_bytes_are_those_of_the_torch_layout(drawn: Drawn, strided: bool) -> None:
    codes, weight = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "CODECS", {})
        expected = packing.pack(codes, weight.format, weight.group_size)
    given_codes = codes.transpose(1, 2).contiguous().transpose(1, 2) if strided else codes
    packed = packing.pack(given_codes, weight.format, weight.group_size)
    assert torch.equal(packed, expected)
    assert torch.equal(decoding.unpack_rows(weight, 0, weight.rows), codes)


def test_the_kernels_do_it(served: list[str]) -> None:
    codes, weight = ternary("base3", 2, 33, 50, 24)
    packing.pack(codes, "base3", 24)
    weight.unpack()
    assert served == ["cuda_pack", "cuda_unpack"]
    signs = torch.ones(2, 9, 30, dtype=torch.int8)
    signs[:, 2::3, 1::2] = -1
    bits = packing.pack(signs, "binary")
    assert torch.equal(bits, packing.pack_sign_rows(signs).flatten())
    assert torch.equal(packing.unpack(bits, "binary", 2, 9, 30), signs)
    assert served == ["cuda_pack", "cuda_unpack"] * 2


def test_codes_and_bytes_outside_the_format_are_refused_before(served: list[str]) -> None:
    with pytest.raises(ValueError, match=r"codes must lie in -1 .. 1, got 2"):
        packing.pack(torch.full((1, 4, 8), 2, dtype=torch.int8), "two_bit")
    for format, byte, count in (("two_bit", 0b11000101, 16), ("base3", 243, 16)):
        bytes_ = torch.full((count,), 85 if format == "two_bit" else 121, dtype=torch.uint8)
        bytes_[3] = byte
        with pytest.raises(ValueError, match=f"a byte that {format} never produces"):
            packing.unpack(bytes_, format, 1, 5 if format == "base3" else 4, 16)
    assert served == []


@SHARED
@given(drawn=WEIGHTS, data=st.data())
def test_decoded_rows_are_those_of_the_reference(drawn: Drawn, data: st.DataObject) -> None:
    codes, weight = drawn
    begin = data.draw(st.integers(0, weight.rows))
    end = data.draw(st.integers(begin, weight.rows))
    expected = Quantized(codes, weight.scales, weight.group_size).dequantize()[begin:end]
    found = decoding.dequantize_rows(weight, begin, end)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    if end > begin:
        for dtype in (torch.bfloat16, torch.float16):
            out = torch.full((end - begin, weight.cols), float("nan"), dtype=dtype)
            PreparedCudaLinear(weight, None, None).dequantize_into(out, begin, end)
            assert torch.equal(out, expected.to(dtype))


def test_decoding_part_of_a_weight_whose_scales_are_a_view() -> None:
    codes, weight = ternary("base3", 2, 60, 50, 24)
    part = decoding.block_slice(weight, 20, 40)
    expected = Quantized(codes[:, 20:40], part.scales, 24).dequantize()
    assert torch.equal(decoding.dequantize_rows(part, 0, 20), expected)


def test_where_a_kernel_was_found_wrong_torch_packs(
    served: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(devices._wrong, 0, {"pack": "a wrong byte", "unpack": "a wrong code"})
    monkeypatch.setattr(native.dispatch, "uses_native", lambda _, *what: native.serves_cuda(0, *what))
    codes, weight = ternary("base3", 1, 33, 50)
    with pytest.warns(RuntimeWarning, match="pack on cuda:0: a wrong byte"):
        assert torch.equal(packing.pack(codes, "base3"), weight.codes)
    with pytest.warns(RuntimeWarning, match="unpack on cuda:0: a wrong code"):
        assert torch.equal(weight.unpack(), codes)
    assert not {"cuda_pack", "cuda_unpack"} & set(served)
