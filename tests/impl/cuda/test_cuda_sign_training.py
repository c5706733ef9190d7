"""bitorch_engine's binary layers in training on CUDA, as the emulator runs the kernels: products of bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_products import Products

from impl import native
from impl.compat.bitorch_engine import (
    BinaryConv2dBase,
    BinaryConv2dCutlass,
    BinaryLinearBase,
    BinaryLinearCuda,
    BinaryLinearCutlass,
    BinaryMatMul,
    linear,
    signs,
)
from impl.compat.bitorch_engine.linear import BMM
from impl.native.cuda import training

pytestmark = pytest.mark.usefixtures("one_thread")


@contextmanager
def float_products(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Training as on a device without kernels."""
    with monkeypatch.context() as patch:
        patch.setattr(signs, "multiplies_bits", lambda *_: False)
        patch.setattr("impl.compat.bitorch_engine.sign_conv.multiplies_bits", lambda *_: False)
        yield


def equal(found: Tensor, right: Tensor) -> bool:
    return torch.equal(found.nan_to_num(7.5), right.nan_to_num(7.5)) and torch.equal(
        found.isnan(), right.isnan()
    )


def sign_layers() -> Iterator[tuple[torch.nn.Module, Tensor]]:
    torch.manual_seed(0)
    for cls in (BinaryLinearBase, BinaryLinearCuda, BinaryLinearCutlass):
        yield cls(70, 13, bias=True), torch.randn(2, 9, 70)
    for cls in (BinaryConv2dBase, BinaryConv2dCutlass):
        yield cls(6, 8, (3, 2), stride=(1, 2), padding=1, groups=2), torch.randn(3, 6, 5, 7)
    prepared = BinaryLinearCuda(33, 5)
    prepared.prepare_params()
    yield prepared, torch.randn(4, 33)


@pytest.mark.usefixtures("on_cpu_tensors")
def test_training_multiplies_bits_with_the_numbers_of_float_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    for layer, x in sign_layers():
        layer(x)  # sets scales
        for bad in (False, True):
            if bad:
                x.view(-1)[3] = torch.nan
                x.view(-1)[-2] = torch.inf
                if type(layer.weight) is torch.nn.Parameter:
                    layer.weight.data[1].view(-1)[2] = torch.nan
            with Products() as products:
                y = layer(x)
            assert products.count == 0
            assert native.last_kernel().split("/")[1:3] == ["binary", "sign"]
            with float_products(monkeypatch):
                right = layer(x)
            assert equal(y, right), type(layer).__name__
            assert bool(y.isnan().any()) == bad


@pytest.mark.usefixtures("on_cpu_tensors")
@pytest.mark.parametrize(
    ("x_lead", "y_lead", "by_bits"),
    [
        ((), (), True),
        ((2, 3), (1,), True),
        ((), (1, 1), True),
        ((2, 3), (2, 3), True),
        ((), (5,), True),
        ((1, 3), (2, 3), True),
        ((2, 3), (3,), False),  # a y for several x
        ((9,), (9,), False),  # too many
        ((0,), (0,), False),
    ],
)
def test_products_of_activations(
    x_lead: tuple[int, ...], y_lead: tuple[int, ...], by_bits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D7: every batch has its own product, K is not padded into it."""
    torch.manual_seed(0)
    product = BinaryMatMul()
    with torch.no_grad():
        product.x_clip.fill_(1.5)
        product.y_clip.fill_(0.75)
    x, y = torch.randn(*x_lead, 4, 69), torch.randn(*y_lead, 11, 69)
    if x.numel():
        x.view(-1)[70] = torch.nan
    with Products() as products:
        z = product(x, y)
    assert (products.count == 0) == by_bits
    with float_products(monkeypatch):
        assert equal(z, product(x, y))


@pytest.mark.usefixtures("on_cpu_tensors")
@pytest.mark.parametrize("packed", [False, True])
def test_int8_gradients_come_from_the_kernel(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Tensor] = []
    kernel = training.input_grad
    monkeypatch.setattr(training, "input_grad", lambda *a: calls.append(a[0]) or kernel(*a))
    torch.manual_seed(0)
    layer = BinaryLinearCuda(70, 13, scale="row", backward="int8")
    x = torch.randn(9, 70)
    layer(x)
    if packed:
        layer.generate_quantized_weight(qweight_only=True)
    found = []
    for _ in range(2):
        leaf = x.clone().requires_grad_()
        layer(leaf).backward(torch.randn(9, 13, generator=torch.Generator().manual_seed(1)))
        found.append(leaf.grad)
        monkeypatch.delitem(native.dispatch.TRAINING, "cpu", raising=False)
    assert len(calls) == 1
    assert torch.equal(*found)


@pytest.mark.parametrize("rows", range(1, 10))
def test_every_choice_of_kernel_takes_every_number_of_rows(
    rows: int, on_cpu_tensors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D6: BTC32 and ADAPTIVE of the original need M % 8 == 0, in eval mode or not; a call's argument
    overwrites the constructor's choice."""
    chosen: list[str] = []
    real = linear.preferring

    def recorded(name: str, device: torch.device) -> Any:
        chosen.append(name)
        return real(name, device)

    monkeypatch.setattr(linear, "preferring", recorded)
    # The emulated device is a CPU for torch.
    monkeypatch.setattr("impl.native.cuda.preference.DEVICE_TYPES", ("cpu", "cuda"))
    torch.manual_seed(0)
    x = torch.randn(rows, 128)
    names = {BMM.BSTC32: ["popcount"], BMM.BTC32: ["bmma"], BMM.ADAPTIVE: []}
    for own, name in names.items():
        layer = BinaryLinearCuda(128, 8, bmm_type=own)
        right = None
        for packed in (False, True):
            if packed:
                layer.eval().generate_quantized_weight(qweight_only=True)
            for given in (None, *BMM):
                chosen.clear()
                y = layer(x, given)
                assert chosen == (name if given is None else names[given])
                assert layer.bmm_type is own
                right = y if right is None else right
                assert torch.equal(y, right)
        dot = torch.where(x + layer.bias_a >= 0, 1.0, -1.0) @ signs.unpack_signs(layer.qweight, 128).T
        torch.testing.assert_close(right, dot * layer.scale_a * layer.scale_w)
