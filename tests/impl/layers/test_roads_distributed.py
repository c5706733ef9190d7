"""Every layer on two processes: default DistributedDataParallel, and FSDP2 for latent weights.

Run as a script, this file is one of the two processes.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from impl.optim import DiodeMix

WORLD = 2


def trainable(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def shaken(module: nn.Module, rank: int) -> nn.Module:
    """``module`` with weights that differ from rank to rank; those of rank 0 are to prevail."""
    generator = torch.Generator().manual_seed(rank)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter + torch.randn(parameter.shape, generator=generator) * 0.1)
    return module


def is_plain(module: nn.Module) -> bool:
    """Whether all parameters are float memory; others hold integers behind a float surface."""
    return all(type(parameter) is nn.Parameter for parameter in module.parameters())


def step(parameters: list[nn.Parameter], optimizer: type[torch.optim.Optimizer]) -> None:
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer(parameters, lr=1e-2).step()


def mean_gradients(every_layer: Any, module: nn.Module, inputs: list[Tensor]) -> dict[str, Tensor]:
    """Gradients to the parameters of ``module``, averaged over the inputs of all ranks."""
    each = [every_layer.gradients(copy.deepcopy(module), x) for x in inputs]
    return {name: sum(found[name] for found in each) / len(each) for name in each[0] if name != "input"}


def check_data_parallel(every_layer: Any, case: Any, packed: bool, rank: int) -> None:
    reference = shaken(case.build(), 0)
    module = shaken(case.build(), rank)
    for layer in [*every_layer.two_forms(reference), *every_layer.two_forms(module)] if packed else ():
        layer.pack()
    if not trainable(module):
        return
    inputs = [case.inputs(seed=10 + other) for other in range(WORLD)]
    replica = DistributedDataParallel(module)
    found = every_layer.run(replica, inputs[rank], module)[1]
    found.pop("input", None)
    expected = mean_gradients(every_layer, reference, inputs)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4)
    step(list(replica.parameters()), torch.optim.AdamW if is_plain(module) else DiodeMix)
    for parameter in module.parameters():
        values = parameter.detach() + 0
        first = values.clone()
        dist.broadcast(first, 0)
        assert torch.equal(first, values)


def check_sharded(every_layer: Any, case: Any, rank: int) -> None:
    module = case.build()
    if not trainable(module) or not is_plain(module):  # FSDP2 shards float memory only
        return
    reference = copy.deepcopy(module)
    inputs = [case.inputs(seed=10 + other) for other in range(WORLD)]
    fully_shard(module, mesh=init_device_mesh("cpu", (WORLD,)))
    found = every_layer.run(module, inputs[rank], module)[1]
    found.pop("input", None)
    expected = mean_gradients(every_layer, reference, inputs)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name].full_tensor(), gradient, rtol=1e-4, atol=1e-4)
    for name, parameter in reference.named_parameters():
        parameter.grad = expected[name]
    step(list(module.parameters()), torch.optim.AdamW)
    step(list(reference.parameters()), torch.optim.AdamW)
    for layer in every_layer.two_forms(module):
        with pytest.raises(TypeError, match="sharded over processes"):
            layer.pack()
    packed = case.build(packed=True).state_dict()
    if any(name.endswith("codes") for name in packed):
        with pytest.raises(RuntimeError, match="load the packed state before sharding"):
            module.load_state_dict(packed)
    # The gathered state is that of an ordinary layer, which packs.
    state = {name: tensor.full_tensor() for name, tensor in module.state_dict().items()}
    twin = case.build()
    twin.load_state_dict(state)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(state[name], parameter.detach(), rtol=1e-4, atol=1e-5)
    for layer in every_layer.two_forms(twin):
        layer.pack()
    with torch.no_grad():
        twin(inputs[rank])


def main(rank: int, folder: str) -> None:
    import every_layer  # beside this file, which is where a script imports from

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    checked = 0
    for case in every_layer.CASES:
        for packed in case.forms:
            try:
                check_data_parallel(every_layer, case, packed, rank)
                if not packed:
                    check_sharded(every_layer, case, rank)
            except BaseException:
                print(f"rank {rank}: {case.name}, {packed=}", file=sys.stderr)
                raise
            checked += 1
    print(checked)
    dist.destroy_process_group()


@pytest.mark.slow
def test_replicas_and_shards_train_alike(every_layer: Any, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(WORLD)
    ]
    expected = sum(len(case.forms) for case in every_layer.CASES)
    try:
        for process in processes:
            out, err = process.communicate(timeout=200)
            assert process.returncode == 0, err[-4000:]
            assert int(out) == expected
    finally:
        for process in processes:
            process.kill()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
