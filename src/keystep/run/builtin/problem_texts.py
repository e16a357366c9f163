"""Random word problems of the templates that the embedded reader knows (`keystep.lm.embedded.problems`).

A problem says how many things somebody has, changes that a few times, tells something that changes nothing in between, and asks how many
there are at the end. All that is in it comes out: nothing is taken that is not there, and shares are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from random import Random
from typing import Any

from keystep.lm.embedded.problems import LEAST, NAMES, NUMBER_WORDS, TEMPLATES, THINGS, Reading, Template

KINDS = {kind: [each for each in TEMPLATES if each.kind == kind] for kind in dict.fromkeys(each.kind for each in TEMPLATES)}
CHANGING = [kind for kind in KINDS if kind not in ("told", "no change", "question")]
VALUE = 9999  # the most things there ever are
IN_WORDS = 0.3  # share of small numbers that are written as words
ASIDES = (0, 1, 1, 2)  # sentences that change nothing


def drawn(draw: Random, operations: int) -> str:
    """The text of a problem with so many changes."""
    names, (what, other) = draw.sample(NAMES, 4), draw.sample(THINGS, 2)
    who = names[0]
    told, value = _changed(draw, ["told"], names, what, 0)
    texts = [told]
    for _ in range(operations):
        text, value = _changed(draw, CHANGING, names, what, value)
        texts.append(text)
    for _ in range(draw.choice(ASIDES)):
        kind = draw.choice(("no change", "told", "more", "fewer", "passed on"))
        about = draw.choice([(draw.sample(names, 3), other), (draw.sample(names[1:], 3), what)])
        texts.insert(draw.randint(0, len(texts)), filled(draw, draw.choice(KINDS[kind]), *about))
    return " ".join([*texts, filled(draw, draw.choice(KINDS["question"]), [who], what)])


def _changed(draw: Random, kinds: Sequence[str], names: list[str], what: str, value: int) -> tuple[str, int]:
    """A sentence of one of these kinds that changes how many things the first of the `names` has, and how many these are then."""
    who, *others = names
    while True:
        template = draw.choice(KINDS[draw.choice(kinds)])
        role = draw.choice(list(template.changes))
        said = said_in(draw, template, [who, draw.choice(others)] if role == "a" else [draw.choice(others), who], what)
        after = applied(value, change_for(template.reading(said), who, what))
        if after is not None and 1 <= after <= VALUE:
            return template.text.format(**said), after


def filled(draw: Random, template: Template, people: Sequence[str], what: str) -> str:
    """A sentence about the first, or the first two, of these people, with random numbers."""
    return template.text.format(**said_in(draw, template, people, what))


def said_in(draw: Random, template: Template, people: Sequence[str], what: str) -> dict[str, str]:
    """What stands in a sentence: these people and things, and random numbers, smaller ones where they multiply or divide."""
    small = template.kind in ("times", "shared")
    numbers = {"n": draw.randint(LEAST, 12 if small else 99), "m": draw.randint(LEAST, 12)}
    said = {"a": people[0], "t": what, **{part: written(draw, number) for part, number in numbers.items()}}
    return {**said, "b": people[1]} if "{b}" in template.text else said


def written(draw: Random, number: int) -> str:
    """A number in digits or, where it is small, now and then in words."""
    return NUMBER_WORDS[number - LEAST] if number - LEAST < len(NUMBER_WORDS) and draw.random() < IN_WORDS else str(number)


def change_for(reading: Sequence[Reading], who: str, what: str) -> list[Any]:
    """[operation, numbers …] for the things `what` of `who`, ["none"] where nothing is said of them."""
    return next((change for name, things, *change in reading if (name, things) == (who, what)), ["none"])


def applied(value: int | None, change: Sequence[Any]) -> int | None:
    """How many there are after a change; None where it does not come out, or changes what nobody has told yet."""
    operation, amount = str(change[0]), int(prod(change[1:]))
    if operation in ("none", "="):
        return amount if operation == "=" else value
    if value is None or (operation == "-" and amount > value) or (operation == "/" and (not amount or value % amount)):
        return None
    if operation == "/":
        return value // amount
    return {"+": value + amount, "-": value - amount, "*": value * amount}[operation]
