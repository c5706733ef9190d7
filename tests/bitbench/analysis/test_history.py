"""Histories: what is joined, what is kept apart, which steps are accepted."""

from __future__ import annotations

from typing import Any

import pytest

from bitbench.analysis.history import RunFigures, affected, histories
from bitbench.analysis.statistics import Estimate
from bitbench.store.baseline import Baseline, Entry, Moved
from bitbench.store.figures import FigureSet
from bitbench.store.schema import CodeIdentity, RunInfo

LABEL = "linear/64x32/tokens=1/ternary"


def info(day: int, *, cpu: str = "A", threads: int = 1, torch: str = "2.8", **extra: Any) -> RunInfo:
    fields: dict[str, Any] = {
        "run": f"run-{day:02}",
        "created": f"2026-01-{day:02}T00:00:00Z",
        "suite_path": "suites/s.yaml",
        "suite": {"name": "s", "baseline": "linear", "layers": {}},
        "threads": threads,
        "environment": {"cpu": {"model": cpu}, "device": "cpu", "torch": {"version": torch}},
        "code": CodeIdentity(bitbench="1", impl="1", commit=f"{day:040x}"),
    }
    return RunInfo(**{**fields, **extra})


def run(day: int, value: float, *, case: str = "c", exact: bool = False, **extra: Any) -> RunFigures:
    spread = 0.0 if exact else 0.01
    found = Estimate(value, value * (1 - spread), value * (1 + spread), n=5, exact=exact)
    return RunFigures(info(day, **extra), {case: (LABEL, found)})


def log(
    day: int, before: float, after: float, *, metric: str = "time.speedup", label: str = LABEL
) -> Baseline:
    moved = [Moved(label=label, metric=metric, before=before, after=after)]
    entry = Entry(when=f"2026-01-{day:02}T12:00:00Z", who="Ada", why="wider tiles", moved=moved)
    return Baseline(figures=FigureSet(source="s"), log=[entry])


STEPPED = [run(day, 2.0 if day < 6 else 3.0) for day in range(1, 11)]


def test_runs_are_put_in_order_of_time() -> None:
    (machine,) = histories(reversed(STEPPED), "time.speedup")
    (found,) = machine.histories
    assert [point.run for point in found.points] == [f"run-{day:02}" for day in range(1, 11)]
    assert machine.runs == tuple(point.run for point in found.points)
    assert machine.facts["processor"] == "A"


def test_a_step_names_the_first_run_of_the_new_level() -> None:
    (change,) = histories(STEPPED, "time.speedup")[0].histories[0].changes
    assert (change.run, change.direction, change.accepted) == ("run-06", "better", None)
    assert (change.step.before, change.step.after) == (pytest.approx(2.0), pytest.approx(3.0))


@pytest.mark.parametrize(
    ("metric", "direction"),
    [("time.latency", "worse"), ("time.speedup", "better"), ("decode.head_share", "")],
)
def test_direction_follows_the_metric(metric: str, direction: str) -> None:
    (change,) = histories(STEPPED, metric)[0].histories[0].changes
    assert change.direction == direction


@pytest.mark.parametrize(
    ("baseline", "accepted"),
    [
        (log(6, 2.0, 3.0), True),
        (log(5, 2.0, 3.0), True),  # the new code was accepted before the next stored run
        (log(9, 2.0, 3.0), True),  # late, but the level is still the same
        (log(3, 2.0, 3.0), False),  # before the level changed
        (log(6, 3.0, 2.0), False),  # the other way
        (log(6, 2.0, 3.0, metric="time.latency"), False),
        (log(6, 2.0, 3.0, label="another"), False),
        (None, False),
    ],
)
def test_accepted_steps_are_marked(baseline: Baseline | None, accepted: bool) -> None:
    (change,) = histories(STEPPED, "time.speedup", baseline)[0].histories[0].changes
    assert (change.accepted is not None) == accepted


def test_an_acceptance_marks_one_step_only() -> None:
    runs = [run(day, 2.0 if day < 6 or day >= 11 else 3.0) for day in range(1, 16)]
    changes = histories(runs, "time.speedup", log(6, 2.0, 3.0))[0].histories[0].changes
    assert [change.accepted is not None for change in changes] == [True, False]
    again = [run(day, 2.0 if day < 6 else 3.0 if day < 11 else 4.0) for day in range(1, 16)]
    changes = histories(again, "time.speedup", log(12, 3.0, 4.0))[0].histories[0].changes
    assert [change.accepted is not None for change in changes] == [False, True]


@pytest.mark.parametrize("other", [{"cpu": "B"}, {"threads": 2}, {"torch": "2.9"}])
def test_times_of_unlike_machines_are_never_joined(other: dict[str, Any]) -> None:
    runs = [run(day, 2.0, **(other if day % 2 else {})) for day in range(1, 11)]
    machines = histories(runs, "time.speedup")
    assert [len(machine.runs) for machine in machines] == [5, 5]
    assert machines[0].runs[-1] == "run-10", "the machine of the newest run comes first"


def test_bytes_are_joined_over_machines() -> None:
    runs = [run(day, 100.0, exact=True, cpu="A" if day % 2 else "B") for day in range(1, 5)]
    (machine,) = histories(runs, "memory.layer_bytes")
    assert len(machine.runs) == 4


def test_every_change_of_bytes_is_a_step_even_in_two_runs() -> None:
    runs = [run(1, 100.0, exact=True), run(2, 101.0, exact=True)]
    (change,) = histories(runs, "memory.layer_bytes")[0].histories[0].changes
    assert (change.step.at, change.direction) == (1, "worse")


def test_a_case_of_another_identity_begins_anew() -> None:
    runs = [run(1, 2.0, case="old"), run(2, 3.0, case="new"), run(3, 3.0, case="new")]
    (machine,) = histories(runs, "time.speedup")
    (found,) = machine.histories
    assert (found.case, len(found.points)) == ("new", 2)
    assert machine.ended == (LABEL,)


def test_wide_intervals_hide_small_steps() -> None:
    def wide(day: int, value: float) -> RunFigures:
        return RunFigures(info(day), {"c": (LABEL, Estimate(value, value * 0.6, value * 1.4, n=3))})

    narrow = [run(day, 2.0 if day < 6 else 2.2) for day in range(1, 11)]
    assert histories(narrow, "time.speedup")[0].histories[0].changes
    blurred = [wide(day, 2.0 if day < 6 else 2.2) for day in range(1, 11)]
    assert histories(blurred, "time.speedup")[0].histories[0].changes == ()


def test_what_a_metric_depends_on() -> None:
    assert affected("time.speedup") == affected("memory.peak_bytes") == affected("training.seconds") == "time"
    assert affected("quality.perplexity") == affected("training.bits_per_byte") == "accuracy"
    assert affected("training.accuracy") == "accuracy"
    assert affected("memory.training_peak_bytes") == "time"
    assert affected("memory.training_bytes") == "all"
    assert affected("memory.layer_bytes") == "all"


def test_no_runs_no_machines() -> None:
    assert histories([], "time.speedup") == []
