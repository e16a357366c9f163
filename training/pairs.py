"""Training examples for the embedded sort-pair step, in the tokens of `keystep.lm.embedded.pairs`.

Of two random numbers the first digits nearly always say which is smaller. So a part of every batch is drawn close together: with the same
first digits, neighbours, the same number twice, the same number with the other sign, numbers below a hundred.
"""

from __future__ import annotations

import numpy as np

from keystep.lm.embedded.pairs import COLUMN, DIGITS, END, FIRST, LIMIT, SECOND

PROMPT = DIGITS  # the columns of two numbers, then which is the smaller, the columns of both in order, the end
KINDS = ("random", "same first digits", "same last digits", "neighbours", "near", "equal", "opposite", "below a hundred")
POOL = 30_000  # examples, and their seed
PLAIN = 0.3  # share of a batch that is random numbers; the other kinds have equal parts of the rest


def columns(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The columns of pairs of integers, both [N], in ten's complement, most significant first: int [N, DIGITS]."""
    one, other = (numbers[:, None] // 10 ** np.arange(DIGITS)[::-1] % 10 for numbers in (first, second))
    return COLUMN + 10 * one + other


def examples(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whole examples of pairs, both int [N]: int [N, 12]."""
    which, end = np.where(second < first, SECOND, FIRST)[:, None], np.full((len(first), 1), END)
    ordered = columns(np.minimum(first, second), np.maximum(first, second))
    return np.concatenate([columns(first, second), which, ordered, end], 1)


def draw(rng: np.random.Generator, size: int, kind: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of numbers, the rare kinds among them drawn often, or all of one kind."""
    first, second = rng.integers(-LIMIT, LIMIT + 1, (2, size))
    sign, count = np.where(first < 0, -1, 1), np.abs(first)
    below, scale = rng.integers(0, 100, (3, size)), 10 ** rng.integers(1, DIGITS - 1, size)
    close = np.stack([
        second,
        sign * (count // scale * scale + below[0] * 100 % scale + below[1] % scale),
        np.clip(sign * (below[0] * 100 + count % 100), -LIMIT, LIMIT),
        np.clip(first + rng.choice([-3, -2, -1, 1, 2, 3], size), -LIMIT, LIMIT),
        np.clip(first + rng.choice([-1, 1], size) * (100 * (below[1] % 4) + below[0]), -LIMIT, LIMIT),
        first,
        -first,
        rng.choice([-1, 1], size) * below[1],
    ])  # fmt: skip
    kinds = np.where(rng.random(size) < PLAIN, 0, rng.integers(1, len(close), size)) if kind is None else np.full(size, kind)
    first = np.where(kinds == len(close) - 1, sign * below[2], first)
    second = close[kinds, np.arange(size)]
    turned = rng.random(size) < 0.5
    return np.where(turned, second, first), np.where(turned, first, second)


def batch(rng: np.random.Generator, size: int) -> np.ndarray:
    """`size` whole examples, prompt and answer: int [size, 12]."""
    return examples(*draw(rng, size))


def pool() -> np.ndarray:
    """Examples among which those are looked for that a member gets wrong: always the same ones, drawn as in training."""
    return batch(np.random.default_rng(POOL), POOL)
