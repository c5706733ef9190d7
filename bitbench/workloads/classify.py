"""``classify``: a small network trained from scratch with each layer kind to tell images apart.

``mlp``: a perceptron, all of whose three matrices are the kind's trainable form, the last one included.
``resnet``: a residual network, the convolutions of whose blocks are; its first convolution and its head
stay float, as in most low-bit networks, unless the entry says otherwise. The kind's layers are
quantisation-aware where it quantises, without a float copy of the weights where it has none. Those train
by DiodeMix alone, everything else by AdamW (:func:`bitbench.workloads.training.optimiser_for`).

Layers of one seed start from the same float weights and see the same batches in the same order; the score
is the share of the test images that the network gets right. Seeds are what the interval is taken over. The
trained network is packed then, and must classify the same images alike; its time is a point of its own
(:mod:`bitbench.workloads.classify_speed`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from bitbench.data.catalog import names
from bitbench.data.images import SYNTHETIC, SYNTHETIC_TRAIN, check_images
from bitbench.errors import UserError
from bitbench.layers.base import LayerKind, LayerSpec
from bitbench.workloads.base import (
    Context,
    Incorrect,
    PointPlan,
    Session,
    WorkloadKind,
    WorkloadSpec,
)
from bitbench.workloads.conv2d import Images
from bitbench.workloads.conversions import End
from bitbench.workloads.linear import BUDGET_SECONDS, GPU_SECONDS, timed_seconds
from bitbench.workloads.pace import OPERATIONS_PER_SECOND
from bitbench.workloads.training import TrainingSession, optimiser_for, packed, schedule

if TYPE_CHECKING:
    from torch import Tensor, nn

SCORED_AT_ONCE = 250
"""Test images of a call."""
PACKED_DIFFERENCE = 1e-3
"""Share of the test images that a network may classify otherwise once packed: where two classes are as
likely, and rounding decides."""

QUICK_IMAGES = 10_000
"""A convolutional network is trained on no more in a quick run."""

# What the estimate is made of: MNIST, measured on two cores of a server.
SIDE, CLASSES, IMAGES = 28, 10, 60_000
STEP_SECONDS = 1e-3
"""Of a step beside its arithmetic."""
FLOPS = 1.5e11
CONVOLUTION_FLOPS = {False: 1.1e11, True: 2.2e11}
"""Of convolutions as narrow as these, forward and backward, by whether they are in bfloat16."""
QUANTISED_COST = 2.0
"""Time of a step of a kind that quantises, or flips, over that of a float step."""
GPU_STEP_SECONDS = 1e-2
"""Of a step on a GPU, which launches some hundred small kernels; reckoned and not measured."""
LOAD_SECONDS = 0.1

_LATER: dict[str, Any] = {
    "network": "mlp",
    "widths": [16, 32, 64],
    "blocks": [1, 1, 1],
    "ends": "float",
    "train_images": None,
    "autocast": False,
}
"""Fields that entries did not have once: left out of what an entry is where they say nothing new, so that its
cases keep the ids that they had in stored runs."""


class ClassifySpec(WorkloadSpec):
    """``{kind: classify, images: mnist, seeds: 5}``"""

    images: str
    """Catalog name, ``synthetic``, or a folder of four idx files."""
    network: Literal["mlp", "resnet"] = "mlp"
    """mlp: a perceptron of three layers. resnet: a residual network of basic blocks."""
    hidden: int = Field(default=256, ge=1, le=1 << 14)
    """Of an mlp: features of each of the two hidden layers."""
    widths: list[int] = Field(default=_LATER["widths"], min_length=1, max_length=8)
    """Of a resnet: channels of each stage. Every stage but the first halves the size of the image."""
    blocks: list[int] = Field(default=_LATER["blocks"], min_length=1, max_length=8)
    """Of a resnet: blocks of each stage."""
    ends: End = "float"
    """Of a resnet: its first convolution and its head. float: nn.Conv2d and nn.Linear. same: of the kind."""
    train_images: int | None = Field(default=None, ge=2)
    """Images to train on, the first ones of the set; null: all."""
    epochs: int = Field(default=6, ge=1)
    """Times that every training image is seen."""
    batch: int = Field(default=250, ge=2)
    """Images of a step; the last ones of an epoch that fill no batch are left out."""
    seeds: int = Field(default=5, ge=1)
    first_seed: int = Field(default=0, ge=0)
    lr: float = Field(default=4e-3, gt=0, lt=1)
    """Peak learning rate of AdamW's rule."""
    autocast: bool = False
    """Train under torch's autocast to bfloat16, faster on processors that multiply in it. Networks are scored
    in float32."""
    timed_batch: list[Images] = Field(default=[])
    """Images of a timed call of the packed network, each number at a point of its own."""

    @field_validator("images")
    @classmethod
    def _known_images(cls, images: str) -> str:
        return check_images(images)

    @model_validator(mode="after")
    def _fields_fit_the_network(self) -> ClassifySpec:
        other = ("hidden",) if self.network == "resnet" else ("widths", "blocks", "ends")
        for name in other:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise PydanticCustomError(
                    "network",
                    "{name} is no field of network: {network}",
                    {"name": name, "network": self.network},
                )
        if len(self.widths) != len(self.blocks) or min(*self.widths, *self.blocks) < 1:
            raise PydanticCustomError(
                "network",
                "widths and blocks name channels and blocks of each stage, as many of both and at least 1: "
                "not {widths} and {blocks}",
                {"widths": self.widths, "blocks": self.blocks},
            )
        return self

    @model_serializer(mode="wrap")
    def _without_defaults(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        described: dict[str, Any] = serialise(self)
        return {key: value for key, value in described.items() if key not in _LATER or value != _LATER[key]}


class ClassifyWorkload(WorkloadKind):
    name: ClassVar[str] = "classify"
    spec: ClassVar[type[ClassifySpec]] = ClassifySpec
    axes: ClassVar[tuple[str, ...]] = ("seeds", "timed_batch")

    def points(self, spec: ClassifySpec) -> list[PointPlan]:
        network: dict[str, Any] = {"hidden": spec.hidden}
        if spec.network == "resnet":
            widths, blocks = ("-".join(map(str, sizes)) for sizes in (spec.widths, spec.blocks))
            network = {"network": "resnet", "widths": widths, "blocks": blocks}
            network |= {"ends": spec.ends} if spec.ends != "float" else {}
        images = {} if spec.train_images is None else {"train_images": spec.train_images}
        params = {"images": spec.images, **network, **images, "epochs": spec.epochs}
        trained = PointPlan(params, "once", "seeds", launches=spec.seeds)
        timed = {"images": spec.images, **network}
        return [trained, *(PointPlan({**timed, "batch": n}, "timed", "launches") for n in spec.timed_batch)]

    def quick(self, spec: ClassifySpec) -> ClassifySpec:
        cut: dict[str, Any] = {"seeds": 1, "epochs": 1, "timed_batch": spec.timed_batch[:1]}
        if spec.network == "resnet":
            cut["train_images"] = min(spec.train_images or QUICK_IMAGES, QUICK_IMAGES)
        return spec.model_copy(update=cut)

    def estimate(self, spec: ClassifySpec, plan: PointPlan, layer: LayerSpec) -> float:
        macs = macs_of(spec)
        if plan.phase == "timed":
            # Layers so narrow are bound by neither memory nor arithmetic.
            return timed_seconds(2 * macs * plan.params["batch"] / OPERATIONS_PER_SECOND["fp32"]) + 0.3
        slowdown = 1.0 if layer.kind == "linear" else QUANTISED_COST
        flops = CONVOLUTION_FLOPS[spec.autocast] if spec.network == "resnet" else FLOPS
        return slowdown * steps_of(spec) * (STEP_SECONDS + 6 * macs * spec.batch / flops)

    def estimate_on_gpu(self, spec: ClassifySpec, plan: PointPlan, layer: LayerSpec) -> float:
        if plan.phase == "timed":
            return GPU_SECONDS + BUDGET_SECONDS
        return min(self.estimate(spec, plan, layer), steps_of(spec) * GPU_STEP_SECONDS)

    def estimate_open(self, spec: ClassifySpec, plan: PointPlan) -> float:  # noqa: ARG002
        return LOAD_SECONDS

    def data(self, spec: ClassifySpec) -> list[str]:
        return [spec.images] if spec.images in names("images") else []

    def open(self, spec: ClassifySpec, params: dict[str, Any], context: Context) -> Session:
        if "batch" in params:
            from bitbench.workloads.classify_speed import NetworkSession

            return NetworkSession(spec, params["batch"], context)
        return ClassifySession(spec, context)


def steps_of(spec: ClassifySpec) -> float:
    """Steps of a training run on as many images as MNIST has."""
    images = min(spec.train_images or IMAGES, SYNTHETIC_TRAIN if spec.images == SYNTHETIC else IMAGES)
    return spec.epochs * images / spec.batch


def macs_of(spec: ClassifySpec) -> float:
    """Multiply-accumulates of an image of the size of MNIST's."""
    if spec.network == "mlp":
        return spec.hidden * (SIDE**2 + spec.hidden + CLASSES)
    before, side = spec.widths[0], float(SIDE)
    total = 9 * before * side**2
    for stage, (width, count) in enumerate(zip(spec.widths, spec.blocks, strict=True)):
        side = side / 2 if stage else side
        total += side**2 * width * (9 * before + (2 * count - 1) * 9 * width)
        before = width
    return total


class ClassifySession(TrainingSession):
    """The images, shared by all layers."""

    def __init__(self, spec: ClassifySpec, context: Context) -> None:
        from bitbench.workloads.image_network import ImageNetwork

        self.spec = spec
        self.context = context
        self.images = ImageNetwork(spec, context.device)
        count = len(self.images.train[1])
        self.steps_per_epoch = count // spec.batch
        if not self.steps_per_epoch:
            raise UserError(
                f"images {spec.images} has {count} to train on, less than a batch of {spec.batch}",
                "Use a smaller batch.",
            )

    def _network(self, kind: LayerKind, spec: LayerSpec, seed: int) -> nn.Module:
        return self.images.network(kind, spec, seed)

    def _fit(self, model: nn.Module, seed: int) -> float:
        """Train; returns the loss (nat) of the last step."""
        import torch
        import torch.nn.functional as F

        spec = self.spec
        steps = spec.epochs * self.steps_per_epoch
        optimiser = optimiser_for(model, lr=spec.lr, steps=steps)
        rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule(step, steps))
        generator = torch.Generator().manual_seed(seed)
        images, labels = self.images.train
        short = torch.autocast(self.context.device, torch.bfloat16, enabled=spec.autocast)
        model.train()
        value = math.nan
        for _ in range(spec.epochs):
            order = torch.randperm(len(labels), generator=generator)
            for batch in order.split(spec.batch)[: self.steps_per_epoch]:
                chosen = batch.to(self.context.device)
                optimiser.zero_grad(set_to_none=True)
                with short:
                    loss = F.cross_entropy(model(self.images.normalised(images[chosen])), labels[chosen])
                loss.backward()
                optimiser.step()
                rates.step()
            value = float(loss.detach())
        return value

    def _score(self, model: nn.Module) -> dict[str, float]:
        """Share of the test images whose class has the largest logit, before and after packing, and the bytes
        of the packed network.

        Raises:
            Incorrect: the packed network classifies the same images otherwise.
        """
        labels = self.images.test[1]
        found = self._classes(model)
        again = self._classes(packed(model))
        alike = float((found == again).double().mean())
        if 1 - alike > PACKED_DIFFERENCE:
            raise Incorrect(
                f"packed, the network classifies {1 - alike:.2%} of {len(labels)} images otherwise than as "
                f"it was trained; rounding may turn {PACKED_DIFFERENCE:.1%}"
            )
        return {
            "training.accuracy": float((found == labels).double().mean()),
            "training.packed_accuracy": float((again == labels).double().mean()),
            "training.packed_agreement": alike,
            **self.images.byte_figures(model),
        }

    def _classes(self, model: nn.Module) -> Tensor:
        """The class of each test image, by the largest logit."""
        import torch

        model.eval()
        with torch.no_grad():
            parts = self.images.test[0].split(SCORED_AT_ONCE)
            return torch.cat([model(self.images.normalised(part)).argmax(dim=1) for part in parts])
