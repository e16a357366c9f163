"""The tokenizer of the embedded ledger step: look a word up in a dictionary and add its number to the running sum.

As in `hanoi`, only what changes costs tokens. A word is one of 100 word tokens, given out by the order of the words' hashes within the
prompt's dictionary; a dictionary value is one token. Sums are written as a register holds them: digits of the ten's complement, least
significant first. A carry then runs in writing order, and crossing zero is only one more long carry, not a case of its own.
The dictionary is a shared prefix: it is the same at every step of a run, so its keys and values are computed once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b

END, DIGIT, VALUE = 0, 1, 11  # DIGIT is the first of 10 tokens, VALUE of 199, WORD of 100
MAX_VALUE, MIN_WORDS, MAX_WORDS = 99, 2, 100
DIGITS = 6  # of which the highest is the sign: 0, or 9 for a number below zero
WORD = VALUE + 2 * MAX_VALUE + 1
VOCABULARY = WORD + MAX_WORDS
LIMIT = 10 ** (DIGITS - 1) - 1

KNOWS = (
    f"one step of a ledger ({MIN_WORDS} to {MAX_WORDS} words worth -{MAX_VALUE} to {MAX_VALUE}, sums up to {LIMIT}), "
    "in the words of the built-in procedure `ledger`"
)

PROMPT = """\
Each word stands for a whole number:
{dictionary}

Running sum: {sum}
Next word: {word}

Look the word's number up and add it to the running sum. Answer with exactly two lines, and nothing else:
value = [the word's number]
sum = [the new running sum]
"""

_KNOWN = re.compile(
    re.escape(PROMPT)
    .replace(r"\{dictionary\}", r"(?P<dictionary>[a-z]+ = -?\d{1,2}(?:\n[a-z]+ = -?\d{1,2})*)")
    .replace(r"\{sum\}", rf"(?P<sum>-?\d{{1,{DIGITS - 1}}})")
    .replace(r"\{word\}", r"(?P<word>[a-z]+)")
)


def render(dictionary: Mapping[str, int], total: int, word: str) -> str:
    """The prompt for one step: `word`'s value is to be added to `total`."""
    entries = "\n".join(f"{name} = {value}" for name, value in dictionary.items())
    return PROMPT.format(dictionary=entries, sum=total, word=word)


def encode(text: str) -> tuple[list[int], int] | None:
    """Tokens of a known prompt and how many of them are the shared dictionary; None for any other text."""
    known = _KNOWN.fullmatch(text)
    if not known:
        return None
    entries = [line.split(" = ") for line in known["dictionary"].split("\n")]
    words, values = [word for word, _ in entries], {word: int(value) for word, value in entries}
    if known["word"] not in values or len(values) != len(words) or not MIN_WORDS <= len(words) <= MAX_WORDS:
        return None
    order = sorted(words, key=lambda word: blake2b(word.encode(), digest_size=8).digest())
    token = {word: WORD + rank for rank, word in enumerate(order)}
    tokens = [part for word, value in entries for part in (token[word], VALUE + MAX_VALUE + int(value))]
    total = int(known["sum"])
    if abs(total + values[known["word"]]) > LIMIT:
        return None  # the answer has no tokens
    query = [*(DIGIT + total // 10**place % 10 for place in range(DIGITS)), token[known["word"]]]
    return [*tokens, *query], len(tokens)


def decode(tokens: Sequence[int]) -> str:
    """The text of an answer's tokens, whatever they are: a malformed answer stays visibly malformed."""
    value, total = list(tokens[:1]), list(tokens[1:])
    return f"value = {''.join(map(_word, value))}" + (f"\nsum = {_number(total)}" if total else "")


def _number(tokens: list[int]) -> str:
    digits = [token - DIGIT for token in tokens]
    if len(digits) != DIGITS or any(not 0 <= digit <= 9 for digit in digits) or digits[-1] not in (0, 9):
        return "?" + "".join(map(_word, reversed(tokens)))
    number = sum(digit * 10**place for place, digit in enumerate(digits))
    return str(number - 10**DIGITS if digits[-1] == 9 else number)


def _word(token: int) -> str:
    if VALUE <= token < WORD:
        return str(token - VALUE - MAX_VALUE)
    return str(token - DIGIT) if DIGIT <= token < VALUE else "?"
