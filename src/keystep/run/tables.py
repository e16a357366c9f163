"""The journal's tables, and how a database comes to have them: numbered migrations, applied when it is opened. A
new database gets them as they are now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy import BigInteger, Column, Float, Integer, MetaData, String, Table, Text

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
    Column("calls", BigInteger, nullable=False),  # samples drawn, also those of steps that never closed; as of the last sync
    *(Column(name, BigInteger, nullable=False, server_default="0") for name in ("tokens_in", "tokens_out")),  # of those samples
    Column("cost", Float, nullable=False, server_default="0"),  # likewise
    Column("steps", BigInteger, nullable=False, server_default="0"),  # journaled in all scopes, as of the last sync
    Column("result", Text),  # JSON
    Column("owner", String(200)),  # host:pid of the process that runs it
    Column("lease", Float, nullable=False),  # until when the owner holds it
    Column("fence", BigInteger, nullable=False, server_default="0"),  # how often it was taken; only the last taker writes
)  # fmt: skip
scopes = Table(
    "scopes", metadata,
    Column("id", Integer, primary_key=True),
    Column("run", String(64), nullable=False),
    Column("path", String(1000), nullable=False),  # where in the run: "0" is the first thing it executes, "0/fetch" a step of that
    Column("at", Integer, nullable=False),  # for a procedure: the step that `state` stands before
    Column("state", Text),  # JSON
    Column("crc", BigInteger),  # of id, at and state
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
    Column("crc", BigInteger),  # `step_checksum` of the columns above
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
    *(
        Column(name, BigInteger, nullable=False, default=0)
        for name in ("steps", "sampled", "samples", "flagged", "tokens_in", "tokens_out")
    ),
    Column("cost", Float, nullable=False, default=0.0),
    Column("result", Text),  # JSON: its line in the results file
)  # fmt: skip


intents = Table(
    "intents", metadata,  # effects outside that were about to happen; one that is done has a step of the same scope and number
    Column("scope", Integer, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("key", Text, nullable=False),  # the idempotency key that the effect was given
    Column("since", Float, nullable=False),  # seconds since the epoch
    sqlite_with_rowid=False,
)  # fmt: skip


def create(connection: sa.Connection) -> None:
    """All tables of the present version, in an empty database."""
    metadata.create_all(connection)


def _rows(connection: sa.Connection) -> None:
    metadata.create_all(connection, [rows])


def _fences(connection: sa.Connection) -> None:
    _add(connection, runs.c.steps, runs.c.fence, scopes.c.crc, steps.c.crc)
    metadata.create_all(connection, [intents])


def _spent(connection: sa.Connection) -> None:
    _add(connection, runs.c.tokens_in, runs.c.tokens_out, runs.c.cost)


def _add(connection: sa.Connection, *columns: sa.Column[Any]) -> None:
    for column in columns:
        declared = sa.schema.CreateColumn(column).compile(connection)
        connection.exec_driver_sql(f"ALTER TABLE {column.table.name} ADD COLUMN {declared}")


# Number n brings a database of version n + 1 to version n + 2.
MIGRATIONS: tuple[Callable[[sa.Connection], None], ...] = (_rows, _fences, _spent)
VERSION = len(MIGRATIONS) + 1
