"""What calls cost: tokens, money, work, and time with p of them at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from keystep.errors import BadInput

MOST_CALLS = 1_000_000


@dataclass(frozen=True, slots=True)
class Prices:
    """Money per token read and written."""

    token_in: float = 0.0
    token_out: float = 0.0

    def money(self, tokens_in: float, tokens_out: float) -> float:
        return self.token_in * tokens_in + self.token_out * tokens_out


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of a call: a start, and per token read and written."""

    start: float = 0.0
    token_in: float = 0.0
    token_out: float = 0.0

    def seconds(self, tokens_in: float, tokens_out: float) -> float:
        return self.start + self.token_in * tokens_in + self.token_out * tokens_out


@dataclass(frozen=True, slots=True)
class CallCost:
    """Tokens of a call on m items: L_pre = system + per_item m, L_dec = out + out_per_item m (counting and retrieval: out_per_item 0)."""

    system: float = 0.0
    per_item: float = 1.0
    out: float = 0.0
    out_per_item: float = 0.0

    def tokens_in(self, m: float) -> float:
        return self.system + self.per_item * m

    def tokens_out(self, m: float) -> float:
        return self.out + self.out_per_item * m

    def work(self, m: float) -> float:
        """Attention's part of the work, (L_pre + L_dec)^2, in token pairs."""
        return (self.tokens_in(m) + self.tokens_out(m)) ** 2


def latency(seconds: Sequence[float], parallel: int | None = None) -> float:
    """Time of calls in this order, `parallel` at once: each group of so many waits for its slowest. None: all at once.

    A pool that hands the next call to the first free worker is at least as fast, so this is an upper bound for it.
    """
    if parallel is not None and parallel < 1:
        raise BadInput("is at least 1", field="parallel", value=parallel)
    width = parallel or max(1, len(seconds))
    return math.fsum(max(seconds[at : at + width]) for at in range(0, len(seconds), width))


def sizes(n: int, m: int) -> list[int]:
    """Sizes of the parts of n items in parts of m, the last one shorter; m <= 0 or m > n does not split."""
    whole("n", n)
    if m <= 0 or m > n:
        m = n
    if n / m > MOST_CALLS:
        raise BadInput(f"gives more than {MOST_CALLS:,} calls", field="n, m", value=[n, m], mend="raise m")
    return [min(m, n - at) for at in range(0, n, m)]


def overlapping(n: int, m: int) -> list[tuple[int, int]]:
    """(start, end) of the parts of n characters in windows of m that overlap by half: a sentence of at most m - ceil(m / 2) characters,
    the overlap, lies wholly in one of them. m <= 0 or m > n does not split.
    """
    whole("n", n)
    if m <= 0 or m >= n:
        return [(0, n)]
    stride = -(-m // 2)
    count = 1 + -(-(n - m) // stride)
    return [(at * stride, min(at * stride + m, n)) for at in range(count)]


def whole(name: str, value: int) -> int:
    if value < 1:
        raise BadInput("is at least 1", field=name, value=value)
    return value
