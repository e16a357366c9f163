"""The journal's tables, and how a database comes to have them: numbered migrations, applied when it is opened."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy import Column, Float, Integer, MetaData, String, Table, Text

metadata = MetaData()

runs = Table(
    "runs", metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("status", String(20), nullable=False),  # running, stopped, finished
    Column("why", Text),  # why it stopped
    Column("spec", Text, nullable=False),  # JSON: how the command line builds the work again
    Column("identity", Text, nullable=False),  # JSON: what decides the results
    Column("started", Float, nullable=False),  # seconds since the epoch
    Column("updated", Float, nullable=False),
    Column("seconds", Float, nullable=False),  # time spent running, all attempts together
    Column("calls", Integer, nullable=False),  # samples drawn, also those of steps that never closed; as of the last sync
    Column("result", Text),  # JSON
    Column("owner", String(200)),  # host:pid of the process that runs it
    Column("lease", Float, nullable=False),  # until when the owner holds it
)  # fmt: skip
scopes = Table(
    "scopes", metadata,
    Column("id", Integer, primary_key=True),
    Column("run", String(64), nullable=False),
    Column("path", String(1000), nullable=False),  # where in the run: "0" is the first thing it executes, "0/fetch" a step of that
    Column("at", Integer, nullable=False),  # for a procedure: the step that `state` stands before
    Column("state", Text),  # JSON
    sa.UniqueConstraint("run", "path"),
)  # fmt: skip
steps = Table(
    "steps", metadata,
    Column("scope", Integer, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("name", Text),  # a plan's step has one
    Column("skill", Text),
    Column("answer", Text, nullable=False),  # JSON
    Column("samples", Integer, nullable=False),
    Column("flagged", Integer, nullable=False),
    Column("candidates", Text),  # JSON {key: votes}; only where more than one got votes
    Column("tokens_in", Integer, nullable=False),
    Column("tokens_out", Integer, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("cost", Float, nullable=False),
    sqlite_with_rowid=False,
)  # fmt: skip
samples = Table(
    "samples", metadata,
    Column("scope", Integer, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("idx", Integer, primary_key=True),
    Column("text", Text, nullable=False),
    Column("key", Text),  # canonical JSON of the parsed answer
    Column("flag", Text),
    Column("model", Text, nullable=False),
    Column("tokens_out", Integer, nullable=False),
    Column("logprob", Float),
    sqlite_with_rowid=False,
)  # fmt: skip
undecided = Table(
    "undecided", metadata,  # votes that ended without a winner, for a person to settle
    Column("scope", Integer, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("step", Text, nullable=False),
    Column("ledger", Text, nullable=False),  # JSON of the StepTrace
    Column("decision", Text),  # JSON of the answer a person gave
)  # fmt: skip

rows = Table(
    "rows", metadata,  # of a run over many inputs
    Column("run", String(64), primary_key=True),
    Column("row", Integer, primary_key=True),
    Column("scope", Integer, nullable=False),
    Column("status", String(20), nullable=False),  # running, stopped (with the run), died (with the process), failed, finished
    Column("crashes", Integer, nullable=False),  # how often it died or raised, one after the other at the same step
    Column("at", Integer, nullable=False),  # the step of its last crash; -1: none
    Column("correct", Integer),  # 0 or 1 of a finished one that could be checked
    # Sums over the steps of one that finished or failed, so that a resume need not read them again.
    *(Column(name, Integer, nullable=False, default=0) for name in ("steps", "sampled", "samples", "flagged", "tokens_in", "tokens_out")),
    Column("cost", Float, nullable=False, default=0.0),
    Column("result", Text),  # JSON: its line in the results file
)  # fmt: skip


def _first(connection: sa.Connection) -> None:
    metadata.create_all(connection, [runs, scopes, steps, samples, undecided])


def _second(connection: sa.Connection) -> None:
    metadata.create_all(connection, [rows])


MIGRATIONS: tuple[Callable[[sa.Connection], None], ...] = (_first, _second)  # number n brings the database from version n to n + 1
