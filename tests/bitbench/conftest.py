"""Fixtures shared by the tests of analysis, report and command line."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(autouse=True, scope="session")
def _private_locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs of these tests neither wait for other measurements on this machine nor hold them up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITBENCH_LOCK_DIR", str(tmp_path_factory.mktemp("locks")))
        yield


@pytest.fixture(scope="session")
def run_maker() -> ModuleType:
    """The module that writes plausible run folders: ``write_run``, ``write_training_run``."""
    path = Path(__file__).parent / "report" / "fixture_run.py"
    spec = importlib.util.spec_from_file_location("bitbench_fixture_run", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def stored_run(run_maker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a failure of every status, beside a stored training run. Read only."""
    results = tmp_path_factory.mktemp("results")
    run_maker.write_training_run(results)
    path: Path = run_maker.write_run(results)
    return path
