"""What a run is of: code, machine, plan. A run is resumed only where all of it is unchanged."""

from __future__ import annotations

import hashlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from bitbench.errors import UserError
from bitbench.measure import environment
from bitbench.store.reader import RunData
from bitbench.store.schema import Case, CodeIdentity, RunInfo
from bitbench.store.writer import utc_now
from bitbench.suite.expand import Plan, counted
from bitbench.suite.schema import Suite

if TYPE_CHECKING:
    from bitbench.execute.machine import Machine

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


def check_same_suite(stored: RunData, suite: Suite) -> None:
    """Refuse to take a run for one of another suite: :class:`UserError` names the first difference."""
    found = _difference(_as_read_now(stored.info.suite), suite.resolved())
    if found is not None:
        where, before, now = found
        raise UserError(
            f"run {stored.info.run} is of another suite {suite.name!r}: "
            f"{where}: {_short(before)} then, {_short(now)} now",
            "restore the suite, or start a new run without --resume",
        )


def _as_read_now(suite: dict[str, Any]) -> dict[str, Any]:
    """A stored suite with the fields that suites have gained since, as the schema fills them in."""
    try:
        return Suite.model_validate(suite).resolved()
    except ValidationError:
        return suite


def changed_code(stored: RunData, machine: Machine) -> list[str]:
    """Why a stored run is stale: the parts of the code that are not what they were, in words."""
    pairs = _code_pairs(stored.info, code_identity(machine), machine)
    return [_told(name, *pair) for name, pair in pairs.items() if pair[0] != pair[1]]


def check_same_run(stored: RunData, plan: Plan, machine: Machine) -> None:
    """Refuse to mix two different things in one run: :class:`UserError` names what differs."""
    check_same_suite(stored, plan.suite)
    info = stored.info
    was: dict[str, Any] = info.environment
    pairs: dict[str, tuple[Any, Any]] = {
        "--quick": (info.quick, plan.quick),
        "--seed": (info.seed, plan.seed),
        "--threads": (info.threads, machine.threads),
        "--only or --launches": (_extent(stored.cases), _extent(plan.cases)),
        "device": (was.get("device"), machine.device),
        "processor": (_cpu_model(was), _cpu_model({"cpu": environment.cpu()})),
        "GPUs": (was.get("cuda_devices", []), machine.facts.get("cuda_devices", [])),
        **_code_pairs(info, code_identity(machine), machine),
    }
    details = [_told(name, *pair) for name, pair in pairs.items() if pair[0] != pair[1]]
    if details:
        raise UserError(
            f"run {info.run} cannot be resumed, these differ:\n    " + "\n    ".join(details),
            "restore them, start a new run without --resume, or measure this one again with --rerun stale",
        )


def _code_pairs(info: RunInfo, new: CodeIdentity, machine: Machine) -> dict[str, tuple[Any, Any]]:
    """By name, the parts of the code that numbers depend on: as they were and as they are."""
    old = info.code
    return {
        "torch": (_torch(info.environment), _torch(machine.facts)),
        "bitbench version": (old.bitbench, new.bitbench),
        "source code": (old.digest, new.digest),
        "native library": (_native(old), _native(new)),
        **({"CUDA library": (_cuda(old), _cuda(new))} if machine.device == "cuda" else {}),
    }


def _told(name: str, before: Any, now: Any) -> str:
    return f"{name}: {_short(before)} then, {_short(now)} now"


def _extent(cases: list[Case]) -> str:
    """How much is measured, told apart by what it is (suites are equal: ids need not be shown)."""
    wanted = sorted((case.id, case.launches) for case in cases)
    measurements = sum(case.launches for case in cases)
    digest = hashlib.sha256(repr(wanted).encode()).hexdigest()[:4]
    return f"{counted(len(cases), 'case')}, {counted(measurements, 'measurement')} ({digest})"


def _difference(before: Any, now: Any, where: str = "") -> tuple[str, Any, Any] | None:
    """Place and values of the first difference between two JSON values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            inner = f"{where}.{key}" if where else str(key)
            if key not in before or key not in now:
                return inner, before.get(key, "absent"), now.get(key, "absent")
            if found := _difference(before[key], now[key], inner):
                return found
        return None
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        parts = (_difference(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(before, now, strict=True)))
        return next((found for found in parts if found), None)
    return None if before == now else (where, before, now)


def _cpu_model(facts: dict[str, Any]) -> str:
    return str(facts.get("cpu", {}).get("model", ""))


def _torch(facts: dict[str, Any]) -> str:
    return str(facts.get("torch", {}).get("version", ""))


def _native(code: CodeIdentity) -> tuple[Any, Any]:
    return code.native.get("library_sha256"), code.native.get("isa")


def _cuda(code: CodeIdentity) -> Any:
    return (code.native.get("cuda") or {}).get("library_sha256")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
