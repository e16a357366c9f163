"""The tokenizer of the embedded sort-pair step: two whole numbers of at most four digits are put into ascending order.

A number is written as a register holds it: the digits of its ten's complement, most significant first, so that the highest is its sign
(0, or 9 for a number below nought) and of two numbers the first column in which they differ says which is the smaller. A token is a
column: a digit of the first number and that of the second. An answer first says which of the two is the smaller; what follows are the
columns of the smaller and the larger, which are those of the prompt, turned round or not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

END, FIRST, SECOND, COLUMN = 0, 1, 2, 3  # COLUMN is the first of 100 tokens, ten times the first digit plus the second
VOCABULARY = COLUMN + 100
DIGITS = 5
LIMIT = 10 ** (DIGITS - 1) - 1

KNOWS = f"sorting two whole numbers from -{LIMIT} to {LIMIT}, in the words of the built-in procedure `sort`"

PROMPT = """\
Two whole numbers: {first} and {second}

Say which is the smaller (the first, where they are equal), and put them into ascending order.
Answer with exactly two lines, and nothing else:
smaller = [first or second]
sorted = [the smaller, the larger]
"""

_NUMBER = r"(0|-?[1-9]\d{0,3})"
_KNOWN = re.compile(re.sub(r"\\\{\w+\\\}", lambda _: _NUMBER, re.escape(PROMPT)), re.ASCII)


def render(first: int, second: int) -> str:
    """The prompt that has two numbers sorted."""
    return PROMPT.format(first=first, second=second)


def encode(text: str) -> tuple[list[int], int] | None:
    """Tokens of a known prompt and how many of them are a shared prefix (none here); None for any other text."""
    known = _KNOWN.fullmatch(text)
    if known is None:
        return None
    return [COLUMN + 10 * one + other for one, other in zip(*map(_digits, map(int, known.groups())), strict=True)], 0


def decode(tokens: Sequence[int]) -> str:
    """The text of an answer's tokens, whatever they are: a malformed answer stays visibly malformed."""
    which, rest = list(tokens[:1]), list(tokens[1:])
    said = {FIRST: "first", SECOND: "second"}.get(which[0], "?") if which else ""
    smaller, larger = ([(token - COLUMN) // part % 10 if token >= COLUMN else -1 for token in rest] for part in (10, 1))
    return f"smaller = {said}" + (f"\nsorted = [{_number(smaller)}, {_number(larger)}]" if rest else "")


def _digits(number: int) -> list[int]:
    return [number // 10**place % 10 for place in reversed(range(DIGITS))]


def _number(digits: list[int]) -> str:
    if len(digits) != DIGITS or min(digits) < 0 or digits[0] not in (0, 9):
        return "?" + "".join(str(digit) if digit >= 0 else "?" for digit in digits)
    number = sum(digit * 10**place for place, digit in enumerate(reversed(digits)))
    return str(number - 10**DIGITS if digits[0] else number)
