"""The torch-free cost model agrees with the packing code and with live layers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.layers import cost, registry
from bitbench.layers.base import LayerSpec
from impl.packing import codes_bytes

SPECS: dict[str, dict[str, Any]] = {
    "float32": {"kind": "linear"},
    "bfloat16": {"kind": "linear", "dtype": "bfloat16"},
    "float16": {"kind": "linear", "dtype": "float16"},
    "binary": {"kind": "binary"},
    "binary-g16": {"kind": "binary", "group_size": 16, "scale_dtype": "float16"},
    "binary-tensor": {"kind": "binary", "scale": "tensor"},
    "ternary": {"kind": "ternary"},
    "ternary-2bit": {"kind": "ternary", "format": "two_bit"},
    "ternary-absmean": {"kind": "ternary", "rule": "absmean"},
    "ternary-g8": {"kind": "ternary", "group_size": 8},
    "k3": {"kind": "k_ternary", "k": 3, "scale_dtype": "float16"},
    "k2-2bit-g64": {"kind": "k_ternary", "k": 2, "format": "two_bit", "group_size": 64},
}


def spec_of(fields: dict[str, Any]) -> LayerSpec:
    return registry.get(fields["kind"]).spec.model_validate(fields)


@given(
    format=st.sampled_from(["binary", "two_bit", "base3"]),
    components=st.integers(1, 4),
    rows=st.integers(1, 300),
    cols=st.integers(1, 300),
)
def test_codes_bytes_equals_the_packing_code(format: str, components: int, rows: int, cols: int) -> None:
    assert cost.codes_bytes(format, components, rows, cols) == codes_bytes(format, components, rows, cols)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("shape", [(64, 96), (37, 70), (1, 1)])
def test_cost_is_what_a_live_layer_stores(name: str, shape: tuple[int, int]) -> None:
    out_features, in_features = shape
    spec = spec_of(SPECS[name])
    kind = registry.get(spec.kind)
    module = kind.random(spec, in_features, out_features, bias=True, seed=0)
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    said = kind.cost(spec, in_features, out_features)
    codes = tensors.get("codes", tensors.get("weight"))
    assert said.codes_bytes == codes.untyped_storage().nbytes()
    assert said.scales_bytes == (tensors["scales"].untyped_storage().nbytes() if "scales" in tensors else 0)


@pytest.mark.parametrize("name", SPECS)
def test_cost_of_a_converted_layer_is_the_same(name: str) -> None:
    import torch

    spec = spec_of(SPECS[name])
    kind = registry.get(spec.kind)
    torch.manual_seed(0)
    module = kind.convert(spec, torch.nn.Linear(48, 35))
    tensors = {n.removeprefix("linear."): t for n, t in module.state_dict().items()}
    said = kind.cost(spec, 48, 35)
    codes = tensors.get("codes", tensors.get("weight"))
    assert said.codes_bytes == codes.nbytes
    assert said.scales_bytes == (tensors["scales"].nbytes if "scales" in tensors else 0)


@pytest.mark.parametrize("form_of", ["binary", "ternary", "k3"])
def test_the_training_form_costs_its_latent_weight(form_of: str) -> None:
    spec = spec_of({**SPECS[form_of], "form": "training"})
    said = registry.get(spec.kind).cost(spec, 100, 10)
    assert (said.codes_bytes, said.scales_bytes, said.format_bits) == (4000, 0, 32.0)


def test_the_twenty_fold_claim_holds_on_paper() -> None:
    spec = spec_of({"kind": "ternary"})
    said = registry.get("ternary").cost(spec, 4096, 4096)
    # 4096 rows fill 820 bytes a column; a float32 scale a row.
    assert said.weight_bytes == 820 * 4096 + 4 * 4096
    assert 19.5 <= 4 * 4096 * 4096 / said.weight_bytes <= 20.0


@pytest.mark.parametrize(("scale", "scales_bytes"), [("row", 80), ("tensor", 8)])
def test_int8_weights_take_a_byte_each_and_a_double_a_scale(scale: str, scales_bytes: int) -> None:
    said = registry.get("torch_int8").cost(spec_of({"kind": "torch_int8", "scale": scale}), 100, 10)
    assert (said.codes_bytes, said.scales_bytes, said.compute) == (1000, scales_bytes, "int8")


@pytest.mark.parametrize(
    ("fields", "compute", "macs"),
    [
        ({"kind": "binary", "activation_bits": 1}, "bit", 600),
        ({"kind": "binary", "activation_bits": None}, "fp32", 600),
        ({"kind": "binary", "activation_bits": 2}, "bit", 600),
        ({"kind": "ternary", "activation_bits": 1}, "bit", 600),
        ({"kind": "ternary", "activation_bits": 2}, "bit", 1200),
        ({"kind": "ternary", "activation_bits": 8}, "int8", 600),
        ({"kind": "ternary", "activation_bits": 16}, "int8", 1200),
        ({"kind": "k_ternary", "k": 3, "activation_bits": 8}, "int8", 1800),
    ],
)
def test_arithmetic_counts_passes_and_components(fields: dict[str, Any], compute: str, macs: int) -> None:
    said = registry.get(fields["kind"]).cost(spec_of(fields), 30, 20)
    assert (said.compute, said.macs_per_token) == (compute, macs)
