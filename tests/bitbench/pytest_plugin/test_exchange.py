import copy
import json
import math

import pytest

from bitbench.analysis.figures import figures_of_run
from bitbench.cli import main
from bitbench.errors import UserError
from bitbench.pytest_plugin.exchange import benchmark_of_run, export_run, read_benchmark
from bitbench.pytest_plugin.records import KEY, Launched, measured
from bitbench.store.reader import load_run

MACHINE = {"processor": "P", "threads": 1}
FOREIGN = {
    "name": "test_sort",
    "fullname": "tests/test_sort.py::test_sort",
    "stats": {"mean": 2e-3, "rounds": 20},
}


def entry(name, ratios=(1.5, 1.6, 1.4), **facts):
    launches = [
        Launched(launch=i, seconds=1e-3, baseline_seconds=None if ratio is None else ratio * 1e-3)
        for i, ratio in enumerate(ratios)
    ]
    found = measured(launches, **{"machine": MACHINE, **facts})
    return {
        "name": name,
        "fullname": f"bench/deep/test_a.py::{name}",
        "stats": {"mean": 1e-3, "rounds": 3},
        "extra_info": {KEY: found.model_dump(mode="json"), "own": 1},
    }


@pytest.fixture
def file(tmp_path):
    def write(*entries, **others):
        path = tmp_path / "bench.json"
        path.write_text(json.dumps({"benchmarks": list(entries), "version": "5.3.1", **others}))
        return path

    return write


class TestFigures:
    def test_ratios_and_counted_figures(self, file):
        exact = {"memory.codes_bytes": 5.0}
        entries = [entry("test_one", exact=exact), entry("test_two", ratios=[None])]
        found = read_benchmark(file(*entries)).figures()
        assert (found.source, found.machine) == ("bench/deep", MACHINE)
        (label,) = found.figures  # nothing of the second can be judged
        assert label == "bench/deep/test_a.py::test_one"
        speedup = found.figures[label]["time.speedup"]
        logs = [math.log(ratio) for ratio in (1.5, 1.6, 1.4)]
        assert speedup.kind == "time"
        assert speedup.launches == 3
        assert speedup.log_mean == pytest.approx(sum(logs) / 3)
        assert speedup.value == pytest.approx(math.exp(sum(logs) / 3))
        assert speedup.log_sd is not None
        assert found.figures[label]["memory.codes_bytes"].value == 5
        assert found.figures[label]["memory.codes_bytes"].kind == "exact"

    def test_one_launch_has_no_spread(self, file):
        found = read_benchmark(file(entry("test_one", ratios=[2.0]))).figures()
        speedup = found.figures["bench/deep/test_a.py::test_one"]["time.speedup"]
        assert (speedup.launches, speedup.log_sd) == (1, None)

    def test_files_of_other_projects(self, file):
        read = read_benchmark(file(FOREIGN, machine_info={"cpu": {"brand_raw": "Processor Z"}, "node": "n"}))
        found = read.figures()
        assert (found.figures, found.machine, found.source) == ({}, {"processor": "Processor Z"}, "tests")
        (time,) = read.times().values()
        assert (time.value, time.n, time.has_interval) == (2e-3, 20, False)

    def test_beside_benchmarks_of_others(self, file):
        read = read_benchmark(file(FOREIGN, entry("test_one")))
        assert list(read.figures().figures) == ["bench/deep/test_a.py::test_one"]
        assert read.figures().source == "."
        assert read.times()["bench/deep/test_a.py::test_one"].has_interval

    def test_their_times_are_told(self, file):
        assert read_benchmark(file(entry("test_one"))).unjudged() == []
        (told,) = read_benchmark(file(FOREIGN, entry("test_one"))).unjudged()
        assert told.startswith("tests/test_sort.py::test_sort: 2.00 ms in one process")
        many = [{**FOREIGN, "fullname": f"test_sort.py::test_{n}"} for n in range(8)]
        told = read_benchmark(file(*many)).unjudged()
        assert len(told) == 6
        assert told[-1] == "and 3 more"

    def test_mixed_machines(self, file):
        path = file(entry("test_one"), entry("test_two", machine={**MACHINE, "threads": 2}))
        with pytest.raises(UserError, match=r"mixes machines: threads is 1 for .*test_one, 2 for .*test_two"):
            read_benchmark(path).figures()


def damaged(change):
    made = copy.deepcopy(entry("test_one"))
    change(made["extra_info"][KEY])
    return json.dumps({"benchmarks": [made]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: pytest-benchmark writes nothing where no benchmark ran"),
        (" \n", "is empty"),
        (json.dumps({"benchmarks": [FOREIGN]})[:40], "is not whole JSON: .*line 1"),
        ("[]", "is not a pytest-benchmark file: it has no list 'benchmarks'"),
        ('{"run": "x"}', "is not a pytest-benchmark file"),
        ('{"benchmarks": {}}', "is not a pytest-benchmark file"),
        ('{"benchmarks": []}', "holds no benchmark: none ran, or all failed"),
        ('{"benchmarks": [3]}', r"is damaged: benchmarks.0: "),
        ('{"benchmarks": [{"fullname": "a"}]}', r"is damaged: benchmarks.0.stats: Field required"),
        (
            '{"benchmarks": [{"fullname": "a", "stats": {"mean": NaN}}]}',
            r"is damaged: benchmarks.0.stats.mean: .*finite",
        ),
        (
            '{"benchmarks": [{"fullname": "a", "stats": {"mean": -1}}]}',
            r"is damaged: benchmarks.0.stats.mean: .*greater than or equal to 0",
        ),
        (json.dumps({"benchmarks": [FOREIGN, FOREIGN]}), "holds tests/test_sort.py::test_sort twice"),
        (
            damaged(lambda found: found.update(launches=[])),
            "test_one: extra_info.bitbench is damaged: launches",
        ),
        (damaged(lambda found: found.pop("launches")), "is damaged: launches: Field required"),
        (damaged(lambda found: found.pop("schema_version")), "names no schema version"),
        (damaged(lambda found: found.update(schema_version=99)), "has schema version 99; .* reads up to 1"),
        (
            damaged(lambda found: found["launches"][1].update(seconds=0)),
            "is damaged: launches.1.seconds: .*greater than 0",
        ),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = tmp_path / "bench.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_benchmark(path).figures()
    assert str(path) in error.value.message
    assert error.value.remedy


def test_no_file(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*nothing\.json") as error:
        read_benchmark(tmp_path / "nothing.json")
    assert "pytest tests/benchmarks --benchmark-json" in error.value.remedy


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None], ids=["not text", "a folder"])
def test_unreadable(tmp_path, content):
    path = tmp_path / "bench.json"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        read_benchmark(path)


class TestExport:
    def test_round_trip(self, stored_run, tmp_path):
        path = tmp_path / "run.json"
        count = export_run(stored_run, path)
        run = load_run(stored_run)
        read = read_benchmark(path)
        assert count == len(read.entries) > 0
        figures, expected = read.figures(), figures_of_run(run)
        assert figures.machine == expected.machine
        ratios = {
            label: own["time.speedup"] for label, own in expected.figures.items() if "time.speedup" in own
        }
        assert set(figures.figures) == set(ratios)
        for label, ratio in ratios.items():
            found = figures.figures[label]["time.speedup"]
            assert found.launches == ratio.launches
            assert found.log_mean == pytest.approx(ratio.log_mean)
            assert found.log_sd == pytest.approx(ratio.log_sd)

    def test_every_timed_case_is_there_or_named_with_its_reason(self, stored_run):
        run = load_run(stored_run)
        data = benchmark_of_run(run)
        timed = {case.label for case in run.cases if case.phase == "timed"}
        left_out = data["bitbench"]["left_out"]
        assert {one["fullname"] for one in data["benchmarks"]} | set(left_out) == timed
        assert any(reason.startswith("oom: needed 5.2 GiB") for reason in left_out.values())

    def test_times_are_those_of_the_launches(self, stored_run):
        data = benchmark_of_run(load_run(stored_run))
        one = data["benchmarks"][0]
        assert one["stats"]["data"] == [launch["seconds"] for launch in one["extra_info"][KEY]["launches"]]
        assert one["group"] + "/" + one["param"] == one["fullname"]

    def test_by_the_command_line(self, stored_run, tmp_path, capsys):
        path = tmp_path / "run.json"
        assert (
            main(["report", str(stored_run), "--reports", str(tmp_path), "--benchmark-json", str(path)]) == 0
        )
        assert str(path) in capsys.readouterr().out
        assert read_benchmark(path).measured

    def test_no_folder_for_it(self, stored_run, tmp_path):
        with pytest.raises(UserError, match="there is no folder"):
            export_run(stored_run, tmp_path / "none" / "run.json")

    def test_nothing_timed(self, run_maker, tmp_path):
        run = run_maker.write_training_run(tmp_path)
        with pytest.raises(UserError, match="timed nothing that ended ok"):
            export_run(run, tmp_path / "run.json")
        assert not (tmp_path / "run.json").exists()
