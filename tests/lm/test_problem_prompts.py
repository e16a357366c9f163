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
from keystep.lm.embedded.problems import NAMES, NUMBER_WORDS, QUESTIONS, SENTENCE, TEMPLATES, THINGS, fitting
from keystep.run import Flag
from keystep.run.builtin.problem import Problem

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))

import problems as drawn

NUMBERS = [*map(str, range(2, 1000)), *NUMBER_WORDS * 30]
PROCEDURE = Problem(instance=0)
STATE = {"who": "Ann", "what": "apples", "at": 0, "value": 10**12}


def reading(sentence, who="Ann", what="apples"):
    return problems.read(who, what, sentence)


@pytest.mark.parametrize("template", [*TEMPLATES, *QUESTIONS], ids=lambda template: template.text)
def test_every_sentence_is_of_its_template_and_of_no_other(template):
    draw = Random(template.text)
    for _ in range(40):
        (a, b), (n, m) = draw.sample(NAMES, 2), draw.choices(NUMBERS, k=2)
        said = {"a": a, "b": b, "t": draw.choice(THINGS), "n": n, "m": m}
        said = {part: word for part, word in said.items() if f"{{{part}}}" in template.text}
        assert fitting(template.text.format(**said), question=template in QUESTIONS) == (template, said)
        assert len(template.tokens(said)) <= SENTENCE
        assert fitting(template.text.format(**said), question=template not in QUESTIONS) is None


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("kind", range(len(drawn.KINDS)), ids=drawn.KINDS)
def test_every_example_is_asked_and_answered_as_training_says(kind, held):
    words = {token: word for word, token in problems._TOKENS.items()}
    for row in drawn.draw(np.random.default_rng(kind), 60, kind, held).tolist():
        who, what, *rest = row[: drawn.PROMPT - 1]
        sentence, places = "", [token - problems.DIGIT for token in rest if problems.DIGIT <= token < problems.NUMBER]
        for token in rest:
            if problems.DIGIT <= token < problems.NUMBER:
                hundreds = (token - problems.DIGIT) // 10 == 0
                word = str(sum(places.pop(0) % 10 * 10 ** (2 - place) for place in range(3))) if hundreds else None
            else:
                word = words.get(token)
            if word is not None:
                sentence += ("" if word in ("'s", ".", "?", ",") or not sentence else " ") + word
        asks = drawn.KINDS[kind] == "question"
        prompt = problems.asked(sentence) if asks else problems.read(words[who], words[what], sentence)
        assert problems.encode(prompt) == (row[: drawn.PROMPT], 0)
        template, said = fitting(sentence, asks) or pytest.fail(sentence)
        right = [said["a"], said["t"]] if asks else template.change(said, words[who], words[what])
        answer = row[drawn.PROMPT : row.index(problems.END, drawn.PROMPT)]
        assert problems.answer_of(right) == answer and len(row) == drawn.LENGTH <= 32
        text = problems.decode(answer)
        assert asks or f"change = {' '.join([right[0], ' x '.join(map(str, right[1:]))]).strip()}" == text
        if right[0] != "/":  # whether it comes out is another matter
            assert PROCEDURE.parse(text, PROCEDURE.start() if asks else STATE) == right
        asked_for = (said["a"], said["t"]) if asks else (words[who], words[what])
        pairs = [asked_for, *((said[role], said["t"]) for role in "ab" if {role, "t"} <= set(said))]
        some = any(drawn.held_pair(*pair) for pair in pairs) or any(drawn.held_number(said[part]) for part in "nm" if part in said)
        assert some == held


def test_a_fifth_of_the_pairs_is_held_out():
    pairs = [drawn.held_pair(name, thing) for name in NAMES for thing in THINGS]
    assert 0.18 < np.mean(pairs) < 0.22 and not drawn.held_number("ten") and drawn.held_number("17")


@pytest.mark.parametrize(
    "text",
    [
        "", "One sentence of a word problem.", reading("Ann has 3 apples"), reading("Ann has 03 apples."), reading("Ann has 1000 apples."),
        reading("Ann has one apples."), reading("Ann has 3 apples.", who="Zebedee"), reading("Ann has 3 apples.", what="dragons"),
        reading("Ann has 3 dragons."), reading("Ann gives Ann 3 apples."), reading("Ann Ann has 3 apples."),
        reading("How many apples does Ann have now?"),
        problems.asked("Ann has 3 apples."), problems.asked("How many apples does Ann have now"), reading("Ann has ٣ apples."),
        reading("Ann has 3 apples.") + " ",
    ],
)  # fmt: skip
def test_any_other_text_is_refused(text):
    assert problems.encode(text) is None


PIECES = [[problems.OPERATION + at] for at in range(6)] * 4 + [[problems.EACH]] * 8
PIECES += [[problems.DIGIT + hundreds, problems.DIGIT + 13, problems.DIGIT + 27] for hundreds in range(5)] * 8
PIECES += [[token] for token in range(1, problems.VOCABULARY, 5)]


@given(st.lists(st.sampled_from(PIECES), max_size=5).map(lambda pieces: [token for piece in pieces for token in piece]))
def test_a_malformed_change_stays_malformed(tokens):
    digits = [token - problems.DIGIT for token in tokens[1:]]
    numbers = [digits[:3], digits[4:]] if len(tokens) == 8 else [digits]
    two = len(tokens) == 8 and tokens[4] == problems.EACH and tokens[0] - problems.OPERATION in (2, 3)
    one = len(tokens) == 4 and 1 <= tokens[0] - problems.OPERATION < len(problems.OPERATIONS)
    well = (two or one) and all([digit // 10 for digit in number] == [0, 1, 2] for number in numbers)
    try:
        answer = PROCEDURE.parse(problems.decode(tokens), STATE)
    except Flag:
        assert not well or tokens[0] - problems.OPERATION == 5  # a share may not come out
    else:
        assert well or tokens == [problems.OPERATION]
        assert problems.answer_of(answer) == tokens
