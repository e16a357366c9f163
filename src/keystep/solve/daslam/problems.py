"""Problems to train on, from JSON lines: a question with its answer, and where there are any a reference chain and sub-questions.

Three kinds of rows are read: this project's, {"question", "answer", "reasoning", "sub_questions", "options"} (the last three may be left
out; texts or lists of lines), AQuA's {"question", "options", "rationale", "correct"}, and GSM8K's Socratic {"question", "answer"}, whose
answer has lines of "sub-question ** step" and a last line "#### number".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from keystep.errors import BadInput
from keystep.run.many import input_rows
from keystep.solve.daslam.text import with_options

_CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K's marks of what a calculator gave


@dataclass(frozen=True, slots=True)
class Problem:
    """`question` has its options already; `reasoning` is a step a line."""

    question: str
    answer: str
    reasoning: str = ""
    sub_questions: tuple[str, ...] = ()


def load(path: Path) -> list[Problem]:
    """The problems of a file.

    Raises:
        BadInput: it cannot be read, or a row is no problem; the row is named.
    """
    rows = input_rows(path)
    if not rows:
        raise BadInput(
            "there are no problems", field="--data", value=str(path), mend='write {"question": "…", "answer": "…"} on every line'
        )
    return [problem(row, f"row {number}") for number, row in enumerate(rows)]


def problem(row: Mapping[str, Any], where: str = "row") -> Problem:
    """The problem of a row.

    Raises:
        BadInput: it has no question or no answer, or a field is of another type.
    """
    question, options = _text(row, "question", where), row.get("options")
    if options is not None and not _is_lines(options):
        raise BadInput("are a list of texts", field=f"{where}, options", value=options)
    question = with_options(question, options)
    if "correct" in row:
        return Problem(question, _text(row, "correct", where), _lines(row, "rationale", where))
    answer = _text(row, "answer", where)
    if "####" in answer:
        solution, _, result = answer.rpartition("####")
        pairs = [line.partition(" ** ") for line in _CALCULATOR.sub("", solution).splitlines() if line.strip()]
        said = "\n".join(step or line for line, _, step in pairs)
        return Problem(question, result.strip(), said, tuple(sub.strip() for sub, mark, _ in pairs if mark))
    asked = row.get("sub_questions", [])
    asked = asked.splitlines() if isinstance(asked, str) else asked
    if not _is_lines(asked):
        raise BadInput("are a list of texts", field=f"{where}, sub_questions", value=asked)
    return Problem(question, answer, _lines(row, "reasoning", where), tuple(sub.strip() for sub in asked if sub.strip()))


def apart(problems: Sequence[Problem], held_out: int, seed: int) -> tuple[list[Problem], list[Problem]]:
    """Problems to train on and, drawn by the seed, `held_out` others to judge by; a question that occurs twice stays on one side."""
    questions = list(dict.fromkeys(problem.question for problem in problems))
    if not 0 <= held_out < len(questions):
        mend = f"there are {len(questions)} different questions"
        raise BadInput("leaves nothing to train on", field="held_out", value=held_out, mend=mend)
    kept = frozenset(Random(f"held out {seed}").sample(questions, held_out))
    return [p for p in problems if p.question not in kept], [p for p in problems if p.question in kept]


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"is no {name}", field=f"{where}, {name}", value=value, mend='write {"question": "…", "answer": "…"} on every line')
    return value.strip()


def _lines(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name) or ""
    if _is_lines(value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise BadInput("is a text, or a list of lines", field=f"{where}, {name}", value=value)
    return value.strip()


def _is_lines(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(line, str) for line in value)
