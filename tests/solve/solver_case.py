"""What the room's contract test has to know about a solver: a question, and a model scripted so well that the solver answers it.

Every solver has a file `case_NAME.py` here (dashes as underscores) with `CASE = Case(...)`, and one more for another way of it:
"auto-cot few-shot" is `FEW_SHOT` in `case_auto_cot.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from worker import Scripted

from keystep.lm.base import Prompt, as_messages


@dataclass(frozen=True, kw_only=True)
class Case:
    """
    Attributes:
        question, answer: what is asked, and what the solver answers when the model says what `says` gives.
        says: the model's text for a prompt (of several messages: their contents, a blank line between).
        settings: those of the solver that keep the case small; paths are of the folder that `prepare` filled.
        inputs: what else the task holds.
        prepare: puts files into the current folder.
    """

    question: str
    answer: str
    says: Callable[[str], str]
    settings: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[], object] = lambda: None

    def model(self) -> Scripted:
        return Scripted(lambda request, index: self.says(text_of(request.prompt)))


def case_of(name: str) -> Case:
    method, _, way = name.replace("-", "_").partition(" ")
    case = getattr(import_module(f"case_{method}"), way.upper() or "CASE")
    assert isinstance(case, Case)
    return case


def text_of(prompt: Prompt) -> str:
    return "\n\n".join(str(message.content) for message in as_messages(prompt))
