"""Layer descriptions refuse what no layer can be."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from bitbench.layers import registry


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "binary", "group_size": 7}, "multiple of 8, not 7; the nearest: 8"),
        ({"kind": "ternary", "group_size": 100}, "not 100; the nearest: 96 or 104"),
        ({"kind": "ternary", "group_size": 0}, "multiple of 8, not 0"),
        ({"kind": "ternary", "group_size": 64, "scale": "tensor"}, "scale per row and group"),
        ({"kind": "ternary", "activation_bits": 3}, "Input should be 1, 2, 8 or 16"),
        ({"kind": "ternary", "format": "binary"}, "'base3' or 'two_bit'"),
        ({"kind": "k_ternary", "k": 0}, "greater than or equal to 1"),
        ({"kind": "k_ternary", "k": 17}, "less than or equal to 16"),
        ({"kind": "k_ternary", "k": "2"}, "valid integer"),
        ({"kind": "k_ternary", "k": True}, "valid integer"),
        ({"kind": "linear", "dtype": "float64"}, "'float32', 'bfloat16' or 'float16'"),
        ({"kind": "torch_int8", "bits": 4}, "Extra inputs"),
    ],
)
def test_impossible_layers_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        registry.get(fields["kind"]).spec.model_validate(fields)


@pytest.mark.parametrize("kind", registry.kinds())
def test_descriptions_survive_json(kind: str) -> None:
    spec = registry.get(kind).spec.model_validate({"kind": kind})
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec
