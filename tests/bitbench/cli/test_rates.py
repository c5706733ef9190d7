"""``bitbench rates`` from the outside, on a machine whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bitbench.cli import main
from bitbench.cli.rates import RATES_JSON, RATES_PAGE, tripled
from bitbench.errors import Exit, UserError
from bitbench.store.launches import LAUNCHES_FILE, load_launches
from bitbench.store.reader import load_run
from bitbench.suite.load import load_suite, parse_suite


def measure(lab: Any, *options: str) -> int:
    return main(["rates", str(lab.suite()), "--launches", "30", "--gates", "10", *options])


def folder() -> Path:
    (found,) = (path for path in Path("results").iterdir() if "-rates-" in path.name)
    return found


def found_in(place: Path) -> dict[str, dict[str, Any]]:
    """What rates.json says, by draw."""
    data = json.loads((place / RATES_JSON).read_text())
    return {item["draw"]: item for item in data["rates"]}


def test_every_quantised_layer_is_tripled_beside_itself(lab: Any) -> None:
    suite, slowdown = tripled(load_suite(lab.suite()))
    assert list(suite.layers) == [
        "linear", "binary", "binary+5", "binary+10", "ternary", "ternary+5", "ternary+10",
    ]  # fmt: skip
    assert suite.layers["ternary+10"] == suite.layers["ternary"]
    assert slowdown == {"binary+5": 0.05, "binary+10": 0.1, "ternary+5": 0.05, "ternary+10": 0.1}
    (entry,) = suite.workloads
    assert entry.layers == list(suite.layers)
    assert entry.model_dump()["memory"] is False


def test_an_entry_of_some_layers_gets_the_twins_of_those_and_other_workloads_go(lab: Any) -> None:
    text = lab.suite().read_text()
    named = text.replace("cache: [hot]}", "cache: [hot], layers: [linear, ternary]}")
    other = "\n  - {kind: perplexity, model: tiny-random, text: synthetic, windows: 3, length: 128}\n"
    suite, _ = tripled(parse_suite(named.rstrip() + other), [0.2])
    (entry,) = suite.workloads
    assert entry.layers == ["linear", "ternary", "ternary+20"]
    only_text = text[: text.index("  - {kind: linear")] + other
    with pytest.raises(UserError, match="times no single layers"):
        tripled(parse_suite(only_text))


def test_launches_are_measured_kept_and_resampled(lab: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure(lab) == Exit.OK
    out = capsys.readouterr().out
    (asked,) = lab.rounds
    assert asked["purpose"] == "calibrate"
    place = folder()
    run = load_run(place)
    assert run.info.slowdown == 0.10
    assert {record.launch for record in run.records} == set(range(30))
    for found in found_in(place).values():
        assert found["gates"] == 10
        assert found["false_alarms"] == {"hits": 0, "trials": 10}
        assert found["alone"]["0.1"] == found["alone"]["0.05"] == {"hits": 10, "trials": 10}
        assert {label.rpartition("/")[2] for label in found["admitted"]} == {"binary", "ternary"}
    assert set(found_in(place)) == {"consecutive", "scattered"}
    assert (place / RATES_PAGE).read_text() in out


def test_a_slowdown_that_does_not_happen_is_not_found(lab: Any) -> None:
    """Were the twins' own times not what is judged, this would look like a gate that sees everything."""
    lab.inert = True
    assert measure(lab) == Exit.OK
    for found in found_in(folder()).values():
        assert found["alone"]["0.1"]["hits"] == 0
        assert found["unproven"]["hits"] == 10


def test_a_run_is_judged_again_without_measuring_and_launches_alone_are_enough(lab: Any) -> None:
    measure(lab)
    place = folder()
    (place / RATES_JSON).unlink()
    assert main(["rates", str(place), "--round", "5", "--gates", "12"]) == Exit.OK
    assert found_in(place)["consecutive"]["launches"] == 5
    published = Path("published")
    published.mkdir()
    (place / LAUNCHES_FILE).rename(published / LAUNCHES_FILE)
    assert main(["rates", str(published), "--round", "5", "--gates", "12"]) == Exit.OK
    assert found_in(published) == found_in(place)
    assert len(lab.rounds) == 1


def test_a_case_that_fails_or_whose_twin_does_is_left_out_and_named(
    lab: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.lacks = "ternary+10"
    assert measure(lab) == Exit.OK
    told = "left out, it failed or one of its slowed twins did: linear/64x32/tokens=1/cache=hot/ternary"
    assert told in capsys.readouterr().out
    assert load_launches(folder()).left_out == ["linear/64x32/tokens=1/cache=hot/ternary"]
    (case,) = found_in(folder())["scattered"]["admitted"]
    assert case.endswith("/binary")


def test_without_the_proof_nothing_is_concluded(lab: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lab.lacks = "self-proof-null"
    assert measure(lab) == Exit.TOOL
    assert "the gate's own proof did not go through all launches" in capsys.readouterr().err
    assert not (folder() / RATES_JSON).exists()


def test_too_few_launches_are_refused_before_anything_is_measured(
    lab: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measure(lab, "--round", "11") == Exit.USAGE
    assert "30 launches are fewer than the 33" in capsys.readouterr().err
    assert lab.rounds == []


def test_another_run_is_no_pool(lab: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(lab.suite())]) == Exit.OK
    (other,) = Path("results").iterdir()
    assert main(["rates", str(other)]) == Exit.USAGE
    assert "holds no slowed twins of its layers" in capsys.readouterr().err
    assert main(["rates", "."]) == Exit.USAGE
    assert "holds no launches.json" in capsys.readouterr().err
    assert main(["rates", "gone.yaml"]) == Exit.USAGE
    assert "no such file" in capsys.readouterr().err


def test_a_half_written_last_line_is_told(lab: Any, capsys: pytest.CaptureFixture[str]) -> None:
    measure(lab)
    with (folder() / "samples.jsonl").open("a") as file:
        file.write('{"case": "x", "lau')
    capsys.readouterr()
    assert main(["rates", str(folder()), "--gates", "10"]) == Exit.OK
    assert "warning" in (out := capsys.readouterr().out)
    assert "the last line was half written" in out


def test_an_interruption_ends_with_130(
    lab: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bitbench.execute.paired.execute_paired", interrupted)
    assert measure(lab) == Exit.INTERRUPTED
    assert "Traceback" not in capsys.readouterr().err
    assert list(Path("results").iterdir()) == [], "nothing was measured"
