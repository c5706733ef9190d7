"""Gates of every outcome, made by hand: what a renderer has to show."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from bitbench.analysis.comparison import Compared, Comparison, Difference
from bitbench.analysis.gate import GateResult, GateRow, Outcome, Proof, Role
from bitbench.analysis.statistics import Estimate
from bitbench.analysis.verdicts import Verdict, Word
from bitbench.store.schema import Case

Maker = Callable[..., Any]


def make_case(layer: str = "ternary", tokens: int = 1, *, measure: str | None = None) -> Case:
    params: dict[str, Any] = {"shape": [2048, 2048]}
    params |= {"measure": measure} if measure else {"tokens": tokens, "cache": "hot"}
    name = f"{layer}-{measure or tokens}"
    return Case(
        id=name,
        point=f"p{measure or tokens}",
        workload="linear",
        entry=0,
        phase="once" if measure else "timed",
        replicate="exact" if measure else "launches",
        launches=1 if measure else 10,
        layer=layer,
        params=params,
        numerics=layer,
    )


def make_time(
    word: Word,
    effect: float,
    layer: str = "ternary",
    tokens: int = 1,
    *,
    control: bool = False,
    rounds: int = 1,
) -> Compared:
    """A timed figure: ``effect`` is base / head, known to one per cent."""
    base = 120e-6 * tokens
    return Compared(
        case=make_case(layer, tokens),
        metric="time.latency",
        kind="time",
        verdict=Verdict(
            word,
            "main (1a2b3c4)",
            effect=Estimate(effect, effect / 1.01, effect * 1.01, n=10, confidence=0.99),
            detectable=0.021,
            p=0.0004,
            corrected_over=12,
            rounds=rounds,
        ),
        base=Estimate(base, base * 0.995, base * 1.005, n=10),
        head=Estimate(base / effect, base / effect * 0.995, base / effect * 1.005, n=10),
        spread=0.011,
        control=control,
    )


def make_figure(metric: str, before: float, after: float, layer: str = "ternary") -> Compared:
    """A figure judged by equality, of which less is better."""
    moved: Any = "" if before == after else "worse" if after > before else "better"
    return Compared(
        case=make_case(layer, measure="bytes"),
        metric=metric,
        kind="exact",
        verdict=Verdict(Word.MOVED if moved else Word.SAME, "main (1a2b3c4)"),
        base=Estimate(before, exact=True),
        head=Estimate(after, exact=True),
        moved=moved,
    )


def make_rows(*results: Compared, shown: str = "") -> tuple[GateRow, ...]:
    """Gating rows, controls as such; those of the layer ``shown`` are only shown."""

    def row(result: Compared) -> GateRow:
        threshold = 0.012 if result.kind == "time" else 0.0
        if result.control:
            return GateRow(result, Role.CONTROL, threshold)
        if shown and result.case.layer == shown:
            return GateRow(result, Role.SHOWN, threshold, "spread 4.1 % exceeds 3 %")
        return GateRow(result, Role.GATING, threshold)

    return tuple(map(row, results))


def make_proof(failure: str = "") -> Proof:
    null = make_time(Word.SAME, 1.0, "self-proof-null")
    return Proof(null, make_time(Word.SLOWER, 0.909, "self-proof-slower"), 0.1, failure)


def make_gate(outcome: Outcome, reason: str, *results: Compared, shown: str = "", **extra: Any) -> GateResult:
    comparison = Comparison(
        base="main (1a2b3c4)",
        head="feature (5d6e7f8)",
        paired=extra.pop("paired", True),
        results=results,
        **extra.pop("comparison", {}),
    )
    return GateResult(
        comparison,
        make_rows(*results, shown=shown),
        outcome,
        reason,
        proof=extra.pop("proof", make_proof()),
        **extra,
    )


CONTROL = make_time(Word.SAME, 1.002, "linear", control=True)


def passed() -> GateResult:
    return make_gate(
        Outcome.PASSED,
        "none of 4 gating figures is worse",
        CONTROL,
        make_time(Word.SAME, 0.998),
        make_time(Word.FASTER, 1.12, tokens=16),
        make_figure("memory.layer_bytes", 843776, 843776),
        make_figure("memory.file_bytes", 850000, 846000),
    )


def failed() -> GateResult:
    return make_gate(
        Outcome.FAILED,
        "2 of 4 gating figures are worse",
        CONTROL,
        make_time(Word.SLOWER, 0.931, rounds=2),
        make_time(Word.INCONCLUSIVE, 0.99, tokens=16),
        make_time(Word.SLOWER, 0.9, "k2"),
        make_figure("memory.layer_bytes", 843776, 1056768),
        shown="k2",
        comparison={
            "differences": (Difference("governor", "performance", "powersave", "soft"),),
            "only_head": ("linear/2048x2048/tokens=1/cache=hot/k3",),
        },
        warnings=("the calibration is 12 days old",),
    )


def inconclusive() -> GateResult:
    return make_gate(
        Outcome.INCONCLUSIVE,
        "a control moved: the session is contaminated",
        make_time(Word.SLOWER, 0.95, "linear", control=True),
        make_time(Word.SLOWER, 0.94),
        comparison={"contaminated": "linear, which the change cannot affect, is 5 % slower"},
    )


def broken() -> GateResult:
    failure = "a slowdown of 10 % put in on purpose was found inconclusive"
    return make_gate(Outcome.BROKEN, "the self-proof failed", proof=make_proof(failure))


@pytest.fixture(scope="session")
def gates() -> dict[str, GateResult]:
    """One gate of each outcome, by its name."""
    return {"passed": passed(), "failed": failed(), "inconclusive": inconclusive(), "broken": broken()}


@pytest.fixture(scope="session")
def big_gate() -> GateResult:
    """Ten thousand cases, a tenth of them slower."""
    results = [
        make_time(Word.SLOWER if n % 10 == 0 else Word.SAME, 0.9 if n % 10 == 0 else 1.0, f"layer-{n}", 1)
        for n in range(10_000)
    ]
    return make_gate(Outcome.FAILED, "1000 of 10000 gating figures are worse", *results)


@pytest.fixture(scope="session")
def hostile_gate() -> GateResult:
    """Names and reasons that try to be Markdown, HTML, XML or a terminal's escapes."""
    text = "a | b\n<script>alert(1)</script> --> `x` \x1b[31mred\x00 [link](http://x) & ]]>"
    odd = make_time(Word.SLOWER, 0.8, "layer|`<b>`")
    return make_gate(Outcome.FAILED, text, odd, warnings=(text,), comparison={"notes": (text,)})


@pytest.fixture(scope="session")
def empty_values_gate() -> GateResult:
    """A case that failed on one side: no effect, no head, infinite error on the other."""
    missing = Compared(
        make_case("k3"),
        "time.latency",
        "time",
        Verdict(Word.NOT_COMPARABLE, "main", "head: crash, the worker died of signal 11"),
        base=Estimate(1e-3, n=1),
        moved="worse",
    )
    lost = Compared(
        make_case("k3", measure="text"),
        "quality.perplexity",
        "accuracy",
        Verdict(Word.MOVED, "main"),
        base=Estimate(20.0, exact=True),
        head=Estimate(math.inf, exact=True),
        moved="worse",
    )
    return make_gate(Outcome.FAILED, "2 of 2 gating figures are worse", missing, lost)
