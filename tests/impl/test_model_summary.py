"""summary(): parameters, bits, multiply-accumulates and bytes, counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from impl import BinaryLinear, BitLinear, MultiTernaryLinear, convert_linear_to_bitlinear, pack
from impl.compat.bitorch_engine import (
    BinaryConv2dCPP,
    BinaryLinearCPP,
    MPQLinearCuda,
    Q4Conv2dCutlass,
    Q8LinearCutlass,
)
from impl.layers.binary_conv import BinaryConv2d
from impl.layers.embedding import TernaryEmbedding
from impl.layers.k_ternary_conv import MultiTernaryConv2d
from impl.layers.nbit import GroupwiseLinear, NBitConv2d, NBitLinear
from impl.model_summary import summary

HEADER = 64  # int64 [8]


def by_name(report):
    return {layer.name: layer for layer in report.layers}


def network():
    return nn.Sequential(
        nn.Linear(40, 20),
        nn.BatchNorm1d(20),
        BitLinear(20, 30, activation_bits=8, format="two_bit", scale="row"),
        nn.ReLU(),
        BinaryLinear(30, 8, bias=False, activation_bits=1),
        MultiTernaryLinear(8, 6, k=3),
    )


def test_numbers_of_each_layer():
    report = summary(network(), torch.randn(7, 40))
    layers = by_name(report)
    assert list(layers) == ["0", "1", "2", "4", "5"]  # the ReLU holds nothing
    assert [layer.parameters for layer in layers.values()] == [820, 40, 630, 240, 54]
    assert [layer.weight_bits for layer in layers.values()] == [32.0, 32.0, 2.0, 1.0, pytest.approx(4.8)]
    assert [layer.activation_bits for layer in layers.values()] == [None, None, 8, 1, None]
    assert [layer.macs for layer in layers.values()] == [7 * 800, 0, 7 * 600, 7 * 240, 7 * 3 * 48]
    assert [layer.form for layer in layers.values()] == ["float", "float", *["training"] * 3]
    assert [layer.bytes for layer in layers.values()] == [3280, 4 * 4 * 20 + 8, 2520, 960, 216]
    packed = {
        "0": 3280,
        "1": 328,
        "2": 8 * 20 + 4 * 30 + HEADER + 4 * 30,  # 30 rows in 8 groups of four
        "4": 8 * 4 + 4 * 8 + HEADER,  # 30 bits in 4 bytes
        "5": 3 * 2 * 8 + 3 * 4 * 6 + HEADER + 4 * 6,  # 6 rows in 2 groups of five, three components
    }
    assert {name: layer.packed_bytes for name, layer in layers.items()} == packed
    assert (report.parameters, report.float_bytes) == (1784, 7136)
    assert (report.bytes, report.packed_bytes) == (3280 + 328 + 2520 + 960 + 216, sum(packed.values()))
    assert report.uncounted == ()
    assert report.macs_by_precision() == {
        (32.0, None): 5600, (2.0, 8): 4200, (1.0, 1): 1680, (3 * 1.6, None): 1008,
    }  # fmt: skip


def test_packing_gives_the_bytes_that_were_foretold():
    model = network()
    before = summary(model)
    assert all(layer.weight is not None for layer in (model[2], model[4], model[5]))
    after = summary(pack(model))
    assert after.bytes == after.packed_bytes == before.packed_bytes
    assert [layer.form for layer in after.layers] == ["float", "float", *["packed"] * 3]
    for name in ("parameters", "weight_bits", "macs"):
        assert [getattr(a, name) for a in after.layers] == [getattr(b, name) for b in before.layers]


@pytest.mark.parametrize(
    ("build", "bits", "packed_bytes"),
    [
        (lambda: NBitLinear(64, 32), 4.0, 32 * 32 + 4 * 32 + 32 + 4 * 32),
        (lambda: NBitLinear(33, 7, bias=False, weight_bits=3, scale="tensor"), 4.0, 7 * 17 + 4 + 32),
        (lambda: NBitConv2d(3, 5, 3, weight_bits=8), 8.0, 5 * 27 + 4 * 5 + 32 + 4 * 5),
        (lambda: Q8LinearCutlass(24, 5), 8.0, 5 * 24 + 4 + 32 + 4 + 4 * 24),  # scale_a and bias_a stay
    ],
)
def test_packing_n_bit_layers_gives_the_bytes_that_were_foretold(build, bits, packed_bytes):
    """They counted as float layers until they were packed: 8320 bytes and 32 bits for the first."""
    layer = build()
    (before,) = summary(layer).layers
    assert (before.form, before.weight_bits, before.packed_bytes) == ("training", bits, packed_bytes)
    assert before.bytes == sum(parameter.nbytes for parameter in layer.parameters())
    assert layer.weight is not None
    if isinstance(layer, Q8LinearCutlass):  # codes beside the weight go when it is packed
        layer.generate_quantized_weight()
        assert summary(layer).bytes == before.bytes + 5 * 24
        assert summary(layer).packed_bytes == packed_bytes
    (after,) = summary(pack(layer)).layers
    assert (after.form, after.bytes) == ("packed", packed_bytes)
    for name in ("parameters", "weight_bits", "macs", "packed_bytes"):
        assert getattr(after, name) == getattr(before, name)


def test_n_bit_layers_that_share_a_weight_are_packed_apart():
    model = nn.Sequential(NBitLinear(8, 8, bias=False), NBitLinear(8, 8, bias=False))
    model[1].weight = model[0].weight
    before = summary(model)
    assert [layer.bytes for layer in before.layers] == [256, 0]
    assert summary(pack(model)).bytes == before.packed_bytes == 2 * (8 * 4 + 4 * 8 + 32)


def test_without_an_input_one_row_counts():
    report = summary(network())
    assert report.per_position
    assert report.macs == 800 + 600 + 240 + 144
    assert summary(nn.Conv2d(3, 8, 3)).uncounted == ("",)


def test_convolutions_are_counted_by_their_positions():
    model = nn.Sequential(
        nn.Conv2d(4, 8, (3, 2), stride=2, padding=1, groups=2, bias=False),
        nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2),
        nn.Flatten(),
    )
    x = torch.randn(5, 4, 9, 9)
    middle = model[0](x)
    report = summary(model, x)
    expected = 5 * 8 * middle.shape[2] * middle.shape[3] * 2 * 6
    assert report.layers[0].macs == expected
    assert report.layers[1].macs == 5 * 8 * middle.shape[2] * middle.shape[3] * 3 * 4


def test_low_bit_convolutions_are_counted_by_their_positions_and_components():
    model = nn.Sequential(
        BinaryConv2d(4, 8, (3, 2), stride=2, padding=1, groups=2, bias=False, activation_bits=1),
        MultiTernaryConv2d(8, 6, 3, k=2),
    )
    x = torch.randn(5, 4, 9, 9)
    middle = model[0](x).shape[2:].numel()
    for _ in range(2):
        report = summary(model, x)
        assert report.layers[0].macs == 5 * 8 * middle * 2 * 6
        assert report.layers[1].macs == 5 * 6 * model(x).shape[2:].numel() * 2 * 8 * 9
        assert [layer.parameters for layer in report.layers] == [8 * 12, 6 * 72 + 6]
        assert [layer.weight_bits for layer in report.layers] == [1.0, 3.2]
        # 8 rows of 12 bits and a header with two more numbers; 6 rows in 2 groups of five, twice.
        packed = [8 * 2 + 4 * 8 + HEADER + 16, 2 * 2 * 72 + 2 * 4 * 6 + HEADER + 16 + 4 * 6]
        assert [layer.packed_bytes for layer in report.layers] == packed
        assert summary(model).uncounted == ("0", "1")
        pack(model)
    assert [layer.bytes for layer in report.layers] == packed


@pytest.mark.parametrize(
    ("build", "before", "bits", "activation_bits"),
    [
        (lambda: BinaryConv2dCPP(8, 6, 3, padding=1), ("float", 32.0), 1.0, 1),
        (lambda: Q4Conv2dCutlass(8, 6, (3, 1)), ("training", 4.0), 4.0, 4),
    ],
)
def test_convolutions_of_bitorch_engine_count_packed_or_not(build, before, bits, activation_bits):
    """Packed, they hold no matrix that could be mistaken for one: they counted nothing."""
    layer, x = build(), torch.randn(2, 8, 5, 5)
    columns = layer.weight.shape[1:].numel()
    parameters, macs = summary(layer).parameters, layer(x).numel() * columns
    for form in (before, ("packed", bits)):
        (found,) = summary(layer, x).layers
        assert (found.form, found.weight_bits) == form
        assert (found.macs, found.parameters, found.activation_bits) == (macs, parameters, activation_bits)
        assert summary(layer).uncounted == ("",)
        layer.generate_quantized_weight(qweight_only=True)


def test_transposed_weights_are_counted():
    layer = MPQLinearCuda(64, 32, dtype=torch.float32)
    assert tuple(layer.weight.shape) == (64, 32)
    assert summary(layer, torch.randn(3, 64)).macs == 3 * 64 * 32


def test_group_wise_layers_know_one_form():
    """Their weight is a Parameter of integers, trained as it is: nothing is left to pack."""
    layer = GroupwiseLinear(64, 32, bits=4, group_size=32)
    [found] = summary(layer).layers
    assert (found.form, found.bytes) == ("float", found.packed_bytes)
    assert found.parameters == 64 * 32 + 32
    assert 4 <= found.weight_bits < 32


def test_lookups_and_layers_of_bitorch_engine():
    model = nn.Sequential(TernaryEmbedding(50, 16, format="two_bit"), BinaryLinearCPP(16, 12))
    report = summary(model, torch.zeros(3, 4, dtype=torch.int64))
    table, linear = report.layers
    assert (table.parameters, table.weight_bits, table.macs, table.bytes) == (800, 2.0, 0, 3200)
    assert table.packed_bytes == 13 * 16 + 4 * 50 + HEADER
    assert (linear.parameters, linear.macs, linear.weight_bits) == (192, 12 * 192, 32.0)
    model[1].generate_quantized_weight(qweight_only=True)
    packed = summary(model).layers[1]
    assert (packed.parameters, packed.weight_bits, packed.bytes, packed.macs) == (192, 1.0, 24, 192)
    assert (linear.form, packed.form) == ("float", "packed")
    assert (linear.activation_bits, packed.activation_bits) == (1, 1)


def test_a_layer_used_twice_counts_twice_but_is_held_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.head = nn.Linear(4, 4, bias=False)
            self.head.weight = self.a.weight

        def forward(self, x):
            return self.head(self.a(self.a(x)))

    report = summary(Twice(), torch.randn(1, 4))
    layers = by_name(report)
    assert (layers["a"].macs, layers["a"].bytes) == (32, 80)
    assert (layers["head"].macs, layers["head"].bytes, layers["head"].parameters) == (16, 0, 0)
    assert report.parameters == 20


def test_layers_of_unknown_kind_and_uncalled_ones_are_listed():
    class Unusual(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(4, 4))
            self.gain = nn.PReLU()
            self.unused = nn.Linear(4, 4)

        def forward(self, x):
            return self.gain(x @ self.table)

    report = summary(Unusual(), torch.randn(2, 4))
    assert report.uncounted == ("", "unused")
    assert by_name(report)["gain"].macs == 0
    assert "Not counted: (root), unused." in str(report)


def test_the_call_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    model[0].eval()
    modes = [module.training for module in model.modules()]
    mean = model[1].running_mean.clone()
    summary(model, torch.randn(8, 4))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model[1].running_mean, mean)
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(RuntimeError):
        summary(model, torch.randn(8, 5))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks for module in model.modules())


def test_the_meta_device_gives_the_same_numbers():
    x = torch.randn(7, 40)
    real = summary(network(), x)
    with torch.device("meta"):
        assert summary(network(), x.to("meta")) == real
        assert summary(pack(network()), x.to("meta")).bytes == real.packed_bytes


def test_a_whole_layer_is_near_the_bound_of_its_format():
    model = convert_linear_to_bitlinear(nn.Sequential(nn.Linear(1000, 1000, bias=False)))
    report = summary(model)
    assert report.bytes == 200_000 + 4_000 + HEADER
    assert report.float_bytes / report.bytes == pytest.approx(19.6, abs=0.05)


def test_the_table_and_the_frame_hold_the_same_numbers():
    report = summary(network(), torch.randn(7, 40))
    frame = report.to_dataframe()
    assert list(frame.index) == ["0", "1", "2", "4", "5"]
    assert list(frame.columns) == [
        "kind", "form", "parameters", "weight_bits", "activation_bits", "macs", "bytes", "packed_bytes",
    ]  # fmt: skip
    assert frame["bytes"].sum() == report.bytes
    assert frame["macs"].sum() == report.macs
    assert frame.loc["2", "activation_bits"] == 8
    assert frame["activation_bits"].isna().tolist() == [True, True, False, False, True]
    text = str(report)
    assert report.to_table("github").startswith("| layer")
    lines = text.splitlines()
    assert lines[0].split() == [
        "layer", "type", "form", "parameters", "weight", "bits", "activation", "bits", "MACs", "bytes",
        "bytes", "packed",
    ]  # fmt: skip
    assert lines[4].split() == ["2", "BitLinear", "training", "630", "2", "8", "4,200", "2,520", "464"]
    assert next(line for line in lines if line.startswith("total")).split() == [
        "total", "1,784", f"{report.macs:,}", f"{report.bytes:,}", f"{report.packed_bytes:,}",
    ]  # fmt: skip
    assert f"{report.float_bytes / report.bytes:.2f} times the {report.bytes:,} bytes held" in text
    empty = summary(nn.ReLU())
    assert (empty.layers, empty.bytes, list(empty.to_dataframe().columns)) == ((), 0, list(frame.columns))
    assert "total" in str(empty)


def test_only_modules_are_summed_up():
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got Tensor"):
        summary(torch.ones(2))
