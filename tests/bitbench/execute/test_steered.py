"""The worker half of a side: it rests between turns, and imports from its own folder only."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from bitbench.errors import ToolError
from bitbench.execute import steered
from bitbench.execute.imports import SideFinder, import_from
from bitbench.execute.jobs import Job, Setting, timed_job
from bitbench.execute.process import worker_environment
from bitbench.execute.steered import IDLE_PATIENCE, Command, come_to_rest, obey
from bitbench.measure.roofline import Peaks, Rulers
from bitbench.store.schema import Record


class Pool:
    """Threads that spin for ``spins`` seconds after their last work, on a clock of its own."""

    def __init__(self, spins: float) -> None:
        self.now = 0.0
        self.spins = spins

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def cpu(self) -> float:
        return min(self.now, self.spins)


@pytest.mark.parametrize("spins", [0.0, 0.011, 0.2])
def test_the_pool_is_asleep_before_the_other_side_works(spins: float) -> None:
    pool = Pool(spins)
    come_to_rest(pool.cpu, pool.sleep)
    assert pool.now >= spins
    assert pool.now <= spins + 0.01


def test_a_pool_that_never_sleeps_is_not_waited_for_forever() -> None:
    pool = Pool(1e9)
    come_to_rest(pool.cpu, pool.sleep)
    assert IDLE_PATIENCE <= pool.now < 2 * IDLE_PATIENCE


@pytest.fixture
def clean_imports() -> Iterator[None]:
    finders, modules = list(sys.meta_path), set(sys.modules)
    yield
    sys.meta_path[:] = finders
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def package(folder: Path, name: str, **modules: str) -> Path:
    place = folder / name
    place.mkdir(parents=True)
    for module, text in {"__init__": "", **modules}.items():
        (place / f"{module}.py").write_text(text)
    return folder


class Redirecting:
    """What an editable install puts on the path: it knows where each module of a package lies."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        parts = fullname.split(".")
        file = self.root.joinpath(*parts)
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        if parts[0] != "bb_sided" or not file.exists():
            return None
        return importlib.util.spec_from_file_location(fullname, file)


def test_a_side_is_imported_from_its_folder_whatever_is_installed(
    tmp_path: Path, clean_imports: None
) -> None:
    installed = package(tmp_path / "installed", "bb_sided", part="WHERE = 'installed'", only="")
    own = package(tmp_path / "own", "bb_sided", part="WHERE = 'own'")
    sys.meta_path.insert(0, Redirecting(installed))  # type: ignore[arg-type]
    import_from(own, ["bb_sided"])
    part = importlib.import_module("bb_sided.part")
    assert part.WHERE == "own"
    # What this version lacks is not taken from the other one.
    with pytest.raises(ModuleNotFoundError, match=r"this side has no module 'bb_sided.only'"):
        importlib.import_module("bb_sided.only")


def test_other_packages_are_found_as_ever(tmp_path: Path) -> None:
    finder = SideFinder(tmp_path, ["bb_sided"])
    assert finder.find_spec("json") is None
    assert finder.find_spec("bb_sided_too") is None
    with pytest.raises(ModuleNotFoundError):
        finder.find_spec("bb_sided")


def test_a_package_imported_too_early_is_refused(tmp_path: Path, clean_imports: None) -> None:
    package(tmp_path, "bb_sided")
    sys.path.insert(0, str(tmp_path))
    try:
        importlib.import_module("bb_sided")
        with pytest.raises(ToolError, match="'bb_sided' was imported from"):
            import_from(tmp_path, ["bb_sided"])
    finally:
        sys.path.remove(str(tmp_path))


def test_no_side_takes_another_native_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITIMPL_LIBRARY_PATH", "/elsewhere")
    monkeypatch.delenv("BITIMPL_BACKEND", raising=False)
    plain = Job(mode="steered", name="x", seed=0, device="cpu", threads=3)
    assert worker_environment(plain)["BITIMPL_LIBRARY_PATH"] == "/elsewhere"
    sided = plain.model_copy(update={"side_root": str(tmp_path)})
    without = worker_environment(sided)
    assert "BITIMPL_LIBRARY_PATH" not in without
    assert without["BITIMPL_BACKEND"] == "torch"
    native = tmp_path / "impl" / "_native"
    native.mkdir(parents=True)
    (native / "libbitimpl_cpu.so").touch()
    own = worker_environment(sided)
    assert own["BITIMPL_LIBRARY_PATH"] == str(native)
    assert "BITIMPL_BACKEND" not in own
    assert own["OMP_NUM_THREADS"] == "3"
    # Where another package is compared, both sides use the one that is installed.
    other = sided.model_copy(update={"side_packages": ["theirs"]})
    assert worker_environment(other)["BITIMPL_LIBRARY_PATH"] == "/elsewhere"
    assert "BITIMPL_BACKEND" not in worker_environment(other)


class Told:
    """Events, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def send(self, event: str, **fields: Any) -> None:
        if event != "at":
            self.events.append(event)

    def record(self, record: Record) -> None:
        self.events.append("record")


@pytest.mark.parametrize("threads", [1, 2])
def test_its_pool_is_asleep_before_the_other_side_is_timed(
    plan_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    plan = plan_of({"a": {}})
    job = timed_job(plan, Setting("cpu", threads, str(tmp_path), {}), 0, {(plan.cases[0].id, 0)})
    commands = [
        Command(do="open", visit=job.visits[0]),
        *[Command(do="time", layer="a", calls=1, blocks=1)] * 2,
        Command(do="conclude", layer="a"),
        Command(do="close"),
    ]
    lines = io.BytesIO(b"".join(command.model_dump_json().encode() + b"\n" for command in commands))
    told: Any = Told()
    monkeypatch.setattr(steered, "come_to_rest", lambda: told.events.append("rest"))
    obey(job, lines, told, Rulers({}, lambda threads: Peaks()))
    rest = ["rest"] if threads > 1 else []
    timed = [*rest, "timed"]
    assert told.events == [*("ready", *rest, "opened", *timed, *timed, "record", "concluded", "closed")]
