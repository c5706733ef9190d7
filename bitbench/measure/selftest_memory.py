"""The part of :mod:`bitbench.measure.selftest` that is about bytes. Imports torch when called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from bitbench.measure.memory import file_bytes, ledger, peak_of
from bitbench.measure.selftest import Check, Outcome, passed, tried

if TYPE_CHECKING:
    from torch import nn

MIB = 1024**2
PEAK_BYTES = 64 * MIB
PEAK_TOLERANCE = 2 * MIB
"""The kernel counts resident pages in batches, per thread."""
HEADER_BYTES = 4096
"""A safetensors file may be larger than its tensors by its header."""

Ledger = Callable[["nn.Module"], dict[str, int]]


def memory_checks() -> Iterator[Check]:
    """Bytes of tensors of known size: by the ledger, in a file, and in use."""
    yield layer_bytes()
    yield slack_bytes()
    yield saved_bytes()
    yield tried(peak_bytes)


def layer_bytes(count: Ledger = ledger) -> Check:
    """A layer of known shape: 128 x 256 floats and 128 more."""
    from torch import nn

    found = count(nn.Linear(256, 128))
    known = {"codes": 128 * 256 * 4, "bias": 128 * 4, "layer": 128 * 256 * 4 + 128 * 4, "slack": 0}
    return Check(
        "bytes of a layer",
        _told(known),
        _told({name: found[name] for name in known}),
        passed(all(found[name] == value for name, value in known.items())),
    )


def slack_bytes(count: Ledger = ledger) -> Check:
    """A tensor that shows 10 bytes of a storage of 1000."""
    import torch
    from torch import nn

    module = nn.Module()
    module.register_buffer("part", torch.zeros(1000, dtype=torch.uint8)[:10])
    found = count(module)
    known = {"buffers": 10, "slack": 990, "layer": 1000}
    return Check(
        "bytes behind a view",
        _told(known),
        _told({name: found[name] for name in known}),
        passed(all(found[name] == value for name, value in known.items())),
    )


def saved_bytes() -> Check:
    """The file of a layer: its tensors and a header."""
    from torch import nn

    tensors = 128 * 256 * 4 + 128 * 4
    found = file_bytes(nn.Linear(256, 128))
    return Check(
        "bytes of a file",
        f"{tensors} to {tensors + HEADER_BYTES}",
        str(found),
        passed(tensors < found <= tensors + HEADER_BYTES),
    )


def peak_bytes(measure: Callable[[Callable[[], Any]], int | None] = peak_of) -> Check:
    """Memory written by one call."""
    import torch

    what, expected = "peak of a call", f"{PEAK_BYTES // MIB} ± {PEAK_TOLERANCE // MIB} MiB"
    found = measure(lambda: torch.ones(PEAK_BYTES, dtype=torch.uint8))
    if found is None:
        return Check(what, expected, "the high-water mark cannot be reset here", Outcome.SKIPPED)
    return Check(what, expected, f"{found / MIB:.1f} MiB", passed(abs(found - PEAK_BYTES) <= PEAK_TOLERANCE))


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in counts.items())
