"""Reading suites from files, and the suites that come with the package."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bitbench.suite.expand import expand
from bitbench.suite.load import json_schema, load_suite, parse_suite
from bitbench.suite.problems import SuiteError
from bitbench.suite.schema import Suite

SUITES = Path(__file__).parents[3] / "suites"


def refused(path: Path) -> str:
    with pytest.raises(SuiteError) as caught:
        load_suite(path)
    return str(caught.value)


def test_a_missing_file_is_answered_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "llm.yaml").write_text("schema: 1\n")
    told = refused(tmp_path / "lm.yaml")
    assert "no such file" in told
    assert "did you mean 'llm.yaml'?" in told


def test_a_missing_file_in_an_empty_folder(tmp_path: Path) -> None:
    assert f"no suite lies in {tmp_path}" in refused(tmp_path / "llm.yaml")


def test_a_directory_is_answered_with_its_suites(tmp_path: Path) -> None:
    (tmp_path / "llm.yaml").write_text("schema: 1\n")
    told = refused(tmp_path)
    assert "this is a directory" in told
    assert "llm.yaml" in told


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"schema: 1\nname: \xff\xfe\n")
    assert "not UTF-8 text (byte 16)" in refused(tmp_path / "x.yaml")


def test_merge_keys_and_anchors_work_and_are_no_duplicates() -> None:
    suite = parse_suite(
        """
schema: 1
name: demo
baseline: linear
layers:
  linear: {kind: linear}
  one: &one {kind: k_ternary, k: 1, group_size: 64}
  two: {<<: *one, k: 2}
workloads: [{kind: linear, shapes: squares}]
"""
    )
    assert suite.layers["two"].model_dump()["k"] == 2
    assert suite.layers["two"].model_dump()["group_size"] == 64


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda p: p.stem)
def test_suites_of_the_package_are_sound(path: Path) -> None:
    suite = load_suite(path)
    assert suite.name == path.stem
    assert expand(suite).cases
    assert expand(suite, quick=True).cases
    # What a run stores is read back as the same suite.
    assert Suite.model_validate(json.loads(json.dumps(suite.resolved()))) == suite
    for name in suite.cites:
        assert (SUITES / f"{name}.yaml").is_file()


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda p: p.stem)
def test_suites_of_the_package_say_how_long_they_take(path: Path) -> None:
    """As `bitbench plan` does, to a twentieth."""
    text = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    [(number, unit)] = re.findall(r"About (\d+) (seconds|minutes) on (?:two cores|an H200)", text)
    told = int(number) * {"seconds": 1, "minutes": 60}[unit]
    # A suite may have entries for either device.
    plan = expand(load_suite(path), device="cpu" if "on two cores" in text else "cuda")
    assert told == pytest.approx(plan.estimate_seconds(), rel=0.05)


@pytest.mark.parametrize("run", ["llm-20261120T173900Z-1400", "training-20261120T130249Z-a260"])
def test_cases_keep_the_ids_that_they_have_in_published_runs(run: str) -> None:
    """Or the run could be neither continued nor followed: a param added later, such as the head of a
    model, stays out of a point's params where it says what went without saying."""
    lines = (SUITES.parent / "results" / run / "cases.jsonl").read_text().splitlines()
    stored = {case["id"] for case in map(json.loads, lines)}
    assert stored
    assert stored <= {case.id for case in expand(load_suite(SUITES / f"{run.split('-')[0]}.yaml")).cases}


def test_an_implied_head_can_be_claimed_and_excluded() -> None:
    suite = parse_suite(
        """
schema: 1
name: demo
baseline: linear
layers: {linear: {kind: linear}}
workloads:
  - {kind: decode, model: tiny-random, include: [{head: same}], exclude: [{head: float}]}
  - {kind: perplexity, model: tiny-random, text: synthetic}
claims:
  - {id: c, says: s, metric: quality.perplexity, where: {head: float}, at_most: 9}
"""
    )
    assert [(case.workload, case.params.get("head")) for case in expand(suite).cases] == [
        ("decode", "same"),
        ("perplexity", None),
    ]


def test_smoke_downloads_nothing_and_reaches_every_layer_kind_of_ours() -> None:
    from bitbench.layers import registry

    suite = load_suite(SUITES / "smoke.yaml")
    assert expand(suite).data() == []
    assert {layer.kind for layer in suite.layers.values()} == set(registry.kinds()) - set(registry.PEERS)
    assert expand(suite).estimate_seconds() < 60


def test_llm_gates_on_bytes_only() -> None:
    """Bytes are exact; a gate on time would fail with the machine."""
    suite = load_suite(SUITES / "llm.yaml")
    gating = [c for c in suite.claims if c.gating]
    assert {c.metric for c in gating} == {"memory.weight_ratio", "memory.file_ratio"}
    assert len(suite.claims) > len(gating)


def test_llm_measures_512_tokens_hot_only() -> None:
    points = expand(load_suite(SUITES / "llm.yaml")).points
    assert {p.params["cache"] for p in points if p.params.get("tokens") == 512} == {"hot"}


def test_json_schema_spells_out_every_kind() -> None:
    from bitbench.layers import registry as layers
    from bitbench.workloads import registry as workloads

    schema = json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"schema", "name", "baseline", "layers", "workloads"}
    definitions = schema["$defs"]
    for base, registry in (("LayerSpec", layers), ("WorkloadSpec", workloads)):
        members = [m["$ref"].removeprefix("#/$defs/") for m in definitions[base]["oneOf"]]
        kinds = [definitions[name]["properties"]["kind"] for name in members]
        assert kinds == [{"const": kind} for kind in registry.kinds()]
    ternary = definitions["LayerSpec.ternary"]["properties"]
    assert ternary["format"]["enum"] == ["base3", "two_bit"]
    assert "1.6 or 2 bits" in ternary["format"]["description"]
    # Every reference leads somewhere.
    for name in re.findall(r'"#/\$defs/([^"]+)"', json.dumps(schema)):
        assert name in definitions
