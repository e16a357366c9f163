"""Two ways put to the same questions: how much more often one is right, and whether that is more than chance."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

from keystep.errors import BadInput


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p of McNemar's test, from how many questions only one of two ways got right."""
    n, fewer = only_first + only_second, min(only_first, only_second)
    tail: float = sum(comb(n, i) for i in range(fewer + 1)) / 2 ** max(0, n - 1)
    return min(1.0, tail)


def difference(
    first: Sequence[bool], second: Sequence[bool], *, resamples: int = 10_000, seed: int = 0, share: float = 0.95
) -> tuple[float, float, float]:
    """Accuracy of the second less that of the first, with a bootstrap interval over questions: (difference, low, high).

    Raises:
        BadInput: they are not of the same questions, or of none.
    """
    import numpy as np

    if len(first) != len(second) or not first:
        raise BadInput("must be of the same questions, one at least", field="second", value=len(second), mend=f"first has {len(first)}")
    gains = np.array(second, int) - np.array(first, int)
    draw = np.random.default_rng(seed)
    drawn = [gains[draw.integers(len(gains), size=len(gains))].mean() for _ in range(resamples)]
    low, high = np.quantile(drawn, [(1 - share) / 2, (1 + share) / 2])
    return float(gains.mean()), float(low), float(high)
