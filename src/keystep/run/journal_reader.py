"""The reading side of the journal: runs, where they stand, their steps, the rows of a table, and what waits for a person.

Nothing here writes, so every process may read a journal that another one is writing to. What is read is checked against its checksum.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from keystep.errors import BadInput, JournalError
from keystep.run.canonical import checksum, dumps, step_checksum
from keystep.run.database import ERRORS, NOW, Database
from keystep.run.tables import rows, runs, samples, scopes, steps, undecided

T = TypeVar("T")

SUMS = ("steps", "sampled", "samples", "flagged", "tokens_in", "tokens_out", "cost")
DAMAGED = "put a copy of the journal back, or begin a new run"
PAGE = 1000  # rows read at a time
CHUNK = runs.c.spec.startswith('{"chunk_of":')  # of the runs that have the chunks of another (`keystep.run.cluster`)


@dataclass(frozen=True, slots=True)
class Row:
    """One journaled step."""

    seq: int
    name: str | None
    skill: str | None
    answer: Any
    samples: int
    flagged: int
    candidates: dict[str, int] | None
    tokens_in: int
    tokens_out: int
    seconds: float
    cost: float


_ROW = [*(steps.c[name] for name in Row.__slots__), steps.c.scope, steps.c.crc]


def _row(values: Any) -> Row:
    *row, scope, crc = values
    seq, name, skill, answer, drawn, flagged, candidates, *rest = row
    if crc not in (None, step_checksum(scope, *row)) and crc != checksum(scope, seq, name, answer):  # as earlier versions took it
        raise JournalError("a journaled step is damaged", field=f"step {seq}", value=answer, mend=DAMAGED)
    return Row(seq, name, skill, json.loads(answer), drawn, flagged, json.loads(candidates) if candidates else None, *rest)


class JournalReader:
    """Reads a journal through `database`."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def _do(self, work: Callable[[], T]) -> T:
        """Database work that may be done again: once more after a server that went away has come back.

        Raises:
            JournalError: it cannot be done.
        """
        while True:
            try:
                return work()
            except ERRORS as error:
                self._mend(error)

    def _mend(self, error: Exception) -> None:
        """Connect again where the server went away; anything else is raised."""
        if not self.database.is_away(error):
            raise self.database.failed(error) from None
        self.database.reconnect()

    def _run(self, statement: sa.Executable) -> sa.Result[Any]:
        """What a statement finds, read whole."""

        def work() -> sa.Result[Any]:
            result = self.database.run(statement)
            return result.freeze()() if result.returns_rows else result

        return self._do(work)

    # runs

    def run(self, id: str, missing_ok: bool = False) -> dict[str, Any]:
        """The run's row as a dict, JSON columns read."""
        found = self._run(sa.select(runs).where(runs.c.id == id)).mappings().first()
        if found is None:
            if missing_ok:
                return {}
            raise BadInput("the journal has no such run", field="run", value=id, mend="`keystep runs` lists them")
        return _read(found)

    def all_runs(self) -> list[dict[str, Any]]:
        """All runs, newest first."""
        return [_read(row) for row in self._run(sa.select(runs).order_by(runs.c.started.desc(), runs.c.id)).mappings()]

    def chunks(self, id: str) -> list[str]:
        """The runs that have the chunks of a run on a cluster (`keystep.run.cluster`), in order."""
        return list(self._run(sa.select(runs.c.id).where(_is_chunk_of(id)).order_by(runs.c.id)).scalars())

    def is_held(self, row: Mapping[str, Any]) -> bool:
        """Whether a living process, this one included, holds the run of this row."""
        now = next(self.select(sa.select(NOW)))[0] if self.database.remote else time.time()  # also asked for by threads of a live view
        return is_held(row, float(now))

    def now(self) -> float:
        """Seconds since the epoch by the journal's clock, which its leases go by."""
        return self._do(self.database.now)

    # scopes and steps

    def places(self, run: str) -> dict[str, int]:
        """The scopes of a run by their paths."""
        return {found.path: found.id for found in self._run(sa.select(scopes.c.path, scopes.c.id).where(scopes.c.run == run))}

    def procedures(self, run: str, path: str) -> list[int]:
        """The scope of the procedure at `path`, or those of the procedures that it was taken apart into, in the order of its plan."""
        places = self.places(run)

        def below(path: str) -> Iterator[int]:
            first = next(self.rows(places[path]), None)
            if first is None or first.name is None:  # no plan's
                yield places[path]
                return
            for row in list(self.rows(places[path])):
                if (part := f"{path}/{row.name}/{row.skill}/0") in places:
                    yield from below(part)

        return list(below(path))

    def rows(self, scope: int, since: int = 0) -> Iterator[Row]:
        """The journaled steps of a scope from number `since` on, in order, read as they are asked for.

        Raises:
            JournalError: one of them is damaged.
        """
        query = sa.select(*_ROW).where(steps.c.scope == scope).order_by(steps.c.seq).limit(PAGE)
        while True:
            found = self._run(query.where(steps.c.seq >= since)).all()
            yield from map(_row, found)
            if len(found) < PAGE:
                return
            since = found[-1].seq + 1

    def select(self, statement: sa.Select[Any]) -> Iterator[sa.Row[Any]]:
        """What a statement of one's own over `keystep.run.tables` finds, read as it is asked for, from whichever thread.

        On a connection of its own, so that long reading does not stand in the way of writing; memory has only one.
        """
        if self.database.in_memory:
            yield from self._run(statement).all()
            return
        try:
            with self.database.engine.connect() as reader:
                yield from reader.execution_options(yield_per=PAGE).execute(statement)
        except ERRORS as error:
            raise self.database.failed(error) from None

    def count(self, scope: int, before: int | None = None) -> int:
        """How many steps of a scope are journaled; with `before`, of those with numbers from 0 to it."""
        within = () if before is None else (steps.c.seq >= 0, steps.c.seq < before)
        return int(self._run(sa.select(sa.func.count()).where(steps.c.scope == scope, *within)).scalar_one())

    def totals(self, *ids: str) -> dict[str, float]:
        """Sums over all journaled steps of runs: steps, sampled (those that were), samples, flagged, tokens_in, tokens_out, cost."""
        summed = (rows.c.run.in_(ids), rows.c.status.in_(("finished", "failed")))
        ended = self._run(sa.select(*(sa.func.coalesce(sa.func.sum(rows.c[name]), 0).label(name) for name in SUMS)).where(*summed))
        rest = _sums().join(scopes, steps.c.scope == scopes.c.id).where(scopes.c.run.in_(ids))
        rest = rest.where(scopes.c.id.not_in(sa.select(rows.c.scope).where(*summed)))
        other = self._run(rest).mappings().one()
        return {name: _plain(name, value) + _plain(name, other[name]) for name, value in ended.mappings().one().items()}

    def trace(self, run: str, limit: int | None = None) -> Iterator[tuple[str, Row]]:
        """(scope path, step) of the run's journaled steps, those with most samples first when `limit` is given, else in order."""
        if limit is None:
            for place in self._run(sa.select(scopes.c.id, scopes.c.path).where(scopes.c.run == run).order_by(scopes.c.id)).all():
                yield from ((place.path, row) for row in self.rows(place.id))
            return
        query = sa.select(scopes.c.path, *_ROW).join(scopes, steps.c.scope == scopes.c.id).where(scopes.c.run == run)
        for found in self._run(query.order_by(steps.c.samples.desc(), steps.c.scope, steps.c.seq).limit(limit)).all():
            yield found[0], _row(found[1:])

    def samples(self, scope: int, seq: int) -> list[Mapping[str, Any]]:
        """The kept samples of a step, as dicts of the `samples` table."""
        return [dict(row) for row in self._run(sa.select(samples).where(samples.c.scope == scope, samples.c.seq == seq)).mappings()]

    # rows of a run over many inputs

    def row_states(self, run: str) -> dict[int, tuple[str, int, int, int]]:
        """(status, crashes, at, scope) of the run's rows that were begun, in order."""
        query = sa.select(rows.c.row, rows.c.status, rows.c.crashes, rows.c.at, rows.c.scope).where(rows.c.run == run).order_by(rows.c.row)
        return {found.row: (found.status, found.crashes, found.at, found.scope) for found in self._run(query)}

    def row_sums(self, scope: int) -> dict[str, float]:
        """`totals` over the steps of one scope."""
        return {name: _plain(name, value) for name, value in self._run(_sums().where(steps.c.scope == scope)).mappings().one().items()}

    def place_sums(self, run: str, path: str) -> dict[str, float]:
        """`totals` over the steps of a place of a run and of all places below it."""
        here = sa.or_(scopes.c.path == path, scopes.c.path.startswith(f"{path}/", autoescape=True))
        query = _sums().join(scopes, steps.c.scope == scopes.c.id).where(scopes.c.run == run, here)
        return {name: _plain(name, value) for name, value in self._run(query).mappings().one().items()}

    def row_verdicts(self, *ids: str) -> dict[bool | None, int]:
        """How many finished rows of runs are right (True), wrong (False), or could not be checked (None)."""
        query = sa.select(rows.c.correct, sa.func.count().label("n")).where(rows.c.run.in_(ids), rows.c.status == "finished")
        return {None if found.correct is None else bool(found.correct): found.n for found in self._run(query.group_by(rows.c.correct))}

    def row_lines(self, run: str, status: str, *, crashes: int = 0, limit: int | None = None) -> Iterator[str]:
        """The result lines of rows of a status that crashed at least so often, in order, read as they are asked for."""
        where = (rows.c.run == run, rows.c.status == status, rows.c.crashes >= crashes)
        last, left = -1, limit
        while left is None or left > 0:
            query = sa.select(rows.c.row, rows.c.result).where(*where, rows.c.row > last).order_by(rows.c.row).limit(min(left or 500, 500))
            found = self._run(query).all()
            if not found:
                return
            yield from (each.result for each in found)
            last, left = found[-1].row, None if left is None else left - len(found)

    # steps that no vote could decide

    def undecided(self, run: str) -> list[dict[str, Any]]:
        """The run's steps that wait for a person's decision, or have it."""
        query = sa.select(undecided).join(scopes, undecided.c.scope == scopes.c.id).where(scopes.c.run == run)
        rows = self._run(query.order_by(undecided.c.scope, undecided.c.seq)).mappings()
        return [{**row, "ledger": json.loads(row["ledger"])} for row in rows]

    def decision(self, scope: int, seq: int) -> str | None:
        """The JSON of the person's answer for this step, if there is one."""
        query = sa.select(undecided.c.decision).where(undecided.c.scope == scope, undecided.c.seq == seq)
        return self._run(query).scalar()


def with_chunks(id: str) -> sa.Select[Any]:
    """The ids of a run and of those that have its chunks on a cluster."""
    return sa.select(runs.c.id).where((runs.c.id == id) | _is_chunk_of(id))


def _is_chunk_of(id: str) -> sa.ColumnElement[bool]:
    return runs.c.spec == dumps({"chunk_of": id})


def _sums() -> sa.Select[Any]:
    """SUMS over steps."""
    sums = {name: sa.func.sum(steps.c[name]) for name in SUMS[2:]}
    sums["sampled"] = sa.func.sum(sa.case((steps.c.samples > 0, 1), else_=0))
    return sa.select(sa.func.count().label("steps"), *(sa.func.coalesce(value, 0).label(name) for name, value in sums.items()))


def _read(row: Mapping[Any, Any]) -> dict[str, Any]:
    try:
        return {**row, **{name: json.loads(row[name]) for name in ("spec", "identity", "result") if row[name] is not None}}
    except (ValueError, TypeError):
        raise JournalError("the journal is damaged: a run cannot be read", field="run", value=row["id"], mend=DAMAGED) from None


def _plain(name: str, value: Any) -> Any:
    """A sum as a number of Python's: PostgreSQL gives the sum of big integers as a decimal."""
    return float(value) if name == "cost" else int(value)


def is_held(row: Mapping[Any, Any], now: float) -> bool:
    return bool(row["owner"]) and row["lease"] > now and not _is_dead(row["owner"])


def _is_dead(owner: str) -> bool:
    """Whether the owner was a process of this machine that is no more; of other machines only the lease's end tells."""
    host, _, pid = owner.rpartition(":")
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    try:  # a killed process whose parent has not asked for it yet still has a number
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:  # no Linux, or gone this moment
        return False
