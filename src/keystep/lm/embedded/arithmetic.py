"""The tokenizer of the embedded column steps: one column of a long addition or of a long multiplication, with the carry.

Both kinds of step are as long: (kind, digit, digit, digit already in the column, carry), of which an addition has nothing in the column.
An answer is the column's digit and the carry to the next one. There are 10,000 steps of multiplication (of which those with a carry
above the second digit never come up) and 200 of addition, so every one of them can be measured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

END, ADD, MULTIPLY, DIGIT = 0, 1, 2, 3  # DIGIT is the first of 10 tokens
VOCABULARY = DIGIT + 10

KNOWS = "one column of a long addition or multiplication, in the words of the built-in procedures `add` and `multiply`"

_ANSWER = """\
Answer with exactly two lines, and nothing else:
digit = [the last digit of the result]
carry = [what is left of the result without its last digit, 0 if nothing is]
"""

ADDITION = (
    """\
Long addition, one column.
Digit of the first number: {first}
Digit of the second number: {second}
Carry: {carry}

Add the two digits and the carry. """
    + _ANSWER
)

MULTIPLICATION = (
    """\
Long multiplication, one column.
Digit of the first number: {first}
Digit of the second number: {second}
Digit already in this column: {below}
Carry: {carry}

Multiply the two digits, then add the digit that is already there and the carry. """
    + _ANSWER
)

_COLUMN = {ADD: ADDITION, MULTIPLY: MULTIPLICATION}
_KNOWN = {kind: re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d)", re.escape(text)), re.ASCII) for kind, text in _COLUMN.items()}


def render(first: int, second: int, carry: int, below: int | None = None) -> str:
    """The prompt of one column: of a multiplication where a digit is already in it (`below`), else of an addition."""
    text = ADDITION if below is None else MULTIPLICATION
    return text.format(first=first, second=second, carry=carry, below=below)


def encode(text: str) -> tuple[list[int], int] | None:
    """Tokens of a known prompt and how many of them are a shared prefix (none here); None for any other text."""
    for kind, known in _KNOWN.items():
        if found := known.fullmatch(text):
            parts = {"below": "0", **found.groupdict()}
            return [kind, *(DIGIT + int(parts[name]) for name in ("first", "second", "below", "carry"))], 0
    return None


def decode(tokens: Sequence[int]) -> str:
    """The text of an answer's tokens, whatever they are: a malformed answer stays visibly malformed."""
    digit, carry = list(tokens[:1]), list(tokens[1:])
    return f"digit = {''.join(map(_word, digit))}" + (f"\ncarry = {''.join(map(_word, carry))}" if carry else "")


def _word(token: int) -> str:
    return str(token - DIGIT) if token >= DIGIT else "?"
