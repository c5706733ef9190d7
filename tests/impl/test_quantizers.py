import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impl.quantizers import (
    RULES,
    Quantized,
    quantize_binary,
    quantize_k_ternary,
    quantize_ternary,
)
from impl.quantizers.k_ternary import _solve_normal


def squared_error(weight: torch.Tensor, quantized: Quantized) -> torch.Tensor:
    """Per row, float64."""
    return (weight.double() - quantized.dequantize(torch.float64)).square().sum(-1)


def relative_error(weight: torch.Tensor, quantized: Quantized) -> float:
    return float((squared_error(weight, quantized).sum() / weight.double().square().sum()).sqrt())


def best_ternary_error(row: torch.Tensor) -> float:
    """Least squared error over all 3^n codes, each with its least-squares scale."""
    codes = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=len(row))), dtype=torch.float64)
    row = row.double()
    gains = (codes @ row).square() / codes.square().sum(-1).clamp_min(1)
    return float(row.square().sum() - gains.max())


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class TestTernary:
    @settings(max_examples=100, deadline=None)
    @given(
        row=st.lists(
            st.one_of(st.floats(-4, 4, width=32), st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0])),
            min_size=1,
            max_size=7,
        )
    )
    def test_optimal_is_the_best_of_all_codes(self, row):
        weight = torch.tensor([row], dtype=torch.float32)
        error = squared_error(weight, quantize_ternary(weight))
        energy = float(weight.double().square().sum())
        assert float(error) <= best_ternary_error(weight[0]) + 1e-6 * energy

    def test_optimal_is_the_best_of_all_codes_per_group(self):
        weight = gaussian(6, 20)
        quantized = quantize_ternary(weight, group_size=8)
        assert quantized.scales.shape == (1, 6, 3)
        decoded = quantized.dequantize()
        for columns in (slice(0, 8), slice(8, 16), slice(16, 20)):
            for row, approximation in zip(weight[:, columns], decoded[:, columns], strict=True):
                error = float((row.double() - approximation.double()).square().sum())
                assert error == pytest.approx(best_ternary_error(row), rel=1e-5)

    def test_optimal_over_the_tensor(self):
        weight = gaussian(2, 4)
        quantized = quantize_ternary(weight, scale="tensor")
        assert quantized.scales.shape == (1, 1, 1)
        assert float(squared_error(weight, quantized).sum()) == pytest.approx(
            best_ternary_error(weight.flatten()), rel=1e-5
        )

    def test_absmean_example(self):
        quantized = quantize_ternary(torch.tensor([[0.5, -0.5, 0.1, 0.0]]), rule="absmean")
        assert quantized.codes.tolist() == [[[1, -1, 0, 0]]]
        assert quantized.scales.shape == (1, 1, 1)
        assert quantized.scales.item() == pytest.approx(0.275)

    @given(st.integers(0, 10_000))
    def test_absmean_is_the_formula_of_b158(self, seed):
        weight = gaussian(16, 33, seed=seed)
        scale = weight.abs().mean().clamp_min(1e-5)
        codes = (weight / scale).round().clamp(-1, 1)
        quantized = quantize_ternary(weight, rule="absmean")
        assert torch.equal(quantized.codes[0].float(), codes)
        assert quantized.scales.item() == pytest.approx(scale.item(), rel=1e-6)

    def test_absmean_rounds_half_to_even(self):
        # The mean is 1, so 0.5 and -0.5 lie on the tie and round to 0.
        weight = torch.tensor([[0.5, -0.5, 1.5, 1.5]])
        assert quantize_ternary(weight, rule="absmean").codes.tolist() == [[[0, 0, 1, 1]]]
        above = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0)).item()
        weight = torch.tensor([[above, -0.5, 1.5, 1.5]])
        assert quantize_ternary(weight, rule="absmean").codes.tolist() == [[[1, 0, 1, 1]]]

    def test_absmax(self):
        quantized = quantize_ternary(
            torch.tensor([[2.0, 1.0, -1.1, 0.3], [0.1, 0.2, 0.3, -0.4]]), rule="absmax"
        )
        assert quantized.codes.tolist() == [[[1, 0, -1, 0], [0, 0, 1, -1]]]
        assert torch.allclose(quantized.scales.flatten(), torch.tensor([2.0, 0.4]))

    def test_twn(self):
        # mean 1, threshold 0.7: kept are 2.2 and -0.9, with their mean as scale.
        quantized = quantize_ternary(torch.tensor([[2.2, -0.9, 0.6, 0.3]]), rule="twn")
        assert quantized.codes.tolist() == [[[1, -1, 0, 0]]]
        assert quantized.scales.item() == pytest.approx(1.55)

    @pytest.mark.parametrize(("rule", "error"), [("optimal", 0.435), ("twn", 0.437), ("absmax", 0.84)])
    def test_error_on_gaussian_rows(self, rule, error):
        """seed 004: its rule, absmax, keeps next to nothing of Gaussian weights."""
        weight = gaussian(200, 512)
        assert relative_error(weight, quantize_ternary(weight, rule=rule)) == pytest.approx(error, abs=0.01)

    @pytest.mark.parametrize("rule", RULES)
    def test_groups_are_rows_of_their_own(self, rule):
        weight = gaussian(5, 40)
        grouped = quantize_ternary(weight, rule=rule, group_size=16)
        for g, columns in enumerate((slice(0, 16), slice(16, 32), slice(32, 40))):
            part = quantize_ternary(weight[:, columns], rule=rule, scale="row")
            assert torch.equal(grouped.codes[:, :, columns], part.codes)
            assert torch.equal(grouped.scales[:, :, g : g + 1], part.scales)

    def test_a_group_longer_than_the_row_is_the_row(self):
        weight = gaussian(5, 20)
        assert torch.equal(quantize_ternary(weight, group_size=64).codes, quantize_ternary(weight).codes)

    def test_blocks_of_rows_do_not_show(self, monkeypatch):
        weight = gaussian(37, 24)
        whole = quantize_k_ternary(weight, 2, group_size=16)
        monkeypatch.setattr("impl.quantizers.weights.BLOCK_ELEMENTS", 100)
        parts = quantize_k_ternary(weight, 2, group_size=16)
        # A block stops refining when it gains little as a whole, so only the quality is the same.
        assert relative_error(weight, parts) == pytest.approx(relative_error(weight, whole), rel=0.05)
        assert torch.equal(
            quantize_ternary(weight, group_size=16).codes[:, 30:],
            quantize_ternary(weight[30:], group_size=16).codes,
        )


class TestBinary:
    @pytest.mark.parametrize(
        ("options", "shape"),
        [({}, (1, 7, 1)), ({"scale": "tensor"}, (1, 1, 1)), ({"group_size": 8}, (1, 7, 3))],
    )
    def test_signs_and_mean_magnitudes(self, options, shape):
        weight = gaussian(7, 20)
        quantized = quantize_binary(weight, **options)
        assert quantized.scales.shape == shape
        assert torch.equal(quantized.codes[0], torch.where(weight < 0, -1, 1).to(torch.int8))
        expected = {
            (1, 7, 1): weight.abs().mean(1, keepdim=True),
            (1, 1, 1): weight.abs().mean().view(1, 1),
            (1, 7, 3): torch.stack([p.abs().mean(1) for p in weight.split(8, dim=1)], dim=1),
        }[shape]
        torch.testing.assert_close(quantized.scales[0], expected)

    def test_zeros_count_as_plus_one(self):
        assert quantize_binary(torch.tensor([[0.0, -0.0, -1.0]])).codes.tolist() == [[[1, 1, -1]]]


class TestKTernary:
    @pytest.mark.parametrize("group_size", [None, 8, 32])
    @pytest.mark.parametrize("rule", RULES)
    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_refit_is_never_worse_than_greedy(self, k, rule, group_size):
        generator = torch.Generator().manual_seed(k)
        gaussian_rows = torch.randn(40, 70, generator=generator)
        heavy_rows = gaussian_rows.pow(3)
        uniform_rows = torch.rand(40, 70, generator=generator) - 0.5
        few_values = torch.randint(-3, 4, (40, 70), generator=generator) / 3
        weight = torch.cat([gaussian_rows, heavy_rows, uniform_rows, few_values])
        greedy = quantize_k_ternary(weight, k, rule=rule, group_size=group_size, refit=False)
        refitted = quantize_k_ternary(weight, k, rule=rule, group_size=group_size)
        assert (squared_error(weight, refitted) <= squared_error(weight, greedy) * (1 + 1e-6)).all()

    def test_greedy_is_the_rule_on_residuals(self):
        weight = gaussian(9, 50)
        quantized = quantize_k_ternary(weight, 3, refit=False)
        residual = weight
        for codes, scales in zip(quantized.codes, quantized.scales, strict=True):
            part = quantize_ternary(residual)
            assert torch.equal(part.codes[0], codes)
            assert torch.equal(part.scales[0], scales)
            residual = residual - part.dequantize()

    @pytest.mark.parametrize(
        ("k", "greedy", "refitted"),
        [(1, 0.436, 0.436), (2, 0.205, 0.175), (3, 0.134, 0.068), (4, 0.081, 0.025)],
    )
    def test_error_on_gaussian_rows(self, k, greedy, refitted):
        weight = gaussian(200, 512)
        assert relative_error(weight, quantize_k_ternary(weight, k, refit=False)) <= greedy
        assert relative_error(weight, quantize_k_ternary(weight, k)) <= refitted

    def test_error_falls_with_every_component(self):
        weight = gaussian(20, 128)
        errors = [relative_error(weight, quantize_k_ternary(weight, k)) for k in range(1, 9)]
        assert all(later < 0.6 * earlier for earlier, later in itertools.pairwise(errors))

    def test_exact_where_levels_suffice(self):
        codes = torch.randint(-1, 2, (2, 30, 64), generator=torch.Generator().manual_seed(3))
        weight = codes[0] * 1.0 + codes[1] * 0.25
        assert relative_error(weight, quantize_k_ternary(weight, 2)) < 1e-6

    def test_codes_are_the_nearest_levels_of_their_scales(self):
        weight = gaussian(12, 40)
        quantized = quantize_k_ternary(weight, 2)
        decoded = quantized.dequantize()
        combinations = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=2)))
        levels = quantized.scales[..., 0].T @ combinations.T
        nearest = (weight.unsqueeze(-1) - levels.unsqueeze(1)).abs().amin(-1)
        torch.testing.assert_close((weight - decoded).abs(), nearest, atol=1e-6, rtol=0)

    def test_k_one_is_the_optimum(self):
        weight = gaussian(10, 30)
        refitted = quantize_k_ternary(weight, 1, rule="absmean")
        torch.testing.assert_close(
            squared_error(weight, refitted), squared_error(weight, quantize_ternary(weight))
        )

    @pytest.mark.parametrize("unit", [2.0**-100, 2.0**80])
    def test_the_unit_of_the_weights_does_not_matter(self, unit):
        weight = gaussian(10, 60)
        plain, scaled = quantize_k_ternary(weight, 3), quantize_k_ternary(weight * unit, 3)
        assert torch.equal(plain.codes, scaled.codes)
        assert torch.equal(plain.scales * unit, scaled.scales)

    def test_deterministic(self):
        weight = gaussian(30, 100)
        first, second = quantize_k_ternary(weight, 3), quantize_k_ternary(weight, 3)
        assert torch.equal(first.codes, second.codes)
        assert torch.equal(first.scales, second.scales)


class TestDegenerateRows:
    @pytest.mark.parametrize("group_size", [None, 8])
    @pytest.mark.parametrize("rule", ["optimal", "absmax", "twn"])
    @pytest.mark.parametrize("k", [1, 2, 3, 6])
    def test_zeros(self, k, rule, group_size):
        quantized = quantize_k_ternary(torch.zeros(3, 20), k, rule=rule, group_size=group_size)
        assert not quantized.codes.any()
        assert not quantized.scales.any()

    def test_zeros_absmean_keeps_its_floor(self):
        quantized = quantize_ternary(torch.zeros(3, 20), rule="absmean")
        assert not quantized.codes.any()
        assert quantized.scales.item() == pytest.approx(1e-5)

    @pytest.mark.parametrize("rule", RULES)
    def test_a_zero_row_among_others(self, rule):
        weight = gaussian(4, 20)
        weight[2] = 0
        quantized = quantize_k_ternary(weight, 3, rule=rule)
        assert not quantized.dequantize()[2].any()
        assert torch.isfinite(quantized.scales).all()

    @pytest.mark.parametrize("k", [1, 2, 3, 7])
    @pytest.mark.parametrize("value", [1.0, -0.3, 1e-30, 1e30])
    def test_constant_rows_are_exact(self, k, value):
        weight = torch.full((2, 33), value)
        torch.testing.assert_close(quantize_k_ternary(weight, k).dequantize(), weight, rtol=1e-6, atol=0)

    @pytest.mark.parametrize("k", [1, 2, 3])
    def test_single_column(self, k):
        weight = torch.tensor([[1.5], [-2.0], [0.0]])
        torch.testing.assert_close(quantize_k_ternary(weight, k).dequantize(), weight)

    @pytest.mark.parametrize("k", [2, 3, 4])
    def test_two_magnitudes_make_components_dependent(self, k):
        # More components than distinct magnitudes: the normal matrix is singular.
        weight = torch.tensor([[1.0, -1.0, 0.25, 0.25, 0.0, 1.0], [2.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
        quantized = quantize_k_ternary(weight, k)
        assert torch.isfinite(quantized.scales).all()
        torch.testing.assert_close(quantized.dequantize(), weight, atol=1e-6, rtol=1e-6)

    def test_normal_equations_of_dependent_components(self):
        # The third component is the sum of the others: its pivot is zero but for rounding.
        generator = torch.Generator().manual_seed(0)
        codes = torch.randint(-1, 2, (500, 3, 97), generator=generator).double()
        codes[:, 2] = codes[:, 0] + codes[:, 1]
        x = torch.randn(500, 97, generator=generator, dtype=torch.float64)
        scales = _solve_normal((codes @ codes.mT).flatten(1), (codes @ x.unsqueeze(-1)).squeeze(-1))
        assert not scales[:, 2].any()
        expected = torch.linalg.lstsq(codes[:, :2].mT, x.unsqueeze(-1)).solution.squeeze(-1)
        torch.testing.assert_close(scales[:, :2], expected)

    def test_a_component_without_scale_has_no_codes(self):
        quantized = quantize_k_ternary(torch.tensor([[1.0, -1.0, 0.0, 1.0]]), 3)
        silent = quantized.scales[..., 0] == 0
        assert silent.any()
        assert not quantized.codes[silent].any()


class TestQuantized:
    @settings(max_examples=30, deadline=None)
    @given(
        k=st.integers(1, 3),
        rows=st.integers(1, 6),
        cols=st.integers(1, 40),
        group_size=st.sampled_from([None, 8, 16]),
    )
    def test_dequantize_against_a_loop(self, k, rows, cols, group_size):
        quantized = quantize_k_ternary(gaussian(rows, cols), k, group_size=group_size, refit=False)
        codes, scales = quantized.codes.numpy(), quantized.scales.numpy()
        expected = np.zeros((rows, cols), np.float32)
        for c, n, j in np.ndindex(k, rows, cols):
            expected[n, j] += np.float32(scales[c, n, j // (group_size or cols)] * np.float32(codes[c, n, j]))
        assert np.array_equal(quantized.dequantize().numpy(), expected)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_any_float_weight(self, dtype):
        weight = gaussian(4, 32).to(dtype)
        for quantized in (quantize_binary(weight), quantize_ternary(weight), quantize_k_ternary(weight, 2)):
            assert quantized.scales.dtype == torch.float32
            assert quantized.codes.dtype == torch.int8
            assert quantized.dequantize(dtype).dtype == dtype

    def test_strided_weights_and_gradients(self):
        weight = gaussian(32, 6).mT.requires_grad_()
        quantized = quantize_k_ternary(weight, 2)
        assert torch.equal(quantized.codes, quantize_k_ternary(weight.contiguous(), 2).codes)
        assert not quantized.scales.requires_grad


QUANTIZERS = {
    "binary": quantize_binary,
    "ternary": quantize_ternary,
    "k_ternary": lambda weight, **options: quantize_k_ternary(weight, 2, **options),
}


@pytest.mark.parametrize("quantize", QUANTIZERS.values(), ids=QUANTIZERS)
class TestBadWeights:
    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_not_finite(self, quantize, bad, dtype):
        weight = gaussian(4, 16).to(dtype)
        weight[1, 3] = bad
        with pytest.raises(ValueError, match="1 NaN or infinite values of 64"):
            quantize(weight)

    def test_not_float(self, quantize):
        with pytest.raises(TypeError, match=r"got torch\.int64"):
            quantize(torch.ones(2, 8, dtype=torch.int64))

    @pytest.mark.parametrize("shape", [(8,), (0, 8), (8, 0), (2, 2, 2)])
    def test_not_a_matrix(self, quantize, shape):
        with pytest.raises(ValueError, match="non-empty matrix"):
            quantize(torch.ones(shape))

    @pytest.mark.parametrize("group_size", [0, 4, -8, 20])
    def test_group_size(self, quantize, group_size):
        with pytest.raises(ValueError, match=f"multiple of 8, got {group_size}"):
            quantize(torch.ones(2, 8), group_size=group_size)

    @pytest.mark.parametrize("group_size", [8.0, True, "64"])
    def test_group_size_type(self, quantize, group_size):
        with pytest.raises(TypeError, match="group_size"):
            quantize(torch.ones(2, 8), group_size=group_size)


class TestBadOptions:
    @pytest.mark.parametrize("k", [0, -1, 17])
    def test_k(self, k):
        with pytest.raises(ValueError, match=f"got {k}"):
            quantize_k_ternary(torch.ones(2, 8), k)

    @pytest.mark.parametrize("k", [2.0, True, "2"])
    def test_k_type(self, k):
        with pytest.raises(TypeError, match="k must be an integer"):
            quantize_k_ternary(torch.ones(2, 8), k)

    def test_unknown_rule(self):
        with pytest.raises(ValueError, match="did you mean 'absmean'"):
            quantize_ternary(torch.ones(2, 8), rule="absmeen")
        with pytest.raises(ValueError, match="'optimal', 'absmean', 'absmax', 'twn'"):
            quantize_k_ternary(torch.ones(2, 8), 2, rule="zzz")

    def test_scope(self):
        with pytest.raises(ValueError, match="did you mean 'row'"):
            quantize_binary(torch.ones(2, 8), scale="rows")
        with pytest.raises(ValueError, match="exclude each other"):
            quantize_ternary(torch.ones(2, 8), scale="tensor", group_size=8)

    def test_check_can_be_left_out(self):
        weight = torch.ones(2, 8)
        weight[1, 0] = torch.nan
        scales = quantize_ternary(weight, rule="absmean", scale="row", check_finite=False).scales
        assert torch.isnan(scales).flatten().tolist() == [False, True]
