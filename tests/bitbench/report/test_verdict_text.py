from __future__ import annotations

from bitbench.analysis.verdicts import Verdict, Word
from bitbench.report.overview import verdict_text


def test_only_the_undecided_say_what_they_would_have_seen() -> None:
    assert verdict_text(None) == ""
    assert verdict_text(Verdict(Word.SAME, "a", detectable=0.021)) == "same"
    assert (
        verdict_text(Verdict(Word.INCONCLUSIVE, "a", detectable=0.0214)) == "inconclusive (would see 2.1 %)"
    )
    assert verdict_text(Verdict(Word.INCONCLUSIVE, "a", "2 replicates give no interval")) == "inconclusive"
