from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.cache import cache_root
from bitbench.errors import ToolError, UserError
from bitbench.store.calibration import (
    Calibration,
    CaseCalibration,
    calibration_path,
    expired,
    find_calibration,
    load_calibration,
    save_calibration,
)

MACHINE: dict[str, Any] = {"processor": "EPYC", "threads": 1, "torch": "2.13.0", "gpus": [], "governor": ""}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITBENCH_CACHE", str(tmp_path / "cache"))


def made(**changes: Any) -> Calibration:
    cases = {id: CaseCalibration(label=f"label {id}", launches=10, spread=0.01, admitted=True) for id in "ab"}
    values: dict[str, Any] = {
        "created": "2026-01-01T00:00:00+00:00",
        "suite": "gate",
        "machine": MACHINE,
        "launches": 10,
        "cases": cases,
    }
    return Calibration(**{**values, **changes})


def kept(calibration: Calibration, path: Path | None = None) -> Path:
    place = path or calibration_path(calibration.suite, calibration.machine, calibration.launches)
    save_calibration(place, calibration)
    return place


finite = st.floats(allow_nan=False, allow_infinity=False)
cases = st.builds(
    CaseCalibration,
    label=st.text(max_size=10),
    launches=st.integers(0, 100),
    mean=finite,
    spread=st.none() | finite,
    autocorrelation=st.none() | finite,
    floor=finite,
    equivalence=st.none() | finite,
    sees_80=st.none() | finite,
    sees_95=st.none() | finite,
    admitted=st.booleans(),
    why=st.text(max_size=10),
)


@given(st.dictionaries(st.text(max_size=6), cases, max_size=4))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, cases: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("c") / "deep" / "c.json"
    calibration = made(cases=cases)
    save_calibration(path, calibration)
    assert load_calibration(path) == calibration
    assert calibration.admitted() == {id for id, case in cases.items() if case.admitted}


def test_it_is_found_again_on_the_same_machine() -> None:
    calibration = made()
    kept(calibration)
    assert find_calibration("gate", dict(MACHINE), 10, ["a", "b"]) == (calibration, "")
    assert find_calibration("gate", dict(MACHINE), 10, ["a"]) == (calibration, "")


@pytest.mark.parametrize(
    ("machine", "launches", "cases", "why"),
    [
        ({"torch": "2.14.0"}, 10, "ab", "torch: 2.13.0 then, 2.14.0 now"),
        ({"threads": 2}, 10, "ab", "threads: 1 then, 2 now"),
        ({"gpus": ["H200"]}, 10, "ab", "gpus: none then, H200 now"),
        ({"driver": ["1", "2"]}, 10, "ab", "driver: none then, 1, 2 now"),
        ({}, 12, "ab", "launches: 10 then, 12 now"),
        ({}, 10, "abc", "the suite has changed: 1 of its 3 timed cases were not calibrated"),
    ],
)
@pytest.mark.parametrize("in_a_file", [False, True])
def test_it_expires_with_what_it_depends_on_and_says_with_what(
    tmp_path: Path, machine: dict[str, Any], launches: int, cases: str, why: str, in_a_file: bool
) -> None:
    file = kept(made(), tmp_path / "c.json" if in_a_file else None)
    now = {**MACHINE, **machine}
    found, told = find_calibration("gate", now, launches, list(cases), file if in_a_file else None)
    assert found is None
    assert told.endswith(f"has expired ({why})")
    assert expired(made(), now, launches, list(cases)) == [why]


def test_a_case_that_failed_binds_a_calibration_to_its_code() -> None:
    whole, broken = made().cases["a"], CaseCalibration(label="b", launches=7, why="crash: SIGSEGV")
    failed = made(cases={"a": whole, "b": broken}, code="old")
    assert expired(failed, MACHINE, 10, ["a", "b"], "old") == []
    assert expired(failed, MACHINE, 10, ["a"], "new") == [], "what failed is not asked for"
    told = "the code has changed: 1 of 2 timed cases failed in what was calibrated"
    assert expired(failed, MACHINE, 10, ["a", "b"], "new") == [told]
    assert expired(made(code="old"), MACHINE, 10, ["a", "b"], "new") == []
    kept(failed)
    assert find_calibration("gate", MACHINE, 10, ["a", "b"], code="old") == (failed, "")
    assert find_calibration("gate", MACHINE, 10, ["a", "b"], code="new")[0] is None


def test_of_several_that_expired_the_latest_explains() -> None:
    kept(made(created="2026-01-01T00:00:00+00:00", launches=7))
    kept(made(created="2026-02-01T00:00:00+00:00", launches=8))
    assert "launches: 8 then, 10 now" in find_calibration("gate", MACHINE, 10, ["a"])[1]


def test_a_machine_that_was_never_calibrated(tmp_path: Path) -> None:
    kept(made(suite="another"))
    (cache_root() / "calibrations" / "torn.json").write_text('{"schema_version": 1, "cre')
    assert find_calibration("gate", MACHINE, 10, ["a"]) == (
        None, "suite 'gate' was never calibrated on this machine",
    )  # fmt: skip
    missing = tmp_path / "none.json"
    assert find_calibration("gate", MACHINE, 10, ["a"], missing) == (
        None, f"there is no calibration {missing} yet",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("3", "names no schema version"),
        ('{"schema_version": 2}', "reads up to 1"),
        ('{"schema_version": 1}', "is not a calibration: created"),
    ],
)
def test_a_file_that_is_no_calibration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_calibration(path)
    assert str(path) in caught.value.message
    assert message in caught.value.message


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ToolError, match="--calibration FILE"):
        save_calibration(tmp_path / "file" / "c.json", made())


def test_names_become_safe_file_names() -> None:
    assert "/" not in calibration_path("a/b c", MACHINE, 10).name
