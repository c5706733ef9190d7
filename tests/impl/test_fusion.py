"""Batch norm folded into packed layers: the same integers, the same numbers, one module less."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hook_kinds import KINDS, hook
from torch import nn

import impl

NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
U = 2.0**-24


def norm_of(dims, channels, affine=True, seed=0, **options):
    """A batch norm in evaluation form, with statistics and, where affine, a gamma of every sign."""
    generator = torch.Generator().manual_seed(seed)
    norm = NORMS[dims](channels, affine=affine, **options).eval()
    norm.running_mean.copy_(torch.randn(channels, generator=generator) * 3)
    norm.running_var.copy_(torch.rand(channels, generator=generator) * 4 + 0.01)
    if affine:
        with torch.no_grad():
            norm.weight.copy_(torch.randn(channels, generator=generator))
            norm.weight[0] = 0.0
            norm.bias.copy_(torch.randn(channels, generator=generator))
    return norm


def layer_of(dims, kind, bias=True, seed=0, **options):
    """A packed layer with 11 outputs of each kind: binary, ternary or k-ternary, linear or convolution."""
    torch.manual_seed(seed)
    if dims == 0:
        classes = {
            "binary": impl.BinaryLinear,
            "ternary": impl.BitLinear,
            "k_ternary": impl.MultiTernaryLinear,
        }
        return classes[kind].from_linear(nn.Linear(48, 11, bias=bias), **options)
    classes = {"binary": impl.BinaryConv, "ternary": impl.TernaryConv, "k_ternary": impl.MultiTernaryConv}
    conv = CONVOLUTIONS[dims](6, 11, 3, padding=1, stride=2, bias=bias)
    return classes[kind].from_conv(conv, **options)


def input_of(dims, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (5, 48) if dims == 0 else (2, 6, *(7, 6, 5)[:dims])
    return torch.randn(shape, generator=generator)


def terms(layer, x):
    """Magnitude of each term scale * dot * activation scale of y, without the bias, summed."""
    weight = layer.packed_weight
    codes, scales = weight.unpack(), weight.scales.float().expand(-1, weight.rows, -1)
    size = weight.group_size or weight.cols
    total = 0.0
    for component in range(weight.components):
        for group, begin in enumerate(range(0, weight.cols, size)):
            part = torch.zeros_like(codes[component]) if scales.shape[2] > 1 else codes[component].clone()
            part[:, begin : begin + size] = codes[component][:, begin : begin + size]
            options = {"format": layer.format, "activation_bits": layer.activation_bits}
            scale = scales[component, :, group].reshape(1, -1, 1)
            if isinstance(layer, impl.QuantizedConv):
                options |= {"stride": layer.stride, "padding": layer.padding}
                options["padding_value"] = layer.padding_value
                single = single_class(layer).from_codes(layer._from_matrix(part), scale, **options)
            else:
                single = single_class(layer).from_codes(part, scale, **options)
            total = total + single(x).double().abs()
    return total


def single_class(layer):
    """The class of one component of ``layer``."""
    if layer.components == 1:
        return type(layer)
    return getattr(impl, type(layer).__name__.replace("MultiTernaryLinear", "BitLinear").replace("Multi", ""))


def along_channels(values, y):
    return values.double().reshape(1, -1, *[1] * (y.dim() - 2))


def bound(layer, norm, x):
    """What rounding may put between the fused layer and the two modules, as the docstring says."""
    magnitude = terms(layer, x)
    factor = torch.rsqrt(norm.running_var.double() + norm.eps)
    beta = torch.zeros(()) if norm.bias is None else norm.bias.detach()
    if norm.weight is not None:
        factor = factor * norm.weight.detach().double()
    for constant in (layer.bias, norm.running_mean):
        if constant is not None:
            magnitude = magnitude + along_channels(constant.detach(), magnitude).abs()
    magnitude = magnitude * along_channels(factor, magnitude).abs()
    if norm.bias is not None:
        magnitude = magnitude + along_channels(beta, magnitude).abs()
    count = layer.packed_weight.scales.shape[0] * layer.packed_weight.scales.shape[2]
    return 2 * (count + 10) * U * magnitude * 1.001  # terms() itself rounds


CASES = [
    *[(dims, kind, bits, {}) for dims in range(4) for kind in ("ternary", "k_ternary") for bits in (8, 16)],
    *[(dims, "binary", bits, {}) for dims in range(4) for bits in (1, 8, 16)],
    (2, "binary", 1, {"scale": "tensor", "padding_value": -1}),
    (2, "ternary", 8, {"scale": "tensor", "format": "two_bit"}),
    (0, "binary", 8, {"scale": "tensor"}),
    (0, "ternary", 8, {"group_size": 16}),
    (0, "k_ternary", 8, {"group_size": 24, "k": 3}),
    (2, "k_ternary", 8, {"k": 3, "scale_dtype": torch.float16}),
]


@pytest.mark.parametrize(("dims", "kind", "bits", "options"), CASES)
@pytest.mark.parametrize(("bias", "affine"), [(True, True), (False, True), (True, False), (False, False)])
def test_equals_the_layer_and_its_norm(dims, kind, bits, options, bias, affine):
    layer = layer_of(dims, kind, bias, activation_bits=bits, **options)
    norm = norm_of(dims, 11, affine)
    x = input_of(dims)
    fused = impl.fuse_batch_norm(layer, norm)
    with torch.no_grad():
        difference = (fused(x).double() - norm(layer(x)).double()).abs()
        assert bool((difference <= bound(layer, norm, x)).all())
        assert float(difference.max()) < 1e-4
    assert torch.equal(fused.codes, layer.codes)  # the integers underneath
    assert fused.last_kernel == layer.last_kernel
    assert fused.activation_bits == bits
    assert fused.scales.dtype == torch.float32
    assert fused.scales.shape[1] == 11
    assert fused.scale == (None if "group_size" in options and kind == "ternary" else "row")
    assert not fused.training


@pytest.mark.parametrize("dims", range(4))
@pytest.mark.parametrize("kind", ["binary", "ternary", "k_ternary"])
def test_float_activations(dims, kind):
    layer, norm, x = layer_of(dims, kind), norm_of(dims, 11), input_of(dims)
    torch.testing.assert_close(impl.fuse_batch_norm(layer, norm)(x), norm(layer(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1e-44])
def test_a_gamma_that_vanished_gives_its_beta(gamma):
    layer, norm = layer_of(2, "binary", activation_bits=1), norm_of(2, 11)
    norm.weight.data[0] = gamma
    y = impl.fuse_batch_norm(layer, norm)(input_of(2))
    assert torch.equal(y[:, 0], norm.bias[0].detach().expand_as(y[:, 0]))


def test_changes_neither_argument():
    layer, norm = layer_of(2, "ternary", activation_bits=8).train(), norm_of(2, 11)
    before = [copy.deepcopy(module.state_dict()) for module in (layer, norm)]
    fused = impl.fuse_batch_norm(layer, norm)
    for module, state in zip((layer, norm), before, strict=True):
        assert all(torch.equal(module.state_dict()[name], value) for name, value in state.items())
    assert layer.training
    assert fused.codes.data_ptr() != layer.codes.data_ptr()


def test_the_fused_layer_is_a_layer():
    """Its state loads strictly into a fresh one; it unpacks, moves and copies."""
    layer, norm, x = layer_of(2, "ternary", False, activation_bits=8), norm_of(2, 11), input_of(2)
    fused = impl.fuse_batch_norm(layer, norm)
    fresh = impl.TernaryConv2d(6, 11, 3, padding=1, stride=2, activation_bits=8)
    fresh.load_state_dict(fused.state_dict())
    assert torch.equal(fresh(x), fused(x))
    assert torch.equal(copy.deepcopy(fused)(x), fused(x))
    latent = copy.deepcopy(fused).unpack()
    torch.testing.assert_close(latent.weight, fused.dequantize(), rtol=0, atol=0)
    meta = impl.fuse_batch_norm(copy.deepcopy(layer).to("meta"), copy.deepcopy(norm).to("meta"))
    assert meta.scales.shape == fused.scales.shape
    assert meta.scales.is_meta


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_keep_their_bias_dtype(dtype):
    layer = layer_of(2, "ternary", False, activation_bits=8).to(dtype)
    norm, x = norm_of(2, 11), input_of(2).to(dtype)
    fused = impl.fuse_batch_norm(layer, norm)
    assert fused.bias.dtype == dtype
    wide = impl.fuse_batch_norm(copy.deepcopy(layer).float(), norm)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(fused(x), wide(x.float()).to(dtype), rtol=2 * eps, atol=4 * eps)


def test_the_bias_goes_on_training_where_one_did():
    layer, norm = layer_of(0, "binary", activation_bits=8), norm_of(0, 11)
    assert impl.fuse_batch_norm(layer, norm).bias.requires_grad
    for parameter in (*layer.parameters(), *norm.parameters()):
        parameter.requires_grad_(False)
    assert not impl.fuse_batch_norm(layer, norm).bias.requires_grad


def test_synchronised_norms():
    layer, x = layer_of(3, "ternary", activation_bits=8), input_of(3)
    norm = norm_of(3, 11)
    other = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(norm)).eval()
    assert torch.equal(impl.fuse_batch_norm(layer, other)(x), impl.fuse_batch_norm(layer, norm)(x))


def test_a_nan_stays_in_its_sample():
    layer, norm, x = layer_of(2, "binary", activation_bits=1), norm_of(2, 11), input_of(2)
    x[1, 0, 0, 0] = math.nan
    y = impl.fuse_batch_norm(layer, norm)(x)
    assert bool(y[1].isnan().all())
    assert not bool(y[0].isnan().any())


def broken_norm(**tensors):
    norm = norm_of(2, 11)
    for name, value in tensors.items():
        getattr(norm, name).data[3] = value
    return norm


@pytest.mark.parametrize(
    ("layer", "norm", "error", "match"),
    [
        (lambda: nn.Conv2d(3, 11, 3), lambda: norm_of(2, 11), TypeError, "got Conv2d"),
        (lambda: impl.NBitLinear(4, 11), lambda: norm_of(0, 11), TypeError, "got NBitLinear"),
        (lambda: layer_of(2, "binary"), lambda: norm_of(1, 11), TypeError, "BatchNorm2d.*got BatchNorm1d"),
        (lambda: layer_of(1, "binary"), lambda: norm_of(2, 11), TypeError, "BatchNorm1d.*got BatchNorm2d"),
        (lambda: layer_of(0, "ternary"), lambda: nn.LayerNorm(11), TypeError, "got LayerNorm"),
        (lambda: layer_of(2, "binary"), lambda: norm_of(2, 12), ValueError, "12 channels.*gives 11"),
        (lambda: layer_of(2, "binary"), lambda: norm_of(2, 11).train(), ValueError, "training mode.*eval"),
        (
            lambda: layer_of(2, "binary"),
            lambda: nn.BatchNorm2d(11, track_running_stats=False).eval(),
            ValueError,
            "no running statistics",
        ),
        (lambda: layer_of(2, "binary", pack=False), lambda: norm_of(2, 11), RuntimeError, r"pack\(\) it"),
        (lambda: layer_of(2, "binary"), lambda: norm_of(2, 11).to("meta"), ValueError, "on meta.*on cpu"),
        (lambda: layer_of(2, "binary"), lambda: broken_norm(running_var=-1.0), ValueError, "1 of 11.*scale"),
        (lambda: layer_of(2, "binary"), lambda: broken_norm(running_mean=math.inf), ValueError, "fused bias"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(layer, norm, error, match):
    with pytest.raises(error, match=match):
        impl.fuse_batch_norm(layer(), norm())


# ---- whole models ---------------------------------------------------------------------------


class Residual(nn.Module):
    """conv - norm - conv - norm beside a projection, as in a residual network."""

    def __init__(self, channels=6):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = norm_of(2, channels, seed=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = norm_of(2, channels, seed=2)
        self.project = nn.Sequential(nn.Conv2d(channels, channels, 1), norm_of(2, channels, seed=3))

    def forward(self, x):
        y = torch.relu(self.norm1(self.first(x)))
        return torch.relu(self.norm2(self.second(y)) + self.project(x))


def packed(model, **options):
    options = {"activation_bits": 8, **options}
    impl.convert_convolutions(model, **options)
    return impl.convert_linear_to_bitlinear(model, **options).eval()


def norms(model):
    return [
        name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d)
    ]


def test_every_pair_of_a_network():
    torch.manual_seed(0)
    model = packed(
        nn.Sequential(Residual(), Residual(), nn.Flatten(), nn.Linear(6 * 25, 7), norm_of(0, 7), nn.ReLU())
    )
    x = torch.randn(3, 6, 5, 5)
    with torch.no_grad():
        before = model(x)
        assert impl.fuse_batch_norms(model) is model
        # A rounding can move one activation by one step of its 8 bits.
        torch.testing.assert_close(model(x), before, rtol=0.02, atol=0.02)
    assert norms(model) == []
    assert sum(isinstance(module, nn.Identity) for module in model.modules()) == 7
    assert impl.fuse_batch_norms(model) is model  # nothing left to do


class Twice(nn.Module):
    """``uses``: how the output of the layer, the layer or the norm serve a second time."""

    def __init__(self, uses):
        super().__init__()
        self.uses = uses
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = norm_of(2, 6)

    def forward(self, x):
        y = self.conv(x)
        z = self.norm(y)
        if self.uses == "output":
            return z + y
        if self.uses == "layer":
            return self.conv(z)
        if self.uses == "norm":
            return self.norm(z)
        if self.uses == "parameter":
            return z * self.norm.weight.sum()
        return z


@pytest.mark.parametrize("uses", ["output", "layer", "norm", "parameter"])
def test_what_serves_twice_is_left_alone(uses):
    model = packed(Twice(uses))
    x = torch.randn(2, 6, 5, 5)
    before = model(x)
    impl.fuse_batch_norms(model)
    assert norms(model) == ["norm"]
    assert torch.equal(model(x), before)
    assert norms(impl.fuse_batch_norms(packed(Twice("nothing")))) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["conv", "norm"])
def test_hooks_are_left_alone(name, kind):
    model = packed(Twice("nothing"))
    hook(model.get_submodule(name), kind)
    assert norms(impl.fuse_batch_norms(model)) == ["norm"]


def test_a_norm_of_sequences_is_left_alone():
    """After a linear layer [batch, length, features] batch norm takes the length for channels."""
    model = packed(nn.Sequential(nn.Linear(8, 6), norm_of(1, 9)))
    before = model(torch.ones(2, 9, 8))
    impl.fuse_batch_norms(model)
    assert torch.equal(model(torch.ones(2, 9, 8)), before)


def test_float_layers_keep_their_norms():
    model = Residual().eval()
    impl.fuse_batch_norms(model)
    assert len(norms(model)) == 3


def test_one_module_under_two_names_is_replaced_under_both():
    model = packed(Twice("nothing"))
    model.alias = model.conv
    impl.fuse_batch_norms(model)
    assert model.alias is model.conv
    assert norms(model) == []


def test_errors_leave_the_model_unchanged():
    model = packed(Residual())
    model.norm2.train()
    kept = dict(model.named_modules())
    with pytest.raises(ValueError, match=r"'second' and 'norm2': .*training mode"):
        impl.fuse_batch_norms(model)
    assert all(dict(model.named_modules())[name] is module for name, module in kept.items())
    with pytest.raises(RuntimeError, match=r"'conv' and 'norm': .*pack\(\)"):
        impl.fuse_batch_norms(packed(Twice("nothing"), pack=False))


def test_a_model_that_cannot_be_traced():
    class Choosy(Twice):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    with pytest.raises(ValueError, match=r"cannot trace Choosy .*impl\.fuse_batch_norm\(layer, norm\)"):
        impl.fuse_batch_norms(packed(Choosy("nothing")))
