from __future__ import annotations

import pytest

from bitbench.execute.outcome import REASON_LENGTH, of_death, of_exception, one_line
from bitbench.store.schema import Status
from bitbench.workloads.base import Unsupported


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Unsupported("no such thing"), Status.UNSUPPORTED),
        (MemoryError(), Status.OOM),
        (RuntimeError("CUDA out of memory. Tried to allocate"), Status.OOM),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), Status.OOM),
        (RuntimeError("shape mismatch"), Status.ERROR),
        (ValueError("out of memory is just a word here"), Status.ERROR),
    ],
)
def test_exceptions(error: Exception, status: Status) -> None:
    found, reason = of_exception(error)
    assert found is status
    assert reason
    assert "\n" not in reason


def test_torch_out_of_memory() -> None:
    import torch

    assert of_exception(torch.OutOfMemoryError("no"))[0] is Status.OOM


@pytest.mark.parametrize(
    ("code", "short", "status", "word"),
    [
        (-9, True, Status.OOM, "memory"),
        (-9, False, Status.CRASH, "SIGKILL"),
        (-11, True, Status.CRASH, "SIGSEGV"),
        (-6, False, Status.CRASH, "SIGABRT"),
        (1, False, Status.CRASH, "exit code 1"),
    ],
)
def test_deaths(code: int, short: bool, status: Status, word: str) -> None:
    found, reason = of_death(code, short, "logs/x.log")
    assert found is status
    assert word in reason


def test_reasons_are_one_line_of_bounded_length() -> None:
    assert one_line("\n\n  first \nsecond") == "first"
    assert one_line("") == ""
    assert len(one_line("x" * 1000)) == REASON_LENGTH
