"""Choosing among plans: the one that a judge means, clusters and their weights, and what the revising loop looks at.

Figures are those of the released program. Clusters need scikit-learn (extra `solve`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from keystep.errors import MissingExtra
from keystep.subsequence import common

SEED = 42  # of k-means
NOTHING_NEW = 0.85  # share of a revision's distinct words that the plan has already, to be above
UNUSED = 0.75  # word overlap with the plan that was tried, at most
CONTEXT = 300  # characters before a self-negation
_NEGATION = re.compile(
    r"\b(?:but|however,?|wait,?|no,?|hmm,?)\s+(?:this|that|it|which)\s+(?:is|was|would be|seems|can)\s*"
    r"(?:not|n't|wrong|incorrect|impossible|a contradiction)",
    re.IGNORECASE,
)
_FORMULA = re.compile(r"\$([^$\n]{3,200})\$|([^\s,;=$]{1,80} ?= ?[^\s,;=$]{1,80})")


def likeness(first: str, second: str) -> float:
    """The longest common subsequence of characters over the longer length; 1 for two empty texts."""
    return common(first, second) / max(len(first), len(second)) if first or second else 1.0


def nearest(reply: str, plans: Sequence[str]) -> int:
    """The plan that a judge's reply gives the text of: the likest one, the first among equals. A mere number names a plan, from 1."""
    number = re.fullmatch(r"(?:plan|number)?\s*(\d{1,4})\W*", reply.strip(), re.IGNORECASE)
    if number is not None and 1 <= int(number[1]) <= len(plans) and reply.strip() not in plans:
        return int(number[1]) - 1
    return max(range(len(plans)), key=lambda at: likeness(reply.strip(), plans[at]))


def clusters(plans: Sequence[str], m: int) -> list[tuple[int, int]]:
    """At most `m` representatives of the plans and the sizes of their clusters: (place, size), by place.

    Texts become TF-IDF vectors of words and pairs of neighbouring words, of length 1; k-means; the representative is nearest to its centre.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    if len(plans) <= m:
        return [(place, 1) for place in range(len(plans))]
    try:
        from sklearn.cluster import KMeans
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        raise MissingExtra("clustering plans", "solve") from None
    vectors = TfidfVectorizer(token_pattern=r"(?u)\w+|[^\w\s]", ngram_range=(1, 2)).fit_transform(plans)
    k = min(m, len(set(plans)))
    found = KMeans(k, random_state=SEED, n_init=10).fit(vectors)
    distances = found.transform(vectors)
    chosen = []
    for cluster in range(k):
        members = [place for place, label in enumerate(found.labels_) if label == cluster]
        if members:
            chosen.append((min(members, key=lambda place: (distances[place, cluster], place)), len(members)))
    return sorted(chosen)


def weighted(votes: Iterable[tuple[str, float]]) -> str | None:
    """The answer with the most weight, the first among equals; None without votes."""
    sums: dict[str, float] = {}
    for answer, weight in votes:
        sums[answer] = sums.get(answer, 0.0) + weight
    return max(sums, key=lambda answer: sums[answer]) if sums else None


def negated(text: str) -> list[str]:
    """The formulas that a text takes back ("but this is not correct"): those in the 300 characters before such words, each once."""
    found: dict[str, None] = {}
    for match in _NEGATION.finditer(text):
        before = text[max(0, match.start() - CONTEXT) : match.start()]
        for formula in _FORMULA.finditer(before):
            found[(formula[1] or formula[2]).strip()] = None
    return list(found)


def avoids(plan: str, stuck: Sequence[str]) -> bool:
    """Whether none of the phrases stands in the plan, white space aside."""
    text = "".join(plan.split())
    return not any("".join(phrase.split()) in text for phrase in stuck)


def new(revision: str, plan: str) -> bool:
    """Whether a revision says something that the plan does not."""
    words = set(_words(revision))
    return bool(words) and len(words & set(_words(plan))) / len(words) <= NOTHING_NEW


def overlap(first: str, second: str) -> float:
    """The share of words that two plans have in common, of the distinct words of both."""
    left, right = set(_words(first)), set(_words(second))
    return len(left & right) / len(left | right) if left or right else 1.0


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
