"""Bad input to the library: each is an error that says what is wrong, and changes nothing.

Names with a suggestion, dtypes, sizes, damaged or foreign packed weights, files of newer versions,
weights that are not finite, pickles.
"""

from __future__ import annotations

import copy
import os
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import impl
from impl import (
    BinaryEmbedding,
    BinaryEmbeddingBag,
    BinaryLinear,
    BitLinear,
    MultiTernaryLinear,
    TernaryEmbedding,
    checkpoint,
    convert_linear_to_bitlinear,
    functional,
    native,
    packing,
    prepare,
    quantizers,
)
from impl.convert_tools import load_checkpoint
from impl.interchange import BitNetConfig, load_huggingface, to_huggingface
from impl.layers.activations import DoReFa
from impl.layers.binary_conv import BinaryConv2d
from impl.layers.ternary_conv import TernaryConv1d
from impl.packing import PackedWeight

# ---- names ----------------------------------------------------------------------------------------

MISSPELT = [
    (lambda: BitLinear(8, 4, format="base-3"), "base3"),
    (lambda: BitLinear(8, 4, rule="absmeen"), "absmean"),
    (lambda: BitLinear(8, 4, ste="identitty"), "identity"),
    (lambda: BitLinear(8, 4, scale="rows"), "row"),
    (lambda: BinaryLinear(8, 4, format="binnary"), "binary"),
    (lambda: MultiTernaryLinear(8, 4, rule="twm"), "twn"),
    (lambda: BinaryConv2d(8, 4, 3, ste="clipp"), "clip"),
    (lambda: TernaryConv1d(8, 4, 3, format="twobit"), "two_bit"),
    (lambda: TernaryEmbedding(8, 4, rule="optimum"), "optimal"),
    (lambda: BinaryEmbeddingBag(8, 4, mode="majorty"), "majority"),
    (lambda: DoReFa(2, "activation"), "activations"),
    (lambda: BitLinear.from_linear(nn.Linear(8, 4), rule="absmaxx"), "absmax"),
    (lambda: convert_linear_to_bitlinear(nn.Linear(8, 4), format="base_3"), "base3"),
    (lambda: prepare(nn.Linear(8, 4), rule="absmeen"), "absmean"),
    (lambda: quantizers.quantize_ternary(torch.ones(2, 2), rule="optimel"), "optimal"),
    (lambda: quantizers.quantize_k_ternary(torch.ones(2, 2), 2, rule="twnn"), "twn"),
    (lambda: quantizers.quantize_binary(torch.ones(2, 2), scale="tensors"), "tensor"),
    (lambda: packing.pack(torch.ones(1, 2, 2, dtype=torch.int8), "two_bits"), "two_bit"),
    (lambda: packing.codes_bytes("bas3", 1, 2, 2), "base3"),
    (lambda: to_huggingface(BitLinear(8, 4), storage="packt"), "packed"),
    (lambda: BitNetConfig(linear_class="bitlinaer"), "bitlinear"),
]


@pytest.mark.parametrize(("make", "meant"), MISSPELT)
def test_unknown_names_suggest_the_nearest(make, meant):
    with pytest.raises(ValueError, match=f"unknown .*did you mean '{meant}'"):
        make()


def test_an_unknown_layer_option_names_the_layer():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with pytest.raises(ValueError, match=r"^0: unknown rule"):
        prepare(model, rule="absmeen")
    assert type(model[0]) is nn.Linear


# ---- inputs ---------------------------------------------------------------------------------------

LAYERS = [
    (lambda: BinaryLinear(16, 4, activation_bits=1), (2, 16)),
    (lambda: BitLinear(16, 4, activation_bits=8), (2, 16)),
    (lambda: MultiTernaryLinear(16, 4), (2, 16)),
    (lambda: BinaryConv2d(16, 4, 3, activation_bits=1), (2, 16, 5, 5)),
    (lambda: TernaryConv1d(16, 4, 3, activation_bits=8), (2, 16, 5)),
]
FORMS = [pytest.param(True, id="packed"), pytest.param(False, id="latent")]


def build(make, packed, seed=0):
    torch.manual_seed(seed)
    layer = make()
    return layer.pack() if packed else layer


@pytest.mark.parametrize("packed", FORMS)
@pytest.mark.parametrize(("make", "shape"), LAYERS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float64, torch.complex64, torch.uint8])
def test_inputs_of_other_dtypes_are_named(make, shape, packed, dtype):
    layer = build(make, packed)
    with pytest.raises(TypeError, match=f"float32, bfloat16 or float16, got {dtype}"):
        layer(torch.ones(shape).to(dtype))


@pytest.mark.parametrize("packed", FORMS)
@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_inputs_of_other_sizes_say_both_numbers(make, shape, packed):
    layer = build(make, packed)
    for channels in (15, 17, 1):
        x = torch.ones(shape[0], channels, *shape[2:])
        with pytest.raises(ValueError, match=rf"16.*{channels}"):
            layer(x)
    for wrong in (torch.tensor(1.0), [[1.0] * 16], None):
        with pytest.raises((TypeError, ValueError), match=r"input|[Tt]ensor"):
            layer(wrong)


@pytest.mark.parametrize("packed", FORMS)
@pytest.mark.parametrize("make", [lambda: BinaryEmbedding(8, 4), lambda: BinaryEmbeddingBag(8, 4)])
def test_indices_outside_the_table_are_named(make, packed):
    layer = build(make, packed)
    for index in (8, -1, 2**40):
        with pytest.raises(IndexError, match=f"index {index} is outside.*0 .. 7"):
            layer(torch.tensor([[0, index]]))
    for dtype in (torch.float32, torch.bool, torch.int8):
        with pytest.raises(TypeError, match=f"int64 or int32, got {dtype}"):
            layer(torch.zeros(1, 2).to(dtype))


@pytest.mark.parametrize(
    ("operator", "format"),
    [("binary_linear", "binary"), ("ternary_linear", "base3"), ("ternary_linear", "two_bit")],
)
def test_operators_refuse_what_does_not_fit(operator, format):
    codes = torch.ones(1, 4, 16, dtype=torch.int8)
    weight = PackedWeight.from_codes(codes, torch.ones(1, 4, 1), format)
    for name in (operator, f"{operator}_python"):
        call = getattr(functional, name)
        with pytest.raises(ValueError, match=r"16.*15"):
            call(torch.ones(2, 15), weight)
        with pytest.raises(TypeError, match="int64"):
            call(torch.ones(2, 16, dtype=torch.int64), weight)
        with pytest.raises(ValueError, match="bias"):
            call(torch.ones(2, 16), weight, torch.ones(5), 8)
        with pytest.raises(ValueError, match="activation"):
            call(torch.ones(2, 16), weight, None, 4)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="nativ"), native.backend("nativ"):
        pass


# ---- packed states --------------------------------------------------------------------------------

PACKED = {
    "binary": lambda: BinaryLinear(21, 7),
    "base3": lambda: BitLinear(21, 7, group_size=8),
    "two_bit": lambda: BitLinear(21, 7, format="two_bit"),
    "k-ternary": lambda: MultiTernaryLinear(21, 7, k=2),
    "embedding": lambda: TernaryEmbedding(7, 21),
    "bag": lambda: BinaryEmbeddingBag(7, 21),
    "conv": lambda: BinaryConv2d(3, 4, 3),
}


def refuse(make, state, message, tmp_path):
    """Neither a layer in either form nor a file takes ``state``; the layer stays as it was."""
    for packed in (False, True):
        layer = build(make, packed, seed=1)
        before = copy.deepcopy(layer.state_dict())
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict(state)
        after = layer.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    path = tmp_path / "m.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    with pytest.raises((ValueError, RuntimeError), match=message):
        checkpoint.load(build(make, False), path)


@pytest.mark.parametrize("kind", PACKED)
def test_cut_and_stretched_buffers_are_refused(kind, tmp_path):
    """Length and shape of codes and scales are those that the header says."""
    state = build(PACKED[kind], True).state_dict()
    for name in ("codes", "scales"):
        tensor = state[name]
        wrong = [tensor[..., :0], torch.cat([tensor, tensor], -1), tensor[None]]
        wrong += [tensor[:-1]] if name == "codes" else [tensor.squeeze(), tensor.transpose(0, 1)]
        for bad in wrong:
            if bad.shape == tensor.shape:
                continue
            refuse(PACKED[kind], {**state, name: bad}, rf"{name} are .*the header says", tmp_path)
    refuse(PACKED[kind], {**state, "codes": state["codes"].char()}, "codes are torch.int8", tmp_path)
    refuse(PACKED[kind], {**state, "scales": state["scales"].double()}, "scales are torch.float64", tmp_path)


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scales_that_are_not_finite_are_refused(kind, value, tmp_path):
    state = build(PACKED[kind], True).state_dict()
    scales = state["scales"].clone()
    scales.view(-1)[0] = value
    message = "scales hold 1 NaN or infinite values"
    refuse(PACKED[kind], {**state, "scales": scales}, message, tmp_path)


@pytest.mark.parametrize(
    ("kind", "byte"),
    [("base3", 243), ("base3", 255), ("two_bit", 0b11), ("two_bit", 0b11000000), ("k-ternary", 250),
     ("embedding", 243), ("binary", 0b100000), ("binary", 0x80), ("bag", 0xFF), ("conv", 0x80)],
)  # fmt: skip
def test_digits_that_no_code_has_are_refused(kind, byte, tmp_path):
    """Ternary digits are 0 to 2; bits after the last column of a binary row are 0."""
    layer = build(PACKED[kind], True)
    for place in (0, -1) if layer.format != "binary" else (2, -1):  # binary: the last byte of a row
        state = copy.deepcopy(layer.state_dict())
        state["codes"][place] = byte
        if kind == "conv":  # 27 columns: four bytes a row
            state = copy.deepcopy(layer.state_dict())
            state["codes"][3] = byte
        refuse(PACKED[kind], state, r"codes hold bytes that no \w+ code gives \(1 of", tmp_path)


@pytest.mark.parametrize("kind", PACKED)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_other_header_is_refused(kind, data):
    """Version, format, layout, components, rows, columns, group size, rows of scales, kernel: a header
    describes one weight, so that no other one loads."""
    layer = build(PACKED[kind], True)
    state = layer.state_dict()
    header = state["packing"].clone()
    entry = data.draw(st.integers(0, len(header) - 1))
    small = st.integers(-3, 70)
    value = data.draw(st.one_of(small, st.integers(-(2**63), 2**63 - 1)))
    if value == header[entry]:
        return
    header[entry] = value
    target = build(PACKED[kind], False)
    before = target.weight.clone()
    with pytest.raises(RuntimeError, match="Error"):
        target.load_state_dict({**state, "packing": header})
    assert torch.equal(target.weight, before)


def test_newer_headers_say_what_to_do(tmp_path):
    state = BitLinear(8, 4).pack().state_dict()
    for entry, message in ((0, "version 2, this build reads version 1"), (2, "layout 2, this build reads")):
        header = state["packing"].clone()
        header[entry] = 2
        refuse(lambda: BitLinear(8, 4), {**state, "packing": header}, f"{message}.*update", tmp_path)
    for header in (torch.ones(7, dtype=torch.int64), torch.ones(8), torch.ones(8, 1, dtype=torch.int64)):
        refuse(lambda: BitLinear(8, 4), {**state, "packing": header}, "header is an int64 tensor", tmp_path)


def test_states_of_other_layers_are_named():
    state = BitLinear(8, 4).pack().state_dict()
    for other, message in (
        (BitLinear(8, 5), "out_features 4, this layer has 5"),
        (BitLinear(9, 4), "in_features 8, this layer has 9"),
        (BitLinear(8, 4, format="two_bit"), "format 'base3', this layer has 'two_bit'"),
        (BitLinear(8, 4, group_size=8), "group_size None, this layer has 8"),
        (MultiTernaryLinear(8, 4, k=3), "components 1, this layer has 3"),
        (BinaryLinear(8, 4), "format 'base3', this layer has 'binary'"),
        (TernaryConv1d(8, 4, 1), "kernel"),
    ):
        with pytest.raises(RuntimeError, match=message):
            other.load_state_dict(state)


# ---- files ----------------------------------------------------------------------------------------


def saved(tmp_path):
    model = nn.Sequential(BitLinear(21, 7), nn.ReLU(), BinaryLinear(7, 3)).eval()
    path = tmp_path / "m.safetensors"
    checkpoint.save(impl.pack(model), path, {"note": "x"})
    return model, path


def test_every_prefix_of_a_file_is_refused(tmp_path):
    model, path = saved(tmp_path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"m\.safetensors"):
            checkpoint.load(model, path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_changed_byte_gives_a_clear_error_or_a_whole_model(tmp_path_factory, data):
    """Nothing else than ValueError and RuntimeError, whatever byte of a file has changed."""
    torch.manual_seed(0)
    model, path = saved(tmp_path_factory.mktemp("file"))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    try:
        checkpoint.load(model, path)
    except (ValueError, RuntimeError):
        return
    with torch.no_grad():
        assert model(torch.ones(2, 21)).shape == (2, 3)


@pytest.mark.parametrize("aliases", ["[]", "{", '{"a": 1}', "null"])
def test_damaged_metadata_is_refused(tmp_path, aliases):
    path = tmp_path / "m.safetensors"
    save_file({"weight": torch.zeros(1)}, path, {"bitimpl.aliases": aliases})
    with pytest.raises(ValueError, match=r"m\.safetensors.*bitimpl\.aliases"):
        checkpoint.read_state(path)


# ---- weights that are not finite ------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", PACKED)
def test_weights_that_are_not_finite_are_not_packed(kind, value):
    layer = build(PACKED[kind], False)
    with torch.no_grad():
        layer.weight.view(-1)[-1] = value
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match="1 NaN or infinite values"):
        layer.pack()
    assert not layer.is_packed
    torch.testing.assert_close(layer.weight.detach(), before, rtol=0, atol=0, equal_nan=True)


def test_conversion_names_the_layer_whose_weight_is_not_finite():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))
    model[1][0].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^1\.0: weight holds 1 NaN"):
        convert_linear_to_bitlinear(model)
    assert type(model[0]) is nn.Linear


def test_codes_with_scales_that_are_not_finite_are_refused():
    codes = torch.ones(4, 8, dtype=torch.int8)
    scales = torch.ones(1, 4, 1)
    scales[0, 2] = float("nan")
    for cls in (BitLinear, BinaryLinear):
        with pytest.raises(ValueError, match="scales hold 1 NaN"):
            cls.from_codes(codes, scales)


# ---- pickles --------------------------------------------------------------------------------------


class Trap:
    """Leaves a trace where unpickling runs code."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("write", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj))])
def test_pickles_are_refused_and_not_run(tmp_path, write):
    trace = tmp_path / "trace"
    state = {"weight": torch.ones(4, 8), "trap": Trap(trace)}
    path = tmp_path / "m.bin"
    write(state, path)
    with pytest.raises(ValueError, match=r"m\.bin is a torch or pickle file.*weights_only=True"):
        checkpoint.load(BitLinear(8, 4), path)
    with pytest.raises(ValueError, match=r"m\.bin"):
        load_checkpoint(BitLinear(8, 4, bias=False), path)
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "bitnet"}}')
    with pytest.raises(ValueError, match="pickled weights"):
        load_huggingface(nn.Linear(8, 4), tmp_path)
    assert not trace.exists()


def test_tensors_alone_load_by_weights_only(tmp_path):
    layer = BitLinear(8, 4).pack()
    path = tmp_path / "m.pth"
    torch.save(layer.state_dict(), path)
    twin = BitLinear(8, 4)
    twin.load_state_dict(torch.load(path, weights_only=True))
    assert torch.equal(twin.dequantize(), layer.dequantize())
    with pytest.raises(ValueError, match="weights_only=True"):
        checkpoint.load(twin, path)
