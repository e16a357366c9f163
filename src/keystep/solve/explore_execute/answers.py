r"""Final answers: the last \boxed{…} of a text, and when two answers are the same."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_BOX = r"\boxed{"
_BRACE = re.compile(r"\\boxed\{|[{}]")
_NUMBER = re.compile(r"[-+]?\d{1,200}(\.\d{1,200})?(/\d{1,200})?")
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_WORDS = re.compile(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}")
_SPACING = re.compile(r"\\(?:left|right)(?![A-Za-z])|\\[!,;: ]|[$\s]")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_OPTION = re.compile(r"^\(([A-Za-z])\)$")
_COMMAND = re.compile(r"\\[A-Za-z]+")


@dataclass(frozen=True, slots=True)
class Box:
    """What stands in a box, and where the whole of it begins and ends in its text (characters)."""

    content: str
    start: int
    end: int


def last_box(text: str) -> Box | None:
    r"""The last \boxed{…} whose braces close and that holds something."""
    found: Box | None = None
    opened: list[int | None] = []  # where the box of each open brace begins; None of a brace that is no box
    for mark in _BRACE.finditer(text):
        if mark[0] != "}":
            opened.append(mark.start() if len(mark[0]) > 1 else None)
        elif opened:
            start = opened.pop()
            if start is not None and (found is None or start > found.start):
                content = text[start + len(_BOX) : mark.start()].strip()
                found = Box(content, start, mark.end()) if content else found
    return found


def final_box(text: str, after: int, within: int) -> Box | None:
    """The last box, where it begins after at least `after` characters and is followed by at most `within`; else none."""
    box = last_box(text)
    return box if box is not None and box.start >= after and len(text) - box.end <= within else None


def normal(answer: str) -> str:
    r"""An answer in the form that two equal ones share: numbers as fractions in lowest terms ("1.50", "3/2" and "\frac{3}{2}" are one),
    other texts without spacing, dollar signs, letter case, a final full stop and the brackets of a single letter."""
    text = _FRACTION.sub(r"\1/\2", _WORDS.sub(r"\1", answer))
    text = _OPTION.sub(r"\1", _THOUSANDS.sub("", _SPACING.sub("", text)).removesuffix("."))
    if not _NUMBER.fullmatch(text):
        return text.casefold()
    whole, _, under = text.partition("/")
    below = Fraction(under or 1)
    return text if below == 0 else str(Fraction(whole) / below)


def as_published(answer: str) -> str:
    r"""An answer as the official program compares it: letters and digits alone, so "1.5" is "15", "-3" is "3", "\frac{1}{2}" is "12"."""
    return "".join(filter(str.isalnum, _COMMAND.sub("", answer))).lower()
