"""Binary parameters: what they hold, and that their update is descent in which every argument counts."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from impl.optim import GaLoreProjector, first_flip_step
from impl.parameters import (
    DIODE_MARGIN,
    BinaryConvParameter,
    BinaryEmbeddingParameter,
    BinaryLinearParameter,
    LowBitParameter,
    MPQWeightParameter,
    nBitConvParameter,
    nBitLinearParameter,
)

CLASSES = [
    BinaryLinearParameter,
    BinaryConvParameter,
    BinaryEmbeddingParameter,
    nBitLinearParameter,
    nBitConvParameter,
    MPQWeightParameter,
]


def state_of(parameter, **options):
    short, long = parameter.initial_state(**options)
    return {"exp_avg_s": short, "exp_avg_l": long, "step": torch.zeros(())}


def steps_to_flip(weight=1.0, gradient=1.0, start=None, limit=5000, **options):
    """Steps until a single weight flips under a steady gradient."""
    parameter = BinaryLinearParameter(torch.full((1, 1), weight))
    state = state_of(parameter)
    if start is not None:
        state["exp_avg_l"].fill_(start)
    sign = parameter.signs().item()
    options = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "dtype": torch.float64, "eps": 0.0, **options}
    for count in range(1, limit):
        BinaryLinearParameter.update(parameter, **state, grad=torch.full((1, 1), gradient), **options)
        if parameter.signs().item() != sign:
            return count
    return math.inf


# ---- what they hold -------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9),
    cols=st.integers(1, 20),
    packed=st.booleans(),
    scale=st.sampled_from(["row", "tensor"]),
    seed=st.integers(0, 9),
)
def test_values_are_sign_times_mean_magnitude(rows, cols, packed, scale, seed):
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    parameter = BinaryLinearParameter(weight, packed=packed, scale=scale)
    mean = weight.abs().mean(1, keepdim=True) if scale == "row" else weight.abs().mean()
    torch.testing.assert_close(parameter.dequantize(), torch.where(weight >= 0, mean, -mean))
    assert torch.equal(parameter.rows(torch.arange(rows)), parameter.dequantize())
    assert parameter.codes.shape == ((rows, -(-cols // 8)) if packed else (rows, cols))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "data", [torch.tensor([[0.0, -0.0, -1.0]]), torch.tensor([[0, 0, -1]], dtype=torch.int8)]
)
def test_zero_counts_as_plus_one_in_the_values_and_in_the_update(data, packed):
    """D14: one sign convention, forward and backward; a stored zero does not freeze the weight."""
    parameter = BinaryLinearParameter(data, packed=packed, scales=torch.ones(1))
    assert parameter.dequantize().tolist() == [[1, 1, -1]]
    state = state_of(parameter)
    # Each weight has a steady gradient of its own sign: one whose sign counts as 0 would not move.
    gradient = parameter.dequantize()
    for _ in range(200):
        BinaryLinearParameter.update(parameter, **state, grad=gradient, lr=1e-2, beta2=0.99)
    assert parameter.dequantize().tolist() == [[-1, -1, 1]]


def test_storing_the_decoded_values_changes_nothing():
    parameter = BinaryLinearParameter(torch.randn(5, 1001))
    codes, scales = parameter.codes.clone(), parameter.scales.clone()
    with torch.no_grad():
        parameter.copy_(parameter.dequantize())
    assert torch.equal(parameter.codes, codes)
    assert torch.equal(parameter.scales, scales)


def test_packed_bits_are_read_least_significant_first():
    # [+, -, +, +, -, -, -, +] is the byte 141.
    parameter = BinaryEmbeddingParameter(torch.tensor([[141]], dtype=torch.uint8))
    assert parameter.dequantize().tolist() == [[1, -1, 1, 1, -1, -1, -1, 1]]
    assert parameter.codes.tolist() == [[141]]
    assert BinaryEmbeddingParameter(parameter, packed=False).codes.tolist() == parameter.dequantize().tolist()


def test_flip_changes_what_the_mask_says():
    parameter = BinaryConvParameter(torch.randn(2, 3, 2, 2), packed=True)
    before = parameter.dequantize()
    mask = torch.rand(2, 3, 2, 2) < 0.5
    assert parameter.flip_(mask) is parameter
    assert torch.equal(parameter.dequantize(), torch.where(mask, -before, before))
    with pytest.raises(ValueError, match="mask must be bool"):
        parameter.flip_(mask.float())


def test_an_empty_one():
    assert BinaryLinearParameter().shape == (0, 0)
    assert BinaryLinearParameter().dequantize().shape == (0, 0)
    assert BinaryLinearParameter(requires_grad=False).requires_grad is False


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: BinaryLinearParameter(torch.randn(3)), ValueError, "2 dimensions"),
        (lambda: BinaryConvParameter(torch.randn(3, 3)), ValueError, "3 or 4 or 5 dimensions"),
        (lambda: BinaryLinearParameter(torch.zeros(2, 2, dtype=torch.int64)), TypeError, "int64"),
        (lambda: BinaryLinearParameter([1.0]), TypeError, "list"),
        (lambda: BinaryLinearParameter(torch.full((2, 2), math.nan)), ValueError, "NaN"),
        (lambda: BinaryLinearParameter(torch.ones(2, 2), scale="rwo"), ValueError, "'row'"),
        (lambda: BinaryLinearParameter(torch.ones(2, 2), scales=torch.ones(3)), ValueError, "2 rows"),
        (lambda: BinaryLinearParameter(torch.ones(2, 2), scales=-torch.ones(2)), ValueError, "not negative"),
        (lambda: BinaryLinearParameter(torch.ones(2, 2), scales=torch.ones(2).int()), TypeError, "int32"),
        (lambda: BinaryLinearParameter(torch.ones(2, 2), dtype=torch.int8), TypeError, "int8"),
        (lambda: BinaryConvParameter(torch.ones(2, 2, 2, dtype=torch.uint8)), ValueError, "packed bits"),
    ],
)
def test_other_data_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ---- the update -----------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_update_has_the_thirteen_arguments_of_the_seed(cls):
    parameters = inspect.signature(cls.update).parameters
    assert {name: p.default for name, p in parameters.items() if name != "qweight"} == {
        "exp_avg_s": None,
        "exp_avg_l": None,
        "step": None,
        "lr": 1e-4,
        "weight_decay": 0.0,
        "beta1": 0.99,
        "beta2": 0.9999,
        "eps": 1e-6,
        "dtype": torch.half,
        "correct_bias": None,
        "projector": None,
        "grad": None,
    }
    assert next(iter(parameters)) == "qweight"
    assert len(parameters) == 13


@pytest.mark.parametrize("weight", [1.0, -1.0])
@pytest.mark.parametrize("packed", [True, False])
def test_the_update_is_descent(weight, packed):
    """A weight flips against the gradient, and never along it."""
    parameter = BinaryLinearParameter(torch.full((1, 2), weight), packed=packed)
    state = state_of(parameter)
    parameter.grad = torch.tensor([[weight, -weight]])
    for _ in range(300):
        BinaryLinearParameter.update(parameter, **state, lr=1e-2, beta2=0.99)
    assert parameter.dequantize().tolist() == [[-weight, weight]]
    assert state["step"].item() == 300


@pytest.mark.parametrize("weight", [1.0, -1.0])
@pytest.mark.parametrize(("lr", "beta2"), [(1e-3, 0.99), (1e-4, 0.99), (1e-2, 0.999), (1e-3, 0.9)])
def test_the_first_flip_comes_when_the_formula_says(weight, lr, beta2):
    for u in (0.1, 0.5, 1.0):
        predicted = first_flip_step(u, lr, beta2)
        start = -weight * u * DIODE_MARGIN
        found = steps_to_flip(weight, gradient=weight, start=start, lr=lr, beta2=beta2)
        assert found == pytest.approx(predicted, abs=1)
    assert steps_to_flip(weight, gradient=-weight, lr=lr, beta2=beta2, limit=200) == math.inf


def test_the_formula_gives_the_seeds_times():
    assert first_flip_step(0.5, 1e-4, 0.9999) == pytest.approx(17_917, abs=1)
    assert first_flip_step(1.0, 1e-4, 0.9999) == pytest.approx(23_978, abs=1)
    assert first_flip_step(0.5, 1e-5, 0.9999) == pytest.approx(39_316, abs=5)


@pytest.mark.slow
def test_at_the_seeds_rates_all_weights_have_flipped_by_step_23_979():
    parameter = BinaryLinearParameter(torch.randn(1, 128))
    state = state_of(parameter, dtype=torch.float64)
    before = parameter.signs().clone()
    gradient = before.to(torch.float64)
    flipped_at_5000 = 0.0
    for step in range(1, 23_980):
        BinaryLinearParameter.update(parameter, **state, grad=gradient, dtype=torch.float64, eps=0.0)
        if step == 5000:
            flipped_at_5000 = (parameter.signs() != before).double().mean().item()
    # Those with ln(1 + 10 u) < 0.5, that is u < 0.065.
    assert flipped_at_5000 == pytest.approx(0.065, abs=0.02)
    assert bool((parameter.signs() != before).all())


def test_lr_counts_for_every_flip():
    """A constant lr sets the time to a later flip as well; at zero nothing moves any more."""
    for lr in (1e-2, 1e-3, 1e-4):
        parameter = BinaryLinearParameter(torch.ones(1, 1))
        state = state_of(parameter)
        flips = []
        for count in range(1, 2000):
            before = parameter.signs().item()
            gradient = torch.full((1, 1), float(before))
            BinaryLinearParameter.update(
                parameter, **state, grad=gradient, lr=lr, beta1=0.0, beta2=0.99, dtype=torch.float64, eps=0.0
            )
            if parameter.signs().item() != before:
                flips.append(count)
        assert len(flips) > 3
        assert flips[3] - flips[2] == pytest.approx(first_flip_step(1.0, lr, 0.99), abs=1.01)
    assert steps_to_flip(lr=0.0) == math.inf


def test_weight_decay_makes_weights_change_sooner():
    found = steps_to_flip(start=-DIODE_MARGIN, lr=1e-3, weight_decay=10.0)
    assert found == pytest.approx(first_flip_step(1.0, 1e-3, 0.99, weight_decay=10.0), abs=1.01)
    assert found < steps_to_flip(start=-DIODE_MARGIN, lr=1e-3)


def test_eps_mutes_gradients_far_below_it():
    assert steps_to_flip(gradient=1e-9, eps=0.0) < 200
    assert steps_to_flip(gradient=1e-9, eps=1e-12) < 200
    # A vote of lr / 1001 needs ln(1 + 1001) / -ln(beta2) steps from the full margin.
    slow = steps_to_flip(gradient=1e-9, eps=1e-6, start=-DIODE_MARGIN, correct_bias=True)
    assert slow == pytest.approx(math.log(1 + 1001) / -math.log(0.99), abs=2)


def test_correct_bias_corrects_the_short_average():
    for correct, vote in ((None, 0.1 / 1.1), (False, 0.1 / 1.1), (True, 0.5)):
        parameter = BinaryLinearParameter(-torch.ones(1, 1))
        state = state_of(parameter)
        state["exp_avg_l"].fill_(1.0)
        BinaryLinearParameter.update(
            parameter,
            **state,
            grad=torch.full((1, 1), 1e-3),
            eps=1e-3,
            lr=1.0,
            beta1=0.9,
            beta2=0.5,
            correct_bias=correct,
        )
        assert state["exp_avg_l"].item() == pytest.approx((1 + vote) / 2, rel=1e-5)


def test_the_projector_decides_from_its_subspace():
    torch.manual_seed(0)
    column, row = torch.randn(6, 1), torch.randn(1, 5)
    main, small = 10 * column @ row, torch.randn(6, 5) * 0.1
    projector = GaLoreProjector(rank=1)
    parameter = BinaryLinearParameter(torch.ones(6, 5))
    short, long = parameter.initial_state(projector=projector)
    assert short.shape == projector.low_rank_shape(6, 5) == (6, 1)
    assert long.shape == (6, 5)
    state = {"exp_avg_s": short, "exp_avg_l": long, "step": torch.zeros(())}
    for _ in range(300):
        BinaryLinearParameter.update(
            parameter, **state, grad=main + small, lr=1e-2, beta2=0.99, projector=projector
        )
    kept = projector.project_back(projector.project(main + small, 1))
    assert torch.equal(parameter.signs(), torch.where(kept > 0, -1, 1).to(torch.int8))


def test_the_projector_is_told_the_steps_from_zero():
    class Noting(GaLoreProjector):
        def project(self, full_rank_grad, iter):
            seen.append(iter)
            return super().project(full_rank_grad, iter)

    for weight in (BinaryLinearParameter(torch.ones(3, 4)), nBitLinearParameter(torch.ones(3, 4))):
        seen, projector = [], Noting(rank=2)
        state = state_of(weight, projector=projector)
        for _ in range(3):
            type(weight).update(weight, **state, grad=torch.randn(3, 4), projector=projector)
        assert seen == [0, 1, 2]


def test_averages_of_zero_flip_nothing():
    parameter = BinaryLinearParameter(torch.tensor([[1.0, -1.0]]))
    short, long = torch.zeros(1, 2), torch.zeros(1, 2)
    BinaryLinearParameter.update(parameter, short, long, torch.zeros(()), grad=torch.zeros(1, 2))
    assert parameter.signs().tolist() == [[1, -1]]


def test_half_precision_arithmetic_does_not_stand_still():
    """The default dtype is half, in which steps of 1e-4 * 1e-4 would be nothing."""
    parameter = BinaryLinearParameter(torch.ones(1, 1))
    state = state_of(parameter)
    state["exp_avg_l"].fill_(-DIODE_MARGIN)
    before = state["exp_avg_l"].item()
    BinaryLinearParameter.update(parameter, **state, grad=torch.full((1, 1), 1e-9), eps=1e-12)
    assert state["exp_avg_l"].item() > before


def test_the_initial_state_holds_every_sign_and_is_the_same_everywhere():
    weight = torch.randn(30, 40)
    torch.manual_seed(1)
    one = BinaryLinearParameter(weight).initial_state()[1]
    torch.manual_seed(2)
    other = BinaryLinearParameter(weight).initial_state()[1]
    assert torch.equal(one, other)
    assert torch.equal(one > 0, weight < 0)
    u = (one.abs() / DIODE_MARGIN).flatten().sort().values
    torch.testing.assert_close(u, torch.linspace(0, 1, 1200), rtol=0, atol=0.01)


def test_the_embedding_descends():
    """D2: the seed's update of embeddings went up the gradient, and flipped most bits at once."""
    torch.manual_seed(0)
    parameter = BinaryEmbeddingParameter(torch.rand(5, 16) < 0.5)
    before = parameter.signs().clone()
    state = state_of(parameter)
    gradient = torch.where(torch.rand(5, 16) < 0.5, 1.0, -1.0)
    BinaryEmbeddingParameter.update(parameter, **state, grad=gradient, lr=1e-4)
    assert torch.equal(parameter.signs(), before)
    for _ in range(500):
        BinaryEmbeddingParameter.update(parameter, **state, grad=gradient, lr=1e-2, beta2=0.99)
    assert torch.equal(parameter.signs(), -gradient.to(torch.int8))


def test_only_rows_with_a_gradient_move():
    parameter = BinaryEmbeddingParameter(torch.randn(5, 16))
    state = state_of(parameter)
    before, long = parameter.signs().clone(), state["exp_avg_l"].clone()
    gradient = torch.zeros(5, 16)
    gradient[[1, 3]] = before[[1, 3]].float()
    for _ in range(300):
        BinaryEmbeddingParameter.update(parameter, **state, grad=gradient, lr=1e-2, beta2=0.99)
    assert torch.equal(parameter.signs()[[1, 3]], -before[[1, 3]])
    assert torch.equal(parameter.signs()[[0, 2, 4]], before[[0, 2, 4]])
    assert torch.equal(state["exp_avg_l"][[0, 2, 4]], long[[0, 2, 4]])
    BinaryEmbeddingParameter.update(parameter, **state, grad=torch.zeros(5, 16))
    assert torch.equal(state["exp_avg_l"][[0, 2, 4]], long[[0, 2, 4]])


def test_active_indices_belong_to_one_parameter():
    one = BinaryEmbeddingParameter(torch.randn(5, 16), True, torch.tensor([[1, 1]]))
    other = BinaryEmbeddingParameter(torch.randn(5, 16))
    assert other.active_indices is None
    for parameter, rows in ((one, [1]), (other, [0, 1, 2, 3, 4])):
        before, state = parameter.signs().clone(), state_of(parameter)
        for _ in range(300):
            BinaryEmbeddingParameter.update(parameter, **state, grad=before.float(), lr=1e-2, beta2=0.99)
        changed = (parameter.signs() != before).all(1).nonzero().flatten().tolist()
        assert changed == rows


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        (torch.tensor([True, False, True, False, True]), TypeError, r"got torch\.bool"),
        (torch.tensor([1.0]), TypeError, r"got torch\.float32"),
        (torch.tensor([2, 5]), ValueError, r"0 \.\. 4, got 2 \.\. 5"),
        (torch.tensor([-1, 2]), ValueError, r"0 \.\. 4, got -1 \.\. 2"),
    ],
)
def test_active_indices_are_numbers_of_rows(indices, error, message):
    """A mask would otherwise be read as rows 0 and 1."""
    parameter = BinaryEmbeddingParameter(torch.randn(5, 16), True, indices)
    with pytest.raises(error, match=message):
        BinaryEmbeddingParameter.update(parameter, **state_of(parameter), grad=torch.ones(5, 16))


def test_no_active_indices_move_nothing():
    parameter = BinaryEmbeddingParameter(torch.randn(5, 16), True, torch.empty(0, dtype=torch.int64))
    state = state_of(parameter)
    state["exp_avg_l"].copy_(parameter.signs())  # any step would flip
    before = parameter.signs().clone()
    BinaryEmbeddingParameter.update(parameter, **state, grad=torch.ones(5, 16))
    assert torch.equal(parameter.signs(), before)


def test_an_average_without_memory_flips_in_the_first_step():
    assert first_flip_step(0.5, 1e-3, 0.0) == 1
    assert steps_to_flip(beta2=0.0, beta1=0.0) == 1
    assert first_flip_step(1.0, 0.1, 0.9, weight_decay=20.0) == 1
    assert first_flip_step(0.5, 1e-3, 0.0, threshold=1e-3) == math.inf


def test_the_update_names_what_is_missing():
    parameter = BinaryLinearParameter(torch.ones(2, 3))
    state = state_of(parameter)
    gradient = torch.ones(2, 3)
    with pytest.raises(TypeError, match=r"BinaryConvParameter.update takes"):
        BinaryConvParameter.update(parameter, **state, grad=gradient)
    with pytest.raises(TypeError, match="got Tensor"):
        LowBitParameter.update(torch.ones(2, 3), **state)
    with pytest.raises(ValueError, match="needs exp_avg_l, step"):
        BinaryLinearParameter.update(parameter, state["exp_avg_s"], grad=gradient)
    with pytest.raises(ValueError, match="no gradient"):
        BinaryLinearParameter.update(parameter, **state)
    with pytest.raises(ValueError, match=r"shape \(3, 2\), the parameter \(2, 3\)"):
        BinaryLinearParameter.update(parameter, **state, grad=gradient.T)
    with pytest.raises(TypeError, match="one element"):
        BinaryLinearParameter.update(parameter, **{**state, "step": 3}, grad=gradient)
    with pytest.raises(TypeError, match="int8"):
        BinaryLinearParameter.update(parameter, **state, grad=gradient, dtype=torch.int8)
    with pytest.raises(ValueError, match="cannot follow a gradient"):
        BinaryLinearParameter.update(parameter, **{**state, "exp_avg_s": torch.zeros(2)}, grad=gradient)
    with pytest.raises(ValueError, match="exp_avg_l must have the shape"):
        BinaryLinearParameter.update(parameter, **{**state, "exp_avg_l": torch.zeros(2, 2)}, grad=gradient)
