"""Every known defect of the systems that this library replaces is named by a test that fails on it.

A test names a defect by its id, or by an id and what it says, in its docstring. The tests themselves are
where the code is that must not have the defect.
"""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

# GreenBitAI/bitorch-engine 0.2.6.
BITORCH_ENGINE = {
    "D1": "integer parameters that require gradients, which stock torch refuses",
    "D2": "the optimizer raises KeyError on embeddings, and their update is ascent",
    "D3": "CPU linear: heap overflow for odd outputs; wrong for 3-D and non-contiguous inputs",
    "D4": "CPU convolution: double free when packed; wrong for rectangles and dilation",
    "D5": "CUTLASS convolution: wrong layout and channel count, counts never turned into a dot product",
    "D6": "packed for one kernel, run by another where the batch is no multiple of 8; bmm_type ignored",
    "D7": "BinaryMatMul converts twice, counts its padding, and strides wrongly over batches",
    "D8": "the largest value for the largest magnitude, in weights and in gradients",
    "D9": "packed weights go stale in further training, and are missing in a state_dict",
    "D10": "an unsupported dtype or GPU ends the process",
    "D11": "a padding_idx other than zero is an AttributeError",
    "D12": "prepare and pack skip the root module; loading with strict=False hides missing keys",
    "D13": "convolution weights are uninitialised memory",
    "D14": "sign(0) is +1 forward and 0 backward",
    "D15": "the device argument is ignored; every forward waits for the device and allocates",
    "D16": "the optimizer's defaults flip next to no weight in a run",
    "D17": "conversion discards pretrained weights and biases",
    "D18": "embeddings re-initialise a loaded state of zeros; preparing twice fails",
}

# krisaujla/BitLinear 0.1.0.
SEED_004 = {
    "seed 004: memory": "the layer keeps float weights, packing is a size estimate",
    "seed 004: W_ternary": "is the trained parameter: no latent weight, any step leaves -1, 0, +1",
    "seed 004: device and dtype": "arguments ignored, from_linear gives float32 on the CPU",
    "seed 004: the root": "a bare nn.Linear is not converted",
    "seed 004: subclasses": "replaced, though their owner reads their weight",
    "seed 004: no skip list": "an output head is converted with the rest",
    "seed 004: tied weights": "untied by conversion",
    "seed 004: its rule": "a threshold of half the largest weight keeps next to nothing of Gaussian rows",
    "seed 004: padding": "digit 0 decodes to -1: what pads a row must go by the shape",
}

# kyegomez/zeta, nn/quant/bitlinear.py.
ZETA = {
    "zeta: documented example": "groups=2 raises RuntimeError",
    "zeta: batch of one": "comes out as two rows",
    "zeta: scale": "taken after the sign, so constant, then divided out",
    "zeta: unit": "activations never scaled back: l(x) == l(3 x)",
    "zeta: rows": "one activation scale over the batch: rows depend on each other",
    "zeta: gradient": "zero for the weight, none for the input",
    "zeta: zeros": "absmax_quantize divides by zero",
    "zeta: bits": "absmax_quantize overflows int8 beyond 8 bits",
}

# kyegomez/BitNet 0.2.5. What this library has no counterpart of (its GLU, LoRA, MoE) is not listed.
KYEGOMEZ = {
    "kyegomez: bias": "silently ignored",
    "kyegomez: norm": "multiplies by dim^-0.5 for dim^0.5",
    "kyegomez: binary": "weights called 1.58-bit are binary (#34)",
    "kyegomez: size": "unchanged by conversion (#40)",
    "kyegomez: conversion": "discards pretrained weights, dtype and device",
    "kyegomez: attention": "divides by sqrt(d) twice",
    "kyegomez: training": "does not converge (#57)",
}

REGISTER = {**BITORCH_ENGINE, **SEED_004, **ZETA, **KYEGOMEZ}

# One id: a capital D and a number, or a system and what follows it up to where another word may begin.
_NAMED = re.compile(r"\bD\d+\b|\b(?:seed 004|zeta|kyegomez): [^;.,()]+")


@functools.cache
def docstrings() -> dict[str, str]:
    """Docstring of every test below this folder by its place, this file apart."""
    folder, found = Path(__file__).parent, {}
    for path in sorted(folder.rglob("test_*.py")):
        if path.samefile(__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                text = ast.get_docstring(node)
                if text:
                    place = f"{path.relative_to(folder)}:{node.lineno} {node.name}"
                    found[place] = " ".join(text.split())
    return found


def names(text: str) -> set[str]:
    """The ids of the register that a docstring names, and whatever else looks like one."""
    found = set()
    for name in _NAMED.findall(text):
        known = [defect for defect in REGISTER if name == defect or name.startswith(f"{defect} ")]
        found.add(max(known, key=len, default=name))
    return found


def test_a_name_is_read_out_of_its_sentence():
    assert names("D14, forward: 0 and -0.0 count as +1.") == {"D14"}
    assert names("D1 and D8: signs.") == {"D1", "D8"}
    assert names("D17; kyegomez: conversion throws weights away.") == {"D17", "kyegomez: conversion"}
    assert names("kyegomez: bias ignored; kyegomez: binary weights (#34).") == {
        "kyegomez: bias",
        "kyegomez: binary",
    }
    assert names("seed 004: W_ternary is itself trained.") == {"seed 004: W_ternary"}
    assert names("No defect of 3D tensors.") == set()
    assert names("D19: new. zeta: rowing") == {"D19", "zeta: rowing"}


@pytest.mark.parametrize("defect", REGISTER)
def test_every_defect_is_named_by_a_test(defect):
    tests = [place for place, text in docstrings().items() if defect in names(text)]
    assert tests, f"no test names {defect}: {REGISTER[defect]}"


def test_no_test_names_a_defect_that_is_not_registered():
    unknown = {place: names(text) - REGISTER.keys() for place, text in docstrings().items()}
    assert {place: found for place, found in unknown.items() if found} == {}
