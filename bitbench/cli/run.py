"""``bitbench run``: measure a suite, store the run, write the report."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from bitbench.errors import Exit, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from bitbench.execute.machine import Machine
    from bitbench.execute.stopping import Allowance
    from bitbench.store.reader import RunData
    from bitbench.store.schema import RunInfo, Status
    from bitbench.suite.expand import Plan
    from bitbench.suite.schema import Suite


class Rerun(StrEnum):
    """Which measurements of a stored run are made again."""

    FAILED = "failed"  # those without a result
    STALE = "stale"  # all of them, if they are of other code than runs now
    ALL = "all"


def run(
    suite: Path = typer.Argument(None, metavar="SUITE", help="Suite file.", show_default=False),
    earlier: Path = typer.Argument(
        None, metavar="[RUN]", help="With --resume or --rerun: its folder.", show_default=False
    ),
    quick: bool = typer.Option(False, "--quick", help="A small part, without verdicts."),
    resume: bool = typer.Option(
        False, "--resume", help="Finish RUN, or the newest run (of SUITE): only what is missing is measured."
    ),
    rerun: Rerun = typer.Option(
        None,
        "--rerun",
        help="As --resume, and measure again: what failed, everything if the code has changed since, or "
        "everything. What was measured by other code is kept in RUN/earlier.",
        show_default=False,
    ),
    wait: bool = typer.Option(False, "--wait", help="Wait where another bitbench measures on the device."),
    results: Path = typer.Option(Path("results"), "--results", metavar="DIR", help="Where runs are kept."),
    reports: Path = typer.Option(Path("reports"), "--reports", metavar="DIR", help="Where reports go."),
    launches: int = typer.Option(None, "--launches", min=1, help="Launches in place of the suite's."),
    threads: int = typer.Option(
        None, "--threads", min=1, help="Threads; default: the suite's, else the physical cores."
    ),
    seed: int = typer.Option(None, "--seed", min=0, help="Seed in place of the suite's."),
    only: list[str] = typer.Option(None, "--only", metavar="GLOB", help="Cases whose label matches."),
    device: str = typer.Option(
        None, "--device", metavar="cpu|cuda", help="Device in place of the suite's.", show_default=False
    ),
    random_weights: bool = typer.Option(
        False,
        "--random-weights",
        help="Fetch nothing: models get random weights in their shape, named so; what scores their "
        "predictions is left out.",
    ),
    budget: str = typer.Option(
        None,
        "--budget",
        metavar="TIME",
        help="Keep launching where intervals are widest until the whole run has taken this long: 10m, 1h30m.",
        show_default=False,
    ),
    width: str = typer.Option(
        None,
        "--width",
        metavar="PERCENT",
        help="With --budget: half an interval at which a point is done. [default: 1%]",
        show_default=False,
    ),
    strict: bool = typer.Option(False, "--strict", help="Exit 4 where a gating claim stays inconclusive."),
) -> int:
    """Measure a suite and report on it.

    Ends with 0 when all is well, 1 when a gating claim fails, 2 on wrong usage, 3 when nothing
    could be measured, 4 when a gating claim is inconclusive under --strict, 130 when interrupted
    (what was measured is kept; go on with --resume).
    """
    from rich.console import Console

    from bitbench.store.writer import check_writable

    console = Console()
    with terminate_as_interrupt():
        check_writable(reports, "--reports")
        allowance = _allowance(budget, width, quick)
        wish = Wish(
            *(suite, earlier, results, quick, launches, threads, seed, only or None, allowance, rerun, wait),
            device=device_name(device),
            random_weights=random_weights,
        )
        run_dir, code = _resume(console, wish) if resume or rerun else _new(console, wish)
    return code if code is not Exit.OK else _conclude(console, run_dir, reports, strict)


@dataclass(frozen=True)
class Wish:
    """What the command line asks for; None where it is silent."""

    suite: Path | None
    earlier: Path | None
    results: Path
    quick: bool
    launches: int | None
    threads: int | None
    seed: int | None
    only: list[str] | None
    allowance: Allowance | None
    rerun: Rerun | None
    wait: bool
    device: Literal["cpu", "cuda"] | None = None
    random_weights: bool = False

    def applied(self, console: Console, suite: Suite) -> Suite:
        """``suite`` on the device and with the weights that are asked for."""
        from bitbench.suite.drawn import with_random_weights

        if self.device is not None:
            suite = suite.model_copy(update={"device": self.device})
        if self.random_weights:
            suite, notes = with_random_weights(suite)
            for note in notes:
                console.print(note, highlight=False, markup=False, soft_wrap=True)
        return suite


def device_name(name: str | None) -> Literal["cpu", "cuda"] | None:
    """The device called ``name``; None where none is named."""
    if name is None:
        return None
    if name == "cpu":
        return "cpu"
    if name == "cuda":
        return "cuda"
    raise UserError(f"unknown device {name!r}", "allowed: cpu, cuda")


def _allowance(budget: str | None, width: str | None, quick: bool) -> Allowance | None:
    from bitbench.cli.amounts import seconds, share
    from bitbench.execute.stopping import DEFAULT_WIDTH, Allowance

    if budget is None:
        if width is not None:
            raise UserError("--width says when --budget may stop", "give --budget TIME with it")
        return None
    if quick:
        raise UserError("--budget seeks narrow intervals, a --quick run has none", "leave one of them out")
    narrow = DEFAULT_WIDTH if width is None else share(width, "--width")
    return Allowance(seconds(budget, "--budget"), narrow)


def _new(console: Console, wish: Wish) -> tuple[Path, Exit]:
    from bitbench.execute.machine import default_threads, probe
    from bitbench.execute.runner import LOGS
    from bitbench.measure.host import usable_cpus
    from bitbench.store.writer import new_run_dir
    from bitbench.suite.expand import expand
    from bitbench.suite.load import load_suite

    if wish.suite is None:
        raise UserError("no suite given", "name one: bitbench run suites/smoke.yaml")
    if wish.earlier is not None:
        raise UserError(
            f"unexpected argument {str(wish.earlier)!r}",
            "a run is named together with --resume or --rerun",
        )
    loaded = wish.applied(console, load_suite(wish.suite))
    # What can be refused is refused before anything is written or measured.
    expand(loaded, quick=wish.quick, only=wish.only, launches=wish.launches, seed=wish.seed)
    count = wish.threads or loaded.threads or default_threads()
    if count > (usable := len(usable_cpus())):
        raise UserError(
            f"{count} threads are more than the {usable} processors that can be used here",
            f"give --threads {usable} or less, or leave it out for the physical cores",
        )
    with _alone(console, loaded.device, wish):
        run_dir = new_run_dir(wish.results, loaded.name)
        try:
            console.print("looking at the machine (torch, kernels, memory bandwidth) ...", highlight=False)
            machine = probe(loaded.device, count, run_dir / LOGS, also=_also(loaded))
            plan = expand(
                loaded,
                quick=wish.quick,
                only=wish.only,
                launches=wish.launches,
                seed=wish.seed,
                device=_device(machine),
            )
            announce(console, plan, machine, run_dir, loaded)
            _fetch(console, plan)
        except BaseException:
            shutil.rmtree(run_dir, ignore_errors=True)  # nothing was measured: leave nothing behind
            raise
        return run_dir, _execute(console, plan, run_dir, machine, str(wish.suite), wish, resume=False)


def _resume(console: Console, wish: Wish) -> tuple[Path, Exit]:
    from bitbench.execute.identity import changed_code, check_same_suite
    from bitbench.execute.jobs import narrowed
    from bitbench.execute.machine import probe
    from bitbench.execute.runner import LOGS
    from bitbench.store.reader import latest_run, load_run
    from bitbench.store.schema import Status
    from bitbench.store.writer import RUN_FILE
    from bitbench.suite.expand import expand
    from bitbench.suite.load import load_suite

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    suite, earlier, results = wish.suite, wish.earlier, wish.results
    if suite is not None and earlier is None:
        if suite.is_dir() or (results / suite).is_dir():
            suite, earlier = None, suite
        elif not suite.exists() and suite.suffix not in (".yaml", ".yml"):
            raise UserError(f"{suite} is neither a run nor a suite", f"runs are kept in {results}")
    loaded = wish.applied(console, load_suite(suite)) if suite is not None else None
    run_dir = earlier or latest_run(results, loaded.name if loaded else None)
    if not (run_dir / RUN_FILE).exists() and (results / run_dir / RUN_FILE).exists():
        run_dir = results / run_dir
    stored = load_run(run_dir)
    info = stored.info
    if info.purpose != "run":
        raise UserError(f"{run_dir} compares two versions: it cannot be resumed", "make the comparison again")
    if loaded is None:
        if wish.device is not None or wish.random_weights:
            raise UserError(
                f"--device and --random-weights do not apply to {run_dir}: it goes on as it was begun",
                "leave them out, or start a new run: bitbench run SUITE --device ...",
            )
        loaded = _stored_suite(info)
    say(f"resuming {run_dir}: {_progress(stored)}")
    check_same_suite(stored, loaded)
    failed = {record.status for record in stored.records} - {Status.OK}
    again = failed if wish.rerun is Rerun.FAILED else set()
    if wish.rerun is Rerun.FAILED and not failed:
        say("nothing has failed")
    finished = not stored.missing() and wish.allowance is None
    if finished and not again and wish.rerun not in (Rerun.STALE, Rerun.ALL):
        return run_dir, Exit.OK
    device = str(info.environment.get("device", loaded.device))
    with _alone(console, device, wish):
        anew = wish.rerun is Rerun.ALL
        peaks = wish.rerun in (Rerun.STALE, Rerun.ALL)
        count = wish.threads or info.threads
        machine = probe(device, count, run_dir / LOGS, peaks=peaks, also=_also(loaded))
        if wish.rerun is Rerun.STALE:
            changed = changed_code(stored, machine)
            anew = bool(changed)
            say(f"stale: {'; '.join(changed)}" if changed else "nothing is stale: the code is unchanged")
            if finished and not anew:
                return run_dir, Exit.OK
        plan = expand(
            loaded,
            quick=wish.quick or info.quick,
            only=wish.only,
            launches=wish.launches,
            seed=info.seed if wish.seed is None else wish.seed,
            device=_device(machine),
        )
        if not wish.only and wish.launches is None:
            plan = narrowed(plan, stored.cases)
        if len(plan.cases) < len(stored.cases) and anew:
            raise UserError(
                f"{len(stored.cases) - len(plan.cases)} cases of {run_dir} are no longer what the suite says",
                "start a new run: bitbench run SUITE",
            )
        _fetch(console, plan)
        done = _execute(
            console, plan, run_dir, machine, info.suite_path, wish, resume=not anew, again=again, anew=anew
        )
    return run_dir, done


def _stored_suite(info: RunInfo) -> Suite:
    from pydantic import ValidationError

    from bitbench.suite.schema import Suite

    try:
        return Suite.model_validate(info.suite)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"the suite of run {info.run} cannot be read here: {where}: {first['msg']}",
            "install the plug-ins it was made with, or start a new run",
        ) from error


@contextmanager
def _alone(console: Console, device: str, wish: Wish) -> Iterator[None]:
    """The device is locked for the block; who else is at work is told before it."""
    from bitbench.measure.foreign import busy_processes
    from bitbench.measure.lock import device_lock, expected_device

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    with device_lock(expected_device(device), wait=wish.wait, note=say):
        if others := busy_processes():
            say(f"other processes are at work, which results will show: {', '.join(others)}")
        yield


def _execute(
    console: Console,
    plan: Plan,
    run_dir: Path,
    machine: Machine,
    suite_path: str,
    wish: Wish,
    *,
    resume: bool,
    again: Collection[Status] = (),
    anew: bool = False,
) -> Exit:
    """Measure; an interruption is reported with the command that goes on from there."""
    from bitbench.execute.progress import sink_for
    from bitbench.execute.runner import execute
    from bitbench.execute.stages import sentence
    from bitbench.execute.stopping import stopped
    from bitbench.store.reader import load_run

    try:
        done = execute(
            plan,
            run_dir,
            sink=sink_for(console),
            machine=machine,
            suite_path=suite_path,
            resume=resume,
            allowance=wish.allowance,
            wait=wish.wait,
            again=again,
            anew=anew,
        )
    except KeyboardInterrupt:
        console.print(f"interrupted: {_progress(load_run(run_dir))}; all of it is kept", highlight=False)
        console.print(f"go on with: bitbench run --resume {run_dir}", highlight=False, soft_wrap=True)
        return Exit.INTERRUPTED
    last = done.ends[-1]
    console.print(sentence(last.wall_s, last.stages_s), highlight=False, soft_wrap=True)
    if wish.allowance is not None:
        console.print(stopped(last.stops, wish.allowance), highlight=False, soft_wrap=True)
    return Exit.OK


def _conclude(console: Console, run_dir: Path, reports: Path, strict: bool) -> int:
    """Report first, then decide the exit code."""
    from bitbench import report
    from bitbench.analysis.claims import evaluate, exit_code
    from bitbench.analysis.summary import summarise
    from bitbench.report.console import show
    from bitbench.store.reader import load_run

    try:
        folder = report.write(run_dir, reports)
    except KeyboardInterrupt:
        console.print("interrupted: everything is measured, the report is not written", highlight=False)
        console.print(f"write it with: bitbench report {run_dir}", highlight=False, soft_wrap=True)
        return int(Exit.INTERRUPTED)
    show(run_dir, console, folder)
    summary = summarise(load_run(run_dir))
    return int(exit_code(summary, evaluate(summary), strict=strict))


def announce(console: Console, plan: Plan, machine: Machine, run_dir: Path, suite: Suite) -> None:
    """Say what is about to happen, how long it will take and where it goes."""
    from bitbench.execute.progress import duration
    from bitbench.suite.expand import counted

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    quick = " (quick: no verdicts)" if plan.quick else ""
    say(f"{suite.name}: {suite.title}{quick}" if suite.title else f"{suite.name}{quick}")
    say(f"  {plan.counts()}; about {duration(plan.estimate_seconds())}")
    say(f"  {_where(machine, suite)}; {counted(machine.threads, 'thread')}")
    native = machine.facts.get("native", {})
    if native.get("library"):
        say(f"  native kernels: {native.get('isa')}")
    else:
        say(f"  no native kernels: {native.get('why_not', '')}")
    say(f"  results: {run_dir}")


def _where(machine: Machine, suite: Suite) -> str:
    from bitbench.measure.host import cpu_model

    if machine.device == "cuda":
        return "measuring " + ", ".join(gpu["name"] for gpu in machine.facts.get("cuda_devices", []))
    found = "no GPU found: measuring the CPU" if suite.device == "auto" else "measuring the CPU"
    return f"{found} ({cpu_model()})"


def _also(suite: Suite) -> set[int]:
    """Numbers of threads whose limits are measured too: none on a GPU, whose limits are its own."""
    from bitbench.measure.lock import expected_device
    from bitbench.suite.expand import thread_counts

    device = expected_device(suite.device)
    return set() if device == "cuda" else thread_counts(suite, device)


def _device(machine: Machine) -> Literal["cpu", "cuda"]:
    return "cuda" if machine.device == "cuda" else "cpu"


def _progress(stored: RunData) -> str:
    total = sum(case.launches for case in stored.cases)
    return f"{total - len(stored.missing())} of {total} measurements are there"


def _fetch(console: Console, plan: Plan) -> None:
    """Weights and texts, before anything is measured."""
    names = plan.data()
    if names:
        from bitbench.data.progress import fetch_shown

        fetch_shown(names, console)


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: workers stopped, everything measured kept."""

    def interrupt(signum: int, frame: object) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
