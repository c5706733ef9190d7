"""Plots as inline SVG that follows the page: its fonts, its colours, light or dark.

Drawn by matplotlib with marker colours that are then replaced by CSS variables, and with text kept
as text, so that a plot in dark mode is as readable as the paragraph above it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bitbench.analysis.aggregate import headline_points, totals
from bitbench.analysis.statistics import Estimate
from bitbench.analysis.summary import Summary
from bitbench.report.memory import TERNARY_ENTROPY_BOUND
from bitbench.report.numbers import estimate as number
from bitbench.report.numbers import plain, shape_text
from bitbench.report.overview import case_with, format_bound, ledger_case, ledger_shape
from bitbench.report.tables import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# Placeholder colours, replaced by CSS variables after drawing. No other colour may be used.
INK, FAINT, PAPER = "#010203", "#040506", "#070809"
SERIES = [f"#0a0b{i:02x}" for i in range(10)]
_VARIABLES = {
    **{INK: "currentColor", FAINT: "var(--line)", PAPER: "var(--paper)"},
    **{c: f"var(--s{i})" for i, c in enumerate(SERIES)},
}
MARKERS = "os^DvPX<>*"
"""One for each colour: nobody needs to tell two colours apart."""

WIDTH, HEIGHT = 5.2, 3.4
"""Inches, at 72 units an inch: small enough that the text stays readable on a telephone."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bitbench",
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def figures(summary: Summary) -> dict[str, list[Figure]]:
    """All plots that the data allow, by the id of the section they belong to."""
    caches = dict.fromkeys(point.cache for point in headline_points(summary))
    speed = [_speedup(summary, cache) for cache in caches]
    return {
        "speed": [figure for figure in speed if figure is not None],
        "decode": _present(_decode(summary)),
        "accuracy": _present(_pareto(summary)),
        "memory": _present(_memory(summary)),
    }


def _present(figure: Figure | None) -> list[Figure]:
    return [] if figure is None else [figure]


def colour(summary: Summary, layer: str) -> str:
    """The colour of a layer, the same in every plot."""
    return SERIES[list(summary.layers).index(layer) % len(SERIES)]


def marker(summary: Summary, layer: str) -> str:
    """The marker of a layer, the same in every plot."""
    return MARKERS[list(summary.layers).index(layer) % len(MARKERS)]


def svg(name: str, draw: Callable[[Canvas, Axes], None], height: float = HEIGHT) -> str:
    """Draw on a fresh canvas and return the SVG element, its ids prefixed with ``name``."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(canvas)
        draw(canvas, canvas.subplots())
        buffer = io.StringIO()
        canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _embeddable(buffer.getvalue(), name)


def _embeddable(text: str, name: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sid="([^"]+)"', rf' id="{name}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'<svg ([^>]*?)width="[^"]+"', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)height="[^"]+"', r"<svg \1", text, count=1)
    # Family from the page; matplotlib quotes its own inside the style attribute.
    text = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, variable)
    return text


def _log_ticks(axis: Any) -> None:
    """Plain numbers on a logarithmic axis, at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    narrow = high / max(low, 1e-300) < 300
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value, 1)))
    axis.set_minor_formatter(NullFormatter())


def _bars(found: Estimate) -> tuple[list[list[float]], bool]:
    """Error bars of one point in matplotlib's form, and whether there are any."""
    if found.low is None or found.high is None:
        return [[0.0], [0.0]], False
    return [[found.value - found.low], [found.high - found.value]], True


def _speedup(summary: Summary, cache: str) -> Figure | None:
    points = [point for point in headline_points(summary) if point.cache == cache]
    found = {point: totals(summary, point) for point in points}
    lines: dict[str, list[tuple[int, Estimate]]] = {}
    for layer in summary.layers:
        for point in points:
            total = found[point].get(layer)
            if total is not None and total.speedup is not None and layer != summary.baseline:
                lines.setdefault(layer, []).append((point[0], total.speedup.estimate()))
    if not lines:
        return None
    where = "in cache" if cache == "hot" else "from memory"
    bars_drawn = any(estimate.has_interval for values in lines.values() for _, estimate in values)
    caption = (
        f"One call of each shape{'; bars are 95 % intervals over launches' if bars_drawn else ''}. "
        "The line at 1 is the baseline."
    )
    if len(points) == 1:
        ranked = [(layer, values[0][1]) for layer, values in lines.items()]
        return Figure(
            f"speedup-{cache}",
            f"Speed-up at M={points[0][0]}, weights {where}",
            caption,
            svg(f"speedup-{cache}", _dots(summary, ranked), 1.1 + 0.3 * len(ranked)),
        )

    def draw(canvas: Canvas, axes: Axes) -> None:
        axes.axhline(1.0, color=INK, linewidth=1)
        for layer, values in lines.items():
            tone = colour(summary, layer)
            xs = [tokens for tokens, _ in values]
            ys = [estimate.value for _, estimate in values]
            axes.plot(
                xs, ys, color=tone, marker=marker(summary, layer), markersize=5, linewidth=1.6, label=layer
            )
            for x, estimate in values:
                bars, present = _bars(estimate)
                if present:
                    axes.errorbar([x], [estimate.value], yerr=bars, color=tone, capsize=3, linewidth=1.2)
        axes.set_xscale("log")
        axes.set_yscale("log")
        centres = [estimate.value for values in lines.values() for _, estimate in values]
        # A few noisy launches can give bars over orders of magnitude: the points set the frame.
        axes.set_ylim(min(0.8, min(centres) / 1.6), max(1.25, max(centres) * 1.6))
        tokens = [point[0] for point in points]
        _log_ticks(axes.yaxis)
        axes.set_xticks(tokens, [str(t) for t in tokens])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("tokens in a call (M)")
        axes.set_ylabel(f"speed-up against {summary.baseline}")
        canvas.legend(loc="outside lower center", ncols=3, handlelength=1.4, columnspacing=1.2)

    return Figure(
        f"speedup-{cache}",
        f"Speed-up by tokens, weights {where}",
        caption,
        svg(f"speedup-{cache}", draw, HEIGHT + 0.4),
    )


def _dots(summary: Summary, ranked: list[tuple[str, Estimate]]) -> Callable[[Canvas, Axes], None]:
    """One number a layer: a row each, with its name and its value."""

    def draw(canvas: Canvas, axes: Axes) -> None:  # noqa: ARG001 - the signature all plots share
        axes.axvline(1.0, color=INK, linewidth=1)
        for row, (layer, found) in enumerate(ranked):
            tone = colour(summary, layer)
            bars, present = _bars(found)
            axes.plot([1.0, found.value], [row, row], color=tone, linewidth=1.6)
            axes.errorbar(
                [found.value], [row], xerr=bars if present else None, color=tone, capsize=3,
                marker=marker(summary, layer), markersize=6, linestyle="none",
            )  # fmt: skip
            _beside(axes, number(found, "x"), (found.value, row), (8, 5 if present else 0))
        axes.set_xscale("log")
        values = [found.value for _, found in ranked]
        axes.set_xlim(min(0.8, min(values) / 1.3), max(1.25, max(values) * 1.9))
        _log_ticks(axes.xaxis)
        axes.set_yticks(range(len(ranked)), [layer for layer, _ in ranked])
        axes.set_ylim(len(ranked) - 0.5, -0.5)
        axes.grid(False, axis="y")
        axes.set_xlabel(f"speed-up against {summary.baseline}")

    return draw


def _beside(axes: Axes, text: str, at: tuple[float, float], offset: tuple[int, int] = (5, 0)) -> None:
    """A value beside its mark, on the page's own ground so that no line runs through it."""
    ground = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.8}
    axes.annotate(text, at, offset, textcoords="offset points", va="center", bbox=ground)


def _pareto(summary: Summary) -> Figure | None:
    points: list[tuple[str, float, Estimate]] = []
    for layer in summary.layers:
        ledger = ledger_case(summary, layer)
        bits = None if ledger is None else ledger.value("memory.bits_per_weight")
        case = case_with(summary, "perplexity", layer, "quality.perplexity")
        quality = None if case is None else case.value("quality.perplexity")
        if bits is not None and quality is not None:
            points.append((layer, bits.value, quality))
    if len(points) < 2:
        return None
    front = [p for p in points if not any(_dominates(q, p) for q in points)]
    front.sort(key=lambda p: p[1])
    bars_drawn = any(quality.has_interval for _, _, quality in points)

    def draw(canvas: Canvas, axes: Axes) -> None:
        axes.plot([p[1] for p in front], [p[2].value for p in front], color=INK, linewidth=1, linestyle=":")
        for layer, bits, quality in points:
            tone = colour(summary, layer)
            bars, present = _bars(quality)
            axes.errorbar(
                [bits], [quality.value], yerr=bars if present else None, color=tone, capsize=3,
                marker=marker(summary, layer), markersize=7, linestyle="none", label=layer,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_yscale("log")
        _log_ticks(axes.yaxis)
        axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("bits per weight, scales included")
        axes.set_ylabel("perplexity (lower is better)")
        canvas.legend(loc="outside lower center", ncols=3, handlelength=1.4, columnspacing=1.2)

    return Figure(
        "pareto",
        "Accuracy against memory",
        f"{'Bars are 95 % intervals over documents. ' if bars_drawn else ''}The dotted line joins the layers "
        "that no other layer is shown to beat in both; where intervals overlap, none is shown to.",
        svg("pareto", draw, HEIGHT + 0.4),
    )


def _dominates(one: tuple[str, float, Estimate], other: tuple[str, float, Estimate]) -> bool:
    """``one`` is no larger and surely more accurate, or smaller and surely no less accurate."""
    low, high = other[2].bounds or (other[2].value, other[2].value)
    own_low, own_high = one[2].bounds or (one[2].value, one[2].value)
    if one[1] <= other[1] and own_high < low:
        return True
    return one[1] < other[1] and (own_low, own_high) == (low, high)


def _memory(summary: Summary) -> Figure | None:
    shape = ledger_shape(summary)
    found: list[tuple[str, Estimate, float | None]] = []
    for layer in summary.layers:
        case = ledger_case(summary, layer)
        ratio = None if case is None else case.value("memory.weight_ratio")
        if case is not None and ratio is not None:
            found.append((layer, ratio, format_bound(case)))
    if not found:
        return None

    def draw(canvas: Canvas, axes: Axes) -> None:  # noqa: ARG001 - the signature all plots share
        for row, (layer, ratio, bound) in enumerate(found):
            axes.barh(row, ratio.value, color=colour(summary, layer), height=0.62)
            if bound is not None:
                axes.plot([bound, bound], [row - 0.42, row + 0.42], color=INK, linewidth=1.6)
            _beside(axes, number(ratio, "x"), (max(ratio.value, bound or 0.0), row))
        axes.axvline(TERNARY_ENTROPY_BOUND, color=INK, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(found)), [layer for layer, _, _ in found])
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_xlim(0, 1.18 * max(max(ratio.value, bound or 0.0) for _, ratio, bound in found))
        axes.set_xlabel("times smaller than fp32, scales included")

    return Figure(
        "memory-ratio",
        f"Weight memory against fp32, {shape_text(shape)}",
        "The tick ends where the format would be without scales; the dotted line is the entropy bound of "
        f"ternary weights, {plain(TERNARY_ENTROPY_BOUND, 4)}x.",
        svg("memory-ratio", draw, 0.9 + 0.3 * len(found)),
    )


def _decode(summary: Summary) -> Figure | None:
    parts = [("blocks", SERIES[0]), ("head", SERIES[6]), ("rest", SERIES[1])]
    found: list[tuple[str, list[float]]] = []
    for layer in summary.layers:
        case = case_with(summary, "decode", layer, "decode.blocks_share")
        if case is None:
            continue
        shares = [case.value(f"decode.{name}_share") for name, _ in parts]
        latency = case.value("time.latency")
        if latency is not None and all(share is not None for share in shares):
            found.append(
                (layer, [1e3 * latency.value * share.value for share in shares if share is not None])
            )
    if not found:
        return None

    def draw(canvas: Canvas, axes: Axes) -> None:
        for row, (_, times) in enumerate(found):
            left = 0.0
            for (name, tone), time in zip(parts, times, strict=True):
                axes.barh(row, time, left=left, color=tone, height=0.62, label=name if row == 0 else None)
                left += time
        axes.set_yticks(range(len(found)), [layer for layer, _ in found])
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_xlabel("milliseconds a token")
        canvas.legend(loc="outside lower center", ncols=3, handlelength=1.4)

    return Figure(
        "decode-split",
        "Where a token's time goes",
        "Blocks hold the converted layers, the head too where it is converted; what is not sets the ceiling.",
        svg("decode-split", draw, 1.2 + 0.3 * len(found)),
    )
