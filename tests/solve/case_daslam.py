"""DaSLaM's case: the first answer is wrong, two sub-questions put it right."""

from solver_case import Case


def says(prompt):
    """The solver adds what it is asked for and gets both parts at once wrong; the decomposer is known by its instruction."""
    if "Break the question" in prompt:
        return "1. How many apples does Ben have?\n2. How many do they have together?\nThat is all."
    if "answered already" not in prompt:
        return "Ben has 3 + 4 = 7.\n[[Answer: 7]]" if "Question: " not in prompt and "does Ben have? " not in prompt else "[[Answer: 7]]"
    return "Together 3 + 7 = 10.\n[[Answer: 10]]\n### Input:\nsomething else [[Answer: 11]]"


CASE = Case(question="Ann has 3 apples. Ben has 4 more than Ann. How many do they have together?", answer="10", says=says)
