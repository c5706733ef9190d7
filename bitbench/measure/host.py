"""Facts about this machine, read from the operating system. Torch-free, no side effects.

Every function answers with an empty value where the fact cannot be read.
"""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

import psutil

CPU_DIR = Path("/sys/devices/system/cpu")
NODE_DIR = Path("/sys/devices/system/node")
CLOCK_DIR = Path("/sys/devices/system/clocksource/clocksource0")
CGROUP_DIR = Path("/sys/fs/cgroup")

ISA_FLAGS = {
    "x86_64": (
        *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512vbmi"),
        *("avx512_vnni", "avx512_vpopcntdq", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16"),
    ),
    "aarch64": ("asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
}
"""Instruction-set flags that decide which kernels can run, by architecture."""


def read(path: Path) -> str:
    """Stripped text of a small file; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def cpu_model() -> str:
    """Marketing name of the processor."""
    for line in read(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """The flags of :data:`ISA_FLAGS` this processor has."""
    wanted = ISA_FLAGS.get(platform.machine(), ())
    for line in read(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            present = set(value.split())
            return [flag for flag in wanted if flag in present]
    return []


def usable_cpus() -> set[int]:
    """Logical processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def usable_beside(process: int) -> set[int]:
    """Processors that ``process`` may use: those of whoever started a run, not the few that a worker may be
    kept on. Empty where the system does not tell."""
    with contextlib.suppress(OSError, AttributeError):
        return set(os.sched_getaffinity(process))
    return set()


def cpu_quota() -> float | None:
    """Processors' worth of time the control groups grant; None means no limit."""
    quotas = []
    for group in control_groups():
        quota, _, period = read(group / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def control_groups() -> list[Path]:
    """Folders of the control groups (version 2) this process is in, the innermost first. In a
    container, the one at the top is the container's own."""
    for line in read(Path("/proc/self/cgroup")).splitlines():
        if line.startswith("0::"):
            inner = CGROUP_DIR / line[3:].strip("/")
            return [path for path in (inner, *inner.parents) if path.is_relative_to(CGROUP_DIR)]
    return [CGROUP_DIR]


def cpu_stalled_s() -> float | None:
    """Seconds for which a quota of the control groups has held their processes, since they were
    made; None without a group that counts."""
    stalled = [
        int(value) / 1e6
        for group in control_groups()
        for name, _, value in (line.partition(" ") for line in read(group / "cpu.stat").splitlines())
        if name == "throttled_usec" and value.isdigit()
    ]
    return sum(stalled) if stalled else None


def physical_cores() -> int:
    """Physical cores available to this process, at least 1: the default number of threads.

    Two logical processors of one core share its vector units, so the second adds nothing to a
    dense kernel. The control group's quota counts too.
    """
    cpus = usable_cpus()
    cores = set()
    for cpu in cpus:
        topology = CPU_DIR / f"cpu{cpu}" / "topology"
        cores.add((read(topology / "physical_package_id"), read(topology / "core_id") or f"cpu{cpu}"))
    count = len(cores) or len(cpus)
    quota = cpu_quota()
    if quota is not None:
        count = min(count, max(1, int(quota)))
    return max(1, count)


def caches() -> dict[str, int]:
    """Bytes of each cache level as one core sees it: ``{"L1d": 49152, "L2": ..., "L3": ...}``."""
    found: dict[str, int] = {}
    for index in sorted((CPU_DIR / "cpu0" / "cache").glob("index*")):
        kind = read(index / "type")
        level, size = read(index / "level"), read(index / "size")
        if kind == "Instruction" or not level or not size:
            continue
        units = {"K": 1024, "M": 1024**2, "G": 1024**3}
        number = size.rstrip("KMG")
        if number.isdigit():
            name = f"L{level}d" if kind == "Data" else f"L{level}"
            found[name] = int(number) * units.get(size[-1], 1)
    return found or _caches_of_libc()


def _caches_of_libc() -> dict[str, int]:
    """What the C library knows, for machines whose kernel does not list caches."""
    names = {"L1d": "SC_LEVEL1_DCACHE_SIZE", "L2": "SC_LEVEL2_CACHE_SIZE", "L3": "SC_LEVEL3_CACHE_SIZE"}
    sizes = {level: os.sysconf(name) for level, name in names.items() if name in os.sysconf_names}
    return {level: size for level, size in sizes.items() if size > 0}


def last_level_cache() -> int:
    """Bytes of the largest cache, 0 where it cannot be read."""
    return max(caches().values(), default=0)


def governor() -> str:
    """Frequency governor of the first processor; empty where there is none (virtual machines)."""
    return read(CPU_DIR / "cpu0" / "cpufreq" / "scaling_governor")


def turbo() -> bool | None:
    """Whether the clock may rise above its nominal rate; None where the system does not say."""
    off = read(CPU_DIR / "intel_pstate" / "no_turbo")
    if off:
        return off == "0"
    boost = read(CPU_DIR / "cpufreq" / "boost")
    return boost == "1" if boost else None


def cpu_list(text: str) -> set[int]:
    """Processors of the kernel's notation: ``0-2,8`` is {0, 1, 2, 8}."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit():
            found |= set(range(int(first), int(last if last.isdigit() else first) + 1))
    return found


def siblings() -> set[int]:
    """Logical processors that share a core with one this process may run on, those included."""
    found = set()
    for cpu in usable_cpus():
        found |= cpu_list(read(CPU_DIR / f"cpu{cpu}" / "topology" / "thread_siblings_list")) | {cpu}
    return found


def memory_nodes() -> dict[int, set[int]]:
    """By memory node (NUMA), the processors of it this process may run on; nodes without any are
    left out, and all of them where the kernel does not list nodes."""
    usable, found = usable_cpus(), {}
    for node in NODE_DIR.glob("node[0-9]*"):
        if cpus := cpu_list(read(node / "cpulist")) & usable:
            found[int(node.name.removeprefix("node"))] = cpus
    return dict(sorted(found.items()))


def clock_source() -> str:
    """What the kernel's clock counts, such as ``tsc``; empty where it does not say."""
    return read(CLOCK_DIR / "current_clocksource")


def virtual() -> bool:
    """Whether this is a virtual machine, as far as the processor tells (x86)."""
    return any(
        "hypervisor" in line.split()
        for line in read(Path("/proc/cpuinfo")).splitlines()
        if line.startswith("flags")
    )


def huge_pages() -> str:
    """State of transparent huge pages: ``always``, ``madvise`` or ``never``; empty if unknown."""
    text = read(Path("/sys/kernel/mm/transparent_hugepage/enabled"))
    return text.partition("[")[2].partition("]")[0]


def memory_limit() -> int:
    """Bytes this process may use: the machine's memory or the control group's limit."""
    total = int(psutil.virtual_memory().total)
    limits = (read(group / "memory.max") for group in control_groups())
    return min([total, *(int(limit) for limit in limits if limit.isdigit())])


def memory_available() -> int:
    """Bytes still available to this process without swapping."""
    available = int(psutil.virtual_memory().available)
    for group in control_groups():
        limit, used = read(group / "memory.max"), read(group / "memory.current")
        if limit.isdigit() and used.isdigit():
            reclaimable = 0
            for line in read(group / "memory.stat").splitlines():
                name, _, value = line.partition(" ")
                if name == "inactive_file" and value.isdigit():
                    reclaimable = int(value)
            available = min(available, int(limit) - int(used) + reclaimable)
    return max(0, available)


def oom_kills() -> int:
    """Processes the kernel has killed for memory since boot, here or in the control group."""
    kills = 0
    for path in (Path("/proc/vmstat"), *(group / "memory.events" for group in control_groups())):
        for line in read(path).splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.isdigit():
                kills += int(value)
    return kills


def load_1m() -> float | None:
    """Load average over one minute."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return None
