from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitbench.cli import amounts
from bitbench.errors import UserError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1h", 3600), ("0.5m", 30), (" 2M 5s ", 125)],
)
def test_durations(text: str, seconds: float) -> None:
    assert amounts.seconds(text, "--budget") == seconds


@pytest.mark.parametrize("text", ["", "10", "ten", "0s", "m", "5m1h", "-3m", "1d", "10 minutes"])
def test_other_texts_are_no_durations(text: str) -> None:
    with pytest.raises(UserError, match=r"--budget .*not a duration") as caught:
        amounts.seconds(text, "--budget")
    assert "10m" in caught.value.remedy


@given(st.integers(0, 99), st.integers(0, 59), st.integers(1, 59))
def test_a_duration_is_the_sum_of_its_parts(hours: int, minutes: int, seconds: int) -> None:
    found = amounts.seconds(f"{hours}h{minutes}m{seconds}s", "--budget")
    assert found == 3600 * hours + 60 * minutes + seconds


def test_shares() -> None:
    assert amounts.share("1%", "--width") == 0.01
    assert amounts.share("0.5 %", "--width") == 0.005


@pytest.mark.parametrize("text", ["1", "", "%", "-1%", "one%"])
def test_other_texts_are_no_shares(text: str) -> None:
    with pytest.raises(UserError, match=r"--width .*not a percentage"):
        amounts.share(text, "--width")


@pytest.mark.parametrize("text", ["0%", "100%", "250%"])
def test_shares_lie_between_nothing_and_all(text: str) -> None:
    with pytest.raises(UserError, match="between 0 and 100 %"):
        amounts.share(text, "--width")
