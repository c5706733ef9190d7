"""Facts about this machine, read from the operating system. Torch-free, no side effects.

Every function answers with an empty value where the fact cannot be read.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

CPU_DIR = Path("/sys/devices/system/cpu")
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


def cpu_quota() -> float | None:
    """Processors' worth of time the control group grants; None means no limit."""
    quota, _, period = read(CGROUP_DIR / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit() and int(period) > 0:
        return int(quota) / int(period)
    return None


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


def memory_limit() -> int:
    """Bytes this process may use: the machine's memory or the control group's limit."""
    total = int(psutil.virtual_memory().total)
    limit = read(CGROUP_DIR / "memory.max")
    return min(total, int(limit)) if limit.isdigit() else total


def memory_available() -> int:
    """Bytes still available to this process without swapping."""
    available = int(psutil.virtual_memory().available)
    limit, used = read(CGROUP_DIR / "memory.max"), read(CGROUP_DIR / "memory.current")
    if limit.isdigit() and used.isdigit():
        reclaimable = 0
        for line in read(CGROUP_DIR / "memory.stat").splitlines():
            name, _, value = line.partition(" ")
            if name == "inactive_file" and value.isdigit():
                reclaimable = int(value)
        available = min(available, int(limit) - int(used) + reclaimable)
    return max(0, available)


def oom_kills() -> int:
    """Processes the kernel has killed for memory since boot, here or in the control group."""
    kills = 0
    for path in (Path("/proc/vmstat"), CGROUP_DIR / "memory.events"):
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
