"""Whether a machine is fit to measure on: findings, each with its remedy. Changes nothing.

Processors are in :mod:`bitbench.measure.fitness_cpu`, the GPU in
:mod:`bitbench.measure.fitness_gpu`. Apart from loading torch in a process of its own, all of it
takes about a second.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitbench.measure import fitness_cpu, fitness_gpu, host
from bitbench.measure.findings import Finding, Level, degraded, fit, unfit

GIB = 1024**3
MEMORY_UNFIT, MEMORY_DEGRADED = 1.5 * GIB, 4 * GIB
"""Available memory: torch and a small model need the first, the llm suite the second."""
DISK_UNFIT, DISK_DEGRADED = 0.1 * GIB, 2 * GIB
"""Free space: a run is a few MB, model weights and conversions are not."""
NATIVE_SECONDS = 120.0

NATIVE_QUESTION = """
import json
from bitbench.execute.probe import native
import torch
print(json.dumps({"native": native(), "torch": torch.__version__, "cuda": torch.cuda.is_available(),
                  "built": torch.version.cuda}))
"""


def examine() -> list[Finding]:
    """All findings. A check that itself fails is a finding too."""
    findings: list[Finding] = []
    for name, check in CHECKS.items():
        try:
            findings += check()
        except Exception as error:
            findings.append(
                degraded(
                    name,
                    f"cannot be examined: {type(error).__name__}: {error}",
                    "this part of the machine is unknown",
                    "see that /proc and /sys can be read",
                )
            )
    return findings


def verdict(findings: list[Finding]) -> Level:
    """The worst level found."""
    order = [Level.FIT, Level.DEGRADED, Level.UNFIT]
    return max((finding.level for finding in findings), key=order.index, default=Level.FIT)


def memory() -> list[Finding]:
    available = host.memory_available()
    found = f"{available / GIB:.1f} GiB available of {host.memory_limit() / GIB:.1f}"
    remedy = "free memory (ps aux --sort=-rss shows who has it)"
    if available < MEMORY_UNFIT:
        why = f"torch and a small model need {MEMORY_UNFIT / GIB:.1f} GiB"
        return [unfit("memory", found, why, remedy)]
    if available < MEMORY_DEGRADED:
        return [degraded("memory", found, "large shapes may end as status oom", remedy)]
    return [fit("memory", found)]


def kernels() -> list[Finding]:
    """Instruction sets, and what torch and the native library say in a process of their own."""
    findings = [fit("isa", " ".join(host.cpu_flags()) or "none of interest")]
    done = subprocess.run(
        [sys.executable, "-c", NATIVE_QUESTION],
        capture_output=True,
        text=True,
        timeout=NATIVE_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        found = f"torch or impl cannot be loaded: {lines[-1]}"
        remedy = "pip install --force-reinstall bitbench"
        return [*findings, unfit("kernels", found, "nothing can run", remedy)]
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    findings.append(_torch(answer))
    native = answer["native"]
    if not native.get("library"):
        return [
            *findings,
            degraded(
                "kernels",
                f"no native kernels: {native.get('why_not')}",
                "quantised layers run on the torch reference (status fallback): slower than they are",
                "install a C++ compiler, then pip install bitbench again",
            ),
        ]
    isas = ", ".join(native.get("isas", []))
    return [*findings, fit("kernels", f"native, using {native['isa']} (usable: {isas})")]


def _torch(answer: dict[str, Any]) -> Finding:
    built = answer.get("built")
    found = f"{answer['torch']}, " + ("with a usable GPU" if answer["cuda"] else "CPU only")
    if answer["cuda"] or not fitness_gpu.present():
        return fit("torch", found)
    why = f"built for CUDA {built}, which this driver does not serve" if built else "built without CUDA"
    return degraded(
        "torch",
        found,
        f"there is a GPU that torch cannot use ({why}): suites measure the CPU",
        "install a build of torch for this driver's CUDA version (nvidia-smi names it in its first lines)",
    )


def compiler() -> list[Finding]:
    names = [name for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name]
    path = next((name for name in names if shutil.which(name)), None)
    if path is None:
        return [
            fit(
                "compiler", "no C++ compiler", "bitbench compare needs one, and a build of the native kernels"
            )
        ]
    done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False)
    return [fit("compiler", done.stdout.splitlines()[0] if done.stdout else path)]


def disk() -> list[Finding]:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    found = f"{free / GIB:.1f} GiB free in the current directory"
    if not os.access(here, os.W_OK):
        why = "a run has nowhere to go"
        return [unfit("disk", f"{here} is not writable", why, "change to a directory of your own")]
    if free < DISK_UNFIT:
        return [unfit("disk", found, "a run has nowhere to go", "free some space")]
    if free < DISK_DEGRADED:
        why = "model weights and conversions need about 2 GiB"
        return [degraded("disk", found, why, "free some space, or use --results on another disk")]
    return [fit("disk", found)]


CHECKS: dict[str, Callable[[], list[Finding]]] = {
    # What the machine does while nobody asks it anything comes first: loading torch keeps it busy.
    "load": fitness_cpu.load,
    "activity": fitness_cpu.activity,
    "cores": fitness_cpu.cores,
    "sharing": fitness_cpu.sharing,
    "clocks": fitness_cpu.clocks,
    "layout": fitness_cpu.layout,
    "variables": fitness_cpu.variables,
    "memory": memory,
    "gpu": fitness_gpu.gpu,
    "kernels": kernels,
    "compiler": compiler,
    "disk": disk,
}
