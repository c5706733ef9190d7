"""Binary multi-head attention against torch's own over the decoded projections."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import impl
from impl.layers.attention import BinaryMultiheadAttention, LearnableBias

BATCH, LENGTH, HIDDEN, HEADS = 3, 7, 24, 4
FORMS = [pytest.param(True, id="packed"), pytest.param(False, id="latent")]


def build(packed=False, input_dim=HIDDEN, **options):
    torch.manual_seed(5)
    layer = BinaryMultiheadAttention(input_dim, HIDDEN, HEADS, **options).eval()
    return impl.pack(layer) if packed else layer


def states(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(shape or (BATCH, LENGTH, HIDDEN), generator=generator).to(dtype)


def torch_attention(layer):
    """nn.MultiheadAttention with the values that the projections of ``layer`` use."""
    twin = nn.MultiheadAttention(HIDDEN, HEADS, bias=layer.out.bias is not None, batch_first=True).eval()
    projections = (layer.q_linear, layer.k_linear, layer.v_linear)
    with torch.no_grad():
        twin.in_proj_weight.copy_(torch.cat([p.dequantize() for p in projections]))
        twin.out_proj.weight.copy_(layer.out.dequantize())
        if layer.out.bias is not None:
            twin.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
            twin.out_proj.bias.copy_(layer.out.bias)
    return twin


@pytest.mark.parametrize("packed", FORMS)
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_scores_are_those_of_torch(packed, bias):
    """kyegomez: attention divides its scores by sqrt(d) twice."""
    layer = build(packed, bias=bias)
    x = states()
    output, scores = layer(x)
    expected, weights = torch_attention(layer)(x, x, x, average_attn_weights=False)
    assert output.shape == (BATCH, LENGTH, HIDDEN)
    assert scores.shape == (BATCH, HEADS, LENGTH, LENGTH)
    torch.testing.assert_close(scores, weights, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def causal():
    return torch.ones(LENGTH, LENGTH).tril()


@pytest.mark.parametrize("packed", FORMS)
def test_masks_hide_what_is_zero(packed):
    """In bitorch_engine a mask [batch, length] fell on the heads."""
    layer, x = build(packed), states()
    keys = torch.ones(BATCH, LENGTH)
    keys[0, 4:] = 0
    keys[2, :2] = 0
    every = keys[:, None, None, :].expand(BATCH, HEADS, LENGTH, LENGTH)
    both = torch.maximum(causal() * keys[:, None, :], torch.eye(LENGTH))  # every query sees something
    per_head = torch.stack([causal(), causal().T, torch.ones(LENGTH, LENGTH), torch.eye(LENGTH)])[None]
    twin = torch_attention(layer)
    for mask, full in (
        (keys, every),
        (keys.bool(), every),
        (keys.long(), every),
        (keys[:, None, None, :], every),
        (causal()[None], causal().expand(BATCH, HEADS, LENGTH, LENGTH)),
        (both, both.unsqueeze(1).expand(BATCH, HEADS, LENGTH, LENGTH)),
        (per_head, per_head.expand(BATCH, HEADS, LENGTH, LENGTH)),
    ):
        output, scores = layer(x, mask)
        additive = torch.zeros(BATCH, HEADS, LENGTH, LENGTH).masked_fill(full == 0, -torch.inf)
        assert not scores[full.expand_as(scores) == 0].any()
        expected, weights = twin(x, x, x, attn_mask=additive.flatten(0, 1), average_attn_weights=False)
        torch.testing.assert_close(scores, weights, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_queries_that_see_nothing_are_zero_not_nan(dtype):
    """-1e9 is beyond float16, where such a row became NaN."""
    layer = build().to(dtype)
    x = states(dtype=dtype).requires_grad_()
    mask = torch.ones(BATCH, LENGTH)
    mask[1] = 0
    output, scores = layer(x, mask)
    assert not scores[1].any()
    assert torch.equal(output[1], layer.out(torch.zeros(LENGTH, HIDDEN, dtype=dtype)))
    output.float().square().sum().backward()
    assert torch.isfinite(x.grad).all()
    for parameter in layer.parameters():
        assert torch.isfinite(parameter.grad).all()


def test_hidden_keys_change_nothing():
    layer, x = build(), states()
    mask = torch.ones(BATCH, LENGTH)
    mask[:, 5:] = 0
    other = x.clone()
    other[:, 5:] = 100 * torch.randn(BATCH, 2, HIDDEN)
    torch.testing.assert_close(layer(x, mask)[0][:, :5], layer(other, mask)[0][:, :5])


def test_gradients_are_those_of_torch():
    layer, x = build(ste="identity"), states()
    twin = torch_attention(layer)
    one, two = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(one)[0].square().sum().backward()
    twin(two, two, two)[0].square().sum().backward()
    torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-4)
    projected = torch.cat([p.weight.grad for p in (layer.q_linear, layer.k_linear, layer.v_linear)])
    torch.testing.assert_close(projected, twin.in_proj_weight.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(layer.out.weight.grad, twin.out_proj.weight.grad, rtol=1e-3, atol=1e-4)


def test_scores_are_those_applied_with_dropout():
    layer, x = build(dropout=0.5), states()
    assert torch.equal(layer(x)[0], layer(x)[0])
    layer.train()
    torch.manual_seed(0)
    output, scores = layer(x)
    assert 0.3 < (scores == 0).float().mean() < 0.7
    value = layer.v_linear(x).unflatten(-1, (HEADS, HIDDEN // HEADS)).transpose(1, 2)
    attended = (scores @ value).transpose(1, 2).reshape(BATCH, LENGTH, HIDDEN)
    torch.testing.assert_close(output, layer.out(attended))
    assert BinaryMultiheadAttention(8, 8, 2).dropout.p == 0.1


def test_other_input_width_strides_and_empty_batches():
    layer = build(input_dim=10)
    x = states(BATCH, LENGTH, 10)
    output, _ = layer(x)
    assert output.shape == x.shape
    assert layer.head_dim == HIDDEN // HEADS
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    torch.testing.assert_close(layer(strided)[0], output)
    assert layer(x[:0])[0].shape == (0, LENGTH, 10)
    assert layer(x[:, :1])[1].shape == (BATCH, HEADS, 1, 1)


@pytest.mark.parametrize("bits", [None, 1, 8])
def test_packing_keeps_the_function_and_states_load(bits):
    layer = build(activation_bits=bits)
    x = states()
    with torch.no_grad():
        before = layer(x)[0]
        impl.pack(layer)
        assert layer.q_linear.is_packed
        assert layer.out.is_packed
        after = layer(x)[0]
        if bits is None:  # else a rounding of the scores can move an integer
            torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
        twin = BinaryMultiheadAttention(HIDDEN, HIDDEN, HEADS, activation_bits=bits).eval()
        twin.load_state_dict(layer.state_dict())
        assert torch.equal(twin(x)[0], after)
        assert torch.equal(copy.deepcopy(layer)(x)[0], after)


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    layer = BinaryMultiheadAttention(8, 16, 2, dropout=0.0)
    x = torch.randn(16, 5, 8)
    target = x.mean(dim=1, keepdim=True).expand_as(x)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(layer(x)[0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("packed", FORMS)
def test_compiles_without_graph_breaks(packed):
    torch._dynamo.reset()
    layer, x = build(packed), states()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for mask in (None, causal()[None]):
        torch.testing.assert_close(compiled(x, mask)[0], layer(x, mask)[0], rtol=1e-4, atol=1e-5)


def test_autocast():
    layer, x = build(), states()
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = layer(x, causal()[None])
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), layer(x, causal()[None])[0], rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(LENGTH, HIDDEN),), ValueError, r"\[batch, length, input_dim = 24\], got \[7, 24\]"),
        ((torch.ones(1, LENGTH, 9),), ValueError, "in_features = 24, got 9"),
        ((torch.ones(BATCH, LENGTH, HIDDEN), causal()), ValueError, r"got \[7, 7\].*mask\[None\]"),
        ((torch.ones(BATCH, LENGTH, HIDDEN), torch.ones(LENGTH)), ValueError, r"got \[7\]"),
        ((torch.ones(BATCH, LENGTH, HIDDEN), torch.ones(BATCH, 2, 1, LENGTH)), ValueError, "4 or 1"),
        (
            (torch.ones(BATCH, LENGTH, HIDDEN), torch.full((1, LENGTH, LENGTH), -torch.inf)),
            ValueError,
            "additive",
        ),
        ((torch.ones(BATCH, LENGTH, HIDDEN), [1]), TypeError, "got list"),
    ],
)
def test_wrong_operands_say_what_is_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        build()(*arguments)


def test_heads_divide_the_hidden_dimension():
    with pytest.raises(ValueError, match="multiple of num_heads = 5, got 24"):
        BinaryMultiheadAttention(8, 24, 5)
    with pytest.raises(ValueError, match="num_heads must be at least 1"):
        BinaryMultiheadAttention(8, 24, 0)
    assert "num_heads=4" in repr(build())


def test_learnable_bias():
    bias = LearnableBias(3)
    x = torch.randn(2, 4, 3)
    assert torch.equal(bias(x), x)
    bias.bias.data = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(bias(x), x + torch.tensor([1.0, 2.0, 3.0]))
    bias(x).sum().backward()
    assert torch.equal(bias.bias.grad, torch.full((3,), 8.0))
    image = torch.zeros(2, 3, 5, 5)
    channels = LearnableBias(3, dim=1)
    channels.bias.data = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(channels(image)[1, :, 4, 0], channels.bias)
    for wrong in (image, torch.zeros(2, 1), torch.tensor(0.0)):
        with pytest.raises(ValueError, match="out_chn = 3"):
            bias(wrong)
    assert repr(channels) == "LearnableBias(3, dim=1)"
    assert channels.out_chn == 3
    with pytest.raises(ValueError, match="out_chn must be at least 1"):
        LearnableBias(0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_learnable_bias_keeps_the_dtype_of_its_input(dtype):
    """A float32 bias made float32 of everything that passed it."""
    bias = LearnableBias(3)
    bias.bias.data = torch.tensor([1.0, 2.0, 3.0])
    y = bias(torch.ones(2, 3, dtype=dtype))
    assert y.dtype == dtype
    assert y.tolist() == [[2.0, 3.0, 4.0]] * 2
    y.sum().backward()
    assert bias.bias.grad.tolist() == [2.0] * 3
