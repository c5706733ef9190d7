from __future__ import annotations

import pytest

from bitbench.execute.stages import Stages, sentence
from bitbench.store.schema import Record, Status


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_second_belongs_to_one_stage() -> None:
    clock = FakeClock()
    stages = Stages(clock)
    for stage, seconds in (("", 1.0), ("build", 4.0), ("time", 8.0), ("idle", 0.5)):
        stages.starting() if not stage else stages.enter(stage)
        clock.now += seconds
    stages.recorded(Record(case="a", launch=0, status=Status.OK, calls=1, samples_ns=[10**9, 3 * 10**9]))
    stages.recorded(Record(case="b", launch=0, status=Status.ERROR, reason="raised"))
    found = stages.seconds()
    assert found == {"time": 8.0, "build": 4.0, "timed": 4.0, "start": 1.0, "idle": 0.5}
    assert sum(s for name, s in found.items() if name != "timed") == stages.wall_s == 13.5


def test_the_mean_start_of_a_process() -> None:
    clock = FakeClock()
    stages = Stages(clock)
    assert stages.start_seconds == 0
    for seconds in (1.0, 2.0):
        stages.starting()
        clock.now += seconds
        stages.enter("open")
    assert stages.start_seconds == pytest.approx(1.5)


def test_the_sentence_leaves_small_change_out() -> None:
    stages = {"time": 70.0, "timed": 65.0, "build": 20.0, "check": 9.5, "idle": 0.5}
    assert sentence(100.0, stages) == (
        "100 s: 65 s in timed blocks (65%), 20.0 s build, 9.5 s check, 5.0 s untimed calls between blocks"
    )
    assert sentence(10.0, {"measure": 9.0, "start": 1.0}) == "10 s: 9.0 s measure, 1.0 s start"
