"""Weights of bitorch_engine's layers: packing, preparing for flips, states, and life as a module."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from binary_cases import PLAIN, SCALED, forms, in_form, sign
from torch import nn

from impl import checkpoint
from impl.compat import bitorch_engine
from impl.compat.bitorch_engine import (
    BinaryLinearCPP,
    BinaryLinearCuda,
    BinaryLinearParameter,
)

X = torch.randn(5, 21, generator=torch.Generator().manual_seed(0))


def build(cls, form="float", **options):
    return in_form(cls(21, 6, **options), form, X)


# ---- packing ------------------------------------------------------------------------------------


def test_bytes_are_least_significant_bit_first():
    layer = BinaryLinearCPP(9, 1)
    layer.set_weight_data(torch.tensor([[1.0, -1, 1, 1, -1, -1, -1, 1, 0]]))
    layer.generate_quantized_weight()
    assert layer.qweight.tolist() == [[141, 1]]
    assert torch.equal(BinaryLinearCuda.w_pack(layer.weight.detach().to(torch.int8)), layer.qweight)


@pytest.mark.parametrize("cls", PLAIN + SCALED)
def test_eval_uses_the_weight_of_now(cls):
    """D9: in the original packed weights stay those of the first evaluation."""
    layer = build(cls, bias=True)
    layer.generate_quantized_weight()
    before = layer.eval()(X)
    assert layer.opt_weight is layer.qweight
    optimizer = torch.optim.SGD([layer.weight], lr=100.0)
    F.mse_loss(layer.train()(X), -before.detach()).backward()
    optimizer.step()
    now = sign(layer.weight.detach())
    assert not torch.equal(now, bitorch_engine.signs.unpack_signs(layer.qweight, 21))
    after = layer.eval()(X)
    assert torch.equal(bitorch_engine.signs.unpack_signs(layer.opt_weight, 21), now)
    layer.generate_quantized_weight(qweight_only=True)
    assert torch.equal(layer(X), after)
    fresh = build(cls)
    fresh.eval()(X)
    fresh.weight.data.neg_()  # unseen by autograd's version counter
    signs = bitorch_engine.signs.unpack_signs(fresh.opt_weight, 21)
    assert torch.equal(signs, sign(fresh.weight.detach()))


@pytest.mark.parametrize("cls", PLAIN + SCALED)
def test_opt_weight(cls):
    layer = build(cls)
    assert layer.opt_weight is layer.weight
    packed = layer.eval().opt_weight
    assert packed.dtype == torch.uint8
    assert packed.shape == (6, 3)
    layer.generate_quantized_weight(qweight_only=True)
    layer.generate_quantized_weight(qweight_only=True)
    assert torch.equal(layer.opt_weight, packed)
    assert layer.train().opt_weight is layer.qweight


@pytest.mark.parametrize("cls", PLAIN + SCALED)
def test_quantized_weight_data(cls):
    layer, other = build(cls), build(cls, "packed")
    other.load_state_dict({**layer.state_dict(), "weight": -layer.weight.detach()})
    other.generate_quantized_weight(qweight_only=True)
    magnitude = layer.weight.detach().abs()
    layer.set_quantized_weight_data(other.qweight)
    assert torch.equal(layer.qweight, other.qweight)
    for _ in range(2):
        assert torch.equal(layer(X), other(X))
        assert torch.equal(layer.eval()(X), other(X))
    torch.testing.assert_close(layer.weight.detach().abs(), magnitude)
    assert layer.weight.requires_grad
    other.set_quantized_weight_data(
        (~other.qweight & torch.tensor([255, 255, 31], dtype=torch.uint8)).flatten()
    )
    torch.testing.assert_close(other(X), -layer(X))
    zeros = cls(21, 6)
    with torch.no_grad():
        zeros.weight.zero_()
    zeros.set_quantized_weight_data(other.qweight)
    assert torch.equal(zeros.weight.detach(), bitorch_engine.signs.unpack_signs(other.qweight, 21))


@pytest.mark.parametrize("form", ["float", "packed"])
def test_packed_data_is_checked(form):
    layer = build(BinaryLinearCPP, form)
    good = build(BinaryLinearCPP, "packed").qweight
    for bad, error, message in (
        (good.to(torch.int8), TypeError, r"must be uint8, got torch\.int8"),
        (good[1:], ValueError, r"have shape \[6, 3\], got \[5, 3\]"),
        (good.flatten()[1:], ValueError, r"got \[17\]"),
        (good | 128, ValueError, "bits set beyond their 21 columns"),
    ):
        with pytest.raises(error, match=message):
            layer.set_quantized_weight_data(bad)


def test_weight_data_is_checked_and_copied():
    layer = build(BinaryLinearCPP, "packed")
    with pytest.raises(TypeError, match=r"must be torch\.float32 as the layer is, got torch\.float16"):
        layer.set_weight_data(torch.ones(6, 21, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"must have shape \[6, 21\], got \[21, 6\]"):
        layer.set_weight_data(torch.ones(21, 6))
    weight = torch.randn(6, 21)
    layer.set_weight_data(weight)
    assert torch.equal(layer.weight, weight)
    weight.neg_()
    assert not torch.equal(layer.weight, weight)
    assert layer.qweight is None
    layer.weight = None
    with pytest.raises(RuntimeError, match="neither weight nor qweight"):
        layer(X)


@pytest.mark.parametrize("cls", PLAIN + SCALED)
def test_resetting_starts_again_from_a_float_weight(cls):
    for form in forms(cls):
        layer = build(cls, form, bias=True)
        before = [
            None if layer.weight is None else layer.weight.detach().clone(),
            layer.bias.detach().clone(),
        ]
        layer.reset_parameters()
        assert type(layer.weight) is nn.Parameter
        assert layer.qweight is None
        assert layer.weight.abs().max() <= 21**-0.5
        assert before[0] is None or not torch.equal(layer.weight, before[0])
        assert not torch.equal(layer.bias, before[1])
        if cls in SCALED:
            assert layer.scale_a.item() == 0
            assert (layer.scale_w == 1).all()
            layer(X)
            assert layer.scale_a.item() != 0


# ---- weights that train by flips ----------------------------------------------------------------


@pytest.mark.parametrize("cls", SCALED)
@pytest.mark.parametrize("scale", ["tensor", "row"])
def test_preparing(cls, scale):
    """D1 and D8: signs about the mean, the scale of the weight before it is centred, gradients."""
    layer = cls(21, 6, scale=scale)
    weight = torch.randn(6, 21) + 0.3
    layer.set_weight_data(weight)
    assert isinstance(layer.weight, BinaryLinearParameter)
    assert isinstance(layer.weight, nn.Parameter)
    assert layer.weight.stored_bytes < 6 * 21 + 16
    mean = weight.abs().mean() if scale == "tensor" else weight.abs().mean(1)
    torch.testing.assert_close(layer.scale_w, mean)
    centred = sign(weight - (weight.mean() if scale == "tensor" else weight.mean(1, keepdim=True)))
    y = layer(X)
    assert torch.equal(y, sign(X) @ centred.T * layer.scale_a * layer.scale_w)
    towards = torch.randn(5, 6)
    y.backward(towards)
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(layer.weight.grad, towards.T @ (sign(X) * layer.scale_a.detach()))
    layer.generate_quantized_weight(qweight_only=True)
    assert torch.equal(layer(X), y)


@pytest.mark.parametrize("cls", SCALED)
def test_preparing_twice_changes_nothing(cls):
    """In the original the second call takes the int8 values for the weight, and their mean for its scale."""
    layer = cls(21, 6)
    layer.prepare_params()
    weight, scale = layer.weight, layer.scale_w.clone()
    layer.prepare_params()
    assert layer.weight is weight
    assert torch.equal(layer.scale_w, scale)
    layer.generate_quantized_weight(qweight_only=True)
    layer.prepare_params()
    assert layer.weight is None


def test_plain_layers_need_no_preparation():
    layer = BinaryLinearCPP(21, 6)
    weight = layer.weight
    layer.prepare_params()
    assert layer.weight is weight


@pytest.mark.parametrize("cls", SCALED)
def test_from_linear_keeps_the_scale(cls):
    """D17: weights, their scale and the bias come from the linear layer."""
    linear = nn.Linear(21, 6)
    layer = cls.from_linear(linear, scale="row")
    torch.testing.assert_close(layer.scale_w, linear.weight.detach().abs().mean(1))
    assert torch.equal(layer.bias, linear.bias)
    y = layer(X)
    centred = sign(linear.weight.detach() - linear.weight.detach().mean(1, keepdim=True))
    assert torch.equal(y, sign(X) @ centred.T * layer.scale_a * layer.scale_w + layer.bias)


def test_signs_that_flip_are_used_at_once():
    """D9, without a float weight: what an update flips is what eval computes with."""
    layer = build(BinaryLinearCuda, "prepared").eval()
    layer.generate_quantized_weight()
    before = layer(X)
    layer.weight.flip_(torch.ones(6, 21, dtype=torch.bool))
    assert torch.equal(layer(X), -before)


def test_parameter_classes_are_reached_by_name():
    for name in bitorch_engine.__all__:
        assert getattr(bitorch_engine, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'BinaryFoo'"):
        _ = bitorch_engine.BinaryFoo


# ---- states -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", PLAIN + SCALED)
def test_states_hold_one_copy_of_the_weight(cls):
    """D9: in the original a packed CPU layer has a state without weights."""
    scales = {"bias_a", "scale_a", "scale_w"} if cls in SCALED else set()
    layer = build(cls)
    layer.generate_quantized_weight()
    assert set(layer.state_dict()) == {"weight", *scales}
    layer.generate_quantized_weight(qweight_only=True)
    assert set(layer.state_dict()) == {"qweight", *scales}


@pytest.mark.parametrize("cls", PLAIN + SCALED)
def test_states_of_any_form_load_into_any_form(cls):
    for source_form in forms(cls):
        source = build(cls, source_form)
        for target_form in forms(cls):
            target = build(cls, target_form)
            target.load_state_dict(copy.deepcopy(source.state_dict()), strict=True)
            assert torch.equal(target.eval()(X), source.eval()(X)), (source_form, target_form)
            assert type(target.weight) is type(source.weight)
            assert set(target.state_dict()) == set(source.state_dict())


@pytest.mark.parametrize(("source", "target"), [SCALED, SCALED[::-1]])
@pytest.mark.parametrize("form", ["float", "packed", "prepared"])
def test_states_pass_between_backends(source, target, form):
    """In the original each backend has a packed layout of its own."""
    layer = build(source, form)
    other = target(21, 6)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.eval()(X), layer.eval()(X))


@pytest.mark.parametrize("form", ["float", "packed"])
def test_states_are_checked(form):
    layer = build(BinaryLinearCuda, form)
    good = build(BinaryLinearCuda, "packed").state_dict()
    before = layer(X)
    for change, message in (
        ({"qweight": good["qweight"][:, 1:]}, r"have shape \[6, 3\], got \[6, 2\]"),
        ({"qweight": good["qweight"] | 128}, "bits set beyond"),
        ({"qweight": good["qweight"].int()}, "must be uint8"),
        ({"weight": torch.ones(6, 21)}, "a weight and packed signs"),
        ({"qweight": None, "weight": torch.ones(21, 6)}, r"weight has shape \[21, 6\]"),
    ):
        state = {key: value for key, value in {**good, **change}.items() if value is not None}
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict(state)
        assert (layer.weight is None) == (form == "packed")
    assert torch.equal(layer(X), before)
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict({"scale_w": torch.tensor(1.0)})


def test_files(tmp_path):
    model = nn.Sequential(build(BinaryLinearCuda, "packed"), nn.Tanh(), nn.Linear(6, 2))
    checkpoint.save(model, tmp_path / "model.safetensors")
    twin = nn.Sequential(BinaryLinearCuda(21, 6), nn.Tanh(), nn.Linear(6, 2))
    checkpoint.load(twin, tmp_path / "model.safetensors")
    assert torch.equal(twin(X), model(X))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    again = nn.Sequential(BinaryLinearCuda(21, 6), nn.Tanh(), nn.Linear(6, 2))
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(again(X), model(X))


# ---- life as a module ---------------------------------------------------------------------------


@pytest.mark.parametrize("cls", PLAIN + SCALED)
def test_device_argument_is_honoured(cls):
    """D15: the original stores it and makes everything on the CPU."""
    layer = cls(21, 6, "meta", bias=True)
    tensors = [*layer.parameters(), *layer.buffers()]
    assert all(tensor.is_meta for tensor in tensors)
    assert layer.device == torch.device("meta")
    assert layer(torch.empty(2, 21, device="meta")).shape == (2, 6)
    source = build(cls, bias=True)
    assigned = copy.deepcopy(layer)
    assigned.load_state_dict(source.state_dict(), assign=True)
    assert assigned.to("cpu").device == torch.device("cpu")
    assert torch.equal(assigned.eval()(X), source.eval()(X))
    layer.to_empty(device="cpu")
    layer.load_state_dict(source.state_dict())
    assert layer.device == torch.device("cpu")
    assert torch.equal(layer.eval()(X), source.eval()(X))


@pytest.mark.parametrize("cls", PLAIN + SCALED)
@pytest.mark.parametrize("packed", [False, True])
def test_forward_reads_nothing_back(cls, packed):
    """D15: the original reads scales back to the host in every call. One graph, so no read."""
    layer = build(cls, "packed" if packed else "float", bias=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    one, two = X.clone().requires_grad_(), X.clone().requires_grad_()
    torch.testing.assert_close(compiled(one), layer(two))
    compiled(one).sum().backward()
    layer(two).sum().backward()
    torch.testing.assert_close(one.grad, two.grad)


@pytest.mark.parametrize("cls", PLAIN + SCALED)
def test_copies_and_casts(cls):
    for form in forms(cls):
        layer = build(cls, form, bias=True)
        twins = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
        for twin in twins:
            assert torch.equal(twin(X), layer(X))
        half = twins[0].half()
        assert half.dtype == torch.float16
        assert half.qweight is None or half.qweight.dtype == torch.uint8
        assert half(X.half()).dtype == torch.float16
        torch.testing.assert_close(half(X.half()).float(), layer(X.half().float()), rtol=3e-3, atol=3e-2)


def test_repr_names_shape_and_form():
    assert repr(BinaryLinearCPP(21, 6)) == (
        "BinaryLinearCPP(input_features=21, out_features=6, bias=False, weight=Parameter)"
    )
    assert "packed" in repr(build(BinaryLinearCuda, "packed"))
    assert "BinaryLinearParameter" in repr(build(BinaryLinearCuda, "prepared"))
