"""The procedure `edits` and the small world it draws from."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker import Worker, written

from keystep.errors import BadInput
from keystep.run import AheadBy, Flag, Run
from keystep.run.builtin import Edits, builtin
from keystep.worlds import edits

LONG = ["swap 0 3", "insert 17 2", "count 4", "rotate 2", "delete 1", "reverse", "extract 1 2", "count 4"]


@pytest.mark.parametrize(
    ("edit", "before", "after"),
    [
        ("swap 0 3", [1, 2, 3, 4], [4, 2, 3, 1]), ("swap 1 1", [1, 2], [1, 2]), ("insert 9 0", [1, 2], [9, 1, 2]),
        ("insert 9 2", [1, 2], [1, 2, 9]), ("delete 1", [1, 2, 3], [1, 3]), ("rotate 0", [1, 2, 3], [1, 2, 3]),
        ("rotate 2", [1, 2, 3], [3, 1, 2]), ("extract 1 2", [1, 2, 3, 4], [2, 3]), ("extract 0 0", [1, 2], [1]),
        ("reverse", [1, 2, 3], [3, 2, 1]), ("count 2", [2, 1, 2], 2), ("count 5", [2], 0),
    ],
)  # fmt: skip
def test_what_an_edit_does(edit, before, after):
    known, kept = edits.read(edit), list(before)
    assert str(known) == edit and known.fits(len(before))
    assert known.done(before) == after and before == kept
    assert known.left(len(before)) == len(after if isinstance(after, list) else before)


@given(st.integers(0, 2**32), st.integers(2, 8))
def test_random_edits_fit_and_leave_a_list(seed, size):
    items, drawn = edits.draw(random.Random(seed), size, 60, 8, 99)
    for edit in drawn:
        assert edit.fits(len(items)) and edits.read(str(edit)) == edit
        after = edit.done(items)
        items = after if isinstance(after, list) else items
        assert 2 <= len(items) <= 8 and all(0 <= item <= 99 for item in items)


def test_random_edits_are_of_all_kinds_and_lists_of_all_lengths():
    procedure = Edits(steps=2000)
    assert {edit.name for edit in procedure.edits} == set(edits.NUMBERS)
    assert {len(state["list"]) for state, _ in procedure.truth()} == set(range(2, 9))
    assert Edits(steps=50).edits == Edits(steps=60).edits[:50] != Edits(steps=50, instance=1).edits


def test_edits_one_after_another():
    procedure = Edits([4, 4, 5, 6], LONG)
    state = procedure.start()
    answers = []
    while not procedure.done(state):
        answers.append(procedure.parse(written(procedure.prompt(state), 0), state))
        state = procedure.update(state, answers[-1])
    assert answers == [[6, 4, 5, 4], [6, 4, 17, 5, 4], 2, [17, 5, 4, 6, 4], [17, 4, 6, 4], [4, 6, 4, 17], [6, 4], 1]
    assert state == {"list": [6, 4], "counts": [2, 1]} and answers == [answer for _, answer in procedure.truth()]
    assert procedure.check(answers) is None and procedure.check(answers[:-1]) == 7
    assert procedure.check([*answers[:2], 3, *answers[3:]]) == 2 and procedure.check([[6, 4, 4, 5], *answers[1:]]) == 0


LISTS = (
    "", "list = 2: 3, 1: 2, 0: 1", "list = [3, 2, 1]", "list = [2: 3, 1: 2]", "list = [2: 3, 1: 2, 0: 1, 0: 1]",
    "list = [2: 3, 1: 2, 0: x]", "list = [2: 3, 1: 2, ?: 1]", "list = [2: 3, 1: 2, 0: 3]", "list = [3: 3, 1: 2, 0: 1]", "list = []",
    "list = [2: 3 1: 2 0: 1]", "list = [2: 3, 1: 2, 0: 1]\nlist = [2: 3, 1: 2, 0: 1]", "list = [2: 3, 1: 2, new: 1]",
    "list = [[2: 3, 1: 2, 0: 1]]", f"list = [2: 3, 1: 2, {'3' * 5000}: 1]", "list = [2: 3, 1: 2, 0: 1.0]", "list = [-1: 3, 1: 2, 0: 1]",
    "count = 3",
)  # fmt: skip
COUNTS = (
    "", "count = one", "list = [0: 1]", "count = 1", "list = [0: 1]\ncount = 2", "list = []\ncount = 1",
    "list = [0: 1]\ncount = 1\ncount = 1", "list = [0]\ncount = 1", f"list = [0: 1]\ncount = {'1' * 50}", "list = [0: 2]\ncount = 1",
)  # fmt: skip


@pytest.mark.parametrize(("edit", "text"), [*(("reverse", text) for text in LISTS), *(("count 1", text) for text in COUNTS)])
def test_malformed_answers_are_flagged(edit, text):
    procedure = Edits([1, 2, 3], [edit])
    with pytest.raises(Flag):
        procedure.parse(text, procedure.start())
    right = {"reverse": (" List=[0:1,1 : 2, 2: 3] ", [1, 2, 3]), "count 1": ("Sure.\nlist = [0: 1, 1: 2]\ncount = 2", 2)}[
        edit
    ]  # wrong, and no reason to throw them away
    assert procedure.parse(right[0], procedure.start()) == right[1]


def test_an_erring_worker_is_voted_right():
    procedure = builtin("edits", {"steps": 120, "instance": 3})
    outcome = Run(Worker([0.85, 0.1]), vote=AheadBy(5), seed=1).execute_sync(procedure)
    assert outcome.correct and outcome.steps == 120 and set(outcome.result) == {"list", "counts"}


@pytest.mark.parametrize(
    ("settings", "field", "said"),
    [
        ({"values": [1, 2]}, "values and operations", "together"),
        ({"values": [], "operations": ["reverse"]}, "values", "from 1"),
        ({"values": [1], "operations": []}, "operations", "from 1"),
        ({"values": [1, 2], "operations": ["turn"]}, "operations", "no edit"),
        ({"values": [1, 2], "operations": [""]}, "operations", "no edit"),
        ({"values": [1, 2], "operations": ["swap 0"]}, "operations", "no edit"),
        ({"values": [1, 2], "operations": ["swap 0 x"]}, "operations", "no edit"),
        ({"values": [1, 2], "operations": ["delete 0", "swap 0 1"]}, "operations", "number 1"),
        ({"values": [1, 2], "operations": ["delete 0", "delete 0"]}, "operations", "does not fit"),
        ({"values": [1, 2], "operations": ["extract 1 0"]}, "operations", "does not fit"),
        ({"values": [1, 2], "operations": ["insert 3 3"]}, "operations", "does not fit"),
        ({"values": [1, 2], "operations": ["delete -1"]}, "operations", "does not fit"),
        ({"values": [1, 2], "operations": "reverse"}, "operations", "list of texts"),
        ({"values": [1, 2], "operations": [3]}, "operations", "list of texts"),
        ({"steps": 0}, "steps", "from 1"),
        ({"steps": 10_001}, "steps", "from 1"),
    ],
)
def test_settings_that_cannot_be(settings, field, said):
    with pytest.raises(BadInput) as refused:
        builtin("edits", settings)
    assert refused.value.field == field and said in str(refused.value)


def test_different_work_has_different_identities():
    kinds = [
        Edits([1, 2], ["reverse"]),
        Edits([2, 1], ["reverse"]),
        Edits([1, 2], ["rotate 1"]),
        Edits(steps=3),
        Edits(steps=3, instance=1),
    ]
    assert len({str(kind.identity()) for kind in kinds}) == len(kinds)
