"""Whether a machine is fit to measure on: findings, each with its remedy. Changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from bitbench.measure import host
from bitbench.measure.telemetry import find_gpu

GIB = 1024**3
MEMORY_UNFIT, MEMORY_DEGRADED = 1.5 * GIB, 4 * GIB
"""Available memory: torch and a small model need the first, the llm suite the second."""
LOAD_DEGRADED = 0.25
"""Load average per usable core above which other work disturbs. Never unfit: it passes, and a run
that measures bytes or accuracy does not mind."""
DISK_UNFIT, DISK_DEGRADED = 0.1 * GIB, 2 * GIB
"""Free space: a run is a few MB, model weights and conversions are not."""
NATIVE_SECONDS = 120.0

NATIVE_QUESTION = """
import json
from bitbench.execute.probe import native
import torch
print(json.dumps({"native": native(), "torch": torch.__version__, "cuda": torch.cuda.is_available()}))
"""


class Level(StrEnum):
    FIT = "fit"
    DEGRADED = "degraded"
    UNFIT = "unfit"


@dataclass(frozen=True)
class Finding:
    """One fact about the machine and what it means for measuring."""

    what: str
    level: Level
    found: str
    remedy: str = ""


def examine() -> list[Finding]:
    """All findings. A check that itself fails is a finding too."""
    findings: list[Finding] = []
    for name, check in CHECKS.items():
        try:
            findings += check()
        except Exception as error:
            findings.append(Finding(name, Level.DEGRADED, f"cannot be examined: {error}"))
    return findings


def verdict(findings: list[Finding]) -> Level:
    """The worst level found."""
    order = [Level.FIT, Level.DEGRADED, Level.UNFIT]
    return max((finding.level for finding in findings), key=order.index, default=Level.FIT)


def cores() -> list[Finding]:
    usable, physical = len(host.usable_cpus()), host.physical_cores()
    caches = ", ".join(f"{name} {size // 1024} KiB" for name, size in host.caches().items())
    found = f"{host.cpu_model()}: {physical} physical, {usable} logical usable; {caches or 'caches unknown'}"
    if not host.last_level_cache():
        return [
            Finding(
                "cores",
                Level.DEGRADED,
                found,
                "cache sizes cannot be read: `cache: cold` cases will be marked invalid",
            )
        ]
    quota = host.cpu_quota()
    if quota is not None and quota != int(quota):
        return [
            Finding(
                "cores",
                Level.DEGRADED,
                f"{found}; quota of {quota:g} processors",
                "a fractional quota stops threads in mid-block: give the container whole processors",
            )
        ]
    return [Finding("cores", Level.FIT, found)]


def governor() -> list[Finding]:
    name = host.governor()
    if not name:
        return [Finding("governor", Level.FIT, "none visible (a virtual machine, or fixed by firmware)")]
    if name == "performance":
        return [Finding("governor", Level.FIT, name)]
    return [
        Finding(
            "governor",
            Level.DEGRADED,
            f"{name}: the clock follows the load",
            "sudo cpupower frequency-set -g performance",
        )
    ]


def memory() -> list[Finding]:
    available = host.memory_available()
    found = f"{available / GIB:.1f} GiB available of {host.memory_limit() / GIB:.1f}"
    if available < MEMORY_UNFIT:
        return [
            Finding("memory", Level.UNFIT, found, f"free memory: {MEMORY_UNFIT / GIB:.1f} GiB are needed")
        ]
    if available < MEMORY_DEGRADED:
        return [Finding("memory", Level.DEGRADED, found, "large shapes may end as status oom; free memory")]
    return [Finding("memory", Level.FIT, found)]


def load() -> list[Finding]:
    average = host.load_1m()
    if average is None:
        return [Finding("load", Level.DEGRADED, "the load average cannot be read")]
    each = average / host.physical_cores()
    found = f"{average:.2f} over one minute, {each:.2f} per core"
    if each <= LOAD_DEGRADED:
        return [Finding("load", Level.FIT, found)]
    return [Finding("load", Level.DEGRADED, found, "stop other work (top shows it) and wait a minute")]


def kernels() -> list[Finding]:
    """Instruction sets, and what torch and the native library say in a process of their own."""
    flags = " ".join(host.cpu_flags()) or "none of interest"
    findings = [Finding("isa", Level.FIT, flags)]
    done = subprocess.run(
        [sys.executable, "-c", NATIVE_QUESTION],
        capture_output=True,
        text=True,
        timeout=NATIVE_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return [
            *findings,
            Finding(
                "kernels", Level.UNFIT, f"torch or impl cannot be loaded: {lines[-1]}", "reinstall bitbench"
            ),
        ]
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    findings.append(Finding("torch", Level.FIT, f"{answer['torch']}, cuda {answer['cuda']}"))
    native = answer["native"]
    if not native.get("library"):
        return [
            *findings,
            Finding(
                "kernels",
                Level.DEGRADED,
                f"no native kernels: {native.get('why_not')}",
                "install a C++ compiler and CMake, then pip install again; "
                "until then quantised layers run on the torch reference (status fallback)",
            ),
        ]
    isas = ", ".join(native.get("isas", []))
    return [*findings, Finding("kernels", Level.FIT, f"native, using {native['isa']} (usable: {isas})")]


def gpu() -> list[Finding]:
    found = find_gpu()
    try:
        state = found.read()
    finally:
        found.close()
    if state.memory_used is None:
        return [Finding("gpu", Level.FIT, "none: suites measure the CPU")]
    if state.percent:
        return [
            Finding("gpu", Level.DEGRADED, f"{state.percent:.0f} % busy", "stop what runs there (nvidia-smi)")
        ]
    return [Finding("gpu", Level.FIT, f"idle, {state.memory_used / GIB:.1f} GiB in use")]


def compiler() -> list[Finding]:
    names = [name for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name]
    path = next((name for name in names if shutil.which(name)), None)
    if path is None:
        return [
            Finding("compiler", Level.FIT, "no C++ compiler (only needed to build the native kernels anew)")
        ]
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False)
    first = done.stdout.splitlines()[0] if done.stdout else path
    return [Finding("compiler", Level.FIT, first)]


def disk() -> list[Finding]:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    found = f"{free / GIB:.1f} GiB free in the current directory"
    if not os.access(here, os.W_OK):
        return [Finding("disk", Level.UNFIT, f"{here} is not writable", "change to a directory of your own")]
    if free < DISK_UNFIT:
        return [Finding("disk", Level.UNFIT, found, "free some space")]
    if free < DISK_DEGRADED:
        return [Finding("disk", Level.DEGRADED, found, "model weights and conversions need about 2 GiB")]
    return [Finding("disk", Level.FIT, found)]


CHECKS: dict[str, Callable[[], list[Finding]]] = {
    "cores": cores,
    "kernels": kernels,
    "governor": governor,
    "memory": memory,
    "load": load,
    "gpu": gpu,
    "compiler": compiler,
    "disk": disk,
}
