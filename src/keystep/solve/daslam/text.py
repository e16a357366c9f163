"""What is read out of texts: sub-questions, answers, the context of a question. The conventions are those of the released code."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

_MARK = re.compile(r"^(?:\(?\d{1,3}[.):]|[-*•])\s+")  # a list's "1. ", "(2) ", "- "
_SENTENCE = re.compile(r"[.!](?=\s|$)")


def sub_questions(text: str, fewest: int = 3) -> list[str]:
    """Every chunk of the text that ends in "?", in order; fewer than `fewest` count as none.

    White space is made single, a list's numbering taken off. The released code has fewest = 3.
    """
    chunks = [_MARK.sub("", " ".join(chunk.split())) for chunk in before_marks(text).split("?")[:-1]]
    found = [f"{chunk}?" for chunk in chunks if chunk]
    return found if len(found) >= fewest else []


def before_marks(text: str) -> str:
    """The text before the first "###", with which models of such prompts begin another block."""
    return text.partition("###")[0]


def answer_of(text: str) -> str:
    """The answer in a chain of thought: of the text before "###" the last [[…]] without its first 9 and last 2 characters ("[[Answer: " is
    written in full, the space may be missing), or the whole text where there is none."""
    said = before_marks(text)
    marked = last_marked(said)
    return said.strip() if marked is None else marked


def last_marked(text: str) -> str | None:
    """What stands in the last [[Answer: …]], or None. Any other [[…]] loses as many characters, as in the released code."""
    start = text.rfind("[[")
    end = text.find("]]", start)
    return None if start < 0 or end < 0 else text[start + 9 : end].strip()


def context_of(question: str) -> str:
    """The problem without its last question: up to its last "?", then up to the end of the last sentence before that, without the full
    stop. A point inside a number ends no sentence. Where there is no sentence before the question there is no context."""
    before, mark, _ = question.rpartition("?")
    if not mark:
        return question.strip().rstrip(".")
    ends = list(_SENTENCE.finditer(before))
    return before[: ends[-1].start()].strip() if ends else ""


def with_options(question: str, options: list[str] | None) -> str:
    """The question with its options, one a line."""
    return question if not options else "\n".join([question, "Options:", *options])


def same_answer(answer: str, expected: str) -> bool:
    """Whether two answers are the same: as words, as numbers (without $, %, and commas of thousands), or as the letter of an option."""
    one, other = _plain(answer), _plain(expected)
    if one == other:
        return True
    if len(other) == 1 and other.isalpha():
        return re.fullmatch(rf"\(?{re.escape(other)}[).:]?(?:\s.*)?", one, re.DOTALL) is not None and (len(one) < 2 or not one[1].isspace())
    left, right = _number(one), _number(other)
    return left is not None and left == right


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".")


def _number(text: str) -> Decimal | None:
    try:
        found = Decimal(text.replace(",", "").replace("$", "").replace("%", "").strip())
    except InvalidOperation:
        return None
    return found if found.is_finite() else None
