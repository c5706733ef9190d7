"""Named things found by module path or entry point, and imported only when asked for."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

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
    def _peers(self) -> dict[str, EntryPoint]:
        return {e.name: e for e in entry_points(group=self.group)}

    def names(self) -> list[str]:
        """All names, the package's own first. Imports none of the classes."""
        clash = sorted(set(self.builtin) & set(self._peers))
        if clash:
            peer = self._peers[clash[0]]
            raise ToolError(
                f"plug-in {peer.value!r} (entry point {self.group}) takes the built-in name {clash[0]!r}",
                "uninstall that package or let it register another name",
            )
        return [*self.builtin, *sorted(self._peers)]

    def get(self, name: str) -> T:
        """The instance registered under ``name``.

        Raises :class:`UserError` for an unknown name and :class:`ToolError` where a plug-in cannot
        be imported or is not a subclass of the base class.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _load(self, name: str) -> T:
        names = self.names()
        if name not in names:
            raise UserError(f"unknown {self.what} {name!r}", advice(name, names))
        if name in self.builtin:
            module, _, attribute = self.builtin[name].partition(":")
            found = getattr(importlib.import_module(module), attribute)
        else:
            try:
                found = self._peers[name].load()
            except Exception as error:
                plugin = self._peers[name].value
                raise ToolError(
                    f"plug-in {plugin!r} of the {self.what} {name!r} cannot be imported: {error}",
                    "repair or uninstall the package that registers it",
                ) from error
        if not (isinstance(found, type) and issubclass(found, self.base)):
            raise ToolError(
                f"the {self.what} {name!r} is not a subclass of {self.base.__module__}.{self.base.__name__}",
                "this is a fault of the package that registers it",
            )
        return found()
