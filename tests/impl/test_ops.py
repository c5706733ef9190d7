"""torch.ops.bitimpl: schema, fake, autograd and errors."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from impl import functional, native, ops, packing, quantizers
from impl.packing import FORMATS, PackedWeight


def weight_of(format, rows=23, cols=50, components=1, group_size=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low = 0 if format == "binary" else -1
    codes = torch.randint(low, 2, (components, rows, cols), dtype=torch.int8, generator=generator)
    codes = codes * 2 - 1 if format == "binary" else codes
    groups = 1 if group_size is None else -(-cols // group_size)
    scales = torch.rand(components, rows, groups, generator=generator) + 0.1
    return PackedWeight.from_codes(codes, scales, format, group_size)


def arguments(x, weight, bias, bits):
    return (
        x,
        weight.codes,
        weight.scales,
        bias,
        weight.rows,
        weight.cols,
        weight.components,
        weight.group_size or 0,
        FORMATS[weight.format],
        bits or 0,
    )


CASES = [
    ("binary_linear", weight_of("binary"), 1),
    ("binary_linear", weight_of("binary", group_size=16), 8),
    ("ternary_linear", weight_of("base3", components=2), 8),
    ("ternary_linear", weight_of("two_bit", group_size=8), None),
    ("ternary_linear", weight_of("base3", components=2), 2),
]


@pytest.mark.parametrize(("name", "weight", "bits"), CASES)
def test_opcheck(name, weight, bits):
    x = torch.randn(3, 50, requires_grad=True)
    bias = torch.randn(23, requires_grad=True)
    operator = getattr(torch.ops.bitimpl, name).default
    torch.library.opcheck(operator, arguments(x, weight, bias, bits))
    torch.library.opcheck(operator, arguments(x.detach(), weight, None, bits))
    gradient = (torch.randn(4, 23, requires_grad=True), *arguments(x, weight, bias, bits)[1:3])
    numbers = arguments(x, weight, bias, bits)[4:-1]
    torch.library.opcheck(torch.ops.bitimpl.linear_input_grad.default, (*gradient, *numbers))


@pytest.mark.parametrize(("name", "weight", "bits"), CASES)
@pytest.mark.parametrize("shape", [(50,), (0, 50), (2, 3, 50)])
def test_fake_agrees_with_the_operator(name, weight, bits, shape):
    operator = getattr(torch.ops.bitimpl, name)
    x = torch.randn(shape, dtype=torch.bfloat16)
    y = operator(*arguments(x, weight, None, bits))
    meta = PackedWeight(
        weight.format, weight.components, weight.rows, weight.cols, weight.group_size,
        weight.codes.to("meta"), weight.scales.to("meta"),
    )  # fmt: skip
    fake = operator(*arguments(x.to("meta"), meta, None, bits))
    assert (fake.shape, fake.dtype, fake.stride()) == (y.shape, y.dtype, y.stride())


@pytest.mark.parametrize("format", ["binary", "base3", "two_bit"])
@pytest.mark.parametrize("bits", [None, 1, 2, 8, 16])
def test_functions_reach_the_operators_and_agree_with_the_references(format, bits):
    weight = weight_of(format, group_size=16)
    x, bias = torch.randn(4, 50), torch.randn(23)
    name = native.operator_of(format)
    y = getattr(functional, name)(x, weight, bias, bits)
    expected = getattr(functional, f"{name}_python")(x, weight, bias, bits)
    if bits is None:
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(y, expected)


@pytest.mark.parametrize("format", ["binary", "base3", "two_bit"])
def test_gradients_are_exact_where_activations_are_float(format):
    weight = weight_of(format, rows=70)
    dense = weight.unpack()[0].float() * weight.scales[0]
    x = torch.randn(2, 5, 50, requires_grad=True)
    bias = torch.randn(70, requires_grad=True)
    upstream = torch.randn(2, 5, 70)
    getattr(functional, native.operator_of(format))(x, weight, bias).backward(upstream)
    torch.testing.assert_close(x.grad, upstream @ dense, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias.grad, upstream.sum((0, 1)))


def test_second_derivative():
    weight = weight_of("base3")
    x = torch.randn(3, 50, requires_grad=True)
    upstream = torch.randn(3, 23, requires_grad=True)
    y = functional.ternary_linear(x, weight)
    (grad,) = torch.autograd.grad(y, x, upstream, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), upstream)
    dense = weight.unpack()[0].float() * weight.scales[0]
    torch.testing.assert_close(second, 2 * (upstream @ dense) @ dense.t(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("format", ["binary", "base3", "two_bit"])
@pytest.mark.parametrize("bits", [1, 2])
def test_gradients_of_signs_and_ternary_values_have_the_window_of_training_form(format, bits):
    weight = weight_of(format)
    x = torch.randn(3, 50, requires_grad=True)
    getattr(functional, native.operator_of(format))(x, weight, activation_bits=bits).sum().backward()
    leaf = x.detach().clone().requires_grad_()
    dense = weight.unpack()[0].float() * weight.scales[0]
    (quantizers.fake_quantize_activations(leaf, bits) @ dense.t()).sum().backward()
    torch.testing.assert_close(x.grad, leaf.grad, rtol=1e-5, atol=1e-5)
    assert (x.grad == 0).any()


def test_wrong_arguments_are_refused():
    binary, ternary = weight_of("binary"), weight_of("base3")
    x = torch.randn(2, 50)
    with pytest.raises(ValueError, match="binary_linear does not take base3"):
        torch.ops.bitimpl.binary_linear(*arguments(x, ternary, None, 8))
    with pytest.raises(ValueError, match="activation_bits=4, ternary_linear takes"):
        torch.ops.bitimpl.ternary_linear(*arguments(x, ternary, None, 4))
    with pytest.raises(ValueError, match="format=9 is unknown"):
        torch.ops.bitimpl.binary_linear(*arguments(x, binary, None, 8)[:8], 9, 8)
    with pytest.raises(ValueError, match="bytes in one dimension"):
        torch.ops.bitimpl.ternary_linear(x, ternary.codes[:-1], *arguments(x, ternary, None, 8)[2:])
    with pytest.raises(TypeError, match="int64"):
        torch.ops.bitimpl.ternary_linear(*arguments(x.long(), ternary, None, 8))
    with pytest.raises(ValueError, match="bias"):
        torch.ops.bitimpl.ternary_linear(*arguments(x, ternary, torch.zeros(3), 8))
    with pytest.raises(ValueError, match="one with"):
        ops.check_input(x, 50, torch.device("meta"))


def test_codes_bytes_are_those_the_operator_wants():
    weight = weight_of("two_bit")
    assert weight.codes.numel() == packing.codes_bytes("two_bit", 1, 23, 50)


def test_importing_registers_once_and_loads_no_library():
    code = (
        "import importlib, impl, impl.ops, torch\n"
        "from impl.native import library\n"
        "assert library.load.cache_info().currsize == 0\n"
        "import impl.functional, impl.layers\n"
        "assert hasattr(torch.ops.bitimpl, 'ternary_linear')\n"
        "maps = open('/proc/self/maps').read()\n"
        "assert 'libbitimpl' not in maps\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
