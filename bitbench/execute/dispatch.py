"""Which kernel served a case, taken apart, and whether it is what the suite asks for. Torch-free."""

from __future__ import annotations

from typing import Any

from bitbench.layers.base import LayerKind

SEPARATOR = ", "
"""Between the names in a record's ``kernel``, where several served one case."""


def names(kernel: str) -> list[str]:
    """The single names in ``kernel``."""
    return [name for name in kernel.split(SEPARATOR) if name]


def dispatch_of(kind: LayerKind, spec: Any, kernel: str) -> dict[str, str]:
    """What ``kernel`` says about who served the calls (:attr:`bitbench.store.schema.Record.dispatch`).

    Where several kernels served, each key holds all its values, joined by ``+``.
    """
    found: dict[str, dict[str, None]] = {}
    for name in names(kernel):
        for key, value in kind.dispatch(spec, name).items():
            found.setdefault(key, {})[value] = None
    return {key: "+".join(values) for key, values in found.items()}


def unmet(kind: LayerKind, spec: Any, entry: dict[str, Any], kernel: str) -> str | None:
    """Why what served is not what the layer ``spec`` or its workload entry requires, or None.

    ``entry`` holds the fields of the workload entry. Every kernel must be the required one; one
    that says nothing of itself is none.
    """
    asked = [("layer", spec.require_backend)]
    if entry.get("require_backend") in kind.backends:
        asked.append(("workload", entry["require_backend"]))
    for who, wanted in asked:
        if wanted is None:
            continue
        for name in names(kernel) or [""]:
            if wanted not in kind.dispatch(spec, name).values():
                served = f"{name} served the call" if name else "the layer does not say what served the call"
                return f"{served}; the {who} requires {wanted}"
    return None
