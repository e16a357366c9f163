"""Budgets over a whole run: what may be spent, and what has been."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields

from keystep.errors import BadInput, BudgetSpent
from keystep.lm.base import Sample


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of a run, resumed parts included; None is no limit. `seconds` is wall time while running, `cost` in the price table's unit."""

    calls: int | None = None
    tokens: int | None = None
    cost: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is not None and value <= 0:
                raise BadInput("a budget is more than 0", field=limit.name, value=value)


@dataclass(slots=True)
class Meter:
    """What a run has spent; `calls` are samples drawn, also those of speculated steps whose leader lost."""

    calls: int = 0
    flagged: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    steps: int = 0
    seconds_before: float = 0.0
    started: float = field(default_factory=time.monotonic)
    flying: int = 0  # samples that were asked for and have not come yet

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def add(self, sample: Sample) -> None:
        self.calls += 1
        self.tokens_in += sample.tokens_in
        self.tokens_out += sample.tokens_out
        self.cost += sample.cost

    def room(self, budget: Budget, wanted: int) -> int:
        """How many of `wanted` samples may still be drawn, those under way counted; they count as `flying` until they come.

        Raises:
            BudgetSpent: none.
        """
        spent = {"calls": self.calls + self.flying, "tokens": self.tokens_in + self.tokens_out, "cost": self.cost, "seconds": self.seconds}
        for name, value in spent.items():
            limit = getattr(budget, name)
            if limit is not None and value >= limit:
                raise BudgetSpent("the budget is spent", field=f"budget.{name}", value=limit, mend="resume with a larger one")
        if budget.calls is not None:
            wanted = min(wanted, budget.calls - self.calls - self.flying)
        self.flying += wanted
        return wanted
