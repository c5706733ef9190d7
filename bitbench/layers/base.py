"""What a layer kind is: a strict description, a torch-free cost model, and factories.

A suite names layers; each has a ``kind`` found in :mod:`bitbench.layers.registry`. The
description and the cost model never import torch, so that a suite can be checked and planned on
any machine. The factories do, inside worker processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bitbench.suite.convolutions import ConvShape


class LayerSpec(BaseModel):
    """A layer as a suite describes it. Each kind adds its own fields; unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    kind: str
    require_backend: str | None = None
    """What must serve this layer's calls, such as ``native``, ``torch`` or an instruction set: where
    something else does, the case counts as ``fallback``. null: whatever the kind's name promises."""
    timeout: float | None = Field(default=None, gt=0)
    """Seconds this layer may take for one stage of a case (build, warm-up, a turn of timing, one
    measurement) before it counts as hung; null means the workload entry's, or a multiple of the
    estimate."""


CONDITIONS = frozenset(LayerSpec.model_fields) - {"kind"}
"""Fields common to all kinds: they say what a measurement must hold to, not what the layer is, and
belong to no identity."""


@dataclass(frozen=True)
class LayerCost:
    """Bytes and operations of one layer, from its description alone."""

    codes_bytes: int
    scales_bytes: int
    format_bits: float
    """Bits per weight of the format before scales (1.6 for base3, 32 for float32)."""
    macs_per_token: int
    compute: str
    """Peak that bounds the arithmetic: ``fp32``, ``bf16``, ``int8`` or ``bit``."""

    @property
    def weight_bytes(self) -> int:
        return self.codes_bytes + self.scales_bytes


class LayerKind(ABC):
    """One kind of layer. Stateless; registered once under its name."""

    name: ClassVar[str]
    spec: ClassVar[type[LayerSpec]]
    backends: ClassVar[tuple[str, ...]] = ()
    """What may serve this kind and can be told by :meth:`dispatch`: the values ``require_backend``
    takes. Empty: the kind cannot tell."""
    draws_in_place: ClassVar[bool] = False
    """Whether :meth:`random` draws on torch's default device, so that a large layer for a GPU need not be
    drawn by the processor and copied."""

    @abstractmethod
    def cost(self, spec: Any, in_features: int, out_features: int) -> LayerCost:
        """Cost of a layer of this shape. Torch-free."""

    @abstractmethod
    def numerics(self, spec: Any) -> dict[str, Any]:
        """The part of ``spec`` that fixes the layer's outputs and gradients, and so any accuracy:
        packing formats that decode to the same weights share it."""

    def input_dtype(self, spec: Any) -> str:  # noqa: ARG002
        """Type of the activations to feed this layer when measured alone: ``float32``,
        ``bfloat16`` or ``float16``. Torch-free."""
        return "float32"

    def unsupported(self, spec: Any, device: str) -> str | None:  # noqa: ARG002
        """Why this layer cannot run on ``device`` ("cpu", "cuda"), or None. Torch-free."""
        return None

    @abstractmethod
    def random(self, spec: Any, in_features: int, out_features: int, *, bias: bool, seed: int) -> nn.Module:
        """A layer with random weights (random codes where packed), for measuring speed and bytes."""

    @abstractmethod
    def convert(self, spec: Any, linear: nn.Linear) -> nn.Module:
        """The layer that replaces a trained ``linear``: weights and bias kept, ready for inference."""

    def made(
        self, spec: Any, in_features: int, out_features: int, *, bias: bool, seed: int, device: str
    ) -> nn.Module:
        """:meth:`random` on ``device``. Which numbers are drawn depends on the device."""
        import torch

        with torch.device(device if self.draws_in_place else "cpu"):
            module = self.random(spec, in_features, out_features, bias=bias, seed=seed)
        return module.to(device)

    def copies(self, module: nn.Module, count: int) -> list[nn.Module]:
        """``count`` layers like ``module`` in memory of their own, to read weights from memory in turn."""
        import copy

        return [copy.deepcopy(module) for _ in range(count)]

    @abstractmethod
    def trainable(self, spec: Any, in_features: int, out_features: int, *, bias: bool) -> nn.Module:
        """A freshly initialised layer for training, quantisation-aware where the kind quantises."""

    def in_training(self, spec: Any) -> Any:
        """The description of what :meth:`trainable` makes of ``spec``, for :meth:`reference` and
        :meth:`tolerance`. Torch-free."""
        return spec

    @abstractmethod
    def reference(self, spec: Any, module: nn.Module, x: torch.Tensor, rows: slice) -> torch.Tensor:
        """Exact output of ``module`` for ``x [M, in]``, output features ``rows``, computed in
        float64 from the layer's own decoded weights and by other code than its kernel."""

    @abstractmethod
    def tolerance(self, spec: Any, in_features: int) -> float:
        """Largest acceptable error of the output, relative to the largest reference value."""

    def random_conv2d(self, spec: Any, shape: ConvShape, *, bias: bool, seed: int) -> nn.Module:  # noqa: ARG002 - there is none of any shape
        """A convolution with random weights, as :meth:`random`. Its cost is that of a layer with
        ``shape.columns`` inputs, for each output position.

        Raises :class:`bitbench.workloads.base.Unsupported` where the kind has none.
        """
        raise self._no_convolution()

    def convert_conv2d(self, spec: Any, conv: nn.Conv2d) -> nn.Module:  # noqa: ARG002 - as random_conv2d
        """The layer that replaces a trained ``conv``, as :meth:`convert`; raises as :meth:`random_conv2d`."""
        raise self._no_convolution()

    def _no_convolution(self) -> Exception:
        from bitbench.workloads.base import Unsupported

        return Unsupported(f"a {self.name} layer is a matrix product: there is no convolution of it")

    def conv2d_reference(self, spec: Any, module: nn.Module, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 - there is none of any input
        """Exact output of a convolution for ``x [batch, in, size, size]``, as :meth:`reference`."""
        raise TypeError(f"{type(self).__name__} has no convolution")

    def trainable_conv2d(self, spec: Any, shape: ConvShape, *, bias: bool) -> nn.Module:  # noqa: ARG002 - as above
        """A freshly initialised convolution for training, as :meth:`trainable`; the size of its images is
        left open.

        Raises :class:`bitbench.workloads.base.Unsupported` where the kind has none.
        """
        from bitbench.workloads.base import Unsupported

        raise Unsupported(f"a {self.name} layer has no convolution to train")

    def given(self, spec: Any, x: torch.Tensor) -> Any:  # noqa: ARG002 - most take it as it is
        """What a layer is called with where its input is ``x [M, in]``, or ``x [batch, in, size, size]`` of a
        convolution: ``x`` itself, or what the layers in front of it would hand on."""
        return x

    def shown(self, spec: Any, y: Any) -> torch.Tensor:  # noqa: ARG002 - as above
        """The output of a call as the floats that :meth:`reference` gives."""
        output: torch.Tensor = y
        return output

    def kernel(self, module: nn.Module) -> str:
        """Name of the kernel that served ``module``'s last call."""
        return type(module).__name__

    def dispatch(self, spec: Any, kernel: str) -> dict[str, str]:  # noqa: ARG002
        """What ``kernel`` (one name that :meth:`kernel` gave) says about who served the call, see
        :attr:`bitbench.store.schema.Record.dispatch`. Torch-free."""
        return {}

    def fallback(self, spec: Any, kernel: str) -> str | None:  # noqa: ARG002
        """Why ``kernel`` is not the one this layer's name promises, or None."""
        return None
