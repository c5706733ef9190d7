import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from pytest_benchmark.stats import Stats

from bitbench.pytest_plugin.descriptive import describe
from bitbench.pytest_plugin.job import outcomes
from bitbench.pytest_plugin.records import Launched, Measured, Outcome, join, measured
from bitbench.pytest_plugin.table import NOTES, table

TIMES = st.floats(1e-9, 1e3)


def one(launch, seconds=1e-3, baseline=2e-3, **facts):
    return measured([Launched(launch=launch, seconds=seconds, baseline_seconds=baseline)], **facts)


@given(st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=12))
def test_speed_up_is_the_geometric_mean_of_the_launches(times):
    found = join({i: one(i, seconds, baseline) for i, (seconds, baseline) in enumerate(times)})
    logs = [math.log(baseline / seconds) for seconds, baseline in times]
    assert found.speedup is not None
    assert found.speedup.launches == len(times)
    assert math.log(found.speedup.value) == pytest.approx(statistics.fmean(logs), abs=1e-9)
    assert (found.speedup.low is None) == (len(times) < 3)
    assert Measured.model_validate_json(found.model_dump_json()) == found


def test_launches_in_order_of_their_numbers():
    assert [launch.launch for launch in join({2: one(2), 0: one(0), 1: one(1)}).launches] == [0, 1, 2]


@pytest.mark.parametrize(
    "facts",
    [
        {"kernel": "b"},
        {"machine": {"threads": 2}},
        {"exact": {"memory.codes_bytes": 2.0}},
        {"timer": "other"},
    ],
    ids=lambda facts: next(iter(facts)),
)
def test_launches_that_measured_different_things(facts):
    (what,) = facts
    with pytest.raises(ValueError, match=f"{what} is .* in launch 1, .* in launch 4"):
        join({0: one(0), 3: one(3, **facts)})


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_times_are_positive_and_finite(seconds):
    with pytest.raises(ValidationError):
        one(0, seconds=seconds)
    with pytest.raises(ValidationError):
        one(0, baseline=seconds)


def test_no_launches():
    with pytest.raises(ValidationError):
        Measured(launches=[])


class TestResultsOfALaunch:
    def test_a_line_cut_off_by_a_kill_does_not_count(self, tmp_path):
        file = tmp_path / "launch.jsonl"
        whole = Outcome(nodeid="a", event="start")
        file.write_text(whole.model_dump_json() + "\n" + '{"nodeid": "a", "eve')
        assert list(outcomes(file)) == [whole]

    def test_nothing_written(self, tmp_path):
        assert list(outcomes(tmp_path / "none.jsonl")) == []

    def test_anything_else_is_a_fault(self, tmp_path):
        file = tmp_path / "launch.jsonl"
        file.write_text("hello\n")
        with pytest.raises(RuntimeError, match="hello"):
            list(outcomes(file))


class TestDescriptiveStatistics:
    @given(st.lists(TIMES, min_size=1, max_size=30))
    def test_as_pytest_benchmark_gives_them(self, data):
        theirs = Stats()
        for value in data:
            theirs.update(value)
        ours = describe(data)
        assert set(ours) == {*theirs.as_dict(), "data", "iterations"}
        for name in ("min", "max", "mean", "stddev", "rounds", "median", "ops", "total"):
            assert ours[name] == pytest.approx(getattr(theirs, name), rel=1e-9, abs=1e-12), name

    @given(st.lists(TIMES, min_size=1, max_size=30))
    def test_order_of_the_figures(self, data):
        found = describe(data)
        assert found["min"] <= found["q1"] <= found["median"] <= found["q3"] <= found["max"]
        assert found["min"] <= found["ld15iqr"] <= found["hd15iqr"] <= found["max"]
        assert found["outliers"] == f"{found['stddev_outliers']};{found['iqr_outliers']}"

    def test_an_outlier(self):
        assert describe([1.0, 1.0, 1.1, 1.1, 9.0])["iqr_outliers"] == 1
        assert describe([1.0, 1.0, 1.1, 1.1, 9.0])["hd15iqr"] == 1.1


class TestTable:
    def test_rows(self):
        found = {
            "a.py::test_kernel": join({i: one(i, 1e-3 + i * 1e-5) for i in range(3)}),
            "a.py::test_alone": one(0, baseline=None),
        }
        header, kernel, alone = table(found)
        assert header.split() == ["benchmark", "target", "baseline", "speed-up", "(95%)"]
        assert "1.01 ms [" in kernel
        assert "1.98x [" in kernel
        assert alone.split()[-2:] == ["-", "-"]
        assert header.index("target") == kernel.index("1.01 ms") == alone.index("1.00 ms")

    def test_many_notes_are_counted(self):
        launches = [Launched(launch=i, seconds=1.0, notes=["not steady"]) for i in range(NOTES + 3)]
        lines = table({"a.py::test": measured(launches)})
        assert lines[2] == "note: a.py::test, launch 1: not steady"
        assert lines[-1] == "and 3 more notes: --benchmark-json has them all"
        assert len(lines) == 2 + NOTES + 1
