from __future__ import annotations

from solver_case import Case

PLAN = "1. Find the price of the pens.\n2. Add the price of the book."


def says(prompt: str) -> str:
    if "Carry out this plan" not in prompt:
        return PLAN
    return "1. Find the price of the pens: 3 * 4 = 12.\n2. Add the price of the book: 12 + 30 = 42.\nIt is \\boxed{42}."


CASE = Case(
    question="A pen costs 4 and a book 30. What do three pens and a book cost?", answer="42", says=says,
    settings={"way": "one", "vote_on_plans": True, "again": 0.0},
)  # fmt: skip
