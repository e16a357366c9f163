"""The tokenizer of `problems`: every sentence there and back, what it refuses, that no answer is put right, and what is held out."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep.lm.embedded import problems
from keystep.lm.embedded.problems import NAMES, NUMBER_WORDS, SENTENCE, TEMPLATES, THINGS, fitting
from keystep.run import Flag
from keystep.run.builtin.problem import read

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))

import problems as drawn

NUMBERS = [*map(str, range(2, 1000)), *NUMBER_WORDS * 30]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.text)
def test_every_sentence_is_of_its_template_and_of_no_other(template):
    draw = Random(template.text)
    for _ in range(40):
        (a, b), (n, m) = draw.sample(NAMES, 2), draw.choices(NUMBERS, k=2)
        said = {"a": a, "b": b, "t": draw.choice(THINGS), "n": n, "m": m}
        said = {part: word for part, word in said.items() if f"{{{part}}}" in template.text}
        assert fitting(template.text.format(**said)) == (template, said)
        assert len(template.tokens(said)) <= SENTENCE


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("kind", range(len(drawn.KINDS)), ids=drawn.KINDS)
def test_every_example_is_asked_and_answered_as_training_says(kind, held):
    words = {token: word for word, token in problems._TOKENS.items()}
    for row in drawn.draw(np.random.default_rng(kind), 60, kind, held).tolist():
        sentence, rest = "", [token for token in row[:SENTENCE] if token != problems.PAD]
        while rest:
            if problems.DIGIT <= rest[0] < problems.NUMBER:
                digits, rest = rest[:3], rest[3:]
                word = str(sum((token - problems.DIGIT) % 10 * 10 ** (2 - place) for place, token in enumerate(digits)))
            else:
                word = words[rest.pop(0)]
            sentence += ("" if word in ("'s", ".", "?", ",") or not sentence else " ") + word
        assert problems.encode(problems.render(sentence)) == (row[: drawn.PROMPT], 0)
        template, said = fitting(sentence) or pytest.fail(sentence)
        right = template.reading(said)
        answer = row[drawn.PROMPT : row.index(problems.END, drawn.PROMPT)]
        assert problems.answer_of(right) == answer and len(row) == drawn.LENGTH <= 32
        assert read(problems.decode(answer)) == right
        pairs = [(said[role], said["t"]) for role in "ab" if {role, "t"} <= set(said)]
        some = any(drawn.held_pair(*pair) for pair in pairs) or any(drawn.held_number(said[part]) for part in "nm" if part in said)
        assert some == held


def test_a_fifth_of_the_pairs_is_held_out():
    pairs = [drawn.held_pair(name, thing) for name in NAMES for thing in THINGS]
    assert 0.18 < np.mean(pairs) < 0.22 and not drawn.held_number("ten") and drawn.held_number("17")


@pytest.mark.parametrize(
    "text",
    [
        "", "One sentence of a word problem.", problems.render("Ann has 3 apples.") + " ",
        *map(problems.render, [
            "", "Ann has 3 apples", "Ann has 03 apples.", "Ann has 1000 apples.", "Ann has one apples.", "Zebedee has 3 apples.",
            "Ann has 3 dragons.", "Ann gives Ann 3 apples.", "Ann Ann has 3 apples.", "How many apples does Ann have now",
            "Ann has ٣ apples.", "Ann has 3 apples. Ann has 3 apples.", "ann has 3 apples.",
        ]),
    ],
)  # fmt: skip
def test_any_other_text_is_refused(text):
    assert problems.encode(text) is None


NUMBER = [[problems.DIGIT + hundreds, problems.DIGIT + 13, problems.DIGIT + 27] for hundreds in range(4)]
PIECES = [[problems.OPERATION + at] for at in range(7)] + [[problems.EACH]] * 2 + NUMBER * 2
PIECES += [[problems.NAME], [problems.NAME + 1], [problems.THING], [problems.THING + 1]] * 3
PIECES += [[token] for token in range(1, problems.VOCABULARY, 15)]


@given(st.lists(st.sampled_from(PIECES), max_size=8).map(lambda pieces: [token for piece in pieces for token in piece]))
def test_an_answer_is_read_as_it_was_written_or_flagged(tokens):
    try:
        reading = read(problems.decode(tokens))
    except Flag:
        return
    assert problems.answer_of(reading) == tokens


@given(st.lists(st.tuples(*map(st.sampled_from, (NAMES, THINGS, "=+-*/", range(1000)))), max_size=2, unique_by=lambda line: line[:2]))
def test_a_well_formed_answer_is_read(lines):
    reading = [list(line) for line in lines]
    assert read(problems.decode(problems.answer_of(reading))) == reading
