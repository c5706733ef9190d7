"""``layer_case`` and ``packed``: a test that asks for them runs for every layer, in each of its forms."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import every_layer as _every_layer


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "layer_case" not in metafunc.fixturenames:
        return
    cases = _every_layer.CASES
    if "packed" not in metafunc.fixturenames:
        metafunc.parametrize("layer_case", cases, ids=[case.name for case in cases])
        return
    both = [(case, packed) for case in cases for packed in case.forms]
    ids = [f"{case.name}-{'packed' if packed else 'latent'}" for case, packed in both]
    metafunc.parametrize(("layer_case", "packed"), both, ids=ids)


@pytest.fixture(scope="session")
def every_layer() -> ModuleType:
    """The module with the table and its helpers."""
    return _every_layer
