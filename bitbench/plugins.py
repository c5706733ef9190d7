"""Named things found by module path or entry point, and imported only when asked for.

Writing a plug-in
-----------------
A package of its own adds layers, workloads and reporters; nothing of bitbench is edited. Each is a
class, registered under its name in the package's ``pyproject.toml``::

    [project.entry-points."bitbench.layers"]
    low_rank = "example_peer.layer:LowRank"

    [project.entry-points."bitbench.workloads"]
    chain = "example_peer.workload:Chain"

    [project.entry-points."bitbench.reporters"]
    tsv = "example_peer.reporter:Tsv"

=======================  =============================================  ==========================
group                    base class                                     used as
=======================  =============================================  ==========================
``bitbench.layers``      :class:`bitbench.layers.base.LayerKind`        ``kind:`` of a suite's layer
``bitbench.workloads``   :class:`bitbench.workloads.base.WorkloadKind`  ``kind:`` of a workload
``bitbench.reporters``   :class:`bitbench.report.reporters.Reporter`    ``report --reporter NAME``
=======================  =============================================  ==========================

Rules, checked by ``bitbench plugins``:

* The module imports without torch, and a layer brings its cost model (bytes and operations from
  its description alone): suites are checked and planned on machines that have no torch. torch is
  imported inside the methods that workers call (``random``, ``convert``, ``open``, ...).
* ``name`` of the class is the name it is registered under. A built-in name, or one that another
  package took, is refused: a suite must mean the same on every machine.
* The description (``spec``) subclasses :class:`~bitbench.layers.base.LayerSpec` or
  :class:`~bitbench.workloads.base.WorkloadSpec`: unknown fields are refused, and the JSON Schema of
  suites includes it.

A whole small plug-in with one of each is in ``tests/bitbench/example_peer``.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Any, Generic, TypeVar

from bitbench.errors import ToolError, UserError

T = TypeVar("T")


def did_you_mean(name: object, allowed: Iterable[str]) -> str:
    """``"did you mean 'ternary'?"`` for the closest of ``allowed``, or ``""`` when none is close."""
    originals = {a.lower(): a for a in allowed}
    close = difflib.get_close_matches(str(name).lower(), originals, n=1, cutoff=0.7)
    return f"did you mean {originals[close[0]]!r}?" if close else ""


def join_names(names: Iterable[str], limit: int = 16) -> str:
    """Names for a message, comma separated; the rest beyond ``limit`` is counted."""
    listed = list(names)
    shown = ", ".join(listed[:limit])
    return shown if len(listed) <= limit else f"{shown} and {len(listed) - limit} more"


def advice(name: object, allowed: Iterable[str], *, label: str = "known", limit: int = 40) -> str:
    """``"did you mean 'ternary'? known: binary, ternary"``: what to write instead of ``name``."""
    names = list(allowed)
    listed = f"{label}: {join_names(names, limit)}" if names else ""
    return " ".join(filter(None, (did_you_mean(name, names), listed)))


@dataclass(frozen=True)
class Plugin:
    """One registered class, as ``bitbench plugins`` lists it."""

    group: str
    """Entry-point group, such as ``bitbench.layers``."""
    name: str
    target: str
    """``module:Class``."""
    package: str
    """Distribution that registers it; empty where it does not say."""
    version: str
    builtin: bool
    fault: str = ""
    """Why it cannot be used; empty when it can."""


class Registry(Generic[T]):
    """Classes by name: the package's own as ``"module:Class"``, peers' through an entry-point group.

    A class is imported and instantiated once, at the first :meth:`get`. A peer cannot take a
    built-in name: a suite must mean the same on every machine.
    """

    def __init__(self, group: str, what: str, base: type[T], builtin: Mapping[str, str]) -> None:
        self.group = group
        self.what = what
        self.base = base
        self.builtin = dict(builtin)
        self._loaded: dict[str, T] = {}

    @cached_property
    def _peers(self) -> dict[str, list[EntryPoint]]:
        found: dict[str, list[EntryPoint]] = {}
        for entry in entry_points(group=self.group):
            found.setdefault(entry.name, []).append(entry)
        return found

    def names(self) -> list[str]:
        """All names, the package's own first. Imports none of the classes.

        Raises :class:`ToolError` where a peer takes a name that is built in or another peer's.
        """
        for name in sorted(self._peers):
            if clash := self._clash(name):
                raise ToolError(clash, "uninstall that package or let it register another name")
        return [*self.builtin, *sorted(self._peers)]

    def get(self, name: str) -> T:
        """The instance registered under ``name``.

        Raises :class:`UserError` for an unknown name and :class:`ToolError` where a plug-in cannot
        be imported or is not a subclass of the base class.
        """
        if name not in self._loaded:
            names = self.names()
            if name not in names:
                raise UserError(f"unknown {self.what} {name!r}", advice(name, names))
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def examine(self, fault_of: Callable[[str, T], str]) -> list[Plugin]:
        """Every registered class, loaded with torch out of reach, and what is wrong with it.

        ``fault_of(name, instance)`` looks at one that loads and says what is wrong, or ``""``.
        """
        listed = [
            Plugin(self.group, name, target, "bitbench", _version("bitbench"), builtin=True)
            for name, target in self.builtin.items()
        ]
        for name in sorted(self._peers):
            for entry in self._peers[name]:
                package, of = (entry.dist.name, entry.dist.version) if entry.dist else ("", "")
                fault = self._clash(name)
                listed.append(Plugin(self.group, name, entry.value, package, of, builtin=False, fault=fault))
        return [
            plugin if plugin.fault else replace(plugin, fault=self._try(plugin.name, fault_of))
            for plugin in listed
        ]

    def _try(self, name: str, fault_of: Callable[[str, T], str]) -> str:
        try:
            with without_torch():
                return fault_of(name, self._load(name))
        except UserError as error:
            return error.message
        except Exception as error:  # its code is not ours: whatever it raises is its fault
            return f"{type(error).__name__}: {error}"

    def _clash(self, name: str) -> str:
        entries = self._peers[name]
        if name in self.builtin:
            return f"plug-in {entries[0].value!r} (entry point {self.group}) takes the built-in name {name!r}"
        if len(entries) > 1:
            values = " and ".join(repr(entry.value) for entry in entries)
            return f"plug-ins {values} (entry point {self.group}) both take the name {name!r}"
        return ""

    def _load(self, name: str) -> T:
        if name in self.builtin:
            module, _, attribute = self.builtin[name].partition(":")
            found = getattr(importlib.import_module(module), attribute)
        else:
            (entry,) = self._peers[name]
            try:
                found = entry.load()
            except Exception as error:
                raise ToolError(
                    f"plug-in {entry.value!r} of the {self.what} {name!r} cannot be imported: {error}",
                    "repair or uninstall the package that registers it",
                ) from error
        if not (isinstance(found, type) and issubclass(found, self.base)):
            raise ToolError(
                f"the {self.what} {name!r} is not a subclass of {self.base.__module__}.{self.base.__name__}",
                "this is a fault of the package that registers it",
            )
        return found()


@contextmanager
def without_torch() -> Iterator[None]:
    """Importing torch fails inside: what a machine without it would see."""
    missing = object()
    modules: dict[str, Any] = sys.modules
    before = modules.get("torch", missing)
    modules["torch"] = None  # documented: makes the import raise
    try:
        yield
    finally:
        if before is missing:
            del modules["torch"]
        else:
            modules["torch"] = before


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
