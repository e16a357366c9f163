"""How a chain is written: a plan between two tags, then its execution between two others, then the end token.

The tags are tokens of their own, added as ordinary ones: a special token would vanish from decoded text, and with it every place to stop.
A prompt ends with the first tag, so that sampling always begins inside the plan.
"""

from __future__ import annotations

PLAN, PLAN_END, EXECUTION, EXECUTION_END = TAGS = ("<EXPLORATION>", "</EXPLORATION>", "<EXECUTION>", "</EXECUTION>")


def begun(plan: str) -> str:
    """What stands before an execution: the whole plan, in its tags."""
    return f"{PLAN}{plan.strip()}{PLAN_END}{EXECUTION}"


def chain(plan: str, execution: str) -> str:
    """A whole chain."""
    return f"{begun(plan)}{execution.strip()}{EXECUTION_END}"


def plan_in(text: str) -> str:
    """The plan in what a model wrote: between its tags where it wrote them, else all of it."""
    return _between(text, PLAN, PLAN_END)


def execution_in(text: str) -> str:
    """The execution in what a model wrote; of a whole chain, what comes after the plan."""
    return _between(text.rpartition(PLAN_END)[2], EXECUTION, EXECUTION_END)


def _between(text: str, opening: str, closing: str) -> str:
    return text.rpartition(opening)[2].partition(closing)[0].strip()
