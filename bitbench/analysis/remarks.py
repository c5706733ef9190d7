"""What a reader should know of results that stand: the notes of records, gathered per case."""

from __future__ import annotations

from collections.abc import Sequence

from bitbench.store.schema import Record

SUSPICIOUS = "suspicious"
"""How the note of a result begins that is above a measured limit of the machine
(:func:`bitbench.measure.roofline.level`)."""


def remarks(records: Sequence[Record]) -> tuple[str, ...]:
    """Notes of one case's records, each kind once: ``suspicious: weights read at ... (2 of 5
    launches)``.

    A kind is what stands before the colon: what follows names figures of one launch, and the first
    launch's stand for all.
    """
    first: dict[str, str] = {}
    launches: dict[str, int] = {}
    for record in records:
        for kind, note in {note.partition(":")[0]: note for note in record.notes}.items():
            first.setdefault(kind, note)
            launches[kind] = launches.get(kind, 0) + 1
    if len(records) == 1:
        return tuple(first.values())
    return tuple(f"{note} ({launches[kind]} of {len(records)} launches)" for kind, note in first.items())


def suspicion(notes: Sequence[str]) -> str:
    """The suspicion among ``notes`` in the few words that fit a cell, or nothing."""
    return SUSPICIOUS if any(note.startswith(f"{SUSPICIOUS}:") for note in notes) else ""
