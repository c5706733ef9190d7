"""bitorch_engine's helpers for shapes, updates and whole models, and the module paths of its names."""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from impl.compat import bitorch_engine
from impl.compat.bitorch_engine import (
    BinaryLinear,
    BinaryLinearParameter,
    MPQLinearCuda,
    Q4LinearCutlass,
    QLinearInf,
    nBitLinearBase,
)
from impl.compat.bitorch_engine.utils import convert, model_helper
from impl.compat.bitorch_engine.utils.model_helper import (
    binary_matmul_forward_post_processing,
    flatten_x,
    pad_embedding_dim,
    pad_last_2_dims_to_multiple_of_128,
    prepare_bie_layers,
    qweight_update_fn,
    unflatten_x,
)

PATHS = {
    "functions.cuda": [
        "fp32toint4",
        "q4_pack_tensor",
        "q4_unpack_and_scaling_tensor",
        "q4_unpack_tensor",
        "tensor_to_packed_uint8",
        "unpack_uint8_tensor",
    ],
    "layers.qconv.binary": ["BinaryConv2dBase", "BinaryConvParameter"],
    "layers.qconv.binary.cpp": ["BinaryConv2dCPP"],
    "layers.qconv.binary.cutlass": ["BinaryConv2dCutlass"],
    "layers.qconv.nbit": ["nBitConv2dBase", "nBitConvParameter"],
    "layers.qconv.nbit.cutlass": ["Q4Conv2dCutlass"],
    "layers.qembedding.binary": ["BinaryEmbeddingBag", "BinaryEmbeddingCuda", "BinaryEmbeddingParameter"],
    "layers.qlinear": ["QLinearInf"],
    "layers.qlinear.binary": [
        "BinaryLinear",
        "BinaryLinearBase",
        "BinaryLinearParameter",
        "get_best_binary_implementation",
    ],
    "layers.qlinear.binary.cpp": ["BinaryLinearCPP"],
    "layers.qlinear.binary.cuda": ["BMM", "BinaryLinearCuda"],
    "layers.qlinear.binary.cutlass": ["BinaryLinearCutlass", "BinaryMatMul"],
    "layers.qlinear.nbit": ["MPQLinearBase", "MPQWeightParameter", "nBitLinearBase", "nBitLinearParameter"],
    "layers.qlinear.nbit.cuda": ["MBWQLinearCuda", "MPQLinearCuda"],
    "layers.qlinear.nbit.cuda.utils": ["make_group_map", "pack_fp_weight", "unpack_qweight"],
    "layers.qlinear.nbit.cutlass": ["Q4LinearCutlass", "Q4MatMul", "Q8LinearCutlass"],
    "layers.qlinear.nbit.mps": ["MPQLinearMlx"],
    "layers.qmha.binary": ["BMHA", "LearnableBias"],
    "optim": ["DiodeMix"],
    "optim.galore_projector": ["GaLoreProjector"],
    "utils.convert": [
        "collect_layers",
        "get_mpq_config",
        "quantize_linear_with_binary_linear_cuda",
        "quantize_linear_with_mpq_linear_cuda",
        "quantize_linear_with_q4_linear_cutlass",
        "replace_layers",
    ],
    "utils.model_helper": [
        "binary_matmul_forward_post_processing",
        "flatten_x",
        "init_weight",
        "load_checkpoint",
        "pack_bie_layers",
        "pad_embedding_dim",
        "pad_last_2_dims_to_multiple_of_128",
        "prepare_bie_layers",
        "qweight_update_fn",
        "save_checkpoint",
        "unflatten_x",
    ],
    "utils.quant_operators": [
        "bit_set",
        "get_binary_col",
        "get_binary_row",
        "gptq_style_unpacking",
        "gptq_style_zeros_packing",
        "nv_tensor_quant",
        "q4_quantization",
        "q8_quantization",
    ],
}


@pytest.mark.parametrize("path", PATHS)
def test_names_lie_where_the_original_has_them(path):
    module = importlib.import_module(f"impl.compat.bitorch_engine.{path}")
    for name in PATHS[path]:
        assert callable(getattr(module, name)), name
        if name in bitorch_engine.__all__:
            assert getattr(bitorch_engine, name) is getattr(module, name)


def test_layers_and_parameters_are_all_at_the_top():
    theirs = {name for path, names in PATHS.items() if path.startswith("layers") for name in names}
    helpers = {"make_group_map", "pack_fp_weight", "unpack_qweight"}
    assert theirs - helpers <= set(bitorch_engine.__all__)


@pytest.mark.parametrize(
    ("function", "leading"),
    [
        (flatten_x, ["x"]),
        (unflatten_x, ["x", "shape"]),
        (pad_embedding_dim, ["weight"]),
        (pad_last_2_dims_to_multiple_of_128, ["tensor"]),
        (
            binary_matmul_forward_post_processing,
            ["tensor", "shape_pre", "x_pad_sec_last", "y_pad_sec_last", "k"],
        ),
        (
            qweight_update_fn,
            [
                "qweight",
                "exp_avg_s",
                "exp_avg_l",
                "step",
                "lr",
                "weight_decay",
                "beta1",
                "beta2",
                "eps",
                "dtype",
                "correct_bias",
                "projector",
                "grad",
            ],
        ),
        (model_helper.save_checkpoint, ["model", "name", "qweight_only"]),
        (model_helper.load_checkpoint, ["model", "checkpoint_path", "qweight_only"]),
        (model_helper.prepare_bie_layers, ["model", "layers"]),
        (model_helper.pack_bie_layers, ["model", "qweight_only", "layers"]),
        (convert.get_mpq_config, ["mpq_strategy"]),
        (
            convert.quantize_linear_with_mpq_linear_cuda,
            ["module", "names_to_replace", "mpq_strategy", "dtype", "parent_name"],
        ),
        (
            convert.quantize_linear_with_q4_linear_cutlass,
            ["module", "names_to_replace", "parent_name"],
        ),
        (QLinearInf, ["input_features", "out_features", "device", "a_bit", "w_bit", "bias"]),
    ],
)
def test_signatures_of_the_original(function, leading):
    parameters = inspect.signature(function).parameters.values()
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == leading


# ---- shapes -------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(lead=st.lists(st.integers(0, 4), max_size=3), columns=st.integers(0, 4), strided=st.booleans())
def test_flattening_and_back(lead, columns, strided):
    """The original fails for tensors that are no dense view of a matrix."""
    x = torch.randn(*lead, columns)
    if strided:
        reverse = list(range(len(lead)))[::-1]
        x = torch.randn(*lead[::-1], 2 * columns)[..., ::2].permute(*reverse, -1)
    flat, shape = flatten_x(x)
    assert shape == lead
    assert flat.shape == (torch.Size(lead).numel(), columns)
    assert torch.equal(unflatten_x(flat, shape), x)
    assert unflatten_x(flat[:, :0], shape).shape == (*lead, 0)


def test_flattening_refuses_what_has_no_rows():
    with pytest.raises(ValueError, match="without dimensions"):
        flatten_x(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"shape \[6, 2\] does not have the rows of \[2, 2\]"):
        unflatten_x(torch.ones(6, 2), [2, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_embedding_rows_are_padded_to_bytes(dtype):
    weight = torch.randn(3, 11).to(dtype)
    padded = pad_embedding_dim(weight)
    assert padded.dtype == dtype
    assert padded.shape == (3, 16)
    assert torch.equal(padded[:, :11], weight)
    assert bool((padded[:, 11:] == -1).all())
    assert pad_embedding_dim(padded) is padded
    with pytest.raises(TypeError, match=r"torch\.uint8 cannot hold the -1"):
        pad_embedding_dim(torch.ones(3, 11, dtype=torch.uint8))


@pytest.mark.parametrize(("rows", "columns"), [(1, 128), (128, 128), (129, 3), (256, 130)])
def test_matrices_are_padded_to_tiles(rows, columns):
    x = torch.randn(2, rows, columns)
    padded, added = pad_last_2_dims_to_multiple_of_128(x)
    assert padded.shape == (2, -(-rows // 128) * 128, -(-columns // 128) * 128)
    assert added == padded.shape[1] - rows
    assert torch.equal(padded[:, :rows, :columns], x)
    assert padded.sum() == pytest.approx(x.sum().item(), abs=1e-2)
    assert not padded[:, rows:].any()
    with pytest.raises(ValueError, match="at least two dimensions"):
        pad_last_2_dims_to_multiple_of_128(torch.ones(3))


def test_products_of_padded_signs():
    """D7: as the original's kernel goes about it, with the differing signs turned into sums once."""
    x, y = (torch.where(torch.randn(2, 3, rows, 70) >= 0, 1.0, -1.0) for rows in (5, 9))
    padded_x, x_added = pad_last_2_dims_to_multiple_of_128(x)
    padded_y, y_added = pad_last_2_dims_to_multiple_of_128(y)
    bits_x, bits_y = (padded.flatten(0, 1) >= 0 for padded in (padded_x, padded_y))
    differing = (bits_x.unsqueeze(2) != bits_y.unsqueeze(1)).sum(-1)
    product = binary_matmul_forward_post_processing(differing, [2, 3], x_added, y_added, 70)
    assert torch.equal(product.float(), x @ y.mT)
    with pytest.raises(ValueError, match=r"does not have the batch of \[2, 4\]"):
        binary_matmul_forward_post_processing(differing, [2, 4], x_added, y_added, 70)


# ---- updates ------------------------------------------------------------------------------------


def test_updates_go_by_the_class_of_the_parameter():
    weight = torch.randn(4, 6)
    one, two = (BinaryLinearParameter(weight) for _ in range(2))
    arguments = {"lr": 1.0, "beta1": 0.5, "beta2": 0.5, "grad": torch.randn(4, 6)}
    for parameter, update in ((one, qweight_update_fn), (two, BinaryLinearParameter.update)):
        short, long = parameter.initial_state()
        step = torch.zeros(())
        for _ in range(3):
            update(parameter, short, long, step, **arguments)
        assert step.item() == 3
    assert not torch.equal(one.dequantize(), BinaryLinearParameter(weight).dequantize())
    assert torch.equal(one.dequantize(), two.dequantize())
    with pytest.raises(TypeError, match="got Parameter: prepare the layer first"):
        qweight_update_fn(nn.Parameter(weight))


# ---- converting models --------------------------------------------------------------------------


def test_mpq_strategies():
    common = {"dq_mode": 2, "use_gba_quant": True, "asym": False}
    assert convert.get_mpq_config() == {**common, "w_bit": 2, "group_size": 32, "dq_group_size": 32}
    for strategy in convert.MPQ_STRATEGIES:
        config = convert.get_mpq_config(strategy)
        assert strategy == f"{config['w_bit']}-{config['group_size']}-{config['dq_group_size']}"
        MPQLinearCuda(256, 32, **config)
    with pytest.raises(ValueError, match=r"unknown mpq_strategy '2-32-33': .* did you mean '2-32-32'"):
        convert.get_mpq_config("2-32-33")


def model():
    return nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(), nn.ModuleDict({"head": nn.Linear(32, 8)})["head"]
    ).eval()


def q4(module, names, **options):
    return convert.quantize_linear_with_q4_linear_cutlass(module, names, **options)


def mpq(module, names, **options):
    return convert.quantize_linear_with_mpq_linear_cuda(module, names, "8-128-256", torch.float32, **options)


@pytest.mark.parametrize(
    ("replace", "kind"), [(q4, Q4LinearCutlass), (mpq, MPQLinearCuda)], ids=["q4", "mpq"]
)
def test_converters_keep_weight_and_bias(replace, kind):
    """D17: the original's converters make fresh random layers without bias."""
    network = model()
    linear = network[0]
    x = torch.randn(5, 64)
    new = replace(network, ["0"])
    assert [type(layer) for layer in new] == [kind]
    assert network[0] is new[0]
    assert type(network[2]) is nn.Linear
    assert torch.equal(new[0].bias, linear.bias)
    assert not new[0].training
    direct = {Q4LinearCutlass: Q4LinearCutlass.from_linear}.get(
        kind,
        lambda layer: MPQLinearCuda.from_linear(
            layer, dtype=torch.float32, **convert.get_mpq_config("8-128-256")
        ),
    )(linear)
    assert torch.equal(new[0](x), direct(x))
    error = (new[0](x) - linear(x)).norm() / linear(x).norm()
    assert error < (0.5 if kind is Q4LinearCutlass else 0.05)
    for names, message in ((["1"], "no such layer to replace: '1'"), (["3"], "no such layer")):
        with pytest.raises(ValueError, match=message):
            replace(network, names)


@pytest.mark.parametrize("replace", [q4, mpq], ids=["q4", "mpq"])
def test_converters_keep_ties_and_leave_what_others_rely_on(replace):
    network = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32))
    network[1].weight = network[0].weight
    replace(network, ["0", "1"])
    assert network[0].weight is network[1].weight
    tied = nn.ModuleDict({"table": nn.Embedding(32, 32), "head": nn.Linear(32, 32)})
    tied["head"].weight = tied["table"].weight
    with pytest.warns(UserWarning, match="head: its weight is shared with a Embedding"):
        assert replace(tied, ["head"]) == []
    assert type(tied["head"]) is nn.Linear


# ---- the layer by its widths --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a_bit", "w_bit", "kind"),
    [(1, 1, BinaryLinear), (4, 4, nBitLinearBase), (8, 8, nBitLinearBase), (8, 4, nBitLinearBase)],
)
@pytest.mark.parametrize("bias", [False, True])
def test_the_layer_is_chosen_by_widths(a_bit, w_bit, kind, bias):
    layer = QLinearInf(24, 5, None, a_bit, w_bit, bias)
    assert type(layer.layer) is kind
    assert (layer.input_features, layer.output_features) == (24, 5)
    weight = torch.randn(5, 24)
    layer.set_weight_data(weight)
    assert layer.weight is layer.layer.weight
    x = torch.randn(3, 24)
    y = layer(x)
    assert y.shape == (3, 5)
    assert torch.equal(y, layer.layer(x))
    names = prepare_bie_layers(layer)
    assert names == ["", "layer"]
    layer.eval()
    assert torch.equal(layer.opt_weight, layer.layer.opt_weight)
    assert layer.opt_weight.dtype == torch.uint8
    before = layer(x)
    layer.generate_quantized_weight(qweight_only=True)
    assert layer.weight is None
    assert torch.equal(layer(x), before)
    twin = QLinearInf(24, 5, None, a_bit, w_bit, bias).eval()
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), before)
    layer.set_quantized_weight_data(layer.layer.qweight.clone())
    assert torch.equal(layer(x), before)


def test_widths_that_make_no_layer():
    with pytest.raises(ValueError, match="1 bit is for both operands or none, got a_bit=1 and w_bit=4"):
        QLinearInf(8, 2, a_bit=1, w_bit=4)
    with pytest.raises(ValueError, match=r"a_bit must be 4 or 8 .* got 3"):
        QLinearInf(8, 2, a_bit=3, w_bit=3)


def recipe(layer, **options):
    return SimpleNamespace(layer=layer, kwargs=options)


def test_clones_keep_weight_bias_and_widths():
    """The original's clone takes a 32nd of the features, and no bias."""
    linear = nn.Linear(24, 5)
    x = torch.randn(3, 24)
    plain = SimpleNamespace(layer=linear)
    assert QLinearInf.can_clone(plain) == (True, "")
    clone = QLinearInf.create_clone_from(plain)
    assert clone.weight is None
    assert clone.input_features == 24
    assert torch.equal(clone.layer.bias, linear.bias)
    signs = F.linear(torch.where(x >= 0, 1.0, -1.0), torch.where(linear.weight.detach() >= 0, 1.0, -1.0))
    if not torch.cuda.is_available():  # else the layer with scales
        assert torch.equal(clone(x), signs + linear.bias.detach())
    eight = SimpleNamespace(bit_width=8)
    clone = QLinearInf.create_clone_from(recipe(linear, input_quantization=eight, weight_quantization=eight))
    assert (clone.a_bit, clone.w_bit) == (8, 8)
    named = QLinearInf.create_clone_from(recipe(linear, input_quantization="sign"))
    assert torch.equal(named(x), QLinearInf.create_clone_from(plain)(x))
    state = torch.get_rng_state()
    for width in (1, 8):
        bits = SimpleNamespace(bit_width=width)
        QLinearInf.create_clone_from(recipe(linear, input_quantization=bits, weight_quantization=bits))
    assert torch.equal(torch.get_rng_state(), state), "a clone draws no numbers"
    assert clone.layer.bias is not linear.bias
    assert torch.equal(clone.layer.bias, linear.bias)
    for bad, message in (
        (SimpleNamespace(layer=nn.Tanh()), "Tanh has no weight"),
        (recipe(linear, input_quantization=eight), r"got 8 \(inputs\) and 1 \(weights\)"),
        (recipe(linear, input_quantization="inputdorefa"), "does not say its bit_width"),
    ):
        assert QLinearInf.can_clone(bad)[0] is False
        with pytest.raises((TypeError, ValueError), match=message):
            QLinearInf.create_clone_from(bad)
