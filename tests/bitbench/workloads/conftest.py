"""What the tests of the workloads share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bitbench.data.architectures import ARCHITECTURES, Architecture
from bitbench.layers.base import LayerSpec
from bitbench.workloads.base import Context, Session
from bitbench.workloads.registry import get

sys.path.insert(0, str(Path(__file__).parent))  # for the module beside this file

SMALL = Architecture(
    "",
    {
        "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_layers": 4, "num_heads": 4,
        "num_kv_heads": 2, "context": 64, "activation": "relu2", "sub_norms": True,
    },
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Layers as small as these gain nothing from threads, and lose much where other tests run too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def open_points(tmp_path: Path) -> Callable[..., list[Session]]:
    """``open_points(spec, layers)``: the session of every point of a workload entry."""

    def opened(spec: Any, layers: dict[str, LayerSpec] | None = None) -> list[Session]:
        kind = get(spec.kind)
        context = Context("cpu", 1, 0, tmp_path, layers or {}, "linear")
        return [kind.open(spec, plan.params, context) for plan in kind.points(spec)]

    return opened


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a small model known by its shape alone."""
    monkeypatch.setitem(ARCHITECTURES, "small-random", SMALL)
    return "small-random"
