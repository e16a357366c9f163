"""Red flags: reasons to throw a sample away instead of counting or repairing it (MAKER, arXiv 2511.09030, section on red-flagging).

A flag is any callable that takes a `keystep.lm.Sample` and returns the reason, or None to let it pass. Those here are dataclasses, so
that the journal can tell whether a run is resumed under the same flags.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from keystep.errors import BadInput
from keystep.lm.base import Sample

RedFlag = Callable[[Sample], str | None]


class Flag(Exception):
    """Raised by a parser: this text is not a valid answer, for this reason."""


@dataclass(frozen=True, slots=True)
class TooLong:
    """More than `tokens` output tokens, or cut off by the model's own limit."""

    tokens: int

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise BadInput("must be at least 1", field="too_long", value=self.tokens)

    def __call__(self, sample: Sample) -> str | None:
        return "too long" if sample.tokens_out > self.tokens or sample.finish == "length" else None


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The text does not contain the regular expression."""

    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise BadInput(f"is not a regular expression: {error}", field="pattern", value=self.pattern) from None

    def __call__(self, sample: Sample) -> str | None:
        return None if re.search(self.pattern, sample.text) else "malformed"


@dataclass(frozen=True, slots=True)
class Unsure:
    """Mean log-probability per output token below `logprob` (natural; 0 is certain). Samples without one pass."""

    logprob: float

    def __post_init__(self) -> None:
        if self.logprob > 0:
            raise BadInput("a log-probability is at most 0", field="logprob", value=self.logprob)

    def __call__(self, sample: Sample) -> str | None:
        if sample.logprob is None or not sample.tokens_out:
            return None
        return "unsure" if sample.logprob / sample.tokens_out < self.logprob else None
