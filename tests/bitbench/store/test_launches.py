"""The file of launches: round trip, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bitbench.errors import UserError
from bitbench.store.launches import LAUNCHES_FILE, LaunchPool, LaunchTimes, load_launches, save_launches


def pool_of(**changed: Any) -> dict[str, Any]:
    times = {
        "label": "linear/4x4/ternary",
        "role": "case",
        "slowdown": 0.05,
        "like": ["launches", "linear"],
        "base_ns": [100.0, 101.5],
        "head_ns": [105.0, 106.0],
    }
    return {
        "created": "2026-11-20T09:00:00+00:00",
        "suite": "suites/gate.yaml",
        "code": "1a2b3c4",
        "machine": {"processor": "x"},
        "launches": 2,
        "times": [{**times, **changed}],
    }


def test_round_trip(tmp_path: Path) -> None:
    pool = LaunchPool(**pool_of())
    assert isinstance(pool.times[0], LaunchTimes)
    save_launches(tmp_path, pool)
    assert load_launches(tmp_path) == pool


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"base_ns": [100.0]}, "1 launches of base, 2 of head"),
        ({"base_ns": [1.0] * 3, "head_ns": [1.0] * 3}, "has not the 2 launches of the file"),
        ({"base_ns": [0.0, 1.0]}, "positive and finite"),
        ({"base_ns": [-1.0, 1.0]}, "positive and finite"),
        ({"role": "witness"}, "times.0.role"),
        ({"surplus": 1}, "times.0.surplus"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    (tmp_path / LAUNCHES_FILE).write_text(json.dumps(pool_of(**changed)))
    with pytest.raises(UserError) as caught:
        load_launches(tmp_path)
    assert message in caught.value.message


def test_missing_torn_and_newer_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no launches\.json"):
        load_launches(tmp_path)
    (tmp_path / LAUNCHES_FILE).write_text('{"schema_version": 1, "cre')
    with pytest.raises(UserError, match="cannot be read"):
        load_launches(tmp_path)
    (tmp_path / LAUNCHES_FILE).write_text(json.dumps({**pool_of(), "schema_version": 9}))
    with pytest.raises(UserError, match="reads up to 1"):
        load_launches(tmp_path)
