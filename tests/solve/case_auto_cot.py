from solver_case import Case


def says(prompt: str) -> str:
    """Without demonstrations: two calls. With them: `test_auto_cot.py`."""
    if prompt.endswith("arabic numerals) is"):
        return " 9. "
    return "Janet has 16 - 3 - 4 = 9 eggs left."


CASE = Case(question="Janet has 16 eggs, eats 3 and bakes 4. How many eggs are left?", answer="9", says=says)
