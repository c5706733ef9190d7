from __future__ import annotations

from pathlib import Path

import pytest

from bitbench.measure import host


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 4 logical processors on 2 cores, with caches and a control group."""
    cpus, group = tmp_path / "cpu", tmp_path / "cgroup"
    for cpu in range(4):
        topology = cpus / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text("0\n")
        (topology / "core_id").write_text(f"{cpu % 2}\n")
    for index, (level, kind, size) in enumerate(
        [
            ("1", "Data", "48K"),
            ("1", "Instruction", "32K"),
            ("2", "Unified", "1024K"),
            ("3", "Unified", "32M"),
        ]
    ):
        cache = cpus / "cpu0" / "cache" / f"index{index}"
        cache.mkdir(parents=True)
        for name, value in (("level", level), ("type", kind), ("size", size)):
            (cache / name).write_text(value + "\n")
    group.mkdir()
    monkeypatch.setattr(host, "CPU_DIR", cpus)
    monkeypatch.setattr(host, "CGROUP_DIR", group)
    monkeypatch.setattr(host, "usable_cpus", lambda: {0, 1, 2, 3})
    return tmp_path


def test_threads_of_one_core_count_once(machine: Path) -> None:
    assert host.physical_cores() == 2


def test_affinity_and_quota_limit_the_cores(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "cgroup" / "cpu.max").write_text("150000 100000\n")
    assert host.cpu_quota() == 1.5
    assert host.physical_cores() == 1
    (machine / "cgroup" / "cpu.max").write_text("max 100000\n")
    assert host.cpu_quota() is None
    monkeypatch.setattr(host, "usable_cpus", lambda: {0, 2})
    assert host.physical_cores() == 1


def test_caches(machine: Path) -> None:
    assert host.caches() == {"L1d": 48 * 1024, "L2": 1024**2, "L3": 32 * 1024**2}
    assert host.last_level_cache() == 32 * 1024**2


def test_memory_of_the_control_group(machine: Path) -> None:
    group = machine / "cgroup"
    (group / "memory.max").write_text(f"{2**30}\n")
    (group / "memory.current").write_text(f"{2**29}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {2**20}\n")
    assert host.memory_limit() == 2**30
    assert host.memory_available() == 2**30 - 2**29 + 2**20


def test_oom_kills_grow_with_the_group_counter(machine: Path) -> None:
    before = host.oom_kills()
    (machine / "cgroup" / "memory.events").write_text("oom 3\noom_kill 2\n")
    assert host.oom_kills() == before + 2


def test_this_machine_answers() -> None:
    assert host.physical_cores() >= 1
    assert host.cpu_model()
    assert 0 < host.memory_available() <= host.memory_limit()
    assert host.read(Path("/no/such/file")) == ""


def test_limits_of_outer_groups_count(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = machine / "cgroup" / "batch" / "job"
    inner.mkdir(parents=True)
    real = host.read

    def read(path: Path) -> str:
        return "0::/batch/job" if path == Path("/proc/self/cgroup") else real(path)

    monkeypatch.setattr(host, "read", read)
    assert host.control_groups() == [inner, inner.parent, machine / "cgroup"]
    (inner / "cpu.max").write_text("max 100000\n")
    (inner.parent / "cpu.max").write_text("200000 100000\n")
    assert host.cpu_quota() == 2.0
    (inner.parent / "memory.max").write_text(f"{2**30}\n")
    assert host.memory_limit() == 2**30
    (inner / "cpu.stat").write_text("usage_usec 9\nnr_throttled 2\nthrottled_usec 250000\n")
    (inner.parent / "cpu.stat").write_text("throttled_usec 1000000\n")
    assert host.cpu_stalled_s() == 1.25


def test_no_group_counts_stalls(machine: Path) -> None:
    assert host.cpu_stalled_s() is None


def test_lists_of_processors() -> None:
    assert host.cpu_list("0-2,8,10-11") == {0, 1, 2, 8, 10, 11}
    assert host.cpu_list("") == set()


def test_siblings(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu in range(4):
        path = machine / "cpu" / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        path.write_text(f"{cpu % 2},{cpu % 2 + 2}\n")
    monkeypatch.setattr(host, "usable_cpus", lambda: {1})
    assert host.siblings() == {1, 3}


def test_memory_nodes(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "NODE_DIR", machine / "node")
    assert host.memory_nodes() == {}
    for node, cpus in ((0, "0-1"), (1, "2-3"), (10, "4-7")):
        folder = machine / "node" / f"node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(cpus + "\n")
    assert host.memory_nodes() == {0: {0, 1}, 1: {2, 3}}


def test_turbo(machine: Path) -> None:
    assert host.turbo() is None
    (machine / "cpu" / "cpufreq").mkdir()
    (machine / "cpu" / "cpufreq" / "boost").write_text("1\n")
    assert host.turbo() is True


def test_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "read", lambda path: "always [madvise] never")
    assert host.huge_pages() == "madvise"
    monkeypatch.setattr(host, "read", lambda path: "")
    assert host.huge_pages() == ""
