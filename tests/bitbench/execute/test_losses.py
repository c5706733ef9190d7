from __future__ import annotations

from bitbench.execute.losses import DEATHS, Losses
from bitbench.store.schema import Status


def test_a_case_is_given_up_on_the_side_that_it_killed() -> None:
    losses = Losses()
    for launch in range(DEATHS):
        assert losses.given_up("a", "head") is None
        losses.add("a", "head", Status.CRASH, f"died in launch {launch}")
    losses.add("b", "head", Status.TIMEOUT, "hung")
    told = f"not tried after {DEATHS} losses: died in launch {DEATHS - 1}"
    assert losses.given_up("a", "head") == (Status.CRASH, told)
    assert losses.given_up("a", "base") is None
    assert losses.given_up("b", "head") is None
