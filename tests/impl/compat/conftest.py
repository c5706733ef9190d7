"""Fixtures for the tests of other libraries' names, and the way to the module that they share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def single_thread(one_thread: None) -> None:
    """One thread: the tensors here are small, and threads that wait for each other take longer."""
