"""The kinds of hooks that a module's calls and gradients run."""

from __future__ import annotations

from torch import nn

#: Names of the methods that register them: all that torch has, so that a new kind is not forgotten.
KINDS = [
    name
    for name in dir(nn.Module)
    if name.startswith("register_") and name.endswith("_hook") and "state_dict" not in name
]


def hook(module: nn.Module, kind: str) -> None:
    """Give ``module`` a hook of this kind that does nothing."""
    getattr(module, kind)(lambda *_: None)
