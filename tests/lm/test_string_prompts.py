"""The tokenizer of `strings`: its prompts there and back, what it refuses, and that no answer is put right."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep.lm.embedded import strings
from keystep.lm.embedded.strings import CHARACTER, CHARACTERS, END, GLUE, GLUES, LAST, PAD, PLACE, WINDOW
from keystep.run import Flag
from keystep.run.builtin.letters import Letters

sys.path.insert(0, str(Path(__file__).parents[2] / "training"))

import strings as drawn

STATES = {  # of `letters`, in which a step of each kind is due
    strings.SPLIT: {"rest": "x", "joined": "x"},
    LAST: {"rest": "", "joined": "", "word": "x"},
    strings.MERGE: {"rest": "", "joined": "x", "letter": "x"},
}


def text_of(tokens):
    return "".join(CHARACTERS[token - CHARACTER] for token in tokens)


@pytest.mark.parametrize("kind", range(len(drawn.KINDS)))
def test_every_example_is_asked_and_answered_as_training_says(kind):
    for row in drawn.draw(np.random.default_rng(kind), 300, kind).tolist():
        field, task, answer = row[:WINDOW], row[WINDOW], row[drawn.PROMPT :]
        field, answer = field[: field.index(PAD) if PAD in field else None], answer[: answer.index(END)]
        if kind < 2:
            shown = text_of(field)
            prompt, right = strings.split(shown), [*shown.partition(" ")[::2]]
        elif kind < 4:
            word = text_of(field)
            prompt = strings.pick(word, None if kind == 3 else task - PLACE + 1)
            right = word[-1 if kind == 3 else task - PLACE]
        else:
            at = next(place for place, token in enumerate(field) if token < CHARACTER)
            glue, (first, second) = list(GLUES)[field[at] - GLUE], (text_of(field[:at]), text_of(field[at + 1 :]))
            prompt, right = strings.merge(first, second, glue), first + GLUES[glue] + second
        assert strings.encode(prompt) == (row[: drawn.PROMPT], 0)
        state = STATES[LAST if kind in (2, 3) else task]
        assert Letters("x").parse(strings.decode(answer), state) == right
        assert drawn.answer(right) == row[drawn.PROMPT :] and len(row) == drawn.LENGTH <= 64


@pytest.mark.parametrize(
    "text",
    [
        "", "The next word of a text.", strings.split("abc") + " ", strings.split(""), strings.split("a  b"), strings.split(" a"),
        strings.split("a" * 13), strings.split("a b" * 9), strings.split("ä"), strings.split("a1"), strings.pick("abc", 4),
        strings.pick("", 1),
        strings.pick("abc", 0), strings.pick("a b", 1), strings.pick("a" * 13, 1), strings.merge("", "a", "nothing"),
        strings.merge("a", "b" * 13, "nothing"), strings.merge("a", "b", "a dash"), strings.merge("a-", "b", "nothing"),
        strings.pick("abc", 2).replace("2", "02"),
    ],
)  # fmt: skip
def test_any_other_text_is_refused(text):
    assert strings.encode(text) is None


@given(st.lists(st.integers(1, strings.VOCABULARY - 1), max_size=9), st.sampled_from(list(STATES)))
def test_a_malformed_answer_stays_malformed(tokens, task):
    written = "".join("|" if token == strings.BREAK else text_of([token]) if token >= CHARACTER else "?" for token in tokens)
    forms = {strings.SPLIT: r"[^ |]+\|[^|]*", LAST: r"[^|]", strings.MERGE: r"[^|]+"}
    try:
        answer = Letters("x").parse(strings.decode(tokens), STATES[task])
    except Flag:
        assert not re.fullmatch(forms[task], written)
    else:
        assert re.fullmatch(forms[task], written) and "".join(answer) == written.replace("|", "")
