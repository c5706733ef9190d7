"""Where bitbench keeps what it can make or fetch again: data, built versions, calibrations."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

CACHE_VARIABLE = "BITBENCH_CACHE"


def cache_root() -> Path:
    """The folder named by :data:`CACHE_VARIABLE`, else the user's cache directory. Not made here."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("bitbench"))
