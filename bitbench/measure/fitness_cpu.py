"""The part of :mod:`bitbench.measure.fitness` that is about processors and what runs on them.
Torch-free."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psutil

from bitbench.measure import host
from bitbench.measure.findings import Finding, degraded, fit
from bitbench.measure.foreign import LOOK_SECONDS, busy_processes
from bitbench.measure.nvml import NoGpu

LOAD_DEGRADED = 0.25
"""Load average per usable core above which other work disturbs. Never unfit: it passes, and a run
that measures bytes or accuracy does not mind."""
STEAL_DEGRADED = 1.0
"""Percent of the processor time that the hypervisor may give to others."""
INTERRUPTED_DEGRADED = 0.01
SPIN_SECONDS = 0.3
GAP_NS = 10_000
"""Two readings of the clock further apart than this were interrupted: the loop itself takes some
100 ns, the kernel's own tick 1 to 5 us."""
CLOCK_READ_NS = 1000
"""A clock that is read in the processor takes 20 to 100 ns; one that asks the kernel or a chip on
the board, a microsecond and more."""
HOLDING = {
    "BITIMPL_ISA": "holds our kernels to one instruction set",
    "BITIMPL_BACKEND": "chooses our kernels' backend",
    "ATEN_CPU_CAPABILITY": "holds torch's kernels to one instruction set",
    "ONEDNN_MAX_CPU_ISA": "holds torch's matrix products to one instruction set",
    "MKL_ENABLE_INSTRUCTIONS": "holds torch's matrix products to one instruction set",
    "OMP_WAIT_POLICY": "sets how helper threads wait",
    "KMP_BLOCKTIME": "sets how helper threads wait",
}
"""Environment variables that change speed, and how."""


def cores() -> list[Finding]:
    usable, physical = len(host.usable_cpus()), host.physical_cores()
    caches = ", ".join(f"{name} {size // 1024} KiB" for name, size in host.caches().items())
    found = f"{host.cpu_model()}: {physical} physical, {usable} logical usable; {caches or 'caches unknown'}"
    if not host.last_level_cache():
        return [
            degraded(
                "cores",
                found,
                "how large data must be to be cold is unknown: `cache: cold` cases will be marked invalid",
                "mount /sys in the container",
            )
        ]
    return [fit("cores", found)]


def sharing() -> list[Finding]:
    """Cores shared with others (SMT), and memory that is far for some."""
    found = []
    usable, together = host.usable_cpus(), host.siblings()
    if stray := sorted(together - usable):
        names = ",".join(str(cpu) for cpu in stray)
        found.append(
            degraded(
                "smt",
                f"processors {names} share cores with ours and are open to other programs",
                "what runs there takes half of a core from a measured thread",
                f"taskset -c {','.join(str(cpu) for cpu in sorted(together))} bitbench run ...",
            )
        )
    elif len(usable) > host.physical_cores():
        found.append(
            fit(
                "smt",
                "on: two logical processors a core",
                f"more than {host.physical_cores()} threads would share vector units; that is the default",
            )
        )
    else:
        found.append(fit("smt", "off, or one thread a core is all that is visible"))
    nodes = host.memory_nodes()
    if len(nodes) > 1:
        first = next(iter(nodes))
        found.append(
            degraded(
                "numa",
                f"usable processors lie on {len(nodes)} memory nodes",
                "the same code is faster or slower by where its memory happens to lie",
                f"numactl --cpunodebind={first} --membind={first} bitbench run ...",
            )
        )
    return found


def clocks() -> list[Finding]:
    """Governor, turbo and the clock that times are read from."""
    found = []
    name = host.governor()
    if not name:
        found.append(fit("governor", "none visible (a virtual machine, or fixed by firmware)"))
    elif name == "performance":
        found.append(fit("governor", name))
    else:
        found.append(
            degraded(
                "governor",
                name,
                "the clock follows the load: short measurements start slow",
                "sudo cpupower frequency-set -g performance",
            )
        )
    if host.turbo():
        found.append(
            fit(
                "turbo",
                "on",
                "the clock depends on temperature and on how many cores work; side by side that cancels, "
                "between runs it does not",
                _turbo_off(),
            )
        )
    found.append(_clock())
    return found


def _turbo_off() -> str:
    if host.read(host.CPU_DIR / "intel_pstate" / "no_turbo"):
        return "echo 1 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo   (0 brings it back)"
    return "echo 0 | sudo tee /sys/devices/system/cpu/cpufreq/boost   (1 brings it back)"


def _clock() -> Finding:
    cost = clock_cost_ns()
    found = f"{host.clock_source() or 'source unknown'}, {cost:.0f} ns a reading"
    if cost <= CLOCK_READ_NS:
        return fit("clock", found)
    choices = host.read(host.CLOCK_DIR / "available_clocksource").split()
    best = "tsc" if "tsc" in choices else next((c for c in choices if c != host.clock_source()), "")
    return degraded(
        "clock",
        found,
        "each reading costs microseconds and may be coarse",
        f"echo {best} | sudo tee {host.CLOCK_DIR / 'current_clocksource'}"
        if best
        else "use a machine or a virtual machine type whose kernel can use the processor's own counter",
    )


def clock_cost_ns(readings: int = 2001) -> float:
    """Median nanoseconds between two successive readings of the monotonic clock."""
    read = [time.perf_counter_ns() for _ in range(readings)]
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(read))


def layout() -> list[Finding]:
    """What places code and data: address randomisation and huge pages. Worth knowing, not mending."""
    found = []
    random = host.read(host.Path("/proc/sys/kernel/randomize_va_space"))
    if random in ("1", "2"):
        found.append(
            fit(
                "aslr",
                "on: addresses differ from process to process",
                "a time moves by up to some percent with them; launches average that, so leave it on",
            )
        )
    elif random == "0":
        found.append(
            degraded(
                "aslr",
                "off: every process gets the same addresses",
                "launches repeat one accident of placement instead of averaging many",
                "echo 2 | sudo tee /proc/sys/kernel/randomize_va_space",
            )
        )
    if pages := host.huge_pages():
        why = {
            "always": "large weights get them while memory is whole: times differ after a long uptime",
            "madvise": "only programs that ask get them: packed weights do, torch's buffers do not",
            "never": "reading large weights also pays for address translation",
        }.get(pages, "")
        found.append(fit("huge pages", pages, why))
    return found


def variables(environment: Mapping[str, str] = os.environ) -> list[Finding]:
    """Environment variables that change speed."""
    return [
        degraded(
            "variable",
            f"{name}={environment[name]}",
            f"{effect}: right for an experiment, not for a figure of this machine",
            f"unset {name}",
        )
        for name, effect in HOLDING.items()
        if environment.get(name)
    ]


def load() -> list[Finding]:
    average = host.load_1m()
    if average is None:
        return [fit("load", "the load average is n/a here")]
    each = average / host.physical_cores()
    found = f"{average:.2f} over one minute, {each:.2f} per core"
    if each <= LOAD_DEGRADED:
        return [fit("load", found)]
    return [
        degraded(
            "load",
            found,
            "other work was waiting for the same cores",
            "stop other work (top shows it) and wait a minute",
        )
    ]


@dataclass(frozen=True)
class Moving:
    """Counters that should stand still while nothing is measured."""

    steal_s: float | None
    total_s: float
    stalled_s: float | None
    swapped: int
    """Bytes moved to and from swap."""


def moving() -> Moving:
    times, swap = psutil.cpu_times(), psutil.swap_memory()
    return Moving(getattr(times, "steal", None), sum(times), host.cpu_stalled_s(), swap.sin + swap.sout)


def activity(seconds: float = LOOK_SECONDS) -> list[Finding]:
    """What happens on the machine during a look of ``seconds``: other processes, the hypervisor, the
    quota, swapping."""
    before = moving()
    others = busy_processes(seconds, gpu=NoGpu())
    share, longest_ns = interruptions()  # and so the hypervisor is asked for time that it could refuse
    after = moving()
    return [
        *_others(others),
        _interrupted(share, longest_ns),
        *_host(before, after),
        *_quota(before, after),
        *_swap(before, after),
    ]


def interruptions(
    seconds: float = SPIN_SECONDS, clock: Callable[[], int] = time.perf_counter_ns
) -> tuple[float, int]:
    """Share of ``seconds`` of spinning on the clock in which somebody else had the processor, and
    the longest such gap in nanoseconds. Whoever it was: a process, an interrupt, the hypervisor."""
    start = last = clock()
    end, lost, longest = start + int(seconds * 1e9), 0, 0
    while last < end:
        now = clock()
        if (gap := now - last) > GAP_NS:
            lost, longest = lost + gap, max(longest, gap)
        last = now
    return lost / (last - start), longest


def _interrupted(share: float, longest_ns: int) -> Finding:
    found = f"{100 * share:.1f} % of the time of a spinning thread, {longest_ns / 1e6:.2f} ms at the longest"
    if share <= INTERRUPTED_DEGRADED:
        return fit("interrupts", found)
    return degraded(
        "interrupts",
        found,
        "blocks are stretched: medians hold while fewer than half of them are hit, no longer beyond",
        "end other work; in a virtual machine or container, use processors that are not shared",
    )


def _others(names: list[str]) -> list[Finding]:
    if not names:
        return [fit("processes", "no other process is at work")]
    return [
        degraded(
            "processes",
            ", ".join(names),
            "they take time and caches from what is measured",
            "end them, or wait for them (top -o %CPU shows their numbers)",
        )
    ]


def _host(before: Moving, after: Moving) -> list[Finding]:
    steal = None
    if before.steal_s is not None and after.steal_s is not None and after.total_s > before.total_s:
        steal = 100 * (after.steal_s - before.steal_s) / (after.total_s - before.total_s)
    if steal is not None and steal > STEAL_DEGRADED:
        return [
            degraded(
                "hypervisor",
                f"took {steal:.1f} % of the processor time just now",
                "measured blocks are interrupted by other virtual machines",
                "use a machine type with processors of its own, or measure at another hour",
            )
        ]
    if not host.virtual():
        return []
    took = "does not say what it takes" if steal is None else f"took {steal:.1f} % of the time just now"
    return [
        fit(
            "hypervisor",
            f"a virtual machine; its host {took}",
            "the host's clock rate and the neighbours' use of caches and memory are out of sight",
        )
    ]


def _quota(before: Moving, after: Moving) -> list[Finding]:
    quota = host.cpu_quota()
    if quota is None:
        return []
    stalled = (after.stalled_s or 0.0) - (before.stalled_s or 0.0)
    whole = "give the container whole processors for itself: docker run --cpuset-cpus=0-3 ..."
    if stalled > 0:
        held = f"a quota of {quota:g} processors held us for {stalled:.2g} s just now"
        return [degraded("quota", held, "threads are stopped in the middle of a block", whole)]
    if quota != int(quota) or quota < len(host.usable_cpus()):
        found = f"{quota:g} processors' time on {len(host.usable_cpus())} processors"
        ever = f"; has held us for {after.stalled_s:.0f} s so far" if after.stalled_s else ""
        why = "once it is used up, all threads stop until the next tenth of a second"
        return [degraded("quota", found + ever, why, whole)]
    return [fit("quota", f"{quota:g} processors, all that are visible")]


def _swap(before: Moving, after: Moving) -> list[Finding]:
    used = int(psutil.swap_memory().used)
    if after.swapped > before.swapped:
        return [
            degraded(
                "swap",
                f"at work just now, {used / 2**20:.0f} MiB used",
                "memory is being moved to and from the disk",
                "free memory (ps aux --sort=-rss shows who has it)",
            )
        ]
    if used:
        why = "pages that come back from the disk cost milliseconds; first calls are not timed"
        return [fit("swap", f"{used / 2**20:.0f} MiB used, at rest", why)]
    return [fit("swap", "not used")]
