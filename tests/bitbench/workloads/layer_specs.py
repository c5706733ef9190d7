"""Layer descriptions, for the tests of the workloads."""

from __future__ import annotations

from typing import Any

from bitbench.layers import registry
from bitbench.layers.base import LayerSpec


def layer(**fields: Any) -> LayerSpec:
    """The description of a layer by its fields: ``layer(kind="linear")``."""
    return registry.get(fields["kind"]).spec.model_validate(fields)
