"""Image sets: read to the byte from idx files, refused where they are damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitbench.data import images
from bitbench.data.images import (
    FILES,
    check_images,
    load_images,
    load_test_images,
    read_folder,
    read_idx,
    synthetic_images,
)
from bitbench.errors import UserError


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for name, count in zip(FILES[::2], (7, 3), strict=True):
        (tmp_path / name).write_bytes(idx(draw.integers(0, 256, (count, 4, 5))))
        (tmp_path / name.replace("images-idx3", "labels-idx1")).write_bytes(idx(np.arange(count) % 4))
    return tmp_path


def test_a_folder_is_read_to_the_byte(folder: Path) -> None:
    found = load_images(str(folder))
    assert found.train.images.shape == (7, 4, 5)
    assert found.test.images.shape == (3, 4, 5)
    assert found.train.images.tobytes() == (folder / FILES[0]).read_bytes()[16:]
    assert found.test.labels.tolist() == [0, 1, 2]
    assert found.classes == 4
    alone = load_test_images(str(folder))
    assert alone.images.tobytes() == found.test.images.tobytes()
    assert alone.labels.tolist() == [0, 1, 2]
    assert load_test_images("synthetic").images.tobytes() == load_images("synthetic").test.images.tobytes()


def test_catalog_names_are_read_from_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "ensure", {"mnist": folder}.__getitem__)
    assert load_images("mnist").train.images.shape == (7, 4, 5)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (FILES[0], b"\x1f\x8b\x08\x00 gzip", "still compressed"),
        (FILES[0], b"", "starts with nothing"),
        (FILES[0], idx(np.zeros(7)), "no idx file of bytes in 3 dimensions"),
        (FILES[0], idx(np.zeros((7, 4, 5)))[:-1], "holds 139 bytes of data"),
        (FILES[0], idx(np.zeros((7, 4, 5))) + b"x", "holds 141 bytes of data"),
        (FILES[0], idx(np.zeros((7, 4, 5)))[:9], "still compressed"),
        (FILES[0], idx(np.zeros((6, 4, 5))), "holds 6 images, train-labels-idx1-ubyte 7 labels"),
        (FILES[0], idx(np.zeros((7, 5, 5))), r"images of \(5, 5\) to train on and of \(4, 5\)"),
    ],
)
def test_damaged_files_are_refused(folder: Path, file: str, content: bytes, message: str) -> None:
    (folder / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_folder(folder)
    with pytest.raises(UserError, match=message):
        load_images(str(folder))


def test_another_type_of_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "floats"
    path.write_bytes(bytes([0, 0, 13, 1]) + (4).to_bytes(4, "big") + bytes(16))
    with pytest.raises(ValueError, match="starts with 00000d01, not with 00000801"):
        read_idx(path, 1)


def test_names_are_checked_without_reading(folder: Path, tmp_path: Path) -> None:
    assert check_images("mnist") == "mnist"
    assert check_images("synthetic") == "synthetic"
    assert check_images(str(folder)) == str(folder)
    with pytest.raises(ValueError, match="did you mean 'mnist'"):
        check_images("mnits")
    (folder / FILES[3]).unlink()
    with pytest.raises(ValueError, match=FILES[3]):
        check_images(str(tmp_path))
    for load in (load_images, load_test_images):
        with pytest.raises(UserError, match="did you mean 'cifar10'"):
            load("cifar")


def test_synthetic_images_are_the_same_for_the_same_seed_and_can_be_told_apart() -> None:
    one, same, other = (synthetic_images(seed) for seed in (3, 3, 4))
    assert np.array_equal(one.train.images, same.train.images)
    assert not np.array_equal(one.train.images, other.train.images)
    assert set(one.test.labels.tolist()) == set(range(10))
    # The nearest mean of a class finds the class of an image it has not seen.
    means = np.stack([one.train.images[one.train.labels == c].mean(axis=0) for c in range(10)])
    distance = ((one.test.images[:, None].astype(float) - means) ** 2).sum(axis=(2, 3))
    assert (distance.argmin(axis=1) == one.test.labels).mean() > 0.95
