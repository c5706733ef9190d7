"""DiodeMix: flips within hundreds of steps, trains, resumes, and treats ordinary parameters as AdamW does."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from impl.optim import DiodeMix, first_flip_step
from impl.parameters import (
    BinaryConvParameter,
    BinaryEmbeddingParameter,
    BinaryLinearParameter,
    MPQWeightParameter,
    nBitLinearParameter,
)


def teacher_problem(parameter_of, rows=8, cols=24, seed=0):
    """A student weight, and batches of inputs with the outputs of a binary teacher."""
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.where(torch.randn(rows, cols, generator=generator) >= 0, 1.0, -1.0)
    student = parameter_of(torch.randn(rows, cols, generator=generator))

    def batches(count):
        for _ in range(count):
            x = torch.randn(32, cols, generator=generator)
            yield x, x @ teacher.T

    return teacher, student, batches


def train(student, optimizer, batches, count):
    for x, y in batches(count):
        optimizer.zero_grad()
        F.mse_loss(F.linear(x, student), y).backward()
        optimizer.step()


def test_the_signature_is_that_of_the_seed():
    parameters = inspect.signature(DiodeMix).parameters
    positional = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["params", "lr", "betas", "eps", "weight_decay", "correct_bias", "dtype"]


def test_the_defaults_flip_weights_within_hundreds_of_steps():
    """D16: with the seed's defaults half of the weights still had their first sign after 17,900 steps."""
    parameter = BinaryLinearParameter(torch.randn(10, 40))
    before = parameter.signs().clone()
    optimizer = DiodeMix([parameter])
    flipped = []
    for _ in range(920):
        parameter.grad = before.float()
        optimizer.step()
        flipped.append((parameter.signs() != before).float().mean().item())
    assert flipped[0] == 0
    assert flipped[627] == pytest.approx(0.5, abs=0.02)
    assert flipped[-1] == 1
    options = {"lr": optimizer.defaults["lr"], "beta2": optimizer.defaults["betas"][1]}
    options["threshold"] = optimizer.defaults["threshold"]
    assert first_flip_step(0.5, **options) == pytest.approx(628, abs=1)
    assert first_flip_step(1.0, **options) == pytest.approx(916, abs=1)


@pytest.mark.parametrize("packed", [True, False])
def test_a_binary_student_finds_its_teacher(packed):
    torch.manual_seed(0)
    teacher, student, batches = teacher_problem(
        lambda w: BinaryLinearParameter(w, packed=packed, scales=torch.ones(1))
    )
    assert not torch.equal(student.dequantize(), teacher)
    optimizer = DiodeMix([student], betas=(0.9, 0.98), eps=0.1, threshold=5e-4)
    train(student, optimizer, batches, 400)
    assert torch.equal(student.dequantize(), teacher)


def test_an_integer_student_finds_its_teacher():
    torch.manual_seed(0)
    teacher, student, batches = teacher_problem(nBitLinearParameter)
    optimizer = DiodeMix([student], lr=3e-2, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, 500)
    for _ in range(500):
        train(student, optimizer, batches, 1)
        schedule.step()
    torch.testing.assert_close(student.dequantize(), teacher, rtol=0, atol=0.05)


def test_embeddings_train():
    """D2: the seed's optimizer raised KeyError on embeddings, and its rule went uphill."""
    torch.manual_seed(0)
    teacher = torch.where(torch.randn(6, 16) >= 0, 1.0, -1.0)
    student = BinaryEmbeddingParameter(torch.rand(6, 16) < 0.5)
    optimizer = DiodeMix([student], betas=(0.9, 0.98))
    for _ in range(300):
        index = torch.randint(0, 5, (4, 2))  # row 5 is never looked up
        optimizer.zero_grad()
        F.mse_loss(F.embedding(index, student), teacher[index]).backward()
        optimizer.step()
    assert torch.equal(student.dequantize()[:5], teacher[:5])


def test_a_small_network_learns_a_curved_boundary():
    """Two hidden binary layers without a float copy: rings that no linear classifier tells apart."""
    torch.manual_seed(0)
    radius = torch.cat([torch.rand(400) * 0.8, 1.2 + torch.rand(400) * 0.8])
    angle = torch.rand(800) * 2 * math.pi
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    label = (radius > 1).long()

    class Binary(nn.Module):
        def __init__(self, cols, rows):
            super().__init__()
            self.weight = BinaryLinearParameter(torch.randn(rows, cols), packed=True)
            self.norm = nn.BatchNorm1d(rows)

        def forward(self, x):
            return F.relu(self.norm(F.linear(x, self.weight)))

    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), Binary(32, 32), Binary(32, 32), nn.Linear(32, 2))
    before = [layer.weight.signs() for layer in model if isinstance(layer, Binary)]
    binary = [layer.weight for layer in model if isinstance(layer, Binary)]
    others = [p for p in model.parameters() if not isinstance(p, BinaryLinearParameter)]
    groups = [{"params": binary}, {"params": others, "lr": 1e-2}]
    optimizer = DiodeMix(groups, betas=(0.9, 0.98))
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(x), label).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    accuracy = (model(x).argmax(1) == label).float().mean().item()
    assert accuracy > 0.97
    after = [layer.weight.signs() for layer in model if isinstance(layer, Binary)]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_ordinary_parameters_follow_adamw():
    torch.manual_seed(0)
    options = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2}
    own, reference = nn.Linear(7, 5), nn.Linear(7, 5)
    reference.load_state_dict(own.state_dict())
    optimizers = [DiodeMix(own.parameters(), **options), torch.optim.AdamW(reference.parameters(), **options)]
    for _ in range(20):
        x = torch.randn(4, 7)
        for model, optimizer in zip((own, reference), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    for a, b in zip(own.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("file", [False, True])
def test_a_resumed_run_goes_on_as_if_never_stopped(file):
    torch.manual_seed(0)
    model = nn.ParameterList(
        [
            BinaryLinearParameter(torch.randn(6, 8), packed=True),
            BinaryConvParameter(torch.randn(4, 3, 2, 2)),
            nBitLinearParameter(torch.randn(6, 8)),
            MPQWeightParameter(torch.randn(32, 6), w_bit=4),
            nn.Parameter(torch.randn(6, 8, dtype=torch.bfloat16)),
        ]
    )
    groups = [{"params": list(model)[:2]}, {"params": list(model)[2:], "rank": 2, "update_proj_gap": 7}]
    optimizer = DiodeMix(groups, lr=1e-2, betas=(0.9, 0.99))

    def run(model, optimizer, seed, count=10):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            for parameter in model:
                gradient = torch.randn(parameter.shape, generator=generator)
                parameter.grad = gradient.to(parameter.dtype)
            optimizer.step()

    run(model, optimizer, 1)
    twin = copy.deepcopy(model)
    for parameter in twin:
        parameter.grad = None
    groups = [{"params": list(twin)[:2]}, {"params": list(twin)[2:], "rank": 2, "update_proj_gap": 7}]
    other = DiodeMix(groups, lr=1e-2, betas=(0.9, 0.99))
    state = copy.deepcopy(optimizer.state_dict())  # as loaded, it would share its tensors
    if file:
        stored = io.BytesIO()
        torch.save(state, stored)
        stored.seek(0)
        state = torch.load(stored, weights_only=True)
    other.load_state_dict(state)
    assert all(value.dtype == torch.float32 for saved in other.state.values() for value in saved.values())
    run(model, optimizer, 2)
    run(twin, other, 2)
    for a, b in zip(model, twin, strict=True):
        assert torch.equal(a.detach() + 0, b.detach() + 0)


def test_a_copied_optimizer_steps():
    parameter = nn.Parameter(torch.randn(3, 3))
    optimizer = pickle.loads(pickle.dumps(DiodeMix([parameter], dtype=torch.float64)))
    assert optimizer.dtype == torch.float64
    (own,) = optimizer.param_groups[0]["params"]
    own.grad = torch.ones(3, 3)
    before = own.detach().clone()
    optimizer.step()
    assert not torch.equal(own, before)


def test_schedules_groups_and_closures():
    parameter = BinaryLinearParameter(torch.randn(4, 4))
    optimizer = DiodeMix([{"params": [parameter], "lr": 0.5}])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    def closure():
        optimizer.zero_grad()
        loss = parameter.sum()
        loss.backward()
        return loss

    expected = parameter.sum()
    assert optimizer.step(closure) == expected
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert DiodeMix([parameter]).step() is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_the_step_before_anything_moves(bad):
    """A binary weight cannot become NaN: its average would, and the weight would never flip again."""
    plain = nn.Parameter(torch.randn(3))
    binary = BinaryLinearParameter(torch.randn(4, 4))
    optimizer = DiodeMix([{"params": [plain]}, {"params": [binary]}])
    plain.grad, binary.grad = torch.ones(3), torch.ones(4, 4)
    binary.grad[1, 2] = bad
    before, values = binary.signs().clone(), plain.detach().clone()
    with pytest.raises(ValueError, match="BinaryLinearParameter holds 1 NaN or infinite values of 16"):
        optimizer.step()
    assert torch.equal(binary.signs(), before)
    assert torch.equal(plain, values)
    assert not optimizer.state


def test_a_gradient_scaler_skips_what_overflows():
    parameter = BinaryLinearParameter(torch.randn(4, 5))
    optimizer = DiodeMix([parameter])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    for factor, steps in ((torch.inf, 0), (1.0, 1)):
        optimizer.zero_grad()
        scaler.scale(factor * F.linear(torch.ones(2, 5), parameter).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert len(optimizer.state) == steps
    torch.testing.assert_close(parameter.grad, torch.full((4, 5), 2.0))


def test_parameters_without_gradient_are_left_alone():
    parameter = BinaryLinearParameter(torch.randn(4, 4))
    optimizer = DiodeMix([parameter])
    optimizer.step()
    assert not optimizer.state


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(5, 4, sparse=True)
    optimizer = DiodeMix(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must not be negative, got -1.0"),
        ({"lr": math.nan}, "lr must not be negative, got nan"),
        ({"eps": -1e-8}, "eps must not be negative"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\), got \(0.9, 1.0\)"),
        ({"betas": (-0.1, 0.9)}, "betas must lie in"),
        ({"dtype": torch.bfloat16}, "beta 0.999 stands still in torch.bfloat16"),
        ({"dtype": torch.int8}, "floating-point dtype"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        DiodeMix([nn.Parameter(torch.ones(2))], **options)


def test_a_refused_group_is_not_added():
    optimizer = DiodeMix([nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="rank must be at least 1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, 2))], "rank": 0})
    assert len(optimizer.param_groups) == 1


def test_galore_keeps_the_averages_of_matrices_in_a_low_rank_space():
    torch.manual_seed(0)
    matrix, kernel, vector = (nn.Parameter(torch.randn(shape)) for shape in ((6, 4), (3, 2, 2, 2), (5,)))
    binary = BinaryLinearParameter(torch.randn(6, 4))
    group = {"params": [matrix, kernel, vector, binary], "rank": 2, "scale": 0.25, "proj_type": "left"}
    optimizer = DiodeMix([group], lr=1e-2, betas=(0.5, 0.5))
    for parameter in group["params"]:
        parameter.grad = torch.randn(parameter.shape)
    before = matrix.detach().clone()
    optimizer.step()
    shapes = {p: tuple(optimizer.state[p]["exp_avg_s"].shape) for p in group["params"]}
    assert shapes == {matrix: (2, 4), kernel: (2, 8), vector: (5,), binary: (2, 4)}
    assert optimizer.state[binary]["exp_avg_l"].shape == (6, 4)
    # The first step of Adam is the sign of the projected gradient, carried back.
    basis = torch.linalg.svd(matrix.grad).U[:, :2]
    step = 0.25 * basis @ (basis.T @ matrix.grad).sign()
    torch.testing.assert_close(matrix.detach(), before - 1e-2 * step, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "before", "after", "told"),
    [
        ((4, 4), "left", "right", "projected from the left, its group now asks for projected from the right"),
        ((4, 4), "right", "full", "projected from the right, .* from both sides"),
        ((4, 6), "left", None, "projected from the left, .* unprojected"),
        ((6, 4), None, "right", "unprojected, .* projected from the right"),
        ((4, 2, 2), "std", "reverse_std", "projected from the right, .* projected from the left"),
    ],
)
def test_averages_of_another_space_are_refused_where_the_shape_is_the_same(shape, before, after, told):
    """At full rank nothing but the sides tells spaces apart: averages of one went on as those of another."""
    parameter = nn.Parameter(torch.randn(shape))

    def options(kind):
        return {} if kind is None else {"rank": 4, "proj_type": kind}

    optimizer = DiodeMix([{"params": [parameter], **options(before)}])
    parameter.grad = torch.randn(shape)
    optimizer.step()
    optimizer.step()
    other = DiodeMix([{"params": [parameter], **options(after)}])
    state = other.state_dict() | {"state": optimizer.state_dict()["state"]}
    other.load_state_dict(state)
    kept = parameter.detach().clone()
    with pytest.raises(ValueError, match=f"{told}.*keep the rank and proj_type of the first step"):
        other.step()
    assert torch.equal(parameter, kept)


def test_loading_a_state_goes_back_to_its_subspace():
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(6, 4))
    optimizer = DiodeMix([{"params": [parameter], "rank": 1, "update_proj_gap": 2}], lr=1e-2)

    def step(seed):
        parameter.grad = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))
        optimizer.step()

    step(1)
    state, value = copy.deepcopy(optimizer.state_dict()), parameter.detach().clone()
    step(2)
    expected = parameter.detach().clone()
    step(3)  # a new subspace
    optimizer.load_state_dict(state)
    with torch.no_grad():
        parameter.copy_(value)
    step(2)
    assert torch.equal(parameter, expected)


def test_options_of_galore_need_a_rank():
    """Without one they would change nothing, in silence."""
    with pytest.raises(ValueError, match="scale, proj_type without rank"):
        DiodeMix([{"params": [nn.Parameter(torch.ones(2, 2))], "scale": 0.5, "proj_type": "left"}])


def test_complex_parameters_are_refused():
    """The square of a complex gradient is no variance: torch's AdamW takes the two parts apart."""
    with pytest.raises(TypeError, match=r"got torch\.complex64 of shape \(2,\)"):
        DiodeMix([nn.Parameter(torch.ones(2, dtype=torch.complex64))])


def test_averages_in_float16_are_for_binary_parameters_only():
    binary, plain = BinaryLinearParameter(torch.ones(1, 8)), nn.Parameter(torch.ones(3))
    optimizer = DiodeMix([binary, plain], dtype=torch.float16)
    binary.grad = binary.signs().float()
    for _ in range(950):
        optimizer.step()
    assert bool((binary.signs() < 0).all())
    plain.grad = torch.full((3,), 1e-4)
    with pytest.raises(ValueError, match="average of squares cannot be kept"):
        optimizer.step()


def test_coarse_averages_work_where_their_dtype_resolves_the_betas():
    parameter = BinaryLinearParameter(torch.randn(10, 40))
    before = parameter.signs().clone()
    optimizer = DiodeMix([parameter], betas=(0.9, 0.99), dtype=torch.bfloat16)
    for _ in range(150):
        parameter.grad = before.float()
        optimizer.step()
    assert optimizer.state[parameter]["exp_avg_l"].dtype == torch.bfloat16
    assert torch.equal(parameter.signs(), -before)


def test_the_threshold_is_the_surplus_of_votes_that_a_flip_takes():
    def signs_after(threshold, opposing, lr=1e-3):
        parameter = BinaryLinearParameter(torch.ones(1, 8))
        optimizer = DiodeMix([parameter], lr=lr, betas=(0.0, 0.99), threshold=threshold)
        generator = torch.Generator().manual_seed(0)
        for _ in range(600):
            vote = torch.rand(1, 8, generator=generator) < opposing
            parameter.grad = torch.where(vote, 1.0, -1.0) * parameter.signs()
            optimizer.step()
            if bool((parameter.signs() < 0).any()):
                return True
        return False

    assert signs_after(5e-4, opposing=1.0)
    assert signs_after(5e-4, opposing=0.9)  # a surplus of 0.8 votes
    assert not signs_after(5e-4, opposing=0.55)  # of 0.1
    assert not signs_after(5e-4, opposing=1.0, lr=4e-4)
    assert first_flip_step(0.0, 4e-4, 0.99, threshold=5e-4) == math.inf
