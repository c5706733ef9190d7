"""Tables of single layers' speed for a page that somebody writes, such as a README.

The page holds blocks that name a suite and a shape, and, where the suite's entry does, threads::

    <!-- performance: kernels 4096x4096 threads=1 -->
    <!-- end of performance -->

``bitbench report RUN --into PAGE`` fills those of the run's suite. What a block holds says which run it
is from, so that a test can hold it against the stored one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from bitbench.analysis.aggregate import linear_points
from bitbench.analysis.summary import CaseSummary, Summary, summarise
from bitbench.errors import UserError
from bitbench.report.markdown import inline
from bitbench.report.numbers import ABSENT, percent, quantity
from bitbench.report.provenance import machine
from bitbench.store.reader import load_run
from bitbench.store.writer import write_atomically

_BLOCK = re.compile(
    r"(?P<head><!-- performance: (?P<suite>\S+) (?P<rows>\d+)x(?P<columns>\d+)"
    r"(?: threads=(?P<threads>\d+))? -->\n)"
    r"(?P<body>.*?)(?P<tail><!-- end of performance -->)",
    re.DOTALL,
)
_RUN = re.compile(r"stored run `(?P<run>[^`]+)`")


@dataclass(frozen=True)
class Block:
    """One block of a page."""

    suite: str
    shape: list[int]
    threads: int | None
    body: str

    @property
    def run(self) -> str:
        """Folder of the run that it is from, as written; empty where it is yet to be filled."""
        found = _RUN.search(self.body)
        return found["run"] if found else ""


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in order."""
    return [_block(found) for found in _BLOCK.finditer(page)]


def embed(page: str, summary: Summary, folder: str) -> str:
    """``page`` with the blocks of the run's suite filled; ``folder`` is what the run is called there.

    Raises :class:`UserError` where it has no such block, or the run no such layers.
    """
    suite = str(summary.run.info.suite["name"])

    def fill(found: re.Match[str]) -> str:
        block = _block(found)
        if block.suite != suite:
            return found[0]
        return f"{found['head']}{table(summary, block, folder)}\n{found['tail']}"

    if not any(block.suite == suite for block in blocks(page)):
        raise UserError(
            f"the page has no block of suite {suite!r}",
            f"write one: <!-- performance: {suite} 4096x4096 -->, and on the next line "
            "<!-- end of performance -->",
        )
    return _BLOCK.sub(fill, page)


def write_into(page: Path, run_dir: Path) -> None:
    """Fill the blocks of the file ``page`` from a stored run."""
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{page} cannot be read: {error.strerror}", "name a Markdown file") from error
    folder = f"{run_dir.resolve().parent.name}/{run_dir.resolve().name}"
    write_atomically(page, embed(text, summarise(load_run(run_dir)), folder))


def table(summary: Summary, block: Block, folder: str) -> str:
    """The body of a block: a layer a row, time of a call and share of the limit at each point."""
    points = [
        point
        for point in linear_points(summary)
        if point.threads == block.threads and point.neighbours is None
    ]
    rows = []
    for layer in summary.layers:
        cases = [summary.one("linear", layer, shape=block.shape, **point._asdict()) for point in points]
        if any(case is not None for case in cases):
            rows.append([f"`{layer}`", *(_cell(case) for case in cases)])
    kept = [i for i in range(len(points)) if any(row[i + 1] for row in rows)]
    if not kept:
        raise UserError(
            f"{folder} timed no layer of {block.shape[0]}x{block.shape[1]}"
            + ("" if block.threads is None else f" with threads={block.threads}"),
            "correct the head of the block, or take another run",
        )
    heads = ["layer", *(points[i].call for i in kept)]
    text = tabulate(
        [[row[0], *(row[i + 1] for i in kept)] for row in rows],
        headers=heads,
        tablefmt="pipe",
        disable_numparse=True,
        colalign=("left", *["right"] * len(kept)),
    )
    return f"{_caption(summary, block, folder)}\n\n{text}"


def _caption(summary: Summary, block: Block, folder: str) -> str:
    own = "" if block.threads is None else f", here with threads={block.threads}"
    return (
        f"Time of a call at {block.shape[0]} x {block.shape[1]} with M tokens, weights hot in a cache or "
        "cold from memory, and the share of the machine's measured limit that it reached, where the limit "
        f"that binds was measured. From the stored run `{folder}`: "
        f"{inline(machine(summary)).rstrip('.')}{own}."
    )


def _cell(case: CaseSummary | None) -> str:
    if case is None:
        return ""
    latency = case.value("time.latency")
    if latency is None:
        return case.status if not case.ok else ABSENT
    share = case.value("roofline.share")
    return quantity(latency.value, "s") + (f", {percent(share.value)}" if share is not None else "")


def _block(found: re.Match[str]) -> Block:
    shape = [int(found["rows"]), int(found["columns"])]
    threads = int(found["threads"]) if found["threads"] else None
    return Block(found["suite"], shape, threads, found["body"])
