from solver_case import Case


def says(prompt: str) -> str:
    """Two calls without demonstrations; with one, the answer is said at once."""
    if prompt.endswith("arabic numerals) is"):
        return " 9. "
    return f"Janet has 16 - 3 - 4 = 9 eggs left.{' The answer is 9.' if 'The answer is 4' in prompt else ''}"


QUESTION = "Janet has 16 eggs, eats 3 and bakes 4. How many eggs are left?"
HATS = {"question": "Q: Tom has 2 hats and buys 2. How many now?\nA:", "rationale": "Let's think step by step. 2 + 2 = 4.", "pred_ans": "4"}
CASE = Case(question=QUESTION, answer="9", says=says)
FEW_SHOT = Case(question=QUESTION, answer="9", says=says, inputs={"demos": [HATS]})
