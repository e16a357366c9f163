"""Taking a letter of every word of a text and joining them: the task of Decomposed Prompting (arXiv 2210.02406), one small step at a time.

Three kinds of step follow one another for every word: the next word is split off the text, the letter is picked out of it, and merged with
what is joined so far. A step sees at most `WINDOW` characters of the text, and of what is joined the last `WORD`, so the thousandth word
is as easy as the first. What a step answers goes into the state as it is: the rest of a text is the rest that was answered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from keystep.errors import BadInput
from keystep.lm.embedded import strings
from keystep.lm.embedded.strings import GLUES, WINDOW, WORD
from keystep.run.builtin.items import Item, exclusive
from keystep.run.flags import Flag

MOST = 10_000  # words
GLUE_NAMES = {name.removeprefix("a "): name for name in GLUES}

_ANSWER, _REST = (re.compile(rf'^\s*{word}\s*=\s*"(.*)"\s*$', re.IGNORECASE | re.MULTILINE) for word in ("answer", "rest"))
_QUESTION = re.compile(
    r'Take the (?:(?P<last>last) letters|letters at position (?P<position>\d{1,4})) of the words in "(?P<text>[^"]*)" and concatenate them'
    rf"(?: using (?:a |an )?(?P<glue>{'|'.join(GLUE_NAMES)}))?\."
)


@dataclass
class Letters(Item):
    """Settings: a `text`, the `position` of the letter in every word (counted from 1; 0 is the last one) and the `glue` between letters
    (nothing, space, comma or semi-colon); or a `question` that says all three, and perhaps its `answer`.

    State: {"rest": of the text, "joined"} and, after a word is split off, "word" or its "letter"; at the end {"letters"}. Answers:
    [word, rest], a letter, what is joined of it and the characters that were shown before it.
    """

    text: str | None = None
    position: int | None = None
    glue: str | None = None
    name = "letters"
    sampling = MappingProxyType({"max_tokens": 64, "temperature": 0.5})

    def __post_init__(self) -> None:
        exclusive(self.question, {"text": self.text, "position": self.position, "glue": self.glue})
        if self.question is None:
            shown = "The quick brown fox jumps over the lazy dog" if self.text is None else self.text
            self._position, glue, field = self.position or 0, self.glue or "nothing", "text"
        else:
            found = _QUESTION.search(self.question)
            if found is None:
                mend = 'write it as: Take the last letters of the words in "…" and concatenate them using a space.'
                raise BadInput("is no question for letters of words", field="question", value=self.question[:200], mend=mend)
            self._position, glue = int(found["position"] or 0), found["glue"] or "nothing"
            shown, field = found["text"], "question"
        if glue not in GLUE_NAMES:
            raise BadInput("is none of them", field="glue", value=glue, mend=f"choose of {', '.join(GLUE_NAMES)}")
        self._glue, self.expected = GLUE_NAMES[glue], self.answer
        self.words = shown.split()
        if not 1 <= len(self.words) <= MOST:
            raise BadInput(f"has from 1 to {MOST} words", field=field, value=len(self.words))
        for word in self.words:
            if not (word.isascii() and word.isalpha() and len(word) <= WORD):
                raise BadInput(
                    f"has a word that is not 1 to {WORD} letters from a to z", field=field, value=word[:40], mend="leave marks out"
                )
            if not 0 <= self._position <= len(word):
                raise BadInput(f"there is no such letter in {word}", field="position", value=self._position, mend="0 is the last one")

    def start(self) -> Any:
        return {"rest": " ".join(self.words), "joined": ""}

    def prompt(self, state: Any) -> str:
        if "letter" in state:
            return strings.merge(state["joined"][-WORD:], state["letter"], self._glue)
        if "word" in state:
            return strings.pick(state["word"], self._position or None)
        return strings.split(state["rest"][:WINDOW])

    def parse(self, text: str, state: Any) -> Any:
        """Form only: one word and a rest, one character, or a text. Whether they are right, the votes decide."""
        found, rest = _ANSWER.findall(text), _REST.findall(text)
        splits = "letter" not in state and "word" not in state
        if len(found) != 1 or len(rest) != int(splits) or not found[0]:
            raise Flag("not one answer" + " and one rest" * splits)
        if splits and (" " in found[0] or len(found[0]) > WORD):
            raise Flag("not one word")
        if "word" in state and len(found[0]) != 1:
            raise Flag("not one letter")
        return [found[0], rest[0]] if splits else found[0]

    def update(self, state: Any, answer: Any) -> Any:
        rest, joined = state["rest"], state["joined"]
        if "letter" in state:
            return self._behind(rest, joined[:-WORD] + answer)
        if "word" in state:
            return {"rest": rest, "joined": joined, "letter": answer} if joined else self._behind(rest, answer)
        return {"rest": answer[1] + rest[WINDOW:], "joined": joined, "word": answer[0]}

    def _behind(self, rest: str, joined: str) -> Any:
        return {"rest": rest, "joined": joined} if rest else {"letters": joined}

    def done(self, state: Any) -> bool:
        return "letters" in state

    def total(self) -> int:
        return 3 * len(self.words) - 1

    def outcome(self) -> str:
        return GLUES[self._glue].join(word[self._position - 1] for word in self.words)

    def answer_to(self, state: Any) -> Any:
        if "letter" in state:
            return state["joined"][-WORD:] + GLUES[self._glue] + state["letter"]
        if "word" in state:
            return state["word"][self._position - 1]
        word, _, rest = state["rest"][:WINDOW].partition(" ")
        return [word, rest]

    def identity(self) -> Any:
        settings = {"words": self.words, "position": self._position, "glue": self._glue}
        return {"builtin": "letters", **settings, **self._told(), "prompt": self.prompt(self.start())}
