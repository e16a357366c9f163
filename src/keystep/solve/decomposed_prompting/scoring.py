"""Whether an answer is the expected one: by words, exactly, as a set, or by the metric of DROP.

DROP's normaliser leaves out articles, so of single letters "a a g" equals "g": for letters use `exact`. Its figures are here because the
paper's question answering is scored by it.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Sequence

from keystep.errors import MissingExtra
from keystep.run.canonical import dumps
from keystep.solve.decomposed_prompting.handlers import json_or_text

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def as_set(answer: str, expected: str) -> bool:
    """Whether both hold the same values, in whatever order; a single value is a list of one, a text's case does not count."""
    return _members(answer) == _members(expected)


def _members(text: str) -> set[str]:
    value = json_or_text(text)
    return {dumps(part.strip().lower() if isinstance(part, str) else part) for part in (value if isinstance(value, list) else [value])}


def drop(predicted: str | Sequence[str], gold: str | Sequence[str]) -> tuple[float, float]:
    """(exact match, F1) of DROP (Dua et al. 2019): sets of texts, F1 of the best assignment of predicted to gold ones, to two digits."""
    answers, expected = ([texts] if isinstance(texts, str) else list(texts) for texts in (predicted, gold))
    ours, theirs = [_normalised(text) for text in answers], [_normalised(text) for text in expected]
    exact = float(set(ours) == set(theirs) and len(ours) == len(theirs))
    scores = [[_f1(_bag(mine), _bag(other)) for mine in ours] for other in theirs]
    longest = max(len(ours), len(theirs))
    return exact, round(_best_sum(scores) / longest, 2) if longest else 1.0


def drop_match(answer: str, expected: str) -> bool:
    return drop(*(_texts(text) for text in (answer, expected)))[0] == 1


def _texts(text: str) -> list[str]:
    value = json_or_text(text)
    return [part if isinstance(part, str) else json.dumps(part) for part in (value if isinstance(value, list) else [value])]


def _normalised(text: str) -> str:
    found = [_token(token) for token in re.split(r" |-", text)]
    return " ".join(token for token in found if token.strip()).strip()


def _token(token: str) -> str:
    token = token.lower()
    number = _number(token)
    if number is None:
        token = "".join(character for character in token if character not in string.punctuation)
        number = _number(token)
    return str(number) if number is not None else " ".join(_ARTICLES.sub(" ", token).split())


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _bag(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _f1(mine: frozenset[str], other: frozenset[str]) -> float:
    """F1 of two bags of words; 0 where the gold one has numbers and they share none."""
    numbers = {word for word in other if _number(word) is not None}
    if numbers and not numbers & {word for word in mine if _number(word) is not None}:
        return 0.0
    shared = len(mine & other)
    precision, recall = (shared / len(bag) if bag else 1.0 for bag in (mine, other))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _best_sum(scores: Sequence[Sequence[float]]) -> float:
    """The largest sum of scores with at most one of every row and column (the assignment problem)."""
    if not scores or not scores[0]:
        return 0.0
    try:
        from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]  # it has no type hints
    except ImportError:
        raise MissingExtra("the F1 of DROP", "solve") from None
    rows, columns = linear_sum_assignment(scores, maximize=True)
    return float(sum(scores[row][column] for row, column in zip(rows, columns, strict=True)))
