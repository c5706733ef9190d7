"""Weights of bitorch_engine's convolutions: packing, preparing for flips, states, and life as a module."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from binary_cases import forms, in_form, sign
from torch import nn

from impl import checkpoint, summary
from impl.compat.bitorch_engine import (
    BinaryConv2dBase,
    BinaryConv2dCPP,
    BinaryConv2dCutlass,
    BinaryConvParameter,
)
from impl.compat.bitorch_engine.utils.binary_words import get_binary_row
from impl.convert_tools import load_checkpoint, pack_bie_layers, prepare_bie_layers, save_checkpoint

ALL = [BinaryConv2dBase, BinaryConv2dCPP, BinaryConv2dCutlass]
X = torch.randn(2, 5, 7, 6, generator=torch.Generator().manual_seed(0))


def build(cls, form="float", **options):
    return in_form(cls(5, 6, (3, 2), padding=1, **options), form, X)


def packed_signs(layer):
    """Signs [out, in, *kernel] of ``qweight``, from the documented places."""
    bits = (layer.qweight.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
    signs = bits.flatten(1)[:, :30] * 2.0 - 1
    assert not bits.flatten(1)[:, 30:].any()
    return signs.view(6, 3, 2, 5).permute(0, 3, 1, 2)


# ---- packing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ALL)
def test_bits_lie_position_by_position(cls):
    layer = build(cls)
    weight = layer.weight.detach()
    layer.generate_quantized_weight()
    assert layer.qweight.shape == (6, 4)
    assert torch.equal(packed_signs(layer), sign(weight))


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("form", ["float", "packed"])
def test_flat_bits_of_the_original_are_taken(cls, form):
    """D4: in the original flat packed weights, made like this, make the layer abort."""
    weight = torch.randn(6, 5, 3, 2)
    flat = torch.zeros(184, dtype=torch.float32) - 1
    flat[:180] = weight.flatten()
    bits = get_binary_row(flat, torch.empty(23, dtype=torch.uint8), 184, 8)
    layer = build(cls, form)
    layer.set_quantized_weight_data(bits)
    assert torch.equal(packed_signs(layer), sign(weight))
    other = build(cls, form)
    state = {name: value for name, value in other.state_dict().items() if name not in ("weight", "qweight")}
    other.load_state_dict({**state, "qweight": bits})
    assert torch.equal(packed_signs(other), sign(weight))
    for bad, message in (
        (bits[1:], "180 packed signs take 23 bytes, got 22"),
        (bits | 128, "beyond their 180"),
    ):
        with pytest.raises(ValueError, match=message):
            layer.set_quantized_weight_data(bad)


@pytest.mark.parametrize("cls", ALL)
def test_eval_uses_the_weight_of_now(cls):
    """D9: in the original packed weights stay those of the first evaluation."""
    layer = build(cls)
    layer.generate_quantized_weight()
    before = layer.eval()(X)
    optimizer = torch.optim.SGD([layer.weight], lr=100.0)
    F.mse_loss(layer.train()(X), -before.detach()).backward()
    optimizer.step()
    now = sign(layer.weight.detach())
    assert not torch.equal(now, packed_signs(layer))
    after = layer.eval()(X)
    assert layer.opt_weight is layer.qweight
    assert torch.equal(packed_signs(layer), now)
    layer.generate_quantized_weight(qweight_only=True)
    assert torch.equal(layer(X), after)
    assert layer.train().opt_weight is layer.qweight


@pytest.mark.parametrize("cls", ALL)
def test_quantized_weight_data(cls):
    layer, other = build(cls), build(cls, "packed")
    magnitude = layer.weight.detach().abs().clone()
    if cls is BinaryConv2dCutlass:
        other.load_state_dict({**other.state_dict(), "scale_a": layer.scale_a.detach()})
    layer.set_quantized_weight_data(other.qweight)
    assert torch.equal(layer(X), other(X))
    torch.testing.assert_close(layer.weight.detach().abs(), magnitude)
    assert layer.weight.requires_grad
    zeros = cls(5, 6, (3, 2))
    with torch.no_grad():
        zeros.weight.zero_()
    zeros.set_quantized_weight_data(other.qweight)
    assert torch.equal(zeros.weight.detach(), packed_signs(other))


def test_weight_data_is_checked_and_copied():
    layer = build(BinaryConv2dCPP, "packed")
    with pytest.raises(TypeError, match=r"must be torch\.float32 as the layer is, got torch\.float16"):
        layer.set_weight_data(torch.ones(6, 5, 3, 2, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"must have shape \[6, 5, 3, 2\], got \[6, 5, 2, 3\]"):
        layer.set_weight_data(torch.ones(6, 5, 2, 3))
    for bad, error, message in (
        (layer.qweight.int(), TypeError, "must be uint8"),
        (layer.qweight[1:], ValueError, r"have shape \[6, 4\], got \[5, 4\]"),
        (layer.qweight | 128, ValueError, "bits set beyond their 30 columns"),
    ):
        with pytest.raises(error, match=message):
            layer.set_quantized_weight_data(bad)
    weight = torch.randn(6, 5, 3, 2)
    layer.set_weight_data(weight)
    assert torch.equal(layer.weight, weight)
    weight.neg_()
    assert not torch.equal(layer.weight, weight)
    assert layer.qweight is None
    layer.weight = None
    with pytest.raises(RuntimeError, match="neither weight nor qweight"):
        layer(X)


# ---- weights that train by flips ----------------------------------------------------------------


@pytest.mark.parametrize("scale", ["tensor", "row"])
def test_preparing(scale):
    """D1 and D8: signs about the mean, the scale of the weight before it is centred, gradients."""
    layer = BinaryConv2dCutlass(5, 6, (3, 2), padding=1, scale=scale)
    weight = torch.randn(6, 5, 3, 2) + 0.3
    layer.set_weight_data(weight)
    assert isinstance(layer.weight, BinaryConvParameter)
    assert isinstance(layer.weight, nn.Parameter)
    assert layer.weight.stored_bytes < 180 + 16
    matrix = weight.flatten(1)
    mean = matrix.abs().mean() if scale == "tensor" else matrix.abs().mean(1)
    torch.testing.assert_close(layer.scale_w.detach(), mean)
    centre = weight.mean() if scale == "tensor" else weight.mean((1, 2, 3), keepdim=True)
    y = layer(X)
    product = F.conv2d(sign(X), sign(weight - centre), padding=1)
    assert torch.equal(y, product * layer.scale_a * layer.scale_w.reshape(-1, 1, 1))
    y.sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.shape == weight.shape
    held = layer.weight
    layer.prepare_params()
    assert layer.weight is held
    layer.generate_quantized_weight(qweight_only=True)
    layer.prepare_params()
    assert layer.weight is None
    assert torch.equal(layer(X), y)


def test_signs_that_flip_are_used_at_once():
    """D9, without a float weight: what an update flips is what eval computes with."""
    layer = build(BinaryConv2dCutlass, "prepared").eval()
    before = layer(X)
    layer.weight.flip_(torch.ones(6, 5, 3, 2, dtype=torch.bool))
    assert torch.equal(layer(X), -before)


# ---- states -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ALL)
def test_states_hold_one_copy_of_the_weight(cls):
    """D9: in the original a layer keeps both, or the packed one alone outside of the state."""
    scales = {"bias_a", "scale_a", "scale_w"} if cls is BinaryConv2dCutlass else set()
    layer = build(cls)
    layer.generate_quantized_weight()
    assert set(layer.state_dict()) == {"weight", *scales}
    layer.generate_quantized_weight(qweight_only=True)
    assert set(layer.state_dict()) == {"qweight", *scales}


def test_prepared_weights_are_int8_in_states():
    """As the original has them, and so that any file format holds them."""
    layer = build(BinaryConv2dCutlass, "prepared")
    weight = layer.state_dict()["weight"]
    assert (type(weight), weight.dtype) == (torch.Tensor, torch.int8)
    assert torch.equal(weight.float(), sign(layer.weight.detach()))
    assert layer.state_dict(keep_vars=True)["weight"] is layer.weight
    other = build(BinaryConv2dCutlass)
    other.load_state_dict({**layer.state_dict(), "weight": weight * 100})  # magnitudes, as in the original
    assert torch.equal(other(X), layer(X))
    with pytest.raises(RuntimeError, match=r"or int8 signs, got torch\.int32"):
        other.load_state_dict({**layer.state_dict(), "weight": weight.int()})


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("assign", [False, True])
def test_states_of_any_form_load_into_any_form(cls, assign, tmp_path):
    for source_form in forms(cls):
        source = build(cls, source_form)
        checkpoint.save(source, tmp_path / "conv.safetensors")
        states = [copy.deepcopy(source.state_dict()), checkpoint.read_state(tmp_path / "conv.safetensors")[0]]
        for state in states:
            for target_form in forms(cls):
                target = build(cls, target_form)
                target.load_state_dict(state, strict=True, assign=assign)
                assert torch.equal(target.eval()(X), source.eval()(X)), (source_form, target_form)
                assert type(target.weight) is type(source.weight)
                assert target.weight is None or target.weight.requires_grad
                assert set(target.state_dict()) == set(source.state_dict())


def test_a_loaded_scale_is_the_one_that_counts():
    """Also where it is 0: the next batch in training mode sets it then."""
    fresh, calibrated = BinaryConv2dCutlass(5, 6, (3, 2), padding=1), build(BinaryConv2dCutlass)
    state = {name: value.clone() for name, value in calibrated.state_dict().items()}
    calibrated.load_state_dict(fresh.state_dict())
    assert calibrated.scale_a.item() == 0
    calibrated(10 * X)
    assert calibrated.scale_a.item() == pytest.approx(20 * X.abs().mean().item())
    fresh.load_state_dict(state)
    fresh(10 * X)
    assert fresh.scale_a.item() == state["scale_a"].item()


@pytest.mark.parametrize("form", ["float", "packed"])
def test_states_are_checked(form):
    layer = build(BinaryConv2dCutlass, form)
    good = build(BinaryConv2dCutlass, "packed").state_dict()
    before = layer(X)
    for change, message in (
        ({"qweight": good["qweight"][:, 1:]}, r"have shape \[6, 4\], got \[6, 3\]"),
        ({"qweight": good["qweight"] | 128}, "bits set beyond"),
        ({"weight": torch.ones(6, 5, 3, 2)}, "a weight and packed signs"),
        ({"qweight": None, "weight": torch.ones(6, 5, 2, 3)}, r"weight has shape \[6, 5, 2, 3\]"),
    ):
        state = {key: value for key, value in {**good, **change}.items() if value is not None}
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict(state)
        assert (layer.weight is None) == (form == "packed")
    assert torch.equal(layer(X), before)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("prepared", [False, True])
def test_whole_models(tmp_path, suffix, prepared):
    """D12: the original skips a root module, and loads with strict=False."""

    def model():
        return nn.Sequential(build(BinaryConv2dCutlass), nn.ReLU(), BinaryConv2dCPP(6, 2, 1))

    for source, target in ((model(), model()), (build(BinaryConv2dCutlass), build(BinaryConv2dCutlass))):
        if prepared:
            prepare_bie_layers(source)
        y = source(X)
        for packed in (False, True):
            path = tmp_path / f"model{packed}{suffix}"
            save_checkpoint(source, path, qweight_only=packed)
            load_checkpoint(target, path, qweight_only=packed)
            assert torch.equal(target(X), y)
            layer = target[0] if isinstance(target, nn.Sequential) else target
            assert (layer.weight is None) == packed
            assert packed or isinstance(layer.weight, BinaryConvParameter) == prepared
        pack_bie_layers(source)
        assert torch.equal(source(X), y)
        with pytest.raises(RuntimeError, match="Missing key"):
            load_checkpoint(nn.Sequential(source, nn.Linear(1, 1)), path)


# ---- life as a module ---------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ALL)
def test_device_argument_is_honoured(cls):
    """D15: the original stores it and makes everything on the CPU."""
    layer = build(cls, bias=True)
    meta = cls(5, 6, (3, 2), 1, 1, 1, "meta", bias=True)
    assert all(tensor.is_meta for tensor in (*meta.parameters(), *meta.buffers()))
    assert meta.device == torch.device("meta")
    assert meta(X.to("meta")).shape == layer(X).shape
    for form in forms(cls):
        source = build(cls, form, bias=True)
        assigned = copy.deepcopy(meta)
        assigned.load_state_dict(source.state_dict(), assign=True)
        assert assigned.to("cpu").device == torch.device("cpu")
        assert torch.equal(assigned.eval()(X), source.eval()(X))
    meta.to_empty(device="cpu")
    meta.load_state_dict(layer.state_dict())
    assert torch.equal(meta.eval()(X), layer.eval()(X))


@pytest.mark.parametrize("cls", ALL)
def test_forward_reads_nothing_back(cls):
    """D15: the original reads scales back to the host in every call. One graph, so no read."""
    for form in ("float", "packed"):
        layer = build(cls, form, bias=True)
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        one, two = X.clone().requires_grad_(), X.clone().requires_grad_()
        y = compiled(one)
        torch.testing.assert_close(y, layer(two))
        y.sum().backward()
        layer(two).sum().backward()
        torch.testing.assert_close(one.grad, two.grad)


@pytest.mark.parametrize("cls", ALL)
def test_copies_and_casts(cls):
    for form in forms(cls):
        layer = build(cls, form, bias=True)
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        loaded = cls(5, 6, (3, 2), padding=1, bias=True)
        loaded.load_state_dict(torch.load(file, weights_only=True))
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
            assert torch.equal(twin(X), layer(X))
        half = copy.deepcopy(layer).half()
        assert half.dtype == torch.float16
        assert half.qweight is None or half.qweight.dtype == torch.uint8
        assert half(X.half()).dtype == torch.float16
        torch.testing.assert_close(half(X.half()).float(), layer(X.half().float()), rtol=3e-3, atol=5e-2)


@pytest.mark.parametrize("packed", [False, True])
def test_channels_last_stays_channels_last(packed):
    layer = build(BinaryConv2dCutlass, "packed" if packed else "float", bias=True)
    x = X.contiguous(memory_format=torch.channels_last)
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, layer(X))


def test_repr_names_shape_and_form():
    assert repr(BinaryConv2dCPP(4, 6, 3, padding=1)) == (
        "BinaryConv2dCPP(4, 6, kernel_size=3, stride=1, padding=1, dilation=1, groups=1, bias=False, "
        "padding_value=-1, weight=Parameter)"
    )
    assert "packed" in repr(build(BinaryConv2dCutlass, "packed"))
    assert "BinaryConvParameter" in repr(build(BinaryConv2dCutlass, "prepared"))


@pytest.mark.parametrize("kernel", [3, (3, 2), [3, 2]])
def test_a_summary_counts_weights_and_products(kernel):
    layer = BinaryConv2dCPP(5, 6, kernel)
    taps = 9 if kernel == 3 else 6
    y = layer(X)
    for _ in range(2):
        line = summary(layer, X).layers[0]
        assert line.parameters == 6 * 5 * taps
        assert line.macs == y.numel() * 5 * taps
        assert line.activation_bits == 1
        layer.generate_quantized_weight(qweight_only=True)
    assert line.bytes == layer.qweight.nbytes
