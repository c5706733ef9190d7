"""A benchmark as a test states it: what is timed, beside what, and how its result is checked."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitbench.store.metrics import METRICS

TARGET, BASELINE = "target", "baseline"

Extra = Mapping[str, Any] | Callable[..., Mapping[str, Any]]


@dataclass(frozen=True)
class Facts:
    """What a benchmark says of itself in ``extra``, taken apart."""

    kernel: str
    exact: dict[str, float]
    others: dict[str, Any]
    """Goes into ``extra_info`` as it is."""


@dataclass(frozen=True)
class Pair:
    """Target and baseline, not yet built."""

    target: Callable[..., Any]
    baseline: Callable[..., Any] | None = None
    check: Callable[[Any], Any] | None = None
    setup: Callable[[str], Any] | None = None
    extra: Extra | None = None

    def __post_init__(self) -> None:
        for name in ("target", "baseline", "check", "setup"):
            value = getattr(self, name)
            if not callable(value) and (name == "target" or value is not None):
                raise TypeError(f"side_by_side: {name} must be callable, got {type(value).__name__}")
        if self.extra is not None and not callable(self.extra) and not isinstance(self.extra, Mapping):
            raise TypeError(
                f"side_by_side: extra must be a mapping or a callable that returns one, "
                f"got {type(self.extra).__name__}"
            )

    @property
    def sides(self) -> tuple[str, ...]:
        """``target``, and ``baseline`` where there is one."""
        return (TARGET,) if self.baseline is None else (TARGET, BASELINE)

    def build(self, order: Sequence[str]) -> Built:
        """Build the sides in this order."""
        functions = {TARGET: self.target, BASELINE: self.baseline}
        arguments = {side: () if self.setup is None else (self.setup(side),) for side in order}
        calls: dict[str, Callable[[], Any]] = {}
        for side in order:
            function = functions[side]
            assert function is not None
            calls[side] = functools.partial(function, *arguments[side]) if arguments[side] else function
        return Built(self, calls, arguments[TARGET])


@dataclass(frozen=True)
class Built:
    """Both sides, ready to be called without arguments."""

    pair: Pair
    calls: dict[str, Callable[[], Any]]
    """By side, in the order in which they were built."""
    arguments: tuple[Any, ...]
    """What ``setup`` returned for the target."""

    def verify(self, result: Any) -> None:
        """AssertionError where the benchmark's ``check`` refuses the target's result."""
        if self.pair.check is None:
            return
        answer = self.pair.check(result)
        if answer is not None and not answer:
            raise AssertionError(f"the check of this benchmark refused its result (returned {answer!r})")

    def facts(self) -> Facts:
        """What ``extra`` says right after a call of the target.

        Raises TypeError or ValueError where it is not what a file can hold.
        """
        extra = self.pair.extra
        given = dict((extra(*self.arguments) if callable(extra) else extra) or {})
        kernel = given.pop("kernel", "")
        if not isinstance(kernel, str):
            raise TypeError(f"side_by_side: extra['kernel'] must be a string, got {kernel!r}")
        exact = given.pop("exact", {})
        if not isinstance(exact, Mapping):
            raise TypeError(
                f"side_by_side: extra['exact'] must map names of figures to numbers, got {exact!r}"
            )
        try:
            json.dumps(given, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TypeError(f"side_by_side: extra must hold JSON values: {error}") from error
        return Facts(kernel, {name: _exact(name, value) for name, value in exact.items()}, given)


def _exact(name: str, value: Any) -> float:
    if name not in METRICS:
        raise ValueError(
            f"side_by_side: extra['exact'] names {name!r}, which is no figure: "
            f"known are {', '.join(sorted(METRICS))}"
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"side_by_side: extra['exact'][{name!r}] must be a finite number, got {value!r}")
    return value
