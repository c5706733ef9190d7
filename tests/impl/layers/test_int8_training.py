"""Ternary layers trained with int8 products: the packed layer's numbers forwards, stated ones backwards."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import impl
from impl import BitLinear, MultiTernaryLinear, native
from impl.layers import int8_training as layers
from impl.layers.int8_training import Int8Training
from impl.ops import int8_training
from impl.packing import FORMATS, PackedWeight
from impl.quantizers import quantize_activations, quantize_ternary
from impl.training import Annealing, Ramp

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS: dict[str, Callable[..., Int8Training]] = {
    "tensor": functools.partial(BitLinear, int8_training=True, activation_bits=8),
    "row": functools.partial(
        BitLinear, int8_training=True, activation_bits=8, scale="row", format="two_bit", bias=False
    ),
    "groups": functools.partial(
        BitLinear, int8_training=True, activation_bits=8, rule="twn", group_size=24, ste="clip"
    ),
    "half scales": functools.partial(
        BitLinear, int8_training=True, activation_bits=8, rule="absmax", ste="clip", scale_dtype=torch.float16
    ),
    "k": functools.partial(MultiTernaryLinear, k=1, int8_training=True, activation_bits=8, refit=False),
}
SIZES = [(1, 1), (67, 41), (128, 20), (5, 83)]
ROWS = [(3,), (2, 5), (0,), (2, 0, 3), (1,), (70,), ()]


def layer_of(kind: str, cols: int = 67, rows: int = 41, **options: Any) -> Int8Training:
    torch.manual_seed(cols)
    layer = OPTIONS[kind](cols, rows, **options)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(rows, cols))  # some beyond 1: there is something for "clip" to stop
    return layer


def backward(layer: nn.Module, x: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """y, the gradient given to it, and the gradients that came out."""
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y.dtype)
    y.backward(grad)
    found = {name: p.grad for name, p in layer.named_parameters()}
    return y.detach(), grad, {**found, "x": x.grad}


def expected_grad_x(grad: Tensor, layer: Int8Training) -> np.ndarray:
    """float64 [M, cols]: integers of grad times scale, rounded as impl_cuda.h says, times codes."""
    codes, scales = (t[0].double().numpy() for t in layer._codes_and_scales())
    dy = grad.reshape(-1, layer.out_features).float().numpy()
    width = layer.group_size or layer.in_features
    parts = []
    for group, begin in enumerate(range(0, layer.in_features, width)):
        v = dy * scales[:, group].astype(np.float32)
        amax = np.maximum(np.abs(v).max(axis=1, keepdims=True), np.float32(1e-36))
        q = np.rint(v * (np.float32(127) / amax)).astype(np.float64)
        step = (amax / np.float32(127)).astype(np.float64)
        parts.append(step * (q @ codes[:, begin : begin + width]))
    return np.concatenate(parts, axis=1)


# ---- numbers ----------------------------------------------------------------------------------


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
        np.testing.assert_allclose(
            found["x"].reshape(-1, cols).numpy(), right, rtol=1e-6, atol=1e-6 * np.abs(right).max(initial=0)
        )
        q, scale = quantize_activations(x.reshape(-1, cols), 8)
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
    for rule in int8_training.RULES:
        for scale in ("row", "tensor"):
            one, other = (
                quantize_ternary(w, rule=rule, scale=scale, sum_dtype=torch.float64)
                for w in (weight, weight[:, order])
            )
            assert torch.equal(one.scales, other.scales)
            assert torch.equal(one.codes[..., order], other.codes)
            per_tensor = scale == "tensor"
            _, latent, _ = int8_training.quantize_latent(weight, rule, per_tensor, 0, FORMATS["base3"], False)
            assert torch.equal(latent, one.scales)
            usual = quantize_ternary(weight, rule=rule, scale=scale)
            torch.testing.assert_close(usual.scales, one.scales, rtol=1e-6, atol=0)


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
    with pytest.raises(ValueError, match="int8 training takes 2"):
        torch.ops.bitimpl.quantize_latent(layer.weight.detach(), "twn", False, 0, 1, False)
    with pytest.raises(ValueError, match="unknown rule of int8 training 'optimal'"):
        torch.ops.bitimpl.quantize_latent(layer.weight.detach(), "optimal", False, 0, 3, False)


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
