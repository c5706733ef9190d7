"""The residual network has the shape its weights need, learns, and starts from the same numbers whatever
its layers are."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import impl
from impl.models.resnet import ResNet

SMALL = {"blocks": (1, 1), "widths": (8, 12), "channels": 1, "classes": 4}


def test_its_default_is_the_resnet_18_of_cifar() -> None:
    model = ResNet()
    # 11,159,232 in convolutions, 5,130 in the head, 9,600 in norms.
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    assert sum(p.numel() for p in model.parameters() if p.dim() == 4) == 11_159_232
    sizes = []
    for stage in model.stages:
        stage.register_forward_hook(lambda _, x, y: sizes.append(tuple(y.shape)))
    assert model.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert sizes == [(2, 64, 32, 32), (2, 128, 16, 16), (2, 256, 8, 8), (2, 512, 4, 4)]


@torch.no_grad()
def test_computes_what_its_equations_say() -> None:
    """Written out once more, with norms that do something, for a block with and one without a projection."""
    model = ResNet((2,), (6,), channels=6, seed=1)
    model.stages.append(ResNet((1, 1), (6, 8), channels=6, seed=2).stages[1])
    model.head = nn.Linear(8, 3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    model.eval()

    def norm(x: torch.Tensor, n: nn.Module) -> torch.Tensor:
        scale = n.weight / (n.running_var + n.eps).sqrt()
        return (x - n.running_mean[:, None, None]) * scale[:, None, None] + n.bias[:, None, None]

    images = torch.randn(3, 6, 9, 7)
    x = F.conv2d(images, model.stem.weight, padding=1)
    x = norm(x, model.norm).clamp(min=0)
    for block, stride in ((model.stages[0][0], 1), (model.stages[0][1], 1), (model.stages[1][0], 2)):
        y = norm(F.conv2d(x, block.conv1.weight, stride=stride, padding=1), block.norm1).clamp(min=0)
        y = norm(F.conv2d(y, block.conv2.weight, padding=1), block.norm2)
        if stride == 2:
            x = norm(F.conv2d(x, block.shortcut[0].weight, stride=2), block.shortcut[1])
        x = (x + y).clamp(min=0)
    assert x.shape[2:] == (5, 4)
    expected = x.flatten(2).mean(2) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


def test_learns_a_rule() -> None:
    """The class is the texture under noise: flat, rows, columns or a chessboard."""
    generator = torch.Generator().manual_seed(0)
    odd = torch.arange(8) % 2 * 2.0 - 1
    flat = torch.ones(8, 8)
    textures = torch.stack([flat, odd[:, None] * flat, odd * flat, odd[:, None] * odd])[:, None]

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(4, (count,), generator=generator)
        return textures[labels] + 2 * torch.randn(count, 1, 8, 8, generator=generator), labels

    model = ResNet(**SMALL, seed=0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        images, labels = draw(64)
        optimiser.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()
    images, labels = draw(512)
    assert (model.eval()(images).argmax(dim=1) == labels).float().mean() > 0.9


def test_equal_seeds_start_equal_and_unequal_ones_do_not() -> None:
    one, same, other = (ResNet(**SMALL, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[key], same[key]) for key in one)
    for key in ("stem.weight", "stages.1.0.conv2.weight", "head.weight"):
        assert not torch.equal(one[key], other[key])
    assert one["stages.1.0.conv1.weight"].std() == pytest.approx((2 / (9 * 12)) ** 0.5, rel=0.1)
    assert one["head.weight"].abs().max() <= 12**-0.5
    assert not one["head.bias"].any()


def test_other_layers_start_from_the_same_weights() -> None:
    """A layer that draws random numbers of its own shifts nobody else's."""

    class Noisy(nn.Conv2d):
        def __init__(self, *sides: int) -> None:
            super().__init__(*sides, bias=False)
            torch.randn(7)
            self.scales = nn.Parameter(torch.full((2, sides[1], 1), 5.0))

    torch.manual_seed(99)
    noisy, plain = ResNet(**SMALL, conv=Noisy, seed=3).state_dict(), ResNet(**SMALL, seed=3).state_dict()
    assert all(torch.equal(noisy[key], plain[key]) for key in plain)
    assert float(noisy["stages.0.0.conv1.scales"].min()) == 5.0


def test_each_layer_comes_from_its_factory() -> None:
    met: dict[str, list[tuple[int, ...]]] = {"conv": [], "stem": [], "linear": []}

    def noted(name: str, layer: type[nn.Module]) -> object:
        def factory(*sides: int) -> nn.Module:
            met[name].append(sides)
            return layer(*sides)

        return factory

    factories = {"conv": nn.Conv2d, "stem": nn.Conv2d, "linear": nn.Linear}
    ResNet((2, 1), (8, 12), 1, 4, **{name: noted(name, layer) for name, layer in factories.items()})
    assert met["stem"] == [(1, 8, 3, 1, 1)]
    assert met["linear"] == [(12, 4)]
    assert met["conv"] == [(8, 8, 3, 1, 1)] * 4 + [(8, 12, 3, 2, 1), (12, 12, 3, 1, 1), (8, 12, 1, 2, 0)]


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (impl.BinaryConv2d, {"activation_bits": 1}),
        (impl.TernaryConv2d, {"activation_bits": 8}),
        (impl.MultiTernaryConv2d, {"k": 2, "refit": False}),
    ],
)
def test_low_bit_convolutions_learn_and_pack_in_it(layer: type[nn.Module], options: dict[str, int]) -> None:
    """The packed network gives what the latent one gave, and a step of training changed every latent."""
    model = ResNet(
        **SMALL,
        conv=lambda *sides: layer(*sides, bias=False, **options),
        activation=F.hardtanh,
        seed=2,
    )
    latent = {name: p.detach().clone() for name, p in model.named_parameters() if p.dim() == 4}
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    F.cross_entropy(model(images), torch.arange(16) % 4).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert all(not torch.equal(dict(model.named_parameters())[name], old) for name, old in latent.items())
    model.eval()
    packed = copy.deepcopy(model)
    for module in packed.modules():
        if isinstance(module, layer):
            module.pack()
    with torch.no_grad():
        torch.testing.assert_close(packed(images), model(images), rtol=1e-3, atol=1e-3)


def test_signs_of_what_relu_leaves_say_nothing_and_hardtanh_keeps_them() -> None:
    signs: list[torch.Tensor] = []
    for activation in (F.relu, F.hardtanh):
        model = ResNet(**SMALL, activation=activation)
        model.stages[1][0].conv1.register_forward_pre_hook(lambda _, x: signs.append(x[0] >= 0))
        model(torch.randn(4, 1, 8, 8))
    assert signs[0].all()
    assert not signs[1].all()


@pytest.mark.parametrize(("blocks", "widths"), [((1, 1), (8,)), ((), ()), ((0, 1), (8, 8))])
def test_stages_that_do_not_fit_are_refused(blocks: tuple[int, ...], widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must name at least one block"):
        ResNet(blocks, widths)
