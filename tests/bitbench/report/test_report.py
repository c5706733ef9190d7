"""The rendered files of the fixture run, as a reader and a browser would take them."""

from __future__ import annotations

import csv
import io
import re
import stat
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

from bitbench.analysis.summary import summarise
from bitbench.errors import UserError
from bitbench.report import html, markdown, plots, write
from bitbench.report.context import ReportContext, build
from bitbench.report.tables import Cell
from bitbench.store.reader import load_run

GOLDEN = Path(__file__).parent / "golden" / "report.md"
LAYERS = 9


@pytest.fixture(scope="module")
def folder(stored_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(stored_run, tmp_path_factory.mktemp("reports"))


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def context(stored_run: Path) -> ReportContext:
    return build(load_run(stored_run))


class Page(HTMLParser):
    """Ids, links and nesting of a document."""

    VOID = frozenset({"meta", "link", "input", "br", "path", "use", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.stack: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if identity := named.get("id"):
            self.ids.append(identity)
        for name in ("href", "src", "xlink:href", "action"):
            if value := named.get(name):
                (self.links if value.startswith("#") else self.sources).append(value)
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.stack and self.stack[-1] == tag:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.stack.pop() == tag


def test_three_files_readable_by_all(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["cases.csv", "index.html", "report.md"]
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_the_page_needs_nothing_from_outside(page: str) -> None:
    found = Page(page)
    assert [source for source in found.sources if source != "data:,"] == []
    assert "@import" not in page
    # The namespaces of SVG are names, not addresses to fetch.
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_the_page_is_well_formed(page: str) -> None:
    found = Page(page)
    assert found.stack == []
    assert len(found.ids) == len(set(found.ids)), "an id is used twice"
    assert {link[1:] for link in found.links} <= set(found.ids), "a link leads nowhere"


def test_every_figure_leads_to_its_case(page: str, stored_run: Path) -> None:
    found = Page(page)
    cases = {case.id for case in load_run(stored_run).cases}
    assert {i.removeprefix("c-") for i in found.ids if i.startswith("c-")} == cases
    linked = {link.removeprefix("#c-") for link in found.links if link.startswith("#c-")}
    assert len(linked) > 100


def test_first_screen_has_question_answer_and_claims(context: ReportContext) -> None:
    answer = " ".join(context.answer)
    for part in (
        "19.88x less memory than fp32",
        "the format allows 20.0x",
        "less than bf16",
        "whole smollm2-135m model",
        "M=1 hot",
        "M=512 hot",
        "fastest float layer",
        "perplexity **41",
    ):
        assert part in answer
    assert context.claims is not None
    assert [row[0].text for row in context.claims.rows] == [
        *("pass", "pass", "fail", "inconclusive", "not evaluated"),
    ]
    assert context.unjudged is None
    assert context.tally == "5 claims: **2 pass**, **1 fail**, **1 inconclusive**, **1 not evaluated**."


def test_failures_list_every_status_with_its_reason(context: ReportContext) -> None:
    section = next(s for s in context.sections if s.id == "failures")
    found = {row[0].text: row[4].text for row in section.tables[0].rows}
    assert set(found) == {
        *("unsupported", "oom", "timeout", "crash", "error", "incorrect", "fallback", "invalid", "missing"),
    }
    assert all(found.values())
    assert {row[0].text: row[3].text for row in section.tables[0].rows} == {
        **dict.fromkeys(found, "all"),
        "crash": "1",
        "missing": "none",
    }


def test_hostile_text_is_shown_not_run(page: str, folder: Path) -> None:
    assert "RuntimeError: &lt;b&gt;engine&lt;/b&gt; | not found" in page
    assert "<b>" not in page
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "&lt;b&gt;engine&lt;/b&gt; \\| not found" in text
    assert str(html.prose("<script>`a` **b**")) == "&lt;script&gt;<code>a</code> <strong>b</strong>"
    assert markdown.cell(Cell("a|b\n*c*", ("](x",))) == "a\\|b \\*c\\*<br>\\](x"


def test_markdown_tables_are_whole(folder: Path) -> None:
    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    columns = 0
    for line in lines:
        if line.startswith("|"):
            found = len(re.findall(r"(?<!\\)\|", line))
            assert columns in (0, found), line
            columns = found
        else:
            columns = 0


def test_markdown_of_the_whole_llm_suite_fits_a_pull_request(run_maker: ModuleType, tmp_path: Path) -> None:
    suite = Path(__file__).parents[3] / "suites" / "llm.yaml"
    context = build(load_run(run_maker.write_suite_run(tmp_path, suite)))
    text = markdown.render(context)
    assert len(text) <= markdown.LIMIT
    assert "too long for a pull request" not in text
    assert html.render(context).count("<table") >= 12


def test_markdown_that_would_be_too_long_leaves_out_the_longest_tables(context: ReportContext) -> None:
    section = next(s for s in context.sections if s.id == "speed")
    rows = section.tables[0].rows
    longer = replace(section.tables[0], rows=rows * (65_536 // len(markdown.table(section.tables[0])) + 1))
    sections = [
        replace(s, tables=[longer, *s.tables[1:]]) if s.id == "speed" else s for s in context.sections
    ]
    text = markdown.render(replace(context, sections=sections))
    assert len(text) <= markdown.LIMIT
    assert f"{longer.title}: too long for a pull request; see `index.html`" in text
    assert section.tables[1].title in text, "what fits stays"


def test_speed_cells_name_the_limit_that_binds(context: ReportContext) -> None:
    section = next(s for s in context.sections if s.id == "speed")
    assert any("reading memory 12.0 GB/s" in text for text in section.prose)
    table = section.tables[0]
    titles = [column.title for column in table.columns]
    row = next(row for row in table.rows if row[0].text == "ternary")
    assert row[titles.index("M=1 cold")].notes[-1] == "80 % of memory limit"
    assert row[titles.index("M=512 hot")].notes[-1] == "80 % of compute limit"


def test_utilisation_of_a_gpu_that_is_not_there_says_so(context: ReportContext) -> None:
    table = next(s for s in context.sections if s.id == "overview").tables[0]
    assert {row[-1].notes for row in table.rows} == {("GPU n/a",)}
    assert all(re.fullmatch(r"CPU \d+ %", row[-1].text) for row in table.rows)


def test_layers_not_planned_at_a_shape_have_no_row(run_maker: ModuleType, tmp_path: Path) -> None:
    suite = Path(__file__).parents[3] / "suites" / "llm.yaml"
    built = build(load_run(run_maker.write_suite_run(tmp_path, suite)))
    table = next(t for s in built.sections for t in s.tables if t.id == "speed-4096x4096")
    assert all(cell.text != "n/a" for row in table.rows for cell in row)


def test_markdown_matches_the_golden_file(folder: Path) -> None:
    """To accept a change on purpose: copy the written file over tests/.../golden/report.md."""
    assert (folder / "report.md").read_text(encoding="utf-8") == GOLDEN.read_text(encoding="utf-8")


def test_csv_holds_every_case_and_metric(folder: Path, stored_run: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((folder / "cases.csv").read_text(encoding="utf-8"))))
    run = load_run(stored_run)
    summary = summarise(run)
    assert {row["case"] for row in rows} == {case.id for case in run.cases}
    assert len(rows) == sum(max(1, len(case.series)) for case in summary.cases)
    keyed = {(row["case"], row["metric"]): row for row in rows}
    case = summary.one("linear", "ternary", shape=[2048, 2048], tokens=1, cache="cold")
    assert case is not None
    row, found = keyed[case.case.id, "time.speedup"], case.value("time.speedup")
    assert found is not None
    assert found.low is not None
    assert float(row["value"]) == pytest.approx(found.value)
    assert float(row["low"]) == pytest.approx(found.low)
    assert (row["n"], row["replicate"], row["verdict"], row["against"]) == (
        *("5", "launches", "faster", "linear"),
    )
    assert (row["shape"], row["tokens"], row["cache"]) == ("2048x2048", "1", "cold")
    failed = next(row for row in rows if row["status"] == "oom")
    assert failed["metric"] == ""
    assert "GiB" in failed["reason"]


def test_plots_follow_the_page(stored_run: Path) -> None:
    drawn = plots.figures(summarise(load_run(stored_run)))
    assert {section: [figure.id for figure in found] for section, found in drawn.items()} == {
        "speed": ["speedup-hot", "speedup-cold"],
        "decode": ["decode-split"],
        "accuracy": ["pareto"],
        "memory": ["memory-ratio"],
    }
    for figure in (figure for found in drawn.values() for figure in found):
        colours = set(re.findall(r"(?:fill|stroke|stop-color): ?([^;\"]+)", figure.svg))
        assert colours <= {
            "none",
            "currentColor",
            "var(--line)",
            "var(--paper)",
            *(f"var(--s{i})" for i in range(10)),
        }
        assert "<text" in figure.svg, "text must stay text"
        assert "font-family" not in figure.svg.split("<style", 1)[0]


def test_rendering_twice_gives_the_same_bytes(folder: Path, stored_run: Path, tmp_path: Path) -> None:
    again = write(stored_run, tmp_path)
    for name in ("index.html", "report.md", "cases.csv"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_the_training_run_is_cited_with_its_id(context: ReportContext) -> None:
    section = next(s for s in context.sections if s.id == "cited-training")
    assert "20251231-000000-training-aaaa" in section.prose[0]
    rows = section.tables[0].rows
    assert [row[0].text for row in rows] == ["linear", "ternary"]
    assert rows[0][2].text == "1.904"
    assert rows[1][3].text == "1.058x"


def test_without_a_training_run_the_report_says_so(run_maker: ModuleType, tmp_path: Path) -> None:
    built = build(load_run(run_maker.write_run(tmp_path)))
    section = next(s for s in built.sections if s.id == "cited-training")
    assert "No stored run" in section.prose[0]
    assert section.tables == []


def test_a_training_run_reports_itself(run_maker: ModuleType, tmp_path: Path) -> None:
    path = run_maker.write_training_run(tmp_path)
    text = (write(path, tmp_path / "reports") / "report.md").read_text(encoding="utf-8")
    assert "## Training from scratch" in text
    assert "1.904" in text


def test_quick_and_empty_runs_render(run_maker: ModuleType, tmp_path: Path) -> None:
    quick = run_maker.write_run(tmp_path / "quick", quick=True)
    text = (write(quick, tmp_path / "reports") / "report.md").read_text(encoding="utf-8")
    assert "Quick run" in text
    assert "<br>faster" not in text
    assert "(faster)" not in text
    assert "n=2: " in text
    assert "5 claims: **1 pass**, **4 not evaluated** (4 left open by a quick run)." in text
    assert "<summary>4 claims that a quick run leaves open</summary>" in text
    empty = run_maker.write_run(tmp_path / "empty", claims=[])
    (empty / "samples.jsonl").write_text("")
    (empty / "telemetry.jsonl").write_text("")
    text = (write(empty, tmp_path / "none") / "report.md").read_text(encoding="utf-8")
    assert "Nothing was measured" in text
    assert "135 of 135 cases have no result" in text


def test_a_ratio_beyond_its_format_is_called_out(run_maker: ModuleType, tmp_path: Path) -> None:
    path = run_maker.write_run(tmp_path)
    samples = path / "samples.jsonl"
    case = next(
        c for c in load_run(path).cases if c.layer == "ternary" and c.params.get("measure") == "memory"
    )
    lines = samples.read_text().splitlines()
    changed = [
        re.sub(r'"memory.weight_ratio":[\d.]+', '"memory.weight_ratio":20.5', line)
        if case.id in line
        else line
        for line in lines
    ]
    samples.write_text("\n".join(changed) + "\n")
    section = next(s for s in build(load_run(path)).sections if s.id == "memory")
    assert len(section.prose) == 1
    assert "20.5" in section.prose[0]
    assert "bytes are missing" in section.prose[0]


def test_unwritable_reports_directory_is_one_clear_message(stored_run: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot write the report") as caught:
        write(stored_run, blocked)
    assert "--reports" in str(caught.value)


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run"):
        write(tmp_path, tmp_path)
