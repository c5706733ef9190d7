"""What a run records about the machine it ran on. Torch-free.

Small independent collectors: one that fails leaves its error in its place and costs no other.
Environment variables are taken by an allow list, and nothing else of the user's is read, so a
published run carries no secrets.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from bitbench.measure import host

PACKAGES = (
    *("bitbench", "torch", "numpy", "safetensors", "pydantic", "psutil", "gguf", "tokenizers"),
    *("nvidia-ml-py", "onnxruntime", "onnx", "torchao", "bitsandbytes", "transformers"),
    *("llama-cpp-python", "pywhispercpp", "litespark-inference"),
)

VARIABLES = (
    *("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "OMP_WAIT_POLICY", "GOMP_CPU_AFFINITY"),
    *("KMP_AFFINITY", "KMP_BLOCKTIME", "MKL_NUM_THREADS", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA"),
    *("ATEN_CPU_CAPABILITY", "MALLOC_ARENA_MAX", "CUDA_VISIBLE_DEVICES", "CUDA_MODULE_LOADING"),
    *("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "PYTORCH_CUDA_ALLOC_CONF"),
    *("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "PYTHONHASHSEED", "BITIMPL_ISA", "BITIMPL_BACKEND"),
    *("BITIMPL_UNPROVEN",),
)
"""Variables that change numbers or speed. ``BITIMPL_LIBRARY_PATH`` is not among them: a path can
name a person; the library's hash says which it was."""

GIT_SECONDS = 10.0

DOWNSTREAM = frozenset({("bitbench", room) for room in ("analysis", "report", "cli")})
"""Rooms that only read what was measured: a run may be resumed after a change there."""


def collect() -> dict[str, Any]:
    """Everything the parent process can tell, by collector name."""
    return {name: _guarded(collector) for name, collector in COLLECTORS.items()}


def _guarded(collector: Callable[[], Any]) -> Any:
    try:
        return collector()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def system() -> dict[str, Any]:
    """Operating system and Python."""
    return {
        "os": _os_name(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "python": sys.version.split()[0],
        "implementation": platform.python_implementation(),
        "aslr": host.read(Path("/proc/sys/kernel/randomize_va_space")),
        "hypervisor": "hypervisor" in host.read(Path("/proc/cpuinfo")),
        "container": Path("/.dockerenv").exists() or Path("/run/.containerenv").exists(),
    }


def cpu() -> dict[str, Any]:
    """Processor, cores, caches, instruction sets, governor."""
    frequency = psutil.cpu_freq()
    return {
        "model": host.cpu_model(),
        "logical": psutil.cpu_count(logical=True),
        "physical": psutil.cpu_count(logical=False),
        "usable_logical": len(host.usable_cpus()),
        "usable_physical": host.physical_cores(),
        "quota": host.cpu_quota(),
        "caches": host.caches(),
        "flags": host.cpu_flags(),
        "governor": host.governor(),
        "max_mhz": frequency.max if frequency else None,
        "turbo_off": host.read(host.CPU_DIR / "intel_pstate" / "no_turbo"),
        "smt": host.read(host.CPU_DIR / "smt" / "active"),
    }


def memory() -> dict[str, Any]:
    """Memory and swap in bytes; state of transparent huge pages."""
    return {
        "total": int(psutil.virtual_memory().total),
        "limit": host.memory_limit(),
        "available": host.memory_available(),
        "swap": int(psutil.swap_memory().total),
        "huge_pages": host.read(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
    }


def load() -> dict[str, Any]:
    """How busy the machine was before the run."""
    return {"load_1m": host.load_1m(), "processes": len(psutil.pids())}


def packages() -> dict[str, str]:
    """Installed versions of what can change a number."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def variables() -> dict[str, str]:
    """Environment variables of the allow list that are set."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def gpus() -> list[dict[str, Any]]:
    """NVIDIA GPUs by NVML; empty without a driver. The UUID is hashed."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> dict[str, Any]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    readers: dict[str, Callable[[], Any]] = {
        "name": lambda: nvml.nvmlDeviceGetName(handle),
        "uuid_hash": lambda: hashlib.sha256(str(nvml.nvmlDeviceGetUUID(handle)).encode()).hexdigest()[:12],
        "driver": lambda: nvml.nvmlSystemGetDriverVersion(),
        "vbios": lambda: nvml.nvmlDeviceGetVbiosVersion(handle),
        "memory": lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        "power_limit_w": lambda: nvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000,
        "max_sm_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        "ecc": lambda: bool(nvml.nvmlDeviceGetEccMode(handle)[0]),
        "mig": lambda: bool(nvml.nvmlDeviceGetMigMode(handle)[0]),
        "persistence": lambda: bool(nvml.nvmlDeviceGetPersistenceMode(handle)),
    }
    found: dict[str, Any] = {}
    for name, reader in readers.items():
        try:
            found[name] = reader()
        except nvml.NVMLError:
            found[name] = None
    return found


COLLECTORS: dict[str, Callable[[], Any]] = {
    "system": system,
    "cpu": cpu,
    "memory": memory,
    "load": load,
    "packages": packages,
    "variables": variables,
    "gpus": gpus,
}


def source_root() -> Path:
    """The directory that holds the packages."""
    return Path(__file__).resolve().parents[2]


def git_state(root: Path | None = None) -> tuple[str, bool]:
    """Commit of the checkout the packages come from, and whether it has changes.

    ``("", False)`` when they are installed elsewhere: the repository that a site-packages happens
    to lie in says nothing about them.
    """
    root = root or source_root()
    package = Path(__file__).resolve().parents[1].name
    if not _git(root, "ls-files", "--error-unmatch", f"{package}/__init__.py"):
        return "", False
    return _git(root, "rev-parse", "HEAD"), bool(_git(root, "status", "--porcelain", "--untracked-files=no"))


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def source_digest(root: Path | None = None) -> str:
    """Hash over the Python sources that can change a measured number: ``impl``, and ``bitbench``
    without :data:`DOWNSTREAM`."""
    root = root or source_root()
    digest = hashlib.sha256()
    for package in ("bitbench", "impl"):
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root)
            if name.parts[:2] not in DOWNSTREAM:
                digest.update(name.as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _os_name() -> str:
    for line in host.read(Path("/etc/os-release")).splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip('"')
    return platform.system()
