"""Labelled images by name, to train a classifier on and to score it.

``mnist``, ``fashion-mnist`` and ``cifar10`` are the catalog's; ``synthetic`` is generated from a seed and
needs no download; a path names a folder of four files in MNIST's own format (idx: a magic number, the
dimensions as big-endian 32-bit integers, then one byte a pixel or label).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bitbench.data.catalog import names
from bitbench.data.cifar import STRIPS, read_strips
from bitbench.data.fetch import ensure
from bitbench.errors import UserError
from bitbench.plugins import did_you_mean, join_names

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

SYNTHETIC = "synthetic"
SYNTHETIC_SEED = 11
SYNTHETIC_TRAIN, SYNTHETIC_TEST = 2000, 500
SYNTHETIC_SIDE, SYNTHETIC_CLASSES = 12, 10
SYNTHETIC_NOISE = 60.0
"""Deviation of the noise, in steps of a pixel's 0 .. 255."""

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

_UNSIGNED_BYTE = 8
"""The type code of idx for the one type that images and labels have."""


@dataclass(frozen=True)
class Split:
    """Images and the class of each."""

    images: NDArray[np.uint8]
    """[count, rows, columns], 0 is background; [count, rows, columns, 3] where there are colours."""
    labels: NDArray[np.uint8]
    """[count], from 0."""


@dataclass(frozen=True)
class ImageSet:
    """Images to train on and images to score, which share none."""

    train: Split
    test: Split

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(max(self.train.labels.max(), self.test.labels.max())) + 1


def check_images(name: str) -> str:
    """``name`` if it names an image set. Reads nothing.

    Raises:
        ValueError: unknown name, or a folder without the four files.
    """
    known = [*names("images"), SYNTHETIC]
    if name in known:
        return name
    folder = Path(name)
    if folder.is_dir():
        missing = [file for file in FILES if not (folder / file).is_file()]
        if missing:
            raise ValueError(f"the folder {name} has no {join_names(missing)}")
        return name
    raise ValueError(
        f"unknown images {name!r}; {did_you_mean(name, known)} known: {join_names(known)}, "
        "or a folder of idx files"
    )


def load_images(name: str) -> ImageSet:
    """The image set called ``name``.

    Raises:
        UserError: unknown name, no network, or files that are not what they should be.
    """
    if (folder := _folder(name)) is None:
        return synthetic_images(SYNTHETIC_SEED)
    try:
        return read_folder(folder)
    except ValueError as problem:
        raise _refused(problem) from None


def load_test_images(name: str) -> Split:
    """Those of the image set called ``name`` that are there to be scored; errors as :func:`load_images`."""
    if (folder := _folder(name)) is None:
        return synthetic_images(SYNTHETIC_SEED).test
    try:
        return _read(folder, "test")
    except ValueError as problem:
        raise _refused(problem) from None


def _folder(name: str) -> Path | None:
    """Where the set lies, fetched where the catalog knows it; None for what is generated."""
    try:
        check_images(name)
    except ValueError as problem:
        raise _refused(problem) from None
    if name == SYNTHETIC:
        return None
    return ensure(name) if name in names("images") else Path(name)


def _refused(problem: ValueError) -> UserError:
    return UserError(str(problem), "Images are catalog names or folders of idx files.")


def read_folder(folder: Path) -> ImageSet:
    """The image set of the files in ``folder``; ValueError for what they cannot be."""
    train, test = _read(folder, "train"), _read(folder, "test")
    sizes = train.images.shape[1:], test.images.shape[1:]
    if sizes[0] != sizes[1]:
        raise ValueError(f"{folder} has images of {sizes[0]} to train on and of {sizes[1]} to score")
    return ImageSet(train, test)


def _read(folder: Path, part: Literal["train", "test"]) -> Split:
    if (folder / STRIPS[part][0]).is_file():
        return Split(*read_strips(folder, part))
    images, labels = FILES[:2] if part == "train" else FILES[2:]
    return _split(folder / images, folder / labels)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array in an idx file of unsigned bytes with so many ``dimensions``.

    Raises:
        ValueError: another type or number of dimensions, or another length than its head says.
    """
    import numpy as np

    data = path.read_bytes()
    head = 4 + 4 * dimensions
    magic = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if data[:4] != magic or len(data) < head:
        raise ValueError(
            f"{path} starts with {data[:4].hex() or 'nothing'}, not with {magic.hex()}: it is no idx file of "
            f"bytes in {dimensions} dimensions (still compressed?)"
        )
    shape = tuple(int.from_bytes(data[4 * i : 4 * i + 4], "big") for i in range(1, dimensions + 1))
    if len(data) - head != math.prod(shape):
        raise ValueError(f"{path} holds {len(data) - head} bytes of data, its head says {shape}: cut short?")
    return np.frombuffer(data, dtype=np.uint8, offset=head).reshape(shape)


def _split(images: Path, labels: Path) -> Split:
    split = Split(read_idx(images, 3), read_idx(labels, 1))
    if not len(split.images) or len(split.images) != len(split.labels):
        raise ValueError(
            f"{images} holds {len(split.images)} images, {labels.name} {len(split.labels)} labels"
        )
    return split


def synthetic_images(seed: int) -> ImageSet:
    """Noisy images of ten random patterns, the same for the same seed: easy, but not for a guess."""
    import numpy as np

    draw = np.random.default_rng(seed)
    shape = (SYNTHETIC_SIDE, SYNTHETIC_SIDE)
    patterns = draw.uniform(0, 255, (SYNTHETIC_CLASSES, *shape))

    def split(count: int) -> Split:
        labels = draw.integers(0, SYNTHETIC_CLASSES, count, dtype=np.uint8)
        noisy = patterns[labels] + draw.normal(0, SYNTHETIC_NOISE, (count, *shape))
        return Split(noisy.clip(0, 255).astype(np.uint8), labels)

    return ImageSet(split(SYNTHETIC_TRAIN), split(SYNTHETIC_TEST))


def by_channel(split: Split, count: int | None = None) -> Tensor:
    """The first ``count`` images, or all, as bytes ``[n, channels, rows, columns]``, in memory pixel by pixel
    as they came (torch's ``channels_last``)."""
    import torch

    pixels = torch.tensor(split.images[:count])
    return pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2)
