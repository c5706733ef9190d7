"""The catalog of weights, texts and images: what each name means, where it comes from, what it must hash to.

Torch-free. Fetching is in :mod:`bitbench.data.fetch`, loading in :mod:`~bitbench.data.models`,
:mod:`~bitbench.data.classifiers`, :mod:`~bitbench.data.texts` and :mod:`~bitbench.data.images`.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import PurePosixPath
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bitbench.errors import UserError
from bitbench.plugins import did_you_mean, join_names

Holds = Literal["causal-lm", "encoder", "classifier", "text", "images"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_SHA256 = r"^[0-9a-f]{64}$"


class Artefact(_Strict):
    """The one file a registry hands out."""

    name: str
    size: int = Field(gt=0)
    """Bytes."""
    sha256: str = Field(pattern=_SHA256)


class KeptFile(_Strict):
    """A file, or a set of files, taken out of the artefact."""

    path: str
    """Path inside the artefact; a last part such as ``*.txt`` takes every match."""
    keep_as: str
    """Where it goes, relative to the entry's folder: a file, or a folder for a set. A file ``*.gz`` that is
    kept under a name without this ending is decompressed; size and sha256 are of what is kept."""
    size: int = Field(gt=0)
    """Bytes, summed over a set."""
    sha256: str = Field(pattern=_SHA256)
    """Of the file; for a set, of its sorted ``<sha256>  <path>`` lines."""
    count: int | None = Field(default=None, gt=0)
    """Files in a set; absent for a single file."""

    @property
    def is_set(self) -> bool:
        return self.count is not None

    @property
    def is_compressed(self) -> bool:
        """Whether it is decompressed on the way."""
        return self.path.endswith(".gz") and not self.is_set and not self.keep_as.endswith(".gz")

    @model_validator(mode="after")
    def _stays_inside(self) -> KeptFile:
        if ("*" in self.path) != self.is_set:
            raise ValueError(f"{self.path}: a pattern needs `count`, a single file must not have it")
        for path in (self.path, self.keep_as):
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise ValueError(f"{path}: must be relative and must not climb")
        return self


class Entry(_Strict):
    """One name of the catalog."""

    title: str
    holds: Holds
    registry: Literal["pypi", "npm", "debian"]
    package: str
    version: str
    artefact: Artefact
    files: tuple[KeptFile, ...] = Field(min_length=1)
    licence: str
    source: str
    loader: str
    """Dotted name of the function that loads it."""
    note: str = ""
    parameters: int | None = None
    """Numbers in the model, for models."""
    block_linear_parameters: int | None = None
    """Those of them in ``nn.Linear`` weights of its blocks: what conversion replaces."""

    @property
    def kept_bytes(self) -> int:
        """Bytes that stay in the cache."""
        return sum(file.size for file in self.files)


class Catalog(_Strict):
    schema_version: Literal[1] = Field(alias="schema")
    entries: dict[str, Entry]


@cache
def catalog() -> Catalog:
    """The catalog that ships with bitbench."""
    text = resources.files("bitbench.data").joinpath("catalog.yaml").read_text(encoding="utf-8")
    return Catalog.model_validate(yaml.safe_load(text))


def entry(name: str) -> Entry:
    """The entry called ``name``.

    Raises:
        UserError: unknown name, with the nearest known one.
    """
    entries = catalog().entries
    if name not in entries:
        raise UserError(
            f"the data catalog has no entry {name!r}",
            f"{did_you_mean(name, entries)} known: {join_names(entries)} (`bitbench data list`)".strip(),
        )
    return entries[name]


def names(holds: Holds) -> list[str]:
    """Names of the entries of one sort, in catalog order."""
    return [name for name, item in catalog().entries.items() if item.holds == holds]
