"""``decode``: tokens per second of a pretrained model, one sequence, one token at a time.

The timed call is one step of greedy decoding with a key-value cache: embedding, blocks, head,
arg max. Beside the clock, untimed steps tell where a token's time goes and how fast decoding could
become if the replaced layers took none.
"""

from __future__ import annotations

import math
import statistics
import time
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import Field

from bitbench.data.models import catalog_names, load_causal_lm, parameter_counts
from bitbench.errors import UserError
from bitbench.layers.base import LayerSpec
from bitbench.measure.timers import Event, TorchGpu
from bitbench.store.schema import Check
from bitbench.workloads.base import Context, PointPlan, Session, Subject, WorkloadKind
from bitbench.workloads.language_model import (
    LOAD_SECONDS_PER_NUMBER,
    Converted,
    LanguageModelSpec,
    convert_blocks,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

PROMPT = (
    "The committee met in the old library on a cold morning in November. Nobody had expected the letter, "
    "and when it was read aloud the room fell silent. "
)
STEP_SECONDS_PER_NUMBER = 1.5e-10
"""One token of a float model on two cores: 20 ms for SmolLM2."""

UNTIMED_STEPS = 35
"""Steps of a launch for each layer beside the timed ones: prompt, warm-up, two checks, the start of
each turn, and at six positions a read of some tokens and three steps."""

PREPARE_SECONDS_PER_NUMBER = 4e-9
"""Take over a conversion that the run has cached: half a second for SmolLM2."""

TIMED_SECONDS = 0.02
"""Timed per token of a sequence and launch: a float model's time on two cores. Each layer gets a
mirrored pair of sequences at least."""

SPLIT_STEPS = 6
"""Positions at which the split is taken, spread over those that a timed block decodes."""


class DecodeSpec(LanguageModelSpec):
    """``{kind: decode, model: smollm2-135m}``"""

    prompt_tokens: int = Field(default=16, ge=1)
    """Length of the prompt, in the cache before the clock starts."""
    tokens: int = Field(default=32, ge=1)
    """Most tokens decoded after the prompt before starting again from it."""


class DecodeWorkload(WorkloadKind):
    name: ClassVar[str] = "decode"
    spec: ClassVar[type[DecodeSpec]] = DecodeSpec

    def points(self, spec: DecodeSpec) -> list[PointPlan]:
        return [PointPlan({"model": spec.model, "tokens": spec.tokens}, "timed", "launches")]

    def quick(self, spec: DecodeSpec) -> DecodeSpec:
        return spec.model_copy(update={"tokens": min(8, spec.tokens)})

    def estimate(self, spec: DecodeSpec, plan: PointPlan, layer: LayerSpec) -> float:  # noqa: ARG002
        numbers, _ = parameter_counts(spec.model)
        steps = UNTIMED_STEPS * STEP_SECONDS_PER_NUMBER * numbers
        return PREPARE_SECONDS_PER_NUMBER * numbers + steps + TIMED_SECONDS * spec.tokens

    def estimate_open(self, spec: DecodeSpec, plan: PointPlan) -> float:  # noqa: ARG002
        return LOAD_SECONDS_PER_NUMBER * parameter_counts(spec.model)[0]

    def data(self, spec: DecodeSpec) -> list[str]:
        return catalog_names(spec.model)

    def open(self, spec: DecodeSpec, params: dict[str, Any], context: Context) -> Session:  # noqa: ARG002
        return DecodeSession(spec, context)


class DecodeSession(Session):
    """The float model, whose embedding and head all layers' models share."""

    def __init__(self, spec: DecodeSpec, context: Context) -> None:
        import torch

        from bitbench.measure.memory import ledger

        self.spec = spec
        self.context = context
        self.lm = load_causal_lm(spec.model)
        limit = self.lm.model.config.context
        if spec.prompt_tokens + spec.tokens > limit:
            raise UserError(
                f"{spec.prompt_tokens} prompt tokens and {spec.tokens} decoded ones exceed the context of "
                f"{spec.model}, {limit}",
                "Lower prompt_tokens or tokens.",
            )
        ids = self.lm.tokenizer.encode(PROMPT)
        repeats = -(-spec.prompt_tokens // len(ids))
        self.prompt = torch.tensor([(ids * repeats)[: spec.prompt_tokens]], device=context.device)
        self.lm.model.to(context.device)
        self.float_bytes = ledger(self.lm.model)["layer"]
        self.subjects: dict[str, DecodeSubject] = {}

    def build(self, layer: str, spec: LayerSpec) -> Subject:
        subject = DecodeSubject(self, convert_blocks(self.lm, spec, self.context))
        self.subjects[layer] = subject
        return subject

    def baseline_step(self) -> float | None:
        """Seconds of a step of the baseline layer as timed in this launch, if it was and its output
        was right."""
        baseline = self.subjects.get(self.context.baseline)
        return None if baseline is None else baseline.step

    def close(self) -> None:
        self.subjects.clear()


class DecodeSubject(Subject):
    """One converted model with its prompt read into the cache."""

    def __init__(self, session: DecodeSession, converted: Converted) -> None:
        import torch

        from impl.models.llama import KVCache

        self.session = session
        self.converted = converted
        self.model = converted.model
        self.max_calls = session.spec.tokens
        # A step takes longer the more tokens lie before it: every block decodes the same ones.
        self.block_calls = session.spec.tokens
        self.seconds = TIMED_SECONDS * session.spec.tokens
        self.on_gpu = session.context.device != "cpu"
        capacity = session.spec.prompt_tokens + session.spec.tokens
        self.cache = KVCache(self.model.config, capacity, device=session.context.device)
        with torch.inference_mode():
            self.first = self.model.decode(session.prompt, self.cache).argmax(-1, keepdim=True)
        self.token = self.first
        self.step: float | None = None
        """Seconds of a step as timed, once it was."""
        self.call()
        self.kernel = converted.kernels()
        self.reset()

    def reset(self) -> None:
        self.cache.truncate(self.session.spec.prompt_tokens)
        self.token = self.first

    def call(self) -> Tensor:
        import torch

        with torch.inference_mode():
            self.token = self.model.decode(self.token, self.cache).argmax(-1, keepdim=True)
        return self.token

    def check(self) -> Check:
        """Each projection of the first, middle and last block, on the activations of a real step."""
        count = len(self.model.blocks)
        chosen = {f"blocks.{index}." for index in (0, count // 2, count - 1)}
        layers = {
            name: layer for name, layer in self.converted.layers.items() if name.startswith(tuple(chosen))
        }
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        with ExitStack() as hooks:
            for name, layer in layers.items():
                hooks.callback(layer.register_forward_hook(_keep(seen, name)).remove)
            self.reset()
            self.call()
            self.reset()
        checks = [self._compare(layer, *seen[name]) for name, layer in layers.items()]
        worst = max(checks, key=lambda check: check.max_error / check.tolerance)
        return worst.model_copy(
            update={
                "passed": all(check.passed for check in checks),
                "compared": sum(check.compared for check in checks),
            }
        )

    def _compare(self, layer: nn.Module, x: Tensor, y: Tensor) -> Check:
        kind, spec = self.converted.kind, self.converted.spec
        exact = kind.reference(spec, layer, x.flatten(0, -2), slice(0, y.shape[-1])).double()
        error = float((y.flatten(0, -2).double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30))
        if math.isnan(error):
            error = math.inf  # NaN has no place in an order, and the worst check is looked for
        tolerance = kind.tolerance(spec, x.shape[-1])
        return Check(passed=error <= tolerance, max_error=error, tolerance=tolerance, compared=exact.numel())

    def fallback(self) -> str | None:
        return self.converted.fallback()

    def metrics(self) -> dict[str, float]:
        """Split of a token's time, the ceiling it sets, and the bytes of the whole model.

        The ceiling is the timed step of the baseline over what remains of this layer's timed step
        without the converted layers; absent where the baseline has no time.
        """
        from bitbench.measure.memory import ledger

        split = self._instrumented()
        size = ledger(self.model)["layer"]
        found = {
            "decode.blocks_share": split.blocks / split.total,
            "decode.head_share": split.head / split.total,
            "decode.rest_share": max(0.0, 1 - (split.blocks + split.head) / split.total),
            "memory.model_bytes": float(size),
            "memory.model_ratio": self.session.float_bytes / size,
        }
        baseline = self.session.baseline_step()
        unconverted = self.step - split.converted if self.step is not None else 0.0
        if baseline is not None and unconverted > 0:
            found["decode.ceiling"] = baseline / unconverted
        return found

    def timed(self, seconds: float) -> None:
        self.step = seconds

    def _instrumented(self) -> Split:
        """Where the time of a step goes: medians over steps spread evenly over those that a timed
        block decodes. Blocks, head and total come from one step, the converted layers from another of
        the same position: marks around each of them would weigh on the blocks.
        """
        watch = _GpuWatch() if self.on_gpu else _CpuWatch()
        steps = min(SPLIT_STEPS, self.session.spec.tokens)
        found: list[Split] = []
        self.reset()
        for step in range(steps):
            before = int((step + 0.5) * self.session.spec.tokens / steps)
            self._advance(self.session.spec.prompt_tokens + before)
            self.call()  # the read of many tokens has left its own data in the caches
            parts = []
            for layers in (self._parts(), {"converted": list(self.converted.layers.values())}):
                self.cache.truncate(self.session.spec.prompt_tokens + before)
                parts.append(self._marked_step(watch, layers))
            outer, inner = parts
            found.append(Split(outer["blocks"], outer["head"], outer["total"], inner["converted"]))
        self.reset()
        return Split(*(statistics.median(values) for values in zip(*map(astuple, found), strict=True)))

    def _advance(self, length: int) -> None:
        """Read tokens, all at once, until the cache holds ``length``. Which ones they are does not
        matter to the time of a step."""
        import torch

        missing = length - self.cache.length
        if missing > 0:
            with torch.inference_mode():
                self.model.decode(self.token.expand(1, missing), self.cache)

    def _parts(self) -> dict[str, list[nn.Module]]:
        blocks = self.model.blocks
        return {"blocks": [blocks[0], blocks[-1]], "head": [self.model.head]}

    def _marked_step(self, watch: Watch, parts: dict[str, list[nn.Module]]) -> dict[str, float]:
        """Seconds of one step, ``total``, and in each of ``parts``: from before the first of
        ``blocks`` to after the last, and the sum over the others."""
        starts: dict[str, list[Any]] = {name: [] for name in parts}
        ends: dict[str, list[Any]] = {name: [] for name in parts}
        with ExitStack() as hooks:
            for name, modules in parts.items():
                first, last = (modules[:1], modules[-1:]) if name == "blocks" else (modules, modules)
                for module in first:
                    hooks.callback(module.register_forward_pre_hook(_marking(watch, starts[name])).remove)
                for module in last:
                    hooks.callback(module.register_forward_hook(_marking(watch, ends[name])).remove)
            began = watch.mark()
            self.call()
            ended = watch.mark()
        watch.settle()
        spent = {
            name: sum(watch.between(a, b) for a, b in zip(starts[name], ends[name], strict=True))
            for name in parts
        }
        return {**spent, "total": watch.between(began, ended)}


@dataclass(frozen=True)
class Split:
    """Seconds of a step in the blocks, in the head, in all, and in the converted layers."""

    blocks: float
    head: float
    total: float
    converted: float


class Watch(Protocol):
    """Marks moments while work is under way, and tells the time between them afterwards."""

    def mark(self) -> Any: ...

    def settle(self) -> None:
        """Wait until all that was marked has happened."""
        ...

    def between(self, start: Any, end: Any) -> float:
        """Seconds."""
        ...


class _CpuWatch:
    def mark(self) -> float:
        return time.perf_counter()

    def settle(self) -> None:
        return

    def between(self, start: float, end: float) -> float:
        return end - start


class _GpuWatch:
    """Events on the stream: the device does not wait for the host between layers because of them."""

    def __init__(self) -> None:
        self._gpu = TorchGpu()

    def mark(self) -> Event:
        event = self._gpu.event()
        event.record()
        self._last = event
        return event

    def settle(self) -> None:
        self._last.synchronize()

    def between(self, start: Event, end: Event) -> float:
        return end.since(start) / 1e9


def _marking(watch: Watch, marks: list[Any]) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        marks.append(watch.mark())

    return hook


def _keep(seen: dict[str, tuple[Tensor, Tensor]], name: str) -> Callable[..., None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[name] = (inputs[0].detach().clone(), output.detach().clone())

    return hook
