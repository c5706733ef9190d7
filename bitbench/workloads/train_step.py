"""``train_step``: what a step of training costs with each layer kind: time, and memory.

A step is the forward pass of one layer, the backward pass to its input and its weights, and the
optimizer's update: AdamW, or DiodeMix for weights without a float copy. The gradient of the output
is given, as the layers above would give it. Layers are in trainable form, whatever their ``form``.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from bitbench.layers import registry
from bitbench.layers.base import LayerKind, LayerSpec
from bitbench.measure.memory import named_tensors, peak_on
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
from bitbench.workloads.layer_check import Comparison, poison
from bitbench.workloads.linear import sampled_rows, sampled_tokens
from bitbench.workloads.training import optimiser_for, trainable

if TYPE_CHECKING:
    import torch
    from torch import nn

LR = 1e-6
"""So small that thousands of timed steps on one batch carry no weight anywhere: every step works on
numbers of the same size. The time of an update does not depend on it."""
STEPS = 1000
"""Length of the training that DiodeMix's memory is set for; nothing else depends on it."""

# What the estimate is made of, measured on two cores of a server.
OPERATIONS_PER_SECOND = 1e11
UPDATE_SECONDS_PER_WEIGHT = 2e-8
"""Quantise, decode and update a weight; the mean over kinds."""
BUILD_SECONDS_PER_WEIGHT = 5e-8
BUDGET_SECONDS = 0.15
"""What the clock spends on a layer (:class:`bitbench.measure.clock.Budget`)."""
CALLS = 12
"""Least steps of a layer in a launch; the memory of a layer takes two."""


class TrainStepSpec(WorkloadSpec):
    """``{kind: train_step, shapes: [[1024, 1024]], tokens: [256]}``"""

    shapes: Shapes
    """A named set, or a list of ``[out_features, in_features]``."""
    tokens: list[Annotated[int, Field(ge=1, le=1 << 20)]] = Field(default=[256], min_length=1)
    """Rows of the input."""
    bias: bool = False
    memory: bool = True
    """Whether the bytes of a step are measured too."""


class TrainStepWorkload(WorkloadKind):
    """Timed: a step on ``tokens`` rows of normally distributed input, the same for every layer. Once:
    what is kept from step to step, and the peak in one."""

    name: ClassVar[str] = "train_step"
    spec: ClassVar[type[TrainStepSpec]] = TrainStepSpec
    axes: ClassVar[tuple[str, ...]] = ("shapes", "tokens", "memory")
    growing: ClassVar[tuple[str, ...]] = ("shape", "tokens")

    def points(self, spec: TrainStepSpec) -> list[PointPlan]:
        found = []
        for shape, tokens in itertools.product(spec.shapes, spec.tokens):
            params = {"shape": list(shape), "tokens": tokens}
            found.append(PointPlan(params, "timed", "launches"))
            if spec.memory:
                found.append(PointPlan({**params, "measure": "memory"}, "once", "exact"))
        return found

    def quick(self, spec: TrainStepSpec) -> TrainStepSpec:
        return spec.model_copy(update={"shapes": spec.shapes[:1], "tokens": spec.tokens[:1]})

    def estimate(self, spec: TrainStepSpec, plan: PointPlan, layer: LayerSpec) -> float:  # noqa: ARG002
        weights = math.prod(plan.params["shape"])
        step = 6.0 * weights * plan.params["tokens"] / OPERATIONS_PER_SECOND
        step += UPDATE_SECONDS_PER_WEIGHT * weights
        build = BUILD_SECONDS_PER_WEIGHT * weights
        return build + (2 * step + 0.1 if plan.phase == "once" else max(BUDGET_SECONDS, CALLS * step))

    def open(self, spec: TrainStepSpec, params: dict[str, Any], context: Context) -> TrainStepSession:
        return TrainStepSession(spec, params, context)


class TrainStepSession(Session):
    """One shape and number of tokens."""

    def __init__(self, spec: TrainStepSpec, params: dict[str, Any], context: Context) -> None:
        self.out_features, self.in_features = params["shape"]
        self.tokens = params["tokens"]
        self.bias = spec.bias
        self.context = context

    def build(self, layer: str, spec: LayerSpec) -> TrainStepSubject:  # noqa: ARG002
        import torch

        kind = registry.get(spec.kind)
        torch.manual_seed(self.context.seed)
        module = trainable(kind, spec, self.in_features, self.out_features, bias=self.bias)
        dtype = getattr(torch, kind.input_dtype(spec))
        return TrainStepSubject(
            kind,
            kind.in_training(spec),
            module.to(self.context.device).train(),
            x=self._drawn(self.in_features, dtype, self.context.seed),
            output_gradient=self._drawn(self.out_features, dtype, self.context.seed + 1),
        )

    def measure(self, layer: str, spec: LayerSpec, replicate: int) -> Outcome:  # noqa: ARG002
        subject = self.build(layer, spec)
        subject.call()  # the first step makes the optimizer's state, and pays for first use
        kept = float(subject.kept_bytes())
        metrics = {"memory.training_bytes": kept}
        peak = peak_on(self.context.device, subject.call)
        if peak is not None:
            metrics |= {"memory.peak_bytes": float(peak), "memory.training_peak_bytes": kept + peak}
        return Outcome(metrics, kernel=registry.get(spec.kind).kernel(subject.module))

    def _drawn(self, features: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
        """``[tokens, features]``, standard normal, drawn in float32 so that all types round the same
        numbers."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(self.tokens, features, generator=generator)
        return values.to(device=self.context.device, dtype=dtype)


class TrainStepSubject(Subject):
    """A layer, its optimizer, and one batch to step on again and again."""

    def __init__(
        self,
        kind: LayerKind,
        spec: LayerSpec,
        module: nn.Module,
        *,
        x: torch.Tensor,
        output_gradient: torch.Tensor,
    ) -> None:
        self.module = module
        self._kind = kind
        self._spec = spec
        self._x = x.requires_grad_()
        self._output_gradient = output_gradient
        self._optimiser = optimiser_for(module, lr=LR, steps=STEPS)

    def call(self) -> torch.Tensor:
        """One step; returns the output of its forward pass. Gradients are gone afterwards."""
        import torch

        # The clock calls in inference mode, where nothing has a gradient.
        with torch.inference_mode(False):
            y: torch.Tensor = self.module(self._x)
            y.backward(self._output_gradient)
            self._optimiser.step()
            self._forget_gradients()
        return y

    def check(self) -> Check:
        """Compare sampled outputs of a forward pass with the reference of the weights as they are now;
        all outputs and all gradients must be there and finite, and so must the weights after an update."""
        import torch

        kind, module, x = self._kind, self.module, self._x
        rows, tokens = sampled_rows(self._features, seed=0), sampled_tokens(x.detach())
        poison(x.detach(), (len(x), self._features))
        with torch.inference_mode(False):
            sample = x.detach()[tokens]
            expected = [kind.reference(self._spec, module, sample, part).detach() for part in rows]
            y = module(x)
            y.backward(self._output_gradient)
        self.kernel = kind.kernel(module)
        comparison = Comparison()
        for part, exact in zip(rows, expected, strict=True):
            comparison.add(y.detach()[tokens][:, part], exact)
        trained = [x, *(p for p in module.parameters() if p.requires_grad)]
        gradients = [leaf.grad for leaf in trained]
        missing = any(gradient is None or not _says_something(gradient) for gradient in gradients)
        with torch.inference_mode(False):
            self._optimiser.step()
            self._forget_gradients()
            broken = any(not bool(torch.isfinite(p.detach()).all()) for p in module.parameters())
        sound = not missing and not broken and bool(torch.isfinite(y.detach()).all())
        return comparison.check(kind.tolerance(self._spec, int(x.shape[1])), sound=sound)

    def work(self) -> Work:
        """Three products of floats, whatever the kind: the output, and the gradients of input and weight.
        The gradient of the weight is as large as a float weight, and the update reads it."""
        weights = self._features * int(self._x.shape[1])
        compute = "fp32" if self._x.element_size() == 4 else "bf16"
        return Work(
            weight_bytes=self._x.element_size() * weights,
            operations=6 * weights * len(self._x),
            compute=compute,
            from_memory=False,
        )

    def fallback(self) -> str | None:
        return self._kind.fallback(self._spec, self.kernel)

    def kept_bytes(self) -> int:
        """Bytes of the layer and of its optimizer's state, each storage once: what lives from step to
        step."""
        import torch

        tensors = [tensor for _, tensor in named_tensors(self.module)]
        for state in self._optimiser.state.values():
            tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
        storages = {s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in tensors)}
        return sum(storages.values())

    @property
    def _features(self) -> int:
        return int(self._output_gradient.shape[1])

    def _forget_gradients(self) -> None:
        self._optimiser.zero_grad(set_to_none=True)
        self._x.grad = None


def _says_something(gradient: torch.Tensor) -> bool:
    """Whether a gradient is finite and not all zero."""
    import torch

    return bool(torch.isfinite(gradient).all()) and bool((gradient != 0).any())
