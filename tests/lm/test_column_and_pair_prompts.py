"""The tokenizers of `arithmetic` and `pairs`: their prompts there and back, what they refuse, and that no answer is put right."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep.lm.embedded import arithmetic, pairs
from keystep.run import Flag
from keystep.run.builtin import Multiply, Sort

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))

import arithmetic as columns
import pairs as drawn

numbers = st.integers(-pairs.LIMIT, pairs.LIMIT) | st.sampled_from([0, 1, -1, 99, 100, -100, pairs.LIMIT, -pairs.LIMIT])


def test_every_column_is_asked_and_answered_as_the_training_table_says():
    table = columns.table()
    assert table.shape == (10_200, 8) and len(np.unique(table[:, : columns.PROMPT], axis=0)) == 10_200
    assert sum(map(len, columns.parts().values())) == 10_200
    for row in table[::7].tolist():
        kind, first, second, below, carry = (row[0], *(token - arithmetic.DIGIT for token in row[1:5]))
        added = kind == arithmetic.ADD
        assert arithmetic.encode(arithmetic.render(first, second, carry, None if added else below)) == (row[:5], 0)
        result = (first + second if added else first * second) + below + carry
        assert arithmetic.decode(row[5:7]) == f"digit = {result % 10}\ncarry = {result // 10}"


@given(numbers, numbers)
def test_every_pair_is_asked_and_answered_as_training_says(first, second):
    row = drawn.examples(np.array([first]), np.array([second]))[0].tolist()
    assert pairs.encode(pairs.render(first, second)) == (row[: drawn.PROMPT], 0)
    procedure = Sort([first, second])
    assert procedure.parse(pairs.decode(row[drawn.PROMPT : -1]), procedure.start()) == sorted([first, second])
    assert len(row) == 12 and row[-1] == pairs.END


@pytest.mark.parametrize("kind", [None, *range(len(drawn.KINDS))])
def test_pairs_of_every_kind_are_in_range_and_come_both_ways_round(kind):
    first, second = drawn.draw(np.random.default_rng(3), 400, kind)
    assert max(np.abs(first).max(), np.abs(second).max()) <= pairs.LIMIT
    equal = kind == drawn.KINDS.index("equal")
    assert equal == bool((first == second).all()) and (equal or 100 < (first < second).sum() < 300)


@pytest.mark.parametrize(
    "text",
    [
        "", "Long multiplication, one column.", arithmetic.render(3, 4, 1, 2) + " ", arithmetic.render(3, 4, 1).replace("3", "33"),
        pairs.render(3, 4).replace("3", "03"), pairs.render(3, 10_000), pairs.render(3, 4).replace("3", "-0"), pairs.render(3, 4)[1:],
        arithmetic.render(3, 4, 1).replace("3", "٣"), pairs.render(3, 4).replace("3", "٣"),
    ],
)  # fmt: skip
def test_any_other_text_is_refused(text):
    assert arithmetic.encode(text) is None and pairs.encode(text) is None


@given(st.lists(st.integers(0, arithmetic.VOCABULARY - 1), max_size=5))
def test_a_malformed_column_stays_malformed(tokens):
    well = len(tokens) == 2 and min(tokens) >= arithmetic.DIGIT
    procedure = Multiply(12, 34)
    try:
        answer = procedure.parse(arithmetic.decode(tokens), procedure.start())
    except Flag:
        assert not well
    else:
        assert well and answer == [token - arithmetic.DIGIT for token in tokens]


@given(st.lists(st.integers(0, pairs.VOCABULARY - 1), max_size=9))
def test_a_malformed_pair_stays_malformed(tokens):
    procedure = Sort([1, 2])
    with pytest.raises(Flag):
        procedure.parse(pairs.decode([t for t in tokens if t not in (pairs.COLUMN + 12, pairs.COLUMN + 21)]), procedure.start())
