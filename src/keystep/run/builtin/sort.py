"""Sorting a list by merging, one comparison a step: at most n log2 n steps, each of which puts two numbers into order.

Every number begins as a run of its own. The two runs at the front are merged and go to the back, until there is one. A step is told the
first numbers of the two runs and answers both in order; the smaller one, as answered, goes to the merged run.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from keystep.errors import BadInput
from keystep.lm.embedded.pairs import LIMIT, render
from keystep.run.builtin.items import Item, exclusive
from keystep.run.flags import Flag

MOST = 10_000  # numbers

_SMALLER = re.compile(r"^\s*smaller\s*=\s*(first|second)\s*$", re.IGNORECASE | re.MULTILINE)
_SORTED = re.compile(r"^\s*sorted\s*=\s*\[\s*([+-]?\d{1,20})\s*,\s*([+-]?\d{1,20})\s*\]\s*$", re.IGNORECASE | re.MULTILINE | re.ASCII)


@dataclass
class Sort(Item):
    """Settings: the `values`, or a `question` that holds them as a list and perhaps its `answer`; else `size` random ones (`instance`).

    State: {"runs": lists, "merged": what the first two of them have given}, at the end {"sorted"}; answer: [smaller, larger].
    """

    values: list[int] | None = None
    size: int = 100
    instance: int = 0
    name = "sort"
    sampling = MappingProxyType({"max_tokens": 48, "temperature": 0.5})

    def __post_init__(self) -> None:
        exclusive(self.question, {"values": self.values})
        if not 1 <= self.size <= MOST:
            raise BadInput(f"is from 1 to {MOST}", field="size", value=self.size)
        if self.values is not None:
            self.numbers = list(self.values)
        elif self.question is not None:
            self.numbers = _listed(self.question, "question")
        else:
            draw = random.Random(self.instance)
            self.numbers = [draw.randint(-LIMIT, LIMIT) for _ in range(self.size)]
        if not 1 <= len(self.numbers) <= MOST:
            field = "values" if self.question is None else "question"
            raise BadInput(f"has from 1 to {MOST} numbers", field=field, value=len(self.numbers))
        self.expected = None if self.answer is None else _listed(self.answer, "answer")

    def start(self) -> Any:
        return _turned([[number] for number in self.numbers], [])

    def prompt(self, state: Any) -> str:
        return render(*_fronts(state))

    def parse(self, text: str, state: Any) -> Any:
        """Two numbers, and of form only: that they are those asked about, in the order that was said. Which it is, the votes decide."""
        said, found = _SMALLER.findall(text), _SORTED.findall(text)
        if len(said) != 1 or len(found) != 1:
            raise Flag("not one sorted pair")
        first, second = _fronts(state)
        answer = [int(number) for number in found[0]]
        if answer != ([first, second] if said[0].lower() == "first" else [second, first]):
            raise Flag("not the two numbers in the order said")
        return answer

    def update(self, state: Any, answer: Any) -> Any:
        (first, second, *rest), merged = state["runs"], [*state["merged"], answer[0]]
        return _turned([first[1:], second, *rest] if answer[0] == first[0] else [first, second[1:], *rest], merged)

    def done(self, state: Any) -> bool:
        return "sorted" in state

    def outcome(self) -> list[int]:
        return sorted(self.numbers)

    def answer_to(self, state: Any) -> list[int]:
        return sorted(_fronts(state))

    def identity(self) -> Any:
        return {"builtin": "sort", "values": self.numbers, **self._told(), "prompt": render(2, 1)}


def _fronts(state: Any) -> tuple[int, int]:
    return state["runs"][0][0], state["runs"][1][0]


def _turned(runs: list[list[int]], merged: list[int]) -> dict[str, Any]:
    """The state; where a run is used up, the other goes behind what was merged, and that to the back."""
    if len(runs) > 1 and not (runs[0] and runs[1]):
        runs, merged = [*runs[2:], [*merged, *runs[0], *runs[1]]], []
    return {"sorted": runs[0]} if len(runs) == 1 else {"runs": runs, "merged": merged}


def _listed(text: str, field: str) -> list[int]:
    """The whole numbers of the one list in a text."""
    found = re.findall(r"\[[^\[\]]*\]", text)
    try:
        numbers = json.loads(found[0]) if len(found) == 1 else None
    except ValueError:
        numbers = None
    if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
        raise BadInput("does not hold one list of whole numbers", field=field, value=text[:200], mend="write it as [3, 1, 2]")
    return numbers
