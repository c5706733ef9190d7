"""Where a worker's ``import impl`` leads: to one side's folder, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from bitbench.errors import ToolError


class SideFinder:
    """Finds the given packages, and all that is in them, under one folder only.

    It has to come before every other finder: an editable install brings one of its own, which
    would hand out the installed sources. What the folder lacks is not to be had from elsewhere
    either: a mixture of two versions would be measured as one.
    """

    def __init__(self, root: Path, packages: Sequence[str]) -> None:
        self._root = root
        self._packages = frozenset(packages)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the import system asks a finder."""
        top, _, rest = fullname.partition(".")
        if top not in self._packages:
            return None
        found = PathFinder.find_spec(fullname, path if rest else [str(self._root)], target)
        if found is None:
            raise ModuleNotFoundError(f"this side has no module {fullname!r}", name=fullname)
        return found


def import_from(root: Path, packages: Sequence[str]) -> None:
    """From now on, ``packages`` are imported from the folder ``root``.

    Raises :class:`ToolError` where one of them is imported already.
    """
    early = sorted(name for name in packages if name in sys.modules)
    if early:
        raise ToolError(
            f"{early[0]!r} was imported from {sys.modules[early[0]].__file__} before its side was known",
            "a plug-in must not import the package that is compared when it is loaded",
        )
    sys.meta_path.insert(0, SideFinder(root, packages))
