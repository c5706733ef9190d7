"""The table that answers first: one row a layer, every question a column."""

from __future__ import annotations

from collections.abc import Sequence

from bitbench.analysis.aggregate import Total, common_shapes, headline_points, totals
from bitbench.analysis.summary import CaseSummary, Summary
from bitbench.analysis.verdicts import Verdict, Word
from bitbench.report.numbers import (
    ABSENT,
    estimate,
    in_percent,
    in_points,
    interval,
    percent,
    plain,
    shape_text,
    spread,
)
from bitbench.report.tables import (
    Cell,
    Column,
    Section,
    Table,
    absent,
    figure_cell,
    name_cell,
    verdict_tone,
    without_empty,
)
from bitbench.store.schema import all_params

HEAD_IS = Column("Head is", "the output head: left float, or the same as the blocks' layers", numeric=False)

STEM_IS = Column("First convolution is", "left float, or the same as the blocks' convolutions", numeric=False)

_ORDER = ("dtype", "format", "k", "group_size", "rule", "activation_bits")
_USUAL = {"scale": "row", "scale_dtype": "float32", "refit": True}
"""Settings that go without saying."""
_WORDS = {
    "dtype": "{}",
    "format": "{}",
    "group_size": "groups of {}",
    "activation_bits": "{}-bit activations",
    "signs": "signs in and out",
}
_SILENT = ("kind", "form", "ste")


def describe_layer(spec: dict[str, object]) -> str:
    """A layer's description on one line: ``ternary, base3, 8-bit activations``."""
    parts = [str(spec.get("kind", "")).replace("_", "-")]
    if spec.get("form") == "training":
        parts.append("training form")
    told = [key for key in spec if key not in _SILENT and spec[key] not in (None, _USUAL.get(key))]
    told.sort(key=lambda key: (_ORDER.index(key) if key in _ORDER else len(_ORDER), key))
    return ", ".join([*parts, *(_told(key, spec[key]) for key in told)])


def _told(key: str, value: object) -> str:
    """``activation_bits``, 8 -> ``8-bit activations``; settings without words of their own by name."""
    words = _WORDS.get(key)
    return f"{key.replace('_', ' ')} {value}" if words is None else words.format(value)


def head_cells(cases: Sequence[CaseSummary], end: str = "head") -> list[Cell]:
    """The cells of a table's column :data:`HEAD_IS`, or of :data:`STEM_IS` for the ``end`` "stem"; all are
    empty where no case names one, for that of each is then left float."""
    if not any(end in case.case.params for case in cases):
        return [absent() for _ in cases]
    return [Cell(str(all_params(case.case.workload, case.case.params)[end])) for case in cases]


def ledger_shape(summary: Summary) -> list[int] | None:
    """The shape to quote bytes at: the largest of those counted for most layers."""
    layers: dict[tuple[int, int], set[str]] = {}
    for case in summary.select("linear", measure="memory"):
        rows, columns = case.case.params["shape"]
        layers.setdefault((rows, columns), set()).add(case.case.layer)
    if not layers:
        return None
    # Of equally large ones the squarest: 4096 x 4096 is what people quote.
    ranked = sorted(layers, key=lambda shape: (len(layers[shape]), shape[0] * shape[1], min(shape)))
    return list(ranked[-1])


def ledger_case(summary: Summary, layer: str, shape: list[int] | None = None) -> CaseSummary | None:
    """The memory case of a layer at ``shape``, or at the largest shape counted."""
    wanted = shape or ledger_shape(summary)
    return None if wanted is None else summary.one("linear", layer, measure="memory", shape=wanted)


def case_with(summary: Summary, workload: str, layer: str, metric: str) -> CaseSummary | None:
    """The first case of a workload and layer that carries ``metric``."""
    return next((c for c in summary.select(workload, layer) if metric in c.series), None)


def model_case(summary: Summary, layer: str) -> CaseSummary | None:
    """The case that knows the bytes of a whole pretrained model with this layer in it; those of networks that
    a run trains are beside their scores."""
    cases = (case for case in summary.select(layer=layer) if "model" in case.case.params)
    return next((case for case in cases if "memory.model_ratio" in case.series), None)


def mean_share(summary: Summary, layer: str, metric: str) -> float | None:
    """Plain mean of a share over a layer's timed cases."""
    found = [e.value for case in summary.select(layer=layer) if (e := case.value(metric)) is not None]
    return sum(found) / len(found) if found else None


def overview(summary: Summary) -> Section:
    """Section ``overview``."""
    points = headline_points(summary)
    by_point = {point: totals(summary, point) for point in points}
    columns = [
        Column("Layer", "name in the suite, and what it is", numeric=False),
        Column("Bits per weight", "8 x (codes + scales) / number of weights"),
        Column("Memory vs fp32", "fp32 weight bytes / (codes + scales); below it what the format allows"),
        Column("vs bf16", "bf16 weight bytes / (codes + scales)"),
        Column("Whole model", "fp32 model bytes / model bytes with this layer, unconverted parts included"),
    ]
    columns += [
        Column("Perplexity", "after conversion without retraining; below it the ratio to the baseline"),
        Column("Accuracy", "test images right after conversion without retraining; below it the change"),
        Column("Tokens/s", "batch-1 decoding of the whole model; below it the speed-up"),
    ]
    columns += [
        Column(
            p.title,
            f"speed-up against {summary.baseline}, time, speed-up against the best float layer",
        )
        for p in points
    ]
    columns.append(
        Column("CPU, GPU use", "processor time / (time x threads), and share of time a kernel ran on the GPU")
    )
    rows = [
        _row(summary, layer, [by_point[point].get(layer) for point in points]) for layer in summary.layers
    ]
    used = {tuple(shape): None for point in points for shape in common_shapes(summary, point)}
    shapes = ", ".join(shape_text(shape) for shape in used)
    counted = ledger_shape(summary)
    note = []
    if points:
        note.append(
            f"Speed columns: one call of each shape that all layers were timed at ({shapes}), added up "
            f"within a launch; speed-up against `{summary.baseline}`, then time, then speed-up against the "
            "fastest float layer (vs float). `hot`: weights in cache, `cold`: weights from memory. A layer "
            "that failed at one of the shapes has no figure here."
        )
    if counted is not None:
        note.append(f"Memory columns at {shape_text(counted)}; max: what the format allows before scales.")
    table = Table("overview", "Every layer at a glance", columns, rows, " ".join(note), filterable=True)
    return Section("overview", "Overview", tables=[without_empty(table)])


def _row(summary: Summary, layer: str, found: list[Total | None]) -> list[Cell]:
    ledger = ledger_case(summary, layer)
    model = model_case(summary, layer)
    decode = case_with(summary, "decode", layer, "decode.tokens_per_second")
    perplexity = case_with(summary, "perplexity", layer, "quality.perplexity")
    return [
        name_cell(layer, describe_layer(summary.layers[layer])),
        _value(ledger, "memory.bits_per_weight"),
        _ratio_and_bound(ledger),
        _value(ledger, "memory.weight_ratio_bf16", "x"),
        _value(model, "memory.model_ratio", "x"),
        _perplexity(perplexity, summary, layer),
        _accuracy(case_with(summary, "image_accuracy", layer, "quality.accuracy"), summary, layer),
        _tokens(decode, summary, layer),
        *(_speed(total, layer, summary) for total in found),
        _use(summary, layer),
    ]


def _use(summary: Summary, layer: str) -> Cell:
    """Utilisation of both processors: what was not measured says n/a."""
    cpu, gpu = (mean_share(summary, layer, f"{name}.utilisation") for name in ("cpu", "gpu"))
    if cpu is None and gpu is None:
        return absent()
    note = f"GPU {ABSENT if gpu is None else percent(gpu)}"
    if cpu is None:
        return Cell(f"CPU {ABSENT}", (note,), sort=float("inf"))
    return Cell(f"CPU {percent(cpu)}", (note,), sort=cpu)


def _value(case: CaseSummary | None, metric: str, unit: str = "") -> Cell:
    if case is None:
        return absent()
    return figure_cell(case.value(metric), unit, case=case.case.id, why=_why(case))


def _why(case: CaseSummary) -> str:
    return "" if case.ok else case.status


def why_absent(summary: Summary, workload: str, layer: str) -> str:
    """Status of the case that should have given a figure."""
    return next((case.status for case in summary.select(workload, layer) if not case.ok), "")


def format_bound(case: CaseSummary) -> float | None:
    """The largest ratio to fp32 that the format can give, before scales."""
    bits = case.value("memory.format_bits")
    return None if bits is None or bits.value <= 0 else 32 / bits.value


def _ratio_and_bound(case: CaseSummary | None) -> Cell:
    if case is None:
        return absent()
    bound = format_bound(case)
    notes = [f"max {plain(bound, 3)}x"] if bound is not None else []
    return figure_cell(case.value("memory.weight_ratio"), "x", case=case.case.id, notes=notes, why=_why(case))


def _speed(total: Total | None, layer: str, summary: Summary) -> Cell:
    if total is None:
        return absent()
    latency = total.latency.estimate()
    time = f"{estimate(latency, 's')} {spread(latency)}".strip()
    if total.speedup is None:
        return Cell(time, sort=latency.value)
    speedup = total.speedup.estimate()
    word = verdict_text(total.verdict)
    notes = [time] if layer == summary.baseline else [interval(speedup, "x"), word, time]
    if total.speedup_best_float is not None and layer != total.best_float:
        notes.append(f"{estimate(total.speedup_best_float.estimate(), 'x')} vs float")
    text = "1x" if layer == summary.baseline else estimate(speedup, "x")
    return Cell(text, tuple(n for n in notes if n), sort=speedup.value, tone=verdict_tone(total.verdict))


def verdict_text(verdict: Verdict | None) -> str:
    """The word of a verdict; an undecided one says which difference it would have seen."""
    if verdict is None:
        return ""
    if verdict.word is Word.INCONCLUSIVE and verdict.detectable is not None:
        return f"{verdict.word.value} (would see {plain(100 * verdict.detectable, 2)} %)"
    return verdict.word.value


def _tokens(case: CaseSummary | None, summary: Summary, layer: str) -> Cell:
    if case is None:
        return absent(why_absent(summary, "decode", layer))
    notes = []
    if layer != summary.baseline and (speedup := case.value("time.speedup")) is not None:
        notes.append(estimate(speedup, "x"))
    return figure_cell(case.value("decode.tokens_per_second"), "", case=case.case.id, notes=notes)


def _perplexity(case: CaseSummary | None, summary: Summary, layer: str) -> Cell:
    if case is None:
        return absent(why_absent(summary, "perplexity", layer))
    notes = []
    if layer != summary.baseline and (ratio := case.value("quality.perplexity_ratio")) is not None:
        notes.append(estimate(ratio, "x"))
    return figure_cell(case.value("quality.perplexity"), "", case=case.case.id, notes=notes)


def _accuracy(case: CaseSummary | None, summary: Summary, layer: str) -> Cell:
    """Share of images that are classified right; below it the change from the baseline."""
    if case is None:
        return absent(why_absent(summary, "image_accuracy", layer))
    found, change = case.value("quality.accuracy"), case.value("quality.accuracy_change")
    if found is None:
        return absent()
    notes = () if layer == summary.baseline or change is None else (in_points(change),)
    return Cell(in_percent(found), notes, sort=found.value, case=case.case.id)
