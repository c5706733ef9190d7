"""A multilayer perceptron to classify vectors: the whole network in one read.

Every matrix comes from a factory, the last one included, so that quantisation-aware layers can be
trained in place of ``nn.Linear``. Each hidden layer is followed by ReLU and then batch
normalisation: in this order the next layer meets centred values, of which one bit says something,
where ReLU alone would leave it no negative one. The normalisation after the last layer gives the
logits a scale that layers of fixed scale cannot learn.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impl.models.llama import LinearFactory, float_linear


class MLP(nn.Module):
    """The network.

    Args:
        sizes: features of the input, of each hidden layer, and the number of classes: at least two.
        linear: makes each matrix; biases would be undone by the normalisation.
        seed: fixes every initial weight, as in :class:`impl.models.gpt.GPT`.
    """

    def __init__(self, sizes: Sequence[int], linear: LinearFactory = float_linear, *, seed: int = 0) -> None:
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(f"sizes must name the features of the input and of the output, got {sizes}")
        self.layers = nn.ModuleList(linear(a, b) for a, b in itertools.pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(size) for size in sizes[1:])
        self._initialise(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        """Uniform within 1 / sqrt(in_features), as ``nn.Linear`` starts."""
        for name, parameter in self.layers.named_parameters():
            if parameter.dim() != 2 or not name.endswith("weight"):
                continue  # scales as their layer made them
            bound = parameter.shape[1] ** -0.5
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[batch, classes]`` of ``x [batch, features]``; in training more than one row."""
        last = len(self.layers) - 1
        for index, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            x = layer(x)
            x = norm(F.relu(x) if index < last else x)
        return x
