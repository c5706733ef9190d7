"""Image classifiers by name: the weights in their places, the shape known without torch. No network."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bitbench.data import classifiers
from bitbench.data.catalog import entry
from bitbench.data.classifiers import (
    NETWORKS,
    TINY,
    Layer,
    Network,
    check_classifier,
    load_classifier,
    renamed,
)
from bitbench.errors import UserError
from impl.models.resnet import ResNet

REAL = "cifar-resnet18"


class PublishedBlock(nn.Module):
    """A basic block under the names that code for CIFAR gives its layers, written out once more."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        parts = [nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)]
        self.shortcut = nn.Sequential(*(parts if before != width else []))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class Published(nn.Module):
    """The network of the weights in the catalog, narrower."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        for index, width in enumerate(widths):
            before, stride = (widths[index - 1], 2) if index else (width, 1)
            stage = nn.Sequential(PublishedBlock(before, width, stride), PublishedBlock(width, width, 1))
            self.add_module(f"layer{index + 1}", stage)
        self.linear = nn.Linear(widths[-1], 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        for index in range(4):
            x = self.get_submodule(f"layer{index + 1}")(x)
        return self.linear(nn.functional.avg_pool2d(x, 4).flatten(1))


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    """A narrow network in the place of the real one: its weights on disk as in the package."""
    torch.manual_seed(0)
    widths = (4, 6, 8, 10)
    model = Published(widths)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    monkeypatch.setattr(classifiers, "ensure", {REAL: tmp_path}.__getitem__)
    small = replace(NETWORKS[REAL], config={**NETWORKS[REAL].config, "widths": widths})
    monkeypatch.setitem(NETWORKS, REAL, small)
    return model.eval()


@torch.no_grad()
def test_the_weights_of_the_catalog_find_their_places(published: Published) -> None:
    found = load_classifier(REAL)
    assert found.identity == entry(REAL).files[0].sha256
    assert not found.model.training
    assert not any(parameter.requires_grad for parameter in found.model.parameters())
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(found.model(x), published(x))


def test_a_weight_that_is_missing_or_unknown_is_no_quiet_matter(published: Published) -> None:
    state = renamed(published.state_dict())
    model = ResNet(**NETWORKS[REAL].config)
    model.load_state_dict(state)
    for change in ({"stem.weight": None}, {"extra.weight": torch.zeros(1)}):
        changed = {key: value for key, value in {**state, **change}.items() if value is not None}
        with pytest.raises(RuntimeError, match=next(iter(change))):
            model.load_state_dict(changed)


def test_the_size_in_the_catalog_is_that_of_the_network() -> None:
    model = ResNet(**NETWORKS[REAL].config)
    assert sum(parameter.numel() for parameter in model.parameters()) == entry(REAL).parameters


@pytest.mark.parametrize(
    "network",
    [NETWORKS[TINY], Network({"blocks": (2, 1, 1), "widths": (4, 4, 6), "channels": 2, "classes": 3}, 9)],
)
def test_the_layers_are_known_without_the_network(network: Network) -> None:
    model = ResNet(**network.config).eval()
    met: dict[str, Layer] = {}

    def watch(name: str) -> None:
        def hook(module: nn.Module, _: object, output: torch.Tensor) -> None:
            weight = module.weight
            met[name] = Layer(weight[0].numel(), len(weight), output[0, 0].numel())

        model.get_submodule(name).register_forward_hook(hook)

    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            watch(name)
    model(torch.rand(1, network.config["channels"], network.size, network.size))
    assert met.pop("stem") == network.stem
    assert met.pop("head") == network.head
    assert sorted(map(repr, met.values())) == sorted(map(repr, network.blocks))


def test_the_built_in_one_is_the_same_each_time() -> None:
    one, same = load_classifier(TINY), load_classifier(TINY)
    assert one.identity == same.identity
    assert all(
        torch.equal(a, b) for a, b in zip(one.model.parameters(), same.model.parameters(), strict=True)
    )


def test_unknown_names_are_refused() -> None:
    assert check_classifier(REAL) == REAL
    with pytest.raises(ValueError, match="did you mean 'cifar-resnet18'"):
        check_classifier("cifar-resnet")
    with pytest.raises(UserError, match="unknown classifier 'mnist'"):
        load_classifier("mnist")


def test_names_and_shapes_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from bitbench.data.classifiers import NETWORKS, check_classifier\n"
        "print([len(NETWORKS[check_classifier(name)].blocks) for name in NETWORKS])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "[19, 5]\n", result.stderr
