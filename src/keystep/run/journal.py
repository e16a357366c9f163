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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from keystep.errors import BadInput, Busy, JournalError, KeystepError
from keystep.run.budget import Meter
from keystep.run.canonical import checksum, dumps, step_checksum
from keystep.run.database import ERRORS, Database
from keystep.run.faults import point
from keystep.run.journal_reader import DAMAGED, JournalReader, is_held
from keystep.run.tables import intents, rows, runs, samples, scopes, steps, undecided

T = TypeVar("T")

SYNC_SECONDS, SYNC_STEPS = 0.05, 256
LEASE_SECONDS = 15.0

_Put = tuple[dict[str, Any], list[dict[str, Any]]]  # a row of `steps` and its rows of `samples`


class Journal(JournalReader):
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
        super().__init__(Database(str(url or "sqlite://"), full=synchronous == "FULL"))
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
        self._spent: Callable[[], Meter] = Meter
        prepared = self.database.prepared
        self._insert_step = prepared(_fenced_insert(steps, self.database))
        self._insert = {table: prepared(table.insert()) for table in (steps, samples)}
        self._store_run, self._store_scope, self._hold = map(prepared, (_STORE_RUN, _STORE_SCOPE, _HOLD))

    def _do(self, work: Callable[[], T]) -> T:
        self.write()
        return super()._do(work)

    def _mend(self, error: Exception) -> None:
        """Connect again where the server went away, with every step that it may have forgotten; anything else is raised."""
        while True:
            super()._mend(error)
            try:
                if self._unsure:
                    with self.database.transaction():
                        self._check_fence()
                        for table, lost in _by_table(self._unsure):
                            self.database.run(postgresql.insert(table).on_conflict_do_nothing(), lost)
                return
            except ERRORS as again:
                error = again

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
        # Locked until the transaction ends, so that nobody takes the run over in its midst.
        if self._held is None or self.database.run_prepared(self._hold, self._token()).fetchone() is None:
            raise self._lost()

    def _token(self) -> dict[str, Any]:
        return {"run_": self._held, "fence_": self._fence}

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

    def widen(self, id: str, identity: Any) -> None:
        """Store the identity of a run that goes on to more work."""
        self._write(lambda: self.database.run(runs.update().where(runs.c.id == id).values(identity=dumps(identity))))

    def acquire(self, id: str, spent: Callable[[], Meter]) -> None:
        """Take the run's lease; `spent` tells what it has spent so far and is stored at every sync.

        Raises:
            Busy: a living process holds it, or this journal object is in use by another run.
        """
        if self._held not in (None, id):
            raise Busy("this journal object is in use by another run", field="run", value=self._held, mend="open the journal a second time")

        def work() -> int:
            with self.database.transaction():
                row = self.database.run(sa.select(runs).where(runs.c.id == id).with_for_update()).mappings().one()
                now = self.database.now()
                if row["owner"] != _me() and is_held(row, now):
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
        if found.crc is not None and found.crc != checksum(found.id, found.at, found.state):
            raise JournalError("where the run stands is damaged", field="journal", value=self.url, mend=DAMAGED)
        if found.at and (there := self.count(found.id, found.at)) != found.at:
            problem = f"the journal has lost steps: it has {there:,} of the first {found.at:,} of {path}"
            raise JournalError(problem, field="journal", value=self.url, mend=DAMAGED)
        return found.id, found.at, None if found.state is None else json.loads(found.state)

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
        step = dict(zip(_STEP, (scope, seq, *row, step_checksum(scope, seq, *row)), strict=True))
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
            if not self.database.run_prepared(self._insert_step, puts[0][0] | self._token()).rowcount:
                raise self._lost()
            return
        with self.database.transaction(written=True):
            self._check_fence()
            for table, values in _by_table(puts):
                self.database.run_prepared(self._insert[table], values)

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
        now, spent = self.database.now(), self._spent()
        values = {"updated_": now, "lease_": now + LEASE_SECONDS, **{f"{name}_": getattr(spent, name) for name in _SPENT}}
        stands = [
            {"scope_": scope, "at_": at, "state_": (text := dumps(state, "state")), "crc_": checksum(scope, at, text)}
            for scope, (at, state) in self._stands.items()
        ]
        with self.database.transaction(force=True):
            if not self.database.run_prepared(self._store_run, values | self._token()).rowcount:
                raise self._lost()
            if stands:
                self.database.run_prepared(self._store_scope, stands)

    # rows of a run over many inputs

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

    def decide(self, run: str, step: str, answer: Any) -> None:
        """Store a person's answer for an undecided step; the resumed run takes it instead of asking."""
        waiting = {row["step"]: row for row in self.undecided(run)}
        if step not in waiting:
            mend = f"undecided are: {', '.join(waiting) or 'none'}"
            raise BadInput("is not an undecided step of this run", field="step", value=step, mend=mend)
        where = (undecided.c.scope == waiting[step]["scope"]) & (undecided.c.seq == waiting[step]["seq"])
        self._run(undecided.update().where(where).values(decision=dumps(answer)))

    # taking runs out

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
                if row is not None and is_held(row, self.database.now()):
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


def _given(table: sa.Table, *names: str) -> dict[str, sa.BindParameter[Any]]:
    """Parameters for columns, by names that SQLAlchemy does not keep for itself."""
    return {name: sa.bindparam(f"{name}_", type_=table.c[name].type) for name in names}


_MINE = (runs.c.id == sa.bindparam("run_", type_=runs.c.id.type)) & (runs.c.fence == sa.bindparam("fence_", type_=runs.c.fence.type))
_HOLD = sa.select(runs.c.id).where(_MINE).with_for_update(read=True)
_SPENT = ("seconds", "calls", "tokens_in", "tokens_out", "cost", "steps")  # of a `Meter`, as columns of `runs`
_STORE_RUN = runs.update().where(_MINE).values(_given(runs, "updated", "lease", *_SPENT))
_STORE_SCOPE = scopes.update().where(scopes.c.id == sa.bindparam("scope_")).values(_given(scopes, "at", "state", "crc"))


def _fenced_insert(table: sa.Table, database: Database) -> sa.Insert:
    """An INSERT that inserts nothing unless the run `run_` has the fencing token `fence_`."""
    values = [sa.bindparam(column.name, type_=column.type) for column in table.columns]
    given = [sa.cast(value, value.type) for value in values] if database.remote else values  # a NULL has no type of its own there
    held = sa.select(*given).where(_MINE).with_for_update(read=True)
    return table.insert().from_select([column.name for column in table.columns], held)


def _me() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
