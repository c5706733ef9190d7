"""Workload kinds by name. Peers add theirs through the entry-point group ``bitbench.workloads``."""

from __future__ import annotations

from bitbench.plugins import Registry
from bitbench.workloads.base import WorkloadKind

REGISTRY: Registry[WorkloadKind] = Registry(
    "bitbench.workloads",
    "workload kind",
    WorkloadKind,  # type: ignore[type-abstract]
    {
        "linear": "bitbench.workloads.linear:LinearWorkload",
        "conv2d": "bitbench.workloads.conv2d:Conv2dWorkload",
        "block": "bitbench.workloads.block:BlockWorkload",
        "decode": "bitbench.workloads.decode:DecodeWorkload",
        "perplexity": "bitbench.workloads.perplexity:PerplexityWorkload",
        "image_accuracy": "bitbench.workloads.image_accuracy:ImageAccuracyWorkload",
        "pretrain": "bitbench.workloads.pretrain:PretrainWorkload",
        "classify": "bitbench.workloads.classify:ClassifyWorkload",
        "train_step": "bitbench.workloads.train_step:TrainStepWorkload",
        "self_proof": "bitbench.workloads.self_proof:SelfProofWorkload",
    },
)


def kinds() -> list[str]:
    """Names of all workload kinds; imports none of them."""
    return REGISTRY.names()


def get(kind: str) -> WorkloadKind:
    """The workload kind called ``kind``; :class:`bitbench.errors.UserError` when unknown."""
    return REGISTRY.get(kind)
