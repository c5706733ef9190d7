"""``decode``: tokens per second of a language model, one sequence, one token at a time.

The timed call is one step of greedy decoding with a key-value cache: embedding, blocks, head,
arg max. Beside the clock, untimed steps tell where a token's time goes and how fast decoding could
become if the replaced layers took none. With ``prefill``, the reading of prompts is timed too, at
points of its own (:mod:`bitbench.workloads.prefill`).
"""

from __future__ import annotations

import statistics
from dataclasses import astuple
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from bitbench.data.architectures import ARCHITECTURES
from bitbench.data.models import catalog_names, load_causal_lm
from bitbench.errors import UserError
from bitbench.layers.base import LayerSpec
from bitbench.store.schema import PROMPT_TOKENS, Check
from bitbench.workloads.base import Context, PointPlan, Session, Subject, WorkloadKind
from bitbench.workloads.conversions import Converted
from bitbench.workloads.language_model import (
    HEAD,
    LanguageModelSpec,
    build_model,
    float_bytes,
    model_params,
    open_seconds,
    place,
    split_numbers,
)
from bitbench.workloads.model_check import check_layers
from bitbench.workloads.pace import bytes_share
from bitbench.workloads.prefill import PrefillSubject, prefill_seconds
from bitbench.workloads.watches import Split, marked

if TYPE_CHECKING:
    from torch import Tensor, nn

PROMPT = (
    "The committee met in the old library on a cold morning in November. Nobody had expected the letter, "
    "and when it was read aloud the room fell silent. "
)
STEP_SECONDS_PER_NUMBER = 1.8e-10
"""Of one token of a float model on two cores: 24 ms for SmolLM2."""

STEP_SECONDS = 0.004
"""Of one token whatever the model's numbers take: the calls of some thirty blocks."""

LEAST_SHARE = 0.1
"""Of a float layer's time that a layer takes at least, however few its bytes."""

UNTIMED_STEPS = 35
"""Steps of a launch for each layer beside the timed ones: prompt, warm-up, two checks, the start of
each turn, and at six positions a read of some tokens and three steps."""

PREPARE_SECONDS_PER_NUMBER = 4e-9
"""Take over a conversion that the run has cached: half a second for SmolLM2."""

DRAW_SECONDS_PER_NUMBER = 1e-8
"""Draw and pack a number of a layer."""

CHECK_SECONDS_PER_NUMBER = 5e-10
"""Both checks of a launch: 1 s for two thousand million numbers, of which a sample is decoded."""

COPY_SECONDS_PER_BYTE = 6e-10
"""Copy a layer to memory of its own, page faults included."""

TIMED_SECONDS = 0.02
"""Timed per token of a sequence and launch: a float model's time on two cores. Each layer gets a
mirrored pair of sequences at least."""

SPLIT_STEPS = 6
"""Positions at which the split is taken, spread over those that a timed block decodes."""

QUICK_TOKENS, QUICK_PROMPT = 8, 64


class DecodeSpec(LanguageModelSpec):
    """``{kind: decode, model: smollm2-135m, head: same, prefill: [128]}``"""

    prompt_tokens: int = Field(default=16, ge=1)
    """Length of the prompt, in the cache before the clock starts."""
    tokens: int = Field(default=32, ge=1)
    """Most tokens decoded after the prompt before starting again from it."""
    prefill: list[Annotated[int, Field(ge=2)]] = Field(default=[])
    """Lengths of prompts whose reading is timed too, each at a point of its own."""


class DecodeWorkload(WorkloadKind):
    name: ClassVar[str] = "decode"
    spec: ClassVar[type[DecodeSpec]] = DecodeSpec
    axes: ClassVar[tuple[str, ...]] = ("head", "prefill")

    def points(self, spec: DecodeSpec) -> list[PointPlan]:
        model = model_params(spec)
        steps = PointPlan({**model, "tokens": spec.tokens}, "timed", "launches")
        prompts = [
            PointPlan({**model, "measure": "prefill", PROMPT_TOKENS: tokens}, "timed", "launches")
            for tokens in spec.prefill
        ]
        return [steps, *prompts]

    def quick(self, spec: DecodeSpec) -> DecodeSpec:
        prefill = [min(QUICK_PROMPT, n) for n in spec.prefill[:1]]
        return spec.model_copy(update={"tokens": min(QUICK_TOKENS, spec.tokens), "prefill": prefill})

    def estimate(self, spec: DecodeSpec, plan: PointPlan, layer: LayerSpec) -> float:
        replaced, kept = split_numbers(spec)
        share = max(LEAST_SHARE, bytes_share(layer))
        prepare = PREPARE_SECONDS_PER_NUMBER * (replaced + kept)
        if spec.model in ARCHITECTURES:
            blocks = ARCHITECTURES[spec.model].config["num_layers"]
            drawn = DRAW_SECONDS_PER_NUMBER * (replaced / blocks + (kept if spec.head == "same" else 0))
            prepare = drawn + COPY_SECONDS_PER_BYTE * 4 * share * replaced
        prepare += CHECK_SECONDS_PER_NUMBER * replaced
        if PROMPT_TOKENS in plan.params:
            return prepare + prefill_seconds(layer, replaced, plan.params[PROMPT_TOKENS])
        step = STEP_SECONDS + STEP_SECONDS_PER_NUMBER * (kept + share * replaced)
        return prepare + UNTIMED_STEPS * step + max(TIMED_SECONDS, 2 * step) * spec.tokens

    def estimate_open(self, spec: DecodeSpec, plan: PointPlan) -> float:  # noqa: ARG002
        return open_seconds(spec)

    def data(self, spec: DecodeSpec) -> list[str]:
        return catalog_names(spec.model)

    def open(self, spec: DecodeSpec, params: dict[str, Any], context: Context) -> Session:
        return DecodeSession(spec, params, context)


class DecodeSession(Session):
    """The float model, whose embedding and head all layers' models share."""

    def __init__(self, spec: DecodeSpec, params: dict[str, Any], context: Context) -> None:
        self.spec = spec
        self.context = context
        self.lm = load_causal_lm(spec.model)
        self.prefill = PROMPT_TOKENS in params
        self.prompt_tokens: int = params.get(PROMPT_TOKENS, spec.prompt_tokens)
        limit = self.lm.model.config.context
        if self.prefill and self.prompt_tokens > limit:
            raise UserError(
                f"a prompt of {self.prompt_tokens} tokens exceeds the context of {spec.model}, {limit}",
                "Shorten it in `prefill`.",
            )
        if not self.prefill and spec.prompt_tokens + spec.tokens > limit:
            raise UserError(
                f"{spec.prompt_tokens} prompt tokens and {spec.tokens} decoded ones exceed the context of "
                f"{spec.model}, {limit}",
                "Lower prompt_tokens or tokens.",
            )
        self.prompt = self._read(self.prompt_tokens)
        place(self.lm, context.device)
        self.float_bytes = float_bytes(self.lm.model)
        self.subjects: dict[str, DecodeSubject] = {}

    def _read(self, tokens: int) -> Tensor:
        """The first ``tokens`` ids ``[1, tokens]`` of the prompt, repeated as needed."""
        import torch

        ids = self.lm.tokenizer.encode(PROMPT)
        repeats = -(-tokens // len(ids))
        return torch.tensor([(ids * repeats)[:tokens]], device=self.context.device)

    def build(self, layer: str, spec: LayerSpec) -> Subject:
        converted = build_model(self.lm, spec, self.context, head=self.spec.head)
        if self.prefill:
            return PrefillSubject(converted, self.prompt, self.context.seed)
        subject = DecodeSubject(self, converted)
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
        # The steps of a block, one after the other from the same prompt, are always the same work; launched
        # one by one, their hundreds of kernels would be the host's time and not the device's.
        self.replayable = self.many_kernels = self.on_gpu
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
        """On the activations of the first step after the prompt."""
        self.reset()
        found = check_layers(self.converted, self.call, self.session.context.seed)
        self.reset()
        return found

    def fallback(self) -> str | None:
        return self.converted.fallback()

    def metrics(self) -> dict[str, float]:
        """Split of a token's time, the ceiling it sets, and the bytes of the whole model.

        The ceiling is the timed step of the baseline over what remains of this layer's timed step
        without the converted layers; absent where the baseline has no time. On a GPU the steps of a
        block are one graph, which has no parts to mark: there is neither split nor ceiling.
        """
        from bitbench.measure.memory import ledger

        size = ledger(self.model)["layer"]
        found = {
            "memory.model_bytes": float(size),
            "memory.model_ratio": self.session.float_bytes / size,
        }
        if self.on_gpu:
            return found
        split = self._instrumented()
        found |= {
            "decode.blocks_share": split.blocks / split.total,
            "decode.head_share": split.head / split.total,
            "decode.rest_share": max(0.0, 1 - (split.blocks + split.head) / split.total),
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
                parts.append(self._marked_step(layers))
            outer, inner = parts
            found.append(Split(outer["blocks"], outer[HEAD], outer["total"], inner["converted"]))
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
        return {"blocks": [blocks[0], blocks[-1]], HEAD: [self.model.head]}

    def _marked_step(self, parts: dict[str, list[nn.Module]]) -> dict[str, float]:
        return marked(parts, self.call)
