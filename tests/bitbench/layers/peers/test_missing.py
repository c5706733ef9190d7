"""A peer whose package is not installed, or does not load, says so and how to get it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from bitbench.execute.runner import Machine, execute
from bitbench.layers import registry
from bitbench.layers.base import LayerSpec
from bitbench.layers.peers.ggml import Ggml
from bitbench.layers.peers.peer import Package, Peer
from bitbench.store.schema import Status
from bitbench.suite.expand import expand
from bitbench.suite.load import load_suite
from bitbench.workloads.base import Unsupported

ROOT = Path(__file__).parents[4]
MODULES = ("onnx", "onnxruntime", "llama_cpp", "pywhispercpp", "litespark_inference")
COMMANDS = {
    "ort_matmul_nbits": "pip install onnxruntime onnx",
    "ggml": "pip install llama-cpp-python",
    "litespark": "pip install litespark-inference",
}


def of(name: str) -> tuple[Peer, LayerSpec]:
    kind = registry.get(name)
    assert isinstance(kind, Peer)
    return kind, kind.spec.model_validate({"kind": name})


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the packages can be imported in this process."""
    for module in MODULES:
        for loaded in [name for name in sys.modules if name.partition(".")[0] == module]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_missing_package_is_named_with_the_command(bare: None, name: str) -> None:
    kind, spec = of(name)
    reason = str(kind.unsupported(spec, "cpu"))
    assert "installed" in reason
    assert COMMANDS[name] in reason
    assert "bitbench[peers]" in reason


def test_only_what_is_missing_is_named(bare: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", type(sys)("onnx"))
    kind, spec = of("ort_matmul_nbits")
    reason = str(kind.unsupported(spec, "cpu"))
    assert reason.startswith("onnxruntime is not installed: pip install onnxruntime, or")


@pytest.mark.parametrize("name", COMMANDS)
def test_what_cannot_be_loaded_is_unsupported_too(bare: None, name: str) -> None:
    """Found but broken: the factories answer as for a package that is not there."""
    kind, spec = of(name)
    for build in (
        lambda: kind.random(spec, 256, 8, bias=False, seed=0),
        lambda: kind.convert(spec, nn.Linear(256, 8)),
    ):
        with pytest.raises(Unsupported, match=r"cannot be (imported|loaded).*pip install"):
            build()


def test_torch_needs_no_package(bare: None) -> None:
    kind, spec = of("torch_int_mm")
    assert kind.unsupported(spec, "cpu") is None


def test_a_package_without_the_library_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Ggml()
    monkeypatch.setattr(kind, "packages", (Package("email", "email"),), raising=False)
    with pytest.raises(Unsupported, match=r"no shared libraries ggml-base and ggml-cpu in email/lib"):
        kind.random(kind.spec(kind="ggml"), 256, 8, bias=False, seed=0)


SUITE = """
schema: 1
name: bare
baseline: linear
launches: 1
threads: 1
layers:
  linear:    {kind: linear}
  int-mm:    {kind: torch_int_mm}
  ort:       {kind: ort_matmul_nbits}
  tq2:       {kind: ggml}
  litespark: {kind: litespark}
workloads:
  - {kind: linear, shapes: [[64, 256]], memory: false}
"""


class Silent:
    """A sink that nobody listens to."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


def test_a_run_without_the_packages_has_a_row_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker processes cannot import them; their layers are there, with the command that helps."""
    block = tmp_path / "block"
    block.mkdir()
    lines = [f"sys.modules[{module!r}] = None" for module in MODULES]
    (block / "sitecustomize.py").write_text("\n".join(["import sys", *lines]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(block), str(ROOT)]))
    path = tmp_path / "bare.yaml"
    path.write_text(SUITE)
    folder = tmp_path / "run"
    folder.mkdir()
    run = execute(expand(load_suite(path)), folder, sink=Silent(), machine=Machine("cpu", 1))
    cases = {case.id: case for case in run.cases}
    assert {record.case for record in run.records} == set(cases)
    for record in run.records:
        case = cases[record.case]
        installed = case.layer in ("linear", "int-mm")
        assert record.status is (Status.OK if installed else Status.UNSUPPORTED), record.reason
        assert installed or "pip install" in record.reason
