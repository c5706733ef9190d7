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
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from bitbench.data.models import catalog_names, load_causal_lm, parameter_counts
from bitbench.errors import UserError
from bitbench.layers.base import LayerSpec
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

UNTIMED_STEPS = 30
"""Steps of a launch for each layer beside the timed ones: prompt, warm-up, two checks, the split."""

PREPARE_SECONDS_PER_NUMBER = 4e-9
"""Take over a conversion that the run has cached: half a second for SmolLM2."""

TIMED_SECONDS = 0.02
"""Timed per token of a sequence and launch: a float model's time on two cores."""

SPLIT_STEPS = 6
"""Untimed steps the split is the median of."""


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
        """Seconds of one untimed step of the baseline layer, if it is measured here."""
        baseline = self.subjects.get(self.context.baseline)
        return None if baseline is None else baseline.plain_step

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
        self.seconds = TIMED_SECONDS * session.spec.tokens
        self.on_gpu = session.context.device != "cpu"
        capacity = session.spec.prompt_tokens + session.spec.tokens
        self.cache = KVCache(self.model.config, capacity, device=session.context.device)
        with torch.inference_mode():
            self.first = self.model.decode(session.prompt, self.cache).argmax(-1, keepdim=True)
        self.token = self.first
        self._plain_step: float | None = None
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
        """Split of a token's time, the ceiling it sets, and the bytes of the whole model."""
        from bitbench.measure.memory import ledger

        blocks, head, total = self._split()
        size = ledger(self.model)["layer"]
        found = {
            "decode.blocks_share": blocks / total,
            "decode.head_share": head / total,
            "decode.rest_share": max(0.0, 1 - (blocks + head) / total),
            "memory.model_bytes": float(size),
            "memory.model_ratio": self.session.float_bytes / size,
        }
        baseline = self.session.baseline_step()
        unconverted = self.plain_step - self._converted_seconds()
        if baseline is not None and unconverted > 0:
            found["decode.ceiling"] = baseline / unconverted
        return found

    @property
    def plain_step(self) -> float:
        """Seconds of an untimed step, nothing instrumented; measured once."""
        if self._plain_step is None:
            self._plain_step = statistics.median(self._steps(self._now))
        return self._plain_step

    def _split(self) -> tuple[float, float, float]:
        """Seconds of a step in the blocks, in the head, and in all (medians)."""
        marks: dict[str, float] = {}

        def mark(name: str) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                marks[name] = self._now()

            return hook

        blocks, heads = [], []

        def after_step() -> float:
            blocks.append(marks["blocks end"] - marks["blocks"])
            heads.append(marks["head end"] - marks["head"])
            return self._now()

        with ExitStack() as hooks:
            for name, first, last in (
                ("blocks", self.model.blocks[0], self.model.blocks[-1]),
                ("head", self.model.head, self.model.head),
            ):
                hooks.callback(first.register_forward_pre_hook(mark(name)).remove)
                hooks.callback(last.register_forward_hook(mark(f"{name} end")).remove)
            totals = self._steps(self._now, after_step)
        return statistics.median(blocks), statistics.median(heads), statistics.median(totals)

    def _converted_seconds(self) -> float:
        """Seconds of a step inside the converted layers (median)."""
        spent: list[float] = []
        started = 0.0
        inside = 0.0

        def enter(*_: Any) -> None:
            nonlocal started
            started = self._now()

        def leave(*_: Any) -> None:
            nonlocal inside
            inside += self._now() - started

        def after_step() -> float:
            nonlocal inside
            spent.append(inside)
            inside = 0.0
            return self._now()

        with ExitStack() as hooks:
            for layer in self.converted.layers.values():
                hooks.callback(layer.register_forward_pre_hook(enter).remove)
                hooks.callback(layer.register_forward_hook(leave).remove)
            self._steps(self._now, after_step)
        return statistics.median(spent)

    def _steps(self, before: Callable[[], float], after: Callable[[], float] | None = None) -> list[float]:
        """Seconds of each of a few steps from the prompt on; the first, which warms up, is dropped."""
        self.reset()
        times = []
        for _ in range(min(SPLIT_STEPS, self.session.spec.tokens)):
            start = before()
            self.call()
            times.append((after or before)() - start)
        self.reset()
        return times[1:] or times

    def _now(self) -> float:
        if self.on_gpu:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()


def _keep(seen: dict[str, tuple[Tensor, Tensor]], name: str) -> Callable[..., None]:
    def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen[name] = (inputs[0].detach().clone(), output.detach().clone())

    return hook
