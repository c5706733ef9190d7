"""Many questions asked at once: the correction for it."""

from __future__ import annotations

from collections.abc import Sequence


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: at most ``q`` of those below ``q`` are expected to be false.

    Notes
    -----
    Benjamini and Hochberg (1995): the k-th smallest of m becomes the smallest of p_j * m / j over
    j >= k. Where nothing at all is true, the chance that any falls below ``q`` is at most ``q``.
    Holds for independent and for positively dependent p-values, such as those of layers timed in
    the same launches.
    """
    count = len(p)
    adjusted = [1.0] * count
    least = 1.0
    for rank, index in zip(range(count, 0, -1), sorted(range(count), key=lambda i: -p[i]), strict=True):
        least = min(least, p[index] * count / rank)
        adjusted[index] = least
    return adjusted
