r"""How far an execution follows its plan, and the reward made of it (sheet of arXiv 2509.23946; the released program's rules).

Titles of a text: after `*` is taken out, every match of `\d+\.\s*(rest of the line)`. A plan's title has a counterpart where it is part of
one of the execution's titles, or where the longest common subsequence of their words, over the fewer words of the two, is above 0.3.
That is easily met by chance (one shared "the" of three words is enough), and by one title again and again; `in_order` counts only
counterparts that stand in the plan's order, each used once.
"""

from __future__ import annotations

import re

from keystep.solve.explore_execute.answers import last_box
from keystep.subsequence import common

COUNTERPART = 0.3  # of the words, to be above
BOX_WITHIN = 300  # characters at the end of a response in which its box has to begin

_TITLE = re.compile(r"\d+\.\s*([^\n]*)")


def titles(text: str) -> list[str]:
    """The numbered lines of a text, without their numbers."""
    return [title.strip() for title in _TITLE.findall(text.replace("*", ""))]


def word_ratio(first: str, second: str) -> float:
    """The longest common subsequence of the words, over the fewer words of the two; 0 where one has none."""
    left, right = first.lower().split(), second.lower().split()
    return common(left, right) / min(len(left), len(right)) if left and right else 0.0


def adherence(plan: str, execution: str, *, in_order: bool = False) -> float:
    """The share s of the plan's titles that have a counterpart among the execution's; 0 for a plan without titles."""
    planned, done = titles(plan), titles(execution)
    if not planned:
        return 0.0
    matches = [[_counterparts(title, other) for other in done] for title in planned]
    if not in_order:
        return sum(map(any, matches)) / len(planned)
    best = [0] * (len(done) + 1)  # of the titles so far, against the first j done
    for row in matches:
        before, best = best, [0] * (len(done) + 1)
        for j, matched in enumerate(row):
            best[j + 1] = max(before[j + 1], best[j], before[j] + matched)
    return best[-1] / len(planned)


def _counterparts(title: str, other: str) -> bool:
    return title.lower() in other.lower() or word_ratio(title, other) > COUNTERPART


def reward(plan: str, execution: str, right: bool, *, adhering: bool, in_order: bool = False) -> float:
    """0 for a wrong answer or a box that ends the response too early; for a right one 1, or the adherence s where that counts."""
    box = last_box(execution)
    if not right or box is None or box.start < len(execution) - BOX_WITHIN:
        return 0.0
    return adherence(plan, execution, in_order=in_order) if adhering else 1.0


def overlong(length: int, longest: int = 8192, buffer: int = 4096) -> float:
    """The soft penalty of DAPO (arXiv 2503.14476) for a response of `length` tokens: 0 down to -1 over the last `buffer` of `longest`."""
    return min(0.0, -(length - (longest - buffer)) / buffer)
