"""What autograd and torch's operators see of a low-bit tensor: decoded values, wherever they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

_STEPS = frozenset({"add_", "sub_", "addcdiv_", "addcmul_", "lerp_"})
"""In-place operations by which optimizers and averages of weights take small steps."""


class LowBitTensor(Tensor):
    """A tensor whose values are decoded wherever they are read.

    Operations without a rule of their own, views included, get the decoded values and return ordinary
    tensors: what is written to a view does not reach the integers. One that writes in place writes into
    the decoded values, which are then quantised back.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    _rules: ClassVar[Mapping[Any, Callable[..., Any]]] = {}

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], LowBitTensor):
            rule = args[0]._rules.get(func)
            if rule is not None:
                return rule(*args, **kwargs)
        return _run_decoded(func, args, kwargs)

    def _store(self, _value: Tensor) -> None:
        raise RuntimeError(
            f"a {type(self).__name__} cannot be written to: write to the parameter that it belongs to"
        )


def _run_decoded(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    written = _written(func, args, kwargs)
    if written and _takes_a_step(func):
        raise RuntimeError(
            f"{func} on a {type(written[0]).__name__}: steps smaller than its spacing would be lost. "
            "Train it with impl.optim.DiodeMix or its update(), or write p.copy_(p.dequantize() + step)"
        )
    if written and func.namespace == "c10d":
        # The result may arrive after the call returns, too late to be quantised.
        raise RuntimeError(
            f"{func} cannot fill a {type(written[0]).__name__}: communicate value = p.dequantize() "
            "and p.copy_(value) afterwards"
        )
    values: dict[int, Tensor] = {}

    def decode(item: Any) -> Any:
        if not isinstance(item, LowBitTensor):
            return item
        if id(item) not in values:
            values[id(item)] = item.dequantize()
        return values[id(item)]

    result = func(*tree_map(decode, args), **tree_map(decode, kwargs))
    for item in written:
        item._store(values[id(item)])
    # What an in-place operation returns is its operand, not the decoded values.
    operands = {id(values[id(item)]): item for item in written}
    return tree_map(lambda item: operands.get(id(item), item), result) if written else result


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[LowBitTensor]:
    """The arguments that ``func`` writes to, as its schema says."""
    found = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[position] if position < len(args) else kwargs.get(argument.name)
        found += [leaf for leaf in tree_leaves(value) if isinstance(leaf, LowBitTensor)]
    return found


def _takes_a_step(func: Any) -> bool:
    name = func._schema.name.partition("::")[2]
    return name.startswith("_fused_") or name.removeprefix("_foreach_") in _STEPS
