from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from bitbench.measure.memory import file_bytes, ledger, named_tensors, peak_of, reset_peak


class Packed(nn.Module):
    """As a packed layer keeps its tensors, with a storage larger than what the codes show."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(128, dtype=torch.uint8)[:100])
        self.register_buffer("scales", torch.zeros(1, 5, 1))
        self.register_buffer("packing", torch.zeros(8, dtype=torch.int64))
        self.bias = nn.Parameter(torch.zeros(5))
        self.kept = torch.zeros(3)


def test_every_byte_is_booked_once_and_slack_shows() -> None:
    assert ledger(Packed()) == {
        "codes": 100,
        "scales": 20,
        "bias": 20,
        "buffers": 64 + 12,
        "slack": 28,
        "layer": 128 + 20 + 20 + 64 + 12,
    }


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_float_layers(dtype: torch.dtype, width: int) -> None:
    book = ledger(nn.Linear(10, 6, dtype=dtype))
    assert book["codes"] == 60 * width
    assert book["bias"] == 6 * width
    assert book["layer"] == 66 * width
    assert book["slack"] == book["buffers"] == book["scales"] == 0


def test_tied_tensors_count_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
    model["b"].weight = model["a"].weight
    assert ledger(model)["layer"] == 64
    assert ledger(model)["codes"] == 64


def test_overlapping_views_never_make_negative_slack_invisible() -> None:
    module = nn.Module()
    whole = torch.zeros(10)
    module.register_buffer("weight", whole)
    module.register_buffer("scales", whole[:4])
    book = ledger(module)
    assert book["layer"] == 40
    assert sum(book[key] for key in ("codes", "scales", "bias", "buffers", "slack")) == book["layer"]


def test_torch_dynamic_int8_is_decomposed() -> None:
    with warnings.catch_warnings(action="ignore"):
        module = torch.ao.nn.quantized.dynamic.Linear(16, 8)
    names = {name.rpartition(".")[2] for name, _ in named_tensors(module)}
    assert {"weight", "scales", "zero_points", "bias"} <= names
    book = ledger(module)
    assert book["codes"] == 128
    assert file_bytes(module) >= 128


def test_file_holds_what_the_ledger_holds() -> None:
    module = nn.Linear(256, 128)
    size, book = file_bytes(module), ledger(module)
    assert book["layer"] < size < book["layer"] + 1024


def test_peak_sees_a_temporary() -> None:
    if not reset_peak():
        pytest.skip("the high-water mark cannot be reset here")
    size = 64 * 1024**2
    quiet = peak_of(lambda: None)
    peak = peak_of(lambda: torch.ones(size // 4))
    assert quiet is not None
    assert peak is not None
    assert quiet < size / 8
    assert 0.9 * size < peak < 1.5 * size
