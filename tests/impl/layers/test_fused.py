"""Torch's encoder layers fuse their linear layers in evaluation: replaced ones have to be called."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import impl
from impl import BitLinear
from impl.convert_tools import replace_layers
from impl.layers import add_input_norms

PADDING = torch.tensor([[False, False, False], [False, False, True]])


def encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


def in_both_modes(model, **masks):
    """What ``model`` computes in training mode and in evaluation, where torch may fuse."""
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.train()(x, **masks), model.eval()(x, **masks)


@pytest.mark.parametrize("packed", [False, True])
def test_quantised_layers_of_an_encoder_are_called_in_evaluation(packed):
    """Fused, prepared layers computed with the float weight, and packed ones failed."""
    model = encoder()
    _, exact = in_both_modes(model)
    options = {} if packed else {"pack": False}
    with pytest.warns(UserWarning, match="out_proj"):
        impl.convert_linear_to_bitlinear(model, **options)
    trained, evaluated = in_both_modes(model)
    torch.testing.assert_close(evaluated, trained)
    assert not torch.allclose(evaluated, exact, atol=1e-3)
    # With a mask the encoder itself chooses the fused path, and nested tensors.
    trained, evaluated = in_both_modes(model, src_key_padding_mask=PADDING)
    torch.testing.assert_close(evaluated[~PADDING], trained[~PADDING])
    trained, evaluated = in_both_modes(copy.deepcopy(model))
    torch.testing.assert_close(evaluated, trained)


def test_one_replaced_layer_is_enough():
    model = encoder()
    made = replace_layers(model, ["layers.1.linear2"], BitLinear, BitLinear.from_linear)
    assert model.layers[1].linear2 is made[0]
    trained, evaluated = in_both_modes(model)
    torch.testing.assert_close(evaluated, trained)


def test_normed_layers_of_an_encoder_are_called_in_evaluation():
    model = encoder()
    for layer in model.layers:
        layer.linear1 = BitLinear.from_linear(layer.linear1, pack=False)
    add_input_norms(model)
    trained, evaluated = in_both_modes(model)
    torch.testing.assert_close(evaluated, trained)


def test_encoders_without_replaced_layers_stay_fused():
    model = nn.ModuleList([encoder(), encoder()])
    impl.prepare(model, skip=["0", "*out_proj"])
    for fused, stack in ((True, model[0]), (False, model[1])):
        assert stack.use_nested_tensor is fused
        assert all(bool(layer.activation_relu_or_gelu) is fused for layer in stack.layers)
