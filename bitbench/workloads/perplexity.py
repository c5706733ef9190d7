"""``perplexity``: a pretrained model's quality after its layers are replaced, without retraining.

Teacher-forced over windows of held-out text that share no token; each window is a document of the
interval. The loss depends on numerics alone, so packing formats that decode to the same weights
share one measurement; bytes and speed of the converted model belong to ``decode``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from bitbench.data.models import catalog_names, check_causal_lm, load_causal_lm
from bitbench.data.texts import check_text, load_text
from bitbench.errors import UserError
from bitbench.layers.base import LayerSpec
from bitbench.layers.specs import LinearSpec
from bitbench.workloads.base import Context, Outcome, PointPlan, Session, WorkloadKind
from bitbench.workloads.language_model import (
    LanguageModelSpec,
    build_model,
    model_params,
    open_seconds,
    place,
    split_numbers,
)
from bitbench.workloads.pace import numbers_seconds

if TYPE_CHECKING:
    from torch import Tensor

CONVERT_SECONDS_PER_NUMBER = 5e-9
"""Convert one weight to one component: half a second for SmolLM2's blocks."""

COMPONENT_SECONDS_PER_NUMBER = 3.2e-8
"""Fit one more component, scales per row. Scales per group take :data:`GROUPED_COST` times that."""

GROUPED_COST = 2.7

REST_SECONDS_PER_NUMBER_TOKEN = 4e-12
"""Of scoring a token what is not a layer (attention, norms, the loss over the vocabulary), by the numbers
of the model: 1.1 s for 2048 tokens of SmolLM2 on two cores."""

FLOAT = LinearSpec(kind="linear")
"""What is not replaced."""

LARGEST_NLL = 700.0
"""exp of more leaves float64."""


class PerplexitySpec(LanguageModelSpec):
    """``{kind: perplexity, model: smollm2-135m, text: sotu}``"""

    text: str
    """Catalog name, ``synthetic``, or the path of a .txt file."""
    windows: int = Field(default=4, ge=1)
    length: int = Field(default=512, ge=2)
    """Tokens scored in each window."""

    @field_validator("model")
    @classmethod
    def _has_weights(cls, model: str) -> str:
        return check_causal_lm(model, scored=True)

    @field_validator("text")
    @classmethod
    def _known_text(cls, text: str) -> str:
        return check_text(text)


class PerplexityWorkload(WorkloadKind):
    name: ClassVar[str] = "perplexity"
    spec: ClassVar[type[PerplexitySpec]] = PerplexitySpec
    axes: ClassVar[tuple[str, ...]] = ("head",)

    def points(self, spec: PerplexitySpec) -> list[PointPlan]:
        params = {**model_params(spec), "text": spec.text, "tokens": spec.windows * spec.length}
        return [PointPlan(params, "once", "documents")]

    def quick(self, spec: PerplexitySpec) -> PerplexitySpec:
        return spec.model_copy(update={"windows": 1})

    def estimate(self, spec: PerplexitySpec, plan: PointPlan, layer: LayerSpec) -> float:  # noqa: ARG002
        replaced, kept = split_numbers(spec)
        tokens = spec.windows * spec.length
        score = numbers_seconds(layer, replaced, tokens) + numbers_seconds(FLOAT, kept, tokens)
        score += REST_SECONDS_PER_NUMBER_TOKEN * (replaced + kept) * tokens
        return convert_seconds(layer) * replaced + score

    def estimate_open(self, spec: PerplexitySpec, plan: PointPlan) -> float:  # noqa: ARG002
        return open_seconds(spec)

    def data(self, spec: PerplexitySpec) -> list[str]:
        return [*catalog_names(spec.model), *catalog_names(spec.text)]

    def open(self, spec: PerplexitySpec, params: dict[str, Any], context: Context) -> Session:  # noqa: ARG002
        return PerplexitySession(spec, context)


def convert_seconds(layer: LayerSpec) -> float:
    """Seconds to convert one weight, on two cores."""
    if layer.kind == "linear":
        return 0.0
    more = COMPONENT_SECONDS_PER_NUMBER * (getattr(layer, "k", 1) - 1)
    return CONVERT_SECONDS_PER_NUMBER + more * (GROUPED_COST if getattr(layer, "group_size", None) else 1.0)


class PerplexitySession(Session):
    """The model and the windows, shared by all layers."""

    def __init__(self, spec: PerplexitySpec, context: Context) -> None:
        import torch

        self.context = context
        self.head = spec.head
        self.lm = load_causal_lm(spec.model)
        limit = self.lm.model.config.context
        if spec.length > limit:
            raise UserError(
                f"length {spec.length} is beyond the context of {spec.model}, {limit}", "Shorten it."
            )
        ids = self.lm.tokenizer.encode(load_text(spec.text))
        needed = spec.windows * spec.length + 1  # each window also reads the token it starts from
        if len(ids) < needed:
            raise UserError(
                f"{spec.windows} windows of {spec.length} need {needed} tokens; {spec.text} has {len(ids)}",
                "Use fewer or shorter windows.",
            )
        self.windows = [
            torch.tensor(ids[start : start + spec.length + 1], device=context.device)
            for start in range(0, spec.windows * spec.length, spec.length)
        ]
        place(self.lm, context.device)

    def measure(self, layer: str, spec: LayerSpec, replicate: int) -> Outcome:  # noqa: ARG002
        converted = build_model(self.lm, spec, self.context, head=self.head)
        losses = [self._score(converted.model, window) for window in self.windows]
        mean = sum(losses) / len(losses)
        if not mean < LARGEST_NLL:
            raise ArithmeticError(f"mean negative log likelihood of {layer} is {mean}: no perplexity")
        return Outcome(
            metrics={
                "quality.perplexity": math.exp(mean),
                "quality.tokens": float(sum(len(window) - 1 for window in self.windows)),
            },
            replicates={"quality.nll": losses},
            kernel=converted.kernels(),
        )

    @staticmethod
    def _score(model: Any, window: Tensor) -> float:
        """Mean negative log likelihood (nat) of every token of ``window [T + 1]`` but the first."""
        import torch
        import torch.nn.functional as F

        with torch.inference_mode():
            logits = model(window[None, :-1])[0]
            return float(F.cross_entropy(logits.float(), window[1:]))
