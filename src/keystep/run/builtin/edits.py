"""Edits of a short list, one a step: swap, insert, delete, rotate, extract, reverse; and counts of what stands in it on the way.

A step is told the list as the step before left it and one edit, and answers with the whole new list, or with the count.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from keystep.errors import BadInput
from keystep.lm.embedded.lists import LARGEST, MOST, render
from keystep.run.builtin.items import first_wrong
from keystep.run.flags import Flag
from keystep.run.procedure import Procedure
from keystep.worlds import edits

MOST_STEPS = 10_000
SIZE = 6  # of the random list that edits begin with

_LIST = re.compile(r"^\s*list\s*=\s*\[([^\[\]]*)\]", re.IGNORECASE | re.MULTILINE)
_COUNT = re.compile(r"^\s*count\s*=\s*(\d{1,6})\s*$", re.IGNORECASE | re.MULTILINE | re.ASCII)
_ITEM = re.compile(r"\s*(new|\d{1,6})\s*:\s*(-?\d{1,20})\s*", re.IGNORECASE | re.ASCII)


@dataclass
class Edits(Procedure):
    """Settings: the list `values` and the `operations`, texts as `insert 17 2`; else `steps` random ones on a random list (`instance`).

    State: {"step", "list", "counts": those so far}, at the end without the step; answer: the list, or of `count` the number.
    """

    values: list[int] | None = None
    operations: list[str] | None = None
    steps: int = 500
    instance: int = 0
    name = "edits"
    sampling = MappingProxyType({"max_tokens": 64, "temperature": 0.5})

    def __post_init__(self) -> None:
        if (self.values is None) != (self.operations is None):
            raise BadInput("are given together, or neither", field="values and operations", mend="give both, or `steps` and `instance`")
        if not 1 <= self.steps <= MOST_STEPS:
            raise BadInput(f"is from 1 to {MOST_STEPS}", field="steps", value=self.steps)
        if self.values is None or self.operations is None:
            self.numbers, self.edits = edits.draw(random.Random(self.instance), SIZE, self.steps, MOST, LARGEST)
            return
        self.numbers, self.edits = list(self.values), list(map(edits.read, self.operations))
        for field, given in (("values", self.numbers), ("operations", self.edits)):
            if not 1 <= len(given) <= MOST_STEPS:
                raise BadInput(f"are from 1 to {MOST_STEPS}", field=field, value=len(given))
        size = len(self.numbers)
        for number, edit in enumerate(self.edits):
            if not edit.fits(size):
                mend = f"it is number {number}, counted from 0, and the list then has {size} numbers, at places 0 to {size - 1}"
                raise BadInput("does not fit the list", field="operations", value=str(edit), mend=mend)
            size = edit.left(size)

    def start(self) -> Any:
        return {"step": 0, "list": self.numbers, "counts": []}

    def prompt(self, state: Any) -> str:
        edit = self.edits[state["step"]]
        return render(edit.name, state["list"], edit.numbers)

    def parse(self, text: str, state: Any) -> Any:
        """A list or a count, and of form only: that every number is the one which stood at the place told, that the list is as long as
        the edit leaves it, that there are as many as were counted. Which they are, the votes decide."""
        edit, items = self.edits[state["step"]], state["list"]
        found = _LIST.findall(text)
        if len(found) != 1:
            raise Flag("not one list")
        told = [_ITEM.fullmatch(part) for part in found[0].split(",")] if found[0].strip() else []
        numbers = [_stood(each, edit, items) for each in told]
        if edit.name == "count":
            counts = _COUNT.findall(text)
            if len(counts) != 1 or int(counts[0]) != len(numbers):
                raise Flag("not one count of the numbers")
            return len(numbers)
        if len(numbers) != edit.left(len(items)):
            raise Flag("not as many numbers as the edit leaves")
        return numbers

    def update(self, state: Any, answer: Any) -> Any:
        counted = isinstance(answer, int)
        after = {"list": state["list"] if counted else answer, "counts": [*state["counts"], answer] if counted else state["counts"]}
        step = state["step"] + 1
        return {"step": step, **after} if step < self.total() else after

    def done(self, state: Any) -> bool:
        return "step" not in state

    def total(self) -> int:
        return len(self.edits)

    def check(self, answers: Iterable[Any]) -> int | None:
        return first_wrong(answers, self.truth())

    def truth(self) -> Iterable[tuple[Any, Any]]:
        state = self.start()
        for edit in self.edits:
            answer = edit.done(state["list"])
            yield state, answer
            state = self.update(state, answer)

    def identity(self) -> Any:
        return {"builtin": "edits", "values": self.numbers, "operations": list(map(str, self.edits)), "prompt": self.prompt(self.start())}


def _stood(told: re.Match[str] | None, edit: edits.Edit, items: list[int]) -> int:
    """The number of `place: number`."""
    if told is None:
        raise Flag("not a list of places and numbers")
    number = int(told[2])
    if told[1].lower() == "new":
        stands = edit.name == "insert" and number == edit.numbers[0]
    else:
        stands = int(told[1]) < len(items) and number == items[int(told[1])]
    if not stands:
        raise Flag("not the number that stood there")
    return number
