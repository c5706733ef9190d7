"""Which cases cost a side's process its life, and which of them are given up. Pure."""

from __future__ import annotations

from bitbench.store.schema import Side, Status

DEATHS = 2
"""Launches in which a case may cost a worker its life before it is given up."""


class Losses:
    """Counts, by case and side, the launches in which a process was lost at it."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, Side], list[tuple[Status, str]]] = {}

    def add(self, case: str, side: Side, status: Status, reason: str) -> None:
        """The process of ``side`` was lost at ``case``, once in a launch."""
        self._found.setdefault((case, side), []).append((status, reason))

    def given_up(self, case: str, side: Side) -> tuple[Status, str] | None:
        """Status and reason of ``case`` without trying it again, or None where it is to be tried."""
        found = self._found.get((case, side), [])
        if len(found) < DEATHS:
            return None
        status, reason = found[-1]
        return status, f"not tried after {DEATHS} losses: {reason}"
