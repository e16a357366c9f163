"""Questions of the published benchmarks as rows {"id", "question", "answer"}, the form that `keystep solve --inputs` takes.

Read from their files: GSM8K, the model solutions that came with it, SVAMP, AQuA-RAT, the letters, reversals and CommaQA-E of Decomposed
Prompting, logs of Zero-Shot-CoT runs. Drawn here: last letters (Wei et al. 2022: the last letters of the words of a name, joined) and coin
flip (does a coin lie heads up after each of some people turned it over or did not?).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from keystep.errors import BadInput
from keystep.solve.answers import written

Row = dict[str, Any]

NAMES = (
    "Whitney", "Erika", "Tj", "Benito", "Ada", "Boris", "Carla", "Dmitri", "Edith", "Femi", "Greta", "Hugo", "Ines", "Jamal", "Kenji",
    "Lucia", "Marek", "Nadia", "Oscar", "Priya", "Quentin", "Rosa", "Samir", "Tova", "Umar", "Vera", "Wes", "Ximena", "Yusuf", "Zoe",
)  # fmt: skip


def gsm8k(text: str) -> list[Row]:
    """Lines {question, answer}; the worked solution stays in the answer, which is what stands behind "####"."""
    return [{"id": f"gsm8k-{number}", "question": row["question"], "answer": row["answer"]} for number, row in enumerate(_lines(text))]


def gsm8k_solutions(text: str, model: str = "175b_finetuning") -> list[Row]:
    """The recorded solutions of one of the models, as rows that have their chain already (`rationale`, `prediction`)."""
    return [
        {
            "id": f"gsm8k-{number}", "question": row["question"], "answer": row["ground_truth"],
            "rationale": re.sub(r"<<[^<>]*>>", "", row[model]["solution"]).rpartition("\nA:")[0],
            "prediction": row[model]["solution"].rpartition("A:")[2].strip(),
        }
        for number, row in enumerate(_lines(text))
    ]  # fmt: skip


def zero_shot_log(text: str) -> list[Row]:
    """The log of a Zero-Shot-CoT run, which the published code of Auto-CoT makes demonstrations of: of every question the lines "Q: …",
    "A: …" and those after it, "Therefore, … the answer …", "pred_mode : …", "GT : …". A block that lacks its rationale gives no row."""
    found = []
    for number, block in enumerate(re.split(r"^Q:", text, flags=re.M)[1:]):
        parts = re.match(r"(.*?)^A:(.*?)^Therefore\b[^\n]*the answer", block, re.S | re.M)
        said, known = (re.search(rf"^{name}\s*:[ \t]*(.*)$", block, re.M) for name in ("pred_mode", "GT"))
        if parts is None:
            continue
        rationale = parts[2].strip().removeprefix("Let's think step by step.").strip()
        row = {"id": f"log-{number}", "question": parts[1].strip(), "rationale": rationale, "prediction": said[1].strip() if said else ""}
        found.append(row | ({"answer": known[1].strip()} if known else {}))
    return found


def svamp(text: str) -> list[Row]:
    """A list of {ID, Body, Question, Answer}."""
    found = []
    for row in json.loads(text):
        body, answer = row["Body"].strip(), row["Answer"]
        question = f"{body}{'' if body.endswith('.') else '.'} {row['Question'].strip()}"
        found.append({"id": row["ID"], "question": question, "answer": written(float(answer))})
    return found


def aqua(text: str) -> list[Row]:
    """Lines {question, options, correct}; the options are written behind the question."""
    return [
        {
            "id": f"aqua-{number}", "answer": row["correct"],
            "question": f"{row['question']} Answer Choices: {' '.join('(' + option.strip() for option in row['options'])}",
        }
        for number, row in enumerate(_lines(text))
    ]  # fmt: skip


def decomp(text: str) -> list[Row]:
    """{id: {passage, qa_pairs: [{question, answer: {spans}}]}}: the passage is the `context`; with one, the answer is a list."""
    found: list[Row] = []
    for part in json.loads(text).values():
        passage = part.get("passage", "").strip()
        for pair in part["qa_pairs"]:
            spans, row = pair["answer"]["spans"], {"id": f"decomp-{len(found)}", "question": pair["question"]}
            found.append(row | ({"context": passage, "answer": spans} if passage else {"answer": spans[0]}))
    return found


def last_letters(count: int, seed: int = 0, words: int = 4) -> list[Row]:
    """Drawn questions, with `words` different names each (4 in the paper)."""
    draw, found = random.Random(f"last letters {seed}"), []
    for number in range(count):
        names = draw.sample(NAMES, words)
        question = f'Take the last letters of each word in "{" ".join(names)}" and concatenate them.'
        found.append({"id": f"last-letters-{number}", "question": question, "answer": joined_letters(names)})
    return found


def coin_flip(count: int, seed: int = 0, people: int = 4) -> list[Row]:
    """Drawn questions about `people` people (4 in the paper), each of whom turns the coin over or does not."""
    draw, found = random.Random(f"coin flip {seed}"), []
    for number in range(count):
        flips = [draw.random() < 0.5 for _ in range(people)]
        told = " ".join(
            f"{name} {'flips' if flip else 'does not flip'} the coin." for name, flip in zip(_people(draw, people), flips, strict=True)
        )
        question = f"A coin is heads up. {told} Is the coin still heads up?"
        found.append({"id": f"coin-flip-{number}", "question": question, "answer": heads_up(flips)})
    return found


def joined_letters(names: Sequence[str]) -> str:
    return "".join(name[-1] for name in names).lower()


def heads_up(flips: Sequence[bool]) -> str:
    return "no" if sum(flips) % 2 else "yes"


READ: dict[str, Callable[[str], list[Row]]] = {
    "gsm8k": gsm8k, "gsm8k-solutions": gsm8k_solutions, "svamp": svamp, "aqua": aqua, "decomp": decomp, "zero-shot-log": zero_shot_log,
}  # fmt: skip
DRAWN: dict[str, Callable[[int, int], list[Row]]] = {"last-letters": last_letters, "coin-flip": coin_flip}


def questions(name: str, file: Path | None = None, *, count: int = 500, seed: int = 0) -> list[Row]:
    """The rows of a benchmark: those of its file, or `count` drawn ones.

    Raises:
        BadInput: there is no such benchmark, or its file cannot be read.
    """
    if name in DRAWN:
        if count < 1:
            raise BadInput("must be at least 1", field="count", value=count)
        if file is not None:
            raise BadInput("is drawn, not read", field="FILE", value=str(file), mend="leave the file out")
        return DRAWN[name](count, seed)
    if name not in READ:
        raise BadInput("is no benchmark", field="NAME", value=name, mend=f"there are: {', '.join([*READ, *DRAWN])}")
    if file is None:
        raise BadInput("is wanted", field="FILE", mend=f"name the file of {name} as it was published")
    try:
        return READ[name](file.read_text("utf-8"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        problem = f"cannot be read as {name} ({type(error).__name__}: {error})"
        raise BadInput(problem, field="FILE", value=str(file), mend="name the file as it was published") from None


def _lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _people(draw: random.Random, count: int) -> list[str]:
    return [" ".join(pair) for pair in draw.sample(list(product(NAMES, NAMES)), count)] if count > len(NAMES) else draw.sample(NAMES, count)
