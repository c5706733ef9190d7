"""These tests take thousands of tiny steps."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def tiny_steps(one_thread: None) -> None:
    """Every test runs on one thread."""
