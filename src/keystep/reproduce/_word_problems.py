"""Word problems about a box into which people put things and take things out, with their solutions in five styles: what the nets of the
Plan-and-Solve reproduction learn from.

A story has some who only look and count something else. The styles are those that the triggers ask for. Some are terse as people are: they
leave out the lines of small changes, which then stand inside the next line's sum.

    direct     It is 12.
    terse      Bo: 7 + 5 = 12.                        (lines that change by 3 or less are left out)
    variables  Variables: box 7 Bo + 5.               and terse
    plan       Plan: Bo.                              and lines, those that change by 1 left out
    complete   Variables, Plan, and all lines
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from random import Random

from keystep.solve.plan_and_solve import PlanAndSolve

NAMES = ("Ann", "Bo", "Cy", "Dee", "Ed", "Flo", "Gus", "Hal", "Ida", "Jo", "Kit", "Lou")
MOST, CHANGE, STEPS = 20, 9, (2, 3, 4, 5, 6)
STYLES = ("direct", "terse", "variables", "plan", "complete")
TERSE = {"terse": 3, "variables": 3, "plan": 1, "complete": 0}  # the largest change whose line is left out
ANSWER = " Therefore, the answer (arabic numerals) is"

SOLVERS = {
    "direct": PlanAndSolve(style="completion", trigger="Say at once what it is."),
    "terse": PlanAndSolve(style="completion", trigger="101"),
    "variables": PlanAndSolve(style="completion", clauses=["variables"]),
    "plan": PlanAndSolve(style="completion", trigger="201"),
    "complete": PlanAndSolve(style="completion", trigger="305"),
    "null A": PlanAndSolve(style="completion", trigger="302"),  # of these two no style is their own
    "null B": PlanAndSolve(style="completion", trigger="307"),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """`people` who change what is in the box, their `changes`, and the `values` of the box, the one at the beginning first."""

    question: str
    people: tuple[str, ...]
    changes: tuple[int, ...]
    values: tuple[int, ...]

    @property
    def answer(self) -> int:
        return self.values[-1]


def drawn(random: Random, steps: int) -> Problem:
    others = random.choice((0, 1, 1, 2))
    names = random.sample(NAMES, steps + others)
    people = names[:steps]
    values = [random.randint(2, MOST)]
    for _ in range(steps):
        change = 0
        while not change or not 1 <= values[-1] + change <= MOST:
            change = random.randint(-CHANGE, CHANGE)
        values.append(values[-1] + change)
    changes = [after - before for before, after in pairwise(values)]
    told = [f" {who} {_does(change)} {abs(change)}." for who, change in zip(people, changes, strict=True)]
    for who in names[steps:]:
        told.insert(random.randint(0, len(told)), f" {who} counts {random.randint(1, CHANGE)}.")
    return Problem(f"A box has {values[0]}.{''.join(told)} How many?", tuple(people), tuple(changes), tuple(values))


def _does(change: int) -> str:
    return "adds" if change > 0 else "takes"


def _signed(change: int) -> str:
    return f" {'+' if change > 0 else '-'} {abs(change)}"


def solution(problem: Problem, style: str) -> str:
    """The reasoning of a style, with a blank before it."""
    if style == "direct":
        return f" It is {problem.answer}."
    people, changes, values = problem.people, problem.changes, problem.values
    written = ""
    if style in ("variables", "complete"):
        written += (
            f" Variables: box {values[0]}{''.join(f' {who}{_signed(change)}' for who, change in zip(people, changes, strict=True))}.\n"
        )
    if style in ("plan", "complete"):
        written += f" Plan: {' '.join(people)}.\n"
    since = 0
    for at in range(1, len(values)):
        if at < len(people) and abs(changes[at - 1]) <= TERSE[style]:
            continue
        sums = "".join(map(_signed, changes[since:at]))
        written += f" {people[at - 1]}: {values[since]}{sums} = {values[at]}."
        since = at
    return written


def pieces() -> list[str]:
    """The tokens of prompts and solutions."""
    triggers = [f" {solver.wording()}" for solver in SOLVERS.values()]
    changes, values = range(1, CHANGE + 1), range(MOST + 1)
    return [
        *triggers, ANSWER, *(f" {name}" for name in NAMES), *(f" {does} {n}." for does in ("adds", "takes", "counts") for n in changes),
        *(f" {sign} {n}" for sign in "+-" for n in changes), *(f": {n}" for n in values), *(f" = {n}." for n in values),
        *(f" {n}" for n in values), "Q: A box has", ".", " How many?", "\nA:", " It is", " Variables: box", " Plan:", ".\n",
    ]  # fmt: skip


def rows(problem: Problem, style: str, trigger: str) -> list[tuple[str, bool]]:
    """What a net learns of a problem: its reasoning in the style, behind the trigger, and the answer behind the answer trigger."""
    prompt = str(SOLVERS[trigger].first_prompt(problem.question, SOLVERS[trigger].wording()))
    return [(prompt, False), (solution(problem, style) + ANSWER, True), (f" {problem.answer}", True)]
