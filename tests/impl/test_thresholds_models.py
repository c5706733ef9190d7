"""Which layers of a model hand each other signs, which do not, and how those that do live on."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hook_kinds import KINDS, hook
from threshold_networks import assert_fused, layer_of, norm_of
from torch import nn

import impl
from impl import native
from impl.layers.activations import MagnitudeAwareSign, RSign, SteSign
from impl.layers.threshold import ThresholdLayer
from impl.thresholds import fuse_thresholds


def chain(dims=2, middle=None, taker_bits=1, generator=None, norm=True):
    generator = generator or torch.Generator().manual_seed(0)
    between = [norm_of(dims, 24, generator)] if norm else []
    between += [SteSign()] if middle is None else middle
    return nn.Sequential(
        layer_of(dims, "binary", 16, 24, 8, generator),
        *between,
        layer_of(dims, "binary", 24, 5, taker_bits, generator),
    ).eval()


def threshold_layers(model):
    return [name for name, module in model.named_modules() if isinstance(module, ThresholdLayer)]


@pytest.mark.skipif(not native.available(), reason=f"no native library: {native.why_not()}")
@pytest.mark.parametrize("dims", [0, 2])
def test_native_kernels_serve(dims):
    net = fuse_thresholds(chain(dims))
    net(torch.randn(2, 16, *(6,) * dims))
    family = "binary_conv" if dims else "binary_linear"
    assert net[0].layer.last_kernel.startswith(f"{family}/binary/int8/")
    assert net[3].layer.last_kernel.startswith(f"{family}/binary/sign/")
    assert not net[3].layer.last_kernel.endswith("/torch")
    handed = net[0](torch.randn(2, 16, *(6,) * dims))
    assert handed.bits.shape == (2, *(4,) * dims, 3)
    assert handed.scale.tolist() == [1.0, 1.0]


def test_after_fused_batch_norms():
    """Their Identity is passed over, and without a norm the interval is y >= 0."""
    net = impl.fuse_batch_norms(chain())
    x = torch.randn(2, 16, 6, 6)
    fused = assert_fused(net, x, layers=2)
    assert isinstance(fused[1], nn.Identity)
    assert bool((fused[0].thresholds.lower == 0).all())


class Branches(nn.Module):
    """One sign for two layers, and what else may become of it."""

    def __init__(self, uses="nothing"):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.uses = uses
        self.first = layer_of(2, "binary", 4, 16, 8, generator)
        self.norm = norm_of(2, 16, generator)
        self.sign = SteSign()
        self.left = layer_of(2, "binary", 16, 3, 1, generator)
        self.right = layer_of(2, "ternary", 16, 3, 1, generator)
        self.eval()

    def forward(self, x):
        y = self.first(x)
        z = self.norm(y)
        s = self.sign(z)
        out = self.left(s) + self.right(s)
        if self.uses == "sign":
            return out + s[:, :3, 1:-1, 1:-1]
        if self.uses == "result":
            return out + y[:, :3, 1:-1, 1:-1]
        if self.uses == "layer":
            return out + self.left(s)
        if self.uses == "parameter":
            return out * self.norm.weight.sum()
        return out


def test_several_layers_take_the_same_signs():
    assert_fused(Branches(), torch.randn(2, 4, 7, 7))


@pytest.mark.parametrize("uses", ["sign", "result", "layer", "parameter"])
def test_what_serves_otherwise_is_left_alone(uses):
    net, x = Branches(uses), torch.randn(2, 4, 7, 7)
    before = net(x)
    assert fuse_thresholds(net) is net
    assert threshold_layers(net) == []
    assert torch.equal(net(x), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["first", "norm", "sign", "left"])
def test_hooks_are_left_alone(name, kind):
    net = Branches()
    hook(net.get_submodule(name), kind)
    assert threshold_layers(fuse_thresholds(net)) == []


@pytest.mark.parametrize(
    "net",
    [
        chain(middle=[]),  # no sign: the scale of the activations, mean|x|, counts
        chain(taker_bits=8),
        chain(taker_bits=None),
        chain(middle=[nn.ReLU(), SteSign()]),
        chain(middle=[MagnitudeAwareSign()]),
        chain(middle=[SteSign(), nn.MaxPool2d(2)]),
        chain(middle=[RSign(24, dim=0)]),
        nn.Sequential(*chain()[:3], nn.Flatten(), layer_of(0, "binary", 24 * 16, 3, 1, torch.Generator())),
    ],
)
def test_other_chains_are_left_alone(net):
    assert threshold_layers(fuse_thresholds(copy.deepcopy(net))) == []


def test_a_layer_of_another_forward_is_left_alone():
    class Doubled(impl.BinaryConv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    net = chain()
    net[0].__class__ = Doubled
    assert threshold_layers(fuse_thresholds(net)) == []


def spoiled(change):
    net = chain()
    change(net)
    return net


def untraceable():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    return Branching()


@pytest.mark.parametrize(
    ("net", "error", "match"),
    [
        (lambda: spoiled(lambda net: net[1].train()), ValueError, "'0', '1', '2'.*training mode"),
        (lambda: spoiled(lambda net: net[0].unpack()), RuntimeError, "training form"),
        (lambda: spoiled(lambda net: net[3].unpack()), RuntimeError, "'3' is in training form"),
        (lambda: spoiled(lambda net: net[1].running_var.fill_(-1)), ValueError, "24 of 24.*batch norm"),
        (lambda: chain().to("meta"), ValueError, "meta device has no values"),
        (untraceable, ValueError, "torch.fx cannot trace"),
    ],
)
def test_what_does_not_fit_is_refused(net, error, match):
    model = net()
    with pytest.raises(error, match=match):
        fuse_thresholds(model)
    assert threshold_layers(model) == []


def test_another_dtype_is_refused():
    with pytest.raises(TypeError, match="float64"):
        fuse_thresholds(chain(), torch.float64)
    net = fuse_thresholds(chain())
    with pytest.raises(TypeError, match=r"fused for torch\.float32, got torch\.bfloat16"):
        net(torch.randn(1, 16, 6, 6, dtype=torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=r"got torch\.bfloat16"):
        net(torch.randn(1, 16, 6, 6))


def test_bad_inputs_of_a_threshold_layer():
    net = fuse_thresholds(chain())
    x = torch.randn(2, 16, 6, 6)
    with pytest.raises(TypeError, match=r"takes impl\.signs\.Signs, got Tensor"):
        net[3](x)
    handed = net[0](x)
    with pytest.raises(TypeError, match="takes a tensor, got Signs"):
        net[0](handed)
    with pytest.raises(ValueError, match="takes 24 channels, got signs of 23"):
        net[3](handed._replace(channels=23))
    with pytest.raises(ValueError, match="4 dimensions"):
        net[0](x[0])
    with pytest.raises(RuntimeError, match="no gradient"):
        net(x.clone().requires_grad_())
    with pytest.raises(ValueError, match=r"channels"):
        net(x[:, :3])
    with pytest.raises(ValueError, match="2 dimensions"):
        fuse_thresholds(chain(0))(torch.randn(2, 3, 16))
    with pytest.raises(ValueError, match="activation_bits=8"):
        ThresholdLayer(chain()[0], None, True)


def test_sequences_where_nothing_is_by_channel():
    net = chain(0, norm=False)
    assert_fused(net, torch.randn(2, 3, 16), layers=2)
    assert_fused(net, torch.randn(0, 16), layers=2)


# ---- life of a layer ------------------------------------------------------------------------


def test_copies_and_states(copied):
    net = fuse_thresholds(chain())
    x = torch.randn(2, 16, 6, 6)
    expected = net(x)
    assert torch.equal(copied(net)(x), expected)
    other = fuse_thresholds(chain(generator=torch.Generator().manual_seed(5)))
    assert not torch.equal(other(x), expected)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), expected)


def test_casts_leave_thresholds_alone():
    net = fuse_thresholds(chain())
    before = [part.clone() for part in net[0].thresholds]
    net.half()
    assert all(torch.equal(a, b) for a, b in zip(net[0].thresholds, before, strict=True))


def test_compiles():
    net = fuse_thresholds(chain())
    x = torch.randn(2, 16, 6, 6)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), net(x))
