"""ROUGE-1, -2 and -L F-measures (Lin 2004) as `rouge-score` computes them without stemming, and the longest common subsequence below them.

Words are runs of a-z and 0-9 of the lower-cased text; ROUGE-L is that of the whole text, lines joined.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence

from keystep.subsequence import common

_WORD = re.compile(r"[a-z0-9]+")


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def rouge_n(predicted: Sequence[str], gold: Sequence[str], n: int) -> float:
    """F1 of the n-grams that two lists of words share, each as often as it occurs; 0 where one has none."""
    ours, theirs = (Counter(zip(*(text[start:] for start in range(n)), strict=False)) for text in (predicted, gold))
    shared = sum((ours & theirs).values())
    return f1(shared, ours.total(), theirs.total())


def rouge_l(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """F1 of the longest common subsequence of two lists of words; 0 where one is empty."""
    return f1(common(predicted, gold), len(predicted), len(gold))


def f1(shared: int, predicted: int, gold: int) -> float:
    return 2 * shared / (predicted + gold) if shared else 0.0


def ratio(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """Levenshtein's ratio with insertions and deletions only: 2 LCS / (len a + len b); two empty sequences are equal."""
    return 2 * common(a, b) / (len(a) + len(b)) if len(a) + len(b) else 1.0
