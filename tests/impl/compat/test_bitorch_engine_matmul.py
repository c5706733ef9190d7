"""BinaryMatMul of bitorch_engine: values, gradients, and the defects of the original (D7)."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from binary_cases import sign
from hypothesis import given, settings
from hypothesis import strategies as st

from impl.compat.bitorch_engine import BinaryMatMul


def with_clips(x_clip, y_clip):
    product = BinaryMatMul()
    with torch.no_grad():
        product.x_clip.fill_(x_clip)
        product.y_clip.fill_(y_clip)
    return product


@settings(max_examples=60, deadline=None)
@given(
    lead=st.lists(st.integers(0, 3), max_size=2),
    rows=st.integers(1, 5),
    others=st.integers(1, 5),
    columns=st.integers(1, 140),
    strided=st.booleans(),
)
def test_products_are_exact(lead, rows, others, columns, strided):
    """D7: the original converts twice, counts the padding of K to 128, and mixes up batches."""
    x, y = torch.randn(*lead, rows, columns), torch.randn(*lead, others, columns)
    if strided:
        x, y = x.transpose(-1, -2).contiguous().transpose(-1, -2), y.flip(-1)
    dot = torch.einsum("...mk,...nk->...mn", sign(x), sign(y))
    product = with_clips(1.5, 0.75)
    assert torch.equal(product(x, y), dot * 1.5 * 0.75)
    assert torch.equal(product.eval()(x, y), dot * 1.5 * 0.75)


def test_values_by_hand():
    """D7: three columns agree in two, so the dot product is 1, whatever K is padded to."""
    z = with_clips(2.0, 3.0)(torch.tensor([[[1.0, -1.0, 0.0]]]), torch.tensor([[[4.0, -2.0, -0.5]]]))
    assert z.tolist() == [[[6.0]]]


@pytest.mark.parametrize(
    ("x_lead", "y_lead"), [((2, 3), (2, 3)), ((2, 3), (3,)), ((1, 3), (2, 1)), ((), (2,))]
)
def test_gradients_are_those_of_the_surrogate(x_lead, y_lead):
    """D14 as well: signs and window are those of the forward pass."""
    product = with_clips(1.25, 0.8)
    x = torch.randn(*x_lead, 4, 9, requires_grad=True)
    y = torch.randn(*y_lead, 5, 9, requires_grad=True)
    with torch.no_grad():
        x[..., 0, 0] = 0
    z = product(x, y)
    towards = torch.randn_like(z)
    z.backward(towards)

    def surrogate(values, clip):
        window = (values.abs() <= clip).float().detach()
        moving = (clip - clip.detach()) / math.sqrt(values.numel())
        return (clip * sign(values)).detach() + window * (values - values.detach() + sign(values) * moving)

    tensors = (x, y, product.x_clip, product.y_clip)
    x2, y2, x_clip, y_clip = (t.detach().clone().requires_grad_() for t in tensors)
    (surrogate(x2, x_clip) @ surrogate(y2, y_clip).mT).backward(towards)
    for ours, theirs in zip(tensors, (x2, y2, x_clip, y_clip), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_first_training_batch_sets_the_clips():
    product = BinaryMatMul()
    x, y = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    product.eval()(x, y)
    assert (product.x_clip.item(), product.y_clip.item()) == (0, 0)
    z = product(x, y)
    trained = product.train()(x, y)
    assert torch.equal(z, trained)
    assert product.x_clip.item() == pytest.approx(2 * x.abs().mean().item())
    assert product.y_clip.item() == pytest.approx(2 * y.abs().mean().item())
    before = copy.deepcopy(product.state_dict())
    product(9 * x, 9 * y)
    assert product.state_dict() == before
    assert set(before) == {"x_clip", "y_clip"}


def test_a_loaded_state_is_looked_at_again():
    """Clips of 0 that are loaded after training are unset, not a product of zeros."""
    product = BinaryMatMul()
    x, y = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    product(3 * x, 3 * y)
    product.load_state_dict(BinaryMatMul().state_dict())
    own = 4 * x.abs().mean() * y.abs().mean()
    torch.testing.assert_close(product.eval()(x, y), sign(x) @ sign(y).mT * own)
    product.train()(x, y)
    assert product.x_clip.item() == pytest.approx(2 * x.abs().mean().item())
    assert product.half().dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    """Sums of 1003 are not rounded to half precision before they are scaled."""
    x = torch.ones(1, 2, 1003, dtype=dtype)
    z = with_clips(2.0**-9, 2.0**-1)(x, x)
    assert z.dtype == dtype
    assert torch.equal(z, torch.full((1, 2, 2), 1003 / 1024).to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = with_clips(1.01, 1.0)(x.float(), -x.float())
    assert z.tolist() == [[[-1012, -1012]] * 2]  # 1004 x 1.01 would be 1016


def test_refusals():
    product = BinaryMatMul(torch.bfloat16)
    assert product.x_clip.dtype == product.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="= 4, got 5"):
        product(torch.randn(2, 3, 4), torch.randn(2, 3, 5))
    with pytest.raises(ValueError, match="two dimensions or more"):
        product(torch.randn(4), torch.randn(3, 4))
    with pytest.raises(TypeError, match=r"torch\.float64"):
        BinaryMatMul(torch.float64)
    with pytest.raises(ValueError, match="x_clip cannot be set"):
        product(torch.full((2, 4), torch.nan), torch.randn(3, 4))
