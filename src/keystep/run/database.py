"""The database behind a journal: SQLite in a file or in memory, or PostgreSQL, through SQLAlchemy Core.

What differs between the two stands here and nowhere else. One connection in autocommit: every statement is a transaction of its own unless
it stands in `transaction`. Two degrees of durability:

- a plain statement is *written*: SQLite's log has it (synchronous=NORMAL), or PostgreSQL's server has it (synchronous_commit=off). It
  survives the death of this process at any instant.
- a transaction with `force=True` is on the disk when it returns, and with it all that was written before it, by the order of either log.

A SQLite file whose pages are damaged is refused by name where SQLite can tell. A PostgreSQL that went away is connected to again for
`PATIENCE` seconds; the journal brings back what an asynchronous commit may have lost.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from keystep.errors import BadInput, JournalError, MissingExtra
from keystep.run.tables import MIGRATIONS, VERSION, create

PATIENCE = 60.0  # seconds that a server may be away
SCHEMA = "keystep"  # where the tables are in PostgreSQL, unless the URL has options of its own
ERRORS = (SQLAlchemyError, UnicodeDecodeError)  # SQLite's driver raises the second where it is to tell of a damaged file
NOW = sa.extract("epoch", sa.func.clock_timestamp())  # seconds since the epoch, by PostgreSQL's clock
_AWAY = ("08", "57P", "53300")  # SQLSTATEs: connection lost, server going or coming, no connection free


class Database:
    """A connection to the database at `url` (a path or a database URL; empty keeps it in memory), with the journal's tables.

    Attributes:
        shown: the path, or the URL without its password, for messages.
        remote: whether it is a server, which may go away and come back.
        in_memory: whether there is but one connection.

    Raises:
        BadInput: `url` is none, or of a database that is not supported.
        JournalError: it cannot be opened, is no journal, or was written by a newer keystep.
        MissingExtra: its driver is not installed.
    """

    def __init__(self, url: str, *, full: bool = True) -> None:
        self._full = full
        try:
            where = sa.make_url(url) if "://" in url else sa.URL.create("sqlite", database=url)
        except (sa.exc.ArgumentError, ValueError):
            raise BadInput("is not a database URL", field="journal", mend=_MEND) from None
        self.shown = where.render_as_string(hide_password=True) if "://" in url else url
        name = where.get_backend_name()
        self.remote, self.in_memory = name == "postgresql", False
        options: dict[str, Any] = {}
        if self.remote:
            where = where.set(drivername="postgresql+psycopg")
            given = {} if "options" in where.query else {"options": f"-c search_path={SCHEMA}"}
            options["connect_args"] = {"application_name": "keystep", "connect_timeout": 10, "tcp_user_timeout": 20_000, **given}
        elif name == "sqlite" and where.drivername == name and where.database in (None, "", ":memory:"):
            # In memory there is one connection only, whichever thread asks (`run_sync` in a notebook takes a thread of its own).
            self.in_memory = True
            options = {"poolclass": sa.StaticPool, "connect_args": {"check_same_thread": False}}
        elif name != "sqlite":
            raise BadInput("only SQLite and PostgreSQL can hold a journal", field="journal", value=self.shown, mend=_MEND)
        try:
            if not self.remote:
                options["paramstyle"] = "named"  # as PostgreSQL's driver has them
            self.engine = sa.create_engine(where, **options)
        except (sa.exc.NoSuchModuleError, sa.exc.ArgumentError):
            raise BadInput("is not a database URL", field="journal", value=self.shown, mend=_MEND) from None
        except ImportError:
            raise MissingExtra("a journal in PostgreSQL", "postgres") from None
        try:
            self._connect()
            self._migrate()
        except ERRORS as error:
            raise self.failed(error) from None

    def _connect(self) -> None:
        self.connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if self.remote:
            self.connection.exec_driver_sql("SET synchronous_commit TO off")
            # A process that is paused in the midst of a transaction shall not hold the next one up for ever.
            self.connection.exec_driver_sql("SET idle_in_transaction_session_timeout TO '15s'")
        else:
            for setting in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000"):
                self.pragma(setting)

    def pragma(self, text: str) -> Any:
        """The first value of a SQLite pragma, if it has one."""
        result = self.connection.exec_driver_sql(f"PRAGMA {text}")
        return result.scalar() if result.returns_rows else None

    def _migrate(self) -> None:
        """Bring the database to the present version, in one transaction."""
        if self._version() == VERSION:
            return
        with self.transaction():
            if self.remote:  # of several that open a new one at once, one makes the tables
                self.connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('keystep journal'))")
            version = self._version()
            if version > VERSION:
                raise JournalError("was written by a newer keystep", field="journal", value=self.shown, mend="upgrade keystep")
            if version == 0:
                if self.remote and "options" not in self.engine.url.query:
                    self.connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
                elif not self.remote and sa.inspect(self.connection).get_table_names():
                    raise JournalError("is a database, but not a journal", field="journal", value=self.shown, mend="name another file")
                create(self.connection)
            for migrate in MIGRATIONS[version - 1 :] if version else ():
                migrate(self.connection)
            if self.remote:
                self.connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS journal_version (version integer NOT NULL)")
                self.connection.exec_driver_sql("DELETE FROM journal_version")
                self.connection.exec_driver_sql(f"INSERT INTO journal_version VALUES ({VERSION})")
            else:
                self.pragma(f"user_version={VERSION}")

    def _version(self) -> int:
        """0 where there are no tables yet."""
        if not self.remote:
            return int(self.pragma("user_version"))
        if self.connection.exec_driver_sql("SELECT to_regclass('journal_version')").scalar() is None:
            return 0
        return int(self.connection.exec_driver_sql("SELECT version FROM journal_version").scalar() or 0)

    def run(self, statement: sa.Executable, *parameters: Any) -> sa.CursorResult[Any]:
        return self.connection.execute(statement, *parameters)

    def prepared(self, statement: sa.ClauseElement) -> str:
        """A statement as the driver takes it, for `run_prepared`."""
        return str(statement.compile(dialect=self.engine.dialect))

    def run_prepared(self, statement: str, values: Any = ()) -> Any:
        """Run a prepared statement with a dict of values, or once for each of a list of them, without what SQLAlchemy does for every one.
        Gives something with `rowcount` and `fetchone`."""
        if self.remote:
            return self.connection.exec_driver_sql(statement, values or None)
        driver: Any = self.connection.connection.driver_connection
        try:
            return driver.executemany(statement, values) if isinstance(values, list) else driver.execute(statement, values)
        except sqlite3.Error as error:
            raise DBAPIError.instance(statement, None, error, sqlite3.Error) from error

    @contextmanager
    def transaction(self, *, force: bool = False, written: bool = False) -> Iterator[None]:
        """BEGIN … COMMIT. `force` puts it on the disk before it returns; in PostgreSQL every transaction is, unless it need only be
        `written`: what a server forgets in a crash while this process goes on would have to be brought back."""
        forced = self._full and (force or (self.remote and not written))
        if forced and not self.remote:
            self.run_prepared("PRAGMA synchronous=FULL")
        self.run_prepared("BEGIN" if self.remote else "BEGIN IMMEDIATE")
        try:
            if forced and self.remote:
                self.run_prepared("SET LOCAL synchronous_commit TO on")
            yield
            self.run_prepared("COMMIT")
        except BaseException:
            with suppress(*ERRORS):  # after some failures the database has rolled back itself
                self.run_prepared("ROLLBACK")
            raise
        finally:
            if forced and not self.remote:
                with suppress(*ERRORS):
                    self.run_prepared("PRAGMA synchronous=NORMAL")

    def now(self) -> float:
        """Seconds since the epoch by the clock that all users of this database share."""
        if not self.remote:
            return time.time()
        return float(self.run(sa.select(NOW)).scalar_one())

    def is_away(self, error: Exception) -> bool:
        """Whether `error` means that the server could not be reached, so that it is worth trying again."""
        if not self.remote or not isinstance(error, DBAPIError):
            return False
        state = getattr(error.orig, "sqlstate", None)
        return error.connection_invalidated or (isinstance(error, sa.exc.OperationalError) and (state is None or state.startswith(_AWAY)))

    def reconnect(self) -> None:
        """Connect again to a server that went away.

        Raises:
            JournalError: it did not come back in time.
        """
        until, pause = time.monotonic() + PATIENCE, 0.02
        while True:
            with suppress(*ERRORS):
                self.connection.invalidate()
                self.connection.close()
            self.engine.dispose()
            try:
                return self._connect()
            except SQLAlchemyError as error:
                if not self.is_away(error) or time.monotonic() > until:
                    raise self.failed(error) from None
            time.sleep(pause)  # nothing can go on without the journal
            pause = min(1.0, pause * 2)

    def failed(self, error: Exception) -> JournalError:
        reason = " ".join(str(error.orig if isinstance(error, DBAPIError) and error.orig else error).split())
        return JournalError(
            f"the journal cannot be used: {reason}", field="journal", value=self.shown, mend="check the path, rights and free space"
        )

    def damage(self) -> str | None:
        """What SQLite finds wrong with the pages of its file, if anything; a server looks after its own."""
        if self.remote:
            return None
        try:
            found = str(self.pragma("quick_check(1)"))
        except ERRORS as error:
            return self.failed(error).problem
        return None if found == "ok" else found

    def vacuum(self) -> None:
        """Give the space of what was deleted back."""
        self.connection.exec_driver_sql("VACUUM")
        if not self.remote:
            self.pragma("wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        with suppress(*ERRORS):
            self.connection.close()
        self.engine.dispose()


_MEND = "write sqlite:///runs.db or postgresql://user@host/database"
