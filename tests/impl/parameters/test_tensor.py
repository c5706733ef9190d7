"""Low-bit parameters on the roads of stock torch: autograd, modules, copies, files, clipping."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from impl.optim import DiodeMix
from impl.parameters import (
    BinaryConvParameter,
    BinaryEmbeddingParameter,
    BinaryLinearParameter,
    LowBitParameter,
    MPQWeightParameter,
    nBitLinearParameter,
)
from impl.parameters.tensor import TransposedView


def assert_same(one, other):
    assert type(one) is type(other)
    assert one._attributes == other._attributes
    for name in one._tensors:
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool])
def test_integer_data_can_require_gradients(dtype):
    """D1: stock torch refuses gradients to integer parameters; these take them."""
    data = torch.tensor([[1, 0, 1], [0, 1, 1]]).to(dtype)
    with pytest.raises(RuntimeError, match="floating point"):
        nn.Parameter(data, requires_grad=True)
    parameter = BinaryEmbeddingParameter(data, requires_grad=True)
    assert isinstance(parameter, nn.Parameter)
    assert parameter.is_leaf
    assert parameter.requires_grad
    parameter.sum().backward()
    assert type(parameter.grad) is torch.Tensor
    assert torch.equal(parameter.grad, torch.ones(parameter.shape))


def test_it_is_a_parameter_of_a_module_and_stays_one(parameter):
    module = nn.Module()
    module.weight = parameter
    assert dict(module.named_parameters()) == {"weight": parameter}
    detached = parameter.detach()
    assert not isinstance(detached, nn.Parameter)
    assert not detached.requires_grad
    assert_same(detached, parameter)
    assert not isinstance(parameter.data, nn.Parameter)
    again = nn.Parameter(detached)
    assert isinstance(again, type(parameter))
    assert again.requires_grad


def test_it_keeps_integers_only(parameter):
    floats = [name for name in parameter._tensors if getattr(parameter, name).is_floating_point()]
    assert set(floats) <= {"scales", "zeros"}
    assert parameter.stored_bytes == sum(getattr(parameter, name).nbytes for name in parameter._tensors)
    assert str(parameter.stored_bytes) in repr(parameter)


def test_bits_and_bytes_of_a_large_weight():
    weight = torch.randn(64, 1000)
    assert BinaryLinearParameter(weight, packed=True).stored_bytes == 64 * 125 + 64 * 4
    assert BinaryLinearParameter(weight).stored_bytes == 64 * 1000 + 64 * 4
    assert nBitLinearParameter(weight).stored_bytes == 64 * 1000 + 64 * 4


@pytest.mark.parametrize("lead", [(4,), (2, 3), (2, 2, 3)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_linear_and_its_gradients_are_those_of_the_decoded_weight(lead, bias, packed):
    torch.manual_seed(1)
    parameter = BinaryLinearParameter(torch.randn(6, 11), packed=packed)
    plain = parameter.dequantize().requires_grad_()
    offset = torch.randn(6) if bias else None
    x, x_plain = (torch.randn(*lead, 11, generator=torch.Generator().manual_seed(2)) for _ in range(2))
    y = F.linear(x.requires_grad_(), parameter, offset)
    expected = F.linear(x_plain.requires_grad_(), plain, offset)
    torch.testing.assert_close(y, expected)
    (y**2).sum().backward()
    (expected**2).sum().backward()
    torch.testing.assert_close(x.grad, x_plain.grad)
    torch.testing.assert_close(parameter.grad, plain.grad)
    assert type(parameter.grad) is torch.Tensor


def test_convolution_and_its_gradients_are_those_of_the_decoded_weight():
    torch.manual_seed(1)
    parameter = BinaryConvParameter(torch.randn(4, 3, 2, 3), packed=True)
    plain = parameter.dequantize().requires_grad_()
    x = torch.randn(2, 3, 8, 9)
    y, expected = F.conv2d(x, parameter, padding=1), F.conv2d(x, plain, padding=1)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(parameter.grad, plain.grad)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("index", [torch.tensor([1, 1, 6]), torch.tensor([[0, 3]]), torch.tensor(5)])
def test_embedding_and_its_gradients_are_those_of_the_decoded_table(packed, index):
    torch.manual_seed(1)
    parameter = BinaryEmbeddingParameter(torch.randn(7, 10), packed=packed)
    plain = parameter.dequantize().requires_grad_()
    y, expected = F.embedding(index, parameter), F.embedding(index, plain)
    assert torch.equal(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(parameter.grad, plain.grad)
    with pytest.raises(IndexError):
        F.embedding(torch.tensor([-1]), parameter)


def test_an_embedding_lookup_decodes_the_rows_asked_for_only(monkeypatch):
    parameter = BinaryEmbeddingParameter(torch.randn(7, 10), packed=True)
    monkeypatch.setattr(BinaryEmbeddingParameter, "dequantize", lambda self: pytest.fail("decoded all"))
    assert F.embedding(torch.tensor([2]), parameter).shape == (1, 10)


@pytest.mark.parametrize("packed", [True, False])
def test_no_float_copy_of_the_weight_waits_for_the_backward_pass(packed):
    parameter = BinaryLinearParameter(torch.randn(64, 64), packed=packed)
    x = torch.randn(2, 64, requires_grad=True)
    saved = []

    def note(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = F.linear(x, parameter)
    kept = [tensor for tensor in saved if tensor.shape == (64, 64)]
    assert kept
    assert all(isinstance(tensor, TransposedView | LowBitParameter) for tensor in kept)
    y.sum().backward()
    torch.testing.assert_close(x.grad, parameter.dequantize().sum(0).expand(2, 64))


def test_a_transposed_view_is_read_only():
    parameter = BinaryLinearParameter(torch.randn(3, 5))
    view = parameter.detach().t()
    assert view.shape == (5, 3)
    assert torch.equal(view.t().dequantize(), parameter.dequantize())
    assert torch.equal(view + 0, parameter.dequantize().T)
    with pytest.raises(RuntimeError, match="write to the parameter"):
        view.zero_()


def test_clipping_and_zeroing_work_on_its_gradient(parameter):
    (3 * parameter).sum().backward()
    norm = nn.utils.clip_grad_norm_([parameter], 1.0)
    assert norm == pytest.approx(3 * parameter.numel() ** 0.5, rel=1e-5)
    assert parameter.grad.norm() == pytest.approx(1.0, rel=1e-4)
    nn.utils.clip_grad_value_([parameter], 1e-3)
    assert parameter.grad.abs().max() <= 1e-3


def test_gradients_accumulate(parameter):
    for _ in range(2):
        (2 * parameter).sum().backward()
    assert torch.equal(parameter.grad, torch.full(parameter.shape, 4.0))


def test_deepcopy_is_whole_and_independent(parameter):
    parameter.sum().backward()
    module = nn.Module()
    module.weight = parameter
    twin = copy.deepcopy(module).weight
    assert isinstance(twin, nn.Parameter)
    assert_same(twin, parameter)
    assert torch.equal(twin.grad, parameter.grad)
    before = parameter.dequantize()
    with torch.no_grad():
        twin.neg_()
    assert torch.equal(parameter.dequantize(), before)


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_pickle(parameter, protocol):
    twin = pickle.loads(pickle.dumps(parameter, protocol))
    assert isinstance(twin, nn.Parameter)
    assert twin.requires_grad
    assert_same(twin, parameter)


def test_torch_save_loads_with_weights_only(parameter):
    module = nn.Module()
    module.weight = parameter
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True, map_location="cpu")
    assert_same(state["weight"], parameter)


def test_state_dict_round_trip_is_exact(parameter):
    module, other = nn.Module(), nn.Module()
    module.weight, other.weight = parameter, copy.deepcopy(parameter)
    state = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        other.weight.neg_()
    identity = other.weight
    other.load_state_dict(state, strict=True)
    assert other.weight is identity
    assert_same(other.weight, parameter)
    other.load_state_dict(state, strict=True, assign=True)
    assert isinstance(other.weight, nn.Parameter)
    assert_same(other.weight, parameter)


def test_a_float_state_is_quantised_on_load(parameter):
    module = nn.Module()
    module.weight = parameter
    expected = parameter.dequantize()
    module.load_state_dict({"weight": expected})
    torch.testing.assert_close(module.weight.dequantize(), expected, rtol=1e-5, atol=1e-6)


def test_cast_changes_the_outside_and_keeps_the_integers(parameter):
    module = nn.Module()
    module.weight = parameter
    kept = {name: getattr(parameter, name).clone() for name in parameter._tensors}
    parameter.sum().backward()
    module.to(torch.bfloat16)
    assert module.weight is parameter
    assert isinstance(module.weight, LowBitParameter)
    assert parameter.dtype == parameter.dequantize().dtype == torch.bfloat16
    assert parameter.grad.dtype == torch.bfloat16
    for name, tensor in kept.items():
        assert torch.equal(getattr(module.weight, name), tensor)
        assert getattr(module.weight, name).dtype == tensor.dtype
    (2 * module.weight).sum().backward()
    assert module.weight.grad.dtype == torch.bfloat16
    assert parameter.detach().to(torch.int32).dtype == torch.int32


def test_to_another_device_and_back_from_nothing(parameter):
    module = nn.Module()
    module.weight = parameter
    state = copy.deepcopy(module.state_dict())
    module.to("meta")
    assert module.weight.device.type == "meta"
    assert all(getattr(module.weight, name).is_meta for name in parameter._tensors)
    module.to_empty(device="cpu")
    assert isinstance(module.weight, LowBitParameter)
    module.load_state_dict(state)
    assert_same(module.weight.detach(), state["weight"])


def test_to_empty_on_the_same_device_keeps_the_parameter(parameter):
    module = nn.Module()
    module.weight = parameter
    state = copy.deepcopy(module.state_dict())
    module.to_empty(device="cpu")
    assert module.weight is parameter
    assert isinstance(parameter, LowBitParameter)
    assert not getattr(parameter, parameter._tensors[0]).any()
    module.load_state_dict(state)
    assert_same(module.weight.detach(), state["weight"])


@pytest.mark.parametrize("move", ["bfloat16", "deepcopy", "to_empty"])
def test_what_belongs_to_the_training_follows_a_move(move):
    module = nn.Module()
    module.table = BinaryEmbeddingParameter(torch.randn(5, 8), True, torch.tensor([1, 3]))
    module.weight = MPQWeightParameter(torch.randn(32, 3), w_bit=4, privileged_grad=torch.ones(32, 3))
    if move == "deepcopy":
        module = copy.deepcopy(module)
    elif move == "to_empty":
        module.to("meta").to_empty(device="cpu")
        assert module.weight.privileged_grad.shape == (32, 3)
        assert module.table.active_indices.shape == (2,)
        return
    else:
        module.to(torch.bfloat16)
    assert module.table.active_indices.tolist() == [1, 3]
    assert torch.equal(module.weight.privileged_grad, torch.ones(32, 3))


def test_autocast_runs_in_its_dtype():
    parameter = BinaryLinearParameter(torch.randn(6, 11))
    with torch.autocast("cpu", torch.bfloat16):
        y = F.linear(torch.randn(2, 11), parameter)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert parameter.grad.dtype == torch.float32


@pytest.mark.parametrize("road", ["compile", "export"])
def test_networks_with_low_bit_weights_compile_and_export(road):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 12), nn.Linear(12, 5))
    model[0].weight = BinaryEmbeddingParameter(torch.randn(7, 12), packed=True)
    model[1].weight = BinaryLinearParameter(torch.randn(5, 12))
    index = torch.tensor([[0, 6, 3]])
    if road == "export":
        exported = torch.export.export(model, (index,)).module()
        torch.testing.assert_close(exported(index), model(index))
        return
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    y, expected = compiled(index), twin(index)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)
    # The graph reads the integers, it does not embed them.
    with torch.no_grad():
        model[1].weight.neg_()
    torch.testing.assert_close(compiled(index), model(index))
    assert not torch.allclose(compiled(index), expected)


def test_operations_return_ordinary_tensors():
    parameter = BinaryLinearParameter(torch.randn(3, 5))
    for result in (parameter + 1, parameter.view(-1), torch.zeros_like(parameter), parameter.abs().sum()):
        assert type(result) is torch.Tensor
    assert type(torch.empty_like(parameter)) is torch.Tensor


def test_graphs_notice_that_an_update_changed_the_weight():
    parameter = BinaryLinearParameter(torch.randn(3, 3))
    x = torch.randn(2, 3, requires_grad=True)
    y = F.linear(x, parameter).square()
    y.sum().backward(retain_graph=True)
    DiodeMix([parameter]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
