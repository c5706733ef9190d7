"""Two-dimensional convolutions and residual blocks by name, for the workloads ``conv2d`` and ``block``.

A workload spec that takes them declares a field of type :data:`Convolutions` or :data:`Blocks`; after
validation it holds the list, whether a set was named or written out.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from bitbench.plugins import advice
from bitbench.suite.shapes import Shape

MAX_KERNEL = 64
MAX_SIZE = 1 << 14
"""Largest side of an image: far above any network's, far below what a typing slip would ask for."""


class ConvShape(BaseModel):
    """A square kernel on a square image, padded by ``kernel // 2`` with zeros on every side, as
    residual networks do: at stride 1 an odd kernel keeps the size of the image."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    shape: Shape
    """``[out_channels, in_channels]``."""
    kernel: int = Field(default=3, ge=1, le=MAX_KERNEL)
    """Side of the kernel."""
    stride: int = Field(default=1, ge=1, le=MAX_KERNEL)
    size: int = Field(ge=1, le=MAX_SIZE)
    """Side of the input image."""

    @model_validator(mode="after")
    def _kernel_fits(self) -> ConvShape:
        if self.size + 2 * self.padding < self.kernel:
            raise PydanticCustomError(
                "size",
                "an image of side {size}, padded by {padding}, is smaller than the kernel {kernel}",
                {"size": self.size, "padding": self.padding, "kernel": self.kernel},
            )
        return self

    @property
    def out_channels(self) -> int:
        return self.shape[0]

    @property
    def in_channels(self) -> int:
        return self.shape[1]

    @property
    def padding(self) -> int:
        """Zeros added on each side of the image."""
        return self.kernel // 2

    @property
    def output_size(self) -> int:
        """Side of the output image."""
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def sides(self) -> tuple[int, int, int, int, int]:
        """What ``nn.Conv2d`` takes: channels in and out, kernel, stride, padding."""
        return self.in_channels, self.out_channels, self.kernel, self.stride, self.padding

    @property
    def columns(self) -> int:
        """Inputs of one output value: the columns of the matrix that the weight is packed as."""
        return self.kernel**2 * self.in_channels

    @property
    def pixels(self) -> int:
        """Output positions of one image."""
        return self.output_size**2


class BlockShape(BaseModel):
    """A basic block of a residual network on a square image (He et al., 2016, figure 5 left): two 3 x 3
    convolutions, and around them a shortcut, 1 x 1 where the block changes the shape of its input."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    shape: Shape
    """``[out_channels, in_channels]``."""
    stride: int = Field(default=1, ge=1, le=MAX_KERNEL)
    """Of the first convolution, and of the shortcut."""
    size: int = Field(ge=1, le=MAX_SIZE)
    """Side of the input image."""

    @property
    def convolutions(self) -> list[ConvShape]:
        """First, second, and that of the shortcut where there is one."""
        rows, columns = self.shape
        first = ConvShape(shape=self.shape, stride=self.stride, size=self.size)
        found = [first, ConvShape(shape=[rows, rows], size=first.output_size)]
        if self.stride != 1 or rows != columns:
            found.append(ConvShape(shape=self.shape, kernel=1, stride=self.stride, size=self.size))
        return found

    @property
    def output_size(self) -> int:
        """Side of the output image."""
        return self.convolutions[0].output_size


def _set(*rows: tuple[int, int, int, int, int]) -> list[dict[str, Any]]:
    names = ("kernel", "stride", "size")
    return [{"shape": list(row[:2]), **dict(zip(names, row[2:], strict=True))} for row in rows]


CONVOLUTION_SETS: dict[str, list[dict[str, Any]]] = {
    # Each distinct convolution of the network's blocks once, for images of 224 x 224 (He et al., 2016,
    # table 1). The first layer, 7 x 7 on three channels, stays float in every binary network.
    "resnet-18": _set(
        (64, 64, 3, 1, 56),
        (128, 64, 3, 2, 56),
        (128, 128, 3, 1, 28),
        (256, 128, 3, 2, 28),
        (256, 256, 3, 1, 14),
        (512, 256, 3, 2, 14),
        (512, 512, 3, 1, 7),
        (128, 64, 1, 2, 56),
        (256, 128, 1, 2, 28),
        (512, 256, 1, 2, 14),
    ),
}


BLOCK_SETS: dict[str, list[dict[str, Any]]] = {
    # Each distinct block: the first of every stage, whose convolution is the first of two, and the others.
    name: [{key: row[key] for key in ("shape", "stride", "size")} for row in rows if row["kernel"] == 3]
    for name, rows in CONVOLUTION_SETS.items()
}


def _resolver(sets: dict[str, list[dict[str, Any]]], plural: str, example: str) -> BeforeValidator:
    """What puts the list in the place of the name of a set."""

    def resolve(value: Any) -> Any:
        if isinstance(value, list) and not value:
            raise PydanticCustomError("shape", "the list of shapes is empty; give at least one")
        if not isinstance(value, str):
            return value
        if value not in sets:
            raise PydanticCustomError(
                "shape_set",
                "unknown set of {plural} {name}; {advice}; or give a list such as {example}",
                {"plural": plural, "name": repr(value), "advice": advice(value, sets), "example": example},
            )
        return sets[value]

    return BeforeValidator(resolve)


def _schema(sets: dict[str, list[dict[str, Any]]], plural: str, item: type[BaseModel]) -> WithJsonSchema:
    return WithJsonSchema(
        {
            "description": f"Name of a set of {plural}, or a list of them.",
            "anyOf": [
                {"type": "string", "examples": list(sets)},
                {"type": "array", "minItems": 1, "items": item.model_json_schema()},
            ],
        },
        mode="validation",
    )


Convolutions = Annotated[
    list[ConvShape],
    _resolver(CONVOLUTION_SETS, "convolutions", "[{shape: [64, 64], kernel: 3, size: 56}]"),
    _schema(CONVOLUTION_SETS, "convolutions", ConvShape),
]
"""Shapes of a convolution workload: a name of :data:`CONVOLUTION_SETS`, or a list."""

Blocks = Annotated[
    list[BlockShape],
    _resolver(BLOCK_SETS, "blocks", "[{shape: [64, 64], size: 56}]"),
    _schema(BLOCK_SETS, "blocks", BlockShape),
]
"""Shapes of a workload of residual blocks: a name of :data:`BLOCK_SETS`, or a list."""
