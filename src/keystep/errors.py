"""What can go wrong, by name. Every error says which field, which value and what mends it."""

from __future__ import annotations

from typing import Any

_LONGEST = 120  # characters of a value that a message shows


class KeystepError(Exception):
    """Base of all keystep errors.

    `field` names what is wrong (a dotted path into the user's file, or a flag), `value` is what stood there, `mend` how to put it right.
    """

    exit_code = 2

    def __init__(self, problem: str, *, field: str = "", value: Any = None, mend: str = "") -> None:
        self.problem, self.field, self.value, self.mend = problem, field, value, mend
        shown = "" if value is None else f" (got {repr(value)[:_LONGEST]})"
        super().__init__(f"{field + ': ' if field else ''}{problem}{shown}{'. ' + mend if mend else ''}")


class BadInput(KeystepError):
    """A file, flag or argument that cannot be used as it stands.

    No `ValueError`: pydantic would wrap that into an error of its own where a noun's validator raises it.
    """


class Refused(BadInput):
    """A model was given a prompt it was not made for and says so instead of answering noise."""


class TooWeak(BadInput):
    """A model is not right often enough at single steps for a vote to carry a whole run; found before the run began."""


class MissingExtra(KeystepError, ImportError):
    """A part of keystep needs a library that is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional library", mend=f"pip install 'keystep[{extra}]'")


class ChangedWork(BadInput):
    """A run cannot be resumed because its procedure, prompts, models or sampling are not those it began with."""


class Busy(KeystepError):
    """Another process holds the run."""

    exit_code = 3


class JournalError(KeystepError):
    """The journal cannot be read or written."""

    exit_code = 3


class ModelError(KeystepError):
    """A model could not be reached or answered nothing usable, after all retries."""

    exit_code = 3


class Stopped(KeystepError):
    """The run stopped before its end and can be resumed."""

    exit_code = 3


class BudgetSpent(Stopped):
    """A budget (calls, tokens, cost, seconds) is used up."""


class Undecided(Stopped):
    """A step's vote reached its cap without a winner, or had no valid answer at all.

    `ledger` is the step's `keystep.trace.StepTrace`: every candidate with its votes, every flag.
    """

    def __init__(self, problem: str, *, step: str, ledger: Any, mend: str = "") -> None:
        super().__init__(problem, field=f"step {step}", mend=mend or "settle it with `keystep decide RUN STEP ANSWER`")
        self.step, self.ledger = step, ledger


class StepFailed(Stopped):
    """No skill could do a step: all were tried, and each was flagged, undecided, failed its check or raised."""
