from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.errors import UserError
from bitbench.store.baseline import (
    Baseline,
    accept,
    baseline_beside,
    changes,
    load_baseline,
    render,
    save_baseline,
)
from bitbench.store.figures import Figure, FigureSet

values = st.floats(allow_nan=False) | st.integers(0, 2**53).map(float)
exact = st.builds(Figure, kind=st.just("exact"), value=values)
accuracy = st.builds(Figure, kind=st.just("accuracy"), value=values, tolerance=st.floats(0, 1))
times = st.builds(
    Figure,
    kind=st.just("time"),
    value=st.floats(1e-3, 1e3),
    log_mean=st.floats(-7, 7),
    log_sd=st.none() | st.floats(0, 1),
    launches=st.integers(0, 100),
)
figures = st.dictionaries(
    st.text(max_size=8),
    st.dictionaries(
        st.sampled_from(["memory.layer_bytes", "quality.perplexity", "time.speedup"]),
        exact | accuracy | times,
        min_size=1,
    ),
    max_size=4,
)
sets = st.builds(
    FigureSet,
    source=st.text(max_size=8),
    machine=st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5), max_size=3),
    figures=figures,
)


def byte(value: float) -> Figure:
    return Figure(kind="exact", value=value)


def ratio(mean: float, sd: float = 0.004, launches: int = 10) -> Figure:
    return Figure(kind="time", value=2.718281828459045**mean, log_mean=mean, log_sd=sd, launches=launches)


def of(**own: Figure) -> FigureSet:
    return FigureSet(
        source="suites/s.yaml", figures={label: {"memory.layer_bytes": f} for label, f in own.items()}
    )


@given(sets, sets, st.text(min_size=1, max_size=20))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, a: FigureSet, b: FigureSet, why: str
) -> None:
    path = tmp_path_factory.mktemp("b") / "x.baseline.json"
    made = accept(accept(None, a, who="A", why=why), b, who="B", why="again", source="run-1", commit="1a2b")
    save_baseline(path, made)
    assert load_baseline(path) == made


@given(sets)
def test_accepting_the_same_again_moves_nothing(figures: FigureSet) -> None:
    first = accept(None, figures, who="A", why="first")
    again = accept(first, figures, who="A", why="again")
    assert again.log[-1].moved == []
    assert again.log[-1].added == 0
    assert first.log[0].added == sum(len(own) for own in figures.figures.values())


@given(sets, sets)
def test_every_difference_is_counted_once(a: FigureSet, b: FigureSet) -> None:
    moved, added = changes(a.figures, b.figures)
    names = {(label, metric) for label, own in a.figures.items() for metric in own}
    new = {(label, metric) for label, own in b.figures.items() for metric in own}
    assert added == len(new - names)
    assert {(m.label, m.metric) for m in moved} <= names
    assert {(m.label, m.metric) for m in moved if m.after is None} == names - new


def test_the_log_says_who_why_and_what_moved() -> None:
    first = accept(None, of(a=byte(100), b=byte(5)), who="Ada", why="first figures")
    second = accept(
        first, of(a=byte(104), c=byte(1)), who="Bob", why="rows are padded", source="run-2", commit="1a2b3c"
    )
    entry = second.log[1]
    assert (entry.who, entry.why, entry.source, entry.commit, entry.added) == (
        "Bob", "rows are padded", "run-2", "1a2b3c", 1,
    )  # fmt: skip
    assert [(m.label, m.before, m.after) for m in entry.moved] == [("a", 100, 104), ("b", 5, None)]
    assert second.log[0] == first.log[0]
    moved = json.loads(render(second))["log"][1]["moved"]
    assert moved[0] == {"label": "a", "metric": "memory.layer_bytes", "from": 100, "to": 104}


def test_a_ratio_measured_again_is_no_move_until_it_leaves_its_noise() -> None:
    def moved(mean: float, sd: float = 0.004) -> int:
        return len(changes({"a": {"time.speedup": ratio(0.5)}}, {"a": {"time.speedup": ratio(mean, sd)}})[0])

    assert moved(0.505) == 0
    assert moved(0.53) == 1
    assert moved(0.53, sd=0.2) == 0


def test_a_figure_is_a_line_so_that_a_diff_shows_what_moved() -> None:
    before = render(accept(None, of(a=byte(100), b=byte(5)), who="A", why="w"))
    after = render(accept(None, of(a=byte(101), b=byte(5)), who="A", why="w"))
    differing = [
        line for line in after.splitlines() if line not in before.splitlines() and '"when"' not in line
    ]
    assert differing == ['    "memory.layer_bytes": {"kind": "exact", "value": 101.0}']


def test_its_place_is_beside_the_suite() -> None:
    assert baseline_beside("suites/gate.yaml") == Path("suites/gate.baseline.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 1, "figures": {"source"', "cannot be read"),
        ("[]", "names no schema version"),
        ('{"figures": {}}', "names no schema version"),
        ('{"schema_version": true, "figures": {"source": ""}}', "names no schema version"),
        ('{"schema_version": 2, "figures": {"source": ""}}', "reads up to 1"),
        ('{"schema_version": 1, "figures": {}}', "is damaged: figures.source"),
        (
            '{"schema_version": 1, "figures": {"source": "", "figures": {"a": {"memory.nothing": '
            '{"kind": "exact", "value": 1}}}}}',
            "unknown metric 'memory.nothing'",
        ),
        (
            '{"schema_version": 1, "figures": {"source": "", "figures": {"a": {"time.speedup": '
            '{"kind": "time", "value": -1}}}}}',
            "is damaged: figures.figures.a.time.speedup: a ratio of times must be above 0",
        ),
    ],
)
def test_a_file_that_is_no_baseline_is_refused_with_a_reason(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(UserError, match=str(path)) as caught:
        load_baseline(path)
    assert message in str(caught.value)


def test_a_missing_baseline_names_the_command_that_makes_one(tmp_path: Path) -> None:
    path = tmp_path / "gate.baseline.json"
    with pytest.raises(UserError) as caught:
        load_baseline(path)
    assert f"bitbench baseline accept SOURCE --baseline {path} --why" in caught.value.remedy


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        save_baseline(tmp_path / "no" / "b.json", Baseline(figures=of(a=byte(1))))
