"""Which CUDA devices the kernels serve: found out on first use, by a self-check, and remembered.

The result of a check that finds nothing wrong is kept on disk (``$XDG_CACHE_HOME/bitimpl`` or
``~/.cache/bitimpl``) for this library, device and driver. What it finds wrong is left out, with a warning.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

from impl.native.cuda import library as cuda_library
from impl.native.cuda import self_check
from impl.native.cuda.library import CudaLibrary
from impl.native.library import NativeError

#: Kernels and entry points without which an operation is not served.
_NEEDED: dict[str, tuple[str, ...]] = {
    "linear": ("any",),
    "float_linear": ("float", "dequantize"),
    "linear_signs": ("any", "signs"),
    "conv": ("any",),
    "float_conv": ("dequantize",),
    "conv_signs": ("any", "signs"),
    "training": ("quantize_weight", "input_grad", "apply_mask"),
    "decode": ("dequantize",),
    "pack": ("pack",),
    "unpack": ("unpack",),
}
#: What a format needs beyond that.
_NEEDED_BY_FORMAT: dict[tuple[str, str], tuple[str, ...]] = {("training", "binary"): ("binary_training",)}

_lock = threading.RLock()
_unusable: dict[int, str] = {}
_wrong: dict[int, dict[str, str]] = {}


def why_not(index: int, operation: str, format: str, *, check: bool = True) -> str:
    """Why no kernel serves ``operation`` with ``format`` weights on device ``index``; "" where one does.

    ``operation``: as :func:`impl.native.uses_native` names it.
    Checks the device on first use, unless ``check`` is False; raises NativeError where that leaves it
    unusable.
    """
    needed = _NEEDED[operation] + _NEEDED_BY_FORMAT.get((operation, format), ())
    library = cuda_library.load()
    if isinstance(library, NativeError):
        return str(library)
    reason = _why_unusable(library, index)
    if reason:
        return reason
    wrong = _checked(library, index) if check else _wrong.get(index, {})
    return next((f"{name} on cuda:{index}: {wrong[name]}" for name in needed if name in wrong), "")


def settled(index: int) -> bool:
    """Whether what :func:`why_not` says of device ``index`` will stay so."""
    return isinstance(cuda_library.load(), NativeError) or bool(_unusable.get(index)) or index in _wrong


def found_wrong(index: int) -> dict[str, str] | None:
    """What the self-check of device ``index`` found wrong, by kernel; None where it has not been made."""
    return _wrong.get(index)


def forget() -> None:
    """Check every device again when :func:`why_not` is next asked; answers that :mod:`impl.native.dispatch`
    keeps stay."""
    with _lock:
        _unusable.clear()
        _wrong.clear()


def _why_unusable(library: CudaLibrary, index: int) -> str:
    if index not in _unusable:
        try:
            library.describe(index)
            _unusable[index] = ""
        except NativeError as error:
            _unusable[index] = str(error)
    return _unusable[index]


def _checked(library: CudaLibrary, index: int) -> dict[str, str]:
    found = _wrong.get(index)
    if found is not None:
        return found
    with _lock:
        if index in _wrong:
            return _wrong[index]
        record = _record_of(library, index)
        path = _path_of(record)
        if not _is_kept(path, record):
            if library.capturing(index):
                _warn(
                    f"the self-check of the CUDA kernels on cuda:{index} is put off, since a CUDA graph is "
                    "being captured: call the layer once before, as torch.cuda.graph asks for anyway"
                )
                return {}
            wrong = self_check.check(library, index)
            if wrong:
                _leave_out(library, index, wrong)
            else:
                _keep(path, record)
            _wrong[index] = wrong
        return _wrong.setdefault(index, {})


def _leave_out(library: CudaLibrary, index: int, wrong: dict[str, str]) -> None:
    for name in wrong:
        if name in library.kernels:
            library.avoid(name, index)
    listed = "; ".join(f"{name}: {reason}" for name, reason in wrong.items())
    _warn(
        f"CUDA kernels of {library.path.name} fail their self-check on cuda:{index} "
        f"({library.name_of(index)}) and are left out, so that results stay right and calls may be slow: "
        f"{listed}"
    )


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)


# ---- results kept on disk -----------------------------------------------------------------------


def _record_of(library: CudaLibrary, index: int) -> dict[str, Any]:
    """What a result hangs on."""
    return {
        "check": self_check.VERSION,
        "library": library.digest(),
        "kernels": sorted(set(library.kernels) - set(library.unproven)),
        "device": library.name_of(index),
        "driver": library.driver(),
    }


def cache_directory() -> Path:
    """Where results of self-checks are kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "bitimpl"


def _path_of(record: dict[str, Any]) -> Path | None:
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    try:
        return cache_directory() / f"self-check-{digest[:32]}.json"
    except RuntimeError:  # no home directory
        return None


def _is_kept(path: Path | None, record: dict[str, Any]) -> bool:
    if path is None:
        return False
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return bool(kept == record)


def _keep(path: Path | None, record: dict[str, Any]) -> None:
    """Whole or not at all; where that cannot be, the next process checks again."""
    if path is None:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem)
        with os.fdopen(handle, "w") as file:
            json.dump(record, file)
        os.replace(name, path)
