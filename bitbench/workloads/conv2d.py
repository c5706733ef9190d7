"""One convolution alone: the time of a call on a batch of images, and its bytes."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from bitbench.layers import registry
from bitbench.layers.base import LayerSpec
from bitbench.measure.roofline import Work
from bitbench.store.schema import Check
from bitbench.suite.convolutions import Convolutions, ConvShape
from bitbench.workloads.base import (
    Context,
    Outcome,
    PointPlan,
    Session,
    Subject,
    WorkloadKind,
    WorkloadSpec,
)
from bitbench.workloads.layer_check import Comparison, Made, poison, sampled_images
from bitbench.workloads.ledger import byte_figures, peak_figure
from bitbench.workloads.linear import (
    BUDGET_SECONDS,
    BUILD_SECONDS_PER_WEIGHT,
    GPU_CALLS,
    GPU_OPERATIONS_PER_SECOND,
    GPU_SECONDS,
    LEDGER_SECONDS_PER_WEIGHT,
    timed_seconds,
)
from bitbench.workloads.pace import call_seconds

if TYPE_CHECKING:
    import torch

Images = Annotated[int, Field(ge=1, le=1 << 16)]
MemoryFormat = Literal["contiguous", "channels_last"]

CHECKED_IMAGES = 3
"""Images of a batch whose outputs are compared: first, last and one between. Scales are those of an
image, so that an image gives the same alone as in its batch."""
CHECK_OPERATIONS_PER_SECOND = 1e10
"""Of the reference, a convolution in float64."""


class Conv2dSpec(WorkloadSpec):
    """Convolutions of the given shapes; see :class:`Conv2dWorkload`."""

    shapes: Convolutions
    """A named set (``resnet-18``), or a list of ``{shape: [out, in], kernel: 3, stride: 1, size: 56}``."""
    batch: list[Images] = Field(default=[1], min_length=1)
    """Images of the input."""
    memory_format: list[MemoryFormat] = Field(default=["contiguous"], min_length=1)
    """How images lie in memory: ``contiguous`` is channel by channel, ``channels_last`` pixel by pixel.
    Float layers get their weight in the same order."""
    bias: bool = False
    memory: bool = True
    """Whether the bytes of each weight are measured too."""


class Conv2dWorkload(WorkloadKind):
    """Timed: one call on a batch of normally distributed images, the same for every layer, padded by
    zeros. Once: the memory ledger of the layer, with ratios against an fp32 ``nn.Conv2d``."""

    name = "conv2d"
    spec = Conv2dSpec
    axes = ("shapes", "batch", "memory_format", "memory")
    growing = ("shape", "kernel", "size", "batch")

    def points(self, spec: Conv2dSpec) -> list[PointPlan]:
        found = []
        for one in spec.shapes:
            for batch, memory_format in itertools.product(spec.batch, spec.memory_format):
                params = {**one.model_dump(), "batch": batch, "memory_format": memory_format}
                found.append(PointPlan(params, "timed", "launches"))
            if spec.memory:
                params = {"shape": one.shape, "kernel": one.kernel, "measure": "memory"}
                found.append(PointPlan(params, "once", "exact"))
        return found

    def quick(self, spec: Conv2dSpec) -> Conv2dSpec:
        cut = {"shapes": spec.shapes[:1], "batch": spec.batch[:1], "memory_format": spec.memory_format[:1]}
        return spec.model_copy(update=cut)

    def estimate(self, spec: Conv2dSpec, plan: PointPlan, layer: LayerSpec) -> float:  # noqa: ARG002 - a point says it all
        shape, batch = shape_of(plan.params), plan.params.get("batch", 1)
        weights = shape.out_channels * shape.columns
        if plan.phase == "once":
            return LEDGER_SECONDS_PER_WEIGHT * weights
        operations = 2.0 * weights * shape.pixels
        check = operations * min(batch, CHECKED_IMAGES) / CHECK_OPERATIONS_PER_SECOND
        call = call_seconds(
            layer, shape.columns, shape.out_channels, shape.pixels * batch, plan.params.get("threads")
        )
        return BUILD_SECONDS_PER_WEIGHT * weights + check + timed_seconds(call)

    def estimate_on_gpu(self, spec: Conv2dSpec, plan: PointPlan, layer: LayerSpec) -> float:  # noqa: ARG002 - as above
        shape, batch = shape_of(plan.params), plan.params.get("batch", 1)
        weights = shape.out_channels * shape.columns
        return gpu_seconds(plan, weights, 2.0 * weights * shape.pixels * batch)

    def open(self, spec: Conv2dSpec, params: dict[str, Any], context: Context) -> Conv2dSession:
        return Conv2dSession(spec, params, context)


def gpu_seconds(plan: PointPlan, weights: int, operations: float) -> float:
    """Seconds that a layer of so many weights takes in a launch on a large GPU, its call of so many
    operations."""
    if plan.phase == "once":
        return LEDGER_SECONDS_PER_WEIGHT * weights + 0.1
    call = operations / GPU_OPERATIONS_PER_SECOND
    return GPU_SECONDS + BUILD_SECONDS_PER_WEIGHT * weights + max(BUDGET_SECONDS, GPU_CALLS * call)


def shape_of(params: dict[str, Any]) -> ConvShape:
    """The convolution of a point; of one where only bytes count, on the smallest image."""
    names = {name: params[name] for name in ConvShape.model_fields if name in params}
    return ConvShape.model_validate({"size": params["kernel"], **names})


class Conv2dSession(Session):
    """One convolution. Layers are built with random weights (random codes where packed)."""

    def __init__(self, spec: Conv2dSpec, params: dict[str, Any], context: Context) -> None:
        self.bias = spec.bias
        self.params = params
        self.shape = shape_of(params)
        self.context = context

    def build(self, layer: str, spec: LayerSpec) -> Conv2dSubject:  # noqa: ARG002 - its name changes nothing
        made = self._make(spec)
        return Conv2dSubject(made, self.shape, self.input(made.dtype, self.params["batch"]))

    def measure(self, layer: str, spec: LayerSpec, replicate: int) -> Outcome:  # noqa: ARG002 - bytes are the same each time
        from torch import nn

        made, shape = self._make(spec), self.shape
        plain = nn.Conv2d(shape.in_channels, shape.out_channels, shape.kernel, bias=self.bias)
        metrics = byte_figures(made.module, plain, made.cost.format_bits)
        metrics |= peak_figure(
            made.module, made.kind.given(spec, self.input(made.dtype, 1)), self.context.device
        )
        return Outcome(metrics, kernel=made.kind.kernel(made.module))

    def input(self, dtype: torch.dtype, batch: int) -> torch.Tensor:
        """``[batch, in_channels, size, size]``, standard normal, drawn in float32 so that all types
        round the same numbers."""
        import torch

        generator = torch.Generator().manual_seed(self.context.seed)
        size = self.shape.size
        x = torch.randn(batch, self.shape.in_channels, size, size, generator=generator)
        return x.to(device=self.context.device, dtype=dtype, memory_format=self._memory_format())

    def _memory_format(self) -> torch.memory_format:
        import torch

        last = self.params.get("memory_format") == "channels_last"
        return torch.channels_last if last else torch.contiguous_format

    def _make(self, spec: LayerSpec) -> Made:
        kind, shape = registry.get(spec.kind), self.shape
        module = kind.random_conv2d(spec, shape, bias=self.bias, seed=self.context.seed)
        # torch's stubs know `memory_format` for tensors only.
        placed = module.to(device=self.context.device, memory_format=self._memory_format())  # type: ignore[call-overload]  # not in torch's stubs
        return Made(kind, spec, placed.eval(), rows=shape.out_channels, columns=shape.columns)


class Conv2dSubject(Subject):
    """A convolution called on one fixed batch; its weight stays in a cache."""

    replayable = True

    def __init__(self, made: Made, shape: ConvShape, x: torch.Tensor) -> None:
        self._made = made
        self._shape = shape
        self._x = x
        self._given = made.kind.given(made.spec, x)
        self._images = sampled_images(x.shape[0])
        self._expected: torch.Tensor | None = None

    def call(self) -> Any:
        return self._made.module(self._given)

    def check(self) -> Check:
        """Compare the outputs of sampled images with the reference; the rest must be finite.

        The memory that the output is likely to get is filled with NaN first, so that an element
        the kernel does not write shows.
        """
        import torch

        made = self._made
        served = {made.kind.kernel(made.module)}
        side = self._shape.output_size
        shape = (self._x.shape[0], made.rows, side, side)
        poison(self._x, shape)
        output = made.kind.shown(made.spec, self.call())
        self.kernel = ", ".join(sorted({*served, made.kind.kernel(made.module)} - {""}))
        if tuple(output.shape) != shape:
            raise RuntimeError(f"the output has shape {tuple(output.shape)}, not {shape}")
        if self._expected is None:
            # Once a launch: what the weight held before timing is what the output after it is held against.
            self._expected = made.kind.conv2d_reference(made.spec, made.module, self._x[self._images])
        comparison = Comparison()
        comparison.add(output[self._images], self._expected)
        return comparison.check(made.tolerance, sound=bool(torch.isfinite(output).all()))

    def fallback(self) -> str | None:
        return self._made.fallback(self.kernel)

    def work(self) -> Work:
        cost = self._made.cost
        return Work(
            weight_bytes=cost.weight_bytes,
            operations=2 * cost.macs_per_token * self._shape.pixels * self._x.shape[0],
            compute=cost.compute,
            from_memory=False,
            isa=self._made.isa,
        )
