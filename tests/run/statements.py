"""What a journal says to its database, for tests that watch it or let it fail."""

import sqlite3

import sqlalchemy as sa


def meet(journal, every):
    """Have `every(statement)` called before each statement of the journal; what it raises is taken as the driver's word."""
    database = journal.database
    sa.event.listen(database.engine, "before_cursor_execute", lambda connection, cursor, statement, *rest: every(statement))
    prepared = database.run_prepared

    def run_prepared(statement, values=()):
        try:
            every(statement)
        except sqlite3.Error as error:
            raise sa.exc.DBAPIError.instance(statement, None, error, sqlite3.Error) from error
        return prepared(statement, values)

    database.run_prepared = run_prepared
