"""The memory ledger: where every byte of a layer goes, from its live storage.

Quantities are those of :mod:`bitbench.store.metrics` under ``memory.``. Storage counts, not
shapes: a tensor that shows 10 bytes of a 1000-byte storage costs 1000, and the difference is
reported as slack. Storages shared by several tensors count once.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitbench.measure.host import read

if TYPE_CHECKING:
    import torch
    from torch import nn

SCALES = "scales"
BIAS = "bias"
CODES = ("codes", "weight")
"""Names under which layers keep their weight: packed codes, or the float weight."""

KIB = 1024


def ledger(module: nn.Module) -> dict[str, int]:
    """Bytes of ``module`` by purpose: ``codes``, ``scales``, ``bias``, ``buffers``, ``slack``, ``layer``.

    ``layer`` is the live storage of all tensors found (parameters, buffers, tensors and packed
    objects held as attributes) and equals the sum of the other five. Tensors are told apart by
    their name: ``scales`` and ``bias`` as such, ``codes`` or ``weight`` as codes, anything else
    (the packing header, say) as buffers.
    """
    shown = {"codes": 0, "scales": 0, "bias": 0, "buffers": 0}
    storages: dict[int, int] = {}
    seen: set[tuple[int, int, int]] = set()
    for name, tensor in named_tensors(module):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        view = (storage.data_ptr(), int(tensor.storage_offset()), tensor.numel())
        if view in seen:
            continue
        seen.add(view)
        shown[_purpose(name)] += tensor.numel() * tensor.element_size()
    total = sum(storages.values())
    return {**shown, "slack": total - sum(shown.values()), "layer": total}


def named_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """All tensors a module keeps alive: parameters, buffers, plain tensor attributes, the weight and
    bias inside torch's packed quantised parameters, and those behind a wrapper (a parameter that is
    float outside and integers inside) by the wrapper's names for them.

    Quantised tensors are decomposed into integers, scales and zero points. The blocked copy that
    torch's own int8 engine makes of a packed weight cannot be seen from Python, so such a layer is
    counted by its content, without the engine's padding.
    """
    import torch

    found: list[tuple[str, torch.Tensor]] = []
    for prefix, part in module.named_modules():
        dot = f"{prefix}." if prefix else ""
        own: dict[str, Any] = {**part._parameters, **part._buffers}
        own |= {key: value for key, value in vars(part).items() if isinstance(value, torch.Tensor)}
        for key, value in own.items():
            if value is not None:
                found += _plain(dot + key, value)
        packed = getattr(part, "_packed_params", None)
        if isinstance(packed, torch.ScriptObject) and hasattr(part, "_weight_bias"):
            weight, bias = part._weight_bias()
            found += _plain(f"{dot}weight", weight)
            if bias is not None:
                found.append((f"{dot}bias", bias))
    return found


def _plain(name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    import torch

    stem = name.rpartition(".")[0]
    dot = f"{stem}." if stem else ""
    flatten = getattr(tensor, "__tensor_flatten__", None)  # torch's protocol for wrappers
    if flatten is not None:
        return [found for part in flatten()[0] for found in _plain(dot + part, getattr(tensor, part))]
    if not tensor.is_quantized:
        return [(name, tensor.detach())]
    parts = [(name, tensor.int_repr())]
    if tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
        parts.append((f"{dot}scales", tensor.q_per_channel_scales()))
        parts.append((f"{dot}zero_points", tensor.q_per_channel_zero_points()))
    else:
        # Two numbers kept in the tensor's header rather than in a storage.
        parts.append((f"{dot}scales", torch.tensor([tensor.q_scale()], dtype=torch.float64)))
        parts.append((f"{dot}zero_points", torch.tensor([tensor.q_zero_point()])))
    return parts


def _purpose(name: str) -> str:
    leaf = name.rpartition(".")[2]
    if leaf in (SCALES, BIAS):
        return leaf
    return "codes" if leaf in CODES else "buffers"


def file_bytes(module: nn.Module) -> int:
    """Size of ``module``'s tensors saved as a safetensors file."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor) and not value.is_quantized:
            tensors[name] = value.detach().contiguous().clone()
    # The decomposed tensors of a module are more than the entries of its state where it holds tuples,
    # quantised tensors or wrappers, which safetensors cannot: they are what such a file would carry.
    if len(tensors) < len(list(named_tensors(module))):
        tensors = {name: value.contiguous().clone() for name, value in named_tensors(module)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.safetensors"
        save_file(tensors, path)
        return path.stat().st_size


def reset_peak() -> bool:
    """Set the process's high-water mark back to its present size; False where not allowed."""
    trim()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def high_water() -> int | None:
    """Peak resident bytes of this process since :func:`reset_peak`; None off Linux."""
    return _status("VmHWM")


def resident() -> int | None:
    """Resident bytes of this process; None off Linux."""
    return _status("VmRSS")


def _status(key: str) -> int | None:
    for line in read(Path("/proc/self/status")).splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * KIB
    return None


def trim() -> None:
    """Give freed heap pages back to the system, so that reusing them shows as a rise again."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # not glibc
        return


def peak_of(call: Callable[[], Any]) -> int | None:
    """Rise of the process's high-water mark over one ``call``, in bytes.

    None where the mark cannot be reset. Resolution is the kernel's batching of its counters, some
    64 pages a thread.
    """
    if not reset_peak():
        return None
    before = high_water()
    result = call()
    after = high_water()
    del result
    if before is None or after is None:
        return None
    return max(0, after - before)


def peak_on(device: str, call: Callable[[], Any]) -> int | None:
    """Rise of the high-water mark over one ``call``, in bytes: of the process (:func:`peak_of`), or on
    ``cuda`` of torch's allocator."""
    if device != "cuda":
        return peak_of(call)
    import torch

    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    rise = torch.cuda.max_memory_allocated() - before
    del result
    return rise
