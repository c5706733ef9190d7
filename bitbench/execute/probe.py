"""Worker half of a probe: what only a process with torch can say about the machine."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitbench.errors import UserError
from bitbench.execute.jobs import Job
from bitbench.measure.host import last_level_cache
from bitbench.measure.peaks import measure_peaks


def facts(job: Job) -> dict[str, Any]:
    """``device`` (resolved), ``torch``, ``native``, ``cuda_devices`` and, if asked for, ``peaks``
    and ``peaks_at`` (the same by other numbers of threads).

    Raises :class:`UserError` where the job wants CUDA and there is none.
    """
    import torch

    cuda = torch.cuda.is_available()
    if job.device == "cuda" and not cuda:
        built = f"torch {torch.__version__} was built {'with' if torch.version.cuda else 'without'} CUDA"
        raise UserError(
            f"the suite asks for device cuda, but torch finds no usable GPU ({built})",
            "run where there is an NVIDIA GPU and a CUDA build of torch, or set `device: cpu` in the suite",
        )
    device = "cuda" if job.device in ("cuda", "auto") and cuda else "cpu"
    found: dict[str, Any] = {
        "device": device,
        "torch": {
            "version": torch.__version__,
            "cuda": torch.version.cuda,
            "git": torch.version.git_version,
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "mkl": torch.backends.mkl.is_available(),
            "onednn": torch.backends.mkldnn.is_available(),
            "openmp": torch.backends.openmp.is_available(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        },
        "native": native(),
        "cuda_devices": [_gpu(i) for i in range(torch.cuda.device_count())] if cuda else [],
    }
    if job.measure_peaks:
        cache = last_level_cache()
        found["peaks"] = measure_peaks(device, job.threads, cache).as_dict()
        found["peaks_at"] = {
            str(threads): measure_peaks(device, threads, cache).as_dict() for threads in job.measure_peaks_at
        }
    return found


def native() -> dict[str, Any]:
    """Which kernels ``impl`` found, as plain JSON; ``library_sha256`` tells two builds apart,
    of the processor's kernels and, under ``cuda``, of a GPU's.

    The library is named, not located: where it lies is the user's own business.
    """
    import impl
    from impl import native as binding

    described: dict[str, Any] = json.loads(json.dumps(asdict(impl.capabilities()), default=str))
    _name_only(described, binding.library_path())
    if isinstance(described.get("cuda"), dict):
        from impl.native import cuda

        _name_only(described["cuda"], cuda.library_path())
    return described


def _name_only(described: dict[str, Any], path: Path | None) -> None:
    described["library"] = path.name if path else None
    described["library_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest() if path else None


def _gpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
    }
