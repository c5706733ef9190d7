"""BitNet files against transformers itself: its packing, its layers, and whole models that it loads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, BitNetQuantConfig, LlamaConfig, LlamaForCausalLM
from transformers.integrations import bitnet
from transformers.quantizers.quantizers_utils import should_convert_module

from impl import BitLinear, convert_linear_to_bitlinear, prepare
from impl.interchange import (
    BitNetConfig,
    from_huggingface,
    load_huggingface,
    save_huggingface,
    to_huggingface,
)
from impl.layers.norm import NormedLinear, add_input_norms
from impl.packing import pack_hf_two_bit, unpack_hf_two_bit

CHOICES = [("bitlinear", "packed"), ("autobitlinear", "packed"), ("autobitlinear", "unpacked")]
IDS = torch.arange(12).view(2, 6)


@pytest.fixture(autouse=True)
def _as_written(one_thread):
    """transformers compiles its BitNet functions, each in its own C++ build: run them as written."""
    with torch.compiler.set_stance("force_eager"):
        yield


def configuration():
    return LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.3,
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip


def network():
    torch.manual_seed(0)
    return LlamaForCausalLM(configuration()).eval()


def converted():
    return convert_linear_to_bitlinear(network(), skip=["lm_head"], scale="tensor", activation_bits=8)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@given(st.integers(1, 21), st.integers(1, 9), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_bytes_are_those_of_pack_weights(rows, cols, seed):
    """Any number of rows: theirs pads to a multiple of four, and unpacking leaves the padding there."""
    codes = torch.randint(
        -1, 2, (rows, cols), generator=torch.Generator().manual_seed(seed), dtype=torch.int8
    )
    packed = pack_hf_two_bit(codes)
    assert torch.equal(packed, bitnet.pack_weights(codes.clone()))  # theirs adds 1 in place
    with torch.compiler.set_stance("force_eager"):
        theirs = bitnet.unpack_weights(packed, torch.int8)
    assert torch.equal(unpack_hf_two_bit(packed, rows), theirs[:rows])
    assert torch.equal(unpack_hf_two_bit(packed, rows), codes)


def their_layer(linear_class, rows, cols, bias, dtype, **options):
    kind = bitnet.BitLinear if linear_class == "bitlinear" else bitnet.AutoBitLinear
    return kind(cols, rows, bias=bias, dtype=dtype, **options)


@pytest.mark.parametrize(("linear_class", "storage"), CHOICES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", [True, False])
def test_their_layers_compute_the_same_from_our_state(linear_class, storage, bias, dtype, norm):
    """Both scale conventions: ``bitlinear`` divides by weight_scale, ``autobitlinear`` multiplies."""
    torch.manual_seed(1)
    layer = BitLinear(24, 32, bias, scale="tensor", activation_bits=8, dtype=dtype).pack()
    model = NormedLinear(layer, eps=1e-4) if norm else layer
    if norm:
        nn.init.uniform_(model.norm.weight, 0.5, 1.5)
    state, config = to_huggingface(model, linear_class=linear_class, storage=storage)
    if linear_class == "autobitlinear" and storage == "packed":  # what its loading does
        state["weight"] = bitnet.unpack_weights(state["weight"], dtype)
    options = {"use_rms_norm": config.use_rms_norm, "rms_norm_eps": config.rms_norm_eps}
    theirs = their_layer(linear_class, 32, 24, bias, dtype, **options).to(dtype)  # its norm is float32
    theirs.load_state_dict(state)
    x = torch.randn(5, 24, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), model(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bias", [True, False])
def test_their_training_layer_is_ours_with_its_gradients(bias):
    """``online``: latent weights, absmean, straight through."""
    torch.manual_seed(2)
    ours = BitLinear(24, 32, bias, activation_bits=8)
    state, config = to_huggingface(ours, storage="master")
    assert config.online
    theirs = bitnet.AutoBitLinear(24, 32, bias=bias, online_quant=True)
    theirs.load_state_dict(state)
    gradients = []
    for layer in (theirs, ours):
        x = torch.randn(5, 24, generator=torch.Generator().manual_seed(3)).requires_grad_()
        y = layer(x)
        (y * torch.arange(y.numel()).view(y.shape)).sum().backward()
        gradients.append((y.detach(), x.grad, *(p.grad for p in layer.parameters())))
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("linear_class", "storage"), CHOICES)
def test_models_that_we_save_load_there(tmp_path, linear_class, storage):
    model = converted()
    described = configuration().to_dict()
    save_huggingface(model, tmp_path, linear_class=linear_class, storage=storage, model_config=described)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    layer = loaded.model.layers[0].mlp.up_proj
    assert isinstance(layer, bitnet.BitLinear if linear_class == "bitlinear" else bitnet.AutoBitLinear)
    assert type(loaded.lm_head) is nn.Linear
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("linear_class", "storage"), CHOICES)
def test_models_that_they_hold_load_here(tmp_path, linear_class, storage):
    described = configuration().to_dict()
    save_huggingface(
        converted(), tmp_path, linear_class=linear_class, storage=storage, model_config=described
    )
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    config = BitNetConfig.from_dict(theirs.config.to_dict())
    ours = from_huggingface(network(), theirs.state_dict(), config)
    assert ours.model.layers[1].self_attn.q_proj.is_packed
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-6)


def test_bfloat16_models_load_there(tmp_path):
    """Our scales are float32 in the file; there they must not raise the dtype of a bfloat16 model."""
    model = convert_linear_to_bitlinear(
        network().bfloat16(), skip=["lm_head"], scale="tensor", activation_bits=8
    )
    described = {**configuration().to_dict(), "dtype": "bfloat16"}
    for linear_class in ("bitlinear", "autobitlinear"):
        save_huggingface(model, tmp_path, linear_class=linear_class, model_config=described)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert theirs.dtype == torch.bfloat16
        assert logits(theirs).dtype == torch.bfloat16
        difference = logits(theirs).float() - logits(model).float()
        assert difference.norm() < 0.05 * logits(model).float().norm()  # scales of 8 bits of mantissa


def test_folders_that_they_write_load_here(tmp_path):
    save_huggingface(
        converted(), tmp_path / "ours", linear_class="bitlinear", model_config=configuration().to_dict()
    )
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_huggingface(network(), tmp_path / "theirs")
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-6)


def test_models_in_training_go_both_ways(tmp_path):
    model = prepare(network(), skip=["lm_head"], activation_bits=8)
    save_huggingface(model, tmp_path / "ours", storage="master", model_config=configuration().to_dict())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert theirs.model.layers[0].mlp.down_proj.online_quant
    assert theirs.model.layers[0].mlp.down_proj.weight.requires_grad
    torch.testing.assert_close(logits(theirs.eval()), logits(model), rtol=1e-4, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_huggingface(network(), tmp_path / "theirs")
    assert not ours.model.layers[0].mlp.down_proj.is_packed
    torch.testing.assert_close(logits(ours), logits(model), rtol=1e-6, atol=1e-6)


def test_norms_before_every_layer_go_both_ways(tmp_path):
    model = add_input_norms(converted())
    for module in model.modules():
        if isinstance(module, NormedLinear):
            nn.init.uniform_(module.norm.weight, 0.5, 1.5)
    save_huggingface(model, tmp_path, model_config=configuration().to_dict())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-6)
    ours = from_huggingface(network(), theirs.state_dict(), BitNetConfig.from_dict(theirs.config.to_dict()))
    torch.testing.assert_close(logits(ours), logits(model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        BitNetConfig(),
        BitNetConfig("autobitlinear", "online", ("lm_head", "model.layers.0"), True, 1e-5),
    ],
)
def test_configurations_go_both_ways(config):
    theirs = BitNetQuantConfig.from_dict(config.to_dict())
    for name in ("linear_class", "quantization_mode", "use_rms_norm", "rms_norm_eps"):
        assert getattr(theirs, name) == getattr(config, name)
    assert BitNetConfig.from_dict(theirs.to_dict()) == config


@pytest.mark.parametrize(
    "name", ["lm_head", "model.layers.1.mlp.up_proj", "model.layers.0.mlp.up_proj", "head"]
)
@pytest.mark.parametrize("skipped", [("lm_head",), ("model.layers.1",), ("up_proj",), ("head",), ()])
def test_the_same_layers_stay_float(name, skipped):
    assert BitNetConfig(modules_to_not_convert=skipped).skips(name) != should_convert_module(
        name, list(skipped)
    )
