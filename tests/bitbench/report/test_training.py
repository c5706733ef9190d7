"""The tables of training: classifiers by seed, single steps by time and bytes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bitbench.analysis.claims import ClaimStatus, evaluate_claim
from bitbench.analysis.summary import Summary, summarise
from bitbench.report.answer import answer
from bitbench.report.tables import Section
from bitbench.report.training import training, training_tables
from bitbench.store.reader import RunData, load_run
from bitbench.store.schema import Case, Record, Status
from bitbench.suite.schema import Claim

MIB = 2**20


def case(layer: str, workload: str, **fields: Any) -> Case:
    point = f"{workload}-{fields['phase']}"
    return Case(
        id=f"{point}-{layer}", point=point, workload=workload, entry=0, layer=layer, numerics=layer, **fields
    )


@pytest.fixture
def run(run_maker: ModuleType, tmp_path: Path) -> RunData:
    """Two layers classified over three seeds and stepped in three launches; one memory case failed."""
    stored = load_run(run_maker.write_training_run(tmp_path))
    cases, records = [], []
    for layer, factor in (("linear", 1.0), ("ternary", 2.0)):
        trained = case(
            layer, "classify", phase="once", replicate="seeds", launches=3, params={"images": "mnist"}
        )
        params = {"shape": [1024, 512], "tokens": 16}
        timed = case(layer, "train_step", phase="timed", replicate="launches", launches=3, params=params)
        weighed = case(
            layer,
            "train_step",
            phase="once",
            replicate="exact",
            launches=1,
            params={**params, "measure": "memory"},
        )
        network = {"images": "mnist", "network": "resnet", "batch": 250}
        speed = case(layer, "classify", phase="timed", replicate="launches", launches=3, params=network)
        cases += [trained, timed, weighed, speed]
        for i in range(3):
            accuracy = 0.98 - 0.004 * factor + 0.0005 * i
            metrics = {"training.accuracy": accuracy, "training.loss": 0.1, "training.seconds": 5.0}
            metrics |= {"training.packed_accuracy": accuracy - 0.0001, "memory.model_ratio": 3.5 * factor}
            records.append(Record(case=trained.id, launch=i, status=Status.OK, metrics=metrics))
            ns = round(1e6 * factor * (1 + 0.01 * i))
            for one in (timed, speed):
                records.append(Record(case=one.id, launch=i, status=Status.OK, calls=1, samples_ns=[ns]))
        if layer == "ternary":
            records.append(Record(case=weighed.id, launch=0, status=Status.OOM, reason="no room"))
        else:
            metrics = {"memory.training_bytes": 6.0 * MIB, "memory.peak_bytes": 2.0 * MIB}
            metrics["memory.training_peak_bytes"] = 8.0 * MIB
            records.append(Record(case=weighed.id, launch=0, status=Status.OK, metrics=metrics))
    return RunData(stored.path, stored.info, cases, records, [])


@pytest.fixture
def summary(run: RunData) -> Summary:
    return summarise(run)


def test_classifiers_are_listed_with_their_ratio_by_seed(summary: Summary) -> None:
    table = next(t for t in training_tables(summary, "training") if t.id == "training-images")
    titles = [column.title for column in table.columns]
    linear, ternary = (dict(zip(titles, row, strict=True)) for row in table.rows)
    assert (linear["Layer"].text, ternary["Layer"].text) == ("linear", "ternary")
    assert linear["Accuracy"].text == "0.977"
    assert linear["Accuracy"].notes  # with its interval
    assert linear["Against baseline"].text == "1x"
    assert ternary["Against baseline"].text == "0.9959x"
    assert ternary["Training"].text == "images mnist"
    assert ternary["Seeds"].text == "3"
    assert ternary["Time"].text == "5.00 s"


def test_what_packing_left_of_the_score_stands_beside_it(summary: Summary) -> None:
    table = next(t for t in training_tables(summary, "training") if t.id == "training-images")
    titles = [column.title for column in table.columns]
    assert len(table.rows) == 2, "timed points are none of it"
    ternary = dict(zip(titles, table.rows[1], strict=True))
    assert ternary["Packed"].text == "0.972"
    assert ternary["Memory vs fp32"].text == "7x"
    assert "head stay float" in table.note


def test_packed_networks_are_listed_by_images_a_second(summary: Summary) -> None:
    table = next(t for t in training_tables(summary, "training") if t.id == "training-images-speed")
    titles = [column.title for column in table.columns]
    linear, ternary = (dict(zip(titles, row, strict=True)) for row in table.rows)
    assert linear["Network"].text == "images mnist, network resnet"
    assert linear["Batch"].text == "250"
    # 250 images in 1.01 ms, the mean over launches.
    assert linear["Images/s"].sort == pytest.approx(250 / 1.01e-3, rel=1e-3)
    assert linear["Speed-up"].text == "1x"
    assert ternary["Speed-up"].text == "0.500x"
    assert "slower" in ternary["Verdict"].text


def test_steps_have_time_and_bytes_in_one_row_a_layer(summary: Summary) -> None:
    table = next(t for t in training_tables(summary, "training") if t.id == "training-steps")
    titles = [column.title for column in table.columns]
    linear, ternary = (dict(zip(titles, row, strict=True)) for row in table.rows)
    assert linear["Shape"].text == "1024x512"
    assert linear["Tokens"].text == "16"
    assert linear["Time"].text.startswith("1.01")
    assert (linear["Kept"].text, linear["Rise in a step"].text) == ("6 MiB", "2.00 MiB")
    assert linear["Peak"].text == "8.00 MiB"
    assert linear["Speed-up"].text == "1x"
    assert ternary["Speed-up"].text == "0.500x"
    assert "slower" in ternary["Verdict"].text
    assert "oom" in " ".join(ternary["Kept"].notes)


def test_a_run_without_training_has_no_tables(stored_run: Path) -> None:
    assert training_tables(summarise(load_run(stored_run)), "training") == []


@pytest.mark.parametrize(
    ("metric", "bound", "status"),
    [
        ("training.accuracy", {"at_least": 0.96}, ClaimStatus.PASS),
        ("training.accuracy", {"at_least": 0.99}, ClaimStatus.FAIL),
        ("training.loss", {"at_most": 0.2}, ClaimStatus.PASS),
        ("memory.training_bytes", {"at_most": 1.0}, ClaimStatus.NOT_EVALUATED),
    ],
)
def test_claims_reach_them(
    summary: Summary, metric: str, bound: dict[str, float], status: ClaimStatus
) -> None:
    claim = Claim.model_validate(
        {"id": "c", "says": "x", "metric": metric, "where": {"layer": "ternary"}, **bound}
    )
    assert evaluate_claim(claim, summary).status is status


def test_a_run_that_ended_early_names_the_cases_a_claim_waits_for(run: RunData) -> None:
    empty = summarise(RunData(run.path, run.info, run.cases, [], []))

    def waiting(metric: str) -> list[str]:
        claim = Claim.model_validate(
            {"id": "c", "says": "x", "metric": metric, "where": {"layer": "ternary"}, "at_least": 0}
        )
        return [item.case for item in evaluate_claim(claim, empty).evidence]

    assert waiting("training.accuracy") == ["classify-once-ternary"]
    assert waiting("training.loss") == ["classify-once-ternary"]
    assert waiting("inference.images_per_second") == ["classify-timed-ternary"]
    assert waiting("training.bits_per_byte") == []
    assert waiting("memory.training_bytes") == ["train_step-once-ternary"]


def test_the_answer_of_a_published_training_run_says_what_training_gave() -> None:
    run = Path(__file__).parents[3] / "results" / "training-20261120T061817Z-0d7c"
    (told,) = answer(summarise(load_run(run)))
    assert told.startswith("Trained with it from scratch, `ternary` reaches **2.92** bits per byte")
    assert told.endswith("against 2.71 for `linear`.")


class TestCited:
    """The tables of stored runs that a report cites: each from the newest run that has it."""

    @pytest.fixture
    def reporting(self, run_maker: ModuleType, tmp_path: Path) -> RunData:
        """A run whose suite cites ``training``, beside a whole run of it and a newer one of images alone."""
        run_maker.write_training_run(tmp_path)
        self.write(tmp_path, "2026-02-01T00:00:00Z", "newest")
        return load_run(run_maker.write_run(tmp_path))

    def write(self, results: Path, created: str, name: str, status: Status = Status.OK) -> None:
        """A run of the images alone."""
        old = load_run(results / "20251231-000000-training-aaaa")
        path = results / name
        path.mkdir()
        info = old.info.model_copy(update={"run": name, "created": created})
        fields: dict[str, Any] = {"phase": "once", "replicate": "seeds", "launches": 3}
        trained = case("linear", "classify", params={"images": "mnist"}, **fields)
        metrics = {"training.accuracy": 0.98} if status is Status.OK else {}
        records = [
            Record(case=trained.id, launch=i, status=status, reason="" if metrics else "no", metrics=metrics)
            for i in range(3)
        ]
        (path / "run.json").write_text(info.model_dump_json() + "\n")
        (path / "cases.jsonl").write_text(trained.model_dump_json() + "\n")
        (path / "samples.jsonl").write_text("".join(r.model_dump_json() + "\n" for r in records))

    def cited(self, run: RunData) -> Section:
        return next(s for s in training(summarise(run)) if s.id == "cited-training")

    def test_a_newer_run_of_a_part_leaves_the_other_tables(self, reporting: RunData) -> None:
        found = self.cited(reporting)
        assert [table.id for table in found.tables] == ["cited-training", "cited-training-images"]
        texts, images = found.prose
        assert texts.startswith(
            f"{found.tables[0].title}: from the stored run `20251231-000000-training-aaaa`"
        )
        assert images.startswith(f"{found.tables[1].title}: from the stored run `newest`")
        assert "2026-02-01" in images
        assert found.tables[0].rows[0][2].text == "1.904"

    def test_a_newer_run_that_failed_displaces_nothing(self, reporting: RunData) -> None:
        self.write(reporting.path.parent, "2026-03-01T00:00:00Z", "failed", Status.CRASH)
        (reporting.path.parent / "damaged").mkdir()
        head = (reporting.path.parent / "newest" / "run.json").read_text().replace("2026-02", "2026-04")
        (reporting.path.parent / "damaged" / "run.json").write_text(head)
        (reporting.path.parent / "damaged" / "cases.jsonl").write_text("{}\n{}\n")
        assert "`newest`" in self.cited(reporting).prose[1]

    def test_one_run_with_all_tables_is_named_once(self, run_maker: ModuleType, tmp_path: Path) -> None:
        run_maker.write_training_run(tmp_path)
        found = self.cited(load_run(run_maker.write_run(tmp_path)))
        assert len(found.prose) == len(found.tables) == 1
        assert found.prose[0].startswith("From the stored run `20251231-000000-training-aaaa`")
