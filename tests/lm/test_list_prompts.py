"""The tokenizer of `lists`: every operation asked and answered as plain Python does it, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep.lm.embedded import lists

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))

import lists as drawn

PLACES = {"swap": 2, "insert": 1, "delete": 1, "rotate": 1, "extract": 1, "letter": 1}


def asked(row: list[int]) -> tuple[str, list[str], dict[str, int]]:
    """Operation, items and arguments of an example's tokens."""
    name = lists.NAMES[row[0] - lists.OPERATION]
    words = [lists.decode([token]).removeprefix("answer = ") for token in row[1 : drawn.PROMPT] if token != lists.NONE]
    taken = PLACES.get(name, 0) + (name in ("insert", "count"))
    names = ["place", "other"][: PLACES.get(name, 0)] + ["item"] * (name in ("insert", "count"))
    return name, words[taken:], dict(zip(names, map(int, words), strict=False))


def answered(name: str, items: list[str], given: dict[str, int]) -> str:
    """What plain Python makes of it."""
    place, changed = given.get("place", 0), list(items)
    if name == "swap":
        changed[place], changed[given["other"]] = changed[given["other"]], changed[place]
    if name == "insert":
        changed.insert(place, str(given["item"]))
    if name == "delete":
        del changed[place]
    if name == "rotate":
        changed = changed[place:] + changed[:place]
    if name == "reverse":
        changed.reverse()
    if name in ("extract", "letter"):
        return f"answer = {items[place]}"
    if name == "count":
        return f"answer = {items.count(str(given['item']))}"
    return f"answer = {''.join(items)}" if name == "merge" else f"answer = [{', '.join(changed)}]"


@given(st.integers(0, 2**32), st.sampled_from(range(len(lists.NAMES))))
def test_every_operation_is_asked_and_answered_as_python_does_it(seed, operation):
    for row in drawn.examples(np.random.default_rng(seed), np.full(4, operation)).tolist():
        name, items, arguments = asked(row)
        assert name == lists.NAMES[operation] and 1 <= len(items) <= lists.MAX_ITEMS
        prompt = lists.render(name, "".join(items) if lists.OPERATIONS[name][0] == "word" else items, **arguments)
        assert lists.encode(prompt) == (row[: drawn.PROMPT], 0)
        answer = row[drawn.PROMPT :]
        assert lists.decode(answer[: answer.index(lists.END)]) == answered(name, items, arguments)
        assert set(answer[answer.index(lists.END) :]) == {lists.END}


def test_parts_by_length_are_the_same_examples():
    rows = drawn.batch(np.random.default_rng(0), 300)
    parts = drawn.by_length(rows)
    assert sum(map(len, parts)) == 300 and all((part[:, -1] == lists.END).all() for part in parts)
    assert all((part[:, drawn.PROMPT : -1] != lists.END).all() for part in parts)


@pytest.mark.parametrize(
    "text",
    [
        "", "List: [1, 2]", lists.render("swap", [1, 2, 3], place=0, other=3), lists.render("insert", [1] * 8, place=0, item=5),
        lists.render("reverse", [1] * 9), lists.render("reverse", [1, 100]), lists.render("delete", [1, 2], place=2),
        lists.render("merge", ["a", "B"]), lists.render("letter", "abc", place=3), lists.render("split", "äh"),
        lists.render("count", [1, 2], item=100), lists.render("reverse", ["a", "b"]), lists.render("reverse", [1, 2]) + "\n",
    ],
)  # fmt: skip
def test_any_other_text_is_refused(text):
    assert lists.encode(text) is None


def test_a_malformed_answer_stays_malformed():
    assert lists.decode([]) == "answer = "
    assert lists.decode([lists.LIST, lists.NUMBER + 3, lists.LIST, lists.LETTER]) == "answer = [3, ?, a]"
    assert lists.decode([lists.NUMBER + 3, lists.NUMBER + 4]) == "answer = 3 4"
    assert lists.decode([lists.WORD, lists.LETTER + 25, lists.PLACE + 2]) == "answer = z2"
