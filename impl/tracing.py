"""Which modules a model's forward calls, in which order, and what becomes of their results."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from impl.convert import has_hooks
from impl.layers.forms import TwoForms


class _Tracer(fx.Tracer):
    """Looks into the modules of a model but not into its low-bit layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = isinstance(m, TwoForms) or type(m).__module__.startswith(("impl.layers.", "impl.compat."))
        return own or super().is_leaf_module(m, module_qualified_name)


class Calls:
    """The calls of a model's modules in its forward, traced with ``torch.fx``, modules of torch and low-bit
    layers as leaves. ``nodes``: of the traced graph, in order.

    Raises ValueError where the model cannot be traced (its forward depends on values or shapes);
    ``remedy`` says what to do then.
    """

    def __init__(self, model: nn.Module, remedy: str) -> None:
        try:
            self.nodes = list(_Tracer().trace(model).nodes)
        except Exception as error:  # whatever the forward raises when it meets a proxy
            raise ValueError(
                f"torch.fx cannot trace {type(model).__name__} ({type(error).__name__}: {error}): {remedy}"
            ) from error
        self._modules = dict(model.named_modules())
        self._calls: dict[str, int] = {}
        self._read: list[str] = []  # parameters and buffers that forward uses past their modules
        for node in self.nodes:
            if node.op == "call_module":
                self._calls[str(node.target)] = self._calls.get(str(node.target), 0) + 1
            elif node.op == "get_attr":
                self._read.append(str(node.target))

    def alone(self, node: Any) -> nn.Module | None:
        """The module that ``node`` calls with one positional argument, where forward uses it there alone
        and as it is: without hooks, and without reading its parameters."""
        if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            return None
        name = str(node.target)
        shared = self._calls[name] > 1 or any(attribute.startswith(f"{name}.") for attribute in self._read)
        module = self._modules[name]
        return None if has_hooks(module) or shared else module
