"""The engine: ask, vote, journal, execute."""

from keystep.run.ask import Answer, Sampling
from keystep.run.budget import Budget
from keystep.run.flags import Flag, Mismatch, TooLong, Unsure
from keystep.run.journal import Journal
from keystep.run.many import Many, ManyOutcome
from keystep.run.procedure import Procedure, Work
from keystep.run.run import Context, Outcome, Run
from keystep.run.vote import AheadBy, First, Majority

__all__ = [
    "AheadBy",
    "Answer",
    "Budget",
    "Context",
    "First",
    "Flag",
    "Journal",
    "Majority",
    "Many",
    "ManyOutcome",
    "Mismatch",
    "Outcome",
    "Procedure",
    "Run",
    "Sampling",
    "TooLong",
    "Unsure",
    "Work",
]
