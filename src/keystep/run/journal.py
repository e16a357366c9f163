"""The journal: what a run has decided, on disk, so that nothing decided is ever asked again.

SQLAlchemy Core over SQLite (WAL). Rows are append-only and small. Two times matter:

- *written*: every decided step is appended to the write-ahead log at once, before the next one is asked. It survives the death of the
  process at any instant.
- *synced*: every 50 ms or 256 steps, whichever comes first, one commit is made with synchronous=FULL, which forces the log to the disk;
  it also stores where every running procedure stands. What is synced survives the loss of power. `synchronous="NORMAL"` leaves the
  forcing to SQLite's checkpoints; `group=1` forces every step.

So a resume reads one stored state and at most the steps behind the last sync, never the whole log.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from keystep.errors import BadInput, Busy, JournalError
from keystep.run.faults import point
from keystep.run.tables import MIGRATIONS, rows, runs, samples, scopes, steps, undecided

SYNC_SECONDS, SYNC_STEPS = 0.05, 256
SUMS = ("steps", "sampled", "samples", "flagged", "tokens_in", "tokens_out", "cost")
LEASE_SECONDS = 15.0


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


_ROW = [steps.c[name] for name in Row.__slots__]


def _row(values: Any) -> Row:
    seq, name, skill, answer, drawn, flagged, candidates, *rest = values
    return Row(seq, name, skill, json.loads(answer), drawn, flagged, json.loads(candidates) if candidates else None, *rest)


def dumps(value: Any, field: str = "answer") -> str:
    """Canonical JSON: keys sorted, no blanks. It is what votes are counted by and what the journal stores."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadInput(f"is not JSON ({error})", field=field, value=value, mend="return numbers, strings, lists and dicts only") from None


class Journal:
    """A journal database; `url` is a path or a database URL (`sqlite:///runs.db`), None keeps it in memory.

    Raises:
        JournalError: it cannot be opened, is no journal, or was written by a newer keystep.
    """

    def __init__(self, url: str | Path | None = None, *, synchronous: str = "FULL", group: int = SYNC_STEPS) -> None:
        if synchronous not in ("FULL", "NORMAL"):
            raise BadInput("is FULL or NORMAL", field="synchronous", value=synchronous)
        if group < 1:
            raise BadInput("is at least 1", field="group", value=group)
        self.url = str(url or "sqlite://")
        self._full, self._group = synchronous == "FULL", group
        self._unsynced = 0
        self._last_sync = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None  # the one whose timers sync and renew the lease
        self._timer: asyncio.TimerHandle | None = None
        self._stands: dict[int, tuple[int, Any]] = {}  # procedures that moved since the last sync
        self._held: str | None = None
        self._spent: Callable[[], tuple[float, int]] = lambda: (0.0, 0)
        try:
            where = sa.make_url(self.url) if "://" in self.url else sa.URL.create("sqlite", database=self.url)
            self._memory = where.database in (None, "", ":memory:")
            # In memory there is one connection only, whichever thread asks (`run_sync` in a notebook takes a thread of its own).
            lone: dict[str, Any] = {"poolclass": sa.StaticPool, "connect_args": {"check_same_thread": False}}
            self._engine = sa.create_engine(where, **(lone if self._memory and where.drivername == "sqlite" else {}))
        except (sa.exc.ArgumentError, ImportError, sa.exc.NoSuchModuleError) as error:
            raise BadInput(f"is not a database URL ({error})", field="journal", value=str(url), mend="write sqlite:///runs.db") from None
        if self._engine.dialect.name != "sqlite":
            raise BadInput("only SQLite journals are supported", field="journal", value=str(url), mend="write sqlite:///runs.db")
        try:
            # One connection in autocommit: every statement is its own transaction, appended to the log before the call returns.
            self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            self._pragma("journal_mode=WAL")
            self._pragma("synchronous=NORMAL")
            self._pragma("busy_timeout=5000")
            self._migrate()
        except SQLAlchemyError as error:
            raise self._failed(error) from None
        self._insert_step = str(steps.insert().compile(self._engine))
        self._insert_sample = str(samples.insert().compile(self._engine))

    def _pragma(self, text: str) -> None:
        self._connection.exec_driver_sql(f"PRAGMA {text}")

    def _migrate(self) -> None:
        version = int(self._connection.exec_driver_sql("PRAGMA user_version").scalar_one())
        if version > len(MIGRATIONS):
            raise JournalError("was written by a newer keystep", field="journal", value=self.url, mend="upgrade keystep")
        if version == 0 and sa.inspect(self._connection).get_table_names():
            raise JournalError("is a database, but not a journal", field="journal", value=self.url, mend="name another file")
        for number in range(version, len(MIGRATIONS)):
            with self._transaction():
                MIGRATIONS[number](self._connection)
                self._pragma(f"user_version={number + 1}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """BEGIN IMMEDIATE … COMMIT on a connection that otherwise commits every statement."""
        try:
            self._connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.exec_driver_sql("COMMIT")
            except BaseException:
                with suppress(SQLAlchemyError):  # after some failures SQLite has rolled back itself
                    self._connection.exec_driver_sql("ROLLBACK")
                raise
        except SQLAlchemyError as error:
            raise self._failed(error) from None

    def _failed(self, error: Exception) -> JournalError:
        reason = str(error.orig if isinstance(error, DBAPIError) and error.orig else error)
        return JournalError(
            f"the journal cannot be used: {reason}", field="journal", value=self.url, mend="check the path, rights and free space"
        )

    def _run(self, statement: sa.Executable) -> sa.CursorResult[Any]:
        try:
            return self._connection.execute(statement)
        except SQLAlchemyError as error:
            raise self._failed(error) from None

    # runs

    def begin(self, id: str, name: str, spec: Any, identity: Any) -> None:
        """Note a new run."""
        now = time.time()
        row = {"id": id, "name": name, "status": "running", "spec": dumps(spec), "identity": dumps(identity), "started": now}
        if self.run(id, missing_ok=True):
            raise BadInput("the journal has a run of this name", field="run", value=id, mend="resume it, or choose another name")
        self._run(runs.insert().values(**row, updated=now, seconds=0.0, calls=0, lease=0.0))

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

    def widen(self, id: str, identity: Any) -> None:
        """Store the identity of a run that goes on to more work."""
        self._run(runs.update().where(runs.c.id == id).values(identity=dumps(identity)))

    def acquire(self, id: str, spent: Callable[[], tuple[float, int]]) -> None:
        """Take the run's lease; `spent` tells (seconds, samples drawn) so far and is stored at every sync.

        Raises:
            Busy: a living process holds it, or this journal object is in use by another run.
        """
        if self._held not in (None, id):
            raise Busy("this journal object is in use by another run", field="run", value=self._held, mend="open the journal a second time")
        with self._transaction():
            row = self.run(id)
            if row["owner"] and row["owner"] != _me() and row["lease"] > time.time() and not _is_dead(row["owner"]):
                raise Busy("another process is running this", field="run", value=id, mend=f"wait for {row['owner']} to end, or stop it")
            self._run(
                runs.update().where(runs.c.id == id).values(owner=_me(), lease=time.time() + LEASE_SECONDS, status="running", why=None)
            )
        self._held, self._spent = id, spent
        self.attend()

    def attend(self) -> None:
        """Sync in time, and renew the lease while a step takes long, on the running loop (every `run_sync` has one of its own)."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._timer = loop, None
            loop.call_later(LEASE_SECONDS / 3, self._renew, loop)

    def _renew(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._held is None or loop is not self._loop:
            self._loop = None if loop is self._loop else self._loop
            return
        self.sync()
        loop.call_later(LEASE_SECONDS / 3, self._renew, loop)

    def end(self, status: str, *, why: str | None = None, result: Any = None) -> None:
        """Sync, store the outcome and let the lease go."""
        if self._held is None:
            return
        self.sync()
        point("before-finish")
        self._run(rows.update().where(rows.c.run == self._held, rows.c.status == "running").values(status="stopped"))
        values = {"status": status, "why": why, "owner": None, "lease": 0.0, "updated": time.time()}
        self._run(runs.update().where(runs.c.id == self._held).values(**values, result=None if result is None else dumps(result)))
        self._held = None

    # scopes and steps

    def open_scope(self, run: str, path: str) -> tuple[int, int, Any]:
        """(id, at, state) of a scope, made if it is new (at 0, state None)."""
        found = self._run(sa.select(scopes.c.id, scopes.c.at, scopes.c.state).where(scopes.c.run == run, scopes.c.path == path)).first()
        if found:
            return found.id, found.at, None if found.state is None else json.loads(found.state)
        key = self._run(scopes.insert().values(run=run, path=path, at=0)).inserted_primary_key
        assert key is not None
        return int(key[0]), 0, None

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

    def put(self, scope: int, seq: int, row: Sequence[Any], kept: Sequence[Sequence[Any]] = (), stands: Any = None) -> None:
        """Append one decided step; it is written when this returns.

        `row` is (name, skill, answer JSON, samples, flagged, candidates JSON, tokens in, tokens out, seconds, cost); `kept` are its samples
        as (idx, text, key, flag, model, tokens out, logprob). `stands` is a procedure's state after the step; it must not change until
        the next `put` of this scope.
        """
        point("before-write")
        with self._transaction() if kept else nullcontext():
            for sample in kept:
                self._append(self._insert_sample, (scope, seq, *sample))
            self._append(self._insert_step, (scope, seq, *row))
        point("after-write")
        if stands is not None:
            self._stands[scope] = (seq + 1, stands)
        self._unsynced += 1
        if self._unsynced >= self._group or time.monotonic() - self._last_sync > SYNC_SECONDS:
            self.sync()
            return
        self.attend()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SYNC_SECONDS, self._timed_sync)

    def _append(self, statement: str, row: tuple[Any, ...]) -> None:
        try:
            self._connection.exec_driver_sql(statement, row)
        except SQLAlchemyError as error:
            raise self._failed(error) from None

    def _timed_sync(self) -> None:
        self._timer = None
        self.sync()

    def sync(self) -> None:
        """Force all written steps to the disk, with where every procedure stands.

        Raises:
            Busy: another process has taken the run over, because this one was silent for longer than its lease.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._last_sync = time.monotonic()
        self._unsynced = 0
        if self._held is None:
            return
        point("before-sync")
        seconds, calls = self._spent()
        now = time.time()
        mine = runs.update().where(runs.c.id == self._held, runs.c.owner == _me())
        if self._full:
            self._pragma("synchronous=FULL")
        with self._transaction():
            if not self._run(mine.values(updated=now, lease=now + LEASE_SECONDS, seconds=seconds, calls=calls)).rowcount:
                lost, self._held = self._held, None
                raise Busy("another process has taken this run over", field="run", value=lost, mend="let that one end")
            for scope, (at, state) in self._stands.items():
                self._run(scopes.update().where(scopes.c.id == scope).values(at=at, state=dumps(state, "state")))
        self._pragma("synchronous=NORMAL")
        self._stands.clear()
        point("after-sync")

    def rows(self, scope: int, since: int = 0) -> Iterator[Row]:
        """The journaled steps of a scope from number `since` on, in order, read as they are asked for."""
        query = sa.select(*_ROW).where(steps.c.scope == scope, steps.c.seq >= since).order_by(steps.c.seq)
        # A connection of its own, so that reading a million rows does not stand in the way of writing; memory has only one.
        if self._memory:
            yield from map(_row, self._run(query).all())
            return
        try:
            with self._engine.connect() as reader:
                yield from map(_row, reader.execution_options(yield_per=1000).execute(query))
        except SQLAlchemyError as error:
            raise self._failed(error) from None

    def count(self, scope: int) -> int:
        """How many steps of a scope are journaled."""
        return int(self._run(sa.select(sa.func.count()).where(steps.c.scope == scope)).scalar_one())

    def totals(self, run: str) -> dict[str, float]:
        """Sums over all journaled steps: steps, sampled (those that were), samples, flagged, tokens_in, tokens_out, cost."""
        summed = (rows.c.run == run, rows.c.status.in_(("finished", "failed")))
        ended = self._run(sa.select(*(sa.func.coalesce(sa.func.sum(rows.c[name]), 0).label(name) for name in SUMS)).where(*summed))
        rest = _sums().join(scopes, steps.c.scope == scopes.c.id).where(scopes.c.run == run)
        rest = rest.where(scopes.c.id.not_in(sa.select(rows.c.scope).where(*summed)))
        other = self._run(rest).mappings().one()
        return {name: value + other[name] for name, value in ended.mappings().one().items()}

    def trace(self, run: str, limit: int | None = None) -> Iterator[tuple[str, Row]]:
        """(scope path, step) of the run's journaled steps, those with most samples first when `limit` is given, else in order."""
        if limit is None:
            for place in self._run(sa.select(scopes.c.id, scopes.c.path).where(scopes.c.run == run).order_by(scopes.c.id)).all():
                yield from ((place.path, row) for row in self.rows(place.id))
            return
        query = sa.select(scopes.c.path, *_ROW).join(scopes, steps.c.scope == scopes.c.id).where(scopes.c.run == run)
        for found in self._run(query.order_by(steps.c.samples.desc(), steps.c.scope, steps.c.seq).limit(limit)):
            yield found[0], _row(found[1:])

    def samples(self, scope: int, seq: int) -> list[Mapping[str, Any]]:
        """The kept samples of a step, as dicts of the `samples` table."""
        return [dict(row) for row in self._run(sa.select(samples).where(samples.c.scope == scope, samples.c.seq == seq)).mappings()]

    # rows of a run over many inputs

    def row_states(self, run: str) -> dict[int, tuple[str, int, int, int]]:
        """(status, crashes, at, scope) of the run's rows that were begun, in order."""
        query = sa.select(rows.c.row, rows.c.status, rows.c.crashes, rows.c.at, rows.c.scope).where(rows.c.run == run).order_by(rows.c.row)
        return {found.row: (found.status, found.crashes, found.at, found.scope) for found in self._run(query)}

    def begin_row(self, run: str, row: int, path: str) -> int:
        """Note that a row is under way, new or once more; gives the scope that is its place."""
        scope, _, _ = self.open_scope(run, path)
        if not self._run(rows.update().where(rows.c.run == run, rows.c.row == row).values(status="running")).rowcount:
            self._run(rows.insert().values(run=run, row=row, scope=scope, status="running", crashes=0, at=-1))
        return scope

    def bury_row(self, run: str, row: int, crashes: int, at: int) -> None:
        """Note that a row was under way when its process died."""
        self._run(rows.update().where(rows.c.run == run, rows.c.row == row).values(status="died", crashes=crashes, at=at))

    def end_row(
        self, run: str, row: int, status: str, sums: Mapping[str, float], line: str, *, correct: bool | None, crashes: int, at: int
    ) -> None:
        """Note that a row has finished or failed, with the sums over its steps and its line in the results file."""
        point("before-write")
        right = None if correct is None else int(correct)
        values = {"status": status, "correct": right, "crashes": crashes, "at": at, "result": line, **sums}
        self._run(rows.update().where(rows.c.run == run, rows.c.row == row).values(**values))
        point("after-write")

    def row_sums(self, scope: int) -> dict[str, float]:
        """`totals` over the steps of one scope."""
        return dict(self._run(_sums().where(steps.c.scope == scope)).mappings().one())

    def row_verdicts(self, run: str) -> dict[bool | None, int]:
        """How many finished rows are right (True), wrong (False), or could not be checked (None)."""
        query = sa.select(rows.c.correct, sa.func.count().label("n")).where(rows.c.run == run, rows.c.status == "finished")
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

    def note_undecided(self, scope: int, seq: int, step: str, ledger: Any) -> None:
        with self._transaction():
            self._run(undecided.delete().where(undecided.c.scope == scope, undecided.c.seq == seq))
            self._run(undecided.insert().values(scope=scope, seq=seq, step=step, ledger=dumps(ledger)))

    def undecided(self, run: str) -> list[dict[str, Any]]:
        """The run's steps that wait for a person's decision, or have it."""
        query = sa.select(undecided).join(scopes, undecided.c.scope == scopes.c.id).where(scopes.c.run == run)
        rows = self._run(query.order_by(undecided.c.scope, undecided.c.seq)).mappings()
        return [{**row, "ledger": json.loads(row["ledger"])} for row in rows]

    def decide(self, run: str, step: str, answer: Any) -> None:
        """Store a person's answer for an undecided step; the resumed run takes it instead of asking."""
        waiting = {row["step"]: row for row in self.undecided(run)}
        if step not in waiting:
            mend = f"undecided are: {', '.join(waiting) or 'none'}"
            raise BadInput("is not an undecided step of this run", field="step", value=step, mend=mend)
        where = (undecided.c.scope == waiting[step]["scope"]) & (undecided.c.seq == waiting[step]["seq"])
        self._run(undecided.update().where(where).values(decision=dumps(answer)))

    def decision(self, scope: int, seq: int) -> str | None:
        """The JSON of the person's answer for this step, if there is one."""
        query = sa.select(undecided.c.decision).where(undecided.c.scope == scope, undecided.c.seq == seq)
        return self._run(query).scalar()

    # taking runs out

    def is_held(self, row: Mapping[str, Any]) -> bool:
        """Whether a living process, this one included, holds the run of this row."""
        return bool(row["owner"]) and row["lease"] > time.time() and not _is_dead(row["owner"])

    def delete(self, id: str) -> None:
        """Delete a run with all that belongs to it.

        Raises:
            Busy: a living process holds it.
        """
        with self._transaction():
            row = self.run(id)
            if self.is_held(row):
                raise Busy("a process is running this", field="run", value=id, mend=f"wait for {row['owner']} to end, or stop it")
            places = sa.select(scopes.c.id).where(scopes.c.run == id)
            for table in (samples, steps, undecided):
                self._run(table.delete().where(table.c.scope.in_(places)))
            self._run(rows.delete().where(rows.c.run == id))
            self._run(scopes.delete().where(scopes.c.run == id))
            self._run(runs.delete().where(runs.c.id == id))

    def vacuum(self) -> None:
        """Give the space of what was deleted back.

        Raises:
            JournalError: another process is using the journal.
        """
        try:
            self._connection.exec_driver_sql("VACUUM")
            self._pragma("wal_checkpoint(TRUNCATE)")
        except SQLAlchemyError as error:
            raise self._failed(error) from None

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._held = None
        self._connection.close()
        self._engine.dispose()


def _sums() -> sa.Select[Any]:
    """SUMS over steps."""
    sums = {name: sa.func.sum(steps.c[name]) for name in SUMS[2:]}
    sums["sampled"] = sa.func.sum(sa.case((steps.c.samples > 0, 1), else_=0))
    return sa.select(sa.func.count().label("steps"), *(sa.func.coalesce(value, 0).label(name) for name, value in sums.items()))


def _read(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {**row, **{name: json.loads(row[name]) for name in ("spec", "identity", "result") if row[name] is not None}}


def _me() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


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
