"""BitNet states of transformers: both ways, against the arithmetic of its layers written out here."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from impl import BinaryLinear, BitLinear, MultiTernaryLinear, convert_linear_to_bitlinear, prepare
from impl.compat import zeta
from impl.compat.bitorch_engine import BinaryLinearCuda, BinaryLinearParameter
from impl.interchange import BitNetConfig, from_huggingface, to_huggingface
from impl.layers.embedding import TernaryEmbedding
from impl.layers.nbit import NBitLinear
from impl.layers.norm import NormedLinear
from impl.layers.ternary_conv import TernaryConv1d

CHOICES = [("bitlinear", "packed"), ("autobitlinear", "packed"), ("autobitlinear", "unpacked")]


class Network(nn.Module):
    def __init__(self, tie=False):
        super().__init__()
        self.embed_tokens = nn.Embedding(20, 24)
        self.up_proj = nn.Linear(24, 32)
        self.down_proj = nn.Linear(32, 24, bias=False)
        self.lm_head = nn.Linear(24, 20, bias=False)
        if tie:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, ids):
        x = self.embed_tokens(ids)
        return self.lm_head(x + self.down_proj(torch.relu(self.up_proj(x))))


IDS = torch.arange(12).view(3, 4)


def converted(tie=False, **options):
    torch.manual_seed(0)
    options = {"scale": "tensor", "activation_bits": 8, **options}
    return convert_linear_to_bitlinear(Network(tie), skip=["lm_head"], **options)


def quantised_rows(x):
    """Activations as all of transformers' layers see them: integers and their factor."""
    factor = 127 / x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)
    return (x * factor).round().clamp(-128, 127), factor


def two_bit_rows(packed):
    return torch.cat([(packed >> 2 * j & 3).float() - 1 for j in range(4)])


def theirs(x, state, name, config):
    """Output of transformers' layer for ``name``, by its class and mode."""
    weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
    integers, factor = quantised_rows(x)
    if config.online:
        scale = 1 / weight.abs().mean().clamp(min=1e-5)
        return F.linear(integers / factor, (weight * scale).round().clamp(-1, 1) / scale, bias)
    stored = state[f"{name}.weight_scale"]
    codes = two_bit_rows(weight) if weight.dtype == torch.uint8 else weight
    if config.linear_class == "bitlinear":
        y = F.linear(integers, codes) / (stored * factor)
        return y if bias is None else y + bias
    return F.linear(integers / factor, codes, bias) * stored


@pytest.mark.parametrize(("linear_class", "storage"), CHOICES)
def test_the_state_computes_in_transformers_what_the_model_computes(linear_class, storage):
    model = converted()
    state, config = to_huggingface(model, linear_class=linear_class, storage=storage)
    assert config == BitNetConfig(linear_class, "offline", ("lm_head",))
    for name, layer in (("up_proj", model.up_proj), ("down_proj", model.down_proj)):
        x = torch.randn(5, layer.in_features)
        with torch.no_grad():
            torch.testing.assert_close(theirs(x, state, name, config), layer(x), rtol=1e-5, atol=1e-5)
    assert state["up_proj.weight"].dtype == (torch.uint8 if storage == "packed" else torch.float32)
    assert state["up_proj.weight"].shape == ((8, 24) if storage == "packed" else (32, 24))
    assert state.keys() == {
        "embed_tokens.weight", "lm_head.weight", "down_proj.weight", "down_proj.weight_scale",
        "up_proj.weight", "up_proj.weight_scale", "up_proj.bias",
    }  # fmt: skip


def test_latent_weights_compute_the_same_in_online_mode():
    torch.manual_seed(0)
    model = prepare(Network(), skip=["lm_head"], activation_bits=8)
    state, config = to_huggingface(model, storage="master")
    assert config.online
    assert torch.equal(state["up_proj.weight"], model.up_proj.weight)
    x = torch.randn(5, 24)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x, state, "up_proj", config), model.up_proj(x))
    loaded = from_huggingface(Network(), state, config)
    assert not loaded.up_proj.is_packed
    assert type(loaded.lm_head) is nn.Linear
    with torch.no_grad():
        assert torch.equal(loaded(IDS), model(IDS))


@pytest.mark.parametrize(("linear_class", "storage"), CHOICES)
@pytest.mark.parametrize("format", ["base3", "two_bit"])
def test_round_trip(linear_class, storage, format):
    model = converted()
    state, config = to_huggingface(model, linear_class=linear_class, storage=storage)
    loaded = from_huggingface(Network(), state, config, format=format)
    layer = loaded.up_proj
    assert isinstance(layer, BitLinear)
    assert (layer.format, layer.activation_bits, layer.scale, layer.is_packed) == (format, 8, "tensor", True)
    assert torch.equal(layer.W_ternary, model.up_proj.W_ternary)
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS), model(IDS), rtol=1e-6, atol=1e-6)


@given(st.integers(1, 9), st.integers(1, 9), st.booleans(), st.sampled_from(CHOICES), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_codes_scale_and_bias_survive_for_any_shape(rows, cols, bias, choice, seed):
    linear_class, storage = choice
    rows = rows * 4 if storage == "packed" else rows
    torch.manual_seed(seed)
    layer = BitLinear(cols, rows, bias=bias, scale="tensor", activation_bits=8).pack()
    state, config = to_huggingface(layer, linear_class=linear_class, storage=storage)
    loaded = from_huggingface(nn.Linear(cols, rows, bias=bias), state, config)
    assert torch.equal(loaded.W_ternary, layer.W_ternary)
    torch.testing.assert_close(loaded.gamma, layer.gamma, rtol=1e-6, atol=0)
    if bias:
        torch.testing.assert_close(loaded.bias, layer.bias, rtol=1e-6, atol=1e-9)


def test_packed_bytes_and_both_scales_by_hand():
    rows = [[1, 0], [-1, 1], [0, 0], [1, 1], [-1, 0], [0, -1], [1, 1], [-1, -1]]
    weight = torch.tensor(rows, dtype=torch.int8)
    layer = BitLinear.from_codes(
        weight, torch.full((1, 1, 1), 0.25), torch.full((8,), 3.0), activation_bits=8
    )
    state, _ = to_huggingface(layer, linear_class="bitlinear")
    first = (weight[0] + 1) | (weight[2] + 1) << 2 | (weight[4] + 1) << 4 | (weight[6] + 1) << 6
    assert torch.equal(state["weight"][0], first.to(torch.uint8))
    assert (state["weight_scale"].tolist(), state["bias"].unique().tolist()) == ([4.0], [3.0])
    state, _ = to_huggingface(layer, linear_class="autobitlinear")
    # The whole output is multiplied by the scale there, the bias too.
    assert (state["weight_scale"].tolist(), state["bias"].unique().tolist()) == ([0.25], [12.0])


def test_a_weight_of_zeros_survives():
    for scale in (0.0, 0.5):
        layer = BitLinear.from_codes(
            torch.zeros(4, 3, dtype=torch.int8), torch.full((1, 1, 1), scale), activation_bits=8
        )
        for linear_class in ("bitlinear", "autobitlinear"):
            state, config = to_huggingface(layer, linear_class=linear_class)
            assert state["weight"].unique().tolist() == [0x55]
            loaded = from_huggingface(nn.Linear(3, 4, bias=False), state, config)
            assert loaded.dequantize().count_nonzero() == 0


def test_norms_in_front_go_along():
    torch.manual_seed(0)
    model = converted()
    for name in ("up_proj", "down_proj"):
        setattr(model, name, NormedLinear(getattr(model, name), eps=1e-4))
        nn.init.uniform_(getattr(model, name).norm.weight, 0.5, 1.5)
    state, config = to_huggingface(model)
    assert (config.use_rms_norm, config.rms_norm_eps) == (True, 1e-4)
    assert torch.equal(state["up_proj.rms_norm.weight"], model.up_proj.norm.weight)
    assert not [key for key in state if ".norm." in key or ".linear." in key]
    for target in (Network(), copy.deepcopy(model)):
        loaded = from_huggingface(target, state, config)
        with torch.no_grad():
            torch.testing.assert_close(loaded(IDS), model(IDS), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="the file has none: use_rms_norm is not set"):
        from_huggingface(model, *to_huggingface(converted()))
    del state["up_proj.rms_norm.weight"]
    with pytest.raises(ValueError, match=r"up_proj: use_rms_norm needs an rms_norm\.weight \[24\]"):
        from_huggingface(Network(), state, config)
    model.down_proj = model.down_proj.linear
    with pytest.raises(ValueError, match="down_proj has no norm in front"):
        to_huggingface(model)


def test_tied_heads_are_stored_once_and_filled_again():
    model = converted(tie=True)
    state, config = to_huggingface(model)
    assert "lm_head.weight" not in state
    loaded = from_huggingface(Network(tie=True), state, config)
    assert loaded.lm_head.weight is loaded.embed_tokens.weight
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS), model(IDS))


def test_a_model_on_the_meta_device_takes_the_tensors_over():
    state, config = to_huggingface(converted())
    with torch.device("meta"):
        model = Network()
    loaded = from_huggingface(model, state, config)
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS), from_huggingface(Network(), state, config)(IDS))


def test_exporting_changes_nothing_in_the_model():
    for model in (converted(), prepare(Network(), skip=["lm_head"], activation_bits=8)):
        before = copy.deepcopy(model.state_dict())
        to_huggingface(model)
        after = model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_what_transformers_cannot_hold_is_refused():
    by_row = converted(scale="row")
    with pytest.raises(ValueError, match=r"up_proj: it has \d+ different scales.*scale='tensor'"):
        to_huggingface(by_row)
    for layer in (MultiTernaryLinear(8, 4), BinaryLinear(8, 4)):
        with pytest.raises(ValueError, match="ternary weights of one component only"):
            to_huggingface(layer)
    with pytest.raises(ValueError, match="holds no BitLinear"):
        to_huggingface(Network())
    with pytest.raises(ValueError, match=r"out_features=6 is no multiple of 4.*unpacked"):
        to_huggingface(BitLinear(8, 6))
    with pytest.raises(ValueError, match="'bitlinear' reads packed"):
        to_huggingface(BitLinear(8, 4), linear_class="bitlinear", storage="unpacked")
    with pytest.raises(ValueError, match="it is packed and has no latent weight"):
        to_huggingface(BitLinear(8, 4).pack(), storage="master")
    with pytest.raises(ValueError, match="rule='twn'"):
        to_huggingface(BitLinear(8, 4, rule="twn"), storage="master")
    part = nn.ModuleDict({"head": nn.Linear(4, 4), "head_proj": BitLinear(4, 4)})
    with pytest.raises(ValueError, match="takes 'head', which stays float, for a part of 'head_proj'"):
        to_huggingface(part)
    broken = BitLinear(8, 4)
    broken.weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError, match="its weight holds NaN or infinity"):
        to_huggingface(broken)


def damaged(state, **entries):
    changed = {**state, **{name.replace("__", "."): value for name, value in entries.items()}}
    return {name: value for name, value in changed.items() if value is not None}


def test_damaged_states_are_refused_and_the_model_kept():
    state, config = to_huggingface(converted())
    packed = state["up_proj.weight"]
    float_codes, _ = to_huggingface(converted(), storage="unpacked")
    cases = [
        (damaged(state, up_proj__weight=packed[:-1]), "up_proj: .*weight of"),
        (damaged(state, up_proj__weight=packed | 3), "up_proj: .*digit 3"),
        (damaged(state, up_proj__weight=None), "up_proj: the state has no weight"),
        (damaged(state, up_proj__weight_scale=None), "packed but has no weight_scale"),
        (damaged(state, up_proj__weight_scale=torch.tensor([0.0])), "finite and not 0, got 0"),
        (damaged(state, up_proj__weight_scale=torch.tensor([float("nan")])), "finite and not 0, got nan"),
        (damaged(state, up_proj__weight_scale=torch.ones(32)), r"one number, got shape \[32\]"),
        (damaged(state, up_proj__bias=None), "up_proj: the model has a bias for it, the file has none"),
        (damaged(state, down_proj__bias=torch.ones(24)), "the file has a bias for it, the model has none"),
        (
            damaged(state, other__weight_scale=torch.ones(1), other__weight=packed),
            "other: .* the model has no such module",
        ),
        (damaged(state, more__weight=torch.ones(1)), r"has more\.weight, which the model does not have"),
        (damaged(state, lm_head__weight=None), r"lacks lm_head\.weight"),
        (
            damaged(state, lm_head__weight=torch.ones(20, 23)),
            r"has lm_head\.weight of shape \[20, 23\], the model one of \[20, 24\]",
        ),
        (damaged(float_codes, up_proj__weight=torch.full((32, 24), 0.5)), "codes -1, 0 and \\+1"),
    ]
    for broken, message in cases:
        model = Network()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match=message):
            from_huggingface(model, broken, config)
        assert model.state_dict().keys() == before.keys()
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="no quantised weight"):
        from_huggingface(Network(), Network().state_dict(), config)


def test_the_config_reads_what_transformers_writes():
    written = {
        "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline",
        "modules_to_not_convert": None, "use_rms_norm": False, "rms_norm_eps": None,
    }  # fmt: skip
    config = BitNetConfig.from_dict({"model_type": "bitnet", "quantization_config": written})
    assert config == BitNetConfig("autobitlinear", "offline")
    assert BitNetConfig.from_dict({"quant_method": "bitnet"}) == BitNetConfig("bitlinear", "offline")
    assert config.skips("model.lm_head")
    assert not config.skips("model.up_proj")
    full = BitNetConfig("autobitlinear", "online", ("alpha", "beta"), True, 1e-5)
    assert BitNetConfig.from_dict(full.to_dict()) == full
    assert (full.skips("beta.c"), full.skips("lm_head")) == (True, False)
    assert not BitNetConfig("bitlinear", "online").online
    with pytest.raises(ValueError, match="quant_method 'gptq'"):
        BitNetConfig.from_dict({"quant_method": "gptq"})
    with pytest.raises(ValueError, match="unknown linear_class 'linear'"):
        BitNetConfig.from_dict({"quant_method": "bitnet", "linear_class": "linear"})
    with pytest.raises(ValueError, match=r"unknown quantization_mode 'ofline'.*'offline'"):
        BitNetConfig(quantization_mode="ofline")
    with pytest.warns(UserWarning, match="not used: .*'per_channel'"):
        BitNetConfig.from_dict({"quant_method": "bitnet", "per_channel": True})


@pytest.mark.parametrize(
    ("entry", "name", "skipped"),
    [
        ("lm_head", "lm_head", True),
        ("lm_head", "model.lm_head", True),
        ("layers.1", "layers.1.up", True),
        ("layers.1", "layers.11.up", False),
        ("layers.*", "layers.11.up", True),
        ("mlp.gate", "mlp.gate", True),
        ("mlp.gate", "mlp.gate_proj", False),
        ("model.", "model.up", True),
        ("beta", "x.beta.c", False),
        ("a|b", "b.up", True),
        ("a|b", "bc.up", False),
    ],
)
def test_names_to_skip_are_read_as_transformers_reads_them(entry, name, skipped):
    """An entry is the end of a name, or a regular expression for whole parts at its beginning."""
    assert BitNetConfig(modules_to_not_convert=("never", entry)).skips(name) == skipped


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"modules_to_not_convert": "lm_head"}, TypeError, "a list of names or None, got 'lm_head'"),
        ({"modules_to_not_convert": [1]}, TypeError, r"a list of names or None, got \(1,\)"),
        ({"modules_to_not_convert": ["("]}, ValueError, r"has '\(', no regular expression"),
        ({"use_rms_norm": "no"}, TypeError, "True or False, got 'no'"),
        ({"rms_norm_eps": "1e-5"}, ValueError, "a number of at least 0, got '1e-5'"),
        ({"rms_norm_eps": -1.0}, ValueError, r"at least 0, got -1\.0"),
        ({"rms_norm_eps": float("nan")}, ValueError, "at least 0, got nan"),
        ({"quantization_config": None}, ValueError, "must be a mapping, got None"),
    ],
)
def test_configs_of_other_shapes_are_refused(entries, error, message):
    with pytest.raises(error, match=message):
        BitNetConfig.from_dict({"quant_method": "bitnet", **entries})


@pytest.mark.parametrize("packed", [False, True])
def test_other_layers_of_this_package_go_along_as_they_compute(packed):
    """An embedding's latent weight, or its bytes, would mean something else there."""
    table, conv = TernaryEmbedding(12, 24), TernaryConv1d(24, 24, 3, padding=1)
    model = nn.ModuleDict({"table": table, "conv": conv, "up": BitLinear(24, 32, activation_bits=8)})
    if packed:
        table.pack()
        conv.pack()
    state, config = to_huggingface(model)
    assert torch.equal(state["table.weight"], table.dequantize())
    assert torch.equal(state["conv.weight"], conv.dequantize())
    assert torch.equal(state["conv.bias"], conv.bias)
    plain = {"table": nn.Embedding(12, 24), "conv": nn.Conv1d(24, 24, 3, padding=1), "up": nn.Linear(24, 32)}
    loaded = from_huggingface(nn.ModuleDict(plain), state, config)
    ids = torch.arange(12)
    with torch.no_grad():
        torch.testing.assert_close(loaded["table"](ids), table(ids))
        x = torch.randn(2, 24, 7)
        torch.testing.assert_close(loaded["conv"](x), conv(x), rtol=1e-4, atol=1e-5)


def test_layers_whose_values_are_not_what_they_hold_are_refused():
    for layer, kind in (
        (BinaryLinearCuda(24, 24), "BinaryLinearCuda"),
        (BinaryLinearCuda.from_linear(nn.Linear(24, 24)), "BinaryLinearCuda"),
        (zeta.BitLinear(24, 24), "BitLinear"),
        (NBitLinear(24, 24), "NBitLinear"),
    ):
        model = nn.ModuleDict({"odd": layer, "up": BitLinear(24, 32, activation_bits=8)})
        with pytest.raises(ValueError, match=rf"odd\.\w+ belongs to a {kind}, which computes with other"):
            to_huggingface(model)
    model = nn.ModuleDict({"odd": nn.Linear(4, 4), "up": BitLinear(24, 32, activation_bits=8)})
    model["odd"].weight = BinaryLinearParameter(torch.randn(4, 4))
    with pytest.raises(ValueError, match=r"odd\.weight is a BinaryLinearParameter: only plain tensors"):
        to_huggingface(model)
    with pytest.raises(ValueError, match="table is on the meta device"):
        to_huggingface(nn.ModuleDict({"table": TernaryEmbedding(4, 4, device="meta"), "up": BitLinear(8, 4)}))


def test_activations_that_will_be_quantised_are_warned_of():
    model = nn.Sequential(*(BitLinear(8, 4, activation_bits=bits) for bits in (8, None, 16)))
    with pytest.warns(UserWarning, match="^1 and 1 more without activation_bits=8: transformers quantises"):
        to_huggingface(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_huggingface(model[0])
