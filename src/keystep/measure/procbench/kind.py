"""What a task of ProcBench is: a rule, instances drawn from a seed or read from their question, and every state they go through."""

from __future__ import annotations

import random
import re
import string
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from keystep.errors import BadInput

Config = dict[str, Any]  # the parameters of one instance
LETTERS, ALNUM = string.ascii_lowercase, string.ascii_lowercase + string.digits


class Kind(ABC):
    """One of the tasks. `rule` is the procedure in our own words; the reference's wording differs.

    An instance is a `Config`. `question` writes it the way the published problems do, `read` is the inverse. `given` and `now` are the
    question taken apart for a worker that does one step a call: what stays, and what is to be done in step `number` (from 0).
    """

    number: ClassVar[int]
    name: ClassVar[str]
    rule: ClassVar[str]
    sentences: ClassVar[bool] = False  # whether instances are made from sentences of the user's

    @abstractmethod
    def draw(self, draw: random.Random, steps: int) -> Config:
        """An instance that may have `steps` steps; whoever calls draws again where it has not."""

    @abstractmethod
    def question(self, config: Config) -> str: ...

    @abstractmethod
    def read(self, question: str) -> Config:
        """The instance that a question is about; `ValueError` where it is none of this task."""

    @abstractmethod
    def init(self, config: Config) -> Any:
        """The state before the first step, as the published labels have it; it is never scored."""

    @abstractmethod
    def apply(self, config: Config, states: list[Any], number: int) -> Any:
        """The state after step `number`, from all states before it; None where the procedure is over."""

    def given(self, config: Config) -> str:
        return ""

    @abstractmethod
    def now(self, config: Config, number: int) -> str: ...

    def shown(self, config: Config, states: list[Any]) -> Any:
        """What of the states so far a worker needs for the next step."""
        return states[-1]

    def take(self, config: Config, states: list[Any], answer: Any, last: bool) -> Any:
        """The state that a worker's answer to one step makes."""
        return answer

    def states(self, config: Config) -> list[Any]:
        """All states, the initial one first."""
        states = [self.init(config)]
        while (state := self.apply(config, states, len(states) - 1)) is not None:
            states.append(state)
        return states


def text_of(draw: random.Random, length: int, letters: str = LETTERS) -> str:
    return "".join(draw.choices(letters, k=length))


def found(pattern: str, question: str) -> re.Match[str]:
    match = re.fullmatch(pattern, question.strip(), re.DOTALL)
    if match is None:
        raise ValueError("is no question of this task")
    return match


def listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")] if text.strip() else []


def pairs(text: str) -> list[tuple[int, ...]]:
    """Every (1, 2) or (1, 2, 3) in a text."""
    return [tuple(int(part) for part in group.split(",")) for group in re.findall(r"\(([-\d, ]+)\)", text)]


def sentences_of(path: str) -> list[str]:
    """The usable lines of a text file: letters, digits and ordinary punctuation only.

    Raises:
        BadInput: it cannot be read, or holds none.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except (OSError, ValueError) as error:
        problem = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise BadInput(problem, field="set sentences", value=path, mend="name a text file with a sentence a line") from None
    usable = sorted({line for line in lines if re.fullmatch(r"[A-Za-z0-9 .,!?'\"()-]+", line) and re.search(r"\w", line)})
    if not usable:
        mend = "write a sentence a line, of letters, digits and .,!?'\"()- alone"
        raise BadInput("holds no usable sentence", field="set sentences", value=path, mend=mend)
    return usable
