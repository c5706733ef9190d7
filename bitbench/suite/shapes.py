"""Linear-layer shapes by name, as ``[out_features, in_features]``.

The named models' sets hold each distinct weight shape of one transformer block once (attention
query/output, key/value, gate/up and down projections). Sources: the models' published
configurations (hidden, key/value and feed-forward sizes).

A workload spec that takes shapes declares a field of type :data:`Shapes`::

    class LinearSpec(WorkloadSpec):
        shapes: Shapes          # a set's name, or a list of [out, in]

After validation the field always holds the list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from bitbench.plugins import advice

MAX_FEATURES = 1 << 20
"""Largest side of a weight matrix: far above any model, far below what would hang a machine by a
typing slip (a square of this side is 4 TiB of float32)."""

MAX_WEIGHTS = 1 << 32
"""Most weights of one layer: 16 GiB as float32."""

SHAPE_SETS: dict[str, list[list[int]]] = {
    "smollm2-135m": [[576, 576], [192, 576], [1536, 576], [576, 1536]],
    "llama-3.2-1b": [[2048, 2048], [512, 2048], [8192, 2048], [2048, 8192]],
    "llama-3.1-8b": [[4096, 4096], [1024, 4096], [14336, 4096], [4096, 14336]],
    "bitnet-2b-4t": [[2560, 2560], [640, 2560], [6912, 2560], [2560, 6912]],
    "squares": [[1024, 1024], [2048, 2048], [4096, 4096], [8192, 8192]],
}


def check_shape(shape: list[int]) -> list[int]:
    """Refuse what is no ``[out_features, in_features]`` of a layer that can exist."""
    if len(shape) != 2:
        raise PydanticCustomError(
            "shape",
            "a shape is [out_features, in_features], two whole numbers, not {shape}",
            {"shape": shape},
        )
    for name, value in zip(("out_features", "in_features"), shape, strict=True):
        if not 1 <= value <= MAX_FEATURES:
            raise PydanticCustomError(
                "shape",
                "{name} must be from 1 to {limit}, not {value}",
                {"name": name, "limit": MAX_FEATURES, "value": value},
            )
    if shape[0] * shape[1] > MAX_WEIGHTS:
        raise PydanticCustomError(
            "shape",
            "{out} x {inn} is {count} weights; the limit is {limit} (16 GiB as float32)",
            {"out": shape[0], "inn": shape[1], "count": shape[0] * shape[1], "limit": MAX_WEIGHTS},
        )
    return shape


Shape = Annotated[list[int], AfterValidator(check_shape)]
"""One ``[out_features, in_features]``."""


def _resolve(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, list) and not value:
        raise PydanticCustomError("shape", "the list of shapes is empty; give at least one [out, in]")
    if isinstance(value, list) and all(isinstance(item, int) for item in value):
        raise PydanticCustomError(
            "shape", "must be a list of [out, in]; write {nested}", {"nested": f"[{value}]"}
        )
    if not isinstance(value, str):
        return value
    own: Mapping[str, Any] = (info.context or {}).get("shapes", {})
    known = {**SHAPE_SETS, **own}
    if value not in known:
        raise PydanticCustomError(
            "shape_set",
            "unknown shape set {name}; {advice}; or give a list of [out, in]",
            {"name": repr(value), "advice": advice(value, known)},
        )
    return known[value]


Shapes = Annotated[
    list[Shape],
    BeforeValidator(_resolve),
    WithJsonSchema(
        {
            "description": "Name of a shape set, or a list of [out_features, in_features].",
            "anyOf": [
                {"type": "string", "examples": list(SHAPE_SETS)},
                {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "array",
                        "minItems": 2,
                        "maxItems": 2,
                        "items": {"type": "integer", "minimum": 1, "maximum": MAX_FEATURES},
                    },
                },
            ],
        },
        mode="validation",
    ),
]
"""Shapes of a workload. A name is looked up among the suite's own sets, then in :data:`SHAPE_SETS`."""
