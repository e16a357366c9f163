"""The ledger: look up a word, add its number to the running sum, thousands of times (the task of arXiv 2509.09677, one word a step,
with a fresh prompt per step that carries only the running sum)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from keystep.errors import BadInput
from keystep.lm.embedded.ledger import MAX_WORDS, MIN_WORDS, render
from keystep.run.flags import Flag
from keystep.run.procedure import Procedure
from keystep.worlds import ledger

_VALUE = re.compile(r"^\s*value\s*=\s*([+-]?\d+)\s*$", re.IGNORECASE | re.MULTILINE)
_SUM = re.compile(r"^\s*sum\s*=\s*([+-]?\d+)\s*$", re.IGNORECASE | re.MULTILINE)


def read(text: str) -> list[int]:
    """[value, sum] of an answer; `Flag` where it is malformed."""
    values, sums = _VALUE.findall(text), _SUM.findall(text)
    if len(values) != 1 or len(sums) != 1:
        raise Flag("not one value and one sum")
    try:
        return [int(values[0]), int(sums[0])]
    except ValueError:
        raise Flag("a number of thousands of digits") from None


@dataclass
class Ledger(Procedure):
    """Settings: `steps`, `words` in the dictionary, `instance` (which dictionary and words). State: [step, sum]; answer: [value, sum]."""

    steps: int = 2000
    words: int = 100
    instance: int = 0
    name = "ledger"
    sampling = MappingProxyType({"max_tokens": 64, "temperature": 0.5})

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1_000_000:
            raise BadInput("is from 1 to 1000000", field="steps", value=self.steps)
        if not MIN_WORDS <= self.words <= MAX_WORDS:
            raise BadInput(f"is from {MIN_WORDS} to {MAX_WORDS}", field="words", value=self.words)
        self._values = ledger.dictionary(self.words, self.instance)
        self._keys = ledger.keys(self._values, self.steps, self.instance)

    def start(self) -> Any:
        return [0, 0]

    def prompt(self, state: Any) -> str:
        step, total = state
        return render(self._values, total, self._keys[step])

    def parse(self, text: str, state: Any) -> Any:
        return read(text)

    def update(self, state: Any, answer: Any) -> Any:
        return [state[0] + 1, answer[1]]

    def done(self, state: Any) -> bool:
        return bool(state[0] >= self.steps)

    def total(self) -> int:
        return self.steps

    def check(self, answers: Iterable[Any]) -> int | None:
        total = 0
        number = -1
        for number, (value, answered) in enumerate(answers):
            added = self._values[self._keys[number]]
            total += added
            if (value, answered) != (added, total):
                return number
        return None if number + 1 == self.steps else number + 1

    def truth(self) -> Iterable[tuple[Any, Any]]:
        total = 0
        for step, word in enumerate(self._keys):
            value = self._values[word]
            yield [step, total], [value, total + value]
            total += value

    def identity(self) -> Any:
        settings = {"steps": self.steps, "words": self.words, "instance": self.instance}
        return {"builtin": "ledger", **settings, "prompt": self.prompt(self.start())}
