from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.measure import foreign
from bitbench.measure.foreign import Foreign, Seen, busy_processes, family, gpu_holders, look
from bitbench.measure.nvml import GpuState, NoGpu

US, WORKER, HELPER, SHELL, COMPILER = 100, 101, 102, 50, 60


def seen(**cpu_s: float) -> dict[int, Seen]:
    """Us with a worker and its helper, started by a shell that also runs a compiler."""
    return {
        SHELL: Seen("bash", 1, 0.0, cpu_s.get("shell", 0.0)),
        COMPILER: Seen("cc1plus", SHELL, 5.0, cpu_s.get("compiler", 0.0)),
        US: Seen("python3", SHELL, 9.0, cpu_s.get("us", 0.0)),
        WORKER: Seen("python3", US, 10.0, cpu_s.get("worker", 0.0)),
        HELPER: Seen("make", WORKER, 11.0, cpu_s.get("helper", 0.0)),
    }


class Times:
    """Answers with the given values one after the other."""

    def __init__(self, *values: float) -> None:
        self._values = list(values)

    def __call__(self) -> float:
        return self._values.pop(0)


def watch(*looks: dict[int, Seen], clock: Times) -> Foreign:
    waiting = list(looks)
    return Foreign(look=lambda: waiting.pop(0), clock=clock, root=US)


def test_only_others_that_burn_time_are_named() -> None:
    watcher = watch(
        seen(),
        seen(shell=0.1, compiler=1.94, us=1.0, worker=3.9, helper=1.0),
        clock=Times(0.0, 2.0),
    )
    assert watcher.busy() == ["cc1plus (97 % cpu)"]


def test_each_look_counts_from_the_last() -> None:
    watcher = watch(seen(), seen(compiler=1.0), seen(compiler=1.1), clock=Times(0.0, 1.0, 2.0))
    assert watcher.busy() == ["cc1plus (100 % cpu)"]
    assert watcher.busy() == []


def test_a_reused_process_id_is_another_process() -> None:
    later = seen() | {COMPILER: Seen("ld", SHELL, 99.0, 50.0)}
    watcher = watch(seen(), later, clock=Times(0.0, 1.0))
    assert watcher.busy() == []


def test_a_clock_that_stands_still_accuses_nobody() -> None:
    watcher = watch(seen(), seen(compiler=5.0), clock=Times(3.0, 3.0))
    assert watcher.busy() == []


def test_holders_of_the_gpu() -> None:
    assert gpu_holders([WORKER, COMPILER], seen(), root=US) == ["gpu: cc1plus"]
    assert gpu_holders([US, 4242], seen(), root=US) == []
    assert gpu_holders([US, 4242], seen(), root=US, hidden=True) == [f"gpu: {foreign.ELSEWHERE}"]


@given(st.dictionaries(st.integers(1, 30), st.integers(0, 30), max_size=30))
def test_a_family_is_closed_under_children(parents: dict[int, int]) -> None:
    processes = {pid: Seen("x", parent, 0.0, 0.0) for pid, parent in parents.items()}
    ours = family(processes, 1)
    assert 1 in ours
    assert all(pid in ours for pid, p in processes.items() if p.parent in ours)
    assert all(processes[pid].parent in ours for pid in ours - {1})


class Held(NoGpu):
    def read(self) -> GpuState:
        return GpuState(pids=(COMPILER,))


def test_busy_processes_names_what_runs_and_what_cannot_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [seen(), seen(compiler=0.9, us=0.05)]
    machine = Times(10.0, 13.0)
    monkeypatch.setattr(foreign, "look", lambda: looks.pop(0))
    monkeypatch.setattr(foreign, "_machine_busy_s", machine)
    monkeypatch.setattr(foreign.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(foreign.time, "monotonic", Times(0.0, 1.0))
    monkeypatch.setattr(foreign.os, "getpid", lambda: US)
    # Three processors' worth of work in a second; 0.9 is the compiler's, 0.05 ours.
    assert busy_processes(gpu=Held()) == [
        "cc1plus (90 % cpu)",
        f"{foreign.UNSEEN} (205 % cpu)",
        "gpu: cc1plus",
    ]


def test_a_real_process_is_seen() -> None:
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert child.pid in look()
        # As its own family, everything else here is foreign; the child alone is not.
        assert child.pid in family(look(), foreign.os.getpid())
        watcher = Foreign(root=child.pid)
        assert isinstance(watcher.busy(), list)
    finally:
        child.kill()
        child.wait()
