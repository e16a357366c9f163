"""The procedure `letters`: its steps make the letters, its questions are read, wrong answers are found, nothing malformed gets through."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker import Worker, written

from keystep.errors import BadInput
from keystep.lm import lm
from keystep.lm.embedded.strings import WORD, encode
from keystep.run import AheadBy, Flag, Run
from keystep.run.builtin import builtin
from keystep.run.builtin.letters import Letters

DATA = os.environ.get("KEYSTEP_DECOMPOSED_PROMPTING_DATA")

words = st.text(st.sampled_from("abcXYZ"), min_size=1, max_size=WORD)
texts = st.lists(words, min_size=1, max_size=30)
glues = {"nothing": "", "space": " ", "comma": ",", "semi-colon": ";"}


def followed(procedure):
    """The state after the right answers, by way of prompt, text and parser, and these answers."""
    state, answers = procedure.start(), []
    while not procedure.done(state):
        assert encode(procedure.prompt(state)), procedure.prompt(state)
        answers.append(procedure.parse(written(procedure.prompt(state), 0), state))
        state = procedure.update(state, answers[-1])
    return state, answers


@given(texts, st.sampled_from(list(glues)), st.data())
def test_right_answers_give_the_letters_of_any_text(text, glue, data):
    position = data.draw(st.integers(0, min(map(len, text))))
    procedure = Letters(" ".join(text), position, glue)
    state, answers = followed(procedure)
    assert state == {"letters": glues[glue].join(word[position - 1] for word in text)}
    assert len(answers) == procedure.total() == 3 * len(text) - 1
    assert [answer for _, answer in procedure.truth()] == answers and procedure.check(answers) is None


def test_any_change_is_found():
    procedure = Letters("one two three four", 2, "comma")
    _, right = followed(procedure)
    for step in range(len(right)):
        assert procedure.check([*right[:step], "other", *right[step + 1 :]]) == step
        assert procedure.check(right[:step]) == step


def test_questions_as_test_sets_have_them():
    asked = 'Take the letters at position 3 of the words in "Magdalena Raju Wilson Pinto" and concatenate them using a semi-colon.'
    procedure = Letters(question=asked, answer="g;j;l;n", id="0")
    assert followed(procedure)[0] == {"letters": "g;j;l;n"} and procedure.check(followed(procedure)[1]) is None
    wrong = Letters(question=asked, answer="g;j;l;o")
    assert wrong.check(followed(wrong)[1]) == wrong.total() == 11
    last = Letters(question='Take the last letters of the words in "Ada Lovelace" and concatenate them.')
    assert followed(last)[0] == {"letters": "ae"}


@pytest.mark.skipif(DATA is None, reason="KEYSTEP_DECOMPOSED_PROMPTING_DATA is not set")
@pytest.mark.parametrize("file", [f"letter_cat_n{n}_eg100_pos2_{glue}.json" for n in (3, 4, 5) for glue in ("semic", "space")])
def test_the_published_questions_are_read_and_their_answers_are_ours(file):
    for pair in json.loads((Path(str(DATA)) / file).read_text())["1"]["qa_pairs"]:
        procedure = Letters(question=pair["question"], answer=pair["answer"]["spans"][0])
        assert procedure.check(followed(procedure)[1]) is None


def test_letters_are_voted_right_by_an_erring_worker():
    outcome = Run(Worker([0.85, 0.1]), vote=AheadBy(5), seed=1).execute_sync(builtin("letters", {"glue": "space"}))
    assert outcome.correct and outcome.result == {"letters": "e k n x s r e y g"}


def test_the_embedded_models_take_the_letters_of_a_long_text():
    draw = Random(11)
    text = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 10))) for _ in range(60)]
    outcome = Run(lm("embedded"), vote=AheadBy(3), seed=2).execute_sync(Letters(" ".join(text), 2, "comma"))
    assert outcome.correct and outcome.result == {"letters": ",".join(word[1] for word in text)}


@pytest.mark.skipif(DATA is None, reason="KEYSTEP_DECOMPOSED_PROMPTING_DATA is not set")
def test_the_embedded_models_answer_published_questions():
    for pair in json.loads((Path(str(DATA)) / "letter_cat_n5_eg100_pos2_space.json").read_text())["1"]["qa_pairs"][:20]:
        work = Letters(question=pair["question"], answer=pair["answer"]["spans"][0])
        assert Run(lm("embedded"), vote=AheadBy(3)).execute_sync(work).correct


@pytest.mark.parametrize(
    ("state", "texts"),
    [
        (
            {"rest": "ab cd", "joined": ""},
            ["", 'answer = "ab"', 'answer = "ab"\nrest = "cd"\nrest = "cd"',
            'rest = "cd"', 'answer = "a b"\nrest = "cd"', 'answer = ""\nrest = "x"', f'answer = "{"a" * 13}"\nrest = ""'],
        ),
        ({"rest": "", "joined": "x", "word": "ab"}, ['answer = "ab"', 'answer = ""', "answer = a", 'answer = "a"\nrest = ""']),
        ({"rest": "", "joined": "x", "letter": "a"}, ['answer = ""', 'answer = "xa"\nanswer = "xa"', '"xa"']),
    ],
)  # fmt: skip
def test_malformed_answers_are_flagged(state, texts):
    for text in texts:
        with pytest.raises(Flag):
            Letters("ab cd").parse(text, state)


def test_a_wrong_answer_of_the_right_form_is_not_thrown_away():
    procedure = Letters("ab cd")
    assert procedure.parse(' Answer = "ba" \nrest = " cd"', procedure.start()) == ["ba", " cd"]
    assert procedure.parse('answer = "q"', {"rest": "", "joined": "", "word": "ab"}) == "q"


@given(st.lists(st.sampled_from(["answer", "rest", " = ", '"', "a", " ", "\n", "ä", "\\"])).map("".join) | st.text(), st.integers(0, 2))
def test_any_text_is_an_answer_or_flagged(text, at):
    state = [{"rest": "ab cd", "joined": "x"}, {"rest": "", "joined": "x", "word": "ab"}, {"rest": "e", "joined": "x", "letter": "b"}][at]
    procedure = Letters("ab cd")
    try:
        after = procedure.update(state, procedure.parse(text, state))
    except Flag:
        return
    assert procedure.done(after) or isinstance(procedure.prompt(after), str)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"text": ""}, "text"),
        ({"text": "a" * 13}, "text"),
        ({"text": "naïve text"}, "text"),
        ({"text": "it's"}, "text"),
        ({"text": "a " * 10_001}, "text"),
        ({"text": "one two", "position": 4}, "position"),
        ({"position": -1}, "position"),
        ({"position": "2"}, "position"),
        ({"glue": ";"}, "glue"),
        ({"question": "What are the letters?"}, "question"),
        ({"question": 'Take the last letters of the words in "" and concatenate them.'}, "question"),
        ({"question": "x", "glue": "space"}, "question and glue"),
    ],
)
def test_settings_that_cannot_be(settings, field):
    with pytest.raises(BadInput) as refused:
        builtin("letters", settings)
    assert refused.value.field == field


def test_different_work_has_different_identities():
    kinds = [Letters("a b"), Letters("a c"), Letters("a b", 1), Letters("a b", glue="comma"), Letters("a b", answer="ab")]
    assert len({str(kind.identity()) for kind in kinds}) == len(kinds)
