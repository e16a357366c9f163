"""The tokenizer of the embedded list and string steps: one change to, or one question about, a short list or word.

A prompt is its operation, two arguments and the items, filled up to eight: numbers from 0 to 99 or letters, one token each. Places are
counted from 0. An answer is a list, a word or a single item, and its first token says which.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_lowercase

MAX_ITEMS = 8
END, NONE, LIST, WORD, PLACE, OPERATION = 0, 1, 2, 3, 4, 13  # PLACE is the first of 9 tokens (places and counts), OPERATION of 10
NUMBER, LETTER = 23, 123  # the first of 100 tokens and of 26
VOCABULARY = LETTER + 26

# operation: the kind of its items, what is to be done; {place} and {other} are places, {item} is a number
OPERATIONS = {
    "swap": ("numbers", "Swap the items at places {place} and {other}."),
    "insert": ("numbers", "Insert {item} at place {place}, before the item that stands there."),
    "delete": ("numbers", "Delete the item at place {place}."),
    "rotate": ("numbers", "Rotate the list to the left by {place}."),
    "extract": ("numbers", "Give the item at place {place}."),
    "reverse": ("numbers", "Reverse the list."),
    "count": ("numbers", "Count how often {item} stands in the list."),
    "letter": ("word", "Give the letter at place {place}."),
    "split": ("word", "Split the word into a list of its letters."),
    "merge": ("letters", "Merge the letters of the list into a word."),
}
NAMES = tuple(OPERATIONS)

KNOWS = (
    f"one step on a list of at most {MAX_ITEMS} numbers from 0 to 99 or on a word of at most {MAX_ITEMS} letters "
    f"({', '.join(NAMES)}), in the words of `keystep.lm.embedded.lists`"
)

PROMPT = """\
{shown}
Places are counted from 0. {task} Answer with exactly one line, and nothing else:
answer = [the result]
"""

_NUMBER, _LETTER = r"(?:0|[1-9]\d?)", "[a-z]"
_SHOWN = {
    "numbers": rf"List: \[(?P<items>{_NUMBER}(?:, {_NUMBER})*)\]",
    "letters": rf"List: \[(?P<items>{_LETTER}(?:, {_LETTER})*)\]",
    "word": rf"Word: (?P<items>{_LETTER}+)",
}


def _known(kind: str, task: str) -> re.Pattern[str]:
    text = re.escape(PROMPT).replace(r"\{shown\}", _SHOWN[kind]).replace(r"\{task\}", re.escape(task))
    for name, values in (("place", r"\d"), ("other", r"\d"), ("item", _NUMBER)):
        text = text.replace(rf"\{{{name}\}}", f"(?P<{name}>{values})")
    return re.compile(text, re.ASCII)


_KNOWN = {name: _known(kind, task) for name, (kind, task) in OPERATIONS.items()}


def render(operation: str, items: Sequence[int] | Sequence[str] | str, *, place: int = 0, other: int = 0, item: int = 0) -> str:
    """The prompt for one of OPERATIONS on a list of numbers, a list of letters or a word."""
    shown = f"Word: {items}" if isinstance(items, str) else f"List: [{', '.join(map(str, items))}]"
    return PROMPT.format(shown=shown, task=OPERATIONS[operation][1].format(place=place, other=other, item=item))


def encode(text: str) -> tuple[list[int], int] | None:
    """Tokens of a known prompt and how many of them are a shared prefix (none here); None for any other text."""
    for number, (name, known) in enumerate(_KNOWN.items()):
        found = known.fullmatch(text)
        if not found:
            continue
        parts = found.groupdict()
        items = list(parts["items"]) if OPERATIONS[name][0] == "word" else parts["items"].split(", ")
        places = [int(parts[key]) for key in ("place", "other") if key in parts]
        most = MAX_ITEMS - (name == "insert")
        if len(items) > most or any(place >= len(items) + (name == "insert") for place in places):
            return None
        arguments = [PLACE + place for place in places] + ([NUMBER + int(parts["item"])] if "item" in parts else [])
        tokens = [OPERATION + number, *arguments, *[NONE] * (2 - len(arguments)), *map(_token, items)]
        return [*tokens, *[NONE] * (MAX_ITEMS - len(items))], 0
    return None


def decode(tokens: Sequence[int]) -> str:
    """The text of an answer's tokens, whatever they are: a malformed answer stays visibly malformed."""
    first, rest = list(tokens[:1]), list(map(_word, tokens[1:]))
    if first == [LIST]:
        return f"answer = [{', '.join(rest)}]"
    if first == [WORD]:
        return f"answer = {''.join(rest)}"
    return f"answer = {' '.join([*map(_word, first), *rest])}"


def _token(item: str) -> int:
    return NUMBER + int(item) if item.isdigit() else LETTER + ascii_lowercase.index(item)


def _word(token: int) -> str:
    if token >= LETTER:
        return ascii_lowercase[token - LETTER]
    if token >= NUMBER:
        return str(token - NUMBER)
    return str(token - PLACE) if PLACE <= token < OPERATION else "?"
