from __future__ import annotations

import io

import pytest
from rich.console import Console

from bitbench.execute.progress import LiveSink, Pace, PlainSink, duration, result_line, sink_for, time_text
from bitbench.store.schema import Case, Record, Status

CASE = Case(
    id="c1",
    point="p1",
    workload="linear",
    entry=0,
    phase="timed",
    replicate="launches",
    launches=2,
    layer="ternary",
    params={"shape": [8, 8], "tokens": 1},
    numerics="n",
)
GOOD = Record(case="c1", launch=0, status=Status.OK, calls=10, samples_ns=[412_000, 400_000, 420_000])
BAD = Record(case="c1", launch=0, status=Status.OOM, reason="no room")


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=100), out


def test_one_line_says_the_outcome() -> None:
    assert result_line(CASE, GOOD) == "linear/8x8/tokens=1/ternary  41.2 us"
    assert result_line(CASE, BAD) == "linear/8x8/tokens=1/ternary  oom: no room"
    scored = Record(case="c1", launch=0, status=Status.OK, metrics={"quality.perplexity": 20.391})
    assert result_line(CASE, scored).endswith("perplexity 20.39")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59, "59 s"), (125, "2 min 05 s"), (3720, "1 h 02 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.0, "2 s"), (1.5e-3, "1.5 ms"), (41.2e-6, "41.2 us"), (5e-8, "50 ns")]
)
def test_times(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


def test_remaining_time_follows_how_the_estimate_has_held(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(10, 100.0)
    assert pace.remaining() == 100.0
    for _ in range(5):
        pace.advance(10.0)
    monkeypatch.setattr(Pace, "elapsed", lambda self: 100.0)  # twice as slow as estimated
    assert pace.remaining() == pytest.approx(100.0)


def test_plain_lines_tell_each_failure_once_and_the_end() -> None:
    target, out = console(terminal=False)
    sink = sink_for(target)
    assert isinstance(sink, PlainSink)
    sink.started(3, 1.0)
    sink.at("launch-0", CASE, "build")
    sink.recorded(CASE, BAD, 0.3)
    sink.recorded(CASE, BAD, 0.3)
    sink.recorded(CASE, GOOD, 0.3)
    sink.finished()
    lines = out.getvalue().splitlines()
    assert lines == [
        "linear/8x8/tokens=1/ternary  oom: no room",
        "[3/3 in 0 s] linear/8x8/tokens=1/ternary  41.2 us",
    ]


def test_live_display_shows_point_progress_and_last_results() -> None:
    target, out = console(terminal=True)
    sink = sink_for(target)
    assert isinstance(sink, LiveSink)
    sink.started(2, 1.0)
    sink.at("launch-0", CASE, "time")
    sink.recorded(CASE, BAD, 0.5)
    sink.note("a remark")
    sink.finished()
    text = out.getvalue()
    for part in ("launch-0: linear/8x8/tokens=1/ternary (time)", "1/2", "oom: no room", "a remark"):
        assert part in text
