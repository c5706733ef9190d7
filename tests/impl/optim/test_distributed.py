"""Default DistributedDataParallel on two processes: replicas start alike and stay alike."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from impl.optim import DiodeMix
from impl.parameters import BinaryEmbeddingParameter, BinaryLinearParameter, nBitLinearParameter


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = BinaryEmbeddingParameter(torch.randn(10, 16))
        self.hidden = BinaryLinearParameter(torch.randn(24, 16), packed=True)
        self.norm = nn.BatchNorm1d(24)
        self.out = nBitLinearParameter(torch.randn(4, 24))

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        x = F.embedding(index, self.table)
        return F.linear(F.relu(self.norm(F.linear(x, self.hidden))), self.out)


def replica(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(rank)  # other weights, other noise: the first broadcast has to make them equal
    model = DistributedDataParallel(Model())
    optimizer = DiodeMix(model.parameters(), lr=1e-2, betas=(0.9, 0.95))
    first = model.module.hidden.signs().clone()
    for _ in range(60):
        optimizer.zero_grad()
        index = torch.randint(0, 10, (32,))
        F.cross_entropy(model(index), index % 4).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    torch.save((first, model.module.state_dict()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_replicas_stay_alike(tmp_path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(timeout=200) for process in processes] == [0, 0]
    (first, state), (other_first, other_state) = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)
    )
    assert torch.equal(first, other_first)
    for name in ("table", "hidden", "out"):
        assert torch.equal(state[name].codes, other_state[name].codes)
        assert torch.equal(state[name].scales, other_state[name].scales)
    assert not torch.equal(state["hidden"].signs(), first)


if __name__ == "__main__":
    replica(int(sys.argv[1]), sys.argv[2])
