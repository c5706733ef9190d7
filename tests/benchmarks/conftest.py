"""What the kernel benchmarks share: one thread, no gradients, and nn.Linear beside each kernel.

``pytest tests/benchmarks`` calls every kernel once and checks it against its exact reference;
``pytest tests/benchmarks --benchmark-json FILE --bitbench-launches 10`` times them, ``bitbench gate
FILE`` judges the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

ROWS, COLS = 1024, 1024
"""Shape of every weight: fp32 it leaves the second-level cache, packed it stays there."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread, as a gate asks for, and no gradients, for kernel and nn.Linear alike."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def beside_linear(side_by_side: Any) -> Callable[..., Any]:
    """``beside_linear(build, run, tokens=..., check=..., extra=...)``: time ``run(build())`` beside an
    fp32 nn.Linear of the same shape on ``tokens`` rows."""

    def beside(
        build: Callable[[], Any],
        run: Callable[[Any], Any],
        *,
        check: Callable[[Any], Any],
        tokens: int = 1,
        extra: Any = None,
    ) -> Any:
        def setup(side: str) -> Any:
            if side == "target":
                return build()
            return torch.nn.Linear(COLS, ROWS, bias=False), random_rows(tokens)

        def baseline(built: tuple[torch.nn.Linear, torch.Tensor]) -> torch.Tensor:
            linear, x = built
            return linear(x)

        return side_by_side(run, baseline=baseline, check=check, setup=setup, extra=extra)

    return beside


def random_rows(tokens: int) -> torch.Tensor:
    """float32 [tokens, COLS], the same on every call."""
    return torch.randn(tokens, COLS, generator=torch.Generator().manual_seed(tokens))


@pytest.fixture
def activations() -> Callable[[int], torch.Tensor]:
    """``activations(tokens)``: float32 [tokens, COLS], the same on every call."""
    return random_rows


@pytest.fixture
def weight_codes() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """``weight_codes(format, components, group_size)``: codes int8 [components, ROWS, COLS] and scales
    float32 [components, ROWS, groups], the same on every call."""

    def make(
        format: str, components: int = 1, group_size: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(components)
        shape = (components, ROWS, COLS)
        if format == "binary":
            codes = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8) * 2 - 1
        else:
            codes = torch.randint(-1, 2, shape, generator=generator, dtype=torch.int8)
        groups = 1 if group_size is None else COLS // group_size
        return codes, torch.rand(components, ROWS, groups, generator=generator) + 0.5

    return make
