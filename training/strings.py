"""Training examples for the embedded string steps, in the tokens of `keystep.lm.embedded.strings`.

Letters are drawn at random, so that nothing can be learned about words. A fifth of the words have one to three different letters only:
where letters repeat, a model that looks for what it has just written finds the wrong place. Behind an answer's end a row is filled up
with END, which no loss counts.
"""

from __future__ import annotations

import numpy as np

from keystep.lm.embedded.strings import BREAK, CHARACTER, END, GLUE, GLUES, LAST, MERGE, PAD, PLACE, SPLIT, WINDOW, WORD, characters

PROMPT = WINDOW + 1  # then the answer, of a split the whole window with its first space as BREAK, and the end
LENGTH = PROMPT + WINDOW + 2
KINDS = ("split, more behind", "split, the whole text", "letter at a position", "last letter", "merge")
SHARES = (0.2, 0.1, 0.35, 0.1, 0.25)  # of a batch
REPEATING, LOWER, CAPITAL = 0.2, 0.5, 0.3  # shares of words: of few letters; all small; a capital first (else any case)
MARKED = 0.3  # share of merged pieces whose every other character is a mark
POOL = 20_000  # examples, and their seed
MARK = characters("".join(GLUES.values()))
SPACE = MARK[0]


def letters(rng: np.random.Generator, size: int, begins: np.ndarray) -> np.ndarray:
    """Random letters as tokens, int [size, L]; words begin where `begins`, bool [size, L] or [L], says."""
    length = begins.shape[-1]
    letter = rng.integers(0, 26, (size, length))
    few = np.take_along_axis(letter, rng.integers(0, rng.integers(1, 4, (size, 1)), (size, length)), 1)
    letter = np.where(rng.random((size, 1)) < REPEATING, few, letter)
    case, upper = rng.random((size, 1)), rng.random((size, length)) < 0.5
    upper = np.where(case < LOWER, False, np.where(case < LOWER + CAPITAL, begins, upper))
    return CHARACTER + letter + 26 * upper


def words(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Random words as tokens, int [size, WORD], of which only so many letters are used as the second array says, int [size, 1]."""
    return letters(rng, size, np.arange(WORD) == 0), rng.integers(1, WORD + 1, (size, 1))


def pieces(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces to be merged: words, or what was merged before, letters with marks between them."""
    found, length = words(rng, size)
    mark = rng.choice(MARK, (size, 1))
    odd = (np.arange(WORD) + rng.integers(0, 2, (size, 1))) % 2 == 1
    return np.where((rng.random((size, 1)) < MARKED) & odd, mark, found), length


def splits(rng: np.random.Generator, size: int, whole: bool) -> np.ndarray:
    """Texts whose first word is to be split off: a whole text, or the first `WINDOW` characters of one."""
    place = np.arange(WINDOW)
    ends = np.cumsum(rng.integers(2, WORD + 2, (size, WINDOW)), 1) - 1  # where a word has ended
    space = np.zeros((size, WINDOW + 1), bool)
    np.put_along_axis(space, np.minimum(ends, WINDOW), True, 1)
    begins = np.concatenate([np.ones((size, 1), bool), space[:, : WINDOW - 1]], 1)
    text = np.where(space[:, :WINDOW], SPACE, letters(rng, size, begins))
    length = rng.integers(1, WINDOW + 1, (size, 1)) if whole else np.full((size, 1), WINDOW)
    length -= whole & (np.take_along_axis(text, length - 1, 1) == SPACE)
    field = np.where(place < length, text, PAD)
    found = field == SPACE
    at = np.where(found.any(1, keepdims=True), found.argmax(1)[:, None], length)  # where the first word has ended
    answer = np.concatenate([np.where(field == PAD, END, field), np.full((size, 2), END)], 1)
    np.put_along_axis(answer, at, BREAK, 1)
    return rows(field, np.full((size, 1), SPLIT), answer)


def picks(rng: np.random.Generator, size: int, last: bool) -> np.ndarray:
    """Words, and which letter is asked for."""
    word, length = words(rng, size)
    at = length - 1 if last else rng.integers(0, length)
    answer = np.full((size, WINDOW + 2), END)
    answer[:, :1] = np.take_along_axis(word, at, 1)
    field = np.full((size, WINDOW), PAD)
    field[:, :WORD] = np.where(np.arange(WORD) < length, word, PAD)
    return rows(field, np.full((size, 1), LAST) if last else PLACE + at, answer)


def merges(rng: np.random.Generator, size: int) -> np.ndarray:
    """Two pieces, and what comes between them."""
    first, second, glue = pieces(rng, size), pieces(rng, size), rng.integers(0, len(GLUES), (size, 1))
    field = joined(np.full((size, WINDOW), PAD), first, (GLUE + glue, np.ones((size, 1), int)), second)
    between = (np.array([END, *MARK])[glue], np.minimum(glue, 1))  # the first of GLUES is nothing
    return rows(field, np.full((size, 1), MERGE), joined(np.full((size, WINDOW + 2), END), first, between, second))


def joined(room: np.ndarray, *parts: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """The parts one behind the other in a room; a part is its tokens [N, L] and how many of them are used [N, 1]."""
    room, start = room.copy(), np.zeros(len(room), int)
    for tokens, length in parts:
        row, column = np.nonzero(np.arange(tokens.shape[1]) < length)
        room[row, start[row] + column] = tokens[row, column]
        start += length[:, 0]
    return room


def rows(field: np.ndarray, task: np.ndarray, answer: np.ndarray) -> np.ndarray:
    return np.concatenate([field, task, answer], 1)


def answer(right: str | list[str]) -> list[int]:
    """The tokens of a step's right answer, a text or [word, rest], filled up as in training."""
    tokens = characters(right) if isinstance(right, str) else [*characters(right[0]), BREAK, *characters(right[1])]
    return [*tokens, *[END] * (LENGTH - PROMPT - len(tokens))]


def draw(rng: np.random.Generator, size: int, kind: int) -> np.ndarray:
    """Whole examples of one of KINDS, int [size, LENGTH]."""
    if kind < 2:
        return splits(rng, size, kind == 1)
    return picks(rng, size, kind == 3) if kind < 4 else merges(rng, size)


def batch(rng: np.random.Generator, size: int) -> np.ndarray:
    """`size` whole examples of all kinds: int [size, LENGTH]."""
    return np.concatenate([draw(rng, count, kind) for kind, count in enumerate(rng.multinomial(size, SHARES).tolist())])


def pool() -> np.ndarray:
    """Examples among which those are looked for that a member gets wrong: always the same ones, drawn as in training."""
    return batch(np.random.default_rng(POOL), POOL)
