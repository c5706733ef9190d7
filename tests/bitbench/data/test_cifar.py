"""CIFAR-10's strips: every pixel and label in its place, damaged files refused. Small pictures of our own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bitbench.data import images
from bitbench.data.cifar import STRIPS, read_strips
from bitbench.data.images import load_images, load_test_images
from bitbench.errors import UserError

TEST = STRIPS["test"][0]


def strip(pixels: np.ndarray, path: Path) -> None:
    """Save images ``[count, 32, 32, 3]`` as the package has them: one a row."""
    Image.fromarray(pixels.reshape(len(pixels), 1024, 3)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for name in (*STRIPS["train"], TEST):
        strip(draw.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8), tmp_path / name)
    (tmp_path / "train_labels.json").write_text(json.dumps([i % 10 for i in range(20)]))
    (tmp_path / "test_labels.json").write_text("[3, 8, 8, 0]")
    return tmp_path


def test_every_pixel_keeps_its_image_row_column_and_colour(tmp_path: Path) -> None:
    pixels = np.zeros((3, 32, 32, 3), dtype=np.uint8)
    pixels[1, 2, 5] = (158, 112, 49)
    strip(pixels, tmp_path / TEST)
    (tmp_path / "test_labels.json").write_text("[3, 8, 8]")
    found, labels = read_strips(tmp_path, "test")
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels)
    assert found[1, 2, 5].tolist() == [158, 112, 49]
    assert (labels.dtype, labels.tolist()) == (np.uint8, [3, 8, 8])


def test_training_images_come_in_the_order_of_their_files(folder: Path) -> None:
    found, labels = read_strips(folder, "train")
    first = np.asarray(Image.open(folder / "data_batch_1.png")).reshape(4, 32, 32, 3)
    last = np.asarray(Image.open(folder / "data_batch_5.png")).reshape(4, 32, 32, 3)
    assert np.array_equal(found[:4], first)
    assert np.array_equal(found[16:], last)
    assert labels.tolist() == [i % 10 for i in range(20)]


def test_a_transparent_strip_gives_its_colours(folder: Path) -> None:
    opaque, _ = read_strips(folder, "test")
    Image.open(folder / TEST).convert("RGBA").save(folder / TEST)
    assert np.array_equal(read_strips(folder, "test")[0], opaque)


def test_the_catalog_name_loads_both_parts_and_the_test_images_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "ensure", {"cifar10": folder}.__getitem__)
    found = load_images("cifar10")
    assert (found.train.images.shape, found.test.images.shape) == ((20, 32, 32, 3), (4, 32, 32, 3))
    assert found.classes == 10
    (folder / STRIPS["train"][0]).write_bytes(b"")  # which nobody reads to score
    assert np.array_equal(load_test_images("cifar10").images, found.test.images)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (TEST, b"\x89PNG cut", "is no picture that can be read"),
        (TEST, None, "is no picture that can be read"),
        ("test_labels.json", b"[3, 8", "is no list of labels"),
        ("test_labels.json", b'{"0": 3}', "is no list of labels from 0 to 255"),
        ("test_labels.json", b"[3, 8, 8, 256]", "is no list of labels from 0 to 255"),
        ("test_labels.json", b"[3, 8, 8, true]", "is no list of labels from 0 to 255"),
        ("test_labels.json", b"[3, 8, 8]", "holds 4 test images and 3 labels"),
    ],
)
def test_damaged_files_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: bytes | None, message: str
) -> None:
    monkeypatch.setattr(images, "ensure", {"cifar10": folder}.__getitem__)
    if content is None:
        content = (folder / TEST).read_bytes()[:-3000]
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_test_images("cifar10")


@pytest.mark.parametrize("picture", [Image.new("RGB", (1000, 4)), Image.new("L", (1024, 4))])
def test_a_picture_of_another_shape_is_refused(folder: Path, picture: Image.Image) -> None:
    picture.save(folder / TEST)
    with pytest.raises(ValueError, match="not 1024 wide and in colour"):
        read_strips(folder, "test")
