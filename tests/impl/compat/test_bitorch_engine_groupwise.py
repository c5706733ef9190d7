"""Group-wise layers of bitorch_engine (MPQ, MBWQ): checkpoints, helpers, and the defects of the original."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import nn

from impl.compat.bitorch_engine.nbit_groupwise import MPQLinearBase, MPQLinearCuda, MPQLinearMlx
from impl.compat.bitorch_engine.nbit_mixed import MBWQLinearCuda
from impl.compat.bitorch_engine.nbit_tools import (
    gptq_style_unpacking,
    gptq_style_zeros_packing,
    make_group_map,
    pack_fp_weight,
    rows_of_groups,
    unpack_qweight,
)
from impl.convert_tools import load_checkpoint, pack_bie_layers, prepare_bie_layers, save_checkpoint
from impl.parameters import MPQWeightParameter
from impl.parameters.bitstream import pack_words

K, N = 64, 32


def half(*shape):
    return (torch.rand(shape) + 0.1).half()


def test_signature_of_the_original():
    parameters = inspect.signature(MPQLinearBase).parameters.values()
    leading = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in leading] == [
        *("in_channels", "out_channels", "a_bit", "w_bit", "dtype", "group_size", "use_gba_quant"),
        *("dq_group_size", "dq_mode", "disable_bias", "asym", "requires_grad"),
    ]
    defaults = [p.default for p in leading][2:]
    assert defaults == [16, 4, torch.half, -1, True, -1, 2, True, False, True]


def test_attributes_of_the_original():
    layer = MPQLinearCuda(K, N, w_bit=2, group_size=32, dtype=torch.float32, requires_grad=False)
    assert (layer.in_channels, layer.out_channels, layer.maxq, layer.bits) == (K, N, 3, 2)
    assert isinstance(layer.qweight, MPQWeightParameter)
    assert layer.qweight.codes.shape == (K // 32 * 2, N)
    assert layer.scales.shape == layer.zeros.shape == (2, N)
    assert layer.g_idx.tolist() == [0] * 32 + [1] * 32
    assert not layer.requires_grad
    assert layer.privileged_grad is None
    assert (layer.dtype, layer.bias) == (torch.float32, None)


# ---- checkpoints ----------------------------------------------------------------------------


def common(w_bit, group_size):
    codes = torch.randint(0, 2**w_bit, (K, N))
    g_idx = (torch.arange(K) // group_size).to(torch.int32)
    state = {
        "qweight": pack_words(codes, w_bit),
        "g_idx": g_idx,
        "wf": torch.arange(0, 32, w_bit, dtype=torch.int32).unsqueeze(0),
        "bias": torch.zeros(N, dtype=torch.half),
    }
    return codes, g_idx.long(), state


@pytest.mark.parametrize("dq_mode", [1, 2])
@pytest.mark.parametrize(("w_bit", "group_size"), [(1, 8), (2, 32), (4, 16), (8, 64)])
def test_quantised_statistics(w_bit, group_size, dq_mode):
    codes, groups, state = common(w_bit, group_size)
    count, dq = K // group_size, 8
    statistic = torch.randint(0, 256, (count, N // dq, dq), dtype=torch.uint8)
    shape = (count, N // dq, 1)
    own = (1, N, 1) if dq_mode == 1 else shape
    state |= {
        "qstatistic": statistic,
        "qzeros_zeros": half(*shape),
        "qzeros_scales": half(*shape),
        "qscales_zeros": half(*own),
        "qscales_scales": half(*own),
        "scales": torch.ones(count, N, dtype=torch.half),
        "zeros": torch.zeros(count, N, dtype=torch.half),
    }
    layer = MPQLinearCuda(K, N, w_bit=w_bit, group_size=group_size, dq_group_size=dq, dq_mode=dq_mode)
    layer.load_state_dict(state)
    layer.prepare_params()

    def statistics(integers, name):
        block = torch.arange(N) // dq
        zeros, scales = (state[f"{name}_{what}"].float() for what in ("zeros", "scales"))
        columns = (zeros[0, :, 0], scales[0, :, 0]) if zeros.shape == (1, N, 1) else None
        if columns is None:
            columns = (zeros[:, block, 0], scales[:, block, 0])
        return (integers.view(count, N).float() - columns[0]) * columns[1]

    scales, zeros = statistics(statistic >> 4, "qscales"), statistics(statistic & 15, "qzeros")
    expected = codes * scales[groups] - zeros[groups]
    torch.testing.assert_close(unpack_qweight(layer.qweight).float(), expected, rtol=1e-3, atol=1e-3)
    x = torch.randn(2, 3, K)
    torch.testing.assert_close(layer.float()(x), x @ expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("filled", [True, False])
def test_large_groups_have_plain_statistics(filled):
    """1.5: in the original, groups of 256 and more have their statistics deleted and their scales
    never built from them."""
    in_features = 512
    codes = torch.randint(0, 16, (in_features, N))
    state = {
        "qweight": pack_words(codes, 4),
        "g_idx": (torch.arange(in_features) // 256).to(torch.int32),
        "bias": torch.zeros(N),
        "qstatistic": torch.full((2, 1, N), 0x21, dtype=torch.uint8),
        "scales": half(2, N) if filled else torch.ones(2, N),
        "zeros": half(2, N) if filled else torch.zeros(2, N),
    }
    state |= {f"q{what}_zeros": torch.zeros(2, 1, 1) for what in ("zeros", "scales")}
    state |= {f"q{what}_scales": torch.full((2, 1, 1), 0.5) for what in ("zeros", "scales")}
    layer = MPQLinearCuda(in_features, N, group_size=256, dtype=torch.float32)
    layer.load_state_dict(state)
    scales = state["scales"].float() if filled else torch.ones(2, N)
    zeros = state["zeros"].float() if filled else torch.full((2, N), 0.5)
    assert torch.equal(layer.scales, scales)
    assert torch.equal(layer.zeros, zeros)


@pytest.mark.parametrize("w_bit", [2, 4, 8])
@pytest.mark.parametrize("gba", [True, False])
def test_asymmetric_states(gba, w_bit):
    codes, groups, state = common(w_bit, 32)
    zeros = torch.randint(1, 2**w_bit + 1, (2, N))
    state["qzeros"] = gptq_style_zeros_packing(zeros, w_bit)
    assert state["qzeros"].shape == (2, N // 32 * w_bit)
    if gba:
        integers = torch.randint(0, 16, (2, N) if w_bit == 2 else (2, 1, N), dtype=torch.uint8)
        state |= {"qscales": integers, "qscales_zeros": half(2, 1, 1), "qscales_scales": half(2, 1, 1)}
        state |= {"scales": torch.ones(2, N).half(), "zeros": torch.zeros(2, N).half()}
        shifted = integers.view(2, N).float() - state["qscales_zeros"].float().view(2, 1)
        scales = shifted * state["qscales_scales"].float().view(2, 1)
    else:
        state["scales"] = half(2, N)
        scales = state["scales"].float()
    layer = MPQLinearCuda(K, N, w_bit=w_bit, group_size=32, use_gba_quant=gba, asym=True, dtype=torch.float32)
    layer.load_state_dict(state)
    expected = scales[groups] * (codes - zeros[groups])
    torch.testing.assert_close(gptq_style_unpacking(layer.qweight), expected, rtol=1e-4, atol=1e-4)
    if not gba:
        again = layer.to_gptq()
        for name in ("qweight", "qzeros", "g_idx"):
            assert torch.equal(again[name], state[name])


def test_states_load_strictly():
    _, _, state = common(4, 32)
    layer = MPQLinearCuda(K, N, group_size=32)
    with pytest.raises(RuntimeError, match="it lacks 'qstatistic'"):
        layer.load_state_dict(state)
    state |= {"qstatistic": torch.ones(2, 1, N, dtype=torch.uint8)}
    for name in ("qzeros_zeros", "qzeros_scales", "qscales_zeros", "qscales_scales"):
        state[name] = torch.ones(2, 1, 1)
    layer.load_state_dict(state)
    for change, message in (
        ({"qstatistic": torch.ones(3, 1, N)}, "2 groups of 32"),
        ({"qzeros_scales": torch.ones(2, 4, 1)}, "dq_group_size=32"),
        ({"qweight": state["qweight"][:, :8]}, "groups, out_features"),
        ({"bias": torch.ones(N)}, "disable_bias=False"),
        ({"extra": torch.ones(1)}, 'Unexpected key.*"extra"'),
    ):
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict({**state, **change})
    biased = MPQLinearCuda(K, N, group_size=32, disable_bias=False)
    biased.load_state_dict({**state, "bias": torch.ones(N)})
    assert biased.bias.tolist() == [1] * N


def test_whole_models(tmp_path):
    """1.10: packing a model that holds such a layer raises NotImplementedError in the original."""
    model = nn.Sequential(nn.Linear(8, K), MPQLinearCuda(K, N, group_size=16, dtype=torch.float32))
    assert prepare_bie_layers(model) == ["1"]
    assert pack_bie_layers(model) == ["1"]
    x = torch.randn(2, 8)
    for name in ("model.pth", "model.safetensors"):
        save_checkpoint(model, tmp_path / name)
        twin = nn.Sequential(nn.Linear(8, K), MPQLinearCuda(K, N, group_size=16, dtype=torch.float32))
        load_checkpoint(twin, tmp_path / name)
        assert torch.equal(twin(x), model(x))


def test_conversion_keeps_weight_and_bias():
    """D17: the original's converters build fresh random layers."""
    linear = nn.Linear(70, 9).bfloat16().eval()
    layer = MPQLinearCuda.from_linear(linear, w_bit=8, group_size=10)
    assert layer.dtype == torch.bfloat16
    assert torch.equal(layer.bias, linear.bias)
    torch.testing.assert_close(layer.dequantize(), linear.weight.float(), rtol=0, atol=1e-3)
    assert not layer.training


@pytest.mark.parametrize("cls", [MPQLinearCuda, MBWQLinearCuda])
@pytest.mark.parametrize("bias", [True, False])
def test_conversion_draws_nothing(nothing_drawn, cls, bias):
    """A bias that the linear layer does not have was random."""
    linear, x = nn.Linear(K, N, bias=bias), torch.randn(2, K)
    with nothing_drawn():
        layer = cls.from_linear(linear, group_size=32, disable_bias=False)
    assert torch.equal(layer.bias, linear.bias if bias else torch.zeros(N))
    torch.testing.assert_close(layer(x), x @ layer.dequantize().T + layer.bias)
    assert cls.from_linear(linear, group_size=32, device="meta").weight.is_meta


def test_weights_set_by_hand():
    layer = MPQLinearCuda(K, N, w_bit=4, group_size=32, dtype=torch.float32)
    layer.set_qweight_data(torch.full((8, N), 0xF0F0F0F0))
    layer.set_scales(torch.full((2, N), 0.5))
    layer.set_zeros(torch.ones(2, N))
    assert layer.dequantize()[0, :4].tolist() == [-1.0, 6.5, -1.0, 6.5]
    with pytest.raises(ValueError, match=r"\[8, 32\], got \[4, 32\]"):
        layer.set_qweight_data(torch.zeros(4, N, dtype=torch.int32))
    with pytest.raises(TypeError, match="integers"):
        layer.set_qweight_data(torch.zeros(8, N))
    with pytest.raises(ValueError, match="finite"):
        layer.set_scales(torch.full((2, N), math.nan))
    with pytest.raises(ValueError, match=r"zeros must have shape"):
        layer.set_zeros(torch.ones(N, 2))


# ---- several widths -------------------------------------------------------------------------

Q_GROUPS = torch.tensor([4, 0, 4, 4, 2, 8, 2, 10], dtype=torch.int16)  # 32 rows each: 4 + 4 + 2 + 2 words
WORDS = 12


def exl2_state():
    torch.manual_seed(0)
    codes = [torch.randint(0, 16, (64, N)), torch.randint(0, 4, (64, N))]
    order = torch.randperm(128)
    scales, zeros = half(4, N), half(4, N)
    group = torch.arange(128) // 32
    packed_rows = torch.cat(codes) * scales.float()[group] - zeros.float()[group]
    expected = torch.empty_like(packed_rows)
    expected[order] = packed_rows
    words = torch.cat([pack_words(codes[0], 4), pack_words(codes[1], 2)])
    parts = {"qweight": words, "scales": scales, "zeros": zeros}
    return {**parts, "q_perm": order.to(torch.int16), "q_groups": Q_GROUPS}, expected


def test_group_map():
    group_map = make_group_map(Q_GROUPS, WORDS)
    assert group_map.dtype == torch.int16
    assert group_map[::2].tolist() == [0] * 32 + [1] * 32 + [2] * 32 + [3] * 32
    assert group_map[1::2].tolist() == list(range(32, 0, -1)) * 4
    assert rows_of_groups(Q_GROUPS, WORDS) == [0, 0, 0, 64, 64, 128]
    for groups, message in (
        ([4, 0, 2], "pairs"),
        ([7, 0], "group 0 has 7 bits"),
        ([4, 4, 4, 4], "group 0 has 4 bits in word rows 4 .. 4"),
    ):
        with pytest.raises(ValueError, match=message):
            make_group_map(torch.tensor(groups), WORDS)
    with pytest.raises(ValueError, match="must not grow"):
        rows_of_groups(torch.tensor([2, 0, 4, 2]), 6)


@pytest.mark.parametrize("road", ["load_state_dict", "parts"])
def test_states_of_several_widths(road):
    """1.5: the original replaces tensors of other shapes without a word, or with a print."""
    state, expected = exl2_state()
    layer = MBWQLinearCuda(128, N, group_size=32, use_mbw=True, groups=4, rows_packed=WORDS)
    scale = torch.rand(1, 1, 128).half() + 0.5
    if road == "load_state_dict":
        layer.load_state_dict({**state, "channel_scale": scale, "bias": torch.zeros(N)})
    else:
        layer.channel_scale.copy_(scale)
        layer.set_qweight_data(state["qweight"].long() & 0xFFFFFFFF)
        layer.set_scales(state["scales"])
        layer.set_zeros(state["zeros"])
        layer.q_perm, layer.q_groups = state["q_perm"], state["q_groups"]
        with pytest.raises(RuntimeError, match="prepare_params"):
            layer(torch.ones(1, 128))
        assert torch.equal(layer.q_groups, Q_GROUPS)
        layer.prepare_params()
    torch.testing.assert_close(unpack_qweight(layer.qweight).float(), expected, rtol=2e-3, atol=2e-3)
    assert layer.rows == [0, 0, 0, 64, 64, 128, 0b1010]
    assert torch.equal(layer.q_groups, Q_GROUPS)
    assert torch.equal(layer.q_perm, state["q_perm"])
    decoded = MBWQLinearCuda.exl2fp_weight(
        layer.qweight, state["scales"], state["zeros"], layer.q_perm, layer.q_group_map, layer.rows
    )
    assert torch.equal(decoded, unpack_qweight(layer.qweight))
    x = torch.randn(3, 2, 128)
    torch.testing.assert_close(
        layer.float()(x), (x * scale.float().flatten()) @ expected, rtol=1e-3, atol=1e-2
    )
    twin = MBWQLinearCuda(128, N, group_size=32, dtype=torch.float32)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), layer(x))


def test_states_of_several_widths_load_strictly():
    state, _ = exl2_state()
    layer = MBWQLinearCuda(128, N, group_size=32)
    with pytest.raises(RuntimeError, match=r"Missing key.*channel_scale"):
        layer.load_state_dict(state)
    state["channel_scale"] = torch.ones(1, 1, 128)
    layer.load_state_dict(state)
    for change, message in (
        ({"scales": state["scales"][:3]}, "scales must have shape"),
        ({"q_groups": torch.tensor([2, 0, 4, 2])}, "input channels|must not grow"),
        ({"q_perm": torch.ones(128, dtype=torch.int16)}, "permutation"),
    ):
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict({**state, **change})
    with pytest.raises(RuntimeError, match="it lacks 'q_groups'"):
        layer.load_state_dict({key: value for key, value in state.items() if key != "q_groups"})


@pytest.mark.parametrize("w_bit", [2, 4])
def test_one_width_in_packed_order(w_bit):
    codes, order = torch.randint(0, 2**w_bit, (K, N)), torch.randperm(K)
    scales, zeros = half(2, N), half(2, N)
    layer = MBWQLinearCuda(K, N, w_bit=w_bit, group_size=32, use_mbw=False)
    layer.set_qweight_data(pack_words(codes, w_bit))
    layer.q_perm = order.to(torch.int16)
    layer.set_scales(scales)
    layer.set_zeros(zeros)
    layer.prepare_params()
    group = torch.arange(K) // 32
    packed_rows = codes * scales.float()[group] - zeros.float()[group]
    expected = torch.empty_like(packed_rows)
    expected[order] = packed_rows
    torch.testing.assert_close(unpack_qweight(layer.qweight).float(), expected, rtol=2e-3, atol=2e-3)
    words = layer.qweight.codes
    decoded = MBWQLinearCuda.q42fp_weight(words, scales, zeros, 32, w_bit, layer.q_perm)
    assert torch.equal(decoded, unpack_qweight(layer.qweight))


def test_conversion_to_several_widths():
    linear = nn.Linear(96, 16)
    layer = MBWQLinearCuda.from_linear(linear, bits=(8, 4), proportions=(0.3, 0.7), group_size=16)
    x = torch.randn(4, 96)
    assert layer.rows[:6] == [32, 32, 32, 96, 96, 96]
    assert ((layer(x) - linear(x)).norm() / linear(x).norm()).item() < 0.08
    twin = MBWQLinearCuda(96, 16, group_size=32, dtype=torch.float32, disable_bias=False)
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin(x), layer(x))


# ---- helpers --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "asym", "out of order", "several widths"])
def test_packing_a_float_weight_is_the_inverse_of_unpacking(kind):
    """1.5: the original cannot pack several widths, and fails on asym weights without g_idx."""
    torch.manual_seed(0)
    options = {
        "plain": {"w_bit": 4, "group_size": 16},
        "asym": {"w_bit": 3, "group_size": 16, "asym": True},
        "out of order": {"w_bit": 2, "q_perm": torch.randperm(64), "group_size": 16},
        "several widths": {
            "rows": [0, 0, 0, 32, 32, 64],
            "group_size": 16,
            "q_perm": torch.arange(63, -1, -1),
        },
    }[kind]
    parameter = MPQWeightParameter(torch.randn(64, 5), **options)
    before = parameter.codes.clone()
    weight = unpack_qweight(parameter)
    assert torch.equal(pack_fp_weight(weight, parameter), before)
    step = parameter.scales.max()
    moved = pack_fp_weight(weight + 0.3 * parameter.scales.min(), parameter)
    assert torch.equal(moved, before)
    extreme = pack_fp_weight(weight + 1000 * step, parameter)
    parameter.codes.copy_(extreme)
    assert torch.equal(parameter.integers().amax(1), parameter.integers().amin(1))
    with pytest.raises(ValueError, match=r"\[64, 5\], got \[5, 64\]"):
        pack_fp_weight(weight.t(), parameter)
    with pytest.raises(ValueError, match="NaN"):
        pack_fp_weight(weight * math.nan, parameter)
    with pytest.raises(TypeError, match="MPQWeightParameter, got Tensor"):
        unpack_qweight(weight)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MPQLinearCuda(K, N, w_bit=3), "w_bit must be one of 1, 2, 4, 8 for MPQLinearCuda, got 3"),
        (lambda: MPQLinearCuda(K, N, a_bit=8), "a_bit must be 16"),
        (lambda: MPQLinearCuda(K, N, dq_mode=3), "dq_mode"),
        (lambda: MPQLinearMlx(K, N, w_bit=1, group_size=32), "2, 4, 8"),
        (lambda: MPQLinearMlx(K, N, group_size=16), "32, 64 or 128"),
        (lambda: MBWQLinearCuda(K, N, w_bit=8, use_mbw=False), "2 or 4"),
        (lambda: MBWQLinearCuda(K, N, group_size=16, use_mbw=False), "at least 32"),
        (lambda: MBWQLinearCuda(33, N), "multiple of 32"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
