"""The texts that the nets of Decomposed Prompting's reproduction learn from: they are those of the solver, and they are right."""

from __future__ import annotations

import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker import Scripted

from keystep.reproduce import _letter_nets as letters
from keystep.reproduce import decomposed_prompting as reproduction
from keystep.run import Run
from keystep.run.vote import First
from keystep.solve.solver import task_of

KINDS = (letters.rolled_out, letters.decomposing, letters.splitting, letters.positioning, letters.merging)


@given(st.integers(0, 10**6), st.sampled_from(KINDS), st.integers(2, 8))
def test_examples_are_made_of_tokens(seed, kind, longest):
    for text in (text for row in kind(Random(seed), longest) for text, _ in row):
        numbers = letters.tokens(text)
        assert letters.FILL not in numbers and "".join(letters.TOKENS[number] for number in numbers) == text


@given(st.integers(0, 10**6), st.integers(2, 8))
def test_a_program_as_one_row_is_read_as_its_lines_one_by_one(seed, words):
    question, given_words = letters.drawn(Random(seed), words)
    lines = letters.program(question, given_words)
    row = letters.decomposed(question, lines)
    numbers = [number for text, _ in row for number in letters.tokens(text)]
    for prompt, line in letters.steps_of(question, lines):
        asked, said = letters.tokens(prompt), letters.tokens(line)
        assert numbers[: len(asked) + len(said)] == [*asked, *said]
    assert "".join(text for text, counts in row if counts) == "".join(f" {line}\nA: " for line, _ in lines) + " [EOQ]"


def test_the_separators_of_a_list_are_told_apart():
    listed, joined = letters.tokens('["a", "a", "b"]'), letters.tokens('"a,a,b"')
    assert listed[2] != listed[4] and joined[2] != joined[4] and listed[1] == listed[3]
    assert letters.tokens('["anna", "leon"]')[2] == listed[2]
    long = letters.tokens(",".join("abcdefghijkl"))
    assert long[-2] == long[-4] != long[1]  # they are numbered as far as lists of the training go


@pytest.mark.parametrize("way", reproduction.WAYS[:2])
def test_the_solver_asks_what_the_nets_were_trained_on(way, monkeypatch):
    """Prompts and answers of the examples as a table: a question of the training is answered by it from end to end."""
    random = Random(3)
    question, words = letters.drawn(random, 3)
    position = int(re.findall(r"\d", question)[0])
    table = dict(letters.steps_of(question, letters.program(question, words)))
    for word in words.split():
        lower = f'What is the letter at position {position} in "{word}"?'
        table |= dict(letters.steps_of(lower, letters.lower_program(word, position)))
        table |= dict([letters.handled(f'What are the letters and their positions in "{word}"?', letters.spelt(word))])
        table |= dict(
            [letters.handled(f"What is the letter at position {position} in {letters.written(letters.spelt(word))}?", word[position - 1])]
        )
    table |= dict([letters.handled("What are the words?", words.split(), words)])
    glue = question.rpartition("using ")[2][:-1]
    chosen = [word[position - 1] for word in words.split()]
    table |= dict([letters.handled(f"Concatenate {letters.written(chosen)} using {glue}.", letters.truth(question, words))])
    if way != reproduction.WAYS[0]:
        table = dict([letters.chain(question, words)])
    lm = Scripted(lambda request, index: table[request.prompt])
    nets = dict.fromkeys([*reproduction.SKILLS, *reproduction.WAYS], lm)
    monkeypatch.setitem(reproduction._NETS, 0, nets)
    task = task_of({"question": question, "context": words})
    found = Run(lm, vote=First(cap=1)).solve_sync(reproduction.Letters(way=way), task)
    assert found.answer == letters.truth(question, words)
    if way == reproduction.WAYS[0]:
        accuracy = reproduction.handler_accuracy([{"words": words, "tree": found.details["tree"]}])
        assert accuracy == {
            "arr_position": [3, 3],
            "decompose": [1, 1],
            "merge": [1, 1],
            "split": [3, 3],
            "str_position": [3, 3],
            "words": [1, 1],
        }
        assert reproduction.expected(accuracy, 3) == 1


def test_what_is_judged_wrong():
    assert not letters.right("merge", 'Concatenate ["a", "b"] using a space.', "", "a,b")
    assert not letters.right("split", 'What are the letters and their positions in "anna"?', "", "[(a, 1)]")
    assert not letters.right("arr_position", 'What is the letter at position 9 in "[(a, 1)]"?', "", "a")
    assert not letters.right("words", "What are the words?", "anna leon", ["anna"])
    assert not letters.right("merge", "another question", "", "x")


def test_votes_compared():
    found = reproduction.votes_compared([True, False, False, True], [True, True, False, True])
    assert found["gain"] == 0.25 and found["gain_interval"][0] < 0.25 < found["gain_interval"][1]
