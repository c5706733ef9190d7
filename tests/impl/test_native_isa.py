"""Going from one instruction set to another and back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from impl import BitLinear, native
from impl.native import library

pytestmark = pytest.mark.skipif(not native.available(), reason="no native kernels to choose among")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = native.isa()
    yield
    native.select_isa(before)


def test_each_instruction_set_has_its_number_and_keeps_it() -> None:
    seen: dict[str, int] = {}
    for name in [*native.supported_isas()] * 2:
        native.select_isa(name)
        assert seen.setdefault(name, library.isa_generation) == library.isa_generation
    assert len(set(seen.values())) == len(seen)
    native.select_isa(None)
    assert library.isa_generation == seen[native.isa()]
    with pytest.raises(native.NativeError, match="no-such-isa"):
        native.select_isa("no-such-isa")
    assert library.isa_generation == seen[native.isa()], "nothing was changed"


@torch.inference_mode()
def test_a_layer_names_the_kernel_of_each_call() -> None:
    layer = BitLinear(64, 32, activation_bits=8).pack()
    x = torch.randn(2, 64)
    for name in [*native.supported_isas(), *reversed(native.supported_isas())]:
        native.select_isa(name)
        layer(x)
        assert layer.last_kernel.endswith(f"/{name}")
