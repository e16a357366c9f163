"""Votes: when the samples of a step have decided it.

Ahead-by-k is the rule of MAKER (Meyerson et al. 2025, arXiv 2511.09030): sample until one candidate leads every other by k. A rule says
how many more samples could still decide (they are asked for at once) and who has won.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from keystep.errors import BadInput

Counts = Mapping[str, int]  # votes by candidate key, in the order of each candidate's first vote


class Rule(Protocol):
    """`cap` bounds the samples of one step, flagged ones included."""

    @property
    def cap(self) -> int: ...

    def winner(self, counts: Counts) -> str | None:
        """The candidate that has won, or None."""

    def wanted(self, counts: Counts) -> int:
        """How many further samples to ask for at once: 0 when there is a winner, else as many valid votes as may be needed at least."""


def _lead(counts: Counts) -> tuple[str | None, int]:
    """The first candidate and its distance to the second; nobody leads in a tie."""
    leader, most, second = None, 0, 0
    for key, votes in counts.items():
        if votes > most:
            leader, most, second = key, votes, most
        elif votes > second:
            second = votes
    return (leader if most > second else None), most - second


def _check(name: str, value: int, least: int, cap: int) -> None:
    if value < least:
        raise BadInput(f"must be at least {least}", field=name, value=value)
    if cap < value:
        raise BadInput(f"the cap must be at least {name} = {value}", field="cap", value=cap)


@dataclass(frozen=True, slots=True)
class First:
    """The first valid answer wins: no voting."""

    cap: int = 100

    def winner(self, counts: Counts) -> str | None:
        return next(iter(counts), None)

    def wanted(self, counts: Counts) -> int:
        return 0 if counts else 1


@dataclass(frozen=True, slots=True)
class AheadBy:
    """First to be ahead of every other candidate by `k` votes."""

    k: int = 3
    cap: int = 100

    def __post_init__(self) -> None:
        _check("k", self.k, 1, self.cap)

    def winner(self, counts: Counts) -> str | None:
        leader, lead = _lead(counts)
        return leader if lead >= self.k else None

    def wanted(self, counts: Counts) -> int:
        return max(0, self.k - _lead(counts)[1])


@dataclass(frozen=True, slots=True)
class Majority:
    """The most votes out of `n` (self-consistency); a tie after n is broken by further single votes.

    It stops early when the leader cannot be caught.
    """

    n: int = 5
    cap: int = 100

    def __post_init__(self) -> None:
        _check("n", self.n, 1, self.cap)

    def winner(self, counts: Counts) -> str | None:
        leader, lead = _lead(counts)
        return leader if lead > max(0, self.n - sum(counts.values())) else None

    def wanted(self, counts: Counts) -> int:
        return 0 if self.winner(counts) is not None else max(1, self.n - sum(counts.values()))
