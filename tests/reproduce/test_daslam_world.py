"""The world of DaSLaM's reproduction: its stories come out right, its words are all known, its lessons are one operation each."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from keystep.reproduce._daslam_world import (
    LONGEST,
    MODULUS,
    PROMPTS,
    SAID,
    UNKNOWN,
    decode,
    drill,
    encode,
    lesson,
    row,
    story,
)
from keystep.solve.daslam.problems import problem
from keystep.solve.daslam.solver import DaSLaM
from keystep.solve.daslam.text import answer_of, context_of, sub_questions


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(0, 1))
def test_stories(seed, depth, useless):
    made = story(Random(seed), depth, useless)
    amounts = {}
    for who, change, whom in made.told:  # everyone after the one they depend on
        amounts[who] = (change + (amounts[whom] if whom else 0)) % MODULUS
    assert amounts == made.amounts and made.answer == amounts[made.path[-1]] and len(made.told) == depth + 1 + useless
    given_row = row(made, Random(seed))
    whole, imperfect = problem(row(made)), problem(given_row)
    assert whole.question == imperfect.question and imperfect.sub_questions
    texts = [whole.question, whole.reasoning, *whole.sub_questions, context_of(whole.question)]
    assert not any(UNKNOWN in encode(text) for text in texts)
    assert sub_questions(decode(encode("\n".join(whole.sub_questions))), 1) == list(whole.sub_questions)


@given(st.integers(0, 10**6))
def test_lessons_fit_and_say_their_answer(seed):
    prompt, said = lesson(Random(seed))
    assert len(encode(prompt)) <= LONGEST and len(encode(said)) < SAID and UNKNOWN not in encode(prompt + said)
    assert answer_of(decode(encode(said))) == said.rpartition(": ")[2].removesuffix("]]")
    for sums in (True, False):
        tokens, counted = drill(Random(seed), sums)
        assert UNKNOWN not in tokens and len(tokens) == len(counted) and any(counted)


def test_prompts_are_those_of_the_lessons(tmp_path):
    """What the solver is asked with answered sub-questions has the form that it was trained on."""
    for file, text in PROMPTS.items():
        (tmp_path / file).write_text(text)
    made = DaSLaM(prompts=str(tmp_path))
    earlier = [{"question": "How many has Ben?", "answer": "Ben: Ann +3. Ann= 7. 7 +3 is 0. [[Answer: 0]]"}]
    asked = made.solver_prompt("How many has Cleo?", earlier, "Ann= 7. Ben: Ann +3. Cleo: Ben -1")
    assert asked == "Ann= 7. Ben: Ann +3. Cleo: Ben -1. Ben= 0. How many has Cleo?"
    assert made.solver_prompt("Ann= 7. Ben: Ann +3. How many has Ben?", earlier) == "Ann= 7. Ben: Ann +3. Ben= 0. How many has Ben?"
    assert made.solver_prompt("Ann= 7. Ben: Ann +3. How many has Ben?") == "Ann= 7. Ben: Ann +3. How many has Ben?"
