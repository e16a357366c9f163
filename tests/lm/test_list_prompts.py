"""The tokenizer of `lists`: every operation asked and answered as plain Python does it, what is refused, no answer put right."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep.lm.embedded import lists
from keystep.run.builtin import Edits
from keystep.worlds.edits import NUMBERS, Edit

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))

import lists as drawn


def words(row: list[int]) -> tuple[str, list[int], list[int]]:
    """Operation, items and arguments of an example's tokens."""
    name = lists.NAMES[row[0] - lists.OPERATION]
    size = row[3] - lists.AMOUNT
    items = [(token - lists.ITEM) % 100 for token in row[4 : 4 + size]]
    firsts = (lists.NUMBER, lists.OTHER, lists.PLACE, lists.AMOUNT)
    given = [token for token in (row[drawn.PROMPT - 1], *row[1:3]) if token != lists.NONE]
    arguments = [token - next(first for first in firsts if token >= first) for token in given]
    return name, items, arguments


@given(st.integers(0, 2**32), st.sampled_from(range(len(lists.NAMES))))
def test_every_operation_is_asked_and_answered_as_python_does_it(seed, operation):
    for row in drawn.examples(np.random.default_rng(seed), np.full(4, operation)).tolist():
        name, items, arguments = words(row)
        assert name == lists.NAMES[operation] and 1 <= len(items) <= lists.MOST
        assert lists.encode(lists.render(name, items, arguments)) == (row[: drawn.PROMPT], 0)
        edit = Edit(name, tuple(arguments))
        assert edit.fits(len(items))
        answer = row[drawn.PROMPT :]
        end = answer.index(lists.END)
        procedure = Edits(items, [str(edit)])
        assert procedure.parse(lists.decode(answer[:end]), procedure.start()) == edit.done(items)
        assert set(answer[end:]) == {lists.END} and drawn.answer(edit, items) == answer
        assert end == (2 * items.count(arguments[0]) + 1 if name == "count" else 2 * edit.left(len(items)))


def test_every_operation_and_every_place_is_drawn():
    seen = [words(row) for row in drawn.batch(np.random.default_rng(1), 40_000).tolist()]
    assert set(lists.NAMES) == set(NUMBERS)
    for name, places in (("swap", 8 * 9 * 17 // 6), ("delete", 35), ("rotate", 36), ("extract", 120)):
        assert len({(len(items), *arguments) for each, items, arguments in seen if each == name}) == places
    counts = [items.count(arguments[0]) for name, items, arguments in seen if name == "count"]
    assert {0, 1, 2, 3, 4, 5, 6} <= set(counts) and counts.count(0) < len(counts) / 2


@pytest.mark.parametrize(
    "text",
    [
        "", "List: [1, 2]", lists.render("swap", [1, 2, 3], [0, 3]), lists.render("insert", [1] * 8, [5, 0]),
        lists.render("insert", [1, 2], [5, 3]), lists.render("insert", [1, 2], [100, 0]), lists.render("reverse", [1] * 9),
        lists.render("reverse", [1, 100]), lists.render("reverse", []), lists.render("delete", [1, 2], [2]),
        lists.render("delete", [1], [0]), lists.render("extract", [1, 2, 3], [2, 1]), lists.render("rotate", [1, 2, 3], [3]),
        lists.render("count", [1, 2], [100]), lists.render("reverse", [1, 2]) + "\n", lists.render("reverse", [1, 2])[1:],
        lists.render("reverse", [1, 2]).replace("2", "02"), lists.render("reverse", [1, 2]).replace("2", "٢"),
        lists.render("reverse", [1, 2]).replace("list =", "count ="),
    ],
)  # fmt: skip
def test_any_other_text_is_refused(text):
    assert lists.encode(text) is None


def test_a_malformed_answer_stays_malformed():
    item = lambda at, place, number: [lists.FROM + 9 * at + place, lists.NUMBER + number]  # noqa: E731
    assert lists.decode([]) == "list = []"
    assert lists.decode([*item(0, 3, 5), *item(1, 8, 99)]) == "list = [3: 5, new: 99]"
    assert lists.decode([*item(0, 3, 5), *item(0, 4, 6)]) == "list = [3: 5, ?: 6]"
    assert lists.decode([*item(0, 3, 5), lists.FROM + 9]) == "list = [3: 5, 0: ?]"
    assert lists.decode([*item(0, 3, 5), lists.NUMBER + 7, lists.ITEM]) == "list = [3: 5, ?: ?]"
    assert lists.decode([lists.AMOUNT]) == "list = []\ncount = 0"
    assert lists.decode([*item(0, 2, 9), lists.AMOUNT + 4]) == "list = [2: 9]\ncount = 4"
    assert lists.decode([lists.AMOUNT + 4, lists.AMOUNT + 1]) == "list = [?: ?]\ncount = 1"
