"""CIFAR-10 as the catalog has it: PNG files of one image a row, 32 x 32 pixels in 1024, and labels in JSON.

PNG loses nothing: the pixels are those of Krizhevsky's binary files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIDE = 32
STRIPS = {"train": tuple(f"data_batch_{number}.png" for number in range(1, 6)), "test": ("test_batch.png",)}


def read_strips(folder: Path, part: Literal["train", "test"]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images ``[count, 32, 32, 3]``, red, green and blue, and labels ``[count]`` of one part.

    Raises:
        ValueError: files that are not what they should be.
    """
    import numpy as np

    images = np.concatenate([_read_strip(folder / name) for name in STRIPS[part]])
    labels = _read_labels(folder / f"{part}_labels.json")
    if len(images) != len(labels):
        raise ValueError(f"{folder} holds {len(images)} {part} images and {len(labels)} labels of them")
    return images, labels


def _read_strip(path: Path) -> NDArray[np.uint8]:
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            width, mode = picture.width, picture.mode
            pixels = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError, UnidentifiedImageError) as problem:  # a broken PNG is a SyntaxError
        raise ValueError(f"{path} is no picture that can be read: {problem}") from None
    if width != SIDE**2 or mode not in ("RGB", "RGBA"):
        raise ValueError(
            f"{path} is {width} pixels wide and of mode {mode}, not {SIDE**2} wide and in colour"
        )
    return pixels.reshape(-1, SIDE, SIDE, 3)


def _read_labels(path: Path) -> NDArray[np.uint8]:
    import numpy as np

    try:
        labels = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ValueError(f"{path} is no list of labels: {problem}") from None
    if not isinstance(labels, list) or not all(type(x) is int and 0 <= x <= 255 for x in labels):
        raise ValueError(f"{path} is no list of labels from 0 to 255")
    return np.array(labels, dtype=np.uint8)
