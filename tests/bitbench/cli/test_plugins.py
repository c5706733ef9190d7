"""``bitbench plugins``: what there is, and what is broken about it."""

from __future__ import annotations

import json
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from bitbench.cli import main
from bitbench.errors import Exit, ToolError, UserError
from bitbench.layers.base import LayerCost, LayerSpec
from bitbench.layers.linear import Linear
from bitbench.layers.registry import REGISTRY as LAYERS
from bitbench.plugins import without_torch
from bitbench.report import write_files
from bitbench.report.reporters import REGISTRY as REPORTERS
from bitbench.report.reporters import Reporter, Source
from bitbench.workloads.registry import REGISTRY as WORKLOADS

MODULE = "a_peer_package"


class EasySpec(LayerSpec):
    pass


class Sound(Linear):
    name = "peer"
    spec = EasySpec  # type: ignore[assignment]

    def cost(self, spec: Any, in_features: int, out_features: int) -> LayerCost:
        return LayerCost(4, 0, 1.0, in_features * out_features, "fp32")


class OtherName(Sound):
    name = "other"


class NoSpec(Sound):
    spec = dict  # type: ignore[assignment]


class HeavyCost(Sound):
    def cost(self, spec: Any, in_features: int, out_features: int) -> LayerCost:
        import torch

        return LayerCost(torch.zeros(1).nbytes, 0, 1.0, 1, "fp32")


class FailingCost(Sound):
    def cost(self, spec: Any, in_features: int, out_features: int) -> LayerCost:
        raise ZeroDivisionError("division by zero")


class NoBytes(Sound):
    def cost(self, spec: Any, in_features: int, out_features: int) -> LayerCost:
        return LayerCost(0, 0, 1.0, 1, "fp32")


class NoCost(Sound):
    def cost(self, spec: Any, in_features: int, out_features: int) -> LayerCost:
        return 3  # type: ignore[return-value]


class NoLayer:
    pass


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Registers entry points as installed packages would; nothing else is installed."""
    entries: list[EntryPoint] = []
    module = types.ModuleType(MODULE)
    monkeypatch.setitem(sys.modules, MODULE, module)
    monkeypatch.setattr(
        "bitbench.plugins.entry_points", lambda group: [entry for entry in entries if entry.group == group]
    )

    def add(found: type | str, name: str = "peer", group: str = "bitbench.layers") -> None:
        value = found if isinstance(found, str) else f"{MODULE}:{found.__name__}"
        if not isinstance(found, str):
            setattr(module, found.__name__, found)
        entries.append(EntryPoint(name, value, group))

    forget()
    yield add
    forget()


def forget() -> None:
    for registry in (LAYERS, WORKLOADS, REPORTERS):
        registry.__dict__.pop("_peers", None)
        registry._loaded.clear()


def faults(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    capsys.readouterr()
    code = main(["plugins", "--json"])
    found = json.loads(capsys.readouterr().out)["plugins"]
    broken = {plugin["name"]: plugin["fault"] for plugin in found if plugin["fault"]}
    assert code == (Exit.TOOL if broken else Exit.OK)
    return broken


def test_what_is_built_in_is_sound(register: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert faults(capsys) == {}
    assert main(["plugins"]) == Exit.OK
    out = capsys.readouterr().out
    for name in (*LAYERS.builtin, *WORKLOADS.builtin, *REPORTERS.builtin):
        assert name in out


def test_a_sound_peer_is_listed(register: Any, capsys: pytest.CaptureFixture[str]) -> None:
    register(Sound)
    assert faults(capsys) == {}
    assert main(["plugins"]) == Exit.OK
    assert f"{MODULE}:Sound" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (OtherName, "registered as 'peer', but its class calls itself 'other'"),
        (NoSpec, "its description (spec) is not a subclass of LayerSpec"),
        (HeavyCost, "its cost model is not free of torch"),
        (FailingCost, "its cost model fails on 64 x 32: ZeroDivisionError"),
        (NoBytes, "its cost model counts 0 bytes"),
        (NoCost, "its cost model answers int, not LayerCost"),
        (NoLayer, "is not a subclass of bitbench.layers.base.LayerKind"),
        ("no_such_module_x:Kind", "cannot be imported: No module named 'no_such_module_x'"),
        (f"{MODULE}:Gone", "cannot be imported"),
    ],
)
def test_a_broken_peer_is_named_and_turns_the_exit_code(
    register: Any, capsys: pytest.CaptureFixture[str], found: Any, said: str
) -> None:
    register(found)
    assert said in faults(capsys)["peer"]
    assert main(["plugins"]) == Exit.TOOL
    assert "broken: layer 'peer'" in capsys.readouterr().out


def test_one_broken_peer_hides_no_other(register: Any, capsys: pytest.CaptureFixture[str]) -> None:
    register("no_such_module_x:Kind", "first")
    register(Sound)
    assert list(faults(capsys)) == ["first"]


def test_a_module_that_imports_torch_is_broken(
    register: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heavy_peer_x.py").write_text("import torch\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    register("heavy_peer_x:Kind")
    assert "torch" in faults(capsys)["peer"]


def test_names_taken_twice_are_refused_in_use_and_listed(
    register: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    register(Sound)
    register(OtherName)
    with pytest.raises(ToolError, match="both take the name 'peer'"):
        LAYERS.names()
    assert "both take the name 'peer'" in faults(capsys)["peer"]


def test_a_built_in_name_cannot_be_taken(register: Any, capsys: pytest.CaptureFixture[str]) -> None:
    register(Sound, "linear")
    assert "takes the built-in name 'linear'" in faults(capsys)["linear"]


def test_torch_is_back_afterwards() -> None:
    before = sys.modules.get("torch")
    with pytest.raises(ImportError), without_torch():
        import torch  # noqa: F401
    assert sys.modules.get("torch") is before


def peer_reporter(files: Any) -> type[Reporter]:
    class Made(Reporter):
        name = "peer"

        def files(self, source: Source) -> Any:
            if isinstance(files, Exception):
                raise files
            return files

    return Made


def test_a_reporters_files_stand_beside_our_own(register: Any, stored_run: Path, tmp_path: Path) -> None:
    register(peer_reporter({"peer.txt": "ü"}), group="bitbench.reporters")
    written = write_files(stored_run, tmp_path, ["peer", "html"])
    assert [path.name for path in written] == ["index.html", "report.md", "cases.csv", "peer.txt"]
    assert written[-1].read_text(encoding="utf-8") == "ü"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (ValueError("no data"), "the reporter 'peer' failed: ValueError: no data"),
        ({"../x": ""}, "which is no plain name"),
        ({"a/b": ""}, "which is no plain name"),
        ({".hidden": ""}, "which is no plain name"),
        ({"report.md": ""}, "would write over report.md"),
    ],
)
def test_a_bad_reporter_writes_nothing(
    register: Any, stored_run: Path, tmp_path: Path, files: Any, said: str
) -> None:
    register(peer_reporter(files), group="bitbench.reporters")
    with pytest.raises(ToolError) as caught:
        write_files(stored_run, tmp_path / "reports", ["peer"])
    assert said in caught.value.message
    assert not (tmp_path / "reports").exists()


def test_an_unknown_reporter_is_a_usage_error(stored_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown reporter 'htmll'"):
        write_files(stored_run, tmp_path, ["htmll"])
