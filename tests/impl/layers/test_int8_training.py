"""Layers trained with int8 products: the packed layer's numbers forwards, stated ones backwards."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from int8_layers import OPTIONS, ROWS, SIZES, backward, expected_grad_x, layer_of

from impl import BitLinear, native
from impl.ops import int8_training
from impl.packing import FORMATS, PackedWeight
from impl.quantizers import quantize_activations, quantize_binary, quantize_ternary

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", OPTIONS)
def test_it_computes_what_the_packed_layer_computes(kind: str, dtype: torch.dtype) -> None:
    for cols, rows in SIZES:
        layer = layer_of(kind, cols, rows)
        packed = copy.deepcopy(layer).pack()
        for shape in ROWS:
            x = torch.randn(*shape, cols, dtype=dtype)
            with torch.no_grad():
                y, expected = layer(x), packed(x)
                with native.backend("torch"):
                    reference = layer(x)
            assert y.dtype == dtype
            assert torch.equal(y, expected)
            if layer.group_size is None:
                assert torch.equal(y, reference)
            else:  # another order of the groups
                torch.testing.assert_close(y, reference)
            assert torch.equal(layer.eval()(x), y)
            layer.train()


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize(("cols", "rows"), SIZES)
def test_gradients_are_those_stated(kind: str, cols: int, rows: int) -> None:
    layer = layer_of(kind, cols, rows)
    for shape in ROWS:
        x = torch.randn(*shape, cols)
        y, grad, found = backward(layer, x)
        assert y.shape == (*shape, rows)
        right = expected_grad_x(grad, layer) if grad.numel() else np.zeros((0, cols))
        q, scale = quantize_activations(x.reshape(-1, cols), layer.activation_bits)
        if layer.activation_bits == 1:
            window = x.reshape(-1, cols).abs() <= 2 * scale
            assert len(x) < 70 or cols == 1 or not window.all()
            right = right * window.numpy()
        np.testing.assert_allclose(
            found["x"].reshape(-1, cols).numpy(), right, rtol=1e-6, atol=1e-6 * np.abs(right).max(initial=0)
        )
        flat = grad.reshape(-1, rows).double()
        grad_weight = flat.T @ (q * scale).double()
        if layer.ste == "clip":
            inside = layer.weight.detach().abs() <= 1
            assert not inside.all() or inside.numel() < 10
            assert (found["weight"][~inside] == 0).all()
            grad_weight = grad_weight * inside
        torch.testing.assert_close(found["weight"].double(), grad_weight, rtol=1e-4, atol=1e-5)
        if layer.bias is not None:
            torch.testing.assert_close(found["bias"].double(), flat.sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", OPTIONS)
def test_gradients_are_close_to_those_of_float_products(kind: str) -> None:
    """Rounding a row of gradients to 8 bits moves each by at most amax / 254, a product by a percent."""
    layer = layer_of(kind)
    twin = layer_of(kind, int8_training=False)
    x = torch.randn(40, 67)
    y, _, found = backward(layer, x)
    float_y, _, expected = backward(twin, x)
    torch.testing.assert_close(y, float_y, rtol=1e-3, atol=1e-3)
    for name, right in expected.items():
        error = (found[name] - right).norm() / right.norm()
        assert error < (0.012 if name == "x" else 1e-3), (name, error)


def test_low_precision_and_its_gradients() -> None:
    layer = layer_of("groups").to(torch.bfloat16)
    x = torch.randn(9, 67, dtype=torch.bfloat16)
    _, grad, found = backward(layer, x)
    assert {g.dtype for g in found.values()} == {torch.bfloat16}
    right = torch.from_numpy(expected_grad_x(grad, layer))
    torch.testing.assert_close(found["x"].double(), right, rtol=2**-8, atol=1e-6)


def test_autocast_gives_its_dtype_and_leaves_products_exact() -> None:
    layer = layer_of("tensor")
    x = torch.randn(9, 67)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _, found = backward(layer, x)
        with native.backend("torch"):
            assert torch.equal(backward(layer, x)[2]["x"], found["x"])
    plain, _, others = backward(layer, x.bfloat16())
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, plain)
    assert torch.equal(found["x"], others["x"].float())
    assert torch.equal(found["weight"], others["weight"])
    layer.zero_grad()
    y = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y.backward(torch.ones_like(y))
    inside, layer.weight.grad = layer.weight.grad, None
    layer(x).backward(torch.ones_like(y))
    assert torch.equal(inside, layer.weight.grad)


def test_gradients_that_are_not_finite_stay_in_their_rows() -> None:
    layer = layer_of("tensor")
    x = torch.randn(3, 67, requires_grad=True)
    grad = torch.randn(3, 41)
    grad[1, 5] = float("nan")
    layer(x).backward(grad)
    assert x.grad is not None
    assert x.grad[1].isnan().all()
    assert x.grad[[0, 2]].isfinite().all()


def test_tiny_gradients_keep_their_digits() -> None:
    layer = layer_of("groups")
    x = torch.randn(3, 67, requires_grad=True)
    grad = torch.randn(3, 41)
    for size in (2.0**-40, 1.0):
        x.grad = None
        layer(x).backward(grad * size)
        assert x.grad is not None
        np.testing.assert_allclose(
            (x.grad / size).numpy(), expected_grad_x(grad, layer), rtol=1e-5, atol=1e-6
        )


def test_sums_beyond_the_integers_of_float32_are_exact() -> None:
    rows = 140_001  # all +1: a sum of 127 * rows, odd
    packed = PackedWeight.from_codes(
        torch.ones(1, rows, 2, dtype=torch.int8), torch.ones(1, 1, 1), "two_bit", None
    )
    found = int8_training.input_grad_python(torch.full((1, rows), 127.0), packed)
    assert found.tolist() == [[float(np.float32(127 * rows))] * 2]


def test_strides_and_expanded_gradients() -> None:
    layer = layer_of("row")
    wide = torch.randn(67, 2, 12)
    x = wide[:, 0, ::3].t()
    _, _, found = backward(layer, x)
    _, _, expected = backward(layer, x.contiguous())
    assert torch.equal(found["x"], expected["x"])
    leaf = x.clone().requires_grad_()
    layer(leaf).sum().backward()  # ones, all in one place in memory
    ones = leaf.detach().clone().requires_grad_()
    layer(ones).backward(torch.ones(4, 41))
    assert torch.equal(leaf.grad, ones.grad)


def test_the_same_numbers_twice_and_with_frozen_parts() -> None:
    layer = layer_of("groups")
    x = torch.randn(33, 67)
    first, second = backward(layer, x)[2], backward(layer, x)[2]
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name])
    layer.weight.requires_grad_(False)
    frozen = backward(layer, x)[2]
    assert frozen["weight"] is None
    assert torch.equal(frozen["x"], first["x"])
    layer.weight.requires_grad_(True)
    layer.zero_grad()
    layer(x).sum().backward()
    assert layer.weight.grad is not None


def test_means_in_float64_do_not_hang_on_their_order() -> None:
    weight = torch.randn(3, 1001, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(1001)
    for rule in ("sign", *BitLinear.int8_rules):
        binary = rule == "sign"
        quantize = quantize_binary if binary else functools.partial(quantize_ternary, rule=rule)
        format = "binary" if binary else "base3"
        for scale in ("row", "tensor"):
            one, other = (
                quantize(w, scale=scale, sum_dtype=torch.float64) for w in (weight, weight[:, order])
            )
            assert torch.equal(one.scales, other.scales)
            assert torch.equal(one.codes[..., order], other.codes)
            per_tensor = scale == "tensor"
            _, latent, _ = int8_training.quantize_latent(weight, rule, per_tensor, 0, FORMATS[format], False)
            assert torch.equal(latent, one.scales)
            usual = quantize(weight, scale=scale)
            torch.testing.assert_close(usual.scales, one.scales, rtol=1e-6, atol=0)


def test_scales_of_signs_are_means_of_float64() -> None:
    """Sums in float32 are off by a last place often enough to show in twenty draws."""
    for seed in range(20):
        weight = torch.randn(3, 1001, generator=torch.Generator().manual_seed(seed))
        magnitude = weight.double().abs()
        row, tensor = (quantize_binary(weight, scale=s, sum_dtype=torch.float64) for s in ("row", "tensor"))
        grouped = quantize_binary(weight, group_size=504, sum_dtype=torch.float64)
        assert torch.equal(row.scales, magnitude.mean(1).float().view(1, 3, 1))
        assert torch.equal(tensor.scales, magnitude.mean().float().view(1, 1, 1))
        groups = [part.mean(1) for part in magnitude.split(504, 1)]
        assert torch.equal(grouped.scales[0], torch.stack(groups, 1).float())
