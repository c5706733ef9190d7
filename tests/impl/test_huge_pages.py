"""Huge pages behind packed weights: asked for within a tensor's memory, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import impl
from impl.native import huge_pages

PAGE = 2 << 20


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """(begin, size, advice) of every call; the first kind of advice fails."""
    calls: list[tuple[int, int, int]] = []

    def madvise(begin: int, size: int, advice: int) -> int:
        calls.append((begin, size, advice))
        return -1 if advice == huge_pages._MADV_COLLAPSE else 0

    monkeypatch.setattr(huge_pages, "huge_page_bytes", lambda: PAGE)
    monkeypatch.setattr(huge_pages, "_madvise", lambda: madvise)
    return calls


@pytest.mark.parametrize("offset", [0, 1, 64, PAGE - 1])
@pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE, 2 * PAGE - 1, 3 * PAGE + 5])
def test_whole_pages_inside_the_tensor_are_asked_for(
    asked: list[tuple[int, int, int]], offset: int, size: int
) -> None:
    memory = torch.zeros(5 * PAGE, dtype=torch.uint8)
    first = -memory.data_ptr() % PAGE
    part = memory[first + offset : first + offset + size]
    huge_pages.prefer_huge_pages(part)
    begin = memory.data_ptr() + first + (PAGE if offset else 0)
    whole = (offset + size) // PAGE - (1 if offset else 0)
    advice = [huge_pages._MADV_COLLAPSE, huge_pages._MADV_HUGEPAGE]
    assert asked == ([(begin, whole * PAGE, each) for each in advice] if whole > 0 else [])


def test_a_layer_asks_once_for_its_codes(asked: list[tuple[int, int, int]]) -> None:
    layer = impl.BinaryLinear(8192, 8192, activation_bits=8).pack()  # 8 MiB: three whole pages at least
    with impl.native.backend("native"):
        for _ in range(3):
            layer(torch.zeros(1, 8192))
    assert [advice for *_, advice in asked] == [huge_pages._MADV_COLLAPSE, huge_pages._MADV_HUGEPAGE]
    begin, size, _ = asked[0]
    assert size >= 3 * PAGE
    assert layer.codes.data_ptr() <= begin
    assert begin + size <= layer.codes.data_ptr() + layer.codes.nbytes


@pytest.mark.parametrize(
    ("setting", "bytes_"), [("always madvise [never]", 0), ("always [madvise] never", PAGE)]
)
def test_an_owner_who_switched_them_off_is_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, bytes_: int
) -> None:
    (tmp_path / "enabled").write_text(setting)
    (tmp_path / "hpage_pmd_size").write_text(f"{PAGE}\n")
    monkeypatch.setattr(huge_pages, "_SETTINGS", tmp_path)
    assert huge_pages.huge_page_bytes.__wrapped__() == bytes_
    monkeypatch.setattr(huge_pages, "_SETTINGS", tmp_path / "missing")
    assert huge_pages.huge_page_bytes.__wrapped__() == 0


def test_what_lies_there_stays() -> None:
    values = torch.arange(3 * PAGE, dtype=torch.int32)
    before = values.clone()
    huge_pages.prefer_huge_pages(values)
    assert torch.equal(values, before)
