"""The longest common subsequence, which several ways of comparing texts are made of."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def common(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyrö 2004): one addition of len(shorter)-bit numbers an element."""
    short, long = sorted((a, b), key=len)
    places: dict[Hashable, int] = {}
    for place, item in enumerate(short):
        places[item] = places.get(item, 0) | 1 << place
    rest = full = (1 << len(short)) - 1
    for item in long:
        matched = rest & places.get(item, 0)
        rest = (rest + matched | rest - matched) & full
    return len(short) - rest.bit_count()
