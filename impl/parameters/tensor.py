"""Tensors that are float outside and integers inside.

Stock torch gives gradients to floating-point tensors only, so a weight that is kept as one byte or
one bit cannot be a parameter by itself. Here it stands behind a wrapper: autograd, modules,
``DistributedDataParallel``, gradient clipping and ``deepcopy`` see a float tensor with a float
gradient; the values are decoded from the integers where an operation reads them, and are gone when
it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from impl.parameters.checks import check_gradient
from impl.parameters.rules import Projector, Update, state_shape
from impl.parameters.wrapper import LowBitTensor

_aten = torch.ops.aten


class TransposedView(LowBitTensor):
    """The transpose [cols, rows] of a low-bit matrix [rows, cols].

    A linear layer keeps the transpose of its weight for the backward pass: kept like this, it is not
    a float copy.
    """

    _source: LowBitParameter

    def __new__(cls, source: LowBitParameter) -> Self:
        rows, cols = source.shape
        self = Tensor._make_wrapper_subclass(
            cls, (cols, rows), strides=(1, cols), dtype=source.dtype, device=source.device
        )
        self._source = source
        return self

    def dequantize(self) -> Tensor:
        """The decoded values, as an ordinary tensor."""
        return self._source.dequantize().t()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{type(self).__name__}({self._source!r})"

    def _alias(self) -> TransposedView:
        return TransposedView(self._source)

    def _t(self) -> Tensor:
        return self._source._alias()

    _rules: ClassVar[Mapping[Any, Callable[..., Any]]] = {
        _aten.detach.default: _alias,
        _aten.alias.default: _alias,
        _aten.t.default: _t,
    }


class LowBitParameter(LowBitTensor):
    """Base of the parameters that keep integers: a float leaf with a float gradient outside.

    A subclass names the tensors that it keeps (``_tensors``; the first one holds the codes) and its
    plain attributes (``_attributes``), decodes with :meth:`dequantize`, and says how a step of an
    optimizer changes it. Those tensors follow the parameter through ``.to()``, ``deepcopy``,
    pickle, ``state_dict`` and ``Module.to_empty()`` (which leaves zeros); ``.half()`` and
    ``.bfloat16()`` change the dtype outside only. Tensors or None that belong to the training only
    (``_transient``) follow through all but pickle and ``state_dict``.

    In-place operations, ``copy_``, ``p[index] = value`` and ``p.data = value`` included, end at the nearest
    value that can be kept. Those by which other optimizers take their steps raise RuntimeError: the
    steps would be rounded away.
    """

    _tensors: ClassVar[tuple[str, ...]] = ()
    _attributes: ClassVar[tuple[str, ...]] = ()
    _transient: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def _wrap(
        cls,
        shape: Sequence[int],
        dtype: torch.dtype,
        tensors: Mapping[str, Tensor],
        attributes: Mapping[str, Any],
        requires_grad: bool = False,
        is_param: bool = False,
    ) -> Self:
        self = Tensor._make_wrapper_subclass(
            cls,
            tuple(shape),
            dtype=dtype,
            device=tensors[cls._tensors[0]].device,
            requires_grad=requires_grad,
        )
        for name, value in (*tensors.items(), *attributes.items()):
            setattr(self, name, value)
        if is_param:
            self._is_param = True  # what isinstance(..., nn.Parameter) asks of a tensor subclass
        return self

    # ---- what an optimizer calls ------------------------------------------------------------

    @classmethod
    def update(
        cls,
        qweight: Tensor,
        exp_avg_s: Tensor | None = None,
        exp_avg_l: Tensor | None = None,
        step: Tensor | None = None,
        lr: float = 1e-4,
        weight_decay: float = 0.0,
        beta1: float = 0.99,
        beta2: float = 0.9999,
        eps: float = 1e-6,
        dtype: torch.dtype = torch.half,
        correct_bias: bool | None = None,
        projector: Projector | None = None,
        grad: Tensor | None = None,
    ) -> None:
        """One descent step of ``qweight`` and its averages, in place, by the rule of its class.

        qweight: a parameter of this class.
        exp_avg_s, exp_avg_l: short (``beta1``) and long (``beta2``) average, as ``initial_state()``
            makes them; any floating dtype and their own.
        step: tensor of one element, the steps done so far; 1 is added to it first.
        lr, weight_decay, eps: as AdamW has them for n-bit and mixed-precision weights; for binary
            ones see :class:`impl.parameters.BinaryParameter`.
        dtype: of the arithmetic, float32 at least: in half precision an average with ``beta2`` near
            1 would stand still.
        correct_bias: divide averages that start at zero by 1 - beta ** step; None is False.
        projector: keeps the averages of the gradient in a low-rank space
            (:class:`impl.optim.GaLoreProjector`).
        grad: the gradient; None takes ``qweight.grad``.

        Raises TypeError for a parameter of another class, ValueError for missing state or gradients,
        shapes that do not belong together, and gradients with NaN or infinity, which integers could
        not show: they would stand still from then on.
        """
        if not isinstance(qweight, cls):
            raise TypeError(f"{cls.__name__}.update takes a {cls.__name__}, got {type(qweight).__name__}")
        if exp_avg_s is None or exp_avg_l is None or step is None:
            names = {"exp_avg_s": exp_avg_s, "exp_avg_l": exp_avg_l, "step": step}
            missing = ", ".join(name for name, value in names.items() if value is None)
            raise ValueError(f"update needs {missing}: keep them between steps, from initial_state() on")
        if not isinstance(step, Tensor) or step.numel() != 1:
            raise TypeError(f"step must be a tensor of one element, which update counts up, got {step!r}")
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point dtype, got {dtype}: use torch.float32")
        gradient = qweight.update_gradient() if grad is None else grad
        if gradient is None:
            raise ValueError("there is no gradient: call backward() before update(), or pass grad")
        if gradient.shape != qweight.shape:
            raise ValueError(
                f"the gradient has shape {tuple(gradient.shape)}, the parameter {tuple(qweight.shape)}"
            )
        check_gradient(cls.__name__, gradient)
        qweight.descend(
            Update(
                grad=gradient,
                exp_avg_s=exp_avg_s,
                exp_avg_l=exp_avg_l,
                step=int(step.add_(1).item()),
                lr=lr,
                weight_decay=weight_decay,
                beta1=beta1,
                beta2=beta2,
                eps=eps,
                correct_bias=bool(correct_bias),
                projector=projector,
            ),
            dtype,
        )

    @torch.no_grad()
    def descend(self, update: Update, dtype: torch.dtype = torch.float32) -> None:
        """One step as :meth:`update` describes it, with arithmetic in ``dtype``, float32 at least."""
        gradient = update.grad.detach().to(torch.promote_types(dtype, torch.float32))
        self._descend(replace(update, grad=gradient))
        # Autograd cannot see the integers change: say so, for graphs that still hold the weight.
        torch.autograd.graph.increment_version(self)

    def initial_state(
        self, dtype: torch.dtype = torch.float32, projector: Projector | None = None
    ) -> tuple[Tensor, Tensor]:
        """``exp_avg_s`` and ``exp_avg_l`` before the first step, of ``dtype``."""
        shape = state_shape(self.shape, projector)
        return (
            torch.zeros(shape, dtype=dtype, device=self.device),
            torch.zeros(shape, dtype=dtype, device=self.device),
        )

    def update_gradient(self) -> Tensor | None:
        """The gradient that an update uses where it is given none."""
        return self.grad

    def _descend(self, _update: Update) -> None:
        raise TypeError(f"{type(self).__name__} has no update rule: use one of the classes derived from it")

    # ---- what is kept -----------------------------------------------------------------------

    @property
    def stored_bytes(self) -> int:
        """Bytes kept for this parameter (``nbytes`` is what the decoded values would take)."""
        return sum(getattr(self, name).nbytes for name in self._tensors)

    def rows(self, index: Tensor) -> Tensor:
        """The decoded rows ``index`` (integers, any shape) of the first dimension."""
        selected = self.dequantize().index_select(0, index.flatten())
        return selected.reshape(*index.shape, *self.shape[1:])

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        described = "".join(f", {name}={getattr(self, name)!r}" for name in self._attributes)
        return (
            f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={self.dtype}, device={self.device}"
            f"{described}, stored_bytes={self.stored_bytes}, requires_grad={self.requires_grad})"
        )

    def __tensor_flatten__(self) -> tuple[list[str], dict[str, Any]]:
        return list(self._tensors), {
            "dtype": self.dtype,
            "attributes": {name: getattr(self, name) for name in self._attributes},
        }

    @classmethod
    def __tensor_unflatten__(
        cls, inner: Mapping[str, Tensor], context: Mapping[str, Any], outer_size: Any, _outer_stride: Any
    ) -> Self:
        return cls._wrap(outer_size, context["dtype"], inner, context["attributes"])

    def __reduce_ex__(self, _protocol: Any) -> Any:
        # The device is that of the tensors, so that map_location moves the parameter as well.
        state = self._state(lambda tensor: tensor)
        return rebuild, (
            type(self),
            tuple(self.shape),
            self.dtype,
            *state,
            self.requires_grad,
            getattr(self, "_is_param", False),
        )

    def _state(self, fn: Callable[[Tensor], Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {name: fn(getattr(self, name)) for name in self._tensors}
        return tensors, {name: getattr(self, name) for name in self._attributes}

    def _map(self, fn: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> Self:
        mapped = type(self)._wrap(self.shape, dtype or self.dtype, *self._state(fn))
        for name in self._transient:
            value = getattr(self, name)
            setattr(mapped, name, None if value is None else fn(value))
        return mapped

    @property
    def data(self) -> Tensor:
        """The parameter without its place in autograd; what is written to it reaches the integers."""
        found: Tensor = torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]
        return found

    @data.setter
    def data(self, value: Tensor) -> None:
        """Take the integers, dtype and device of a parameter of this class, else the nearest values."""
        if type(value) is type(self):
            torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
            for name in (*self._tensors, *self._attributes):
                setattr(self, name, getattr(value, name))
            return
        if value.shape != self.shape:
            raise ValueError(f"data must have shape {tuple(self.shape)}, got {tuple(value.shape)}")
        with torch.no_grad():
            self.copy_(value)

    def __setitem__(self, index: Any, value: Any) -> None:
        values = self.dequantize()
        values[index] = value
        self.copy_(values)

    # ---- operations with a rule of their own ------------------------------------------------

    def _alias(self) -> Self:
        return self._map(lambda tensor: tensor)

    def _clone(self, **_options: Any) -> Self:
        return self._map(torch.clone)

    def _convert(
        self,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        non_blocking: bool = False,
        **_options: Any,
    ) -> Tensor:
        if dtype is not None and not dtype.is_floating_point:
            return self.dequantize().to(device=device, dtype=dtype)
        return self._map(
            lambda tensor: tensor.to(device or tensor.device, non_blocking=non_blocking, copy=True), dtype
        )

    def _empty_like(
        self, *, dtype: torch.dtype | None = None, device: torch.device | None = None, **_options: Any
    ) -> Tensor:
        if device is None:
            return torch.empty(self.shape, dtype=dtype or self.dtype, device=self.device)
        # Module.to_empty(): a parameter again, to be filled by load_state_dict() or an initialiser.
        return self._map(lambda tensor: torch.zeros_like(tensor, device=device), dtype)

    def _copy(self, source: Tensor, _non_blocking: bool = False) -> Self:
        if self._keeps_alike(source):
            for name in self._tensors:
                getattr(self, name).copy_(getattr(source, name))
        else:
            value = source.dequantize() if isinstance(source, LowBitTensor) else source
            value = value if value.is_floating_point() else value.to(self.dtype)
            self._store(value.to(self.device).expand(self.shape))
        return self

    def _keeps_alike(self, other: Tensor) -> bool:
        """Whether ``other`` keeps its values in the same way, so that they are copied exactly."""
        return (
            isinstance(other, LowBitParameter)
            and type(other) is type(self)
            and self.__tensor_flatten__()[1]["attributes"] == other.__tensor_flatten__()[1]["attributes"]
            and all(getattr(self, name).shape == getattr(other, name).shape for name in self._tensors)
        )

    def _embedding(self, indices: Tensor, *_options: Any, **_named: Any) -> Tensor:
        return self.rows(indices)

    def _t(self) -> Tensor:
        if self.dim() != 2:
            raise RuntimeError(f"t() takes a matrix, this parameter has {self.dim()} dimensions")
        return TransposedView(self._alias())

    _rules: ClassVar[Mapping[Any, Callable[..., Any]]] = {
        _aten.detach.default: _alias,
        _aten.alias.default: _alias,
        _aten.clone.default: _clone,
        _aten._to_copy.default: _convert,
        _aten.empty_like.default: _empty_like,
        _aten.copy_.default: _copy,
        _aten.embedding.default: _embedding,
        _aten.t.default: _t,
    }


def rebuild(
    cls: type[LowBitParameter],
    shape: Sequence[int],
    dtype: torch.dtype,
    tensors: dict[str, Tensor],
    attributes: dict[str, Any],
    requires_grad: bool,
    is_param: bool,
) -> LowBitParameter:
    """A parameter from what ``pickle`` and ``torch.save`` keep of it."""
    return cls._wrap(shape, dtype, tensors, attributes, requires_grad, is_param)
