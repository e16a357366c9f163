"""Arithmetic by a ranking of the operators that the question gives: which operator comes first is the plan, the rest is mechanical.

A question like `*-+<3-a5*b7+c2` says: first all `*`, then all `-`, then all `+`, among equal ones from the left (`<`) or the right (`>`);
every operator has a letter, numbers are residues modulo `MODULUS`. A plan lists the letters in the order of their use. An execution says
for every step the letter, the sub-result and what the expression has become.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from random import Random

MODULUS = 7
OPERATORS = "+-*"
RANKINGS = tuple("".join(order) for order in permutations(OPERATORS))
LETTERS = "abcdefgh"
RULES = {"P": ("+*-", False), "Q": ("*+-", True), "R": ("-+*", False)}  # names for some rankings and sides


@dataclass(frozen=True, slots=True)
class Problem:
    """`numbers` (n) with `operators` (n - 1) between them; `ranking` is all three, the first used first; `left` breaks ties. A `rule` is a
    name for ranking and side that the question gives in their place: whoever reads it has to know what it stands for."""

    numbers: tuple[int, ...]
    operators: str
    ranking: str
    left: bool
    rule: str = ""

    @property
    def question(self) -> str:
        return f"{self.rule or self.ranking + '><'[self.left]}{self.expression}"

    @property
    def expression(self) -> str:
        return _written(self.numbers, self.operators, range(len(self.operators)))

    def order(self) -> list[int]:
        """The places of the operators in the order of their use."""
        sign = 1 if self.left else -1
        return sorted(range(len(self.operators)), key=lambda at: (self.ranking.index(self.operators[at]), sign * at))

    def plan(self, order: Sequence[int] | None = None) -> str:
        """The plan of an order, the right one by default."""
        return "\n".join(f"{step}.{LETTERS[at]}" for step, at in enumerate(self.order() if order is None else order, 1))

    def execution(self, order: Sequence[int] | None = None) -> str:
        """The operators carried out in an order, with the result in a box."""
        numbers, places, lines = list(self.numbers), list(range(len(self.operators))), []
        for step, place in enumerate(self.order() if order is None else order, 1):
            at = places.index(place)
            operator = self.operators[place]
            result = applied(operator, numbers[at], numbers[at + 1])
            shown = f"{numbers[at]}{operator}{numbers[at + 1]}={result}"
            numbers[at : at + 2] = [result]
            del places[at]
            lines.append(f"{step}.{LETTERS[place]}{shown};{_written(numbers, self.operators, places)}")
        return "\n".join([*lines, f"\\boxed{{{numbers[0]}}}"])

    def answer(self, order: Sequence[int] | None = None) -> str:
        return self.execution(order).rpartition("{")[2].removesuffix("}")


def applied(operator: str, left: int, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[operator] % MODULUS


def problem(random: Random, numbers: int, rankings: Sequence[str] = RANKINGS) -> Problem:
    """One drawn uniformly."""
    values = tuple(random.randrange(MODULUS) for _ in range(numbers))
    operators = "".join(random.choice(OPERATORS) for _ in range(numbers - 1))
    return Problem(values, operators, random.choice(rankings), random.random() < 0.5)


def ruled_problem(random: Random, numbers: int) -> Problem:
    """One whose question names a rule."""
    drawn, rule = problem(random, numbers), random.choice(list(RULES))
    ranking, left = RULES[rule]
    return Problem(drawn.numbers, drawn.operators, ranking, left, rule)


def read_plan(plan: str) -> list[int]:
    """The places that a plan lists; those of other lines are left out."""
    return [LETTERS.index(line[-1]) for line in plan.splitlines() if line and line[-1] in LETTERS]


def _written(numbers: Sequence[int], operators: str, places: Sequence[int]) -> str:
    """An expression of what is left: the operators at `places`, each with its letter."""
    return "".join([str(numbers[0]), *(f"{operators[at]}{LETTERS[at]}{number}" for at, number in zip(places, numbers[1:], strict=True))])
