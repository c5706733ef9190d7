"""What a run is of: code, machine, plan. A run is resumed only where all of it is unchanged."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

from bitbench.errors import UserError
from bitbench.measure import environment
from bitbench.store.reader import RunData
from bitbench.store.schema import CodeIdentity, RunInfo
from bitbench.store.writer import utc_now
from bitbench.suite.expand import Plan

if TYPE_CHECKING:
    from bitbench.execute.runner import Machine

NOT_INSTALLED = "run from source"


def describe(plan: Plan, machine: Machine, run: str, suite_path: str) -> RunInfo:
    """The head of a new run."""
    facts = {key: value for key, value in machine.facts.items() if key != "native"}
    return RunInfo(
        run=run,
        created=utc_now(),
        suite_path=suite_path,
        suite=plan.suite.resolved(),
        quick=plan.quick,
        seed=plan.seed,
        threads=machine.threads,
        environment={**environment.collect(), **facts, "device": machine.device},
        code=code_identity(machine),
    )


def code_identity(machine: Machine) -> CodeIdentity:
    """Versions, commit and source hash of both packages, and the native library found."""
    commit, dirty = environment.git_state()
    try:
        version = metadata.version("bitbench")  # both packages are one distribution
    except metadata.PackageNotFoundError:
        version = NOT_INSTALLED
    return CodeIdentity(
        bitbench=version,
        impl=version,
        commit=commit,
        dirty=dirty,
        digest=environment.source_digest(),
        native=machine.facts.get("native", {}),
    )


def check_same_run(stored: RunData, plan: Plan, machine: Machine) -> None:
    """Refuse to mix two different things in one run: :class:`UserError` names what differs."""
    info = stored.info
    old, new = info.code, code_identity(machine)
    was: dict[str, Any] = info.environment
    pairs: dict[str, tuple[Any, Any]] = {
        "suite": (info.suite, plan.suite.resolved()),
        "--quick": (info.quick, plan.quick),
        "--seed": (info.seed, plan.seed),
        "--threads": (info.threads, machine.threads),
        "cases (--only, --launches)": (
            sorted((c.id, c.launches) for c in stored.cases),
            sorted((c.id, c.launches) for c in plan.cases),
        ),
        "device": (was.get("device"), machine.device),
        "processor": (_cpu_model(was), _cpu_model({"cpu": environment.cpu()})),
        "GPUs": (was.get("cuda_devices", []), machine.facts.get("cuda_devices", [])),
        "torch": (_torch(was), _torch(machine.facts)),
        "bitbench version": (old.bitbench, new.bitbench),
        "source code": (old.digest, new.digest),
        "native library": (_native(old), _native(new)),
    }
    different = [name for name, (before, now) in pairs.items() if before != now]
    if not different:
        return
    details = [f"{name}: {_short(pairs[name][0])} then, {_short(pairs[name][1])} now" for name in different]
    raise UserError(
        f"run {info.run} cannot be resumed, these differ:\n    " + "\n    ".join(details),
        "restore them, or start a new run without --resume",
    )


def _cpu_model(facts: dict[str, Any]) -> str:
    return str(facts.get("cpu", {}).get("model", ""))


def _torch(facts: dict[str, Any]) -> str:
    return str(facts.get("torch", {}).get("version", ""))


def _native(code: CodeIdentity) -> tuple[Any, Any]:
    return code.native.get("library_sha256"), code.native.get("isa")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
