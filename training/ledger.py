"""Training examples for the embedded ledger step: a random dictionary and many queries on it, in the tokens of `keystep.lm.embedded.ledger`.

One row holds one dictionary and `QUERIES` queries behind it. The attention mask lets every query see the dictionary and itself only,
and every query starts at the same position, so each is exactly the prompt that the decoder will see, and the dictionary is paid for once.
"""

from __future__ import annotations

import numpy as np

from keystep.lm.embedded.ledger import DIGIT, DIGITS, END, MAX_VALUE, MAX_WORDS, MINUS, PLUS, VALUE, WORD

QUERIES = 16
PROMPT = DIGITS + 2  # sign, digits, word
QUERY = PROMPT + DIGITS + 3  # the prompt's tokens, then value, sign, digits, end


def number_tokens(number: np.ndarray) -> np.ndarray:
    """Integers [...] to sign and digits, least significant first: int [..., DIGITS + 1]."""
    digits = np.abs(number)[..., None] // 10 ** np.arange(DIGITS) % 10
    return np.concatenate([np.where(number < 0, MINUS, PLUS)[..., None], DIGIT + digits], axis=-1)


def draw_sums(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """Running sums, rare cases drawn often: a quarter near zero (the sign may flip), a quarter where a carry or borrow runs far."""
    limit = 10**DIGITS - 1 - MAX_VALUE
    sums = (10 ** rng.uniform(0, np.log10(limit), values.shape)).astype(np.int64) * rng.choice([-1, 1], values.shape)
    kind = rng.random(values.shape)
    small = rng.integers(-MAX_VALUE, MAX_VALUE + 1, values.shape)
    round_number = 10 ** rng.integers(2, DIGITS, values.shape) * rng.integers(1, 10, values.shape) * rng.choice([-1, 1], values.shape)
    chain = round_number - rng.integers(0, 2, values.shape) * values + rng.integers(-60, 61, values.shape)
    return np.clip(np.where(kind < 0.25, small, np.where(kind < 0.5, chain, sums)), -limit, limit)


def batch(rng: np.random.Generator, size: int, words: int) -> np.ndarray:
    """`size` rows of a dictionary of `words` words and QUERIES queries: int [size, 2 * words + QUERIES * QUERY]."""
    word = np.argsort(rng.random((size, MAX_WORDS)), axis=1)[:, :words]
    value = rng.integers(-MAX_VALUE, MAX_VALUE + 1, (size, words))
    dictionary = np.stack([WORD + word, VALUE + MAX_VALUE + value], axis=2).reshape(size, -1)
    asked = rng.integers(0, words, (size, QUERIES))
    found = np.take_along_axis(value, asked, 1)
    sums = draw_sums(rng, found)
    column = lambda token: np.full((size, QUERIES, 1), token)  # noqa: E731
    queries = [number_tokens(sums), WORD + np.take_along_axis(word, asked, 1)[..., None]]
    queries += [VALUE + MAX_VALUE + found[..., None], number_tokens(sums + found), column(END)]
    return np.concatenate([dictionary, np.concatenate(queries, axis=2).reshape(size, -1)], axis=1)


def positions(words: int, queries: int = QUERIES) -> np.ndarray:
    """Position of every token of a row, int [T]: the queries all start right behind the dictionary."""
    return np.concatenate([np.arange(2 * words), np.tile(2 * words + np.arange(QUERY), queries)])


def mask(words: int, queries: int = QUERIES) -> np.ndarray:
    """What may see what, bool [T, T]: causal, and no query sees another."""
    block = np.concatenate([np.zeros(2 * words, int), np.repeat(1 + np.arange(queries), QUERY)])
    allowed = (block[None] == 0) | (block[:, None] == block[None])
    return allowed & np.tri(len(block), dtype=bool)


def draw_words(rng: np.random.Generator, done: float) -> int:
    """A dictionary size: small ones first, since looking up in a short list is learned soon and then stretches; all sizes from 40 % on."""
    most = int(np.clip(MAX_WORDS * done / 0.4, 4, MAX_WORDS))
    return int(rng.integers(2, most + 1)) if done < 0.4 or rng.random() < 0.3 else int(rng.integers(30, MAX_WORDS + 1))


def loss(net, member, rng: np.random.Generator, done: float):  # placeholder until the ledger recipe stands
    raise SystemExit("ledger training is being worked out")
