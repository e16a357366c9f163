from solver_case import Case


def says(prompt: str) -> str:
    if prompt.endswith("arabic numerals) is"):
        return " 9 eggs."
    return "Given: 16 eggs, 3 eaten, 4 baked\nPlan: take both away.\nCalculation: 16 - 3 - 4 = 9"


CASE = Case(question="Janet has 16 eggs, eats 3 and bakes 4. How many eggs are left?", answer="9", says=says)


def programs(prompt: str) -> str:
    """A program, and the letter of the choice that its outcome is nearest to."""
    if prompt.endswith("A through E, the answer is"):
        return " (C)"
    return "```python\ndef solver():\n    eggs = 16\n    return eggs - 3 - 4\n```"


PROGRAM = Case(
    question="Janet has 16 eggs, eats 3 and bakes 4. How many are left? Answer Choices: (A) 7 (B) 8 (C) 9", answer="C", says=programs,
    settings={"trigger": "pot", "kind": "aqua"},
)  # fmt: skip
