"""One block of a residual network: the time of a call on a batch of images, and its bytes.

The block is that of He et al. (2016) as a network has it for inference: two convolutions, a shortcut, the
batch norms of all of them folded into their weights or scales. Convolutions of the low-bit kinds that see
only signs (``activation_bits: 1``) are handed signs: ``sign`` in place of ReLU between the two. Of a layer
with ``signs: true`` a sign is one bit, written by the first convolution as it is and read by the second.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from pydantic import Field

from bitbench.layers import registry
from bitbench.layers.base import LayerKind, LayerSpec
from bitbench.measure.roofline import Work
from bitbench.store.schema import Check
from bitbench.suite.convolutions import Blocks, BlockShape
from bitbench.workloads.base import (
    Context,
    Outcome,
    PointPlan,
    Session,
    Subject,
    WorkloadKind,
    WorkloadSpec,
)
from bitbench.workloads.conv2d import (
    CHECK_OPERATIONS_PER_SECOND,
    CHECKED_IMAGES,
    Images,
    MemoryFormat,
    gpu_seconds,
)
from bitbench.workloads.layer_check import fallback_of, poison
from bitbench.workloads.ledger import byte_figures, peak_figure
from bitbench.workloads.linear import BUILD_SECONDS_PER_WEIGHT, LEDGER_SECONDS_PER_WEIGHT, timed_seconds
from bitbench.workloads.pace import call_seconds

if TYPE_CHECKING:
    import torch

    from bitbench.workloads.residual import TimedBlock

ELEMENTWISE_SECONDS = 1e-9
"""Of norms, activations and the sum, for each number of the output: to plan with."""


class BlockSpec(WorkloadSpec):
    """Residual blocks of the given shapes; see :class:`BlockWorkload`."""

    shapes: Blocks
    """A named set (``resnet-18``), or a list of ``{shape: [out, in], stride: 1, size: 56}``."""
    batch: list[Images] = Field(default=[1], min_length=1)
    """Images of the input."""
    memory_format: list[MemoryFormat] = Field(default=["contiguous"], min_length=1)
    """How images lie in memory: ``contiguous`` is channel by channel, ``channels_last`` pixel by pixel.
    Float layers get their weight in the same order."""
    memory: bool = True
    """Whether the bytes of each block are measured too."""


class BlockWorkload(WorkloadKind):
    """Timed: one call on a batch of normally distributed images, the same for every layer. Once: the memory
    ledger of the block, with ratios against the same of fp32 ``nn.Conv2d``."""

    name = "block"
    spec = BlockSpec
    axes = ("shapes", "batch", "memory_format", "memory")
    growing = ("shape", "size", "batch")

    def points(self, spec: BlockSpec) -> list[PointPlan]:
        found = []
        for one in spec.shapes:
            for batch, memory_format in itertools.product(spec.batch, spec.memory_format):
                params = {**one.model_dump(), "batch": batch, "memory_format": memory_format}
                found.append(PointPlan(params, "timed", "launches"))
            if spec.memory:
                params = {"shape": one.shape, "stride": one.stride, "measure": "memory"}
                found.append(PointPlan(params, "once", "exact"))
        return found

    def quick(self, spec: BlockSpec) -> BlockSpec:
        cut = {"shapes": spec.shapes[:1], "batch": spec.batch[:1], "memory_format": spec.memory_format[:1]}
        return spec.model_copy(update=cut)

    def estimate(self, spec: BlockSpec, plan: PointPlan, layer: LayerSpec) -> float:  # noqa: ARG002 - a point says it all
        convolutions, batch = block_of(plan.params).convolutions, plan.params.get("batch", 1)
        weights = sum(conv.out_channels * conv.columns for conv in convolutions)
        if plan.phase == "once":
            return LEDGER_SECONDS_PER_WEIGHT * weights
        threads = plan.params.get("threads")
        call = sum(
            call_seconds(layer, conv.columns, conv.out_channels, conv.pixels * batch, threads)
            for conv in convolutions
        )
        outputs = batch * sum(conv.out_channels * conv.pixels for conv in convolutions)
        operations = sum(2.0 * conv.out_channels * conv.columns * conv.pixels for conv in convolutions)
        check = operations * min(batch, CHECKED_IMAGES) / CHECK_OPERATIONS_PER_SECOND
        return (
            BUILD_SECONDS_PER_WEIGHT * weights + check + timed_seconds(call + ELEMENTWISE_SECONDS * outputs)
        )

    def estimate_on_gpu(self, spec: BlockSpec, plan: PointPlan, layer: LayerSpec) -> float:  # noqa: ARG002 - as above
        convolutions, batch = block_of(plan.params).convolutions, plan.params.get("batch", 1)
        weights = sum(conv.out_channels * conv.columns for conv in convolutions)
        operations = sum(2.0 * conv.out_channels * conv.columns * conv.pixels for conv in convolutions)
        return gpu_seconds(plan, weights, operations * batch)

    def open(self, spec: BlockSpec, params: dict[str, Any], context: Context) -> BlockSession:  # noqa: ARG002 - a point says it all
        return BlockSession(params, context)


def block_of(params: dict[str, Any]) -> BlockShape:
    """The block of a point; of one where only bytes count, on the smallest image."""
    names = {name: params[name] for name in BlockShape.model_fields if name in params}
    return BlockShape.model_validate({"size": 1, **names})


def block_work(kind: LayerKind, spec: LayerSpec, block: BlockShape, batch: int) -> Work:
    """What a call on ``batch`` images must do at least: the work of its convolutions. Torch-free."""
    costs = [(kind.cost(spec, conv.columns, conv.out_channels), conv) for conv in block.convolutions]
    return Work(
        weight_bytes=sum(cost.weight_bytes for cost, _ in costs),
        operations=sum(2 * cost.macs_per_token * conv.pixels * batch for cost, conv in costs),
        compute=costs[0][0].compute,
        from_memory=False,
        isa=getattr(spec, "isa", None) or "",
    )


class BlockSession(Session):
    """One block. Its convolutions are built with random weights (random codes where packed)."""

    def __init__(self, params: dict[str, Any], context: Context) -> None:
        self.params = params
        self.shape = block_of(params)
        self.context = context

    def build(self, layer: str, spec: LayerSpec) -> BlockSubject:  # noqa: ARG002 - its name changes nothing
        kind = registry.get(spec.kind)
        dtype = kind.input_dtype(spec)
        return BlockSubject(kind, spec, self._make(kind, spec), self.shape, self.input(dtype))

    def measure(self, layer: str, spec: LayerSpec, replicate: int) -> Outcome:  # noqa: ARG002 - bytes are the same each time
        from bitbench.workloads.residual import served, timed_form

        kind, plain = registry.get(spec.kind), registry.get("linear")
        block = timed_form(spec, self._make(kind, spec))
        fp32 = self._make(plain, plain.spec.model_validate({"kind": "linear"}))
        format_bits = kind.cost(spec, self.shape.shape[1], self.shape.shape[0]).format_bits
        metrics = byte_figures(block, fp32, format_bits)
        metrics |= peak_figure(block, self.input(kind.input_dtype(spec)), self.context.device)
        return Outcome(metrics, kernel=", ".join(sorted(served(kind, block))))

    def input(self, dtype: str) -> torch.Tensor:
        """``[batch, in_channels, size, size]``, standard normal, drawn in float32 so that all types
        round the same numbers."""
        import torch

        generator = torch.Generator().manual_seed(self.context.seed)
        size = (self.params.get("batch", 1), self.shape.shape[1], self.shape.size, self.shape.size)
        x = torch.randn(size, generator=generator)
        return x.to(
            device=self.context.device, dtype=getattr(torch, dtype), memory_format=self._memory_format()
        )

    def _memory_format(self) -> torch.memory_format:
        import torch

        last = self.params.get("memory_format") == "channels_last"
        return torch.channels_last if last else torch.contiguous_format

    def _make(self, kind: LayerKind, spec: LayerSpec) -> TimedBlock:
        from bitbench.workloads.residual import folded_block

        block = folded_block(kind, spec, self.shape, seed=self.context.seed)
        # torch's stubs know `memory_format` for tensors only.
        placed: TimedBlock = block.to(device=self.context.device, memory_format=self._memory_format())  # type: ignore[call-overload]  # not in torch's stubs
        return placed.eval()


class BlockSubject(Subject):
    """A block called on one fixed batch; its weights stay in a cache."""

    replayable = True

    def __init__(
        self, kind: LayerKind, spec: LayerSpec, block: TimedBlock, shape: BlockShape, x: torch.Tensor
    ) -> None:
        from bitbench.workloads.residual import timed_form

        self._kind = kind
        self._spec = spec
        self._shape = shape
        self._x = x
        self._plain = block
        self._block = timed_form(spec, block)

    def call(self) -> torch.Tensor:
        output: torch.Tensor = self._block(self._x)
        return output

    def check(self) -> Check:
        """See :func:`bitbench.workloads.residual.check_block`. The memory that the output is likely to get
        is filled with NaN first, so that an element that is not written shows."""
        from bitbench.workloads.residual import check_block, served

        kernels = served(self._kind, self._block)
        side = self._shape.output_size
        poison(self._x, (self._x.shape[0], self._shape.shape[0], side, side))
        output = self.call()
        self.kernel = ", ".join(sorted(kernels | served(self._kind, self._block)))
        return check_block(self._kind, self._spec, self._plain, self._x, output)

    def fallback(self) -> str | None:
        return fallback_of(self._kind, self._spec, self.kernel)

    def work(self) -> Work:
        return block_work(self._kind, self._spec, self._shape, self._x.shape[0])
