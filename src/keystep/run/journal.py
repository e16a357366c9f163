"""The journal: what a run has decided, on disk, so that nothing decided is ever asked again.

Rows are append-only and small, in SQLite or PostgreSQL (`keystep.run.database`). Two times matter:

- *written*: every decided step is appended to the database's log at once, before the next one is asked. It survives the death of the
  process at any instant.
- *synced*: every 50 ms or 256 steps, whichever comes first, one commit forces the log to the disk; it also stores where every running
  procedure stands. What is synced survives the loss of power. `synchronous="NORMAL"` leaves the forcing to the database; `group=1` forces
  every step.

So a resume reads one stored state and at most the steps behind the last sync, never the whole log.

Who runs a run holds its lease, and a fencing token: the number of times it was taken. Every write checks the token in the transaction that
writes, so a process that was paused for longer than its lease, and woke up, can write nothing any more. Every step and every state has a
checksum, and a run knows how many steps it has: a journal that lost or changed any is refused, never begun anew.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from keystep.errors import BadInput, Busy, JournalError, KeystepError
from keystep.run.database import ERRORS, Database
from keystep.run.faults import point
from keystep.run.tables import intents, rows, runs, samples, scopes, steps, undecided

T = TypeVar("T")

SYNC_SECONDS, SYNC_STEPS = 0.05, 256
SUMS = ("steps", "sampled", "samples", "flagged", "tokens_in", "tokens_out", "cost")
LEASE_SECONDS = 15.0
DAMAGED = "put a copy of the journal back, or begin a new run"
PAGE = 1000  # rows read at a time


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
    seq, name, skill, answer, drawn, flagged, candidates, *rest, scope, crc = values
    if crc is not None and crc != _crc(scope, seq, name, answer):
        raise JournalError("a journaled step is damaged", field=f"step {seq}", value=answer, mend=DAMAGED)
    return Row(seq, name, skill, json.loads(answer), drawn, flagged, json.loads(candidates) if candidates else None, *rest)


def _crc(*parts: Any) -> int:
    return zlib.crc32("\x1f".join(map(str, parts)).encode())


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def dumps(value: Any, field: str = "answer") -> str:
    """Canonical JSON: keys sorted, no blanks. It is what votes are counted by and what the journal stores."""
    try:
        return _encode(value)
    except (TypeError, ValueError) as error:
        raise BadInput(f"is not JSON ({error})", field=field, value=value, mend="return numbers, strings, lists and dicts only") from None


_Put = tuple[dict[str, Any], list[dict[str, Any]]]  # a row of `steps` and its rows of `samples`


class Journal:
    """A journal; `url` is a path or a database URL (`sqlite:///runs.db`, `postgresql://user@host/database`), None keeps it in memory.

    Raises:
        BadInput: the URL is none, or of a database that is not supported.
        JournalError: it cannot be opened, is no journal, or was written by a newer keystep.
    """

    def __init__(self, url: str | Path | None = None, *, synchronous: str = "FULL", group: int = SYNC_STEPS) -> None:
        if synchronous not in ("FULL", "NORMAL"):
            raise BadInput("is FULL or NORMAL", field="synchronous", value=synchronous)
        if group < 1:
            raise BadInput("is at least 1", field="group", value=group)
        self.database = Database(str(url or "sqlite://"), full=synchronous == "FULL")
        self.url = self.database.shown
        self._group = group
        self._unsynced = 0
        self._last_sync = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None  # the one whose timers sync and renew the lease
        self._timer: asyncio.TimerHandle | None = None
        self._failure: KeystepError | None = None  # to write; whoever comes next is told
        self._stands: dict[int, tuple[int, Any]] = {}  # procedures that moved since the last sync
        self._waiting: list[_Put] = []  # steps of this turn of the loop, to be written together
        self._batch = 0  # how often such steps were written
        self._unsure: list[_Put] = []  # steps that a server's crash could lose
        self._held: str | None = None
        self._fence = 0
        self._spent: Callable[[], tuple[float, int, int]] = lambda: (0.0, 0, 0)
        self._insert_step = _fenced_insert(steps, self.database)

    def _do(self, work: Callable[[], T]) -> T:
        """Database work that may be done again: once more after a server that went away has come back.

        Raises:
            JournalError: it cannot be done.
        """
        self.write()
        while True:
            try:
                return work()
            except ERRORS as error:
                self._mend(error)

    def _mend(self, error: Exception) -> None:
        """Connect again where the server went away, with every step that it may have forgotten; anything else is raised."""
        while True:
            if not self.database.is_away(error):
                raise self.database.failed(error) from None
            self.database.reconnect()
            try:
                if self._unsure:
                    with self.database.transaction():
                        self._check_fence()
                        for table, lost in _by_table(self._unsure):
                            self.database.run(postgresql.insert(table).on_conflict_do_nothing(), lost)
                return
            except ERRORS as again:
                error = again

    def _run(self, statement: sa.Executable) -> sa.Result[Any]:
        """What a statement finds, read whole."""

        def work() -> sa.Result[Any]:
            result = self.database.run(statement)
            return result.freeze()() if result.returns_rows else result

        return self._do(work)

    def _write(self, work: Callable[[], T], *, force: bool = False) -> T:
        """Do `work` in a transaction that only the holder of the run can commit.

        Raises:
            Busy: this process does not hold the run any more.
        """

        def fenced() -> T:
            with self.database.transaction(force=force):
                self._check_fence()
                return work()

        return self._do(fenced)

    def _check_fence(self) -> None:
        mine = sa.select(runs.c.id).where(runs.c.id == self._held, runs.c.fence == self._fence)
        # Locked until the transaction ends, so that nobody takes the run over in its midst.
        if self._held is None or self.database.run(mine.with_for_update(read=True)).first() is None:
            raise self._lost()

    def _lost(self) -> Busy:
        lost, self._held = self._held, None
        return Busy("this process does not hold the run any more", field="run", value=lost, mend="let the one that took it over end")

    # runs

    def begin(self, id: str, name: str, spec: Any, identity: Any) -> None:
        """Note a new run."""
        if not 0 < len(id) <= 64:
            raise BadInput("has 1 to 64 characters", field="run", value=id, mend="choose another name")
        row = {"id": id, "name": name[:200], "status": "running", "spec": dumps(spec), "identity": dumps(identity)}
        taken = BadInput("the journal has a run of this name", field="run", value=id, mend="resume it, or choose another name")
        if self.run(id, missing_ok=True):
            raise taken
        now = self.now()
        insert = runs.insert().values(**row, started=now, updated=now, seconds=0.0, calls=0, lease=0.0)

        def work() -> None:
            with self.database.transaction():
                self.database.run(insert)

        try:
            self._do(work)
        except JournalError:
            found = self.run(id, missing_ok=True)  # another process was faster, or a server went away with its word of it
            if not found:
                raise
            if found["started"] != now:
                raise taken from None

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
        query = sa.select(runs.c.id).where(runs.c.spec == dumps({"chunk_of": id})).order_by(runs.c.id)
        return list(self._run(query).scalars())

    def widen(self, id: str, identity: Any) -> None:
        """Store the identity of a run that goes on to more work."""
        self._write(lambda: self.database.run(runs.update().where(runs.c.id == id).values(identity=dumps(identity))))

    def acquire(self, id: str, spent: Callable[[], tuple[float, int, int]]) -> None:
        """Take the run's lease; `spent` tells (seconds, samples drawn, steps) so far and is stored at every sync.

        Raises:
            Busy: a living process holds it, or this journal object is in use by another run.
        """
        if self._held not in (None, id):
            raise Busy("this journal object is in use by another run", field="run", value=self._held, mend="open the journal a second time")

        def work() -> int:
            with self.database.transaction():
                row = self.database.run(sa.select(runs).where(runs.c.id == id).with_for_update()).mappings().one()
                now = self.database.now()
                if row["owner"] != _me() and _is_held(row, now):
                    raise Busy("another process is running this", field="run", value=id, mend=f"wait for {row['owner']} to end, or stop it")
                taken = {"owner": _me(), "lease": now + LEASE_SECONDS, "status": "running", "why": None, "fence": row["fence"] + 1}
                self.database.run(runs.update().where(runs.c.id == id).values(**taken))
                return int(taken["fence"])

        self._fence = self._do(work)
        self._held, self._spent, self._failure = id, spent, None
        # What a failed write has left is not in the journal: the run goes on from what is.
        self._stands.clear()
        self._unsure.clear()
        with suppress(RuntimeError):  # without a loop the first step starts the timers
            self.attend()

    def verify(self, known: Mapping[str, Any], journaled: int) -> None:
        """See that a run which goes on has all that it had: `known` is its row, `journaled` the number of its steps.

        Raises:
            JournalError: the file is damaged, or steps are missing.
        """
        damage = self.database.damage()
        if damage is not None:
            raise JournalError(f"the journal is damaged: {damage}", field="journal", value=self.url, mend=DAMAGED)
        if journaled < known["steps"]:
            problem = f"the journal has lost steps: it has {journaled:,} of at least {known['steps']:,}"
            raise JournalError(problem, field="journal", value=self.url, mend=DAMAGED)

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
        self._timed_sync()
        loop.call_later(LEASE_SECONDS / 3, self._renew, loop)

    def end(self, status: str, *, why: str | None = None, result: Any = None) -> None:
        """Sync, store the outcome and let the lease go; who has lost the run leaves it as it is."""
        if self._failure is None:
            with suppress(Busy):
                self.sync()
        if self._held is None:
            return
        point("before-finish")
        now = time.time() if self._failure else self.now()
        values = {"status": status, "why": why, "owner": None, "lease": 0.0, "updated": now}
        outcome = None if result is None else dumps(result)

        def work() -> None:
            self.database.run(rows.update().where(rows.c.run == self._held, rows.c.status == "running").values(status="stopped"))
            self.database.run(runs.update().where(runs.c.id == self._held).values(**values, result=outcome))

        with suppress(*((KeystepError,) if self._failure else (Busy,))):  # what failed before is what the caller is being told
            self._write(work)
        self._held = None

    # scopes and steps

    def open_scope(self, run: str, path: str) -> tuple[int, int, Any]:
        """(id, at, state) of a scope, made if it is new (at 0, state None)."""
        wanted = sa.select(scopes).where(scopes.c.run == run, scopes.c.path == path)
        found = self._run(wanted).first()
        if found is None:
            try:
                return self._write(lambda: self._new_scope(run, path)), 0, None
            except JournalError:
                found = self._run(wanted).first()  # made before a server went away with its word of it
                if found is None:
                    raise
        if found.crc is not None and found.crc != _crc(found.id, found.at, found.state):
            raise JournalError("where the run stands is damaged", field="journal", value=self.url, mend=DAMAGED)
        return found.id, found.at, None if found.state is None else json.loads(found.state)

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

    def put(
        self, scope: int, seq: int, row: Sequence[Any], kept: Sequence[Sequence[Any]] = (), stands: Any = None, *, later: bool = False
    ) -> int:
        """Append one decided step. It is written when this returns, or with `later` after a `write` with the number that this gives.

        `row` is (name, skill, answer JSON, samples, flagged, candidates JSON, tokens in, tokens out, seconds, cost); `kept` are its samples
        as (idx, text, key, flag, model, tokens out, logprob). `stands` is a procedure's state after the step; it must not change until
        the next `put` of this scope.

        Raises:
            Busy: another process has taken the run over, because this one was silent for longer than its lease.
        """
        if self._failure is not None:
            raise self._failure
        step = dict(zip(_STEP, (scope, seq, *row, _crc(scope, seq, row[0], row[2])), strict=True))
        self._waiting.append((step, [dict(zip(_SAMPLE, (scope, seq, *sample), strict=True)) for sample in kept]))
        batch = self._batch
        if not later:
            self.write()
        if stands is not None:
            self._stands[scope] = (seq + 1, stands)
        self._unsynced += 1
        if self._unsynced >= self._group or time.monotonic() - self._last_sync > SYNC_SECONDS:
            self.sync()
            return batch
        self.attend()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SYNC_SECONDS, self._timed_sync)
        return batch

    def write(self, batch: int | None = None) -> None:
        """Write the steps that `put` was told to leave for later, all in one transaction; with `batch`, unless those are written already.

        Where it fails nothing more is written until the run is taken again, and everybody who waits for a step of that batch is told.
        """
        if self._failure is not None and batch == self._batch:
            raise self._failure
        if not self._waiting or batch not in (None, self._batch):
            return
        point("before-write")
        try:
            self._append(self._waiting)
        except ERRORS as error:
            if self.database.is_away(error):
                self._unsure += self._waiting
            try:
                self._mend(error)  # which has written them
            except KeystepError as failure:
                self._fail(failure)
        except KeystepError as failure:
            self._fail(failure)
        else:
            if self.database.remote:
                self._unsure += self._waiting
        self._waiting, self._batch = [], self._batch + 1
        point("after-write")

    def _fail(self, failure: KeystepError) -> NoReturn:
        self._waiting, self._failure = [], failure
        raise failure from None

    def _append(self, puts: list[_Put]) -> None:
        if len(puts) == 1 and not puts[0][1]:
            fence = {"run_": self._held, "fence_": self._fence}
            if not self.database.connection.exec_driver_sql(self._insert_step, {**puts[0][0], **fence}).rowcount:
                raise self._lost()
            return
        with self.database.transaction(written=True):
            self._check_fence()
            for table, values in _by_table(puts):
                self.database.run(table.insert(), values)

    def _timed_sync(self) -> None:
        self._timer = None
        try:
            if self._failure is None:
                self.sync()
        except KeystepError as error:
            self._failure = error

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
        if self._failure is not None:
            raise self._failure
        if self._held is None:
            return
        point("before-sync")
        self._do(self._store)
        self._stands.clear()
        self._unsure.clear()
        point("after-sync")

    def _store(self) -> None:
        seconds, calls, done = self._spent()
        mine = runs.update().where(runs.c.id == self._held, runs.c.fence == self._fence)
        now = self.database.now()
        values = {"updated": now, "lease": now + LEASE_SECONDS, "seconds": seconds, "calls": calls, "steps": done}
        stands = [
            {"scope_": scope, "at": at, "state": (text := dumps(state, "state")), "crc": _crc(scope, at, text)}
            for scope, (at, state) in self._stands.items()
        ]
        with self.database.transaction(force=True):
            if not self.database.run(mine.values(**values)).rowcount:
                raise self._lost()
            if stands:
                self.database.run(_STANDS, stands)

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

    def count(self, scope: int) -> int:
        """How many steps of a scope are journaled."""
        return int(self._run(sa.select(sa.func.count()).where(steps.c.scope == scope)).scalar_one())

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

    def begin_row(self, run: str, row: int, path: str) -> int:
        """Note that a row is under way, new or once more; gives the scope that is its place."""

        def work() -> int:
            found = self.database.run(sa.select(scopes.c.id).where(scopes.c.run == run, scopes.c.path == path)).scalar()
            scope = self._new_scope(run, path) if found is None else int(found)
            if not self.database.run(rows.update().where(rows.c.run == run, rows.c.row == row).values(status="running")).rowcount:
                self.database.run(rows.insert().values(run=run, row=row, scope=scope, status="running", crashes=0, at=-1))
            return scope

        return self._write(work)

    def _new_scope(self, run: str, path: str) -> int:
        key = self.database.run(scopes.insert().values(run=run, path=path, at=0)).inserted_primary_key
        assert key is not None
        return int(key[0])

    def bury_row(self, run: str, row: int, crashes: int, at: int) -> None:
        """Note that a row was under way when its process died."""
        died = rows.update().where(rows.c.run == run, rows.c.row == row).values(status="died", crashes=crashes, at=at)
        self._write(lambda: self.database.run(died))

    def end_row(
        self, run: str, row: int, status: str, sums: Mapping[str, float], line: str, *, correct: bool | None, crashes: int, at: int
    ) -> None:
        """Note that a row has finished or failed, with the sums over its steps and its line in the results file."""
        point("before-write")
        right = None if correct is None else int(correct)
        values = {"status": status, "correct": right, "crashes": crashes, "at": at, "result": line, **sums}
        self._write(lambda: self.database.run(rows.update().where(rows.c.run == run, rows.c.row == row).values(**values)))
        point("after-write")

    def row_sums(self, scope: int) -> dict[str, float]:
        """`totals` over the steps of one scope."""
        return {name: _plain(name, value) for name, value in self._run(_sums().where(steps.c.scope == scope)).mappings().one().items()}

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

    # effects outside

    def intend(self, scope: int, seq: int, key: str) -> bool:
        """Note, on the disk when this returns, that an effect is about to happen; gives whether it was noted before."""
        intended = sa.select(intents.c.key).where(intents.c.scope == scope, intents.c.seq == seq)
        if self._run(intended).first() is not None:
            return True
        since = self.now()

        def work() -> None:
            if self.database.run(intended).first() is None:  # unless a server went away with its word of it
                self.database.run(intents.insert().values(scope=scope, seq=seq, key=key, since=since))

        self._write(work, force=True)
        return False

    # steps that no vote could decide

    def note_undecided(self, scope: int, seq: int, step: str, ledger: Any) -> None:
        def work() -> None:
            self.database.run(undecided.delete().where(undecided.c.scope == scope, undecided.c.seq == seq))
            self.database.run(undecided.insert().values(scope=scope, seq=seq, step=step, ledger=dumps(ledger)))

        self._write(work)

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
        return _is_held(row, self.now())

    def now(self) -> float:
        """Seconds since the epoch by the journal's clock, which its leases go by."""
        return self._do(self.database.now)

    def delete(self, id: str) -> None:
        """Delete a run with all that belongs to it.

        Raises:
            Busy: a living process holds it.
        """
        self.run(id)
        places = sa.select(scopes.c.id).where(scopes.c.run == id)

        def work() -> None:
            with self.database.transaction():
                row = self.database.run(sa.select(runs).where(runs.c.id == id).with_for_update()).mappings().first()
                if row is not None and _is_held(row, self.database.now()):
                    raise Busy("a process is running this", field="run", value=id, mend=f"wait for {row['owner']} to end, or stop it")
                for table in (samples, steps, undecided, intents):
                    self.database.run(table.delete().where(table.c.scope.in_(places)))
                self.database.run(rows.delete().where(rows.c.run == id))
                self.database.run(scopes.delete().where(scopes.c.run == id))
                self.database.run(runs.delete().where(runs.c.id == id))

        self._do(work)

    def vacuum(self) -> None:
        """Give the space of what was deleted back.

        Raises:
            JournalError: another process is using the journal.
        """
        self._do(self.database.vacuum)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._held = None
        self.database.close()


def _by_table(puts: list[_Put]) -> list[tuple[sa.Table, list[dict[str, Any]]]]:
    drawn = [sample for _, kept in puts for sample in kept]
    return [(steps, [step for step, _ in puts]), *([(samples, drawn)] if drawn else [])]


_STEP = [column.name for column in steps.columns]
_SAMPLE = [column.name for column in samples.columns]
_STANDS = (
    scopes.update()
    .where(scopes.c.id == sa.bindparam("scope_"))
    .values(at=sa.bindparam("at"), state=sa.bindparam("state"), crc=sa.bindparam("crc"))
)


def _fenced_insert(table: sa.Table, database: Database) -> str:
    """An INSERT, as the driver takes it, that inserts nothing unless the run `run_` has the fencing token `fence_`."""
    values = [sa.bindparam(column.name, type_=column.type) for column in table.columns]
    given = [sa.cast(value, value.type) for value in values] if database.remote else values  # a NULL has no type of its own there
    held = sa.select(*given).where(runs.c.id == sa.bindparam("run_"), runs.c.fence == sa.bindparam("fence_"))
    insert = table.insert().from_select([column.name for column in table.columns], held.with_for_update(read=True))
    return str(insert.compile(dialect=database.engine.dialect))


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


def _is_held(row: Mapping[Any, Any], now: float) -> bool:
    return bool(row["owner"]) and row["lease"] > now and not _is_dead(row["owner"])


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
