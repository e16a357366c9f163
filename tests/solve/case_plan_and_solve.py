from solver_case import Case


def says(prompt: str) -> str:
    if prompt.endswith("arabic numerals) is"):
        return " 9 eggs."
    return "Given: 16 eggs, 3 eaten, 4 baked\nPlan: take both away.\nCalculation: 16 - 3 - 4 = 9"


CASE = Case(question="Janet has 16 eggs, eats 3 and bakes 4. How many eggs are left?", answer="9", says=says)
