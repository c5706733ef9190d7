"""``bitbench rates``: how often the gate errs on this machine, measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from bitbench.errors import Exit, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from bitbench.analysis.rates import Pool
    from bitbench.store.reader import RunData
    from bitbench.suite.schema import Suite

RATES_JSON, RATES_PAGE = "rates.json", "rates.md"
SLOWDOWNS = (0.05, 0.10)


def rates(
    source: Path = typer.Argument(
        Path("suites/gate.yaml"), metavar="[SUITE|RUN]", help="Suite to measure, or a run of this command."
    ),
    launches: int = typer.Option(200, "--launches", min=30, help="Launches to measure."),
    rounds: int = typer.Option(10, "--round", min=3, help="Launches in a round of a resampled gate."),
    gates: int = typer.Option(1000, "--gates", min=10, help="Gates to resample."),
    only: list[str] = typer.Option(None, "--only", metavar="GLOB", help="Cases whose label matches."),
    results: Path = typer.Option(Path("results"), "--results", metavar="DIR", help="Where runs are kept."),
) -> int:
    """Measure many launches of the working tree against itself, as it is and slowed down by 5 and
    10 %, and resample them into gates: how many alarm falsely, how many see a slowdown?

    The launches are kept as a run, with rates.json and rates.md beside its records; give that run to
    judge it again without measuring.
    """
    from rich.console import Console

    from bitbench.cli.run import terminate_as_interrupt
    from bitbench.store.reader import load_run
    from bitbench.store.writer import RUN_FILE

    console = Console()
    with terminate_as_interrupt():
        try:
            if (source / RUN_FILE).exists():
                run = load_run(source)
            else:
                run = _measure(console, source, launches, only or None, results)
        except KeyboardInterrupt:
            console.print("interrupted: what was measured is kept; judge it with: bitbench rates RUN")
            return Exit.INTERRUPTED
    _conclude(console, run, rounds, gates)
    return Exit.OK


def tripled(suite: Suite, slowdowns: Sequence[float] = SLOWDOWNS) -> tuple[Suite, dict[str, float]]:
    """``suite`` with every quantised layer measured as it is and once for each slowdown, and the
    slowdown of each added layer. What is measured once (bytes, accuracy) is left out."""
    from bitbench.suite.schema import Suite as Model

    resolved = suite.resolved()
    added = {
        name_of(layer, slowdown): slowdown
        for layer, spec in resolved["layers"].items()
        if spec["kind"] != "linear"
        for slowdown in slowdowns
    }
    layers: dict[str, Any] = {}
    for layer, spec in resolved["layers"].items():
        layers[layer] = spec
        layers |= {name_of(layer, s): spec for s in slowdowns if name_of(layer, s) in added}
    workloads = []
    for entry in resolved["workloads"]:
        if entry["kind"] != "linear":
            continue
        named = entry["layers"] if entry["layers"] is not None else list(resolved["layers"])
        here = [twin for n in named for twin in (n, *(name_of(n, s) for s in slowdowns)) if twin in layers]
        workloads.append({**entry, "layers": here, "memory": False})
    if not workloads:
        raise UserError(f"suite {suite.name!r} times no single layers", "give one such as suites/gate.yaml")
    return Model.model_validate({**resolved, "layers": layers, "workloads": workloads, "claims": []}), added


def name_of(layer: str, slowdown: float) -> str:
    """``ternary+5`` for a slowdown of 5 %."""
    return f"{layer}+{100 * slowdown:g}"


def _measure(
    console: Console, suite_path: Path, launches: int, only: list[str] | None, results: Path
) -> RunData:
    import tempfile

    from bitbench.execute.paired import execute_paired
    from bitbench.execute.progress import sink_for
    from bitbench.execute.runner import default_threads, probe
    from bitbench.execute.sides import OWN_PACKAGE, prepare_side
    from bitbench.store.writer import check_writable, new_run_dir
    from bitbench.suite.expand import expand
    from bitbench.suite.load import load_suite
    from bitbench.workloads.self_proof import with_proof

    check_writable(results, "--results")
    suite, slowdown = tripled(load_suite(suite_path))
    with tempfile.TemporaryDirectory() as logs:
        machine = probe(suite.device, suite.threads or default_threads(), Path(logs), peaks=False)
    device: Literal["cpu", "cuda"] = "cuda" if machine.device == "cuda" else "cpu"
    plan = with_proof(expand(suite, only=only, launches=launches, device=device))
    side = prepare_side(
        "base",
        None,
        repo=Path.cwd(),
        packages=[OWN_PACKAGE],
        note=lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True),
    )
    run_dir = new_run_dir(results, f"{suite.name}-rates")
    console.print(f"{plan.counts()}; kept in {run_dir}", highlight=False, soft_wrap=True)
    return execute_paired(
        plan,
        run_dir,
        (replace(side, side="base"), replace(side, side="head")),
        sink=sink_for(console),
        machine=machine,
        purpose="calibrate",
        suite_path=str(suite_path),
        slowdown=slowdown,
    )


def pool_of(run: RunData, slowdowns: Sequence[float] = SLOWDOWNS) -> tuple[Pool, dict[str, str]]:
    """The launches of a run of this command, and a label for each case.

    Raises :class:`UserError` where the run is of something else.
    """
    from bitbench.analysis.calibration import log_ratios
    from bitbench.analysis.moderation import like
    from bitbench.analysis.rates import Pool
    from bitbench.workloads.self_proof import NULL, SLOWER

    ratios = log_ratios(run.records)
    timed = [case for case in run.cases if case.phase == "timed" and case.id in ratios]
    shared = set.intersection(*(set(ratios[case.id]) for case in timed)) if timed else set()
    order = sorted(shared)
    at = {(case.point, case.layer): [ratios[case.id][i] for i in order] for case in timed}
    nulls = [case for case in timed if (case.point, name_of(case.layer, slowdowns[0])) in at]
    proof = {case.layer: at[case.point, case.layer] for case in timed if case.layer in (NULL, SLOWER)}
    if not nulls or len(proof) != 2:
        raise UserError(
            f"{run.path} holds no slowed twins of its layers: it is not a run of `bitbench rates`",
            "make one with: bitbench rates suites/gate.yaml",
        )
    pool = Pool(
        null={case.id: at[case.point, case.layer] for case in nulls},
        slowed={s: {case.id: at[case.point, name_of(case.layer, s)] for case in nulls} for s in slowdowns},
        like={case.id: like(case) for case in nulls},
        proof_null=proof[NULL],
        proof_slower=proof[SLOWER],
    )
    return pool, {case.id: case.label for case in nulls}


def _conclude(console: Console, run: RunData, rounds: int, gates: int) -> None:
    import json
    from dataclasses import asdict

    from bitbench.analysis.rates import resample
    from bitbench.report.rates import page
    from bitbench.store.figures import machine_of
    from bitbench.store.writer import write_atomically

    pool, labels = pool_of(run)
    if pool.launches < 3 * rounds:
        raise UserError(
            f"{pool.launches} launches are fewer than the {3 * rounds} of a calibration and two rounds",
            "measure more with --launches, or make rounds smaller with --round",
        )
    console.print(f"resampling {pool.launches} launches into gates", highlight=False)
    found = [resample(pool, launches=rounds, gates=gates, draw=d) for d in ("consecutive", "scattered")]
    machine = machine_of(run.info.environment, run.info.threads, run.info.code.native)
    text = page(found, launches=pool.launches, source=run.info.suite_path, machine=machine, labels=labels)
    write_atomically(run.path / RATES_PAGE, text)
    data = {"launches": pool.launches, "labels": labels, "rates": [asdict(item) for item in found]}
    write_atomically(run.path / RATES_JSON, json.dumps(data, indent=1, sort_keys=True) + "\n")
    console.print(text, markup=False, highlight=False, soft_wrap=True)
