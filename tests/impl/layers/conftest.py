"""``layer_case`` and ``packed``: a test that asks for them runs for every layer, in each of its forms."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("every_layer", Path(__file__).with_name("every_layer.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


_every_layer = _load()


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
