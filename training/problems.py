"""Training examples for the embedded reader of word problems, in the tokens of `keystep.lm.embedded.problems`.

Two parts of what can be said are held out of training, so that a card can tell what was learned from what was remembered: a fifth of all
pairs of a name and a kind of things that may stand in a sentence together, and a seventh of the numbers above twelve.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from random import Random

import numpy as np

from keystep.lm.embedded.problems import END, LEAST, MOST, NAMES, PROMPT, THINGS, Reading, answer_of, field_of, value_of
from keystep.run.builtin.problem_texts import KINDS as BY_KIND
from keystep.run.builtin.problem_texts import written

LENGTH = PROMPT + 13  # two people's lines of a name, an operation, a number and things, the end
KINDS = tuple(BY_KIND)
SHARES = (2, 2, 5, 2, 2, 2, 3, 3, 1, 2)  # of KINDS in a batch
TABLE, SEED = 60_000, 7  # examples there are to train on; POOL of them are looked through for what members get wrong
POOL = 20_000


def held_pair(name: str, thing: str) -> bool:
    return (NAMES.index(name) + 2 * THINGS.index(thing)) % 5 == 0


def held_number(number: str) -> bool:
    return value_of(number) > 12 and value_of(number) % 7 == 3


def one(draw: Random, kind: str) -> tuple[list[int], bool]:
    """A whole example of a kind, and whether something in it is held out."""
    (a, b), template = draw.sample(NAMES, 2), draw.choice(BY_KIND[kind])
    said = {"a": a, "b": b, "t": draw.choice(THINGS), "n": number(draw), "m": number(draw)}
    said = {part: word for part, word in said.items() if f"{{{part}}}" in template.text}
    pairs = [(said[part], said["t"]) for part in "ab" if part in said and "t" in said]
    held = any(held_pair(*pair) for pair in pairs) or any(held_number(said[part]) for part in "nm" if part in said)
    return [*field_of(template.tokens(said)), *answer(template.reading(said))], held


def answer(right: Sequence[Reading]) -> list[int]:
    """The tokens of a reading step's right answer, filled up with END."""
    tokens = answer_of(right)
    return [*tokens, *[END] * (LENGTH - PROMPT - len(tokens))]


def number(draw: Random) -> str:
    """A number of one, two or three digits, each as often, small ones now and then in words."""
    return written(draw, draw.randint(*draw.choice(((LEAST, 12), (LEAST, 99), (100, MOST)))))


def draw(rng: np.random.Generator, size: int, kind: int, held: bool = False) -> np.ndarray:
    """Whole examples of one of KINDS, int [size, LENGTH], in which nothing is held out, or something."""
    source, found = Random(int(rng.integers(2**62))), []
    while len(found) < size:
        example, is_held = one(source, KINDS[kind])
        if is_held == held:
            found.append(example)
    return np.array(found, int).reshape(size, LENGTH)


@cache
def table() -> np.ndarray:
    """What is trained on, drawn once, nothing in it held out: int [TABLE, LENGTH]."""
    rng = np.random.default_rng(SEED)
    counts = rng.multinomial(TABLE, np.array(SHARES) / sum(SHARES)).tolist()
    return rng.permutation(np.concatenate([draw(rng, count, kind) for kind, count in enumerate(counts)]))


def batch(rng: np.random.Generator, size: int) -> np.ndarray:
    """`size` examples of the table: int [size, LENGTH]."""
    return table()[rng.integers(0, TABLE, size)]


def pool() -> np.ndarray:
    """Examples among which those are looked for that a member gets wrong."""
    return table()[:POOL]
