"""Fetching: what is whole is kept, what is damaged is noticed and fetched again, once."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from bitbench.cache import cache_root
from bitbench.data.catalog import KeptFile
from bitbench.data.fetch import FetchProgress, ensure, entry_folder, present, remove, verify
from bitbench.errors import Exit, ToolError, UserError


def test_fetches_verifies_and_keeps_only_what_is_wanted(registry: Any) -> None:
    folder = ensure("toy")
    assert (folder / "model.bin").read_bytes() == registry.content["toy/model.bin"]
    assert (folder / "texts" / "b.txt").read_bytes() == registry.content["toy/texts/b.txt"]
    kept = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert kept == {"model.bin", "texts/a.txt", "texts/b.txt", "stamp.json"}
    assert verify("toy") == []
    leftovers = [path.name for path in folder.parent.iterdir() if path != folder]
    assert leftovers == [".lock"]


def test_what_is_there_is_not_fetched_again(registry: Any) -> None:
    steps: list[FetchProgress] = []
    first = ensure("toy", steps.append)
    assert {step.stage for step in steps} == {"download", "verify", "unpack"}
    assert steps[-1].done == steps[-1].total
    steps.clear()
    assert ensure("toy", steps.append) == first
    assert steps == []
    assert registry.requests == [False]


@pytest.mark.parametrize("damage", ["truncated", "other bytes", "not a zip", "empty"])
def test_a_damaged_download_is_fetched_again(registry: Any, damage: str) -> None:
    good = registry.wheel.read_bytes()
    flipped = bytes([good[100] ^ 1])
    registry.serves = [
        {
            "truncated": good[:-7],
            "other bytes": good[:100] + flipped + good[101:],
            "not a zip": b"x" * len(good),
            "empty": b"",
        }[damage]
    ]
    assert present("toy") is None
    ensure("toy")
    assert verify("toy") == []
    assert registry.requests == [False, True]  # the second bypasses the client's cache


def test_damaged_twice_is_a_clear_failure_that_leaves_nothing(registry: Any) -> None:
    registry.serves = [b"bad", b"worse"]
    with pytest.raises(ToolError, match=r"arrived damaged twice: .* has 5 bytes, expected") as caught:
        ensure("toy")
    assert caught.value.exit_code is Exit.TOOL
    assert "bitbench data fetch toy --from" in caught.value.remedy
    assert present("toy") is None
    assert [path.name for path in entry_folder("toy").parent.iterdir()] == [".lock"]
    ensure("toy")  # and the next try succeeds


def test_a_wrong_hash_of_a_file_inside_is_noticed(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = registry.item.files[0].model_copy(update={"sha256": "f" * 64})
    wrong = registry.item.model_copy(update={"files": (file,)})
    monkeypatch.setattr("bitbench.data.fetch.entry", lambda _: wrong)
    with pytest.raises(ToolError, match=r"model.bin has sha256 .* expected ffff"):
        ensure("toy")


def with_file(registry: Any, monkeypatch: pytest.MonkeyPatch, path: str, kept: bytes) -> None:
    """Have the toy keep one file, whose bytes are ``kept``."""
    file = KeptFile(path=path, keep_as="plain", size=len(kept), sha256=hashlib.sha256(kept).hexdigest())
    item = registry.item.model_copy(update={"files": (file,)})
    monkeypatch.setattr("bitbench.data.fetch.entry", lambda _: item)


def test_a_compressed_file_is_kept_and_checked_as_it_was(
    registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = gzip.decompress(registry.content["toy/packed.gz"])
    with_file(registry, monkeypatch, "toy/packed.gz", plain)
    seen: list[FetchProgress] = []
    assert (ensure("toy", seen.append) / "plain").read_bytes() == plain
    assert verify("toy") == []
    assert (seen[-1].done, seen[-1].total) == (len(plain), len(plain))


def test_a_file_that_is_not_compressed_as_its_name_says_is_damaged(
    registry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_file(registry, monkeypatch, "toy/packed.gz", b"wanted")
    with pytest.raises(ToolError, match="plain has 1700 bytes, expected 6"):
        ensure("toy")
    monkeypatch.setattr("gzip.GzipFile.read", lambda *_: (_ for _ in ()).throw(gzip.BadGzipFile("no gzip")))
    with pytest.raises(ToolError, match="is not a readable archive: no gzip"):
        ensure("toy")


def test_no_network_is_the_users_to_mend(registry: Any) -> None:
    registry.error = UserError("the package index does not answer", "Connect to the network.")
    with pytest.raises(UserError, match="does not answer") as caught:
        ensure("toy")
    assert caught.value.exit_code is Exit.USAGE
    assert registry.requests == [False]  # not tried twice
    assert not entry_folder("toy").exists()


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    "harm", ["missing file", "shorter file", "no stamp", "broken stamp", "other version"]
)
def test_a_harmed_cache_is_repaired(harm: str) -> None:
    folder = ensure("toy")
    stamp = folder / "stamp.json"
    if harm == "missing file":
        (folder / "texts" / "a.txt").unlink()
    elif harm == "shorter file":
        (folder / "model.bin").write_bytes(b"\x01")
    elif harm == "no stamp":
        stamp.unlink()
    elif harm == "broken stamp":
        stamp.write_text("[1, 2")
    else:
        stamp.write_text(json.dumps(json.loads(stamp.read_text()) | {"artefact": "0" * 64}))
    assert present("toy") is None
    assert verify("toy") != []
    assert ensure("toy") == folder
    assert verify("toy") == []


@pytest.mark.usefixtures("registry")
def test_verify_reads_every_byte() -> None:
    """A flipped bit keeps the size: the quick look cannot see it, verify does."""
    folder = ensure("toy")
    content = bytearray((folder / "model.bin").read_bytes())
    content[1500] ^= 1
    (folder / "model.bin").write_bytes(bytes(content))
    assert present("toy") == folder
    [problem] = verify("toy")
    assert "model.bin has sha256" in problem
    assert ensure("toy") == folder
    assert verify("toy") == [problem]
    assert ensure("toy", thorough=True) == folder
    assert verify("toy") == []


@pytest.mark.usefixtures("registry")
def test_leftovers_of_a_killed_fetch_are_swept() -> None:
    home = entry_folder("toy").parent
    (home / "fetch-abc" / "kept").mkdir(parents=True)
    (home / "fetch-abc" / "kept" / "model.bin").write_bytes(b"half")
    ensure("toy")
    assert not (home / "fetch-abc").exists()


def test_two_at_once_fetch_once(registry: Any) -> None:
    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(ensure("toy"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(folders)) == 1
    assert len(folders) == 4
    assert registry.requests == [False]


def test_an_artefact_brought_by_hand(registry: Any, tmp_path: Path) -> None:
    registry.error = AssertionError("the registry must not be asked")
    other = tmp_path / "other.whl"
    other.write_bytes(b"not it")
    with pytest.raises(UserError, match=r"is not what toy needs: other\.whl has 6 bytes"):
        ensure("toy", source=other)
    folder = ensure("toy", source=registry.wheel)
    assert verify("toy") == []
    assert registry.wheel.exists()
    assert present("toy") == folder


def test_remove_frees_the_room(registry: Any) -> None:
    assert remove("toy") == 0
    ensure("toy")
    assert remove("toy") >= registry.item.kept_bytes
    assert present("toy") is None
    assert verify("toy") == ["not fetched"]


@pytest.mark.usefixtures("registry")
def test_an_unwritable_cache_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder should be")
    monkeypatch.setenv("BITBENCH_CACHE", str(blocked))
    with pytest.raises(UserError, match="cannot write to the cache") as caught:
        ensure("toy")
    assert "BITBENCH_CACHE" in caught.value.remedy


def test_a_full_disk_is_told_before_downloading(registry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(UserError, match="fetching toy needs"):
        ensure("toy")
    assert registry.requests == []


def test_the_cache_is_where_it_was_asked_to_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BITBENCH_CACHE", str(tmp_path / "here"))
    assert cache_root() == tmp_path / "here"
    monkeypatch.delenv("BITBENCH_CACHE")
    assert cache_root().name == "bitbench"
