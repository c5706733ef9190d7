"""Pretrained image classifiers by name, loaded into the residual network of :mod:`impl.models.resnet`.

A classifier is a catalog name, or ``tiny-resnet-random``: small blocks of seeded noise for small grey
images, to exercise a workload without a download. Importing this module imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitbench.data.catalog import entry, names
from bitbench.data.fetch import ensure
from bitbench.errors import UserError
from bitbench.plugins import did_you_mean, join_names

if TYPE_CHECKING:
    from torch import Tensor

    from impl.models.resnet import ResNet

TINY = "tiny-resnet-random"
SEED = 20
KERNEL = 3


@dataclass(frozen=True)
class Layer:
    """A convolution, or the head, as the matrix product it is for each of its outputs."""

    columns: int
    rows: int
    pixels: int
    """Output positions of an image; 1 for the head."""


@dataclass(frozen=True)
class Network:
    """The shape of a network of :mod:`impl.models.resnet`. Torch-free."""

    config: Mapping[str, Any]
    """Arguments of :class:`impl.models.resnet.ResNet`."""
    size: int
    """Side of its images."""

    @property
    def stem(self) -> Layer:
        return Layer(KERNEL**2 * self.config["channels"], self.config["widths"][0], self.size**2)

    @property
    def head(self) -> Layer:
        return Layer(self.config["widths"][-1], self.config["classes"], 1)

    @property
    def blocks(self) -> list[Layer]:
        """The convolutions of the blocks, shortcuts included."""
        found = []
        before, size = self.config["widths"][0], self.size
        for stage, (count, width) in enumerate(
            zip(self.config["blocks"], self.config["widths"], strict=True)
        ):
            size = -(-size // 2) if stage else size
            for index in range(count):
                found += [Layer(KERNEL**2 * before, width, size**2), Layer(KERNEL**2 * width, width, size**2)]
                if before != width or (stage and not index):
                    found.append(Layer(before, width, size**2))
                before = width
        return found


NETWORKS: dict[str, Network] = {
    "cifar-resnet18": Network(
        {"blocks": (2, 2, 2, 2), "widths": (64, 128, 256, 512), "channels": 3, "classes": 10}, 32
    ),
    TINY: Network({"blocks": (1, 1), "widths": (8, 16), "channels": 1, "classes": 10}, 12),
}
"""By name. Where the weights of those in the catalog come from is said there."""


@dataclass(frozen=True)
class Classifier:
    """A classifier in float32, ready for inference. It reads images ``[n, channels, rows, columns]`` of
    numbers from 0 to 1, as they are, and gives logits ``[n, classes]``."""

    name: str
    identity: str
    """Changes with the weights: a sha256, or the recipe of the built-in one."""
    model: ResNet
    network: Network


def check_classifier(name: str) -> str:
    """``name`` if it names an image classifier. Torch-free, reads no weights.

    Raises:
        ValueError: unknown name.
    """
    if name in NETWORKS:
        return name
    raise ValueError(
        f"unknown classifier {name!r}; {did_you_mean(name, NETWORKS)} known: {join_names(NETWORKS)}"
    )


def load_classifier(name: str) -> Classifier:
    """Load an image classifier, fetching it first where the catalog knows it.

    Raises:
        UserError: unknown name, no network.
    """
    from impl.models.resnet import ResNet

    try:
        network = NETWORKS[check_classifier(name)]
    except ValueError as problem:
        raise UserError(str(problem)) from None
    model = ResNet(**network.config, seed=SEED)
    if name in names("classifier"):
        import torch

        file = entry(name).files[0]
        published = torch.load(ensure(name) / file.keep_as, map_location="cpu", weights_only=True)
        model.load_state_dict(renamed(published))
        identity = file.sha256
    else:
        recipe = f"{name}:{sorted(network.config.items())}:{SEED}"
        identity = hashlib.sha256(recipe.encode()).hexdigest()
    return Classifier(name, identity, model.requires_grad_(False).eval(), network)


def renamed(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a network of :mod:`impl.models.resnet` from one with the names that most code for
    CIFAR gives to the same layers: ``conv1``, ``bn1``, ``layer1.0.conv1``, ..., ``linear``."""
    outer = {"conv1": "stem", "bn1": "norm", "linear": "head"}
    state = {}
    for name, tensor in published.items():
        first, _, rest = name.partition(".")
        if first.startswith("layer"):
            stage = int(first.removeprefix("layer")) - 1
            state[f"stages.{stage}.{rest.replace('bn', 'norm')}"] = tensor
        else:
            state[f"{outer.get(first, first)}.{rest}"] = tensor
    return state
