"""A GPU played back from a trace, so that everything about GPUs can be tried where there is none.

A trace is a file of JSON lines in NVML's own names and units (milliwatts, millijoules, MHz), so
that :class:`bitbench.measure.nvml.Nvml` itself is what runs on it, not a copy of its logic. The
first line holds ``trace`` (``recorded`` or ``synthetic``), ``device`` and the answers that stay the
same; every further line one reading: ``t`` in seconds and the answers at that time. An answer is

* a number, a string, a list, or an object whose members become attributes;
* ``{"error": 3}``: the function raises ``NVMLError`` with that code (3 is *not supported*);
* ``{"by": {"1": 1980, "2": 2619}}``: it depends on the second argument (the kind of clock).

A function that a trace does not name raises *function not found*, as an old driver does.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bitbench.measure.nvml import GpuState, Nvml

FUNCTION_NOT_FOUND = 13


class Replay(Nvml):
    """The GPU of a trace. Each :meth:`read` is its next reading; the last one stays."""

    def __init__(self, trace: Path, visible: str = "0") -> None:
        """Raises :class:`ValueError` for a file that is no trace."""
        self._trace = TracedLibrary(trace)
        super().__init__(self._trace, visible)

    def read(self) -> GpuState:
        self._trace.advance()
        return super().read()

    @property
    def t(self) -> float:
        """Seconds of the reading last given."""
        return self._trace.t

    def __len__(self) -> int:
        """Readings in the trace."""
        return len(self._trace.readings)


class TracedLibrary:
    """Stands in for the module ``pynvml``: its constants, and functions that answer from a trace."""

    def __init__(self, trace: Path) -> None:
        import pynvml

        self._constants = pynvml
        self.NVMLError = pynvml.NVMLError
        try:
            lines = [json.loads(line) for line in trace.read_text(encoding="utf-8").splitlines()]
            head, *self.readings = lines
            self.origin, self.device = str(head["trace"]), str(head["device"])
            self._answers: dict[str, Any] = head["answers"]
            self._times = [float(reading["t"]) for reading in self.readings]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{trace} is not a GPU trace: {type(error).__name__}: {error}") from error
        if not self.readings or self.origin not in ("recorded", "synthetic"):
            raise ValueError(f"{trace} is not a GPU trace: needs readings, and `trace` recorded or synthetic")
        self._position = -1

    @property
    def t(self) -> float:
        return self._times[max(0, self._position)]

    def advance(self) -> None:
        self._position = min(self._position + 1, len(self.readings) - 1)

    def nvmlInit(self) -> None:
        return

    def nvmlShutdown(self) -> None:
        return

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._constants, name)  # AttributeError for what NVML does not know either
        if not callable(real) or not name.startswith("nvml"):
            return real

        def function(*arguments: Any) -> Any:
            current = self.readings[max(0, self._position)]
            return self._answer(current.get(name, self._answers.get(name)), arguments)

        return function

    def _answer(self, stored: Any, arguments: tuple[Any, ...]) -> Any:
        if stored is None:
            raise self.NVMLError(FUNCTION_NOT_FOUND)
        if isinstance(stored, dict):
            if "error" in stored:
                raise self.NVMLError(stored["error"])
            if "by" in stored:
                return self._answer(stored["by"].get(str(arguments[1])), arguments)
            return SimpleNamespace(**stored)
        if isinstance(stored, list):
            return [SimpleNamespace(**item) if isinstance(item, dict) else item for item in stored]
        return stored
