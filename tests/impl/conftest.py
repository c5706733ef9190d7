"""What the tests of ``impl`` share."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside this file


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread: hundreds of tiny steps take longer with more, much longer on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextlib.contextmanager
def _nothing_drawn() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def nothing_drawn() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A block in which uninitialised memory holds NaN, and after which the generator must be where it was."""
    return _nothing_drawn


def _through_a_file(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    twin: nn.Module = torch.load(file, weights_only=False)
    return twin


_COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": _through_a_file,
}


@pytest.fixture(params=list(_COPIES))
def copied(request: pytest.FixtureRequest) -> Callable[[nn.Module], nn.Module]:
    """Copies a module: a test that asks for it runs for every way there is to make a copy."""
    return _COPIES[request.param]
