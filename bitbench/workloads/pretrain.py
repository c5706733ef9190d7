"""``pretrain``: a small byte-level GPT trained from scratch with each layer kind.

Every linear layer of the blocks is the kind's trainable form, quantisation-aware where the kind
quantises. Layers of one seed start from the same float weights and see the same batches in the
same order; the score is held-out bits per byte on slices that are always the same. Seeds are what
the interval is taken over.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from bitbench.data.models import catalog_names
from bitbench.data.texts import check_text, load_corpus
from bitbench.errors import UserError
from bitbench.layers.base import LayerKind, LayerSpec
from bitbench.plugins import did_you_mean, join_names
from bitbench.workloads.base import Context, PointPlan, Session, WorkloadKind, WorkloadSpec
from bitbench.workloads.training import TrainingSession, optimiser_for, schedule, trainable_factory

if TYPE_CHECKING:
    from torch import Tensor

    from impl.models.gpt import GPT

PRESETS = {
    "gpt-nano": {"num_layers": 4, "num_heads": 4, "hidden_size": 128},
    "gpt-pico": {"num_layers": 2, "num_heads": 2, "hidden_size": 64},
}
"""Shapes of the network; vocabulary 256 (bytes), context as the entry says."""

HELD_OUT_WINDOWS = 256
"""Held-out slices of one context each, evenly spaced over the held-out bytes."""

WEIGHT_DECAY = 0.1
MAX_GRADIENT_NORM = 1.0

FLOPS = 1e11
"""Arithmetic rate of training networks this small on two cores, all overhead in."""

QUANTISED_COST = 1.3
"""Time of a quantisation-aware step over that of a float step."""


class PretrainSpec(WorkloadSpec):
    """``{kind: pretrain, model: gpt-nano, text: sotu, seeds: 3}``"""

    model: str = "gpt-nano"
    text: str
    """Catalog name, ``synthetic``, or the path of a .txt file."""
    steps: int = Field(default=400, ge=1)
    batch: int = Field(default=16, ge=1)
    context: int = Field(default=128, ge=2, le=4096)
    """Bytes of a sequence."""
    seeds: int = Field(default=3, ge=1)
    first_seed: int = Field(default=0, ge=0)
    lr: float = Field(default=2e-3, gt=0, lt=1)
    """Peak learning rate of AdamW's rule."""

    @field_validator("model")
    @classmethod
    def _known_model(cls, model: str) -> str:
        if model not in PRESETS:
            raise ValueError(
                f"unknown preset {model!r}; {did_you_mean(model, PRESETS)} known: {join_names(PRESETS)}"
            )
        return model

    @field_validator("text")
    @classmethod
    def _known_text(cls, text: str) -> str:
        return check_text(text)


class PretrainWorkload(WorkloadKind):
    name: ClassVar[str] = "pretrain"
    spec: ClassVar[type[PretrainSpec]] = PretrainSpec
    axes: ClassVar[tuple[str, ...]] = ("seeds",)

    def points(self, spec: PretrainSpec) -> list[PointPlan]:
        params = {"model": spec.model, "text": spec.text, "steps": spec.steps}
        return [PointPlan(params, "once", "seeds", launches=spec.seeds)]

    def quick(self, spec: PretrainSpec) -> PretrainSpec:
        return spec.model_copy(update={"seeds": 1, "steps": min(20, spec.steps)})

    def estimate(self, spec: PretrainSpec, plan: PointPlan, layer: LayerSpec) -> float:  # noqa: ARG002
        shape = PRESETS[spec.model]
        weights = 12 * shape["num_layers"] * shape["hidden_size"] ** 2 + 256 * shape["hidden_size"]
        forward = 2 * weights * spec.context
        train = 3 * forward * spec.batch * spec.steps
        slowdown = 1.0 if layer.kind == "linear" else QUANTISED_COST
        return slowdown * (train + forward * HELD_OUT_WINDOWS) / FLOPS

    def data(self, spec: PretrainSpec) -> list[str]:
        return catalog_names(spec.text)

    def open(self, spec: PretrainSpec, params: dict[str, Any], context: Context) -> Session:  # noqa: ARG002
        return PretrainSession(spec, context)


class PretrainSession(TrainingSession):
    """The corpus, shared by all layers."""

    def __init__(self, spec: PretrainSpec, context: Context) -> None:
        import torch

        self.spec = spec
        self.context = context
        corpus = load_corpus(spec.text)
        shortest = min(len(corpus.train), len(corpus.held_out))
        if shortest <= spec.context + 1:
            raise UserError(
                f"text {spec.text} has a part of {shortest} bytes; context {spec.context} needs "
                f"{spec.context + 2}",
                "Use a longer text or a shorter context.",
            )
        self.train = torch.frombuffer(bytearray(corpus.train), dtype=torch.uint8)
        self.held_out = held_out_windows(
            torch.frombuffer(bytearray(corpus.held_out), dtype=torch.uint8), spec.context
        )

    def _network(self, kind: LayerKind, spec: LayerSpec, seed: int) -> GPT:
        from impl.models.gpt import GPT, GPTConfig

        config = GPTConfig(context=self.spec.context, **PRESETS[self.spec.model])
        return GPT(config, trainable_factory(kind, spec), seed=seed).to(self.context.device)

    def _fit(self, model: GPT, seed: int) -> float:
        """Train; returns the loss (nat) of the last step."""
        import torch

        spec = self.spec
        optimiser = optimiser_for(
            model, lr=spec.lr, steps=spec.steps, weight_decay=WEIGHT_DECAY, betas=(0.9, 0.95)
        )
        trained = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule(step, spec.steps))
        generator = torch.Generator().manual_seed(seed)
        offsets = torch.arange(spec.context + 1)
        model.train()
        value = math.nan
        for _ in range(spec.steps):
            starts = torch.randint(len(self.train) - spec.context, (spec.batch, 1), generator=generator)
            batch = self.train[starts + offsets].long().to(self.context.device)
            optimiser.zero_grad(set_to_none=True)
            loss = model.loss(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
            optimiser.step()
            rates.step()
            value = float(loss.detach())
        return value

    def _score(self, model: GPT) -> dict[str, float]:
        return {"training.bits_per_byte": self._held_out_loss(model) / math.log(2)}

    def _held_out_loss(self, model: GPT) -> float:
        """Mean negative log likelihood (nat) a byte over the held-out slices."""
        import torch

        model.eval()
        with torch.no_grad():
            parts = self.held_out.split(32)
            total = sum(float(model.loss(part.long().to(self.context.device))) * len(part) for part in parts)
        return total / len(self.held_out)


def held_out_windows(data: Tensor, context: int) -> Tensor:
    """Up to :data:`HELD_OUT_WINDOWS` slices ``[windows, context + 1]``, evenly spaced, none sharing a
    scored byte with another."""
    import torch

    room = (len(data) - 1) // context
    count = min(HELD_OUT_WINDOWS, room)
    starts = torch.arange(count) * (room // count) * context
    return data[starts[:, None] + torch.arange(context + 1)]
