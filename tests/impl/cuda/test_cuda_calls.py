"""CUDA linear calls on tensors: the emulator runs the kernels, CPU tensors are its memory."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch
from emulated import EmulatedLibrary
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from weights import WEIGHTS, Drawn, ternary

from impl import functional, native, tiles
from impl.native.cuda import PreparedCudaLinear, calls
from impl.native.library import NativeError
from impl.packing import PackedWeight

pytestmark = pytest.mark.usefixtures("emulated", "one_thread")
SHARED = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def inputs(tokens: int, cols: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(tokens, cols, generator=torch.Generator().manual_seed(tokens)) * 3).to(dtype)


def reference(
    weight: PackedWeight, x: torch.Tensor, bias: torch.Tensor | None, bits: int | None
) -> torch.Tensor:
    return functional.ternary_linear_python(x, weight, bias, bits)


@SHARED
@given(
    drawn=WEIGHTS,
    tokens=st.sampled_from([1, 2, 5, 9, 17]),
    bits=st.sampled_from([1, 2, 8, 16]),
    dtype=st.sampled_from(list(native.DTYPES)),
    bias=st.booleans(),
)
def test_integer_activations_equal_the_reference(
    drawn: Drawn, tokens: int, bits: int, dtype: torch.dtype, bias: bool
) -> None:
    _, weight = drawn
    x = inputs(tokens, weight.cols, dtype)
    b = torch.randn(weight.rows) if bias else None
    y, expected = PreparedCudaLinear(weight, b, bits)(x), reference(weight, x, b, bits)
    assert y.dtype == dtype
    if weight.group_size is None:
        assert torch.equal(y, expected)
    else:
        size = expected.float().abs().max().item() + 1
        tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
        torch.testing.assert_close(y.float(), expected.float(), rtol=tolerance, atol=tolerance * size)
    assert native.last_kernel().startswith(f"ternary_linear/{weight.format}/")
    assert native.last_kernel().endswith("/sm_80")


@SHARED
@given(drawn=WEIGHTS, tokens=st.sampled_from([1, 4, 17, 40]), half=st.sampled_from(list(native.DTYPES)))
def test_float_activations_are_close_to_the_reference(drawn: Drawn, tokens: int, half: torch.dtype) -> None:
    _, weight = drawn
    x, bias = inputs(tokens, weight.cols, half), torch.ones(weight.rows, dtype=torch.float16)
    y, expected = PreparedCudaLinear(weight, bias, None)(x), reference(weight, x, bias, None)
    size = expected.abs().max().item() + weight.cols**0.5 * float(weight.scales.max())
    limit = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 3e-2}[half] * size
    assert y.dtype == half
    assert (y.float() - expected.float()).abs().max().item() <= limit
    few = tokens <= max(1, calls.FLOAT_ROWS // weight.components)
    assert native.last_kernel().split("/")[3] == ("float" if few else "decode+mm")


def test_several_tiles_of_float_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", 16 * 50)
    for format in ("two_bit", "base3"):
        _, weight = ternary(format, 2, 75, 50)
        assert len(list(tiles.row_tiles(weight))) > 2
        x, bias = inputs(30, 50), torch.nn.Parameter(torch.randn(75))
        y = PreparedCudaLinear(weight, bias, None)(x.requires_grad_())
        torch.testing.assert_close(y, reference(weight, x, bias, None).detach())
        assert not y.requires_grad


def test_every_kernel_by_name(emulated: EmulatedLibrary) -> None:
    served = []
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (1, 40, 192), dtype=torch.int8, generator=generator) * 2 - 1
    binary = PackedWeight.from_codes(signs, torch.ones(1, 40, 1), "binary", None)
    _, base3 = ternary("base3", 1, 40, 192)
    for name in emulated.kernels_here:
        native.cuda.select_kernel(name)
        for weight, bits in ((base3, None), (base3, 8), (binary, 1), (binary, 8)):
            operator = getattr(functional, f"{native.operator_of(weight.format)}_python")
            for tokens in (1, 20, 70, 1):
                x = inputs(tokens, 192)
                call = PreparedCudaLinear(weight, None, bits)
                with contextlib.suppress(NativeError):
                    y = call(x)
                    torch.testing.assert_close(y, operator(x, weight, None, bits), rtol=1e-5, atol=1e-4)
                    assert call.kernel.split("/")[3] in (name, "decode+mm")
                    served.append(name)
    assert set(served) == set(emulated.kernels_here)
    native.cuda.select_kernel("any")
    with pytest.raises(NativeError, match="kernel any was chosen, but it takes quantised activations"):
        PreparedCudaLinear(base3, None, None)(inputs(1, 192))


def test_a_prepared_call_follows_the_rows_and_the_choice_of_kernel(emulated: EmulatedLibrary) -> None:
    _, weight = ternary("two_bit", 1, 40, 128)
    call = PreparedCudaLinear(weight, None, 16)
    expected = {tokens: reference(weight, inputs(tokens, 128), None, 16) for tokens in (1, 30)}
    for name in ("any", None, "any"):
        native.cuda.select_kernel(name)
        for tokens in (1, 30, 1):
            assert torch.equal(call(inputs(tokens, 128)), expected[tokens])
            assert (call.kernel.split("/")[3] == "any") or name is None
    chosen = call.kernel
    native.cuda.select_kernel(None)
    call(inputs(1, 128))
    first = call.kernel.split("/")[3]
    emulated.avoid(first, 0)
    if first != "any":
        assert torch.equal(call(inputs(1, 128)), expected[1])
        assert call.kernel.split("/")[3] != first
    assert chosen.split("/")[3] == "any"


def test_the_workspace_is_asked_for_once_for_as_many_rows(
    emulated: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, weight = ternary("two_bit", 1, 8, 64)
    asked: list[int] = []
    query = emulated.linear_workspace

    def counted(pointer: int, rows: int, activation: int, index: int) -> int:
        asked.append(rows)
        size: int = query(pointer, rows, activation, index)
        return size

    monkeypatch.setattr(emulated, "linear_workspace", counted)
    call = PreparedCudaLinear(weight, None, 8)
    for tokens in (3, 3, 9, 9, 9, 3):
        call(inputs(tokens, 64))
    assert asked == [3, 9, 3]


@pytest.mark.parametrize("bits", [8, None])
def test_any_strides_and_leading_dimensions(bits: int | None) -> None:
    _, weight = ternary("base3", 1, 21, 40)
    call = PreparedCudaLinear(weight, None, bits)
    big = torch.randn(6, 4, 80)
    views = [
        big[:, 0, 3:43],
        big[:, :, ::2],
        big[0, 0, :40],
        big[:, :, :40].transpose(0, 1),
        torch.randn(1, 40).expand(5, 40),
        big[:0, :, :40],
        torch.randn(40, 7).t(),
    ]
    for x in views:
        y = call(x)
        assert y.shape == (*x.shape[:-1], 21)
        assert y.is_contiguous()
        torch.testing.assert_close(y, reference(weight, x, None, bits), rtol=1e-5, atol=1e-4)


def test_a_row_that_is_not_finite_spoils_itself_alone() -> None:
    _, weight = ternary("two_bit", 1, 21, 40)
    x = inputs(4, 40)
    x[2, 7] = float("inf")
    y = PreparedCudaLinear(weight, None, 8)(x)
    assert y[2].isnan().all()
    assert torch.equal(y[[0, 1, 3]], reference(weight, x[[0, 1, 3]], None, 8))


def test_tensors_that_do_not_fit_are_refused(
    emulated: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, weight = ternary("two_bit", 1, 30, 40)
    for bias in (torch.zeros(30, dtype=torch.float64), torch.zeros(29), torch.zeros(60)[::2]):
        with pytest.raises(ValueError, match="bias must be a contiguous"):
            PreparedCudaLinear(weight, bias, 8)
    with pytest.raises(ValueError, match=r"the bias is on meta, the packed weight on cpu: move one"):
        PreparedCudaLinear(weight, torch.zeros(30, device="meta"), 8)
    with pytest.raises(NativeError, match="activation is 3: use 0"):
        PreparedCudaLinear(weight, None, 3)(inputs(1, 40))
    call = PreparedCudaLinear(weight, None, 8)
    monkeypatch.setattr(emulated, "index_of", lambda _: 1)
    with pytest.raises(ValueError, match="the input is on cpu, the packed weight on cpu: move one"):
        call(inputs(1, 40))


def test_too_large_for_the_kernels_is_an_error_not_a_wrong_number() -> None:
    """Sizes come from views that hold nothing: an error has to come before any of it is read."""
    scales = torch.ones(1, 1, 1)
    cols = (1 << 24) + 8
    codes = torch.zeros(1, dtype=torch.uint8).expand(cols)
    weight = PackedWeight("two_bit", 1, 1, cols, None, codes.as_strided((cols,), (0,)), scales)
    with pytest.raises(ValueError, match="contiguous"):
        PreparedCudaLinear(weight, None, 8)
    whole = PackedWeight("two_bit", 1, 1, cols, None, torch.zeros(cols, dtype=torch.uint8), scales)
    with pytest.raises(NativeError, match="16777215"):
        PreparedCudaLinear(whole, None, 8).workspace_bytes(1)


def test_matches_the_tensors_it_was_made_of_alone() -> None:
    _, weight = ternary("two_bit", 1, 30, 40)
    bias = torch.zeros(30)
    call = PreparedCudaLinear(weight, bias, 8)
    assert call.matches(weight.codes, weight.scales, bias)
    assert not call.matches(weight.codes.clone(), weight.scales, bias)
    assert not call.matches(weight.codes, weight.scales.clone(), bias)
    assert not call.matches(weight.codes, weight.scales, None)
    bias.data = torch.zeros(30)
    assert not call.matches(weight.codes, weight.scales, bias)


def test_threads_share_a_prepared_call_with_kernels_of_their_own() -> None:
    _, weight = ternary("base3", 1, 21, 130)
    call = PreparedCudaLinear(weight, None, 8)
    wrong: list[str] = []

    def work(name: str | None, tokens: int) -> None:
        native.cuda.select_kernel(name)
        expected = reference(weight, inputs(tokens, 130), None, 8)
        for _ in range(10):
            if not torch.equal(call(inputs(tokens, 130)), expected):
                wrong.append(str(name))
        native.cuda.select_kernel(None)

    threads = [
        threading.Thread(target=work, args=pair) for pair in (("any", 1), (None, 1), (None, 9), ("any", 9))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
