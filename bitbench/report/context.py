"""What a report says, once, for every rendering."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from bitbench.analysis.claims import ClaimResult, ClaimStatus, describe_bound, describe_where, evaluate
from bitbench.analysis.compare import compare_sides
from bitbench.analysis.summary import Summary, summarise
from bitbench.analysis.verdicts import JUDGE_CONFIDENCE
from bitbench.errors import ToolError
from bitbench.report import compared
from bitbench.report.accuracy import accuracy
from bitbench.report.answer import QUESTION, answer, caveats
from bitbench.report.convolution import blocks, convolution
from bitbench.report.decoding import decode
from bitbench.report.gpu import gpu_load
from bitbench.report.images import images
from bitbench.report.machine import telemetry
from bitbench.report.memory import memory
from bitbench.report.numbers import percent, with_interval
from bitbench.report.overview import overview
from bitbench.report.provenance import environment, every_case, failures, how_to_read, machine
from bitbench.report.speed import speed
from bitbench.report.tables import Cell, Column, Figure, Section, Table
from bitbench.report.training import training
from bitbench.store.metrics import METRICS
from bitbench.store.reader import RunData
from bitbench.suite.select import describe

_TONES = {ClaimStatus.PASS: "good", ClaimStatus.FAIL: "bad", ClaimStatus.INCONCLUSIVE: "warn"}


@dataclass(frozen=True)
class ReportContext:
    """Everything a rendering needs; no rendering looks at the run itself."""

    title: str
    run: str
    created: str
    suite: str
    machine: str
    question: str
    answer: list[str]
    caveats: list[str]
    tally: str
    """How many claims pass, fail and stay open; empty without claims."""
    claims: Table | None
    """Claims that this run judges."""
    unjudged: Table | None
    """Claims that a quick run leaves open because it measures too little."""
    sections: list[Section]
    version: str


def build(run: RunData, figures: Mapping[str, Sequence[Figure]] | None = None) -> ReportContext:
    """The context of a run. ``figures`` by section id; none are drawn here."""
    return context_of(summarise(run), figures)


def context_of(summary: Summary, figures: Mapping[str, Sequence[Figure]] | None = None) -> ReportContext:
    """As :func:`build`, from a summary already made."""
    drawn = figures or {}
    info = summary.run.info
    results = evaluate(summary)
    unjudged = [result for result in results if result.excused]
    wanted = [
        sides(summary),
        overview(summary),
        memory(summary, drawn.get("memory", ())),
        speed(summary, drawn.get("speed", ())),
        convolution(summary),
        blocks(summary),
        gpu_load(summary),
        decode(summary, drawn.get("decode", ())),
        accuracy(summary, drawn.get("accuracy", ())),
        images(summary),
        *training(summary),
        failures(summary),
        telemetry(summary),
        environment(summary),
        how_to_read(summary),
        every_case(summary),
    ]
    return ReportContext(
        title=str(info.suite.get("title") or info.suite["name"]),
        run=info.run,
        created=_readable(info.created),
        suite=str(info.suite["name"]),
        machine=machine(summary),
        question=QUESTION,
        answer=answer(summary),
        caveats=caveats(summary),
        tally=tally(results),
        claims=claims_table([result for result in results if not result.excused]),
        unjudged=claims_table(
            unjudged, "claims-unjudged", f"{counted(len(unjudged))} that a quick run leaves open"
        ),
        sections=[section for section in wanted if section is not None],
        version=info.code.bitbench,
    )


def sides(summary: Summary) -> Section | None:
    """What a run that measured two versions in turns says about them; None for a plain run."""
    if not summary.run.info.sides:
        return None
    try:
        return compared.section(compare_sides(summary.run))
    except ToolError as error:  # nothing was measured: the failures have a section of their own
        return compared.empty_section(error.message)


def _readable(created: str) -> str:
    """``2026-01-02T03:04:05Z`` -> ``2026-01-02 03:04 UTC``; anything else as it stands."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC") if moment.tzinfo else created


def counted(claims: int) -> str:
    return "1 claim" if claims == 1 else f"{claims} claims"


def tally(results: Sequence[ClaimResult]) -> str:
    """``16 claims: 4 pass, 1 fail, 11 not evaluated (a quick run leaves 11 open).`` Failed gating
    claims are named."""
    if not results:
        return ""
    found = Counter(result.status for result in results)
    parts = [f"**{found[status]} {status.value}**" for status in ClaimStatus if found[status]]
    text = f"{counted(len(results)).capitalize()}: {', '.join(parts)}"
    if excused := sum(result.excused for result in results):
        text += f" ({excused} left open by a quick run)"
    if gates := [f"`{result.claim.id}`" for result in results if result.turns_exit_code]:
        text += f"; gating and not held: {', '.join(gates)}"
    return f"{text}."


def claims_table(
    results: Sequence[ClaimResult], table_id: str = "claims", title: str = "Claims"
) -> Table | None:
    """Claims with their verdicts and the case that decided each; None without claims."""
    if not results:
        return None
    columns = [
        Column("Verdict", numeric=False),
        Column("Claim", numeric=False),
        Column("Bound", numeric=False),
        Column(
            "Measured",
            f"in the case that decides, with its {percent(JUDGE_CONFIDENCE)} interval",
            numeric=False,
        ),
        Column("Cases", "cases that the claim is about"),
    ]
    return Table(table_id, title, columns, [_claim_row(result) for result in results])


def _claim_row(result: ClaimResult) -> list[Cell]:
    claim = result.claim
    deciding = result.deciding
    unit = METRICS[claim.metric].unit if claim.of is None else "x"
    if deciding is not None and deciding.value is not None:
        notes = (deciding.label, *((deciding.reason,) if deciding.reason else ()))
        measured = Cell(with_interval(deciding.value, unit), notes, case=deciding.case)
    else:
        measured = Cell("none", (result.reason,), tone="muted", case=deciding.case if deciding else "")
    gate = ("gating",) if claim.gating else ()
    against = f" (relative to {describe(claim.of)})" if claim.of else ""
    return [
        Cell(result.status.value, gate, tone=_TONES.get(result.status, "muted"), badge=True),
        Cell(claim.says, (f"{claim.id}: {claim.metric}{against} where {describe_where(claim)}",)),
        Cell(describe_bound(claim)),
        measured,
        Cell(str(len(result.evidence)), sort=float(len(result.evidence))),
    ]
