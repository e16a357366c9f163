"""The measures and laws of long-horizon execution; nothing here calls a model.

Two evaluators of the reference differ in "step accuracy"; it is the one relative to the worker's own previous answer here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keystep.errors import BadInput

Answers = Sequence[Sequence[int | None]]  # instances × turns; None is an answer that could not be read
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Scores:
    """Which answers are right, in three ways; boolean arrays (instances, turns).

    index: the answer is the true sum.
    step: it is right relative to the worker's own previous answer.
    prefix: it and all before it are the true sums. Index and step accuracy are never below prefix accuracy.
    invalid: it could not be read.
    """

    index: Bools
    step: Bools
    prefix: Bools
    invalid: Bools


@dataclass(frozen=True, slots=True)
class Interval:
    """`low` and `high` of the mean at every turn (turns,); of the horizon in steps, None where it is beyond the last turn."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    horizon_low: int | None
    horizon_high: int | None


def score(values: Sequence[Sequence[int]], answers: Answers, shown: Sequence[Sequence[int]] | None = None) -> Scores:
    """Score answers against the values they should have summed.

    The worker's own chain starts at 0. Where an answer could not be read the chain goes on with what it should have been, so that one bad
    answer is charged once. With a manipulated history, `shown` are the previous answers the worker saw instead of its own, and an
    unreadable answer is simply wrong.

    Args:
        values: sum of the values given in each turn (instances, turns).
        answers: what the worker answered, None where it was unreadable.
        shown: the history's answers (instances, turns); the last turn's is not looked at.

    Raises:
        BadInput: the shapes differ.
    """
    given = _table("values", values)
    if len(answers) != len(given) or any(len(row) != given.shape[1] for row in answers):
        raise BadInput("has another shape than values", field="answers", value=[len(row) for row in answers])
    history = None if shown is None else _table("shown", shown)
    if history is not None and history.shape != given.shape:
        raise BadInput("has another shape than values", field="shown", value=list(history.shape))
    index, step, invalid = (np.zeros(given.shape, dtype=bool) for _ in range(3))
    for row in range(len(given)):
        true = base = 0  # Python's numbers: an answer may be of any size
        for turn, answer in enumerate(answers[row]):
            value = int(given[row, turn])
            true, due = true + value, base + value
            index[row, turn], step[row, turn], invalid[row, turn] = answer == true, answer == due, answer is None
            base = due if answer is None else answer
            if history is not None:
                base = int(history[row, turn])
    return Scores(index, step, np.logical_and.accumulate(index, axis=1), invalid)


def horizon(prefix: Bools, share: float = 0.5, per_turn: int = 1) -> int | None:
    """H_s as measured: the first step at which fewer than `share` of the instances are all right; None if that never happens.

    `prefix` is (instances, turns), `per_turn` the steps of one turn.
    """
    _open("share", share)
    below = np.flatnonzero(prefix.mean(axis=0) < share)
    return int(below[0] + 1) * per_turn if len(below) else None


def bootstrap(right: Bools, share: float = 0.5, per_turn: int = 1, draws: int = 1000, seed: int = 0) -> Interval:
    """95% intervals over instances, drawn again with replacement: of the mean at every turn, and of `horizon`.

    Raises:
        BadInput: `share` is no share, or `draws` below 1.
    """
    _open("share", share)
    count = len(right)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_turns("draws", draws)) / count
    means = weights @ right
    below = means < share - 1e-12  # half of the instances is not fewer than half, also where it is added up from fractions
    first = np.where(below.any(axis=1), (below.argmax(axis=1) + 1) * per_turn, np.inf)
    low, high = float(np.quantile(first, 0.025, method="lower")), float(np.quantile(first, 0.975, method="higher"))
    ends = np.quantile(means, (0.025, 0.975), axis=0)
    return Interval(ends[0], ends[1], int(low) if low < np.inf else None, int(high) if high < np.inf else None)


def horizon_law(p: float, share: float = 0.5) -> float:
    """H_s of a worker with constant, independent step accuracy p: ln s / ln p, a real number of steps; `math.ceil` of it is the horizon."""
    _open("p", p)
    _open("share", share)
    return math.log(share) / math.log(p)


def horizon_slope(p: float, share: float = 0.5) -> float:
    """dH_s/dp = -ln s / (p ln^2 p), about -ln s / (1 - p)^2 near 1: steps won per unit of step accuracy."""
    _open("p", p)
    _open("share", share)
    return -math.log(share) / (p * math.log(p) ** 2)


def step_accuracy(turn_accuracy: float, per_turn: int) -> float:
    """Accuracy of one step from that of a turn of K steps: p^(1/K), if errors never cancel."""
    _closed("turn_accuracy", turn_accuracy)
    return float(turn_accuracy ** (1 / _turns("per_turn", per_turn)))


def turn_accuracy(step_accuracy: float, per_turn: int) -> float:
    """Accuracy of a turn of K steps from that of one: p^K."""
    _closed("step_accuracy", step_accuracy)
    return float(step_accuracy ** _turns("per_turn", per_turn))


def author_error(errors: int, answers: int, rates: Sequence[float] = (0.02, 0.3), prior: Sequence[float] | None = None) -> float:
    """How probable an error is in the next answer of an author, after `errors` in `answers` (the Bayes reference of self-conditioning).

    The author's error rate is one of `rates`, drawn once with probability `prior` (equal when None): w = prior * rate^e (1 - rate)^(n-e),
    P(error) = sum of w * rate over the sum of w. A predictor trained on such authors' streams must reach this curve.
    """
    if not 0 <= errors <= answers:
        raise BadInput("are from 0 to the number of answers", field="errors", value=errors)
    if not rates or len(prior or rates) != len(rates):
        raise BadInput("needs one prior per rate", field="prior", value=prior)
    for rate in rates:
        _open("rates", rate)
    weights = [1.0] * len(rates) if prior is None else list(prior)
    if min(weights) < 0 or not any(weights):
        raise BadInput("are not negative, and not all 0", field="prior", value=prior)
    known = [(rate, weight) for rate, weight in zip(rates, weights, strict=True) if weight]
    logs = [math.log(weight) + errors * math.log(rate) + (answers - errors) * math.log1p(-rate) for rate, weight in known]
    likely = [math.exp(log - max(logs)) for log in logs]
    return math.fsum(w * rate for w, (rate, _) in zip(likely, known, strict=True)) / math.fsum(likely)


def self_conditioned_error(base: float, pull: float, turns: int) -> float:
    """Mean error at turn `turns` of a worker that errs with probability base + pull * (share of its past answers that were wrong).

    q_t = base + pull * mean(q_1 … q_(t-1)), with q_1 = base; it tends to base / (1 - pull) where pull < 1. `pull` = 0 is pure compounding.
    """
    _closed("base", base)
    _closed("base + pull", base + pull)
    total = error = base
    for turn in range(1, _turns("turns", turns)):
        error = base + pull * total / turn
        total += error
    return error


def inject(sums: Sequence[Sequence[int]], rate: float, generator: np.random.Generator, noise: int = 10) -> NDArray[np.int64]:
    """A history with errors: to each true sum, with probability `rate`, a whole number uniform on [-noise, noise] is added.

    The noise is per turn and does not accumulate. It may be 0, so fewer than `rate` of the answers are wrong: see `realised_rate`.
    """
    _closed("rate", rate)
    table = _table("sums", sums)
    added = generator.integers(-noise, noise, size=table.shape, endpoint=True)
    return np.where(generator.random(table.shape) < rate, table + added, table)


def realised_rate(rate: float, noise: int = 10) -> float:
    """The share of wrong answers that `inject` really makes: rate * 2 noise / (2 noise + 1)."""
    _closed("rate", rate)
    return rate * 2 * noise / (2 * noise + 1)


def _table(field: str, rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    try:
        table = np.asarray(rows)
    except ValueError:
        raise BadInput("has rows of different lengths", field=field) from None
    if table.ndim != 2 or not table.size or not np.issubdtype(table.dtype, np.signedinteger):
        raise BadInput("is a table of whole numbers (instances, turns), not empty", field=field, value=rows)
    return table.astype(np.int64)


def _open(field: str, value: float) -> None:
    if not 0 < value < 1:
        raise BadInput("is between 0 and 1, both left out", field=field, value=value)


def _closed(field: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise BadInput("is from 0 to 1", field=field, value=value)


def _turns(field: str, value: int) -> int:
    if value < 1:
        raise BadInput("must be at least 1", field=field, value=value)
    return value
