"""Both sides of a launch on the same cores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.execute import placement
from bitbench.execute.placement import cores, seat, seats


def topology(folder: Path, siblings: dict[int, str], package: dict[int, int]) -> Path:
    for cpu, text in siblings.items():
        place = folder / f"cpu{cpu}" / "topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(text)
        (place / "physical_package_id").write_text(str(package[cpu]))
    return folder


def test_one_processor_of_each_core_sockets_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two sockets numbered alternately, two threads a core.
    siblings = {0: "0,4", 4: "0,4", 1: "1,5", 5: "1,5", 2: "2,6", 6: "2,6", 3: "3,7", 7: "3,7"}
    folder = topology(tmp_path, siblings, {cpu: cpu % 2 for cpu in siblings})
    monkeypatch.setattr(placement, "CPU_DIR", folder)
    monkeypatch.setattr(placement, "usable_cpus", lambda: {0, 1, 2, 3, 4, 5, 6, 7})
    assert cores() == [0, 2, 1, 3]
    monkeypatch.setattr(placement, "usable_cpus", lambda: {4, 5, 6, 2})  # a part of the machine
    assert cores() == [4, 2, 5]


def test_without_a_topology_every_processor_is_a_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "CPU_DIR", tmp_path)
    monkeypatch.setattr(placement, "usable_cpus", lambda: {3, 1})
    assert cores() == [1, 3]


@given(
    st.integers(1, 8), st.lists(st.integers(0, 99), min_size=1, max_size=8, unique=True), st.integers(0, 7)
)
def test_as_many_cores_as_threads_or_none(threads: int, found: list[int], start: int) -> None:
    chosen = seats(threads, found, start)
    assert chosen <= set(found)
    assert len(chosen) == (threads if threads <= len(found) else 0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_a_process_is_seated_with_its_threads() -> None:
    code = (
        "import threading, sys, os\n"
        "thread = threading.Thread(target=sys.stdin.read); thread.start()\n"
        "print(thread.native_id, flush=True)\n"
        "thread.join(); print(os.sched_getaffinity(0))"
    )
    one = {min(os.sched_getaffinity(0))}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        thread = int(process.stdout.readline())
        seat(process.pid, one)
        assert os.sched_getaffinity(thread) == os.sched_getaffinity(process.pid) == one
        process.communicate("")
    seat(process.pid, one)  # gone by now: nothing happens
    assert os.sched_getaffinity(0) >= one
