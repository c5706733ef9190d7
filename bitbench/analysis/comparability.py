"""Which facts two measurements must share before their figures may be held against each other.

The rules are data: a path in ``run.json``, how much a difference there weighs, what it touches, and
the word a user knows it by. The most specific rule wins; a fact that no rule names is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from bitbench.analysis.comparison import Difference, Weight
from bitbench.store.schema import RunInfo

Affects = Literal["time", "accuracy", "all"]
RuleWeight = Literal["hard", "soft", "ignored"]

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Rule:
    """What a difference at one place means."""

    path: str
    """Dotted path in ``run.json``, or a key of :func:`~bitbench.store.figures.machine_of`; it stands
    for everything below it too. ``*`` is any one name."""
    weight: RuleWeight
    word: str = ""
    """In the user's words; ``{}`` is the last name of the path."""
    affects: Affects = "time"
    tolerance: float = 0.0
    """Relative difference of two numbers that counts as none."""
    gpu: bool = False
    """Matters only where a GPU does the work."""


RULES: tuple[Rule, ...] = (
    # What the run is called, and what is compared on purpose.
    *(Rule(path, "ignored") for path in ("schema_version", "run", "created", "suite_path", "purpose")),
    *(Rule(path, "ignored") for path in ("suite", "code", "sides")),
    Rule("code.bitbench", "soft", "bitbench"),
    Rule("code.native.isa", "soft", "instruction set of impl"),
    Rule("code.native.library", "soft", "native library of impl"),
    Rule("code.native.why_not", "soft", "native library of impl"),
    Rule("code.native.backend", "soft", "backend of impl"),
    # How it was measured.
    Rule("suite.baseline", "hard", "baseline layer"),
    Rule("quick", "soft", "quick run", "all"),
    Rule("seed", "hard", "seed", "accuracy"),
    Rule("threads", "hard", "threads"),
    Rule("slowdown", "soft", "slowdown put in on purpose"),
    # The machine.
    Rule("environment.device", "hard", "device"),
    Rule("environment.hostname", "ignored"),
    Rule("environment.load", "ignored"),
    Rule("environment.cpu", "soft", "processor's {}"),
    Rule("environment.cpu.model", "hard", "processor"),
    Rule("environment.cpu.flags", "hard", "processor's instruction sets"),
    Rule("environment.cpu.caches", "hard", "processor's {} cache"),
    Rule("environment.cpu.quota", "hard", "processor quota"),
    Rule("environment.cpu.max_mhz", "soft", "processor's highest clock", tolerance=0.02),
    Rule("environment.memory", "soft", "memory: {}", tolerance=0.1),
    Rule("environment.memory.available", "ignored"),
    Rule("environment.peaks", "soft", "measured limit {}", tolerance=0.1),
    Rule("environment.peaks.threads", "ignored"),
    Rule("environment.peaks_at", "soft", "measured limit {}", tolerance=0.1),
    Rule("environment.peaks_at.*.threads", "ignored"),
    Rule("environment.gpus", "soft", "GPU's {}", gpu=True),
    Rule("environment.gpus.*.name", "hard", "GPU", gpu=True),
    Rule("environment.gpus.*.driver", "hard", "GPU driver", gpu=True),
    Rule("environment.gpus.*.mig", "hard", "GPU's MIG mode", gpu=True),
    Rule("environment.gpus.*.ecc", "hard", "GPU's ECC mode", gpu=True),
    Rule("environment.gpus.*.power_limit_w", "hard", "GPU's power limit", tolerance=0.01, gpu=True),
    Rule("environment.gpus.*.uuid_hash", "soft", "GPU (another of the same kind)", gpu=True),
    Rule("environment.cuda_devices", "soft", "CUDA device's {}", gpu=True),
    # The software.
    Rule("environment.system", "soft", "system: {}"),
    Rule("environment.system.machine", "hard", "architecture"),
    Rule("environment.packages", "soft", "{}"),
    Rule("environment.packages.torch", "hard", "torch"),
    Rule("environment.packages.bitbench", "soft", "bitbench"),
    Rule("environment.torch", "soft", "torch: {}"),
    Rule("environment.torch.version", "hard", "torch"),
    Rule("environment.torch.git", "ignored"),  # said by the version, or a build of one's own: see cuda, mkl
    Rule("environment.torch.cuda", "hard", "CUDA of torch", gpu=True),
    Rule("environment.torch.threads", "ignored"),
    Rule("environment.torch.cpu_capability", "hard", "torch's instruction set"),
    Rule("environment.torch.float32_matmul_precision", "hard", "precision of fp32 products", "all"),
    Rule("environment.variables", "soft", "variable {}"),
    Rule("environment.variables.OMP_NUM_THREADS", "ignored"),  # ``threads`` is what was used
    Rule("environment.variables.MKL_NUM_THREADS", "ignored"),
    Rule("environment.variables.PYTHONHASHSEED", "ignored"),
    Rule("environment.variables.ATEN_CPU_CAPABILITY", "hard", "variable {}"),
    Rule("environment.variables.ONEDNN_MAX_CPU_ISA", "hard", "variable {}"),
    Rule("environment.variables.MKL_ENABLE_INSTRUCTIONS", "hard", "variable {}"),
    Rule("environment.variables.TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "hard", "variable {}", "all", gpu=True),
)

MACHINE_RULES: tuple[Rule, ...] = (
    Rule("processor", "hard", "processor"),
    Rule("processors", "soft", "number of processors"),
    Rule("governor", "soft", "frequency governor"),
    Rule("device", "hard", "device"),
    Rule("gpus", "hard", "GPU", gpu=True),
    Rule("driver", "hard", "GPU driver", gpu=True),
    Rule("threads", "hard", "threads"),
    Rule("torch", "hard", "torch"),
    Rule("isa", "soft", "instruction set of impl"),
)
"""The same for the short description of a machine that a set of figures carries
(:func:`bitbench.store.figures.machine_of`)."""


def differences(base: RunInfo, head: RunInfo) -> tuple[Difference, ...]:
    """What is not the same in two runs, hard differences first."""
    return _differences(
        base.model_dump(mode="json"), head.model_dump(mode="json"), RULES, ("environment", "device")
    )


def machine_differences(base: Mapping[str, Any], head: Mapping[str, Any]) -> tuple[Difference, ...]:
    """The same for the machines of two sets of figures."""
    return _differences(base, head, MACHINE_RULES, ("device",))


def hard(found: Iterable[Difference], affects: Affects) -> list[Difference]:
    """Those that forbid to compare ``affects``."""
    return [d for d in found if d.weight == "hard" and d.affects in (affects, "all")]


def said(found: Iterable[Difference]) -> str:
    """``processor (A and B), torch (2.1 and 2.2)``: for the reason of a verdict."""
    return ", ".join(f"{d.what} ({d.base} and {d.head})" for d in found)


def rule_for(path: str, rules: tuple[Rule, ...] = RULES) -> Rule | None:
    """The most specific rule for a dotted path, or None."""
    return _rule_for(path, rules)


@lru_cache(maxsize=4096)
def _rule_for(path: str, rules: tuple[Rule, ...]) -> Rule | None:
    names = path.split(".")
    best: tuple[int, Rule] | None = None
    for rule in rules:
        wanted = rule.path.split(".")
        fits = len(wanted) <= len(names) and all(w in ("*", n) for w, n in zip(wanted, names, strict=False))
        if fits and (best is None or len(wanted) > best[0]):
            best = len(wanted), rule
    return None if best is None else best[1]


def _differences(
    base: Mapping[str, Any], head: Mapping[str, Any], rules: tuple[Rule, ...], device: tuple[str, ...]
) -> tuple[Difference, ...]:
    on_gpu = any(str(_at(side, device)).startswith("cuda") for side in (base, head))
    facts, others = dict(_flat(base)), dict(_flat(head))
    found: dict[tuple[str, str, str], Difference] = {}
    for path in dict.fromkeys([*facts, *others]):
        rule = rule_for(path, rules) or Rule(path, "soft", path)
        if rule.weight == "ignored" or (rule.gpu and not on_gpu):
            continue
        a, b = facts.get(path), others.get(path)
        if _same(a, b, rule.tolerance):
            continue
        # A fact that one side never recorded (an older version did not) forbids nothing.
        weight: Weight = "soft" if _missing(a) or _missing(b) else rule.weight
        word = rule.word.format(path.rpartition(".")[2].replace("_", " "))
        difference = Difference(word, _text(a), _text(b), weight, rule.affects)
        found.setdefault((word, difference.base, difference.head), difference)
    return tuple(sorted(found.values(), key=lambda d: d.weight != "hard"))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Leaves by dotted path; a list of mappings by position, any other list is a leaf."""
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            yield from _flat({str(i): item for i, item in enumerate(value)}, f"{path}.")
        else:
            yield path, value


def _at(tree: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def _same(a: Any, b: Any, tolerance: float) -> bool:
    if a == b or (_missing(a) and _missing(b)):
        return True
    numbers = (int, float)
    if tolerance and isinstance(a, numbers) and isinstance(b, numbers):
        return abs(a - b) <= tolerance * max(abs(a), abs(b))
    return False


def _missing(value: Any) -> bool:
    return value is None or value == "" or value == []


def _text(value: Any) -> str:
    if _missing(value):
        return UNKNOWN
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
