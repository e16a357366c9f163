"""Decomposed Prompting on one letter question, by the shipped program; the model is a rule for every one of its handlers."""

import json
import re

from solver_case import Case

WHOLE = re.compile(r'Take the (letters at position \d+|last letters) of the words in "(.*)" and concatenate them using (.*)\.', re.DOTALL)
QUESTION = 'Take the letters at position 3 of the words in "Musa Haiying Schmidt Robinson Afzal" and concatenate them using a space.'
GLUE = {"a space": " ", "a comma": ",", "a semi-colon": ";"}


def says(prompt: str) -> str:
    """The next line of the program, or the answer of the handler that the last question of the prompt is for."""
    if not prompt.endswith("QS:"):
        return handled(re.findall(r"^Q: (.*)\nA:$", prompt, re.MULTILINE)[-1])
    query, *done = re.split(r"\nQS:", prompt[prompt.rindex("QC: ") + 4 :])
    if found := WHOLE.fullmatch(query):
        which, words, glue = found.groups()
        lines = [
            f'[split] What are the words in "{words}"?',
            f'(project_values) [str_position] What is the {which.replace("letters", "letter")} in "#1"?',
            f"[merge] Concatenate #2 using {glue}.",
        ]
    else:
        which, word = re.fullmatch(r'(?s)What is the (.*) in "(.*)"\?', query).groups()
        lines = [f'[split] What are the letters and their positions in "{word}"?', f"[arr_position] What is the {which} in #1?"]
    return [*lines, "[EOQ]"][len(done) - 1]


def handled(question: str) -> str:
    if found := re.fullmatch(r'What are the words in "(.*)"\?', question):
        return json.dumps(found[1].split())
    if found := re.fullmatch(r'What are the letters and their positions in "(.*)"\?', question):
        return json.dumps(f"[{', '.join(f'({letter}, {number})' for number, letter in enumerate(found[1], 1))}]")
    if found := re.fullmatch(r"Concatenate (\[.*\]) using (.*)\.", question):
        return json.dumps(GLUE[found[2]].join(json.loads(found[1])))
    which, pairs = re.fullmatch(r'What is the (.*) in "\[(.*)\]"\?', question).groups()
    letters = re.findall(r"\((.), \d+\)", pairs)
    return json.dumps(letters[-1 if which == "last letter" else int(which.split()[-1]) - 1])


def guarded(prompt: str) -> str:
    try:
        return says(prompt)
    except (AttributeError, IndexError, KeyError):
        return "I do not know this question."


CASE = Case(question=QUESTION, answer="s i h b z", says=guarded, settings={"program": "letters"})
