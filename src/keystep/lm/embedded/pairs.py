"""The tokenizer of the embedded sort-pair step: two whole numbers of at most four digits are put into ascending order.

A number is three tokens: its sign, and its digits in two tokens of two digits each. Nought has no sign of its own: it is written as +.
An answer first says which of the two is the smaller; what follows is then only copied.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

END, PLUS, MINUS, FIRST, SECOND, TWO = 0, 1, 2, 3, 4, 5  # TWO is the first of 100 tokens of two digits each
VOCABULARY = TWO + 100
LIMIT = 9999

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
    return None if known is None else ([token for number in known.groups() for token in _tokens(int(number))], 0)


def decode(tokens: Sequence[int]) -> str:
    """The text of an answer's tokens, whatever they are: a malformed answer stays visibly malformed."""
    which, rest = list(tokens[:1]), list(tokens[1:])
    numbers = [_number(rest[start : start + 3]) for start in range(0, len(rest), 3)]
    said = {FIRST: "first", SECOND: "second"}.get(which[0], "?") if which else ""
    return f"smaller = {said}" + (f"\nsorted = [{', '.join(numbers)}]" if numbers else "")


def _tokens(number: int) -> list[int]:
    size = abs(number)
    return [MINUS if number < 0 else PLUS, TWO + size // 100, TWO + size % 100]


def _number(tokens: list[int]) -> str:
    if len(tokens) == 3 and tokens[0] in (PLUS, MINUS) and min(tokens[1:]) >= TWO:
        size = 100 * (tokens[1] - TWO) + tokens[2] - TWO
        return f"{'-' if tokens[0] == MINUS else ''}{size}"  # -0 is not put right
    return "?" + " ".join({PLUS: "+", MINUS: "-"}.get(token, str(token - TWO) if token >= TWO else "?") for token in tokens)
