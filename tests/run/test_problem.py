"""The procedure `problem`: what is read is worked out, right answers give the result, what is of no template is named."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker import Worker, written

from keystep.errors import BadInput
from keystep.lm import lm
from keystep.run import AheadBy, Flag, Run
from keystep.run.builtin import builtin
from keystep.run.builtin.problem import Problem
from keystep.run.builtin.problem_texts import applied, change_for, drawn

TOLD = (
    "Tom likes pears. Ann has 12 apples. Ann gives Bob three apples. Ann has 5 pears. Ann buys 4 boxes of 10 apples. Ann doubles the "
    "number of apples. Ann sorts the apples into 7 equal piles and keeps one of them. How many apples does {} have now?"
)


PROCEDURE = Problem(instance=1)


def followed(procedure):
    """The state after the right answers, by way of prompt, text and parser, and these answers."""
    state, answers = procedure.start(), []
    while not procedure.done(state):
        answers.append(procedure.parse(written(procedure.prompt(state), 0), state))
        state = procedure.update(state, answers[-1])
    return state, answers


def test_a_problem_by_hand():
    procedure = Problem(question=TOLD.format("Ann"), answer="14")
    state, answers = followed(procedure)
    assert state == {"answer": 14} and procedure.check(answers) is None and len(answers) == procedure.total()
    assert [answer for answer in answers if not answer or isinstance(answer[0], list)] == [
        [["Ann", "apples", "?"]],
        [],
        [["Ann", "apples", "=", 12]],
        [["Ann", "apples", "-", 3], ["Bob", "apples", "+", 3]],
        [["Ann", "pears", "=", 5]],
        [["Ann", "apples", "+", 4, 10]],
        [["Ann", "apples", "*", 2]],
        [["Ann", "apples", "/", 7]],
    ]
    wrong = Problem(question=TOLD.format("Ann"), answer="15")
    assert wrong.check(followed(wrong)[1]) == wrong.total()


@given(st.integers(0, 10**9), st.integers(0, 7))
def test_right_answers_work_any_problem_out(instance, operations):
    procedure = Problem(instance=instance, operations=operations)
    state, answers = followed(procedure)
    assert [answer for _, answer in procedure.truth()] == answers and procedure.check(answers) is None
    value, readings = None, [answer for answer in answers if not answer or isinstance(answer[0], list)]
    changes = [change_for(reading, *procedure.about) for reading in readings[1:]]
    for change in changes:
        value = applied(value, change)
    assert state == {"answer": value} and len(changes) - changes.count(["none"]) == operations + 1
    again = Problem(question=" ".join([*procedure.sentences, procedure.asked]), answer=str(value))
    assert followed(again) == (state, answers) and again.check(answers) is None


def test_any_change_is_found():
    procedure = Problem(instance=4)
    _, right = followed(procedure)
    for step in range(len(right)):
        assert procedure.check([*right[:step], ["other"], *right[step + 1 :]]) == step
        assert procedure.check(right[:step]) == step


def test_a_problem_is_voted_right_by_an_erring_worker():
    outcome = Run(Worker([0.85, 0.1]), vote=AheadBy(5), seed=1).execute_sync(builtin("problem", {"question": TOLD.format("Ann")}))
    assert outcome.correct and outcome.result == {"answer": 14}


@pytest.mark.parametrize("instance", range(5))
def test_the_embedded_models_work_problems_out(instance):
    outcome = Run(lm("embedded"), vote=AheadBy(3), seed=instance).execute_sync(Problem(operations=4, instance=instance))
    assert outcome.correct


@given(st.integers(0, 200), st.data())
def test_a_wrong_answer_is_found_whatever_follows(instance, data):
    """From a wrong answer on all answers are right for the state they are asked in: it ends, and the first wrong one is named."""
    procedure = Problem(instance=instance)
    at, state, answers = data.draw(st.integers(0, procedure.total() - 1)), procedure.start(), []
    while not procedure.done(state) and len(answers) < procedure.total():
        candidate = int(len(answers) == at)
        try:
            answers.append(procedure.parse(written(procedure.prompt(state), candidate), state))
        except Flag:  # what is right elsewhere does not come out with what there is now
            break
        state = procedure.update(state, answers[-1])
    assert procedure.check(answers) == at


def test_a_product_that_came_out_too_great_is_an_end_and_no_crash():
    procedure = Problem(question="Ann has 12 apples. Ann gives 2 apples to each of 3 friends. How many apples does Ann have now?")
    state = {"who": "Ann", "what": "apples", "at": 1, "value": 12}
    state = procedure.update(state, procedure.parse("Ann: - 3 x 2 apples", state))
    assert state["columns"]["numbers"] == [3, 2]
    assert procedure.update(state, [6, 0]) == {"answer": 6} and procedure.update(state, [6, 7]) == {"answer": None}


@pytest.mark.parametrize(
    "text",
    [
        "", "Ann: + 12", "Ann: 12 apples", "Ann + 12 apples", ": + 12 apples", "Ann: + 12 apples Bob: - 12 apples",
        "Ann: + 12 apples\nnone", "none\nAnn: + 12 apples", "Ann: + 1 apples\nAnn: + 2 apples", "Ann: + x 3 apples", "Ann: * 3 x 4 apples",
        "Ann: = 3 x 4 apples", "Ann: + -3 apples", "Ann: + 3.5 apples", "Ann: + 3 4 apples", "Ann: + ٣ apples", "Ann: - 13 apples",
        "Ann: / 5 apples", "Ann: / 0 apples", "Ann: - 7 x 2 apples", "Ann: ? apples", "nothing", f"Ann: + {'1' * 13} apples",
        "Ann: * 3 x apples",
    ],
)  # fmt: skip
def test_malformed_readings_are_flagged(text):
    state = {"who": "Ann", "what": "apples", "at": 0, "value": 12}
    with pytest.raises(Flag):
        PROCEDURE.parse(text, state)


def test_readings_are_read_whatever_their_blanks():
    state = {"who": "Ann", "what": "apples", "at": 0, "value": 12}
    assert PROCEDURE.parse(" Ann :+4 × 3  apples\n Bob: - 99 red apples \n", state) == [
        ["Ann", "apples", "+", 4, 3],
        ["Bob", "red apples", "-", 99],
    ]
    assert PROCEDURE.parse("None", state) == [] and PROCEDURE.parse("Ann: / 5 pears", state) == [["Ann", "pears", "/", 5]]
    with pytest.raises(Flag):
        PROCEDURE.parse("Ann: + 3 apples", {**state, "value": None})


@pytest.mark.parametrize("text", ["", "none", "Ann: apples", "Ann: ? apples\nBob: ? apples", "Ann: = 3 apples", ": ? apples", "Ann: ?"])
def test_malformed_readings_of_the_question_are_flagged(text):
    with pytest.raises(Flag):
        PROCEDURE.parse(text, PROCEDURE.start())
    assert PROCEDURE.parse(" Ann: ? apples", PROCEDURE.start()) == [["Ann", "apples", "?"]]


@given(
    st.lists(st.sampled_from(["Ann: ", "Bob: ", "+", "- ", "9 ", "0", " x ", "\n", "none", "apples", "? ", " "])).map("".join) | st.text()
)
def test_any_text_is_an_answer_or_flagged(text):
    procedure = PROCEDURE
    for state in (procedure.start(), {"who": "Ann", "what": "apples", "at": 0, "value": 12}):
        try:
            after = procedure.update(state, procedure.parse(text, state))
        except Flag:
            continue
        assert procedure.done(after) or procedure.prompt(after)


@pytest.mark.parametrize(
    ("settings", "field", "value"),
    [
        ({"operations": -1}, "operations", -1),
        ({"operations": 101}, "operations", 101),
        ({"instance": "3"}, "instance", "3"),
        ({"question": TOLD.format("Ann"), "instance": 3}, "question and instance", None),
        ({"question": ""}, "question", ""),
        ({"question": "How many apples does Ann have now?"}, "question", None),
        ({"question": "Ann has 3 apples."}, "question", None),
        ({"question": "Ann has 3 apples. Ann has 3 apples."}, "question", "Ann has 3 apples."),
        ({"question": "How many apples does Ann have now? Ann has 3 apples."}, "question", "Ann has 3 apples."),
        ({"question": "Ann has 3 apples. How many apples does Ann have now? How many apples does Ann have now?"}, "question", None),
        ({"question": "Ann has 3 apples. How many apples does Zebedee have now?"}, "question", "How many apples does Zebedee have now?"),
        ({"question": "Ann has 1 apples. How many apples does Ann have now?"}, "question", "Ann has 1 apples."),
        ({"question": "Ann eats 3 apples. How many apples does Ann have now?"}, "question", "Ann eats 3 apples."),
        ({"question": "Ann gives Ann 3 apples. How many apples does Ann have now?"}, "question", "Ann gives Ann 3 apples."),
        ({"question": "Ann has 3 apples. Ann loses 4 apples. How many apples does Ann have now?"}, "question", "Ann loses 4 apples."),
        ({"question": "Ann loses 4 apples. Ann has 9 apples. How many apples does Ann have now?"}, "question", "Ann loses 4 apples."),
        ({"question": "Ann has 3 apples. Ann keeps only half of the apples. How many apples does Ann have now?"}, "question", None),
        ({"question": TOLD.format("Bob")}, "question", None),
        ({"question": TOLD.format("Ann"), "answer": "many"}, "answer", "many"),
    ],
)
def test_settings_that_cannot_be(settings, field, value):
    with pytest.raises(BadInput) as refused:
        builtin("problem", settings)
    assert refused.value.field == field and value in (None, refused.value.value)


def test_different_work_has_different_identities():
    kinds = [Problem(), Problem(instance=1), Problem(operations=2), Problem(question=TOLD.format("Ann"))]
    assert (
        len({str(kind.identity()) for kind in kinds}) == len(kinds) and Problem(instance=0, operations=3).identity() == Problem().identity()
    )


def test_random_problems_are_drawn_by_their_seed():
    assert drawn(Random(3), 4) == drawn(Random(3), 4) != drawn(Random(4), 4)
