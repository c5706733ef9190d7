"""What a person sees while something is fetched."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from bitbench.data import progress


@pytest.mark.parametrize("terminal", [False, True])
def test_name_licence_and_place_are_shown(
    registry: Any, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr(progress, "entry", lambda _: registry.item)
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=200, color_system=None)
    folder = progress.fetch_shown(["toy"], console)["toy"]
    text = output.getvalue()
    assert "fetching toy: a toy (toy 1.0" in text
    assert "licence: MIT" in text
    assert str(folder) in text
    assert "verify" in text

    output.truncate(0)
    assert progress.fetch_shown(["toy"], console) == {"toy": folder}
    assert output.getvalue() == ""

    (folder / "texts" / "a.txt").write_bytes(b"FIRST")  # as long as before: only its bytes tell
    assert progress.fetch_shown(["toy"], console) == {"toy": folder}
    assert "toy in the cache is damaged" in output.getvalue()
    assert (folder / "texts" / "a.txt").read_bytes() == b"first"
