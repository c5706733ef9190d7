"""``OUT=folder python -m bitbench.on_gpu``: build, test and measure on a machine with a GPU, in one go.

From plain sources, without installing anything and without a network: builds ``csrc`` for the GPU that is
there, runs the tests of the CUDA kernels, then suites with random weights in their models, and leaves one
archive of logs, runs and reports in OUT. All within ten minutes: what has not ended when its time is up is
asked to end, and what it has measured by then is kept.

Only the standard library is imported here, so that what a machine lacks is told rather than met.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = Path("build") / "on-gpu"
"""Below the checkout: kept between runs, so that a second build is short."""
ARCHIVE = "on-gpu.tar.gz"
CACHE = "cache"
"""Folder of a run that is removed when the run ends by itself."""
MOST_BYTES = 15 * 1024**2
"""Of the archive."""
RESERVE_SECONDS = 20.0
"""Kept for packing."""
END_SECONDS = 20.0
"""For a step that is asked to end, before it is killed: a run closes its files and its workers."""

NEEDED = (
    *("torch", "numpy", "safetensors", "pydantic", "yaml", "typer", "rich", "jinja2", "pandas", "matplotlib"),
    *("tabulate", "psutil", "pynvml", "filelock", "platformdirs"),
)
NEEDED_BY_TESTS = ("pytest", "pytest_timeout", "hypothesis")


@dataclass(frozen=True)
class Step:
    """One command, with the seconds it may take."""

    name: str
    command: tuple[str, ...]
    seconds: float
    vital: bool = False
    """Nothing after it makes sense where it fails."""
    advice: bool = False
    """Its exit code speaks of the machine, not of what is tested."""
    least: float = 15.0
    """Not begun with less time than this left."""


@dataclass
class Outcome:
    """What became of a step."""

    step: str
    word: str
    """``ok``, ``failed (1)``, ``ended after 60 s``, ``not begun``."""
    seconds: float

    @property
    def good(self) -> bool:
        return self.word == "ok"


@dataclass
class Deadline:
    """Seconds that are left."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    _began: float = field(init=False)

    def __post_init__(self) -> None:
        self._began = self.clock()

    @property
    def left(self) -> float:
        return self.seconds - (self.clock() - self._began)


def steps(root: Path, work: Path, architectures: str, jobs: int) -> list[Step]:
    """What is done, in the order of what is worth most where time runs out."""
    build = str(work / "csrc")
    python = sys.executable
    pytest = (python, "-m", "pytest", "-p", "bitbench.pytest_plugin", "-q", "-rs", "--durations=5")
    options = (
        *("--random-weights", "--device", "cuda", "--wait"),
        *("--results", str(work / "results"), "--reports", str(work / "reports")),
    )
    bitbench = (python, "-m", "bitbench")

    def run(suite: str) -> tuple[str, ...]:
        return (*bitbench, "run", f"suites/{suite}.yaml", "--launches", "2")

    emulated = sorted(str(path.relative_to(root)) for path in (root / "tests/csrc").glob("test_cuda_*.py"))
    return [
        Step(
            "configure",
            (
                *("cmake", "-S", "csrc", "-B", build, "-DCMAKE_BUILD_TYPE=Release"),
                *("-DBITIMPL_CUDA=on", f"-DBITIMPL_CUDA_ARCHITECTURES={architectures}"),
            ),
            60,
            vital=True,
        ),
        Step("build", ("cmake", "--build", build, "-j", str(jobs)), 200, vital=True),
        Step("tests-gpu", (*pytest, "tests/impl/cuda"), 100),
        Step("doctor", (*bitbench, "doctor"), 15, advice=True),
        Step("selftest", (*bitbench, "selftest"), 40),
        Step("gpu", (*bitbench, "run", "suites/gpu.yaml", *options), 400),
        # Of the others what a second call has room for (--only configure --only build --only vision ...):
        # convolutions from signs to signs, a model, and one shape of each.
        Step("vision", (*run("vision"), "--only", "conv2d/", "--only", "block/512x512/", *options), 200),
        Step("llm", (*run("llm"), "--only", "decode/", "--only", "linear/8192x2048/", *options), 120),
        Step("kernels", (*run("kernels"), "--only", "linear/4096x4096/", *options), 120),
        Step("tests-emulated", (*pytest, *emulated), 300),
    ]


def environment(root: Path, work: Path, given: Mapping[str, str]) -> dict[str, str]:
    """The variables of the steps: these sources, the libraries built here, no waiting for output."""
    paths = [str(root), *given.get("PYTHONPATH", "").split(os.pathsep)]
    ours = {name: value for name, value in given.items() if name not in ("BITIMPL_BACKEND", "BITIMPL_ISA")}
    return {
        **ours,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONUNBUFFERED": "1",
        "BITIMPL_LIBRARY_PATH": str(work / "csrc"),
        "BITIMPL_CUDA_LIBRARY_PATH": str(work / "csrc"),
    }


def architectures_of(capabilities: str) -> str:
    """``90a`` of ``9.0``, ``86`` of ``8.6``: what to build for, by what ``nvidia-smi`` says, a GPU a line."""
    found = dict.fromkeys(line.strip().replace(".", "") for line in capabilities.splitlines() if line.strip())
    return ";".join("90a" if name == "90" else name for name in found)


def missing(names: Sequence[str]) -> list[str]:
    """Modules that cannot be imported."""
    return [name for name in names if find_spec(name) is None]


def do(step: Step, deadline: Deadline, root: Path, log: Path, variables: Mapping[str, str]) -> Outcome:
    """Run a step; at its end, or that of all time, it is asked to end as Ctrl-C would, then killed."""
    allowed = min(step.seconds, deadline.left - END_SECONDS)
    if allowed < min(step.least, step.seconds):
        return Outcome(step.name, "not begun", 0.0)
    began = time.monotonic()
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                step.command,
                cwd=root,
                env=dict(variables),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            output.write(f"{error}\n".encode())
            return Outcome(step.name, f"failed ({error.strerror})", 0.0)
        try:
            code = process.wait(allowed)
            word = "ok" if code == 0 or step.advice else f"failed ({code})"
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT if "pytest" in step.command else signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            word = f"ended after {allowed:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Outcome(step.name, word, time.monotonic() - began)


def unreported(work: Path) -> list[Path]:
    """Runs without a report, such as one that was asked to end."""
    runs = sorted(path.parent for path in (work / "results").glob("*/run.json"))
    return [run for run in runs if not (work / "reports" / run.name).exists()]


def pack(work: Path, out: Path, parts: Sequence[str] = ("logs", "results", "reports")) -> Path:
    """An archive of ``parts`` of ``work`` in ``out``: with fewer of them, the last first, where all would
    be larger than :data:`MOST_BYTES`."""
    out.mkdir(parents=True, exist_ok=True)
    target = out / ARCHIVE
    for count in range(len(parts), 0, -1):
        with tarfile.open(target, "w:gz") as archive:
            for part in parts[:count]:
                if (work / part).exists():
                    archive.add(work / part, arcname=f"on-gpu/{part}", filter=_worth_keeping)
        if target.stat().st_size <= MOST_BYTES:
            break
    return target


def _worth_keeping(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Not the converted models of a run that was cut short."""
    return None if Path(member.name).name == CACHE else member


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log, indented."""
    found = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(f"    {line[:200]}" for line in found[-lines:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 where all steps went well, 1 where one did not, 2 where
    the machine cannot run them."""
    parser = argparse.ArgumentParser(prog="python -m bitbench.on_gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", WORK / "out")))
    parser.add_argument("--minutes", type=float, default=9.5, help="for all of it (default 9.5)")
    parser.add_argument("--only", action="append", metavar="STEP", help="this step (may be repeated)")
    options = parser.parse_args(arguments)
    deadline = Deadline(60 * options.minutes - RESERVE_SECONDS)
    work, out = ROOT / WORK, options.out.resolve()
    if reason := unfit(ROOT):
        print(f"error: {reason}", file=sys.stderr)
        return 2
    planned = steps(ROOT, work, architectures_of(gpus()), os.cpu_count() or 1)
    names = [step.name for step in planned]
    if unknown := sorted(set(options.only or ()) - set(names)):
        parser.error(f"unknown step {', '.join(unknown)}: allowed are {', '.join(names)}")
    for part in ("logs", "results", "reports"):
        shutil.rmtree(work / part, ignore_errors=True)
    (work / "logs").mkdir(parents=True)
    wanted = [step for step in planned if not options.only or step.name in options.only]
    outcomes = perform(wanted, deadline, ROOT, work, environment(ROOT, work, os.environ))
    summary = "".join(f"{one.seconds:6.0f} s  {one.step}: {one.word}\n" for one in outcomes)
    (work / "logs" / "summary.txt").write_text(summary)
    archive = pack(work, out)
    print(f"\n{summary}{archive} ({archive.stat().st_size / 1024**2:.1f} MiB)")
    return 0 if all(one.good for one in outcomes) else 1


def perform(
    wanted: Sequence[Step], deadline: Deadline, root: Path, work: Path, variables: Mapping[str, str]
) -> list[Outcome]:
    """All steps, then reports of runs that were cut short."""
    outcomes: list[Outcome] = []
    for number, step in enumerate(wanted):
        print(f"{step.name} ({deadline.left:.0f} s left) ...", flush=True)
        log = work / "logs" / f"{number:02}-{step.name}.log"
        outcomes.append(do(step, deadline, root, log, variables))
        print(f"  {outcomes[-1].word}, {outcomes[-1].seconds:.0f} s\n{tail(log)}", flush=True)
        if step.vital and not outcomes[-1].good:
            return outcomes
        for run in unreported(work):
            command = (
                sys.executable,
                "-m",
                "bitbench",
                "report",
                str(run),
                "--reports",
                str(work / "reports"),
            )
            report = Step(f"report-{run.name}", command, 30, least=5)
            do(report, deadline, root, work / "logs" / f"{report.name}.log", variables)
    return outcomes


def unfit(root: Path) -> str:
    """Why this cannot be done here, and what would help; empty where it can."""
    if not (root / "csrc" / "CMakeLists.txt").is_file():
        return f"{root} is no checkout of the sources: run this from one"
    if not gpus():
        return "nvidia-smi names no GPU: run this where there is one"
    if shutil.which("cmake") is None:
        return "there is no cmake on the PATH: install it, or name its folder by PATH"
    if lacking := missing((*NEEDED, *NEEDED_BY_TESTS)):
        return (
            f"Python packages are missing, by the names of their modules: {', '.join(lacking)}. Where there "
            "is no network, bring their wheels, install them with `pip install --no-index --target FOLDER` "
            "and name the folder by PYTHONPATH"
        )
    return ""


@functools.cache
def gpus() -> str:
    """Compute capabilities of the GPUs here, one a line; empty where there are none."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    raise SystemExit(main())
