"""A copy of a side of its own for each launch, so that where a file lies in memory is drawn anew.

The pages of a library stay where they first came to lie for as long as the machine keeps the file
cached, for all processes that load it. Two files with the same bytes were seen to differ by 5 % in
one kernel, in every launch and for as long as both were kept: launches repeated the bias instead of
averaging it out. A fresh copy a launch turns it into what launches are for, scatter.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path


def private_copy(root: Path, packages: Sequence[str], place: Path) -> Path:
    """Make the folder ``place`` hold copies of ``packages`` from ``root``, and links to whatever else
    lies there, which a package may look for beside itself. Returns ``place``."""
    place.mkdir(parents=True)
    own = {name for package in packages for name in (package, f"{package}.py")}
    for entry in root.iterdir():
        if entry.name not in own:
            (place / entry.name).symlink_to(entry)
        elif entry.is_dir():
            shutil.copytree(entry, place / entry.name, symlinks=True)
        else:
            shutil.copy2(entry, place / entry.name)
    return place
