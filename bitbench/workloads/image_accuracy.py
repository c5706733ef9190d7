"""``image_accuracy``: a pretrained image classifier after its convolutions are replaced, without retraining.

Those of the blocks always; the first convolution and the head, which low-bit networks usually keep in
float, where the entry says ``stem: same`` or ``head: same``. Scored is the share of the test images that
the network gets right; each image is a replicate of the interval, and the change from the baseline is
taken image by image. Where the entry says ``calibration``, the batch norms take the mean and variance of
what they read anew, on training images, before the network is scored: no weight changes.

Accuracy depends on numerics alone, so packing formats that decode to the same weights share one
measurement. At points of their own, the bytes of the network are counted, and the classification of a
batch of test images is timed. Images and weights lie pixel by pixel in memory (``channels_last``), in which
torch's convolutions are faster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from bitbench.data.catalog import names
from bitbench.data.classifiers import NETWORKS, Layer, check_classifier, load_classifier
from bitbench.data.images import (
    SYNTHETIC,
    SYNTHETIC_TEST,
    by_channel,
    check_images,
    load_images,
    load_test_images,
)
from bitbench.errors import UserError
from bitbench.layers import registry
from bitbench.layers.base import LayerSpec
from bitbench.layers.specs import LinearSpec
from bitbench.measure.memory import file_bytes, ledger
from bitbench.store.schema import all_params
from bitbench.workloads.base import (
    Context,
    Outcome,
    PointPlan,
    Session,
    WorkloadKind,
    WorkloadSpec,
)
from bitbench.workloads.conv2d import CHECK_OPERATIONS_PER_SECOND, CHECKED_IMAGES, Images
from bitbench.workloads.conversions import (
    Converted,
    End,
    is_float32,
    replaced_by,
    sharing_copy,
    supported,
)
from bitbench.workloads.ledger import model_figures, weight_figures
from bitbench.workloads.linear import timed_seconds
from bitbench.workloads.network_subject import NetworkSubject
from bitbench.workloads.pace import call_seconds

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bitbench.workloads.conversions import FloatLayer
    from impl.models.resnet import ResNet

STEM, HEAD = "stem", "head"
SCORED_AT_ONCE = 100
"""Test images of a call."""
QUICK_COUNT = 200

TEST_IMAGES = 10_000
"""Of MNIST and its successors, and of CIFAR-10."""
CONVERT_SECONDS_PER_WEIGHT = 1e-7
"""Of one component."""
PREPARE_SECONDS_PER_WEIGHT = 5e-8
"""Take over a conversion that the run has kept."""
COMPONENT_COST = 5.0
"""Time to fit a further component, as a multiple of the first one's."""
CONV_COST = {"fp32": 0.6, "bf16": 2.0, "int8": 2.0, "bit": 2.0}
"""Time of a convolution over that of a matrix product of as many operations, by what bounds the arithmetic:
torch needs fewer in float32."""
REST_SECONDS_PER_OUTPUT = 2e-9
"""Norm, ReLU and sum, for each number that a convolution puts out."""
LOAD_SECONDS = 1.0
FLOAT = LinearSpec(kind="linear")
"""What is not replaced."""


class ImageAccuracySpec(WorkloadSpec):
    """``{kind: image_accuracy, model: cifar-resnet18, images: cifar10, count: 2000, batch: [1, 32]}``"""

    model: str
    """Catalog name, or ``tiny-resnet-random``."""
    images: str
    """Test images of the size that the model reads: catalog name, ``synthetic``, or a folder of idx files."""
    count: int | None = Field(default=None, ge=3)
    """Score the first so many test images; null means all."""
    stem: End = "float"
    """The first convolution. float: left as it is. same: replaced too, by what replaces the others."""
    head: End = "float"
    """The linear layer at the end, as ``stem``."""
    calibration: int | None = Field(default=None, ge=2)
    """Training images on which the statistics of the batch norms are taken anew after conversion, the first
    so many; null keeps those of the float network."""
    batch: list[Images] = Field(default=[])
    """Images of a timed call of the whole network, each number at a point of its own."""
    memory: bool = True
    """Whether the bytes of the network are counted too."""

    @field_validator("model")
    @classmethod
    def _known_model(cls, model: str) -> str:
        return check_classifier(model)

    @field_validator("images")
    @classmethod
    def _known_images(cls, images: str) -> str:
        return check_images(images)


class ImageAccuracyWorkload(WorkloadKind):
    name: ClassVar[str] = "image_accuracy"
    spec: ClassVar[type[ImageAccuracySpec]] = ImageAccuracySpec
    axes: ClassVar[tuple[str, ...]] = ("stem", "head", "count", "calibration", "batch", "memory")
    growing: ClassVar[tuple[str, ...]] = ("batch",)

    def points(self, spec: ImageAccuracySpec) -> list[PointPlan]:
        implied = all_params(spec.kind, {})
        ends = {key: value for key in (STEM, HEAD) if (value := getattr(spec, key)) != implied[key]}
        model = {"model": spec.model, "images": spec.images, **ends}
        own = {"count": spec.count, "calibration": spec.calibration}
        scored = model | {name: number for name, number in own.items() if number is not None}
        found = [PointPlan(scored, "once", "images")]
        if spec.memory:
            found.append(PointPlan({**model, "measure": "memory"}, "once", "exact"))
        return found + [PointPlan({**model, "batch": batch}, "timed", "launches") for batch in spec.batch]

    def quick(self, spec: ImageAccuracySpec) -> ImageAccuracySpec:
        count = QUICK_COUNT if spec.count is None else min(spec.count, QUICK_COUNT)
        return spec.model_copy(update={"count": count, "batch": spec.batch[:1]})

    def estimate(self, spec: ImageAccuracySpec, plan: PointPlan, layer: LayerSpec) -> float:
        replaced = _replaced(spec)
        if plan.replicate == "images":
            everything = SYNTHETIC_TEST if spec.images == SYNTHETIC else TEST_IMAGES
            seen = (spec.count or everything) + (spec.calibration or 0)
            return _convert_seconds(replaced, layer) + _seconds(spec, layer, seen)
        prepare = PREPARE_SECONDS_PER_WEIGHT * sum(one.columns * one.rows for one in replaced)
        if plan.phase == "once":
            return prepare
        batch = plan.params["batch"]
        multiplied = sum(one.columns * one.rows * one.pixels for one in replaced) * min(batch, CHECKED_IMAGES)
        checks = 2 * 2 * multiplied / CHECK_OPERATIONS_PER_SECOND
        return prepare + checks + timed_seconds(_seconds(spec, layer, batch))

    def estimate_open(self, spec: ImageAccuracySpec, plan: PointPlan) -> float:  # noqa: ARG002
        return LOAD_SECONDS if self.data(spec) else 0.0

    def data(self, spec: ImageAccuracySpec) -> list[str]:
        known = (*names("classifier"), *names("images"))
        return [name for name in (spec.model, spec.images) if name in known]

    def open(self, spec: ImageAccuracySpec, params: dict[str, Any], context: Context) -> ImageAccuracySession:
        return ImageAccuracySession(spec, params, context)


def _replaced(spec: ImageAccuracySpec) -> list[Layer]:
    network = NETWORKS[spec.model]
    ends = [(spec.stem, network.stem), (spec.head, network.head)]
    return network.blocks + [layer for value, layer in ends if value == "same"]


def _kept(spec: ImageAccuracySpec) -> list[Layer]:
    network = NETWORKS[spec.model]
    ends = [(spec.stem, network.stem), (spec.head, network.head)]
    return [layer for value, layer in ends if value == "float"]


def _seconds(spec: ImageAccuracySpec, layer: LayerSpec, images: int) -> float:
    """Seconds in which the network classifies so many images."""
    seconds = 0.0
    for kind, layers in ((layer, _replaced(spec)), (FLOAT, _kept(spec))):
        for one in layers:
            compute = registry.get(kind.kind).cost(kind, one.columns, one.rows).compute
            seconds += CONV_COST.get(compute, 1.0) * call_seconds(
                kind, one.columns, one.rows, one.pixels * images
            )
    outputs = sum(one.rows * one.pixels for one in NETWORKS[spec.model].blocks)
    return seconds + REST_SECONDS_PER_OUTPUT * outputs * images


def _convert_seconds(replaced: list[Layer], layer: LayerSpec) -> float:
    if layer.kind == "linear":
        return 0.0
    components = 1 + COMPONENT_COST * (getattr(layer, "k", 1) - 1)
    weights = sum(one.columns * one.rows for one in replaced)
    return CONVERT_SECONDS_PER_WEIGHT * components * weights


class ImageAccuracySession(Session):
    """The float network and the test images, shared by all layers."""

    def __init__(self, spec: ImageAccuracySpec, params: dict[str, Any], context: Context) -> None:
        import torch

        self.spec = spec
        self.params = params
        self.context = context
        self.classifier = load_classifier(spec.model)
        split = load_test_images(spec.images)
        pixels = by_channel(split)
        self._require(tuple(pixels.shape), int(split.labels.max()) + 1)
        self.training: Tensor | None = None
        if calibration := params.get("calibration"):
            train = load_images(spec.images).train
            self._require_as_many("calibration", len(train.labels), "training")
            self.training = by_channel(train, calibration).to(context.device)
        self.pixels = pixels[: params.get("count")].to(context.device)
        self.labels = torch.tensor(split.labels[: params.get("count")]).long().to(context.device)
        self._place(self.classifier.model)

    def _require(self, shape: tuple[int, ...], classes: int) -> None:
        network, spec, remedy = self.classifier.network, self.spec, "Name the images that it was made for."
        wanted = (network.config["channels"], network.size, network.size)
        if shape[1:] != wanted:
            raise UserError(
                f"{spec.model} reads images of {_sides(wanted)}, {spec.images} holds {_sides(shape[1:])}",
                remedy,
            )
        if classes > network.config["classes"]:
            raise UserError(
                f"{spec.model} tells {network.config['classes']} classes apart, {spec.images} has {classes}",
                remedy,
            )
        for name in ("count", "batch"):
            self._require_as_many(name, shape[0], "test")

    def _require_as_many(self, name: str, available: int, part: str) -> None:
        wanted = self.params.get(name, 0)
        if wanted > available:
            raise UserError(
                f"{name} {wanted} is more than the {available} {part} images of {self.spec.images}",
                "Lower it.",
            )

    def build(self, layer: str, spec: LayerSpec) -> NetworkSubject:  # noqa: ARG002 - its name changes nothing
        return NetworkSubject(self.converted(spec), as_numbers(self.pixels[: self.params["batch"]]))

    def measure(self, layer: str, spec: LayerSpec, replicate: int) -> Outcome:  # noqa: ARG002 - there is one
        converted = self.converted(spec)
        if "measure" in self.params:
            return Outcome(self._bytes(converted))
        if self.training is not None:
            take_statistics(converted.model, self.training)
        right = self._score(layer, converted.model)
        return Outcome(
            metrics={"quality.accuracy": sum(right) / len(right), "quality.images": float(len(right))},
            replicates={"quality.right": right},
            kernel=converted.kernels(),
        )

    def converted(self, spec: LayerSpec) -> Converted:
        """The network with its layers replaced by what ``spec`` makes of them. The rest is shared."""
        kind = supported(spec, self.context)
        network = self.classifier.model
        parts: dict[str, dict[str, FloatLayer]] = {"blocks": _convolutions(network)}
        for name, end in ((STEM, network.stem), (HEAD, network.head)):
            if getattr(self.spec, name) == "same" and not is_float32(spec):
                parts[name] = {name: end}  # type: ignore[dict-item]  # what a float network has there
        layers: dict[str, nn.Module] = {}
        for part, floats in parts.items():
            layers |= replaced_by(part, floats, self.classifier.identity, kind, spec, self.context)
        model = sharing_copy(network)
        for name, layer in layers.items():
            model.set_submodule(name, self._place(layer))
        return Converted(model.eval(), layers, kind, spec)

    def _place(self, module: nn.Module) -> nn.Module:
        import torch

        # torch's stubs know `memory_format` for tensors only.
        placed: nn.Module = module.to(self.context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stubs
        return placed

    def _score(self, layer: str, model: ResNet) -> list[float]:
        """1 for each image whose class has the largest logit, else 0."""
        import torch

        right: list[float] = []
        with torch.inference_mode():
            for pixels, labels in zip(
                self.pixels.split(SCORED_AT_ONCE), self.labels.split(SCORED_AT_ONCE), strict=True
            ):
                logits = model(as_numbers(pixels))
                if not bool(logits.isfinite().all()):
                    raise ArithmeticError(f"the network with {layer} gives NaN or infinity: no accuracy")
                right += (logits.argmax(dim=1) == labels).double().tolist()
        return right

    def _bytes(self, converted: Converted) -> dict[str, float]:
        """Of the replaced weights and of the whole network."""
        from torch import nn

        floats = [self.classifier.model.get_submodule(name) for name in converted.layers]
        weights = ledger(nn.ModuleList(converted.layers.values())), ledger(nn.ModuleList(floats))
        file, fp32_file = file_bytes(converted.model), file_bytes(self.classifier.model)
        return {
            **weight_figures(*weights),
            **model_figures(converted.model, self.classifier.model),
            "memory.file_bytes": float(file),
            "memory.file_ratio": fp32_file / file,
        }


def _sides(shape: tuple[int, ...]) -> str:
    channels, rows, columns = shape
    return f"{rows} x {columns} pixels in {'colour' if channels == 3 else 'grey'}"


def _convolutions(network: ResNet) -> dict[str, FloatLayer]:
    from torch import nn

    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and name != STEM
    }


def take_statistics(model: ResNet, pixels: Tensor) -> None:
    """Let the batch norms of ``model`` take mean and variance anew: of what they read of ``pixels``, the mean
    over batches. Their tensors may be another network's too: it keeps what it has."""
    import torch
    from torch import nn

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        for name, buffer in list(norm.named_buffers()):
            setattr(norm, name, torch.zeros_like(buffer))
        norm.momentum = None  # torch's word for the mean over all batches
        norm.train()
    with torch.no_grad():
        for batch in pixels.split(SCORED_AT_ONCE):
            model(as_numbers(batch))
    model.eval()


def as_numbers(pixels: Tensor) -> Tensor:
    """Bytes as float32 from 0 to 1."""
    return pixels.float() / 255
