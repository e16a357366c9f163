"""The tokenizer of the embedded list steps: one change to a list of at most eight numbers from 0 to 99, or one question about it.

A prompt is the operation, two places or an amount, how many numbers there are, the list, filled up to eight, and the number that the
operation is about. A number in the list is one token that says its place too. An answer names, for each of its numbers in turn, the place
where it stood, then the number: the place is what has to be worked out, the number is then only copied. Places are counted from 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MOST, LARGEST = 8, 99  # numbers in a list, and their value
OPERATIONS = {
    "swap": "Swap the numbers at places {place} and {other}.",
    "insert": "Insert {number} so that it stands at place {place}.",
    "delete": "Delete the number at place {place}.",
    "rotate": "Move the first {amount} of the numbers to the end of the list, in the order they are in.",
    "extract": "Keep only the numbers from place {place} to place {other}, both included.",
    "reverse": "Reverse the order of the numbers.",
    "count": "Count how often {number} stands in the list.",
}
NAMES = tuple(OPERATIONS)

# AMOUNT is the first of 9 tokens (how many), PLACE and OTHER of 8 each, NUMBER of 100, ITEM of 100 for each of 8 places, FROM of 9 (the
# place where it stood, or that it is new) for each of 8 places in the answer
END, NONE, OPERATION = 0, 1, 2
AMOUNT = OPERATION + len(NAMES)
PLACE = AMOUNT + MOST + 1
OTHER = PLACE + MOST
NUMBER = OTHER + MOST
ITEM = NUMBER + LARGEST + 1
FROM = ITEM + MOST * (LARGEST + 1)
VOCABULARY = FROM + MOST * (MOST + 1)

KNOWS = (
    f"one step on a list of at most {MOST} numbers from 0 to {LARGEST} ({', '.join(NAMES)}), in the words of the built-in procedure `edits`"
)

PROMPT = """\
List: [{items}]
Places are counted from 0. {task}
"""

_LIST = """\
Answer with exactly one line, and nothing else. Before each number of the new list write the place where it stood, or `new`:
list = [place: number, ...]
"""
_COUNT = """\
Answer with exactly two lines, and nothing else:
list = [place: number, ...] (where it stands)
count = [how many these are]
"""
_NUMBER = r"(?:0|[1-9]\d?)"
_ARGUMENTS = {"place": "[0-7]", "other": "[0-7]", "amount": "[0-7]", "number": _NUMBER}
_FIRST_OF = {"place": PLACE, "other": OTHER, "amount": AMOUNT}


def _prompt(name: str) -> str:
    return PROMPT.replace("{task}", OPERATIONS[name]) + (_COUNT if name == "count" else _LIST)


def _known(name: str) -> re.Pattern[str]:
    text = re.escape(_prompt(name)).replace(r"\{items\}", rf"(?P<items>{_NUMBER}(?:, {_NUMBER}){{0,{MOST - 1}}})")
    for argument, values in _ARGUMENTS.items():
        text = text.replace(rf"\{{{argument}\}}", f"(?P<{argument}>{values})")
    return re.compile(text, re.ASCII)


_KNOWN = {name: _known(name) for name in NAMES}


def render(name: str, items: Sequence[int], numbers: Sequence[int] = ()) -> str:
    """The prompt for one of OPERATIONS; `numbers` are its arguments in the order they are named in."""
    names = re.findall(r"\{(\w+)\}", OPERATIONS[name])
    return _prompt(name).format(items=", ".join(map(str, items)), **dict(zip(names, numbers, strict=True)))


def encode(text: str) -> tuple[list[int], int] | None:
    """Tokens of a known prompt and how many of them are a shared prefix (none here); None for any other text."""
    for number, (name, known) in enumerate(_KNOWN.items()):
        if found := known.fullmatch(text):
            items = [ITEM + place * (LARGEST + 1) + int(item) for place, item in enumerate(found["items"].split(", "))]
            given = {argument: int(value) for argument, value in found.groupdict().items() if argument != "items"}
            if not _possible(name, len(items), given):
                return None
            about = NUMBER + given.pop("number") if "number" in given else NONE
            arguments = [_FIRST_OF[argument] + value for argument, value in given.items()]
            head = [OPERATION + number, *arguments, *[NONE] * (2 - len(arguments)), AMOUNT + len(items)]
            return [*head, *items, *[NONE] * (MOST - len(items)), about], 0
    return None


def decode(tokens: Sequence[int]) -> str:
    """The text of an answer's tokens, whatever they are: a malformed answer stays visibly malformed."""
    counted = bool(tokens) and AMOUNT <= tokens[-1] < PLACE
    shown = list(tokens[:-1] if counted else tokens)
    items = [_item(shown[at : at + 2], at // 2) for at in range(0, len(shown), 2)]
    return f"list = [{', '.join(items)}]" + (f"\ncount = {tokens[-1] - AMOUNT}" if counted else "")


def _possible(name: str, size: int, given: dict[str, int]) -> bool:
    """Whether a list of so many numbers can be changed so."""
    if name == "insert":
        return size < MOST and given["place"] <= size
    places = [value for argument, value in given.items() if argument != "number"]
    return all(place < size for place in places) and (name != "extract" or places == sorted(places)) and (name, size) != ("delete", 1)


def _item(pair: list[int], at: int) -> str:
    """The item `at` of an answer: where it stood, and the number."""
    place = pair[0] - FROM - (MOST + 1) * at
    where = "new" if place == MOST else str(place) if 0 <= place < MOST else "?"
    return f"{where}: {pair[1] - NUMBER if len(pair) == 2 and NUMBER <= pair[1] < ITEM else '?'}"
