"""Prediction: what a profile says about a problem of size n split in parts of m, and the choice of m.

The error models, calls erring independently of one another:
- counting: signed errors add up. With k parts of bias b(m) and spread s(m) the sum is normal of mean k b and variance k s^2, and its mean
  absolute value that of the folded normal; `worst` is k times the mean absolute error. Finer is better where s(m) outgrows sqrt(m).
- sorting: the merge is exact if and only if every part is: 1 - prod(1 - e(m)). The max norm is that of the worst part.
- retrieval: votes are drawn. Of windows that hold the answer, each misses it with e1, answers wrongly with w, else votes for it; of the
  others, each gives a false answer with e2, no two the same. A tie is broken at random.
- retrieval-augmented: a digit is lost where every window that holds its sentence misses it; then the last call's own error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from keystep.errors import BadInput
from keystep.measure.llm_algorithms.costs import Prices, latency, overlapping, sizes, whole
from keystep.measure.llm_algorithms.graph import folded
from keystep.measure.llm_algorithms.profile import Profile
from keystep.measure.llm_algorithms.tasks import ORDINALS, Algorithm, Counting, Retrieving, Sorting

DRAWS = 20_000  # of votes, for one figure
TRIALS = 200  # problems whose layout (where the answer stands) is drawn


@dataclass(frozen=True, slots=True)
class Prediction:
    """What to expect at one size; the names of `figures` are those of `run.means`."""

    m: int
    figures: dict[str, float]
    worst: float | None = None


def predict(
    algorithm: Algorithm, profile: Profile, n: int, m: int, parallel: int | None = None, prices: Prices | None = None
) -> Prediction:
    """The error, cost and latency of problems of size n in parts of m.

    Raises:
        BadInput: the profile is of another algorithm, or n or m is below 1.
    """
    whole("n", n)
    whole("m", m)
    split = sizes(n, m) if isinstance(algorithm, Counting | Sorting) else [end - start for start, end in overlapping(n, m)]
    cost, speed, prices = profile.cost(), profile.speed(), prices or Prices()
    tokens = [(cost.tokens_in(size), cost.tokens_out(size)) for size in split]
    seconds = [speed.seconds(*each) for each in tokens]
    tokens_in, tokens_out = (math.fsum(each[side] for each in tokens) for side in (0, 1))
    last = 0.0
    if algorithm.final and profile.finals:
        longer = _given(algorithm, n, m, profile)[1] - _mean([call.size for call in profile.finals])
        tokens_in += _mean([call.tokens_in for call in profile.finals]) + cost.per_item * longer
        tokens_out += _mean([call.tokens_out for call in profile.finals])
        last = _mean([call.seconds for call in profile.finals]) + speed.token_in * cost.per_item * longer
    errors, worst = _errors(algorithm, profile, n, m, split)
    figures = errors | {
        "calls": float(len(split) + algorithm.final), "tokens_in": tokens_in, "tokens_out": tokens_out,
        "money": prices.money(tokens_in, tokens_out), "seconds": latency(seconds, parallel) + last, "ideal": latency(seconds) + last,
    }  # fmt: skip
    return Prediction(m, figures, worst)


def _errors(algorithm: Algorithm, profile: Profile, n: int, m: int, split: Sequence[int]) -> tuple[dict[str, float], float | None]:
    if isinstance(algorithm, Counting):
        bias, spread, bound = (profile.curve("signed", of) for of in ("mean", "sd", "size"))
        mean, sd = math.fsum(map(bias, split)), math.sqrt(math.fsum(spread(size) ** 2 for size in split))
        error, worst = folded(mean, sd), math.fsum(map(bound, split))
        return {"error": error, "error_per_n": error / n}, worst
    if isinstance(algorithm, Sorting):
        exact = profile.curve("exact_error", rising=True)
        right = math.prod(1 - exact(size) for size in split)
        return {"exact_error": 1 - right, "linf": _worst_of(profile.values("linf"), split)}, min(1.0, math.fsum(map(exact, split)))
    if isinstance(algorithm, Retrieving):
        return {"error": _retrieval(profile, algorithm, n, m)}, None
    lost, _ = _given(algorithm, n, m, profile)
    final = _mean([call.errors.get("exact_error", 0.0) for call in profile.finals]) if profile.finals else 0.0
    return {"exact_error": 1 - (1 - lost) ** len(ORDINALS) * (1 - final), "wrong_digits": lost}, None


def _worst_of(values: Mapping[float, Sequence[float]], split: Sequence[int]) -> float:
    """The mean of the largest of independent draws, one for each part from the profile's values at the nearest size."""
    counts: dict[float, int] = {}
    for size in split:
        nearest = min(values, key=lambda m: abs(m - size))
        counts[nearest] = counts.get(nearest, 0) + 1
    levels = sorted({value for m in counts for value in values[m]})
    below = [math.prod((sum(v <= level for v in values[m]) / len(values[m])) ** k for m, k in counts.items()) for level in levels]
    return math.fsum(level * (now - before) for level, now, before in zip(levels, below, [0.0, *below], strict=False))


def _retrieval(profile: Profile, algorithm: Algorithm, n: int, m: int) -> float:
    """The mean error over where the answer stands, by drawn votes."""
    miss, wrong = (profile.curve(name)(min(m, n)) for name in ("miss", "wrong"))
    false = profile.curve("false")(min(m, n)) if profile.values("false") else 0.0
    holding: dict[tuple[int, int], int] = {}
    for trial in range(TRIALS):
        parts = algorithm.parts(algorithm.problem(n, Random(f"layout {trial}")), m)
        key = sum(part["present"] for part in parts), len(parts)
        holding[key] = holding.get(key, 0) + 1
    return sum(count * retrieval_error(held, calls - held, miss, false, wrong) for (held, calls), count in holding.items()) / TRIALS


def retrieval_error(present: int, absent: int, miss: float, false: float = 0.0, wrong: float = 0.0, seed: int = 0) -> float:
    """The error of the vote: `present` windows hold the answer, `absent` do not; false answers never agree with one another.

    Without false answers it is miss^present exactly; with some, a mean over 20,000 draws (standard error below 0.0036).
    """
    if not 0 <= miss + wrong <= 1 or not 0 <= false <= 1:
        raise BadInput("are probabilities", field="miss, wrong, false", value=[miss, wrong, false])
    if false == 0 and wrong == 0:
        return float(miss**present) if present else 1.0
    generator = np.random.default_rng(seed)
    drawn = generator.random((DRAWS, present))
    votes = (drawn >= miss + wrong).sum(axis=1)
    others = ((drawn >= miss) & (drawn < miss + wrong)).sum(axis=1) + generator.binomial(absent, false, DRAWS)
    tied = np.where(votes == 1, others / (1 + others), 0.0)  # every false answer has one vote
    return float(np.where(votes == 0, 1.0, tied).mean())


def _given(algorithm: Algorithm, n: int, m: int, profile: Profile) -> tuple[float, float]:
    """The chance that no window gives a sentence (one that none holds whole is lost), and how long what they give is; over where the
    sentences stand."""
    missed = profile.curve("missed", rising=True)(min(m, n))
    lost: list[float] = []
    lengths: list[float] = []
    for trial in range(TRIALS):
        problem = algorithm.problem(n, Random(f"layout {trial}"))
        texts = [part["text"] for part in algorithm.parts(problem, m)]
        held = {needle: sum(needle in text for text in texts) for needle in problem["needles"]}
        lost += [missed**count if count else 1.0 for count in held.values()]
        telling = [text for text in texts if any(needle in text for needle in held)]
        whole = algorithm.together(problem, [" ".join(needle for needle in held if needle in text) for text in telling])
        lengths.append((1 - missed) * len(whole))
    return _mean(lost), _mean(lengths)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def grid(n: int, least: int = 1, points: int = 12) -> list[int]:
    """Sizes to try: the geometric ones from `least` to n, and what divides n into 1 to 8 parts."""
    whole("n", n)
    low = min(max(1, least), n)
    geometric = {round(low * (n / low) ** (number / max(1, points - 1))) for number in range(points)}
    return sorted(m for m in geometric | {-(-n // parts) for parts in range(1, 9)} if low <= m <= n)


@dataclass(frozen=True, slots=True)
class Choice:
    """The best size, and the table it was chosen from."""

    best: Prediction
    table: tuple[Prediction, ...]


def choose(table: Sequence[Prediction], objective: str, at_most: Mapping[str, float] | None = None) -> Choice:
    """The size with the least `objective` among those that keep every figure of `at_most`; the larger size among equals (fewer calls).

    Raises:
        BadInput: an unknown figure, or no size keeps the constraint; the message names the nearest.
    """
    limits = dict(at_most or {})
    known = table[0].figures if table else {}
    for name in (objective, *limits):
        if name not in known:
            raise BadInput(
                "is no figure", field="objective" if name == objective else "at_most", value=name, mend=f"there are {', '.join(known)}"
            )
    fits = [row for row in table if all(row.figures[name] <= limit for name, limit in limits.items())]
    if not fits:
        nearest = min(table, key=lambda row: max(row.figures[name] - limit for name, limit in limits.items()))
        values = ", ".join(f"{name} = {nearest.figures[name]:.4g}" for name in limits)
        raise BadInput("no size keeps this", field="at_most", value=limits, mend=f"the nearest is m = {nearest.m}, with {values}")
    return Choice(min(fits, key=lambda row: (row.figures[objective], -row.m)), tuple(table))
