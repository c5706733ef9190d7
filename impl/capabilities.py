"""What can run here, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from impl import native

#: Activations that operators take, each of them all, as they stand in kernel names.
_ACTIVATIONS = ("float", "sign", "ternary", "int8", "int16")
_FORMATS = {
    "binary_linear": ("binary",),
    "ternary_linear": ("two_bit", "base3"),
    "binary_conv": ("binary",),
    "ternary_conv": ("two_bit", "base3"),
}


@dataclass(frozen=True)
class Kernel:
    """One combination that can be served."""

    operator: str
    format: str
    activation: str
    """``float``, ``sign``, ``ternary``, ``int8`` or ``int16``."""
    device: str
    isa: str
    """Instruction set of a native kernel, or ``torch`` for the reference."""


@dataclass(frozen=True)
class Capabilities:
    """The native library, if any, and all kernels that can be called."""

    library: str | None
    """Path of the native library, or None."""
    why_not: str
    """Why no native kernel can serve (no library, an unusable ``BITIMPL_ISA``) and what would help;
    "" where one can."""
    abi: int | None
    isa: str | None
    """Instruction set in use, or None where no native kernel can serve."""
    isas: tuple[str, ...]
    """Instruction sets that this machine can use, best first."""
    threads: int | None
    """Threads the native kernels may use."""
    backend: str
    """Choice in force: ``auto``, ``native`` or ``torch``."""
    kernels: tuple[Kernel, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        plain = asdict(self)
        return {**plain, "isas": list(self.isas), "kernels": [asdict(kernel) for kernel in self.kernels]}


def capabilities() -> Capabilities:
    """What can run on this machine. Loads the native library on first use."""
    library, why_not = native.library_path(), native.why_not()
    isas = native.supported_isas() if library else ()
    isa = None
    if library:
        try:
            isa = native.isa()
        except native.NativeError as error:
            why_not = str(error)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    served = [("cpu", name) for name in isas if isa is not None] + [(device, "torch") for device in devices]
    return Capabilities(
        library=str(library) if library else None,
        why_not=why_not,
        abi=native.ABI_VERSION if library else None,
        isa=isa,
        isas=isas,
        threads=native.threads() if library else None,
        backend=native.current_backend(),
        kernels=tuple(
            Kernel(operator, format, activation, device, isa)
            for operator, formats in _FORMATS.items()
            for format in formats
            for activation in _ACTIVATIONS
            for device, isa in served
        ),
    )
