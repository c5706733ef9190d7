"""Layers trained with int8 products: when codes are made anew, life among other modules, errors."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from int8_layers import backward, layer_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import impl
from impl import BinaryConv2d, BinaryLinear, BitLinear, MultiTernaryConv2d, MultiTernaryLinear, TernaryConv2d
from impl.layers import int8_training as layers
from impl.layers.int8_training import Int8Training
from impl.ops import int8_training
from impl.quantizers import quantize_ternary
from impl.training import Annealing, Ramp

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- codes are made once ----------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Grows by one whenever a latent weight is quantised."""
    calls: list[Tensor] = []

    def counted(weight: Tensor, **options: Any) -> Any:
        calls.append(weight)
        return quantize_ternary(weight, **options)

    monkeypatch.setattr(int8_training, "quantize_ternary", counted)
    return calls


def test_one_state_of_the_weight_is_quantised_once(made: list[Tensor]) -> None:
    layer = layer_of("tensor")
    x = torch.randn(4, 67, requires_grad=True)
    for _ in range(3):
        layer(x).sum().backward()
    with torch.no_grad():
        layer(x)
    assert len(made) == 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_does_not_quantise_again(made: list[Tensor], reentrant: bool) -> None:
    layer = layer_of("groups")
    x = torch.randn(4, 67, requires_grad=True)
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    assert len(made) == 1
    found = x.grad, layer.weight.grad
    x.grad = layer.weight.grad = None
    layer(x).square().sum().backward()
    assert torch.equal(found[0], x.grad)
    assert torch.equal(found[1], layer.weight.grad)


class WritesData(torch.optim.SGD):
    """As older optimizers do: past the version counter."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.sub_(parameter.grad, alpha=group["lr"])


def _negate(layer: Int8Training) -> None:
    with torch.no_grad():
        layer.weight.neg_()


def _step(optimizer: type[torch.optim.Optimizer], layer: Int8Training) -> None:
    layer.weight.grad = 2 * layer.weight.detach()
    optimizer([layer.weight], lr=1).step()


def _load(layer: Int8Training, assign: bool) -> None:
    state = {name: -tensor for name, tensor in layer.state_dict().items()}
    layer.load_state_dict(state, assign=assign)


def _eval_with_others(layer: Int8Training) -> None:
    """As averaged weights are swapped in."""
    layer.eval()
    layer.weight.data.neg_()
    layer(torch.zeros(1, 67))
    layer.train()


CHANGES: dict[str, Callable[[Int8Training], Any]] = {
    "in place": _negate,
    "optimizer": functools.partial(_step, torch.optim.SGD),
    "optimizer that writes data": functools.partial(_step, WritesData),
    "load_state_dict": functools.partial(_load, assign=False),
    "load_state_dict, assigned": functools.partial(_load, assign=True),
    "new data": lambda layer: setattr(layer.weight, "data", -layer.weight.data),
    "new parameter": lambda layer: setattr(layer, "weight", nn.Parameter(-layer.weight.detach())),
    "data in eval mode": _eval_with_others,
    "moved": lambda layer: (layer.weight.data.neg_(), layer.to(torch.float64).to(torch.float32)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_quantised_anew(change: str) -> None:
    layer = layer_of("tensor", bias=False)
    x = torch.randn(4, 67)
    before = layer(x)
    CHANGES[change](layer)
    with torch.no_grad():
        assert torch.equal(layer(x), -before)


def test_eval_sees_every_write() -> None:
    layer = layer_of("tensor", bias=False).eval()
    x = torch.randn(4, 67)
    before = layer(x)
    layer.weight.data.neg_()
    assert torch.equal(layer(x), -before)


def test_the_backward_pass_uses_the_codes_of_its_forward_pass() -> None:
    layer = layer_of("tensor", bias=False)
    x = torch.randn(4, 67, requires_grad=True)
    y = layer(x)
    with torch.no_grad():
        layer.weight.neg_()
    y.backward(torch.ones_like(y))
    assert x.grad is not None
    grad, x.grad = x.grad, None
    layer(x).backward(torch.ones_like(y))
    assert torch.equal(x.grad, -grad)


def test_nothing_is_kept_once_a_graph_holds_the_layer(
    made: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = layer_of("tensor", bias=False)
    x = torch.randn(4, 67)
    before = layer(x)
    with monkeypatch.context() as patch:
        patch.setattr(layers, "_capturing", lambda weight: True)
        layer(x)  # its codes belong to the graph
    assert len(made) == 2
    layer.weight.data.neg_()  # as a replay does
    assert torch.equal(layer(x), -before)
    layer.weight.data.neg_()
    assert torch.equal(layer(x), before)


def test_inference_tensors_serve() -> None:
    with torch.inference_mode():
        layer = layer_of("tensor")
        x = torch.randn(2, 67)
        assert torch.equal(layer(x), copy.deepcopy(layer).pack()(x))


# ---- a module among others ----------------------------------------------------------------------


def test_copies_states_and_forms(copied: Callable[[nn.Module], nn.Module], made: list[Tensor]) -> None:
    layer = layer_of("groups")
    x = torch.randn(4, 67)
    y = layer(x)
    twin = copied(layer)
    assert twin.int8_training
    assert torch.equal(twin(x), y)
    assert len(made) == 2
    with torch.no_grad():
        twin.weight.neg_()
        assert torch.equal(layer(x), y)
    assert set(layer.state_dict()) == {"weight", "bias"}
    packed = copy.deepcopy(layer).pack()
    assert torch.equal(packed(x), y)
    float_twin = layer_of("groups", int8_training=False)
    float_twin.load_state_dict(packed.state_dict())
    assert torch.equal(float_twin(x), y)
    again = packed.unpack()
    assert again.int8_training
    assert again(x).shape == y.shape
    meta = layer_of("groups").to("meta")
    assert meta(torch.empty(2, 67, device="meta")).shape == (2, 41)


@pytest.mark.parametrize("kind", ["tensor", "groups"])
def test_compiled_graphs_have_no_break_and_the_same_numbers(kind: str) -> None:
    layer = layer_of(kind)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(9, 67)
    y, _, found = backward(layer, x)
    compiled_y, _, others = backward(compiled, x)
    assert torch.equal(compiled_y, y)
    for name, gradient in found.items():
        other = others[name if name == "x" else f"_orig_mod.{name}"]
        assert torch.equal(other, gradient)
    with torch.no_grad():
        layer.weight.neg_()
        assert torch.equal(compiled(x), layer(x))


def test_conversion_passes_the_option_on() -> None:
    model = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 4))
    latent = impl.prepare(copy.deepcopy(model), activation_bits=8, int8_training=True)
    assert all(m.int8_training for m in latent.modules() if isinstance(m, BitLinear))
    x = torch.randn(3, 12)
    y = latent(x)
    assert "int8_training=True" in repr(latent)
    assert torch.equal(impl.pack(latent)(x), y)
    packed = BitLinear.from_linear(model[0], activation_bits=8, int8_training=True)
    assert (packed.rule, packed.is_packed) == ("absmean", True)
    assert MultiTernaryLinear.from_linear(model[0], 1, activation_bits=8, int8_training=True).rule == "twn"


def _train(int8: bool) -> tuple[float, float]:
    """First and last loss of a small regression."""
    torch.manual_seed(0)
    options = {"activation_bits": 8, "ste": "clip", "int8_training": int8}
    model = nn.Sequential(BitLinear(16, 48, **options), nn.ReLU(), BitLinear(48, 4, **options))
    x = torch.randn(256, 16)
    target = F.linear(x, torch.randn(4, 16)).tanh()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        loss = F.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], sum(losses[-10:]) / 10


def test_training_goes_as_far_as_with_float_products() -> None:
    first, last = _train(int8=True)
    _, float_last = _train(int8=False)
    assert last < 0.35 * first
    assert abs(last - float_last) < 0.1 * float_last + 0.01


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (BitLinear, {"activation_bits": None}, "activation_bits=8, this layer has activation_bits=None"),
        (BitLinear, {"activation_bits": 16}, "activation_bits=8, this layer has activation_bits=16"),
        (
            BitLinear,
            {"rule": "optimal"},
            "rule='absmean' or 'absmax' or 'twn', this layer has rule='optimal'",
        ),
        (BitLinear, {"ste": "swish_sign"}, "ste='identity' or 'clip', this layer has ste='swish_sign'"),
        (MultiTernaryLinear, {"k": 2}, "k=1, this layer has k=2"),
        (BinaryLinear, {"activation_bits": 2}, "activation_bits=8 or 1, this layer has activation_bits=2"),
        (BinaryLinear, {"ste": "approx_sign"}, "ste='identity' or 'clip', this layer has ste='approx_sign'"),
    ],
)
def test_options_that_it_does_not_go_with(cls: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(8, 4, **{"activation_bits": 8, **options}, int8_training=True)
    layer = cls(8, 4, **{"activation_bits": 8, **options})
    with pytest.raises(ValueError, match=message):
        layer.int8_training = True
    assert not layer.int8_training


def test_other_wrong_uses_say_what_is_wrong() -> None:
    with pytest.raises(TypeError, match="must be True or False, got 1"):
        BitLinear(8, 4, activation_bits=8, int8_training=1)
    layer = layer_of("tensor")
    x = torch.randn(2, 67, requires_grad=True)
    with pytest.raises(ValueError, match="66"):
        layer(torch.randn(2, 66))
    with pytest.raises(TypeError, match="float64"):
        layer(x.double())
    with pytest.raises(ValueError, match=r"move one with \.to"):
        layer(torch.empty(2, 67, device="meta"))
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="set int8_training=False"):
        torch.func.grad(lambda v: layer(v).sum())(x.detach())
    codes, scales, _ = layer._quantize_latent(layer.weight)
    broken = copy.deepcopy(layer)
    with torch.no_grad():
        broken.weight[3, 4] = float("nan")
        assert broken(x).isnan().all()
    with pytest.raises(ValueError, match="NaN"):
        broken.pack()
    grad = torch.ones(2, 41, requires_grad=True)
    out = torch.ops.bitimpl.int8_linear_input_grad(grad, codes, scales, 41, 67, 0, 3)
    with pytest.raises(RuntimeError, match="has no gradient itself"):
        out.sum().backward()
    with pytest.raises(ValueError, match=r"is uint8 \[41, 9\], got torch.uint8 \[41, 8\]"):
        torch.ops.bitimpl.apply_ste_mask(torch.ones(41, 67), torch.zeros(41, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"rule='sign' makes binary codes .* got rule='twn' for binary"):
        torch.ops.bitimpl.quantize_latent(layer.weight.detach(), "twn", False, 0, 1, False)
    with pytest.raises(ValueError, match="got rule='sign' for base3"):
        torch.ops.bitimpl.quantize_latent(layer.weight.detach(), "sign", False, 0, 3, False)
    with pytest.raises(ValueError, match="format=7 is unknown"):
        torch.ops.bitimpl.quantize_latent(layer.weight.detach(), "twn", False, 0, 7, False)
    with pytest.raises(ValueError, match="unknown rule of int8 training 'optimal'"):
        torch.ops.bitimpl.quantize_latent(layer.weight.detach(), "optimal", False, 0, 3, False)


@pytest.mark.parametrize("cls", [BinaryConv2d, TernaryConv2d, MultiTernaryConv2d])
def test_convolutions_refuse_it_and_say_why(cls: type) -> None:
    message = "is for linear layers: .* in bfloat16 under torch.autocast"
    with pytest.raises(ValueError, match=message):
        cls(8, 4, 3, activation_bits=8, int8_training=True)
    with pytest.raises(ValueError, match=message):
        impl.convert_convolutions(nn.Conv2d(8, 4, 3), cls, pack=False, int8_training=True)
    layer = cls(8, 4, 3)
    with pytest.raises(ValueError, match=message):
        layer.int8_training = True
    with pytest.raises(TypeError, match="must be True or False, got 0"):
        layer.int8_training = 0
    assert layer.int8_training is False


def test_weights_of_signs_alone_are_refused() -> None:
    layer = layer_of("binary")
    layer.weight = impl.parameters.BinaryLinearParameter(layer.weight.detach())
    with pytest.raises(TypeError, match="this one is a BinaryLinearParameter, which holds signs only"):
        layer(torch.randn(2, 67))
    layer.int8_training = False
    assert layer(torch.randn(2, 67)).shape == (2, 41)


def test_annealing_is_refused_in_either_order() -> None:
    layer = layer_of("tensor")
    with pytest.raises(ValueError, match="cannot blend float values in"):
        Annealing(layer, weights=Ramp(0, 10))
    assert type(layer) is BitLinear
    layer.int8_training = False
    annealing = Annealing(layer, weights=Ramp(0, 10))
    with pytest.raises(ValueError, match="finish"):
        layer.int8_training = True
    annealing.finish()
    layer.int8_training = True
    x = torch.randn(2, 67)
    assert torch.equal(layer(x), copy.deepcopy(layer).pack()(x))
