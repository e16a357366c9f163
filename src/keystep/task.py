"""Task: what is to be done."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Task(BaseModel):
    """A goal, its inputs, its initial state, optionally a checker.

    `check` is an expression over `inputs`, `state` and `answer` (the sandboxed Jinja language of procedure files) that is true when the
    answer is right; a Task is data and travels as JSON, so the checker is text and not a function.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    goal: str = Field(min_length=1)
    inputs: dict[str, Any] = Field(default_factory=dict)
    state: Any = None
    check: str | None = None
