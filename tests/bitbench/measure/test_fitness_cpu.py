from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from bitbench.measure import fitness_cpu, host
from bitbench.measure.findings import Finding, Level
from bitbench.measure.fitness_cpu import Moving


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two cores of two threads each, all ours, on one memory node."""
    cpus, nodes, clock = tmp_path / "cpu", tmp_path / "node", tmp_path / "clock"
    for cpu in range(4):
        write(cpus / f"cpu{cpu}" / "topology" / "physical_package_id", "0")
        write(cpus / f"cpu{cpu}" / "topology" / "core_id", str(cpu % 2))
        write(cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list", f"{cpu % 2},{cpu % 2 + 2}")
    write(nodes / "node0" / "cpulist", "0-3")
    write(clock / "current_clocksource", "tsc")
    write(clock / "available_clocksource", "tsc hpet acpi_pm")
    monkeypatch.setattr(host, "CPU_DIR", cpus)
    monkeypatch.setattr(host, "NODE_DIR", nodes)
    monkeypatch.setattr(host, "CLOCK_DIR", clock)
    monkeypatch.setattr(host, "CGROUP_DIR", tmp_path / "cgroup")
    monkeypatch.setattr(host, "usable_cpus", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(fitness_cpu, "clock_cost_ns", lambda: 40.0)
    return tmp_path


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


@pytest.mark.parametrize(("load", "level"), [(0.1, Level.FIT), (3.0, Level.DEGRADED), (50.0, Level.DEGRADED)])
def test_load_per_core(monkeypatch: pytest.MonkeyPatch, load: float, level: Level) -> None:
    monkeypatch.setattr(host, "load_1m", lambda: load)
    monkeypatch.setattr(host, "physical_cores", lambda: 2)
    assert fitness_cpu.load()[0].level is level


@pytest.mark.parametrize(
    ("name", "level"), [("", Level.FIT), ("performance", Level.FIT), ("powersave", Level.DEGRADED)]
)
def test_governor(machine: Path, name: str, level: Level) -> None:
    write(machine / "cpu" / "cpu0" / "cpufreq" / "scaling_governor", name)
    finding = by_name(fitness_cpu.clocks())["governor"]
    assert finding.level is level
    assert ("cpupower" in finding.remedy) == (level is Level.DEGRADED)


def test_unknown_caches(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_caches_of_libc", dict)
    assert fitness_cpu.cores()[0].level is Level.DEGRADED


def test_siblings_that_others_may_use(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_name(fitness_cpu.sharing())["smt"].level is Level.FIT
    monkeypatch.setattr(host, "usable_cpus", lambda: {0, 1})
    finding = by_name(fitness_cpu.sharing())["smt"]
    assert finding.level is Level.DEGRADED
    assert "2,3" in finding.found
    assert "taskset -c 0,1,2,3" in finding.remedy


def test_memory_nodes(machine: Path) -> None:
    assert "numa" not in by_name(fitness_cpu.sharing())
    write(machine / "node" / "node0" / "cpulist", "0,2")
    write(machine / "node" / "node1" / "cpulist", "1,3")
    write(machine / "node" / "node2" / "cpulist", "")  # memory without processors
    finding = by_name(fitness_cpu.sharing())["numa"]
    assert finding.level is Level.DEGRADED
    assert "numactl --cpunodebind=0" in finding.remedy


@pytest.mark.parametrize(
    ("path", "text", "on"),
    [
        ("intel_pstate/no_turbo", "0", True),
        ("intel_pstate/no_turbo", "1", False),
        ("cpufreq/boost", "1", True),
        ("cpufreq/boost", "0", False),
    ],
)
def test_turbo_is_worth_knowing(machine: Path, path: str, text: str, on: bool) -> None:
    assert "turbo" not in by_name(fitness_cpu.clocks())
    write(machine / "cpu" / path, text)
    found = by_name(fitness_cpu.clocks())
    assert ("turbo" in found) == on
    if on:
        assert found["turbo"].level is Level.FIT
        assert path in found["turbo"].remedy


def test_a_slow_clock(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_name(fitness_cpu.clocks())["clock"].level is Level.FIT
    write(machine / "clock" / "current_clocksource", "hpet")
    monkeypatch.setattr(fitness_cpu, "clock_cost_ns", lambda: 1500.0)
    finding = by_name(fitness_cpu.clocks())["clock"]
    assert finding.level is Level.DEGRADED
    assert finding.remedy.startswith("echo tsc | sudo tee ")
    write(machine / "clock" / "available_clocksource", "hpet")
    assert "echo" not in by_name(fitness_cpu.clocks())["clock"].remedy


def test_the_cost_of_reading_the_clock_is_positive() -> None:
    assert fitness_cpu.clock_cost_ns(101) > 0


@pytest.mark.parametrize(("text", "level"), [("2", Level.FIT), ("0", Level.DEGRADED), ("", None)])
def test_address_randomisation(monkeypatch: pytest.MonkeyPatch, text: str, level: Level | None) -> None:
    monkeypatch.setattr(host, "read", lambda path: text if path.name == "randomize_va_space" else "")
    found = by_name(fitness_cpu.layout())
    assert (found["aslr"].level if "aslr" in found else None) is level


def test_huge_pages_are_worth_knowing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "huge_pages", lambda: "always")
    finding = by_name(fitness_cpu.layout())["huge pages"]
    assert finding.level is Level.FIT
    assert finding.why


def test_variables_that_hold_something_down() -> None:
    assert fitness_cpu.variables({"PATH": "/bin", "BITIMPL_ISA": ""}) == []
    (finding,) = fitness_cpu.variables({"BITIMPL_ISA": "avx2"})
    assert finding.level is Level.DEGRADED
    assert finding.remedy == "unset BITIMPL_ISA"


def gaps(*steps: int) -> fitness_cpu.Callable[[], int]:
    """A clock that advances by these steps, then by 100 ns for ever."""
    waiting, now = list(steps), 0

    def clock() -> int:
        nonlocal now
        now += waiting.pop(0) if waiting else 100
        return now

    return clock


def test_interruptions_are_gaps_between_readings() -> None:
    share, longest = fitness_cpu.interruptions(0.001, gaps(100, 100, 20_000, 100, 80_000))
    assert longest == 80_000
    assert share == pytest.approx(100_000 / 1_000_000, rel=0.01)
    assert fitness_cpu.interruptions(0.001, gaps()) == (0.0, 0)
    assert fitness_cpu._interrupted(0.1, 80_000).level is Level.DEGRADED
    assert fitness_cpu._interrupted(0.001, 80_000).level is Level.FIT


STILL = Moving(steal_s=10.0, total_s=1000.0, stalled_s=3.0, swapped=5)


def test_steal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "virtual", lambda: True)
    (quiet,) = fitness_cpu._host(STILL, Moving(10.0, 1002.0, 3.0, 5))
    assert quiet.level is Level.FIT
    assert "0.0 %" in quiet.found
    (taken,) = fitness_cpu._host(STILL, Moving(10.1, 1002.0, 3.0, 5))
    assert taken.level is Level.DEGRADED
    assert "5.0 %" in taken.found
    (unknown,) = fitness_cpu._host(Moving(None, 0.0, None, 0), Moving(None, 2.0, None, 0))
    assert "does not say" in unknown.found
    monkeypatch.setattr(host, "virtual", lambda: False)
    assert fitness_cpu._host(STILL, Moving(10.0, 1002.0, 3.0, 5)) == []


def test_quota(machine: Path) -> None:
    assert fitness_cpu._quota(STILL, STILL) == []
    write(machine / "cgroup" / "cpu.max", "400000 100000")
    assert fitness_cpu._quota(STILL, STILL)[0].level is Level.FIT
    (held,) = fitness_cpu._quota(STILL, Moving(10.0, 1001.0, 3.25, 5))
    assert held.level is Level.DEGRADED
    assert "0.25 s" in held.found
    write(machine / "cgroup" / "cpu.max", "150000 100000")
    (fraction,) = fitness_cpu._quota(STILL, STILL)
    assert fraction.level is Level.DEGRADED
    assert "cpuset" in fraction.remedy


def test_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    class Swap:
        used = 0

    monkeypatch.setattr(psutil, "swap_memory", Swap)
    assert fitness_cpu._swap(STILL, STILL)[0].found == "not used"
    Swap.used = 64 << 20
    assert fitness_cpu._swap(STILL, STILL)[0].level is Level.FIT
    assert fitness_cpu._swap(STILL, Moving(10.0, 1001.0, 3.0, 4096))[0].level is Level.DEGRADED


def test_other_processes() -> None:
    assert fitness_cpu._others([])[0].level is Level.FIT
    (finding,) = fitness_cpu._others(["cc1plus (97 % cpu)"])
    assert finding.level is Level.DEGRADED
    assert "cc1plus" in finding.found


def test_a_look_at_this_machine() -> None:
    names = set(by_name(fitness_cpu.activity(0.05)))
    assert {"processes", "interrupts", "swap"} <= names
