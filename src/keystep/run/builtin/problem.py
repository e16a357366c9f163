"""A word problem read sentence by sentence and worked out on the way, every step voted on.

The first step reads the question: whose things are asked for, and what they are. Each further sentence is read by a step that says whose
things it is about and what it does to their number. What that adds to or multiplies the things asked for is done column by column, in the
steps of `add` and `multiply`; taking away and dividing are exact Python, and no step. No step sees the whole problem, and nothing but the
steps' answers makes the result.

Read are the sentences of the templates in `keystep.lm.embedded.problems`, with their people, things and numbers: no others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Any

from keystep.errors import BadInput
from keystep.lm.embedded.problems import Reading, fitting, render
from keystep.run.builtin.arithmetic import Add, Multiply
from keystep.run.builtin.items import Item, exclusive
from keystep.run.builtin.problem_texts import applied, change_for, drawn
from keystep.run.flags import Flag

MOST = 1000  # sentences
MOST_OPERATIONS = 100  # of a random problem

_NUMBER = r"(?:[+-]\s*\d{1,12}\s*[x×]\s*\d{1,12}|[=+*/-]\s*\d{1,12}|\?)"
_WORDS = r"((?!x\b)[^\W\d]{1,30}(?: [^\W\d]{1,30}){0,3})"
_LINE = re.compile(rf"{_WORDS}\s*:\s*({_NUMBER})\s*{_WORDS}", re.ASCII)
_COLUMNS: dict[str, type[Add] | type[Multiply]] = {"add": Add, "multiply": Multiply}


def read(text: str) -> list[Reading]:
    """What an answer says of a sentence; `Flag` where it is malformed, or says something of the same things twice."""
    lines = [line.strip() for line in text.strip().splitlines()]
    found = [] if lines and lines[0].lower() == "none" else [_LINE.fullmatch(line) for line in lines]
    reading = [[line[1], line[3], line[2][0], *map(int, re.findall(r"\d+", line[2]))] for line in found if line]
    if len(lines) != max(1, len(reading)) or len(reading) < len(found):
        raise Flag("not a line for everybody, or none")
    if len({(who, what) for who, what, *_ in reading}) < len(reading):
        raise Flag("the same things twice")
    return reading


@dataclass
class Problem(Item):
    """Settings: the `question`, a whole problem, and perhaps its `answer`; else a random one (`instance`) with so many `operations`.

    State: {"who", "what", "at": the sentence, "value": null until it is told} and, while columns are worked on, "columns" with the
    procedure's name, numbers and state, and what is "then" done with their result; at the end {"answer"}. Answers: a list of [who, what,
    operation, numbers …] for everybody whose things a sentence is about, or [digit, carry].
    """

    operations: int | None = None
    instance: int | None = None
    name = "problem"
    sampling = MappingProxyType({"max_tokens": 32, "temperature": 0.5})

    def __post_init__(self) -> None:
        exclusive(self.question, {"operations": self.operations, "instance": self.instance})
        operations = 3 if self.operations is None else self.operations
        if not 0 <= operations <= MOST_OPERATIONS:
            raise BadInput(f"is from 0 to {MOST_OPERATIONS}", field="operations", value=operations)
        text = self.question
        if text is None:
            text = drawn(Random(f"problem {self.instance or 0}"), operations)
        *self.sentences, self.asked = re.findall(r"[^.?]*[.?]|[^.?]+$", " ".join(text.split())) or [""]
        self.sentences = [sentence.strip() for sentence in self.sentences]
        self.asked = self.asked.strip()
        if not 1 <= len(self.sentences) <= MOST:
            raise BadInput(f"has from 1 to {MOST} sentences and then a question", field="question", value=text[:200])
        self._readings = [_reading(sentence) for sentence in self.sentences]
        who, what, *asks = [*_reading(self.asked), ["", "", ""]][0]
        if asks != ["?"] or ["?"] in [reading[0][2:] for reading in self._readings if reading]:
            raise BadInput("has one question, at its end", field="question", value=self.asked)
        self.about = who, what  # whose things are asked for, and what they are
        self._result = self._worked_out()
        if self.answer is not None and not re.fullmatch(r"\d{1,40}", self.answer.strip(), re.ASCII):
            raise BadInput("is a whole number", field="answer", value=self.answer[:40])
        self.expected = None if self.answer is None else int(self.answer)

    def _worked_out(self) -> int:
        value = None
        for sentence, reading in zip(self.sentences, self._readings, strict=True):
            change = change_for(reading, *self.about)
            if (after := applied(value, change)) is None and change != ["none"]:
                why = "nobody has said how many there are" if value is None else f"it does not come out, there are {value}"
                raise BadInput(why, field="question", value=sentence)
            value = after
        if value is None:
            who, what = self.about
            raise BadInput(f"it does not say how many {what} {who} has", field="question", value=self.asked)
        return value

    def start(self) -> Any:
        return {"at": 0}

    def prompt(self, state: Any) -> str:
        if "columns" in state:
            return self._columns(state).prompt(state["columns"]["state"])
        return render(self.sentences[state["at"]] if "who" in state else self.asked)

    def parse(self, text: str, state: Any) -> Any:
        """Form, and that what is read comes out with what there is: nothing is taken away that is not there, and shares are equal."""
        if "columns" in state:
            return self._columns(state).parse(text, state["columns"]["state"])
        reading = read(text)
        if "who" not in state and [line[2:] for line in reading] != [["?"]]:
            raise Flag("not who is asked about, and for what")
        if "who" in state and ["?"] in [line[2:] for line in reading]:
            raise Flag("nothing is asked here")
        change = change_for(reading, state["who"], state["what"]) if "who" in state else ["none"]
        if change != ["none"] and applied(state["value"], change) is None:
            raise Flag("it does not come out")
        return reading

    def update(self, state: Any, answer: Any) -> Any:
        if "columns" in state:
            work, columns = self._columns(state), dict(state["columns"])
            after = work.update(columns["state"], answer)
            if not work.done(after):
                return {**state, "columns": {**columns, "state": after}}
            (result,) = after.values()
            return self._then(state, state["then"], result)
        if "who" not in state:
            return {"who": answer[0][0], "what": answer[0][1], "at": 0, "value": None}
        operation, *numbers = change_for(answer, state["who"], state["what"])
        if len(numbers) == 2:
            return _begun(state, "multiply", numbers, operation)
        if operation == "*":
            return _begun(state, "multiply", [state["value"], *numbers], "=")
        return self._then(state, operation, *numbers)

    def _then(self, state: Any, operation: str, *numbers: int) -> Any:
        """What is done with one number."""
        if operation == "+":
            return _begun(state, "add", [state["value"], *numbers], "=")
        value = applied(state["value"], [operation, *numbers])
        at = state["at"] + 1
        if value is None and state["value"] is not None:  # a product came out too great
            return {"answer": None}
        if at == len(self.sentences):
            return {"answer": value}
        return {"who": state["who"], "what": state["what"], "at": at, "value": value}

    def _columns(self, state: Any) -> Add | Multiply:
        doing = state["columns"]
        return _COLUMNS[doing["name"]](*doing["numbers"])

    def done(self, state: Any) -> bool:
        return "answer" in state

    def outcome(self) -> int:
        return self._result

    def answer_to(self, state: Any) -> Any:
        if "columns" in state:
            return self._columns(state).answer_to(state["columns"]["state"])
        return self._readings[state["at"]] if "who" in state else [[*self.about, "?"]]

    def identity(self) -> Any:
        return {"builtin": "problem", "sentences": [*self.sentences, self.asked], **self._told(), "prompt": self.prompt(self.start())}


def _begun(state: Any, name: str, numbers: list[int], then: str) -> Any:
    work = _COLUMNS[name](*numbers)
    return {**state, "columns": {"name": name, "numbers": numbers, "state": work.start()}, "then": then}


def _reading(sentence: str) -> list[Reading]:
    """What a sentence says, by its template."""
    found = fitting(sentence)
    if found is None:
        mend = "use the sentences, people, things and numbers of keystep.lm.embedded.problems"
        raise BadInput("is of no template", field="question", value=sentence, mend=mend)
    template, said = found
    return template.reading(said)
