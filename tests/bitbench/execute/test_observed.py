"""Which window of the machine's state a record is given."""

from __future__ import annotations

from typing import Any

from bitbench.execute.observed import Observer
from bitbench.store.schema import Record, Status


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Beside:
    """Answers with what it was asked."""

    def over(self, started: float, ended: float, *, calls: int = 0) -> dict[str, float]:
        return {"gpu.power_w": ended - started, "gpu.sm_mhz": started, "gpu.energy_j": float(calls)}

    def notes(self, started: float, ended: float) -> list[str]:
        return [f"{started:g} to {ended:g}"]


class Quiet:
    def over(self, started: float, ended: float, *, calls: int = 0) -> dict[str, float]:
        return {}

    def notes(self, started: float, ended: float) -> list[str]:
        return []


def timed(case: str, **fields: Any) -> Record:
    return Record(case=case, launch=0, status=Status.OK, calls=10, samples_ns=[1, 2, 3], **fields)


def follow(observer: Observer, clock: Clock, *stages: tuple[float, str, str]) -> None:
    for clock.now, case, stage in stages:
        observer.at({"case": case, "stage": stage})


def test_layers_that_take_turns_share_the_window_of_their_turns() -> None:
    clock = Clock()
    observer = Observer(Beside(), clock)
    follow(observer, clock, (0, "", "open"), (1, "a", "build"), (2, "a", "check"), (3, "a", "time"))
    follow(observer, clock, (4, "b", "time"), (6, "a", "time"), (9, "a", "check"))
    clock.now = 11
    first = observer.add(timed("a", notes=["suspicious"], metrics={"cpu.utilisation": 1.0}))
    assert first.notes == ["suspicious", "3 to 9"]
    assert first.metrics == {
        "cpu.utilisation": 1.0,
        "gpu.power_w": 6.0,
        "gpu.sm_mhz": 3.0,
        "gpu.energy_j": 0.0,
    }
    follow(observer, clock, (12, "b", "check"))
    assert observer.add(timed("b")).notes == ["3 to 9"]


def test_the_next_point_has_a_window_of_its_own() -> None:
    clock = Clock()
    observer = Observer(Beside(), clock)
    follow(observer, clock, (3, "a", "time"), (9, "a", "check"), (10, "", "open"), (20, "a", "time"))
    follow(observer, clock, (22, "a", "check"))
    assert observer.add(timed("a")).notes == ["20 to 22"]


def test_only_a_layer_timed_alone_is_given_the_energy_of_its_calls() -> None:
    clock = Clock()
    observer = Observer(Beside(), clock)
    follow(observer, clock, (3, "a", "time"), (5, "a", "time"), (9, "a", "check"))
    assert observer.add(timed("a")).metrics["gpu.energy_j"] == 30


def test_what_is_measured_once_has_the_window_of_its_stage() -> None:
    clock = Clock()
    observer = Observer(Beside(), clock)
    follow(observer, clock, (1, "", "open"), (2, "a", "measure"))
    clock.now = 5
    record = Record(case="a", launch=0, status=Status.OK)
    assert observer.add(record).metrics["gpu.power_w"] == 3
    follow(observer, clock, (6, "b", "measure"))
    clock.now = 7
    assert observer.add(record).metrics["gpu.power_w"] == 1


def test_what_was_never_measured_and_an_undisturbed_machine_add_nothing() -> None:
    clock = Clock()
    observer = Observer(Beside(), clock)
    follow(observer, clock, (1, "a", "build"))
    failed = Record(case="a", launch=0, status=Status.ERROR, reason="x")
    assert observer.add(failed) is failed
    quiet = Observer(Quiet(), clock)
    follow(quiet, clock, (1, "a", "time"), (2, "a", "check"))
    record = timed("a")
    assert quiet.add(record) is record


def test_a_layer_kept_at_work_alone_is_given_the_figures_of_that() -> None:
    clock = Clock()
    observer = Observer(Beside(), clock)
    follow(observer, clock, (0, "a", "time"), (1, "b", "time"), (2, "a", "load"), (5, "b", "load"))
    follow(observer, clock, (9, "a", "check"))
    first = observer.add(timed("a", metrics={"gpu.calls_per_s": 100.0}))
    second = observer.add(timed("b", metrics={"gpu.calls_per_s": 10.0}))
    assert first.metrics == {
        "gpu.calls_per_s": 100.0,
        "gpu.power_w": 3.0,
        "gpu.sm_mhz": 2.0,
        "gpu.energy_j": 300.0,
    }
    assert (second.metrics["gpu.power_w"], second.metrics["gpu.energy_j"]) == (4.0, 40.0)
    assert first.notes == ["0 to 2"], "what disturbed the timing"


def test_the_load_of_one_point_is_not_that_of_the_next() -> None:
    clock = Clock()
    observer = Observer(Beside(), clock)
    follow(observer, clock, (0, "a", "time"), (1, "a", "load"), (4, "a", "check"))
    observer.add(timed("a"))
    follow(observer, clock, (10, "a", "time"), (11, "a", "check"))
    assert observer.add(timed("a")).metrics["gpu.power_w"] == 1.0
