"""What a network costs, layer by layer: bits and bytes of its weights, and multiply-accumulates.

print(summary(model, torch.randn(1, 3, 224, 224)))
summary(model).to_dataframe()
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from impl.layers import forms
from impl.layers.embedding import EmbeddingTable
from impl.layers.forms import TwoForms
from impl.layers.nbit import IntegerLayer, states
from impl.layers.nbit.integers import packed_bits
from impl.packing import FORMAT_BITS

if TYPE_CHECKING:
    import pandas as pd

_FLOAT_BITS = 32
_HEADINGS = {
    "name": "layer",
    "kind": "type",
    "form": "form",
    "parameters": "parameters",
    "weight_bits": "weight bits",
    "activation_bits": "activation bits",
    "macs": "MACs",
    "bytes": "bytes",
    "packed_bytes": "bytes packed",
}
_LOOKUPS = (EmbeddingTable, nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True)
class LayerSummary:
    """One module that holds tensors itself."""

    name: str
    """Dotted name; "" is the root."""
    kind: str
    form: str
    """``packed`` (bytes alone), ``training`` (a latent weight), or ``float`` for modules that know no
    other. Group-wise layers are always ``float``, bitorch_engine's binary ones until they are packed."""
    parameters: int
    """Weights and biases, however they are stored; tied ones count with the first layer."""
    weight_bits: float | None
    """Bits a weight takes once packed, all components together, without scales; of other modules the
    bits that it takes now. None without parameters."""
    activation_bits: int | None
    """Width that the input is quantised to; None for float."""
    macs: int | None
    """Multiply-accumulates with the weights, those of each component counted; None where unknown."""
    bytes: int
    """Memory held now: weights, scales, headers, biases and buffers, each storage counted whole and
    with the first layer that holds it."""
    packed_bytes: int
    """The same after ``pack()``."""


@dataclass(frozen=True)
class ModelSummary:
    """The layers of a network in order, and their sums; ``print`` shows a table."""

    layers: tuple[LayerSummary, ...]
    per_position: bool
    """Whether MACs are for one input row of each linear layer, as no input was given."""

    @property
    def parameters(self) -> int:
        """Weights and biases of all layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the layers for which they are known."""
        return sum(layer.macs or 0 for layer in self.layers)

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Names of the layers whose multiply-accumulates are not known."""
        return tuple(layer.name for layer in self.layers if layer.macs is None)

    @property
    def bytes(self) -> int:
        """Memory that all layers hold now."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def packed_bytes(self) -> int:
        """Memory that all layers hold after ``pack()``."""
        return sum(layer.packed_bytes for layer in self.layers)

    @property
    def float_bytes(self) -> int:
        """What the parameters would take as float32."""
        return self.parameters * _FLOAT_BITS // 8

    def macs_by_precision(self) -> dict[tuple[float | None, int | None], int]:
        """Multiply-accumulates by (weight bits, activation bits); None is float activations."""
        totals: dict[tuple[float | None, int | None], int] = {}
        for layer in self.layers:
            if layer.macs:
                key = (layer.weight_bits, layer.activation_bits)
                totals[key] = totals.get(key, 0) + layer.macs
        return totals

    def to_dataframe(self) -> pd.DataFrame:
        """One row a layer, indexed by name; the other columns are those of :class:`LayerSummary`.

        Unknown numbers are missing values of the nullable integer and float dtypes.
        """
        import pandas as pd

        columns = [field.name for field in fields(LayerSummary)]
        frame = pd.DataFrame([asdict(layer) for layer in self.layers], columns=columns)
        kinds = {"weight_bits": "Float64", "activation_bits": "Int64", "macs": "Int64"}
        sizes = dict.fromkeys(("parameters", "bytes", "packed_bytes"), "int64")
        return frame.astype({**kinds, **sizes}).set_index("name")

    def to_table(self, style: str = "simple") -> str:
        """The layers and their sum as text; ``style`` is a table format of tabulate ("github", ...)."""
        from tabulate import tabulate

        rows = [[_cell(name, getattr(layer, name)) for name in _HEADINGS] for layer in self.layers]
        total = {
            "name": "total",
            "parameters": self.parameters,
            "macs": self.macs,
            "bytes": self.bytes,
            "packed_bytes": self.packed_bytes,
        }
        rows.append([_cell(name, total[name]) if name in total else "" for name in _HEADINGS])
        align = ["left" if name in ("name", "kind", "form") else "right" for name in _HEADINGS]
        return tabulate(rows, list(_HEADINGS.values()), tablefmt=style, colalign=align, disable_numparse=True)

    def __str__(self) -> str:
        lines = [self.to_table(), ""]
        unit = "one input row of each linear layer" if self.per_position else "the given input"
        lines.append(f"MACs are those of {unit}.")
        if self.uncounted:
            names = ", ".join(name or "(root)" for name in self.uncounted)
            lines.append(f"Not counted: {names}.")
        if self.bytes:
            lines.append(
                f"The parameters as float32 would take {self.float_bytes:,} bytes: "
                f"{self.float_bytes / self.bytes:.2f} times the {self.bytes:,} bytes held, "
                f"{self.float_bytes / self.packed_bytes:.2f} times the {self.packed_bytes:,} once packed."
            )
        return "\n".join(lines)


def summary(model: nn.Module, *inputs: Any, **named_inputs: Any) -> ModelSummary:
    """Bits, multiply-accumulates and bytes of every module in ``model`` that holds tensors.

    With inputs, ``model(*inputs, **named_inputs)`` runs once, in eval mode and without gradients,
    and MACs are what that call does; a layer that it does not call by its forward is not counted.
    Without, they are those of one row into each linear layer, and convolutions, whose number of
    positions depends on the input, are not counted. A MAC is a product of a weight and an
    activation: products between activations (attention scores), norms and activation functions
    have none. Sizes alone are used: a model and inputs on the meta device give the same numbers.

    Raises TypeError where ``model`` is no module, and whatever the call raises.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    holders = {name: module for name, module in model.named_modules() if _own_tensors(module)}
    called = bool(inputs or named_inputs)
    macs = _macs_of_call(model, list(holders.values()), inputs, named_inputs) if called else {}
    seen: set[int] = set()
    counted: set[int] = set()
    layers = []
    for name, module in holders.items():
        own_macs = macs.get(module) if called else _macs_of_row(module)
        layers.append(_summarise(name, module, own_macs, seen, counted))
    return ModelSummary(tuple(layers), per_position=not called)


# ---- multiply-accumulates -------------------------------------------------------------------------


def _macs_of_call(
    model: nn.Module, holders: list[nn.Module], inputs: tuple[Any, ...], named: Mapping[str, Any]
) -> dict[nn.Module, int | None]:
    """MACs of ``model(*inputs, **named)`` by module; None or absent where they are not known."""
    macs: dict[nn.Module, int | None] = {}

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        new, old = _macs_of(module, (*args, *kwargs.values()), output), macs.get(module, 0)
        macs[module] = None if new is None or old is None else new + old

    # Modules without matrices have no products with weights, called or not.
    macs |= {module: 0 for module in holders if not _multiplies(module)}
    handles = [
        module.register_forward_hook(count, with_kwargs=True) for module in holders if module not in macs
    ]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            model(*inputs, **named)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return macs


def _macs_of(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int | None:
    """MACs of one call of a module that multiplies; None where its kind is unknown."""
    if isinstance(module, _ConvTransposeNd):  # every input element meets the kernels of its channel
        return int(inputs[0].numel()) * module.weight.shape[1:].numel()
    if not isinstance(output, Tensor):
        return None
    kernels = _kernels(module)
    if kernels is not None:
        return int(output.numel()) * kernels[1] * getattr(module, "components", 1)
    row = _macs_of_row(module)
    return None if row is None else row * (output.numel() // cast("int", module.out_features))


def _macs_of_row(module: nn.Module) -> int | None:
    """MACs of one input row of a linear layer, 0 for modules that multiply nothing, else None."""
    if not _multiplies(module):
        return 0
    shape = None if _kernels(module) is not None else _linear_shape(module)
    return None if shape is None else getattr(module, "components", 1) * shape[0] * shape[1]


def _multiplies(module: nn.Module) -> bool:
    """Whether ``module`` holds matrices that are not merely looked up."""
    if isinstance(module, _LOOKUPS):
        return False
    if _matrix_shape(module) is not None:
        return True
    return any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))


def _matrix_shape(module: nn.Module) -> tuple[int, int] | None:
    """Rows and columns of the one matrix that a layer applies, packed or not; None of other modules."""
    return _kernels(module) or _linear_shape(module)


def _linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(out_features, in_features) of a layer that maps rows by one matrix, packed or not."""
    rows, cols = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if not (isinstance(rows, int) and isinstance(cols, int)):
        return None
    weight = getattr(module, "weight", None)
    if weight is None:
        return (rows, cols) if _codes(module) is not None else None
    fits = isinstance(weight, Tensor) and tuple(weight.shape) in ((rows, cols), (cols, rows))
    return (rows, cols) if fits else None


def _kernels(module: nn.Module) -> tuple[int, int] | None:
    """(out_channels, products behind one output value) of a convolution, whatever holds its weight."""
    sizes = getattr(module, "kernel_size", None)
    if isinstance(sizes, int):  # of bitorch_engine, which knows squares
        sizes = (sizes, sizes)
    rows, channels = getattr(module, "out_channels", None), getattr(module, "in_channels", None)
    if isinstance(module, _ConvTransposeNd) or not isinstance(sizes, tuple):
        return None
    if not (isinstance(rows, int) and isinstance(channels, int)):
        return None
    return rows, channels // getattr(module, "groups", 1) * math.prod(sizes)


def _codes(module: nn.Module) -> Tensor | None:
    """The packed weight that a module holds in place of a float one."""
    packed = [buffer for buffer in module.buffers(recurse=False) if buffer.dtype == torch.uint8]
    return max(packed, key=lambda buffer: buffer.numel()) if packed else None


# ---- bits and bytes -------------------------------------------------------------------------------


def _summarise(
    name: str, module: nn.Module, macs: int | None, seen: set[int], counted: set[int]
) -> LayerSummary:
    """``seen``: storages, and ``counted``: weights, of the layers before; both are added to."""
    own = _own_tensors(module)
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    replaced = [] if weight is None else [weight, *_packed_buffers(module)]  # by what packing gives
    held = _new_bytes([tensor for tensor in own if all(tensor is not other for other in replaced)], seen)
    latent = _new_bytes(replaced, seen)
    packed = latent
    form = "float"
    if isinstance(module, TwoForms | IntegerLayer):
        form = "packed" if module.is_packed else "training"
        # Layers of two forms share what they are packed into, n-bit ones have each their own.
        if latent or (weight is not None and isinstance(module, IntegerLayer)):
            packed = _packed_size(module)
    elif weight is None and _matrix_shape(module) is not None:
        form = "packed"
    return LayerSummary(
        name,
        type(module).__name__,
        form,
        _count_parameters(module, counted),
        _weight_bits(module),
        getattr(module, "activation_bits", None),
        macs,
        held + latent,
        held + packed,
    )


def _own_tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _new_bytes(tensors: list[Tensor], seen: set[int]) -> int:
    """Bytes of the storages behind ``tensors`` that are not among ``seen`` yet."""
    total = 0
    for tensor in tensors:
        for part in _parts(tensor):
            storage = part.untyped_storage()
            if storage._cdata not in seen:
                seen.add(storage._cdata)
                total += storage.nbytes()
    return total


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors with memory of their own that make up ``tensor``: itself, unless it is a wrapper."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    for name in flatten()[0]:
        yield from _parts(getattr(tensor, name))


def _count_parameters(module: nn.Module, counted: set[int]) -> int:
    """Weights and biases of ``module`` that are not among ``counted``, the ids of those before."""
    sizes = {id(parameter): parameter.numel() for parameter in module.parameters(recurse=False)}
    shape, codes = _matrix_shape(module), _codes(module)
    if shape is not None and codes is not None and getattr(module, "weight", None) is None:
        sizes[id(codes)] = shape[0] * shape[1]
    count = sum(size for key, size in sizes.items() if key not in counted)
    counted.update(sizes)  # not |=, which makes a new set of a set and keys
    return count


def _weight_bits(module: nn.Module) -> float | None:
    if isinstance(module, TwoForms):
        return module.components * FORMAT_BITS[module.format]
    if isinstance(module, IntegerLayer):
        return float(packed_bits(module.weight_bits))
    shape, codes = _matrix_shape(module), _codes(module)
    if shape is not None and codes is not None and getattr(module, "weight", None) is None:
        return 8 * codes.nbytes / (shape[0] * shape[1])
    parameters = list(module.parameters(recurse=False))
    if not parameters:
        return None
    largest = max(parameters, key=lambda parameter: parameter.numel())
    stored = sum(part.numel() * part.element_size() for part in _parts(largest))
    return 8 * stored / max(largest.numel(), 1)


def _packed_buffers(module: nn.Module) -> list[Tensor]:
    """Codes, scales and header that a layer with a packed form holds now."""
    own: tuple[str, ...] = ()
    if isinstance(module, TwoForms | IntegerLayer):
        own = forms.PACKED if isinstance(module, TwoForms) else states.PACKED
    return [buffer for name, buffer in module.named_buffers(recurse=False) if name in own]


def _packed_size(layer: TwoForms | IntegerLayer) -> int:
    """Bytes of codes, scales and header that packing ``layer`` gives, found without packing it."""
    assert layer.weight is not None
    shape = nn.Parameter(layer.weight.detach().to("meta"), layer.weight.requires_grad)
    twin = copy.deepcopy(layer, {id(layer.weight): shape})
    cast("Any", twin).pack()
    return sum(buffer.nbytes for buffer in _packed_buffers(twin))


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "float" if name == "activation_bits" else "-"
    if name == "name":
        return str(value) or "(root)"
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
