"""Two-dimensional convolutions by name, for the workload ``conv2d``.

A workload spec that takes them declares a field of type :data:`Convolutions`; after validation it
holds the list, whether a set was named or written out.
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
    def columns(self) -> int:
        """Inputs of one output value: the columns of the matrix that the weight is packed as."""
        return self.kernel**2 * self.in_channels

    @property
    def pixels(self) -> int:
        """Output positions of one image."""
        return self.output_size**2


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


def _resolve(value: Any) -> Any:
    if isinstance(value, list) and not value:
        raise PydanticCustomError("shape", "the list of shapes is empty; give at least one")
    if not isinstance(value, str):
        return value
    if value not in CONVOLUTION_SETS:
        raise PydanticCustomError(
            "shape_set",
            "unknown set of convolutions {name}; {advice}; or give a list such as {example}",
            {
                "name": repr(value),
                "advice": advice(value, CONVOLUTION_SETS),
                "example": "[{shape: [64, 64], kernel: 3, size: 56}]",
            },
        )
    return CONVOLUTION_SETS[value]


Convolutions = Annotated[
    list[ConvShape],
    BeforeValidator(_resolve),
    WithJsonSchema(
        {
            "description": "Name of a set of convolutions, or a list of them.",
            "anyOf": [
                {"type": "string", "examples": list(CONVOLUTION_SETS)},
                {"type": "array", "minItems": 1, "items": ConvShape.model_json_schema()},
            ],
        },
        mode="validation",
    ),
]
"""Shapes of a convolution workload: a name of :data:`CONVOLUTION_SETS`, or a list."""
