"""The native library: finding it, choosing backends and instruction sets, and its results."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib import metadata

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impl import capabilities, decoding, functional, native, tiles
from impl.geometry import ConvGeometry
from impl.native import backends, calls
from impl.packing import PackedWeight

needs_library = pytest.mark.skipif(not native.available(), reason=f"no native library: {native.why_not()}")


def random_weight(format, components, rows, cols, group_size, scale_rows, seed):
    generator = torch.Generator().manual_seed(seed)
    if format == "binary":
        components = 1
        codes = torch.randint(0, 2, (1, rows, cols), dtype=torch.int8, generator=generator) * 2 - 1
    else:
        codes = torch.randint(-1, 2, (components, rows, cols), dtype=torch.int8, generator=generator)
    groups = 1 if group_size is None else -(-cols // group_size)
    scales = torch.rand(components, rows if scale_rows else 1, groups, generator=generator) + 0.01
    return PackedWeight.from_codes(codes, scales, format, group_size)


WEIGHTS = st.builds(
    random_weight,
    st.sampled_from(["binary", "two_bit", "base3"]),
    st.integers(1, 4),
    st.integers(1, 70),
    st.integers(1, 200),
    st.sampled_from([None, 8, 24, 64]),
    st.booleans(),
    st.integers(0, 1 << 20),
)


@needs_library
@settings(max_examples=150, deadline=None)
@given(
    weight=WEIGHTS,
    rows=st.sampled_from([1, 2, 3, 5, 8, 9, 17, 33]),
    bits=st.sampled_from([1, 2, 8, 16]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    bias=st.booleans(),
    isa=st.integers(0, 3),
)
def test_integer_activations_equal_the_reference_to_the_bit(weight, rows, bits, dtype, bias, isa):
    isas = native.supported_isas()
    generator = torch.Generator().manual_seed(rows)
    x = (torch.randn(rows, weight.cols, generator=generator) * 3).to(dtype)
    bias = torch.randn(weight.rows, generator=generator) if bias else None
    python = getattr(functional, f"{native.operator_of(weight.format)}_python")
    native.select_isa(isas[isa % len(isas)])
    try:
        assert torch.equal(native.linear(x, weight, bias, bits), python(x, weight, bias, bits))
        assert native.last_kernel().endswith(isas[isa % len(isas)])
    finally:
        native.select_isa(None)


@needs_library
@settings(max_examples=60, deadline=None)
@given(weight=WEIGHTS, rows=st.sampled_from([1, 4, 8, 9, 30]), half=st.booleans())
def test_float_activations_are_close_to_the_reference(weight, rows, half):
    dtype = torch.bfloat16 if half else torch.float32
    x = torch.randn(rows, weight.cols, generator=torch.Generator().manual_seed(rows)).to(dtype)
    bias = torch.ones(weight.rows)
    python = getattr(functional, f"{native.operator_of(weight.format)}_python")
    y, expected = native.linear(x, weight, bias, None), python(x, weight, bias, None)
    assert y.dtype == dtype
    scale = expected.abs().max().item() + weight.cols**0.5 * weight.scales.max().item()
    assert (y.float() - expected.float()).abs().max().item() <= (1e-2 if half else 1e-5) * scale


@needs_library
@settings(max_examples=60, deadline=None)
@given(weight=WEIGHTS, data=st.data())
def test_decoding_agrees_with_the_torch_reference(weight, data):
    begin = data.draw(st.integers(0, weight.rows))
    end = data.draw(st.integers(begin, weight.rows))
    with native.backend("torch"):
        expected = decoding.dequantize_rows(weight, begin, end)
    assert torch.equal(decoding.dequantize_rows(weight, begin, end), expected)
    assert expected.shape == (end - begin, weight.cols)


@needs_library
def test_several_tiles_of_float_activations(monkeypatch):
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", 16 * 50)
    for format in ("binary", "two_bit", "base3"):
        weight = random_weight(format, 2, 75, 50, None, True, 0)
        assert len(list(tiles.row_tiles(weight))) > 2
        x = torch.randn(calls.FLOAT_ROWS[native.isa()] + 1, 50)
        python = getattr(functional, f"{native.operator_of(format)}_python")
        expected = python(x, weight, torch.ones(75), None)
        torch.testing.assert_close(native.linear(x, weight, torch.ones(75), None), expected)
        assert "decode+mm" in native.last_kernel()


@needs_library
def test_few_rows_of_float_activations_are_served_from_the_packed_bytes():
    x = torch.randn(200, 64)
    for isa in native.supported_isas():
        native.select_isa(isa)
        try:
            for components in (1, 3, 16):
                weight = random_weight("base3", components, 40, 64, None, True, 0)
                most = max(1, calls.FLOAT_ROWS[isa] // components)
                expected = functional.ternary_linear_python(x, weight, None, None)
                for rows, kernel in ((most, "gem"), (most + 1, "decode+mm")):
                    y = native.linear(x[:rows], weight, None, None)
                    torch.testing.assert_close(y, expected[:rows], rtol=1e-5, atol=1e-4)
                    assert native.last_kernel().split("/")[3].startswith(kernel)
        finally:
            native.select_isa(None)


@needs_library
def test_prepared_calls_notice_a_change_of_threads():
    call = native.PreparedLinear(random_weight("base3", 1, 40, 64, None, True, 0), None, 8)
    before, sizes = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            call(torch.randn(3, 64))
            sizes.append(call._workspace[-1])
    finally:
        torch.set_num_threads(before)
    assert sizes[0] == sizes[2] < sizes[1]


@needs_library
def test_prepared_calls_notice_a_change_of_instruction_set_and_rows():
    weight = random_weight("base3", 1, 40, 64, None, True, 0)
    call = native.PreparedLinear(weight, None, 8)
    seen = set()
    for name in native.supported_isas():
        native.select_isa(name)
        try:
            for rows in (1, 20, 1):
                x = torch.randn(rows, 64)
                assert torch.equal(call(x), functional.ternary_linear_python(x, weight, None, 8))
            assert native.isa() == name
            assert call.kernel.endswith(name)
            seen.add(call.kernel)
        finally:
            native.select_isa(None)
    assert len(seen) == len(native.supported_isas())


@needs_library
def test_bias_of_any_float_dtype():
    weight = random_weight("two_bit", 1, 30, 40, None, True, 0)
    x = torch.randn(2, 40)
    for dtype in native.DTYPES:
        bias = torch.randn(30).to(dtype)
        expected = functional.ternary_linear_python(x, weight, bias, 8)
        assert torch.equal(native.linear(x, weight, bias, 8), expected)
    with pytest.raises(ValueError, match="bias must be"):
        native.linear(x, weight, torch.zeros(30, dtype=torch.float64), 8)
    with pytest.raises(ValueError, match="bias must be"):
        native.linear(x, weight, torch.zeros(29), 8)
    with pytest.raises(ValueError, match="the bias is on meta, the packed weight on cpu"):
        native.linear(x, weight, torch.zeros(30, device="meta"), 8)


@needs_library
def test_the_library_says_why_it_refuses():
    weight = random_weight("two_bit", 1, 30, 40, None, True, 0)
    with pytest.raises(native.NativeError, match="activation is 3: use 0"):
        native.linear(torch.randn(2, 40), weight, None, 3)
    with pytest.raises(native.NativeError, match="no-such-isa"):
        native.select_isa("no-such-isa")
    assert native.isa() in native.supported_isas()
    noncontiguous = PackedWeight(
        "binary", 1, 4, 8, None, torch.zeros(8, dtype=torch.uint8)[::2], torch.ones(1, 4, 1)
    )
    with pytest.raises(ValueError, match="contiguous"):
        native.linear(torch.randn(1, 8), noncontiguous, None, 8)


@needs_library
def test_large_workspaces_are_given_back():
    weight = random_weight("base3", 1, 8, 4096, None, True, 0)
    x = torch.randn(600, 4096)
    native.linear(x, weight, None, 16)
    assert all(frame.workspace_bytes <= calls._KEPT_WORKSPACE for frame in calls._frames)


def test_a_library_that_the_package_installed_is_found():
    try:
        installed = metadata.files("bitbench") or []
    except metadata.PackageNotFoundError:
        pytest.skip("bitbench is not installed")
    if not any(file.name == "libbitimpl_cpu.so" for file in installed):
        pytest.skip("bitbench was installed without a compiler")
    code, out, error = run("from impl import native; print(native.available(), native.why_not())")
    assert (code, out.split()[0]) == (0, "True"), out + error


# ---- backends -------------------------------------------------------------------------------


def run(code, **environment):
    env = {k: v for k, v in os.environ.items() if not k.startswith("BITIMPL_")} | environment
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout, done.stderr


CALL = """
import torch, impl
from impl import native
layer = impl.BitLinear(16, 8, activation_bits=8).pack()
with torch.no_grad():
    layer(torch.ones(1, 16)); layer(torch.ones(2, 16))
print(layer.last_kernel)
"""


def test_unknown_backends_are_refused():
    with pytest.raises(ValueError, match="auto, native, torch"), native.backend("cuda"):
        pass
    code, _, error = run(CALL, BITIMPL_BACKEND="fast")
    assert code != 0
    assert "BITIMPL_BACKEND is 'fast'" in error


def test_torch_backend_loads_nothing_and_does_not_warn():
    code, out, error = run(
        CALL + "print(native.library.load.cache_info().currsize)",
        BITIMPL_BACKEND="torch",
        BITIMPL_LIBRARY_PATH="/nowhere",
    )
    assert (code, error) == (0, "")
    assert out.split() == ["ternary_linear/base3/int8/reference/torch", "0"]


@pytest.mark.parametrize("choice", ["auto", "native"])
def test_a_library_path_that_leads_nowhere_is_an_error_not_a_fallback(choice):
    code, _, error = run(CALL, BITIMPL_BACKEND=choice, BITIMPL_LIBRARY_PATH="/nowhere")
    assert code != 0
    assert "BITIMPL_LIBRARY_PATH=/nowhere" in error
    assert "unset the variable" in error


def test_a_file_that_is_no_library_is_named(tmp_path):
    file = tmp_path / "libbitimpl_cpu.so"
    file.write_bytes(b"not a library")
    code, _, error = run(CALL, BITIMPL_LIBRARY_PATH=str(tmp_path))
    assert code != 0
    assert str(file) in error


WITHOUT_LIBRARY = """
import warnings
from impl.native import library
def nothing():
    raise library.NativeError("the native kernels were not built: install a C++ compiler")
library._find = nothing
warnings.simplefilter("always")
"""


def test_auto_falls_back_with_one_warning_and_native_does_not():
    code, out, error = run(WITHOUT_LIBRARY + CALL)
    assert code == 0
    assert out.strip().endswith("/torch")
    assert error.count("install a C++ compiler") == 1
    code, _, error = run(WITHOUT_LIBRARY + CALL, BITIMPL_BACKEND="native")
    assert code != 0
    assert "backend 'native' was asked for, but the native kernels were not built" in error


def test_other_devices_have_no_native_kernels(monkeypatch):
    monkeypatch.setattr(backends, "_warned", set())
    mps = torch.device("mps")
    with native.backend("native"), pytest.raises(native.NativeError, match="no native kernels for mps"):
        native.uses_native(mps)
    with native.backend("auto"):
        with pytest.warns(RuntimeWarning, match="no native kernels for mps"):
            assert not native.uses_native(mps)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not native.uses_native(mps)
    elsewhere = random_weight("base3", 1, 4, 8, None, True, 0)
    elsewhere = replace(elsewhere, codes=elsewhere.codes.to("meta"), scales=elsewhere.scales.to("meta"))
    with pytest.raises(native.NativeError, match="no native kernels for meta"):
        native.prepare_linear(elsewhere, None, 8)


def test_backend_blocks_nest():
    before = native.current_backend()
    with native.backend("torch"):
        with native.backend("auto"):
            assert native.current_backend() == "auto"
        assert native.current_backend() == "torch"
        assert not native.uses_native(torch.device("cpu"))
    assert native.current_backend() == before


@needs_library
def test_an_unknown_isa_in_the_environment_is_an_error_not_a_fallback():
    path = str(native.library_path())
    code, _, error = run(CALL, BITIMPL_LIBRARY_PATH=path, BITIMPL_ISA="mmx")
    assert code != 0
    assert "mmx" in error
    many = CALL.replace(", activation_bits=8", "").replace("torch.ones(1, 16)", "torch.ones(500, 16)")
    code, _, error = run(many, BITIMPL_LIBRARY_PATH=path, BITIMPL_ISA="mmx")
    assert code != 0
    assert "BITIMPL_ISA=mmx is not usable here" in error
    tell = "import impl; c = impl.capabilities(); print(c.isa, {k.isa for k in c.kernels}, c.why_not)"
    code, out, _ = run(tell, BITIMPL_LIBRARY_PATH=path, BITIMPL_ISA="mmx")
    assert code == 0
    assert out.startswith("None {'torch'} ")
    assert "BITIMPL_ISA=mmx is not usable here" in out
    worst = native.supported_isas()[-1]
    code, out, _ = run(CALL, BITIMPL_LIBRARY_PATH=path, BITIMPL_ISA=worst)
    assert code == 0
    assert out.strip().endswith(worst)


# ---- capabilities ---------------------------------------------------------------------------


def test_capabilities_are_plain_data():
    import json

    found = capabilities()
    plain = found.as_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert (found.isa is None) == bool(found.why_not)
    served = {(k.operator, k.format, k.activation, k.device, k.isa) for k in found.kernels}
    assert ("ternary_linear", "base3", "int8", "cpu", "torch") in served
    assert ("binary_linear", "binary", "sign", "cpu", "torch") in served
    assert {k.activation for k in found.kernels} == {"float", "sign", "ternary", "int8", "int16"}
    assert not any(k.operator.startswith("binary") and k.format != "binary" for k in found.kernels)
    assert len(served) == len(found.kernels)


@needs_library
def test_every_kernel_named_in_capabilities_runs():
    bits = {"float": None, "sign": 1, "ternary": 2, "int8": 8, "int16": 16}
    for kernel in capabilities().kernels:
        if kernel.isa == "torch" or kernel.device != "cpu":
            continue
        weight = random_weight(kernel.format, 2, 21, 30, None, True, 0)
        native.select_isa(kernel.isa)
        try:
            if kernel.operator.endswith("_linear"):
                native.linear(torch.randn(1, 30), weight, None, bits[kernel.activation])
            else:
                geometry = ConvGeometry((3,), (1,), ((0, 0),), (1,))
                native.conv(torch.randn(1, 10, 4), weight, geometry, None, bits[kernel.activation])
        finally:
            native.select_isa(None)
        assert native.last_kernel().startswith(f"{kernel.operator}/{kernel.format}/{kernel.activation}")
        assert native.last_kernel().endswith(kernel.isa)


@needs_library
@pytest.mark.parametrize("count", [1, 7, 8, 63, 64, 65, 4096, 1_000_003])
def test_read_bytes_reads_every_byte(count: int) -> None:
    data = torch.randint(0, 256, (count,), dtype=torch.uint8)
    padded = torch.cat([data, data.new_zeros(-count % 8)]).numpy().view("<u8")
    assert native.read_bytes(data.data_ptr(), count) == int(np.bitwise_xor.reduce(padded))
