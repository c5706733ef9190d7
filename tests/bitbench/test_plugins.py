"""Registries: the package's own classes and those of peers."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from bitbench.errors import ToolError, UserError
from bitbench.layers import registry as layers
from bitbench.layers.base import LayerKind
from bitbench.layers.linear import Linear
from bitbench.plugins import Registry, did_you_mean, join_names
from bitbench.workloads import registry as workloads


class Peer(Linear):
    name = "peer"


class NoKind:
    pass


def registry_with(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> Registry[LayerKind]:
    def found(group: str) -> list[EntryPoint]:
        return [EntryPoint(name, value, group)]

    monkeypatch.setattr("bitbench.plugins.entry_points", found)
    return Registry("bitbench.layers", "layer kind", LayerKind, layers.REGISTRY.builtin)  # type: ignore[type-abstract]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> str:
    import sys
    import types

    module = types.ModuleType("a_peer_package")
    module.Peer, module.NoKind = Peer, NoKind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_peer_package", module)
    return "a_peer_package"


@pytest.mark.parametrize("name", layers.kinds())
def test_every_layer_kind_answers_to_its_name(name: str) -> None:
    assert layers.get(name).name == name
    assert layers.get(name) is layers.get(name)


@pytest.mark.parametrize("name", ["linear", "decode", "perplexity", "pretrain"])
def test_every_workload_kind_answers_to_its_name(name: str) -> None:
    assert workloads.get(name).name == name


def test_unknown_names_are_met_with_the_known_ones() -> None:
    with pytest.raises(UserError) as caught:
        layers.get("ternery")
    assert "unknown layer kind 'ternery'" in str(caught.value)
    assert "did you mean 'ternary'?" in str(caught.value)
    assert "k_ternary" in str(caught.value)


def test_a_peer_is_found_beside_the_built_in_kinds(monkeypatch: pytest.MonkeyPatch, here: str) -> None:
    registry = registry_with(monkeypatch, "peer", f"{here}:Peer")
    assert registry.names() == [*layers.REGISTRY.builtin, "peer"]
    assert isinstance(registry.get("peer"), Peer)


def test_a_peer_cannot_take_a_built_in_name(monkeypatch: pytest.MonkeyPatch, here: str) -> None:
    registry = registry_with(monkeypatch, "linear", f"{here}:Peer")
    with pytest.raises(ToolError, match="takes the built-in name 'linear'"):
        registry.names()


@pytest.mark.parametrize(
    ("value", "said"), [("{}:NoKind", "not a subclass"), ("no_such_package_x:Kind", "cannot be imported")]
)
def test_a_broken_peer_is_named(monkeypatch: pytest.MonkeyPatch, here: str, value: str, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        registry_with(monkeypatch, "peer", value.format(here)).get("peer")


def test_suggestions_only_where_something_is_close() -> None:
    assert did_you_mean("TERNARY", ["ternary", "binary"]) == "did you mean 'ternary'?"
    assert did_you_mean("zzz", ["ternary", "binary"]) == ""
    assert join_names(list("abc"), limit=2) == "a, b and 1 more"
