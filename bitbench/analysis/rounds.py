"""The rule that decides over many cases measured in turns, with or without a confirmation round.

Pure numbers in, verdicts out: what the gate's false alarms rest on can be simulated as it is.

**First round.** Each case has one log ratio base / head a launch. One-sided moderated p-values of
*slower* against the case's minimum effect are corrected over the family (Benjamini-Hochberg); what
falls below 5 % is *flagged*. The same is done for *faster*, apart.

**Confirmation round.** What was flagged, and what came out slower than its minimum effect without
being flagged, is measured again: fresh launches, orders reversed. A flagged case is *slower* if the
second round **alone** says so again at 5 %, corrected over the flagged ones. One that was not
flagged is *slower* only if both rounds taken together say so at 0.5 % over the whole family.

**False alarms.** Where nothing is slower by more than its minimum effect, a round flags anything
with at most 5 %, and the second, being independent, repeats it with at most 5 % of that: 0.25 %.
The other road adds at most 0.5 %. So at most 0.75 % of gates alarm falsely, by construction.

**One round only** (nothing to confirm, or interrupted): *slower* and *faster* are taken at 99 %
two-sided, 0.5 % a side, corrected over the family.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from bitbench.analysis.discovery import benjamini_hochberg
from bitbench.analysis.moderation import Prior, common_priors
from bitbench.analysis.statistics import MIN_REPLICATES
from bitbench.analysis.verdicts import MINIMUM_EFFECT, Verdict, Word, correct, judge_logs

SCREENING = 0.05
"""Level of the first round where a second follows."""

CONFIRMING = 0.05
"""Level of the second round alone."""


@dataclass(frozen=True)
class Trial:
    """One case: the logarithm of base time / head time, one a launch."""

    first: Sequence[float]
    again: Sequence[float] = ()
    """Launches of the confirmation round; fewer than three are as good as none."""
    like: Hashable = None
    """Key of the cases whose variances are pooled with this one's."""
    minimum_effect: float = MINIMUM_EFFECT


def priors(trials: Sequence[Trial]) -> dict[Hashable, Prior | None]:
    """Common variance of the first round for each kind of like cases."""
    return common_priors((trial.like, None, trial.first) for trial in trials)


def flagged(verdicts: Sequence[Verdict]) -> tuple[set[int], set[int]]:
    """Positions that a first round's verdicts single out at :data:`SCREENING`: slower, faster."""
    judged = [i for i, verdict in enumerate(verdicts) if verdict.p_slower is not None]
    slower = benjamini_hochberg([verdicts[i].p_slower or 0.0 for i in judged])
    faster = benjamini_hochberg([verdicts[i].p_faster or 0.0 for i in judged])
    return (
        {i for i, p in zip(judged, slower, strict=True) if p <= SCREENING},
        {i for i, p in zip(judged, faster, strict=True) if p <= SCREENING},
    )


def leans_slower(verdict: Verdict) -> bool:
    """Undecided, with an estimate beyond the minimum effect on the slow side."""
    return (
        verdict.word is Word.INCONCLUSIVE
        and verdict.effect is not None
        and verdict.effect.has_interval
        and verdict.effect.value < 1 / (1 + verdict.minimum_effect)
    )


def settle(
    trials: Sequence[Trial], against: str = "", *, known: dict[Hashable, Prior | None] | None = None
) -> list[Verdict]:
    """Verdicts on one family of cases, in the order given, by the rule at the head of this module.

    ``known`` gives the priors where they come from more cases than this family; else they are
    fitted to the family's first round.
    """
    common = priors(trials) if known is None else known

    def judged(trial: Trial, logs: Sequence[float]) -> Verdict:
        prior = common.get(trial.like)
        return judge_logs(logs, against, minimum_effect=trial.minimum_effect, prior=prior)

    first = [judged(trial, trial.first) for trial in trials]
    repeated = [i for i, trial in enumerate(trials) if len(trial.again) >= MIN_REPLICATES]
    if not repeated:
        return correct(first)
    again = {i: judged(trials[i], trials[i].again) for i in repeated}
    both = {i: judged(trials[i], [*trials[i].first, *trials[i].again]) for i in repeated}
    slow, fast = (found & again.keys() for found in flagged(first))
    slower_again = _confirmed(again, slow, "p_slower")
    faster_again = _confirmed(again, fast, "p_faster")
    taken_together = correct([both.get(i, verdict) for i, verdict in enumerate(first)])
    return [
        taken_together[i]
        if i not in again
        else _second_word(
            taken_together[i], i in slow or i in fast, slower_again.get(i), faster_again.get(i), slow, fast
        )
        for i in range(len(trials))
    ]


def _confirmed(again: dict[int, Verdict], among: set[int], which: str) -> dict[int, float]:
    """Corrected p-value of the second round alone, for each flagged case that has one."""
    order = sorted(i for i in among if getattr(again[i], which) is not None)
    return dict(zip(order, benjamini_hochberg([getattr(again[i], which) for i in order]), strict=True))


def _second_word(
    both: Verdict,
    was_flagged: bool,
    p_slower: float | None,
    p_faster: float | None,
    slow: set[int],
    fast: set[int],
) -> Verdict:
    """Verdict on a case with a second round; ``both`` judges its two rounds taken together."""
    both = replace(both, rounds=2)
    if p_slower is not None and p_slower <= CONFIRMING:
        return replace(both, word=Word.SLOWER, reason="", p=p_slower, corrected_over=len(slow))
    if p_faster is not None and p_faster <= CONFIRMING:
        return replace(both, word=Word.FASTER, reason="", p=p_faster, corrected_over=len(fast))
    if was_flagged and both.word is not Word.SAME:
        return replace(both, word=Word.INCONCLUSIVE, reason="the second round does not repeat the first")
    return both
