"""Edits of a short list, one after another: swap, insert, delete, rotate, extract, reverse, count.

An edit is written as its name and whole numbers, `insert 17 2`; places are counted from 0. A list never gets empty.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from keystep.errors import BadInput

NUMBERS = {"swap": 2, "insert": 2, "delete": 1, "rotate": 1, "extract": 2, "reverse": 0, "count": 1}  # that an edit has
SHAPES = "swap PLACE PLACE, insert NUMBER PLACE, delete PLACE, rotate AMOUNT, extract PLACE PLACE, reverse, count NUMBER"


@dataclass(frozen=True)
class Edit:
    """`numbers` are two places (swap, extract), number and place (insert), a place (delete), an amount (rotate), a number (count)."""

    name: str
    numbers: tuple[int, ...] = ()

    def __str__(self) -> str:
        return " ".join([self.name, *map(str, self.numbers)])

    def left(self, size: int) -> int:
        """How many items a list of so many has afterwards."""
        if self.name == "extract":
            return self.numbers[1] - self.numbers[0] + 1
        return size + {"insert": 1, "delete": -1}.get(self.name, 0)

    def fits(self, size: int) -> bool:
        """Whether a list of so many items can be edited so; rotating by as many as it has, or more, is none."""
        if self.name == "insert":
            return 0 <= self.numbers[1] <= size
        if self.name in ("reverse", "count"):
            return True
        places = (*self.numbers, 0)[:2]
        ordered = self.name != "extract" or places[0] <= places[1]
        return all(0 <= place < size for place in places) and ordered and (self.name != "delete" or size > 1)

    def done(self, items: Sequence[int]) -> list[int] | int:
        """The edited list; of `count` the number of times."""
        found = sources(self, items)
        return len(found) if self.name == "count" else [self.numbers[0] if place is None else items[place] for place in found]


def sources(edit: Edit, items: Sequence[int]) -> list[int | None]:
    """The places at which the items of the edited list stood, None for the one that is inserted; of `count`, those of what is counted."""
    first, second = (*edit.numbers, 0, 0)[:2]
    places: list[int | None] = list(range(len(items)))
    if edit.name == "swap":
        places[first], places[second] = places[second], places[first]
    elif edit.name == "insert":
        places.insert(second, None)
    elif edit.name == "delete":
        del places[first]
    elif edit.name == "rotate":
        places = places[first:] + places[:first]
    elif edit.name == "extract":
        places = places[first : second + 1]
    elif edit.name == "reverse":
        places.reverse()
    else:
        places = [place for place, item in enumerate(items) if item == first]
    return places


def read(text: str) -> Edit:
    """An edit as it is written.

    Raises:
        BadInput: it is none.
    """
    name, *numbers = text.split() or [""]
    known = name in NUMBERS and len(numbers) == NUMBERS[name] and all(re.fullmatch(r"-?\d{1,20}", each, re.ASCII) for each in numbers)
    if not known:
        raise BadInput("is no edit of a list", field="operations", value=text, mend=f"there are: {SHAPES}")
    return Edit(name, tuple(map(int, numbers)))


def draw(draw: random.Random, size: int, steps: int, most: int, largest: int) -> tuple[list[int], list[Edit]]:
    """A list of `size` numbers from 0 to `largest` and `steps` edits that leave it with 2 to `most`: where few are left it grows."""
    items = [draw.randint(0, largest) for _ in range(size)]
    edits, now = list[Edit](), items
    while len(edits) < steps:
        name = "insert" if len(now) < most and draw.random() < 0.25 else draw.choice(list(NUMBERS))
        numbers = tuple(draw.randrange(len(now)) for _ in range(NUMBERS[name]))
        if name == "insert":
            numbers = draw.randint(0, largest), draw.randint(0, len(now))
        elif name == "extract":
            numbers = tuple(sorted(numbers))
        elif name == "count":
            numbers = (draw.choice([*now, draw.randint(0, largest)]),)
        edit = Edit(name, numbers)
        if not 2 <= edit.left(len(now)) <= most:
            continue
        edits.append(edit)
        edited = edit.done(now)
        now = edited if isinstance(edited, list) else now
    return items, edits
