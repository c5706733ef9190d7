"""The answer in a few plain sentences, made from the data and nothing else."""

from __future__ import annotations

from bitbench.analysis.aggregate import Point, Total, common_shapes, headline_points, totals
from bitbench.analysis.summary import CaseSummary, Summary
from bitbench.report.numbers import estimate, in_percent, plain, shape_text, with_interval
from bitbench.report.overview import case_with, format_bound, ledger_case, ledger_shape, model_case
from bitbench.store.metrics import METRICS

QUESTION = (
    "Can binary, ternary or k-ternary layers replace nn.Linear: how much memory do they save, are they "
    "faster on this machine, and what do they cost in accuracy?"
)
_PREFERRED = ("ternary", "binary", "k_ternary")


def headline_layer(summary: Summary) -> str | None:
    """The layer the answer speaks of: the first packed ternary one, else binary, else k-ternary,
    else any that is neither the baseline nor ``nn.Linear``."""
    packed = {name: spec for name, spec in summary.layers.items() if spec.get("form", "packed") == "packed"}
    for kind in _PREFERRED:
        for name, spec in packed.items():
            if spec.get("kind") == kind:
                return name
    others = [
        n for n, spec in summary.layers.items() if n != summary.baseline and spec.get("kind") != "linear"
    ]
    return others[0] if others else None


def answer(summary: Summary) -> list[str]:
    """Sentences on memory, speed, decoding, accuracy and training; those without data are left out."""
    layer = headline_layer(summary)
    if layer is None:
        return ["This suite has no low-bit layer to judge."]
    found = [
        _memory(summary, layer),
        _speed(summary, layer),
        _decode(summary, layer),
        _accuracy(summary, layer),
        _images(summary, layer),
        _training(summary, layer),
    ]
    sentences = [sentence for sentence in found if sentence]
    if not sentences:
        sentences.append(f"Nothing was measured for `{layer}`; the failures below say why.")
    return sentences


def caveats(summary: Summary) -> list[str]:
    """What a reader must know before believing the answer."""
    notes = [f"{text[:1].upper()}{text[1:]}." for text in summary.run.warnings]
    if summary.quick:
        notes.append(
            "Quick run: figures are indications without verdicts. Two launches give no interval; "
            "`n=2: a to b` are the two values."
        )
    failed = [case for case in summary.cases if not case.ok]
    if failed:
        notes.append(f"{len(failed)} of {len(summary.cases)} cases have no result; see Failures.")
    incomplete = [case for case in summary.cases if case.ok and not case.complete]
    if incomplete:
        notes.append(f"{len(incomplete)} cases have fewer launches than planned: the run was cut short.")
    return notes


def _memory(summary: Summary, layer: str) -> str:
    case = ledger_case(summary, layer)
    if case is None or (ratio := case.value("memory.weight_ratio")) is None:
        return ""
    bound = format_bound(case)
    text = f"Packed `{layer}` weights take **{estimate(ratio, 'x')} less memory than fp32**, scales included"
    if bound is not None:
        text += f" (the format allows {plain(bound, 3)}x)"
    shape = ledger_shape(summary)
    text += f", at {shape_text(shape)}"
    if (bf16 := case.value("memory.weight_ratio_bf16")) is not None:
        text += f", and {estimate(bf16, 'x')} less than bf16"
    model = model_case(summary, layer)
    if model is not None and (whole := model.value("memory.model_ratio")) is not None:
        name = model.case.params.get("model", "model")
        text += f"; the whole {name} model shrinks {estimate(whole, 'x')}, because part of it stays float"
    return text + "."


def _speed(summary: Summary, layer: str) -> str:
    chosen: list[tuple[Point, Total]] = []
    for point in headline_points(summary):
        total = totals(summary, point).get(layer)
        if total is not None and total.speedup is not None:
            chosen.append((point, total))
    if not chosen:
        return ""
    count = max(len(common_shapes(summary, point)) for point, _ in chosen)
    over = f"{count} shapes added up" if count > 1 else "one shape"
    words = {total.verdict.word.value if total.verdict is not None else "" for _, total in chosen}
    if len(words) == 1 and (word := words.pop()) in ("faster", "slower"):
        text = f"It is {word} than `{summary.baseline}` at every point measured ({over}): "
        parts = [_phrase(point, total, judged=False) for point, total in chosen]
    else:
        text = f"Its speed against `{summary.baseline}` ({over}): "
        parts = [_phrase(point, total, judged=True) for point, total in chosen]
    text += f"{_listed(parts)}."
    against = [
        (f"{estimate(total.speedup_best_float.estimate(), 'x')} at {point.title}", total.best_float)
        for point, total in chosen
        if total.speedup_best_float is not None
    ]
    names = list(dict.fromkeys(name for _, name in against))
    if names and names != [summary.baseline]:
        quoted = " or ".join(f"`{name}`" for name in names)
        text += f" Against the fastest float layer ({quoted}): {_listed([part for part, _ in against])}."
    return text


def _phrase(point: Point, total: Total, *, judged: bool) -> str:
    speedup = total.speedup.estimate() if total.speedup is not None else None
    word = f" ({total.verdict.word.value})" if judged and total.verdict is not None else ""
    value, _, rest = with_interval(speedup, "x").partition(" ")
    return f"**{value}**{f' {rest}' if rest else ''}{word} at {point.title}"


def _decode(summary: Summary, layer: str) -> str:
    case = case_with(summary, "decode", layer, "decode.tokens_per_second")
    if case is None:
        return ""
    text = (
        f"The whole {case.case.params.get('model', 'model')} model decodes "
        f"**{estimate(case.value('decode.tokens_per_second'))} tokens/s** with it"
    )
    if (speedup := case.value("time.speedup")) is not None:
        text += f", {with_interval(speedup, 'x')} against `{summary.baseline}`"
    if (ceiling := case.value("decode.ceiling")) is not None:
        text += f"; what is not converted caps the gain at {estimate(ceiling, 'x')}"
    return text + "."


def _accuracy(summary: Summary, layer: str) -> str:
    case = case_with(summary, "perplexity", layer, "quality.perplexity")
    base = case_with(summary, "perplexity", summary.baseline, "quality.perplexity")
    if case is None:
        return ""
    text = f"Converted without retraining, `{layer}` has perplexity {_quality(case)}"
    if base is not None:
        text += f", against {estimate(base.value('quality.perplexity'))} for the float weights"
    if (ratio := case.value("quality.perplexity_ratio")) is not None:
        text += f" ({estimate(ratio, 'x')})"
    best = _best(summary, case.case.point, "quality.perplexity")
    if best is not None and best.case.layer != layer:
        text += f"; the most accurate low-bit layer is `{best.case.layer}` with {_quality(best)}"
        if (ratio := best.value("quality.perplexity_ratio")) is not None:
            text += f" ({estimate(ratio, 'x')})"
        ledger = ledger_case(summary, best.case.layer)
        if ledger is not None and (saved := ledger.value("memory.weight_ratio")) is not None:
            text += f", at {estimate(saved, 'x')} less memory than fp32"
    return text + "."


def _images(summary: Summary, layer: str) -> str:
    """What a converted image classifier still gets right, with this layer and with the best low-bit one."""
    metric = "quality.accuracy"
    case = case_with(summary, "image_accuracy", layer, metric)
    if case is None:
        return ""
    # Other points score other images, or norms taken anew: beside those it has no meaning.
    here = [other for other in summary.cases if other.case.point == case.case.point]
    base = next((other for other in here if other.case.layer == summary.baseline), None)
    if base is None or metric not in base.series:
        return ""
    text = (
        f"Converted without retraining, `{layer}` convolutions leave {case.case.params['model']} "
        f"**{_right(case)}** of the test images right, against {_right(base)} with float ones"
    )
    best = _best(summary, case.case.point, metric)
    if best is not None and best.case.layer != layer:
        text += f"; the most accurate low-bit layer is `{best.case.layer}` with **{_right(best)}**"
        weighed = next(
            (
                c
                for c in summary.select("image_accuracy", best.case.layer)
                if "memory.weight_ratio" in c.series
            ),
            None,
        )
        if weighed is not None and (saved := weighed.value("memory.weight_ratio")) is not None:
            text += f", its weights at {estimate(saved, 'x')} less memory than fp32"
    return text + "."


def _right(case: CaseSummary) -> str:
    found = case.value("quality.accuracy")
    return "" if found is None else in_percent(found)


def _training(summary: Summary, layer: str) -> str:
    """What training with the layer gave, against the baseline trained the same way."""
    parts = []
    for workload, metric, said in (
        ("pretrain", "training.bits_per_byte", "bits per byte on held-out text"),
        ("classify", "training.accuracy", "of held-out images classified right"),
    ):
        case = case_with(summary, workload, layer, metric)
        base = case_with(summary, workload, summary.baseline, metric)
        if case is None or base is None:
            continue
        share = metric == "training.accuracy"
        own, other = (_share_or_value(found, metric, share) for found in (case, base))
        parts.append(f"**{own}** {said} against {other}")
    if not parts:
        return ""
    return f"Trained with it from scratch, `{layer}` reaches {_listed(parts)} for `{summary.baseline}`."


def _share_or_value(case: CaseSummary, metric: str, share: bool) -> str:
    found = case.value(metric)
    return f"{plain(100 * found.value, 3)} %" if share and found is not None else estimate(found)


def _quality(case: CaseSummary) -> str:
    value, _, rest = with_interval(case.value("quality.perplexity")).partition(" ")
    return f"**{value}** {rest}".strip()


def _best(summary: Summary, point: str, metric: str) -> CaseSummary | None:
    """The low-bit layer with the best figure at a point: neither float nor 8-bit weights. The one named first
    of several that are equal."""
    low_bit = {name for name, spec in summary.layers.items() if spec.get("kind") in _PREFERRED}
    sign = 1 if METRICS[metric].better == "lower" else -1
    cases = [
        (sign * found.value, case)
        for case in summary.cases
        if case.case.point == point
        and case.case.layer in low_bit
        and (found := case.value(metric)) is not None
    ]
    return min(cases, key=lambda pair: pair[0])[1] if cases else None


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
