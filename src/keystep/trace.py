"""Trace: what happened, step by step."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Vote(BaseModel):
    """One sample of a step: its text, the candidate it counted for (`key`, canonical JSON), or the flag that threw it out."""

    model_config = ConfigDict(extra="forbid")

    index: int
    text: str
    key: str | None = None
    flag: str | None = None
    model: str = ""
    tokens_out: int = 0
    logprob: float | None = None


class StepTrace(BaseModel):
    """One step: its answer, the count of every candidate, flags, tokens, seconds, cost.

    `votes` is empty where samples were not kept (a journal keeps them only where they disagreed).
    """

    model_config = ConfigDict(extra="forbid")

    step: str
    skill: str = ""
    answer: Any = None
    decided: bool = True
    samples: int = 0
    flagged: int = 0
    candidates: dict[str, int] = Field(default_factory=dict)
    votes: list[Vote] = Field(default_factory=list)
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    cost: float = 0.0


class Trace(BaseModel):
    """A whole run, or what is known of it so far."""

    model_config = ConfigDict(extra="forbid")

    run: str
    name: str
    steps: list[StepTrace] = Field(default_factory=list)
