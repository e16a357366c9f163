"""keystep takes a long task apart into steps, gives each step to the smallest skill that can do it, and gets every step right.

Importing it loads nothing heavy: public names are looked up when they are first used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
    "errors": ["BadInput", "BudgetSpent", "Busy", "ChangedWork", "JournalError", "KeystepError", "MissingExtra", "ModelError", "Refused",
               "StepFailed", "Stopped", "Undecided"],
    "task": ["Task"],
    "plan": ["Need", "Plan", "Ref", "Step"],
    "skill": ["Skill", "SkillLibrary"],
    "demonstration": ["Demonstration", "Segment"],
    "trace": ["StepTrace", "Trace", "Vote"],
    "lm": ["LM", "Message", "Request", "Rotation", "Sample", "ToolCall", "lm"],
    "run.skills": ["PolicySkill", "PromptSkill", "ToolSkill"],
    "run": ["AheadBy", "Answer", "Budget", "Context", "First", "Flag", "Journal", "Majority", "Many", "ManyOutcome", "Mismatch", "Outcome",
            "Procedure", "Run", "Sampling", "TooLong", "Unsure", "Work"],
    "solve.solver": ["Solution", "Solver"],
    "run.voted": ["VoteKey", "Voted"],
}  # fmt: skip
_MODULE = {name: module for module, names in _WHERE.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'keystep' has no attribute {name!r}")
    return getattr(import_module(f"keystep.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
