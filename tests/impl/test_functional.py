import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import impl.functional as F
from impl.packing import PackedWeight
from impl.quantizers import quantize_activations, quantize_binary, quantize_k_ternary, quantize_ternary


def packed(
    format: str, k: int, rows: int, cols: int, *, group_size=None, scale_rows=None, half=False, seed=0
):
    generator = torch.Generator().manual_seed(seed)
    if format == "binary":
        codes = torch.randint(0, 2, (k, rows, cols), generator=generator) * 2 - 1
    else:
        codes = torch.randint(-1, 2, (k, rows, cols), generator=generator)
    groups = 1 if group_size is None else -(-cols // group_size)
    scales = torch.rand(k, scale_rows or rows, groups, generator=generator) + 0.1
    return PackedWeight.from_codes(
        codes.to(torch.int8), scales.half() if half else scales, format, group_size
    )


def operator(format: str):
    return F.binary_linear_python if format == "binary" else F.ternary_linear_python


def by_the_book(x, weight, bias, bits):
    """impl.h in numpy, one output at a time: Python integers and float32."""
    q, activation_scale = (t.numpy() for t in quantize_activations(x, bits))
    codes, scales = weight.unpack().numpy(), weight.scales.float().numpy()
    size = weight.group_size or weight.cols
    y = np.empty((len(q), weight.rows), np.float32)
    for m, n in np.ndindex(*y.shape):
        t = np.float32(0)
        for c in range(weight.components):
            for g in range(scales.shape[2]):
                part = slice(g * size, (g + 1) * size)
                dot = sum(int(a) * int(b) for a, b in zip(q[m, part], codes[c, n, part], strict=True))
                t = np.float32(t + np.float32(scales[c, n % scales.shape[1], g] * np.float32(dot)))
        t = np.float32(t * activation_scale[m, 0])
        y[m, n] = t if bias is None else np.float32(t + bias.numpy()[n])
    return torch.from_numpy(y)


class TestReference:
    @settings(max_examples=60, deadline=None)
    @given(
        format=st.sampled_from(["binary", "two_bit", "base3"]),
        k=st.integers(1, 3),
        rows=st.integers(1, 23),
        cols=st.integers(1, 90),
        group_size=st.sampled_from([None, 8, 64]),
        per_tensor=st.booleans(),
        half=st.booleans(),
        bits=st.sampled_from([1, 2, 8, 16]),
        with_bias=st.booleans(),
        seed=st.integers(0, 100),
    )
    def test_integer_activations_to_the_bit(
        self, format, k, rows, cols, group_size, per_tensor, half, bits, with_bias, seed
    ):
        weight = packed(
            format,
            k,
            rows,
            cols,
            group_size=group_size,
            scale_rows=1 if per_tensor else None,
            half=half,
            seed=seed,
        )
        x = torch.randn(2, cols, generator=torch.Generator().manual_seed(seed))
        bias = torch.randn(rows) if with_bias else None
        y = operator(format)(x, weight, bias, bits)
        assert torch.equal(y, by_the_book(x, weight, bias, bits))

    @pytest.mark.parametrize("format", ["binary", "two_bit", "base3"])
    @pytest.mark.parametrize("group_size", [None, 16])
    def test_float_activations(self, format, group_size):
        quantized = {
            "binary": lambda w: quantize_binary(w, group_size=group_size),
            "two_bit": lambda w: quantize_ternary(w, group_size=group_size),
            "base3": lambda w: quantize_k_ternary(w, 3, group_size=group_size),
        }[format](torch.randn(21, 50))
        weight = PackedWeight.from_codes(quantized.codes, quantized.scales, format, group_size)
        x, bias = torch.randn(4, 50), torch.randn(21)
        expected = x.double() @ quantized.dequantize(torch.float64).T + bias
        torch.testing.assert_close(operator(format)(x, weight, bias).double(), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("bits", [None, 1, 2, 8, 16])
    def test_tiles_of_rows_do_not_show(self, bits, monkeypatch):
        weight = packed("base3", 2, 30, 40, group_size=16)
        x = torch.randn(3, 40)
        whole = F.ternary_linear_python(x, weight, None, bits)
        monkeypatch.setattr("impl.functional.reference.ROWS_AT_A_TIME", 7)
        tiled = F.ternary_linear_python(x, weight, None, bits)
        assert torch.equal(whole, tiled) or bits is None
        torch.testing.assert_close(whole, tiled)

    @pytest.mark.parametrize("bits", [None, 1, 2, 8, 16])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("shape", [(20,), (0, 20), (2, 0, 20), (2, 3, 20)])
    def test_shapes_and_dtypes(self, bits, dtype, shape):
        weight = packed("binary", 1, 9, 20)
        x = torch.randn(shape).to(dtype)
        y = F.binary_linear_python(x, weight, torch.randn(9), bits)
        assert y.dtype == dtype
        assert y.shape == (*shape[:-1], 9)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_rounded_once_to_the_output_type(self, dtype):
        weight, bias = packed("base3", 2, 9, 50), torch.randn(9)
        x = torch.randn(5, 50).to(dtype)
        assert torch.equal(
            F.ternary_linear_python(x, weight, bias, 8),
            F.ternary_linear_python(x.float(), weight, bias, 8).to(dtype),
        )

    @pytest.mark.parametrize("bits", [None, 8])
    def test_strides(self, bits):
        weight = packed("two_bit", 1, 9, 20)
        x = torch.randn(20, 3, 4).permute(2, 1, 0)
        assert torch.equal(
            F.ternary_linear_python(x, weight, None, bits),
            F.ternary_linear_python(x.contiguous(), weight, None, bits),
        )

    @pytest.mark.parametrize("bits", [None, 1, 2, 8, 16])
    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_a_bad_activation_spoils_its_row_only(self, bits, bad):
        weight = packed("binary", 1, 9, 20)
        x = torch.randn(3, 20)
        clean = F.binary_linear_python(x, weight, None, bits)
        x[1, 5] = bad
        y = F.binary_linear_python(x, weight, None, bits)
        assert torch.equal(y[::2], clean[::2])
        assert not torch.isfinite(y[1]).any()

    @pytest.mark.parametrize("bits", [8, 16])
    def test_long_rows_do_not_overflow(self, bits):
        cols = 262_144
        codes = torch.ones(1, 1, cols, dtype=torch.int8)
        weight = PackedWeight.from_codes(codes, torch.ones(1, 1, 1), "two_bit")
        y = F.ternary_linear_python(torch.ones(1, cols), weight, None, bits)
        limit = {8: 127, 16: 32512}[bits]
        assert y.item() == float(np.float32(limit * cols) * (np.float32(1) / np.float32(limit)))

    def test_float_path_is_differentiable(self):
        weight = packed("base3", 2, 9, 20)
        x = torch.randn(3, 20, requires_grad=True)
        F.ternary_linear_python(x, weight).sum().backward()
        quantised = sum(c.double() * s.double() for c, s in zip(weight.unpack(), weight.scales, strict=True))
        torch.testing.assert_close(x.grad, quantised.sum(0).float().expand(3, -1))

    def test_sixteen_bits_are_nearly_float(self):
        weight = packed("base3", 1, 40, 300)
        x = torch.randn(8, 300)
        exact = F.ternary_linear_python(x, weight)
        error = (F.ternary_linear_python(x, weight, None, 16) - exact).norm() / exact.norm()
        assert error < 1e-4 < (F.ternary_linear_python(x, weight, None, 8) - exact).norm() / exact.norm()


class TestRefusals:
    weight = packed("base3", 1, 9, 20)

    @pytest.mark.parametrize("function", [F.ternary_linear_python, F.ternary_linear])
    def test_operands(self, function):
        x = torch.randn(2, 20)
        with pytest.raises(ValueError, match="in_features = 20, got 19"):
            function(x[:, :19], self.weight)
        with pytest.raises(TypeError, match=r"got torch\.int64"):
            function(x.long(), self.weight)
        with pytest.raises(ValueError, match=r"bias must have shape \[9\]"):
            function(x, self.weight, torch.zeros(8))
        with pytest.raises(TypeError, match="bias must be floating point"):
            function(x, self.weight, torch.zeros(9, dtype=torch.int32))
        with pytest.raises(ValueError, match="one of 1, 2, 8, 16, got 4"):
            function(x, self.weight, None, 4)

    @pytest.mark.parametrize("function", [F.binary_linear_python, F.binary_linear])
    def test_format(self, function):
        with pytest.raises(ValueError, match="call ternary_linear"):
            function(torch.randn(2, 20), self.weight)


class TestDispatch:
    @pytest.mark.parametrize(
        ("format", "bits"),
        [*itertools.product(["binary", "two_bit", "base3"], [None, 1, 2, 8, 16])],
    )
    def test_agrees_with_the_reference(self, format, bits):
        weight = packed(format, 1 if format == "binary" else 3, 23, 77, group_size=32)
        x, bias = torch.randn(5, 77), torch.randn(23)
        dispatched = F.binary_linear if format == "binary" else F.ternary_linear
        y, expected = dispatched(x, weight, bias, bits), operator(format)(x, weight, bias, bits)
        if bits is None:
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)
        else:
            assert torch.equal(y, expected)


class TestSeedInterface:
    """The functions of krisaujla/BitLinear, by its rules."""

    def test_absmax_scale(self):
        x = torch.tensor([[1.0, -3.0], [0.0, 0.0]])
        assert F.absmax_scale(x).item() == 3
        assert torch.allclose(F.absmax_scale(x, dim=1), torch.tensor([[3.0], [1e-5]]))
        with pytest.raises(ValueError, match="empty"):
            F.absmax_scale(x[:0])

    def test_ternary_quantize(self):
        ternary, scale = F.ternary_quantize(torch.tensor([2.0, 1.0, 1.01, -1.5, 0.0]))
        assert ternary.tolist() == [1, 0, 1, -1, 0]
        assert scale.item() == 2
        assert F.ternary_quantize(torch.tensor([0.6]), torch.tensor(1.0))[0].tolist() == [1]

    def test_weight_to_ternary(self):
        weight = torch.tensor([[1.0, -0.4, 0.6], [-4.0, 2.5, 2.0]])
        ternary, gamma = F.weight_to_ternary(weight)
        assert ternary.tolist() == [[1, 0, 1], [-1, 1, 0]]
        assert gamma.tolist() == [1, 4]
        ternary, gamma = F.weight_to_ternary(weight, per_channel=False)
        assert ternary.tolist() == [[0, 0, 0], [-1, 1, 0]]
        assert gamma.item() == 4
        assert gamma.dim() == 0

    def test_greedy_decomposition_of_uniform_weights(self):
        weight = torch.rand(64, 512, generator=torch.Generator().manual_seed(0)) * 2 - 1
        errors = []
        for k in (1, 2, 3):
            ternary, gammas = F.greedy_ternary_decomposition(weight, k)
            assert ternary.shape == (k, 64, 512)
            assert gammas.shape == (k, 64)
            errors.append(float((weight - (ternary * gammas.unsqueeze(-1)).sum(0)).norm() / weight.norm()))
        assert errors == pytest.approx([0.499, 0.249, 0.124], abs=0.005)
        with pytest.raises(ValueError, match="at least 1, got 0"):
            F.greedy_ternary_decomposition(weight, 0)
        with pytest.raises(ValueError, match="NaN"):
            F.weight_to_ternary(weight * torch.nan)

    def test_linear(self):
        x, weight, bias = torch.randn(2, 3, 8), torch.randn(5, 8), torch.randn(5)
        ternary, gamma = F.weight_to_ternary(weight)
        expected = torch.nn.functional.linear(x, ternary * gamma.unsqueeze(-1), bias)
        torch.testing.assert_close(F.bitlinear_python(x, ternary, gamma, bias), expected)
        assert F.bitlinear_python(x.bfloat16(), ternary, gamma, bias).dtype == torch.bfloat16
        with pytest.raises(ValueError, match="in_features = 8"):
            F.bitlinear_python(x[..., :7], ternary, gamma)
        with pytest.raises(TypeError, match="floating point"):
            F.bitlinear_python(x.int(), ternary, gamma)
        with pytest.raises(ValueError, match=r"\[out, in\]"):
            F.bitlinear_python(x, ternary[0], gamma)

    def test_multi_ternary_linear(self):
        x, weight, bias = torch.randn(2, 3, 8), torch.randn(5, 8), torch.randn(5)
        ternary, gammas = F.greedy_ternary_decomposition(weight, 3)
        expected = torch.nn.functional.linear(x, (ternary * gammas.unsqueeze(-1)).sum(0), bias)
        torch.testing.assert_close(F.multi_ternary_linear_python(x, ternary, gammas, bias), expected)
        with pytest.raises(ValueError, match=r"gammas \[k, out\]"):
            F.multi_ternary_linear_python(x, ternary, gammas[:2])

    def test_activations(self):
        x = torch.randn(4, 9)
        q, scale = F.quantize_activations_absmax(x)
        assert torch.equal(F.dequantize_scale(q, scale), F.activation_quant(x))
        assert (F.activation_quant(x) - x).abs().max() <= scale.max() / 2 * 1.001
