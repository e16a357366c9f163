"""Answers of reasoning benchmarks: which kinds there are, how each is read from a model's text, and when two are the same.

The readers are those of the published code of Plan-and-Solve (arXiv 2305.04091) and Auto-CoT (arXiv 2210.03493), which differ only in
which of several candidates they take. Some of their rules have quirks; `published` keeps these to the letter, `mended` does what was meant:

| kind | published | mended |
| --- | --- | --- |
| number | in `10-4` the last number is -4; in `3/4` it is 4; in `.5` and `−5` 5, in `1 000` 0 | what is written |
| letter | the first capital A to E, also the A of "Answer" | a letter that stands alone; one in brackets before others, an article last |
| option | a word that is part of the text "A|B|C|D|E", so also `|` | one of the five letters |

An answer is text in one form (a whole number without a point), or None where nothing could be read.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal

from keystep.errors import BadInput

Rules = Literal["mended", "published"]

CLOSE = 1e-3  # numbers nearer than this are the same


@dataclass(frozen=True, slots=True)
class Kind:
    """What is published for a kind of answer, or for a data set.

    Attributes:
        reads: the reader; `trigger`: the id of the plan-and-solve trigger; `demonstrations` and `lines`: the number of clusters and the
            longest rationale of Auto-CoT; `wants`: which answer trigger goes with it.
    """

    reads: Literal["number", "decimal", "letter", "option", "yes-no", "letters", "text"]
    trigger: str = "305"
    demonstrations: int = 8
    lines: int = 5
    wants: str = "number"


KINDS: dict[str, Kind] = {
    "number": Kind("number"),
    "decimal": Kind("decimal"),
    "choice": Kind("letter", wants="choice", demonstrations=4),
    "yes-no": Kind("yes-no", "306", 6, wants="yes-no"),
    "letters": Kind("letters", "303", 4, 7, "text"),
    "text": Kind("text", wants="text"),
    "gsm8k": Kind("number", "305"),
    "svamp": Kind("number", "307"),
    "multiarith": Kind("number", "302"),
    "addsub": Kind("number", "301"),
    "singleeq": Kind("number", "301"),
    "aqua": Kind("letter", "305", 4, wants="choice"),
    "csqa": Kind("option", "302", 7, wants="choice"),
    "strategyqa": Kind("yes-no", "306", 6, wants="yes-no"),
    "coin-flip": Kind("yes-no", "304", wants="yes-no"),
    "last-letters": Kind("letters", "303", 4, 7, "text"),
}  # fmt: skip
_NUMBER = re.compile(r"-?\d+\.?\d*")
_PLACE = {"number": -1, "decimal": -1, "letter": 0, "option": -1, "yes-no": -1, "letters": 0, "text": 0}  # of Plan-and-Solve
_SIGNED = re.compile(r"(?<![\d)])-?(?:\d+(?:\.\d+)?|(?<![\w.)])\.\d+)(?:\s?/\s?\d+(?:\.\d+)?)?|\d+(?:\.\d+)?")
_BLANKS = re.compile(r"(?<![\w.])(\d{1,3}(?:[ \u00a0\u202f]\d{3})+)(?![\d/]| ?\d)")  # thousands set apart by blanks
_ALONE = re.compile(r"(?<![^\W_])[A-E](?![^\W_]|['’][a-z])")
_OPTION = re.compile(r"\(\s*([A-E])\s*\)|(?<![^\W_])([A-E])\)")
_ARTICLE = re.compile(r"A\s+[a-z]")


def kind(name: str) -> Kind:
    """The kind of this name.

    Raises:
        BadInput: there is none.
    """
    if name not in KINDS:
        raise BadInput("is no kind of answer", field="set kind", value=name, mend=f"there are: {', '.join(KINDS)}")
    return KINDS[name]


def candidates(of: Kind, text: str, rules: Rules = "mended") -> list[str]:
    """All that the text could mean as an answer of this kind, in the text's order; each is readable by `canonical`."""
    published = rules == "published"
    if of.reads in ("number", "decimal"):
        plain = text.replace(",", "")
        if published:
            return _NUMBER.findall(plain)
        return _SIGNED.findall(_BLANKS.sub(lambda match: re.sub(r"\D", "", match[0]), plain.replace("−", "-")))
    if of.reads == "letter":
        return re.findall("[A-E]", text) if published else _letters_alone(text)
    if of.reads == "option":
        words = re.sub(r"[():.,]", "", text).split()
        return [word for word in words if (word in "A|B|C|D|E" if published else word in tuple("ABCDE"))]
    if of.reads == "yes-no":
        words = re.sub(r"[\"'\n.:,]", " ", text.lower()).split()
        return [word for word in words if word in ("yes", "no")]
    whole = re.sub(r"[\"'.\s]", "", text) if of.reads == "letters" else " ".join(text.split()).removesuffix(".").strip()
    return [whole] if whole else []


def read(of: Kind, text: str, rules: Rules = "mended", place: int | None = None) -> str | None:
    """The answer in a text: the candidate at `place` (default: where Plan-and-Solve looks, which is the first letter and otherwise the
    last), in canonical form."""
    found = candidates(of, text, rules)
    return canonical(of, found[_PLACE[of.reads] if place is None else place]) if found else None


def canonical(of: Kind, text: str) -> str | None:
    """One form for one answer: 18.0 and 18. are 18, 3/4 is 0.75. A `decimal` keeps its digits, because they decide how it is compared."""
    if of.reads == "decimal" and "/" not in text:
        return text.strip().removesuffix(".")
    return written(value(text)) if of.reads in ("number", "decimal") else text


def value(text: str) -> float:
    """The number that is written, a fraction too; NaN where it is none or is too large."""
    top, slash, bottom = text.replace(",", "").partition("/")
    try:
        found = float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        return math.nan
    return found if math.isfinite(found) else math.nan


def written(number: float) -> str | None:
    """A number as text; None for NaN."""
    if math.isnan(number):
        return None
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def same(of: Kind, answer: str | None, expected: str) -> bool:
    """Whether an answer is the expected one.

    Numbers within a thousandth are the same; a `decimal` is rounded to the fewer digits of the two. An expected answer may stand behind
    a worked solution, as in GSM8K (`… #### 18`).
    """
    if answer is None:
        return False
    expected = behind(expected)
    if of.reads == "number":
        return abs(value(answer) - value(expected)) < CLOSE
    if of.reads == "decimal":
        return _rounded_alike(answer, expected.replace(",", ""))
    if of.reads in ("letter", "option"):
        return answer == (read(of, expected) or expected)
    if of.reads == "letters":
        return answer.casefold() == re.sub(r"[\"'.\s]", "", expected).casefold()
    return " ".join(answer.casefold().split()) == " ".join(expected.casefold().split()).removesuffix(".").strip()


def behind(solution: str) -> str:
    """The answer at the end of a worked solution; a text that is none is the answer itself."""
    return re.split(r"####|\nA:", solution)[-1].strip()


def majority(answers: Sequence[str | None], rules: Rules = "mended") -> str | None:
    """The most frequent answer, the one seen first among equals. By the published rule None is an answer too and can win."""
    counted = Counter(answer for answer in answers if answer is not None or rules == "published")
    return max(counted, key=lambda answer: counted[answer]) if counted else None


def _letters_alone(text: str) -> list[str]:
    """Option letters: those in brackets where there are any, else all that stand alone, but for an A that may be an article."""
    marked = [first or second for first, second in _OPTION.findall(text)]
    if marked:
        return marked
    alone = list(_ALONE.finditer(text))
    sure = [match for match in alone if not _ARTICLE.match(text, match.start())]
    return [match.group() for match in sure or alone]


def _rounded_alike(answer: str, expected: str) -> bool:
    try:
        first, second = Decimal(answer), Decimal(expected)
        digits = min(_digits(first), _digits(second))
        return first.is_finite() and second.is_finite() and round(first, digits) == round(second, digits)
    except InvalidOperation:  # no number, or one with more digits than can be rounded
        return False


def _digits(number: Decimal) -> int:
    return max(0, -int(number.as_tuple().exponent)) if number.is_finite() else 0
