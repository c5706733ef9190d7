"""What the workloads on a language model share: its linear layers replaced by a layer kind.

Those of the blocks always, the output head where the entry says ``head: same``. The weights are
converted, or drawn where the model is known by its shape alone.

Importing this module imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from bitbench.data.architectures import ARCHITECTURES
from bitbench.data.models import check_causal_lm, parameter_counts
from bitbench.layers.base import LayerKind, LayerSpec
from bitbench.measure.host import memory_available
from bitbench.measure.memory import trim
from bitbench.store.schema import all_params
from bitbench.workloads.base import Context, WorkloadSpec
from bitbench.workloads.conversions import Converted, End, is_float32, replaced_by, sharing_copy, supported

if TYPE_CHECKING:
    from torch import nn

    from bitbench.data.models import CausalLM
    from impl.models.llama import Llama

LOAD_SECONDS_PER_NUMBER = 2.2e-8
"""Dequantise a GGUF file: 3 s for 134.5 million numbers on two cores."""

EMBED_SECONDS_PER_NUMBER = 5e-9
"""Draw a number of an embedding: 1.6 s for 328 million."""

HEAD = "head"
GIB = 2**30


class LanguageModelSpec(WorkloadSpec):
    """An entry that runs a language model."""

    model: str
    """Catalog name, ``tiny-random``, ``bitnet-2b-random`` (by shape alone, nothing to score), or the
    path of a .gguf file."""
    head: End = "float"
    """The output head. float: left as it is. same: replaced too, by what replaces the blocks' layers."""

    @field_validator("model")
    @classmethod
    def _known(cls, model: str) -> str:
        return check_causal_lm(model)


def model_params(spec: LanguageModelSpec) -> dict[str, Any]:
    """What a point's params say of the model; a float head is implied."""
    own = {"head": spec.head}
    return {"model": spec.model} | ({} if own == all_params(spec.kind, {}) else own)


def place(lm: CausalLM, device: str) -> None:
    """Move what has numbers to ``device``."""
    lm.model._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))


def float_bytes(model: Llama) -> int:
    """Bytes of the model in float32, whether its tensors have numbers or not."""
    shown = sum(4 * parameter.numel() for parameter in model.parameters())
    return shown + sum(buffer.nbytes for buffer in model.buffers())


def open_seconds(spec: LanguageModelSpec) -> float:
    """Seconds to load the float model, on two cores."""
    numbers, converted = parameter_counts(spec.model)
    if spec.model in ARCHITECTURES:
        return EMBED_SECONDS_PER_NUMBER * (numbers - converted)
    return LOAD_SECONDS_PER_NUMBER * numbers


def split_numbers(spec: LanguageModelSpec) -> tuple[int, int]:
    """How many numbers of the model are replaced, and how many stay. What is neither block nor norm
    counts as the head, which is the embedding in most models."""
    numbers, blocks = parameter_counts(spec.model)
    return (numbers, 0) if spec.head == "same" else (blocks, numbers - blocks)


def build_model(lm: CausalLM, spec: LayerSpec, context: Context, *, head: End = "float") -> Converted:
    """``lm`` with every linear layer of its blocks, and its ``head`` where that is "same", replaced by
    what ``spec`` makes of it.

    What is not replaced stays float32 and is shared with ``lm``: one copy in the process. So does the
    residual stream; a layer of another type casts on its way in and out. A head that is tied to the
    embedding is replaced alone, for low-bit rows are no embedding; a head of another float type takes
    the embedding with it, as in a model stored in that type.

    Raises:
        Unsupported: the layer cannot run here.
        MemoryError: the weights would not fit.
    """
    kind = supported(spec, context)
    linears = _block_linears(lm.model)
    # The float32 head is what it would be replaced by: a copy would only untie it.
    replaced = {HEAD: lm.model.head} if head == "same" and not is_float32(spec) else {}
    _require_memory(kind, spec, [*linears.values(), *replaced.values()], context.device)
    if lm.drawn:
        layers = _drawn(linears, kind, spec, context) | _drawn(replaced, kind, spec, context)
    else:
        layers = replaced_by("blocks", linears, lm.identity, kind, spec, context)
        if replaced:
            layers |= replaced_by(HEAD, replaced, lm.identity, kind, spec, context)
    model = sharing_copy(lm.model)
    for name, layer in layers.items():
        model.set_submodule(name, layer.to(context.device))
    _share_embedding(model)
    if head == "same":
        layers[HEAD] = model.head
    return Converted(model.eval(), layers, kind, spec)


def _block_linears(model: Llama) -> dict[str, nn.Linear]:
    from impl.models.llama import PROJECTIONS

    names = [f"blocks.{i}.{part}" for i in range(model.config.num_layers) for part in PROJECTIONS]
    return {name: model.get_submodule(name) for name in names}  # type: ignore[misc]


def _require_memory(kind: LayerKind, spec: LayerSpec, linears: list[nn.Linear], device: str) -> None:
    """Raise MemoryError where the layers do not fit into what is free: the system would end the whole
    process, and with it the layers that do fit. On a GPU the allocator says so itself."""
    if device != "cpu":
        return
    sizes = [(linear.in_features, linear.out_features) for linear in linears]
    weights = sum(kind.cost(spec, *size).weight_bytes for size in sizes)
    passing = max((4 * rows * cols for rows, cols in sizes), default=0)  # the float form of one at a time
    if weights + passing > memory_available():
        trim()  # what an earlier point has freed may still count as used
    free = memory_available()
    if weights + passing > free:
        raise MemoryError(
            f"its weights take {weights / GIB:.2f} GiB and {passing / GIB:.2f} GiB while they are made, "
            f"{free / GIB:.2f} GiB of memory are free: name fewer `layers` in the workload entry"
        )


def _share_embedding(model: Llama) -> None:
    """Let the embedding of a tied model read a head of another float type."""
    from bitbench.layers.cast import CastEmbedding, CastLinear

    if model.config.tie_embeddings and isinstance(model.head, CastLinear):
        model.set_submodule("embedding", CastEmbedding(model.head.weight))


def _drawn(
    linears: dict[str, nn.Linear], kind: LayerKind, spec: LayerSpec, context: Context
) -> dict[str, nn.Module]:
    """Random layers in place of ``linears``, drawn once a shape: all layers of a shape hold the same
    weights, in memory of their own. Neither time nor bytes depend on the values."""
    import torch
    from torch import nn

    from bitbench.layers.cast import CastLinear

    alike: dict[tuple[int, int], list[str]] = {}
    for name, linear in linears.items():
        alike.setdefault((linear.in_features, linear.out_features), []).append(name)
    layers: dict[str, nn.Module] = {}
    for shape, named in alike.items():
        first = kind.made(spec, *shape, bias=False, seed=context.seed, device=context.device)
        if isinstance(first, nn.Linear) and first.weight.dtype != torch.float32:
            first = CastLinear(first)
        first = first.eval()
        layers |= zip(named, [first, *kind.copies(first, len(named) - 1)], strict=True)
    return layers
