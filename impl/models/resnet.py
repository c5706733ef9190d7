"""A residual network to classify images (He et al., arXiv 1512.03385): the whole network in one read.

The form for small images: a 3x3 first convolution at full size, no pooling before the blocks, then
stages of basic blocks, each stage but the first halving the size. With the sizes it has by default it
is the ResNet-18 of CIFAR-10. The convolutions of the blocks come from a factory, so that any layer can
stand in for ``nn.Conv2d``; the first convolution and the head, which most low-bit networks keep in
float, come from factories of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impl.models.llama import LinearFactory

ConvFactory = Callable[[int, int, int, int, int], nn.Module]
"""``factory(in_channels, out_channels, kernel_size, stride, padding)``: a two-dimensional convolution
without bias, which the normalisation behind it would undo."""

Activation = Callable[[Tensor], Tensor]


def float_conv(in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int) -> nn.Module:
    """The ordinary convolution: ``nn.Conv2d`` without bias."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)


class Block(nn.Module):
    """Two 3x3 convolutions, each normalised, and a shortcut around both; ``stride`` is the first one's."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, conv: ConvFactory, activation: Activation
    ) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels, 3, stride, 1)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels, 3, 1, 1)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()  # passes on what it gets
        if stride != 1 or in_channels != out_channels:
            self.shortcut.append(conv(in_channels, out_channels, 1, stride, 0))
            self.shortcut.append(nn.BatchNorm2d(out_channels))
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm1(self.conv1(x)))
        return self.activation(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """The network.

    Args:
        blocks: blocks of each stage.
        widths: channels of each stage, as many as there are stages.
        channels: of the images.
        classes: features of the output.
        conv: makes each convolution of the blocks, those of the shortcuts too.
        stem: makes the first convolution.
        linear: makes the head.
        activation: after each sum and between the convolutions of a block. Layers that see only the signs
            of their input need one with negative values, such as ``F.hardtanh``: after ReLU every sign
            is +1.
        seed: fixes every initial weight, as in :class:`impl.models.gpt.GPT`.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (2, 2, 2, 2),
        widths: Sequence[int] = (64, 128, 256, 512),
        channels: int = 3,
        classes: int = 10,
        *,
        conv: ConvFactory = float_conv,
        stem: ConvFactory = float_conv,
        linear: LinearFactory = nn.Linear,
        activation: Activation = F.relu,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(blocks) != len(widths) or min(blocks, default=0) < 1:
            raise ValueError(
                f"blocks={tuple(blocks)} and widths={tuple(widths)} must name at least one block and the "
                "channels of each stage"
            )
        self.stem = stem(channels, widths[0], 3, 1, 1)
        self.norm = nn.BatchNorm2d(widths[0])
        self.stages = nn.ModuleList()
        before = widths[0]
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            made = nn.Sequential()
            for index in range(count):
                stride = 2 if stage and not index else 1
                made.append(Block(before, width, stride, conv, activation))
                before = width
            self.stages.append(made)
        self.head = linear(before, classes)
        self.activation = activation
        self._initialise(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """Convolutions keep the deviation of gradients through ReLU (He et al., arXiv 1502.01852, eq. 14);
        the head is uniform within 1 / sqrt(in_features), as ``nn.Linear`` starts, its bias zero."""
        for name, parameter in self.named_parameters():
            if name == "head.bias":
                parameter.zero_()
            if not name.endswith("weight") or parameter.dim() not in (2, 4):
                continue  # scales and norms as their layer made them
            start = torch.empty(parameter.shape)
            if parameter.dim() == 4:
                outputs = parameter.shape[0] * parameter.shape[2] * parameter.shape[3]
                start.normal_(0, (2 / outputs) ** 0.5, generator=generator)
            else:
                bound = parameter.shape[1] ** -0.5
                start.uniform_(-bound, bound, generator=generator)
            parameter.copy_(start)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[batch, classes]`` of images ``x [batch, channels, height, width]``."""
        x = self.activation(self.norm(self.stem(x)))
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean(dim=(2, 3)))
