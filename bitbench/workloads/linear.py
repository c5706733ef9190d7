"""One layer alone: the time of a call with weights in a cache or from memory, and its bytes."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from bitbench.layers import registry
from bitbench.layers.base import LayerSpec
from bitbench.measure.host import last_level_cache, memory_available
from bitbench.measure.peaks import READ_CACHES
from bitbench.measure.roofline import Work
from bitbench.store.schema import Check
from bitbench.suite.shapes import Shapes
from bitbench.workloads.base import (
    Context,
    Outcome,
    PointPlan,
    Session,
    Subject,
    WorkloadKind,
    WorkloadSpec,
)
from bitbench.workloads.layer_check import Comparison, Made, poison
from bitbench.workloads.ledger import byte_figures, peak_figure
from bitbench.workloads.pace import call_seconds, making

if TYPE_CHECKING:
    import torch
    from torch import nn

Cache = Literal["hot", "cold"]
Tokens = Annotated[int, Field(ge=1, le=1 << 20)]

COLD_FACTOR = 2.0
"""Copies of a cold layer hold this many times a processor's last-level cache, which comes near to dropping
the oldest lines first: none survives there from one visit to the next."""
MAX_COPIES = 512
MEMORY_SHARE = 0.1
"""Part of the available memory that the copies of one layer may take: a point holds some ten
layers at once."""

# What the estimate is made of, measured on two cores of a server (AVX-512).
LEDGER_SECONDS_PER_WEIGHT = 1.5e-8
BUILD_SECONDS_PER_WEIGHT = 6e-9
"""Draw a layer, pack it and check it twice, the mean over kinds."""
COPIES_SECONDS = 0.08
"""Copy one layer until it is cold: as many bytes whatever its size."""
WARM_UP_SECONDS = 0.015
BUDGET_SECONDS = 0.15
"""What the clock spends on a layer (:class:`bitbench.measure.clock.Budget`)."""
TIMED_CALLS = 4
"""Least timed calls of a layer in a launch: two in each of a mirrored pair of turns."""
UNTIMED_CALLS = 6
"""Least others: first (1), warm-up (1), one before each turn (2), two checks (2)."""

# The same on a large GPU, reckoned and not measured.
GPU_SECONDS = 0.35
"""Warm-up launch by launch and replayed, the capture, two checks."""
GPU_SECONDS_PER_WEIGHT = 2e-9
GPU_OPERATIONS_PER_SECOND = 100e12
"""Between fp32 and int8."""
GPU_CALLS = 45
"""Of a call too short to be launched one by one, a graph holds twenty."""

EDGE_ROWS = 128
RANDOM_BLOCKS, BLOCK_ROWS = 4, 64
CHECK_TOKENS = 16
PEAK_TOKENS = 16
"""Tokens of the call whose peak memory is measured: enough for the many-token road of a kernel,
too few for its output to matter beside the weights."""


class LinearSpec(WorkloadSpec):
    """A layer at the given shapes; see :class:`LinearWorkload`."""

    shapes: Shapes
    """A named set, or a list of ``[out_features, in_features]``."""
    tokens: list[Tokens] = Field(default=[1], min_length=1)
    """Rows of the input."""
    cache: list[Cache] = Field(default=["hot"], min_length=1)
    """``hot``: the same weights on every call. ``cold``: weights from memory on every call."""
    bias: bool = False
    memory: bool = True
    """Whether the bytes of each shape are measured too."""


class LinearWorkload(WorkloadKind):
    """Timed: one call on ``tokens`` rows of normally distributed input, the same for every layer.
    Once: the memory ledger of the layer, with ratios against an fp32 ``nn.Linear`` measured the
    same way."""

    name = "linear"
    spec = LinearSpec
    axes = ("shapes", "tokens", "cache", "memory")
    growing = ("shape", "tokens")

    def points(self, spec: LinearSpec) -> list[PointPlan]:
        found = []
        for shape in spec.shapes:
            for tokens, cache in itertools.product(spec.tokens, spec.cache):
                params = {"shape": list(shape), "tokens": tokens, "cache": cache}
                found.append(PointPlan(params, "timed", "launches"))
            if spec.memory:
                found.append(PointPlan({"shape": list(shape), "measure": "memory"}, "once", "exact"))
        return found

    def quick(self, spec: LinearSpec) -> LinearSpec:
        return spec.model_copy(update={"shapes": spec.shapes[:1], "tokens": spec.tokens[:1]})

    def estimate(self, spec: LinearSpec, plan: PointPlan, layer: LayerSpec) -> float:  # noqa: ARG002
        out_features, in_features = plan.params["shape"]
        weights = out_features * in_features
        if plan.phase == "once":
            return LEDGER_SECONDS_PER_WEIGHT * weights
        build = BUILD_SECONDS_PER_WEIGHT * weights
        copies = COPIES_SECONDS if plan.params["cache"] == "cold" else 0.0
        call = call_seconds(
            layer, in_features, out_features, plan.params["tokens"], plan.params.get("threads")
        )
        return making(layer) * (build + copies) + timed_seconds(call)

    def estimate_on_gpu(self, spec: LinearSpec, plan: PointPlan, layer: LayerSpec) -> float:  # noqa: ARG002 - a plan says it all
        out_features, in_features = plan.params["shape"]
        weights = out_features * in_features
        if plan.phase == "once":
            return LEDGER_SECONDS_PER_WEIGHT * weights + 0.1
        call = 2.0 * weights * plan.params["tokens"] / GPU_OPERATIONS_PER_SECOND
        # The load is that of the first launch alone.
        load = (spec.load or 0.0) / (plan.launches or 1)
        return GPU_SECONDS + GPU_SECONDS_PER_WEIGHT * weights + max(BUDGET_SECONDS, GPU_CALLS * call) + load

    def open(self, spec: LinearSpec, params: dict[str, Any], context: Context) -> LinearSession:
        return LinearSession(spec, params, context)


def timed_seconds(call: float) -> float:
    """Seconds that a layer takes in a launch once it is built: warm-up, timing, the calls of its checks."""
    return WARM_UP_SECONDS + UNTIMED_CALLS * call + max(BUDGET_SECONDS, TIMED_CALLS * call)


class LinearSession(Session):
    """One shape. Layers are built with random weights (random codes where packed)."""

    def __init__(self, spec: LinearSpec, params: dict[str, Any], context: Context) -> None:
        self.out_features, self.in_features = params["shape"]
        self.bias = spec.bias
        self.params = params
        self.context = context
        self._input: torch.Tensor | None = None
        """As last drawn: the layers of a point get the same numbers."""

    def build(self, layer: str, spec: LayerSpec) -> LinearSubject:  # noqa: ARG002
        import torch

        made = self._make(spec)
        weight_bytes = made.cost.weight_bytes
        cold = self.params["cache"] == "cold"
        cache = cache_bytes(self.context.device)
        on_gpu = self.context.device == "cuda"
        free = torch.cuda.mem_get_info()[0] if on_gpu else memory_available()
        copies, flush, why = cold_by(weight_bytes, cache, free, on_gpu=on_gpu) if cold else (1, False, None)
        modules = [made.module, *made.kind.copies(made.module, copies - 1)]
        x = self.input(made.dtype, self.params["tokens"])
        first_calls(modules, made.kind.given(spec, x))
        return LinearSubject(
            made,
            modules,
            x,
            # Of weights called again and again a cache may keep a part; of as many as the bandwidth
            # was measured with, no more than it kept then.
            from_memory=cold or weight_bytes >= READ_CACHES * cache > 0,
            why_not_cold=why,
            flush=flush,
            seed=self.context.seed,
        )

    def measure(self, layer: str, spec: LayerSpec, replicate: int) -> Outcome:  # noqa: ARG002
        from torch import nn

        made = self._make(spec)
        x = self.input(made.dtype, PEAK_TOKENS)
        plain = nn.Linear(self.in_features, self.out_features, bias=self.bias)
        metrics = byte_figures(made.module, plain, made.cost.format_bits)
        metrics |= peak_figure(made.module, made.kind.given(spec, x), self.context.device)
        return Outcome(metrics, kernel=made.kind.kernel(made.module))

    def input(self, dtype: torch.dtype, tokens: int) -> torch.Tensor:
        """``[tokens, in_features]``, standard normal, drawn in float32 so that all types round
        the same numbers."""
        import torch

        if self._input is None or self._input.shape[0] != tokens:
            generator = torch.Generator(self.context.device).manual_seed(self.context.seed)
            shape = (tokens, self.in_features)
            self._input = torch.randn(shape, generator=generator, device=self.context.device)
        return self._input.to(dtype, copy=True)

    def _make(self, spec: LayerSpec) -> Made:
        kind = registry.get(spec.kind)
        sizes = (self.in_features, self.out_features)
        module = kind.made(
            spec, *sizes, bias=self.bias, seed=self.context.seed, device=self.context.device
        ).eval()
        return Made(kind, spec, module, rows=self.out_features, columns=self.in_features)


def first_calls(modules: list[nn.Module], x: Any) -> None:
    """Call every copy once. Layers prepare themselves in their first call, which takes milliseconds where
    memory is moved into huge pages: without this, timed calls would be the first ones of later copies."""
    import torch

    with torch.inference_mode():
        for module in modules:
            module(x)


class LinearSubject(Subject):
    """A layer, or enough copies of it to be cold, called on one fixed input."""

    def __init__(
        self,
        made: Made,
        modules: list[nn.Module],
        x: torch.Tensor,
        *,
        from_memory: bool,
        why_not_cold: str | None,
        flush: bool = False,
        seed: int,
    ) -> None:
        self._made = made
        self._modules = modules
        self._rotation = itertools.cycle(modules)
        self._x = x
        self._given = made.kind.given(made.spec, x)
        self._from_memory = from_memory
        self._why_not_cold = why_not_cold
        self.flush = flush
        self.replayable = not flush
        self.rotation = len(modules)
        self._expected: list[torch.Tensor] = []
        self._rows = sampled_rows(made.rows, seed)
        self._tokens = sampled_tokens(x)

    def call(self) -> Any:
        return next(self._rotation)(self._given)

    def check(self) -> Check:
        """Compare sampled outputs with the reference; the rest must be finite.

        The memory that the output is likely to get is filled with NaN first, so that an element
        the kernel does not write shows.
        """
        import torch

        made, module = self._made, next(self._rotation)
        # Those of the calls so far too, the timed ones among them: not only what this call is given.
        served = {made.kind.kernel(called) for called in self._modules}
        shape = (self._x.shape[0], made.rows)
        poison(self._x, shape)
        output = made.kind.shown(made.spec, module(self._given))
        self.kernel = ", ".join(sorted({*served, made.kind.kernel(module)} - {""}))
        if tuple(output.shape) != shape:
            raise RuntimeError(f"the output has shape {tuple(output.shape)}, not {shape}")
        sample = self._x[self._tokens]
        if not self._expected:
            # Once a launch: all copies hold the same weights, and what they held before timing is what
            # the output after timing is held against.
            self._expected = [made.kind.reference(made.spec, module, sample, rows) for rows in self._rows]
        comparison = Comparison()
        for rows, expected in zip(self._rows, self._expected, strict=True):
            comparison.add(output[self._tokens][:, rows], expected)
        return comparison.check(made.tolerance, sound=bool(torch.isfinite(output).all()))

    def fallback(self) -> str | None:
        return self._made.fallback(self.kernel)

    def invalid(self) -> str | None:
        return self._why_not_cold

    def work(self) -> Work:
        cost = self._made.cost
        return Work(
            weight_bytes=cost.weight_bytes,
            operations=2 * cost.macs_per_token * self._x.shape[0],
            compute=cost.compute,
            from_memory=self._from_memory,
            isa=self._made.isa,
        )


def cache_bytes(device: str) -> int:
    """Bytes of the last cache before memory, 0 where unknown."""
    if device != "cuda":
        return last_level_cache()
    import torch

    return int(torch.cuda.get_device_properties(0).L2_cache_size)


def copies_needed(
    weight_bytes: int, cache: int, free: int, factor: float = COLD_FACTOR
) -> tuple[int, str | None]:
    """Copies of a layer to rotate through so that each call reads its weights from memory, of which
    ``free`` bytes are free, and why that many are not enough, if so. ``factor``: caches they are to fill."""
    if cache <= 0:
        return 1, "not cold: the size of the last-level cache cannot be read on this machine"
    wanted = math.floor(factor * cache / weight_bytes) + 1
    affordable = max(1, int(MEMORY_SHARE * free / weight_bytes))
    copies = min(wanted, MAX_COPIES, affordable)
    if copies < wanted:
        return copies, (
            f"not cold: {copies} copies of {weight_bytes} bytes are less than {factor:g} times the "
            f"last-level cache of {cache} bytes; measure larger shapes, or drop `cache: cold`"
        )
    return copies, None


def cold_by(weight_bytes: int, cache: int, free: int, *, on_gpu: bool) -> tuple[int, bool, str | None]:
    """How the weights of a layer come from memory on each call: copies to rotate through, whether the cache
    is to be overwritten before each call instead, and why neither will do, if so.

    Overwriting is for a GPU, and for layers so small that copies are too few: it costs several times the
    call, and leaves a pair of events around each. The caches of a processor have no such cheap way.
    """
    # A device's cache need not drop the oldest line first, as a processor's nearly does.
    copies, why = copies_needed(weight_bytes, cache, free, READ_CACHES if on_gpu else COLD_FACTOR)
    if on_gpu and why is not None and cache > 0:
        return 1, True, None
    return copies, False, why


def sampled_rows(out_features: int, seed: int) -> list[slice]:
    """Output features to compare: all of a small layer; of a large one the first, the last and
    random blocks, 512 in all."""
    import random

    limit = 2 * EDGE_ROWS + RANDOM_BLOCKS * BLOCK_ROWS
    if out_features <= limit:
        return [slice(0, out_features)]
    draw = random.Random(seed)
    starts = [
        draw.randrange(EDGE_ROWS, out_features - EDGE_ROWS - BLOCK_ROWS + 1) for _ in range(RANDOM_BLOCKS)
    ]
    edges = [slice(0, EDGE_ROWS), slice(out_features - EDGE_ROWS, out_features)]
    return [*edges, *(slice(start, start + BLOCK_ROWS) for start in starts)]


def sampled_tokens(x: torch.Tensor) -> list[int]:
    """Rows of ``x`` to compare: all of a few; of many, evenly spaced ones, first and last included.

    The rows that hold the smallest and the largest value are always among them: a layer that
    quantises its activations by the range of the whole input (torch's dynamic int8) then gives the
    sample what it gave the whole.
    """
    tokens = x.shape[0]
    if tokens <= CHECK_TOKENS:
        return list(range(tokens))
    flat = x.float().flatten()
    extremes = {int(flat.argmin()) // x.shape[1], int(flat.argmax()) // x.shape[1]}
    spaced = CHECK_TOKENS - 2
    return sorted(extremes | {round(i * (tokens - 1) / (spaced - 1)) for i in range(spaced)})
