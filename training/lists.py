"""Training examples for the embedded list and string steps, in the tokens of `keystep.lm.embedded.lists`.

All operations are drawn equally often, and so are all lengths. Numbers that are counted are drawn from the list three times in four, and
the lists they are counted in have few different numbers.
"""

from __future__ import annotations

import numpy as np

from keystep.lm.embedded.lists import END, LETTER, LIST, MAX_ITEMS, NAMES, NONE, NUMBER, OPERATION, OPERATIONS, PLACE, WORD

PROMPT = 3 + MAX_ITEMS
ANSWER = MAX_ITEMS + 2  # what opens it, items, end; shorter answers are followed by more ends
POOL = 20_000  # examples, and their seed


def examples(rng: np.random.Generator, operations: np.ndarray) -> np.ndarray:
    """Whole examples of these operations (numbers in NAMES), int [N]: int [N, 21]."""
    size, name = len(operations), np.array(NAMES)[operations]
    is_ = lambda *names: np.isin(name, names)  # noqa: E731
    length = rng.integers(1, MAX_ITEMS + 1 - is_("insert"))
    letters = np.array([OPERATIONS[each][0] != "numbers" for each in NAMES])[operations]
    items = np.where(letters[:, None], LETTER + rng.integers(0, 26, (size, MAX_ITEMS)), NUMBER + rng.integers(0, 100, (size, MAX_ITEMS)))
    few = rng.integers(0, 3, (size, MAX_ITEMS))
    items = np.where(is_("count")[:, None], np.take_along_axis(items, few, 1), items)
    place, other = rng.integers(0, length + is_("insert")), rng.integers(0, length)
    there = np.take_along_axis(items, other[:, None], 1)[:, 0]
    item = np.where(is_("count") & (rng.random(size) < 0.75), there, NUMBER + rng.integers(0, 100, size))

    # Answer item c is prompt item `source[c]`.
    column, last = np.arange(MAX_ITEMS)[None], length[:, None]
    at, second = place[:, None], other[:, None]
    source = np.where(is_("swap")[:, None], np.where(column == at, second, np.where(column == second, at, column)), column)
    source = np.where(is_("insert")[:, None] & (column > at), column - 1, source)
    source = np.where(is_("delete")[:, None] & (column >= at), column + 1, source)
    source = np.where(is_("rotate")[:, None], (column + at) % last, source)
    source = np.where(is_("reverse")[:, None], last - 1 - column, source)
    found = np.take_along_axis(items, source.clip(0, MAX_ITEMS - 1), 1)
    found = np.where(is_("insert")[:, None] & (column == at), item[:, None], found)
    count = ((items == item[:, None]) & (column < last)).sum(1)
    single = np.where(is_("count"), PLACE + count, np.take_along_axis(items, at, 1)[:, 0])

    answer = np.full((size, ANSWER), END)
    one = is_("extract", "count", "letter")
    long = length + is_("insert") - is_("delete").astype(int)
    answer[:, 0] = np.where(one, single, np.where(is_("merge"), WORD, LIST))
    answer[:, 1:-1] = np.where(one[:, None] | (column >= long[:, None]), END, found)

    takes_place, takes_item = is_("swap", "insert", "delete", "rotate", "extract", "letter"), is_("insert", "count")
    first = np.where(takes_place, PLACE + place, np.where(takes_item, item, NONE))
    later = np.where(is_("swap"), PLACE + other, np.where(is_("insert"), item, NONE))
    shown = np.where(column < last, items, NONE)
    return np.concatenate([(OPERATION + operations)[:, None], first[:, None], later[:, None], shown, answer], axis=1)


def batch(rng: np.random.Generator, size: int) -> np.ndarray:
    """`size` whole examples, prompt and answer: int [size, 21]."""
    return examples(rng, rng.integers(0, len(NAMES), size))


def pool() -> np.ndarray:
    """Examples among which those are looked for that a member gets wrong: always the same ones, drawn as in training."""
    return batch(np.random.default_rng(POOL), POOL)


def by_length(rows: np.ndarray) -> list[np.ndarray]:
    """The same examples, in parts whose answers are equally long and have one end."""
    ends = (rows[:, PROMPT:] == END).argmax(1)
    return [rows[ends == end][:, : PROMPT + end + 1] for end in np.unique(ends)]
