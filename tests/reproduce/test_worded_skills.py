"""The skills asked for in words: what is held out is held out, and answers are right."""

from __future__ import annotations

from keystep.reproduce._skill_world import Base
from keystep.reproduce._worded_skills import LENGTHS, WORDS, Worded
from keystep.worlds.skills import SKILLS

WORDED = Worded(Base(seed=3))


def test_no_word_belongs_to_two_skills():
    words = [word for skill in SKILLS for word in WORDED.words(skill)]
    assert len(words) == len(set(words)) == WORDS * len(SKILLS) and all(len(word) == 3 for word in words)


def test_bodies_are_the_same_whatever_the_word():
    one, two = (WORDED.problems("sort", "test", words, LENGTHS[:-1]) for words in ([0, 1], [3]))
    assert [problem.prompt[3:] for problem in one] == [problem.prompt[3:] for problem in two]
    assert {problem.prompt[:3] for problem in one} == set(WORDED.words("sort")[:2])
    assert all(problem.answer == "".join(sorted(problem.prompt[3:-1])) for problem in one)
    assert {len(problem.answer) for problem in one} == {3, 4}


def test_what_is_held_out_was_not_trained_on():
    for skill in SKILLS:
        train, test = (set(WORDED.bodies(skill, split)) for split in ("train", "test"))
        assert train and test and (train == test if skill == "fact" else not train & test)
    assert dict(WORDED.bodies("rev", "test"))[(body := WORDED.bodies("rev", "test")[0][0])] == body[-2::-1]
