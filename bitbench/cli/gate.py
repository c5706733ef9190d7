"""``bitbench gate``: is this version worse than that one, in bytes, accuracy or time?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bitbench.errors import Exit, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from bitbench.analysis.gate import GateResult
    from bitbench.cli.gate_session import Session
    from bitbench.execute.sides import SideCode
    from bitbench.store.baseline import Baseline
    from bitbench.store.calibration import Calibration

TOLD = 5
"""Objections to a stored run that are told."""


def gate(
    source: Path = typer.Argument(
        None, metavar="[SUITE|RUN|FILE]", help="Suite (with --base), run folder, or benchmark JSON."
    ),
    base: str = typer.Option(None, "--base", metavar="REF", help="Version to be measured against."),
    head: str = typer.Option(
        None, "--head", metavar="REF", help="Version to judge; default: the working tree."
    ),
    baseline: Path = typer.Option(
        None,
        "--baseline",
        metavar="FILE",
        help="Accepted figures; default: SUITE's name with .baseline.json.",
    ),
    calibration: Path = typer.Option(
        None, "--calibration", metavar="FILE", help="Made by `calibrate`; default: the user's cache."
    ),
    inject: float = typer.Option(
        0.0, "--inject", metavar="PERCENT", help="Slow the head down by this much: does the gate turn red?"
    ),
    launches: int = typer.Option(
        None, "--launches", min=3, max=1000, help="Launches in place of the suite's."
    ),
    only: list[str] = typer.Option(None, "--only", metavar="GLOB", help="Cases whose label matches."),
    package: list[str] = typer.Option(
        None, "--package", metavar="NAME", help="Packages of the library; default: impl."
    ),
    build_command: str = typer.Option(
        None, "--build-command", metavar="COMMAND", help="Builds them in a copy of the repository."
    ),
    results: Path = typer.Option(Path("results"), "--results", metavar="DIR", help="Where runs are kept."),
    junit: Path = typer.Option(None, "--junit", metavar="FILE", help="Write JUnit XML."),
    markdown: Path = typer.Option(None, "--markdown", metavar="FILE", help="Write a pull-request comment."),
    as_json: Path = typer.Option(None, "--json", metavar="FILE", help="Write everything as JSON."),
    strict: bool = typer.Option(False, "--strict", help="Exit 4 where a question stays open."),
    wait: bool = typer.Option(False, "--wait", help="Wait while another bitbench measures here."),
) -> int:
    """Judge a version against another one, or a stored run against accepted figures.

    With --base both versions are built side by side and measured in turns on this machine; without a
    valid calibration that is measured first. Bytes and accuracy are held against the baseline file.
    A run folder or a file of pytest-benchmark is held against the baseline file alone.

    Ends with 0 when nothing got worse, 1 when something did, 2 on wrong usage, 3 when nothing was
    measured or the gate could not prove itself, 4 under --strict when a question stays open, 130
    when interrupted.
    """
    from rich.console import Console

    from bitbench.cli.run import terminate_as_interrupt
    from bitbench.report.compared import show_gate
    from bitbench.store.writer import check_file

    console = Console()
    wish = Wish(
        source, base, head, baseline, calibration, inject / 100, launches, only or None, package,
        build_command, results, wait,
    )  # fmt: skip
    _refuse(wish)
    outputs = Outputs(junit, markdown, as_json)
    for path, option in ((junit, "--junit"), (markdown, "--markdown"), (as_json, "--json")):
        if path is not None:
            check_file(path, option)
    with terminate_as_interrupt():
        try:
            result = _stored(wish) if base is None else _paired(console, wish, base)
        except KeyboardInterrupt:
            console.print("interrupted: nothing is judged; what was measured is kept", highlight=False)
            return Exit.INTERRUPTED
    try:
        show_gate(result, console)
    finally:  # a reader who leaves (`| head`) must not cost the files
        outputs.write(result, wish, strict=strict)
    return result.exit_code(strict=strict)


@dataclass(frozen=True)
class Wish:
    """What the command line asks for; None where it is silent."""

    source: Path | None
    base: str | None
    head: str | None
    baseline: Path | None
    calibration: Path | None
    inject: float
    launches: int | None
    only: list[str] | None
    packages: list[str] | None
    build_command: str | None
    results: Path
    wait: bool

    @property
    def suite(self) -> Path:
        from bitbench.cli.in_turns import SUITE

        return self.source or SUITE

    def command(self) -> str:
        """The command that asks for this again."""
        import shlex

        words = ["bitbench", "gate", *([str(self.source)] if self.source else [])]
        options = {
            "--base": self.base,
            "--head": self.head,
            "--baseline": self.baseline,
            "--inject": f"{100 * self.inject:g}" if self.inject else None,
            "--launches": self.launches,
            "--build-command": self.build_command,
        }
        for option, value in options.items():
            words += [option, str(value)] if value is not None else []
        for option, values in (("--only", self.only), ("--package", self.packages)):
            words += [word for value in values or () for word in (option, value)]
        return shlex.join(words)


def _refuse(wish: Wish) -> None:
    """Wrong usage, before anything is looked at."""
    if wish.inject and not 0.01 <= wish.inject <= 1:
        raise UserError(
            f"--inject {100 * wish.inject:g} is not from 1 to 100 per cent", "give a slowdown such as 10"
        )
    if wish.base is not None:
        if wish.source is not None and wish.source.suffix not in (".yaml", ".yml"):
            raise UserError(
                f"{wish.source} is not a suite: --base builds two versions and measures a suite on them",
                "name a suite file, or leave --base out to hold a stored run against the baseline",
            )
        return
    if wish.source is None or wish.source.suffix in (".yaml", ".yml"):
        raise UserError(
            "nothing to judge: a suite is measured on two versions, and no --base is given",
            f"give one: bitbench gate {wish.suite} --base main; or judge a stored run: bitbench gate RUN",
        )
    options = {
        "--head": wish.head,
        "--calibration": wish.calibration,
        "--inject": wish.inject or None,
        "--launches": wish.launches,
        "--only": wish.only,
        "--package": wish.packages or None,
        "--build-command": wish.build_command,
    }
    given = [option for option, value in options.items() if value is not None]
    if given:
        raise UserError(
            f"{given[0]} has no meaning for a stored measurement", "it belongs to a gate with --base REF"
        )


def _paired(console: Console, wish: Wish, base: str) -> GateResult:
    """Measure two versions in turns and judge."""
    from bitbench.analysis.compare import compare_sides, needs_confirmation
    from bitbench.analysis.figures import figures_of_summary, head_of, lost
    from bitbench.analysis.gate_rules import barred, judge_paired, minimum_effects, unproven
    from bitbench.analysis.held import COUNTED, hold
    from bitbench.analysis.summary import summarise
    from bitbench.cli.gate_session import open_session
    from bitbench.cli.in_turns import alone, first_round, make_sides, second_round
    from bitbench.workloads.self_proof import SLOWDOWN

    accepted, warnings = _accepted(wish)
    session = open_session(console, wish.suite, results=wish.results, launches=wish.launches, only=wish.only)
    with alone(console, session.ready.machine, wait=wish.wait):
        sides = make_sides(console, base, wish.head, packages=wish.packages, build_command=wish.build_command)
        calibration = _calibration(console, wish, session, sides[0])
        closed = barred(session.launches, session.threads)
        family = session.gateable() & calibration.admitted() if not closed else set()
        effects = minimum_effects(calibration, session.gateable(), session.same())
        slowdown = _injection(wish, session, family)
        run = first_round(console, session.ready, sides, "gate", slowdown=slowdown)
        comparison = compare_sides(run, minimum_effects=effects, family=family)
        if again := needs_confirmation(comparison, family) | unproven(comparison):
            run = second_round(console, session.ready, sides, run, again, slowdown=slowdown)
            comparison = compare_sides(run, minimum_effects=effects, family=family)
    if slowdown:
        comparison = replace(comparison, head=f"{comparison.head}, {_injected(wish)}")
        warnings.append(f"{_injected(wish)}: this is a trial of the gate, not a judgement on the code")
    held = None
    if accepted is not None:
        cases = {case.label: case for case in session.plan.cases}
        summary = summarise(head_of(run), judged=False)
        figures = figures_of_summary(summary)
        held = hold(figures, accepted.figures, cases=cases, lost=lost(summary), kinds=COUNTED)
    return judge_paired(
        comparison,
        calibration=calibration,
        held=held,
        slowdown=SLOWDOWN,
        launches=session.launches,
        threads=session.threads,
        warnings=warnings,
    )


def _accepted(wish: Wish) -> tuple[Baseline | None, list[str]]:
    """The baseline of a suite; where nobody has made one yet, None and a word about it."""
    from bitbench.store.baseline import baseline_beside, load_baseline

    path = wish.baseline or baseline_beside(wish.suite)
    if wish.baseline is None and not path.exists():
        return None, [
            f"there is no baseline {path}: bytes and accuracy are held against the base side; make one with: "
            f'bitbench run {wish.suite}, then bitbench baseline accept RUN --why "first figures"'
        ]
    return load_baseline(path), []


def _calibration(console: Console, wish: Wish, session: Session, side: SideCode) -> Calibration:
    """The calibration that holds here; measured now where there is none."""
    from bitbench.cli.gate_session import measure_calibration
    from bitbench.cli.in_turns import say
    from bitbench.store.calibration import calibration_path, find_calibration
    from bitbench.store.writer import check_file

    ids = [case.id for case in session.calibrated()]
    found, why = find_calibration(
        session.name, session.facts, session.launches, ids, wish.calibration, code=side.code.digest
    )
    if found is not None:
        return found
    if wish.calibration is not None:
        check_file(wish.calibration, "--calibration")
    say(console, f"{why}: calibrating first, the base held against itself ...")
    path = wish.calibration or calibration_path(session.name, session.facts, session.launches)
    return measure_calibration(console, session, side, path)


def _injection(wish: Wish, session: Session, family: set[str]) -> dict[str, float]:
    """By layer, what the head does on top: in those that gate, or could gate where none does."""
    if not wish.inject:
        return {}
    chosen = family or session.gateable()
    return {case.layer: wish.inject for case in session.timed() if case.id in chosen}


def _injected(wish: Wish) -> str:
    return f"SLOWED DOWN ON PURPOSE BY {100 * wish.inject:g} %"


def _stored(wish: Wish) -> GateResult:
    """Judge a stored run, or a file of pytest-benchmark, against the baseline."""
    from bitbench.analysis.comparability import hard, machine_differences, said
    from bitbench.analysis.comparison import Comparison
    from bitbench.analysis.gate_rules import judge_stored
    from bitbench.analysis.held import hold
    from bitbench.cli.baseline import measured
    from bitbench.store.baseline import load_baseline

    assert wish.source is not None
    found = measured(wish.source, wish.results)
    path = wish.baseline or found.baseline
    accepted = load_baseline(path).figures
    held = hold(found.figures, accepted, cases=found.cases, lost=found.lost, against=str(path))
    differences = machine_differences(accepted.machine, found.figures.machine)
    unlike = ""
    if not (accepted.machine.get("processor") and found.figures.machine.get("processor")):
        unlike = "it is not known on which machine they were measured"
    elif forbidding := hard(differences, "time"):
        unlike = f"another machine: {said(forbidding)}"
    comparison = Comparison(
        base=str(path),
        head=found.name,
        paired=False,
        differences=differences,
        only_base=held.unmeasured,
        only_head=held.unaccepted,
    )
    threads = int(found.figures.machine.get("threads") or 0)
    told = [*found.warnings, *found.objections[:TOLD]]
    if len(found.objections) > TOLD:
        told.append(f"and {len(found.objections) - TOLD} more that a baseline would not be made of")
    return judge_stored(comparison, held, unlike=unlike, threads=threads, warnings=told)


@dataclass(frozen=True)
class Outputs:
    """Files that were asked for."""

    junit: Path | None
    markdown: Path | None
    as_json: Path | None

    def write(self, result: GateResult, wish: Wish, *, strict: bool) -> None:
        from bitbench.report.comment import comment
        from bitbench.report.exported import gate_data, to_json
        from bitbench.report.junit import junit
        from bitbench.store.writer import write_file

        name = wish.suite.stem if wish.base is not None else str(wish.source)
        if self.junit is not None:
            write_file(self.junit, junit(result, name=f"bitbench gate: {name}", strict=strict))
        if self.markdown is not None:
            write_file(self.markdown, comment(result, name=name, command=wish.command()))
        if self.as_json is not None:
            write_file(self.as_json, to_json(gate_data(result, strict=strict)))
