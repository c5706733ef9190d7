"""Where the numbers come from: failures, every case, the machine, how to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bitbench.analysis.statistics import DISPLAY_CONFIDENCE, MIN_REPLICATES
from bitbench.analysis.summary import MISSING, CaseSummary, Summary
from bitbench.analysis.verdicts import JUDGE_CONFIDENCE, MINIMUM_EFFECT
from bitbench.execute.stages import sentence
from bitbench.report.numbers import percent, quantity, shape_text, with_interval
from bitbench.report.tables import Cell, Column, Section, Table, name_cell
from bitbench.store.metrics import METRICS
from bitbench.store.schema import RunEnd
from bitbench.suite.expand import counted

MAX_VALUES = 100
"""Replicates up to which their values are listed: images are too many."""

_HEADLINES = (
    "time.latency",
    "quality.perplexity",
    "quality.accuracy",
    "training.bits_per_byte",
    "training.accuracy",
    "memory.weight_ratio",
    "memory.training_peak_bytes",
)


def failures(summary: Summary) -> Section:
    """Section ``failures``: every outcome that is not ``ok``, with its reason."""
    rows = []
    for case in summary.cases:
        for status, reason, launches in _failures_of(case):
            tone = "muted" if status in ("unsupported", MISSING, "incomplete") else "bad"
            rows.append(
                [
                    Cell(status, tone=tone, badge=True),
                    name_cell(case.case.layer),
                    Cell(case.case.label.rpartition("/")[0]),
                    Cell(launches),
                    Cell(reason),
                    Cell(case.case.id, case=case.case.id, code=True),
                ]
            )
    if not rows:
        return Section("failures", "Failures", ["Every planned case was measured; none failed."])
    columns = [
        Column(name, numeric=False) for name in ("Status", "Layer", "Point", "Launches", "Reason", "Case")
    ]
    text = (
        "A case with any launch that is not ok has no figure anywhere in this report: an average over the "
        "launches that went well would hide the others."
    )
    return Section(
        "failures", "Failures", [text], [Table("failures", "Not measured", columns, rows, filterable=True)]
    )


def _failures_of(case: CaseSummary) -> list[tuple[str, str, str]]:
    """Status, reason and launches of what went wrong, one entry for each different reason."""
    launches: dict[tuple[str, str], list[int]] = {}
    for failure in case.failures:
        launches.setdefault((failure.status, failure.reason), []).append(failure.launch)
    found = [
        (status, reason, "all" if len(which) == case.case.launches else ", ".join(str(n) for n in which))
        for (status, reason), which in launches.items()
    ]
    if not case.ok and not found:
        found.append((case.status, case.reason, "none"))
    elif case.ok and not case.complete:
        count = f"{case.done} of {case.case.launches}"
        found.append(("incomplete", "the run ended before the other launches", count))
    return found


def every_case(summary: Summary) -> Section:
    """Section ``cases``: the end of each trail inside the report."""
    columns = [
        Column("Case", "search samples.jsonl for it", numeric=False),
        Column("Layer", numeric=False),
        Column("Point", numeric=False),
        Column("Status", numeric=False),
        Column("Figure", "time of a call, perplexity, bits per byte or weight ratio, with its interval"),
        Column("Per launch", "the values behind the interval", numeric=False),
        Column("Share of limit", "reached share of the measured machine limit that binds"),
        Column("Kernel", numeric=False),
    ]
    path = f"results/{summary.run.path.name}/samples.jsonl"
    text = (
        f"Figures above link here. The id of a case finds its raw samples in `{path}` (one line a case and "
        "launch, every timed block in nanoseconds) and its description in `cases.jsonl`; `cases.csv` "
        "beside this report has every figure of every case."
    )
    rows = [_case_row(case) for case in summary.cases]
    table = Table("cases", "Every case", columns, rows, filterable=True, html_only=True)
    return Section("cases", "Cases and samples", [text], [table], folded=True)


def _case_row(case: CaseSummary) -> list[Cell]:
    metric = next((name for name in _HEADLINES if name in case.series), "")
    found = case.value(metric) if metric else None
    unit = METRICS[metric].unit if metric in ("time.latency", "memory.weight_ratio") else ""
    label = metric.partition(".")[2].replace("_", " ")
    values = "" if found is None or found.exact or found.n > MAX_VALUES else _values(case, metric, unit)
    share = case.value("roofline.share")
    return [
        Cell(case.case.id, code=True, case=case.case.id),
        name_cell(case.case.layer),
        Cell(case.case.label.rpartition("/")[0]),
        Cell(case.status, tone="" if case.ok else "bad", badge=True),
        Cell("", sort=float("inf"))
        if found is None
        else Cell(with_interval(found, unit), (label,), sort=found.value),
        Cell(values, tone="muted"),
        Cell("", sort=float("inf"))
        if share is None
        else Cell(percent(share.value), sort=share.value, tone="warn" if share.value > 1 else ""),
        Cell(", ".join(case.kernels), case.notes, tone="muted"),
    ]


def _values(case: CaseSummary, metric: str, unit: str) -> str:
    return ", ".join(quantity(value, unit, 4) for value in case.series[metric].values.values())


def environment(summary: Summary) -> Section:
    """Section ``environment``: machine and code."""
    info = summary.run.info
    facts: list[tuple[str, str]] = [
        ("run", info.run),
        ("created", info.created),
        ("suite", f"{info.suite['name']} ({info.suite_path})"),
        ("seed", str(info.seed)),
        ("threads", str(info.threads)),
        *_flat("code", info.code.model_dump(mode="json")),
        *_flat("", info.environment),
    ]
    table = Table(
        "environment",
        "Machine and code",
        [Column("What", numeric=False), Column("Value", numeric=False)],
        [[Cell(key, code=True), Cell(value)] for key, value in facts],
        filterable=True,
        html_only=True,
    )
    prose = [machine(summary), *time_spent(summary.run.ends)]
    return Section("environment", "Environment", prose, [table], folded=True)


def time_spent(ends: Sequence[RunEnd]) -> list[str]:
    """Where the time went, a line for each time the run came to its end, and what ended it where a
    budget did."""
    told = []
    for end in ends:
        stops = Counter(end.stops.values())
        more = ""
        if stops["width"] or stops["budget"]:
            more = (
                f" Further launches ended with narrow intervals at {counted(stops['width'], 'point')}, "
                f"with the budget at {stops['budget']}."
            )
        told.append(f"Time spent: {sentence(end.wall_s, end.stages_s)}.{more}")
    return told


def machine(summary: Summary) -> str:
    """The machine and the code in one sentence."""
    info = summary.run.info
    env = info.environment
    cpu = find(env, "cpu", "model") or "unknown CPU"
    gpu = gpu_name(env)
    torch = find(env, "packages", "torch")
    parts = [f"{cpu}, {info.threads} threads", f"GPU: {gpu}" if gpu else "no GPU"]
    if torch:
        parts.append(f"torch {torch}")
    if isa := info.code.native.get("isa"):
        parts.append(f"native kernels: {isa}")
    commit = f" at {info.code.commit[:12]}" if info.code.commit else ""
    parts.append(f"bitbench {info.code.bitbench}{commit}{', with local changes' if info.code.dirty else ''}")
    return "; ".join(parts) + "."


def gpu_name(env: Mapping[str, Any]) -> str:
    """Names of the GPUs in a run's environment; empty without one."""
    gpus = env.get("gpus")
    entries = gpus if isinstance(gpus, list) else []  # a collector that failed left its error there
    return ", ".join(str(entry.get("name") or "unnamed GPU") for entry in entries)


def find(tree: Any, *keys: str) -> str:
    """Text at a path of nested mappings; empty where it leads nowhere."""
    for key in keys:
        if not isinstance(tree, Mapping) or key not in tree:
            return ""
        tree = tree[key]
    return "" if tree is None or isinstance(tree, (Mapping, list)) else str(tree)


def _flat(prefix: str, tree: Any) -> list[tuple[str, str]]:
    """Nested facts as dotted names; lists of plain values on one line."""
    if isinstance(tree, Mapping):
        return [
            fact
            for key, value in tree.items()
            for fact in _flat(f"{prefix}.{key}" if prefix else str(key), value)
        ]
    if isinstance(tree, list):
        if any(isinstance(item, (Mapping, list)) for item in tree):
            return [fact for i, item in enumerate(tree) for fact in _flat(f"{prefix}.{i}", item)]
        return [(prefix, ", ".join(str(item) for item in tree) or "none")]
    return [(prefix, "unknown" if tree is None or tree == "" else str(tree))]


def how_to_read(summary: Summary) -> Section:
    """Section ``methods``."""
    info = summary.run.info
    shapes = [shape_text(s) for s in _shapes(summary)]
    prose = [
        "**Replication.** A timed case runs in several launches, each a fresh process that measures all "
        "layers of a point side by side, in an order that changes from launch to launch. One launch gives "
        "one value: the median over its timed blocks. Times and ratios are geometric means over launches; "
        f"**[a, b]** is Student's interval at {percent(DISPLAY_CONFIDENCE)} of their logarithms. Perplexity "
        "is replicated over documents, training over seeds, accuracy after conversion over images (Wilson's "
        "interval; of a change, taken image by image, Agresti and Min's); bytes are counted and have none.",
        f"**n=2: a to b** stands where an interval would: fewer than {MIN_REPLICATES} replicates give none. "
        "Two leave the spread itself unknown, and Student's interval would often span orders of magnitude; "
        "a and b are the two values. Nothing is judged by them.",
        "**Ratios** are formed inside a launch (a document, a seed) before anything is averaged, so that "
        "what disturbs both sides cancels.",
        f"**Verdicts** are taken at {percent(JUDGE_CONFIDENCE)} with a minimum effect of "
        f"{percent(MINIMUM_EFFECT)}: faster or slower if the interval lies wholly beyond it, same if wholly "
        "within it, inconclusive otherwise. Not comparable: one side failed. `would see 3 %` beside an "
        "inconclusive one: the difference that as many launches of this spread would have shown four times "
        "of five.",
        "**Many cases**: the spread of a few launches is itself uncertain, so a verdict's variance is drawn "
        "towards that of like cases (same workload, M and cache state; empirical Bayes), unless the case is "
        "clearly noisier than they are. Faster and slower are corrected over all cases of the run "
        "(Benjamini-Hochberg). Printed intervals are each case's own.",
        f"**Claims** pass if the whole {percent(JUDGE_CONFIDENCE)} interval clears the bound in every case "
        "they are about, fail if it lies wholly on the wrong side, and are inconclusive in between. A "
        "claim that no case answers is not evaluated. Only gating claims turn the exit code.",
        "**M** is the number of tokens in a call; **hot** means that the weights are in cache, **cold** "
        "that they come from memory. `nn.Linear` shapes are written out_features x in_features.",
        "**Units**: `x` is a ratio, larger is better except for perplexity and bits per byte; KiB and MiB "
        "are powers of 1024; `1.2e5` is 1.2 times ten to the 5th.",
    ]
    if info.quick:
        prose.insert(
            0, "**Quick run**: too few launches to judge by. Figures are indications; there are no verdicts."
        )
    launches = max((c.case.launches for c in summary.cases if c.case.phase == "timed"), default=0)
    if shapes:
        prose.append(f"**Shapes** measured: {', '.join(shapes)}; launches: {launches}.")
    return Section("methods", "How to read this", prose, folded=True)


def _shapes(summary: Summary) -> list[list[int]]:
    shapes: list[list[int]] = []
    for case in summary.cases:
        shape = case.case.params.get("shape")
        if isinstance(shape, list) and shape not in shapes:
            shapes.append(shape)
    return shapes
