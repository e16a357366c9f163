"""Worked solutions in free text: their sections, the equations written in them, and what kind of error a wrong one has.

The three classes of error are those that Wang et al. 2023 (Plan-and-Solve, arXiv 2305.04091, section 4.3) gave out by hand, found here by
rule: *calculation*, where a written equation is false; *missing-step*, where an intermediate value of the known solution is nowhere
written; *semantic*, the rest. What these rules do not see: equations in words, units, a value written for another reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Literal

ErrorClass = Literal["calculation", "missing-step", "semantic"]

SECTIONS = {"variables": "variables", "given": "variables", "plan": "plan", "calculation": "steps", "calculations": "steps",
            "solution": "steps", "answer": "answer"}  # fmt: skip
TOKENS = 60  # of an expression, at most

_HEADING = re.compile(rf"^[ \t>#*_]*({'|'.join(SECTIONS)})[*_]*[ \t]*(?::[*_]*|$)", re.I | re.M)
_TOKEN = re.compile(r"(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,15}(?:\.\d{1,15})?|\.\d{1,15})\s?(%?)|([-+*/()×÷−·x])|(\S)")
_RESULT = re.compile(r"\s*[$€£]?\s*(-?\s?[$€£]?(?:\d{1,3}(?:,\d{3})+|\d{1,15})(?:\.\d{1,15})?)(%?)(?!\s*[*/×÷x]\s*\d)")
_OPERATORS = {"×": "*", "x": "*", "·": "*", "÷": "/", "−": "-"}
_ANNOTATION = re.compile(r"<<[^<>]*>>")
_NUMBER = re.compile(r"(?<![\d.])-?\d{1,3}(?:,\d{3})+(?:\.\d+)?|(?<![\d.])-?\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Equation:
    """`left = right` as written, the value that the left side has, and whether the right one is it (rounded to its digits where it has
    some after the point)."""

    left: str
    right: str
    value: float
    holds: bool


def sections(text: str) -> dict[str, str | None]:
    """What stands under the headings of variables, plan, steps (or calculation, solution) and answer: words at the beginning of a line,
    followed by a colon or by nothing. None where a section has no heading; nothing is guessed."""
    found: dict[str, str | None] = dict.fromkeys(("variables", "plan", "steps", "answer"))
    headings = list(_HEADING.finditer(text))
    ends = [*(match.start() for match in headings), len(text)][1:]
    for heading, after in zip(headings, ends, strict=False):
        name, body = SECTIONS[heading[1].lower()], text[heading.end() : after].strip()
        found[name] = body if found[name] is None else f"{found[name]}\n{body}"
    return found


def equations(text: str) -> list[Equation]:
    """All written arithmetic, `16 - 3 - 4 = 9` or `$2 x 9 = $18`; annotations of GSM8K (`<<16-3=13>>`) are passed over."""
    found = []
    for line in _ANNOTATION.sub("", text).splitlines():
        parts = line.split("=")
        for left, right in pairwise(parts):
            result, expression = _RESULT.match(right), _ending(left)
            if result is None or expression is None:
                continue
            words, exact = expression
            said = re.sub(r"[\s,$€£]", "", result[1])
            written = Fraction(said) / (100 if result[2] else 1)
            digits = len(said.partition(".")[2])
            slack = Fraction(1, 2 * 10**digits) / (100 if result[2] else 1) if digits else 0
            found.append(Equation(words, said, float(exact), abs(written - exact) <= slack))
    return found


def intermediates(solution: str) -> list[float]:
    """The values that a known solution goes through: those of its annotations, else the right sides of its equations."""
    annotated = [part.rpartition("=")[2] for part in re.findall(r"<<([^<>]*)>>", solution)]
    values = [float(part.replace(",", "")) for part in annotated if re.fullmatch(r"\s*-?[\d,]*\.?\d+\s*", part)]
    return values or [float(each.right) for each in equations(solution)]


def missing(reasoning: str, values: Sequence[float]) -> float:
    """The share of the values that are nowhere written (0 of none)."""
    numbers = {round(float(text.replace(",", "")), 6) for text in _NUMBER.findall(_ANNOTATION.sub("", reasoning)) if len(text) < 300}
    return sum(round(value, 6) not in numbers for value in values) / len(values) if values else 0.0


def error_class(reasoning: str, values: Iterable[float], right: bool) -> ErrorClass | None:
    """Which class of error a reasoning has, whose known solution goes through `values`; None where its answer is right."""
    if right:
        return None
    if not all(equation.holds for equation in equations(reasoning)):
        return "calculation"
    return "missing-step" if missing(reasoning, list(values)) else "semantic"


def _ending(text: str) -> tuple[str, Fraction] | None:
    """The longest piece of arithmetic with an operator that the text ends with, and its value."""
    tokens: list[str] = []
    for number, percent, operator, other in _TOKEN.findall(text.translate(str.maketrans("", "", "$€£"))[-10 * TOKENS :]):
        if other:
            tokens.clear()
        elif operator:
            tokens.append(_OPERATORS.get(operator, operator))
        else:
            tokens.append(number.replace(",", "") + percent)
    tokens = tokens[-TOKENS:]
    for start in range(len(tokens)):
        if any(token in "+-*/" for token in tokens[start + 1 :]):
            value = _Reader(tokens[start:]).whole()
            if value is not None:
                return " ".join(tokens[start:]), value
    return None


class _Reader:
    """Arithmetic by recursive descent; sums of products of factors. A text that is none gives None."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at = tokens, 0

    def whole(self) -> Fraction | None:
        try:
            value = self.sum()
        except (ValueError, ZeroDivisionError):
            return None
        return value if self.at == len(self.tokens) else None

    def sum(self) -> Fraction:
        value = self.product()
        while (sign := self.peek()) in ("+", "-"):
            self.at += 1
            value += self.product() if sign == "+" else -self.product()
        return value

    def product(self) -> Fraction:
        value = self.factor()
        while (sign := self.peek()) in ("*", "/"):
            self.at += 1
            value = value * self.factor() if sign == "*" else value / self.factor()
        return value

    def factor(self) -> Fraction:
        token = self.peek()
        self.at += 1
        if token == "-":
            return -self.factor()
        if token == "(":
            value = self.sum()
            self.at += 1
            if self.tokens[self.at - 1 : self.at] != [")"]:
                raise ValueError("a bracket is open")
            return value
        return Fraction(token[:-1]) / 100 if token.endswith("%") else Fraction(token)

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""
