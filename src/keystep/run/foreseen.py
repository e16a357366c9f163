"""A forecast as it is shown and kept with its run, and beside what came."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Truth = Literal["labels", "reference", "procedure", "checker", "agreement"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Estimate(_Model):
    """A figure and the ends of its interval."""

    value: float
    low: float
    high: float


class MemberShare(_Model):
    """How often one member of the model was right."""

    member: int
    model: str
    samples: int
    valid: int
    p: Estimate


class HardStep(_Model):
    """A step at which no more than half of the valid samples were right, counted on fresh samples. `systematic`: its interval lies below
    1/2 (or no sample was valid), so that a larger k makes it worse. `expected` is None where only a checker knew; `given` is what most
    samples said."""

    step: str
    samples: int
    valid: int
    right: int
    p: Estimate
    systematic: bool
    expected: Any = None
    given: Any = None


class CallSize(_Model):
    """What m steps in one call would take: `p` is per step, the m-th root of the share of calls that were right throughout."""

    steps_per_call: int
    samples: int
    p: Estimate
    tokens_out_per_call: float


class Spent(_Model):
    """What the forecast itself took."""

    samples: int
    tokens_in: int
    tokens_out: int
    cost: float
    seconds: float


class Forecast(_Model):
    """A forecast. `k` is the margin it is made for, `least_k` the smallest that meets the target at the lower end of p; `right` counts the
    right ones among `valid` samples (in agreement: agreeing pairs). `steps_from` says who knew the number of steps."""

    procedure: str
    model: str
    truth: Truth
    steps: int
    steps_from: Literal["given", "procedure", "chain", "max_steps"]
    target: float
    confidence: float
    seed: int
    sampled_steps: int
    samples: int
    valid: int
    right: int
    p: Estimate
    v: Estimate
    least_k: int
    k: int
    cap: int
    success: Estimate
    calls: Estimate
    tokens_in: Estimate
    tokens_out: Estimate
    cost: Estimate
    seconds: Estimate
    members: list[MemberShare]
    hard_steps: list[HardStep]
    steps_per_call: list[CallSize]
    best_steps_per_call: int
    spent: Spent
    notes: list[str]

    @property
    def promising(self) -> bool:
        """Whether the target can be met as far as the sample shows: k is large enough and no sampled step is systematically wrong."""
        return self.k >= self.least_k and not any(step.systematic for step in self.hard_steps)


@dataclass(frozen=True, slots=True)
class Beside:
    """A figure that was forecast (`value`, with the ends of its interval) and what came: a number, or for "right" the verdict, None where
    nobody could check. `within` is whether a number lies in the interval."""

    name: str
    value: float
    low: float
    high: float
    came: float | bool | None
    within: bool | None


def sure(probability: float) -> str:
    """As text; never rounded to certainty."""
    return f"{probability:.5f}" if probability < 0.999995 else "> 0.99999"


def beside(forecast: Mapping[str, Any], came: Mapping[str, Any]) -> list[Beside]:
    """A forecast, as it was kept with its run, beside an outcome's figures; without cost where nothing had a price."""
    pairs = [("right", "success", "correct"), ("samples", "calls", "samples")]
    pairs += [(name.replace("_", " "), name, name) for name in ("tokens_in", "tokens_out", "cost", "seconds")]
    found: list[Beside] = []
    for name, key, figure in pairs:
        each, value = forecast[key], came[figure]
        if name != "cost" or each["high"]:
            within = None if name == "right" else each["low"] <= value <= each["high"]
            found.append(Beside(name, each["value"], each["low"], each["high"], value, within))
    return found
