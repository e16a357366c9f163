"""A journal that cannot be written, or is not what was written: a named error and a run that goes on later, never one begun anew."""

import random
import shutil
import sqlite3
from contextlib import closing

import pytest
import sqlalchemy as sa
from statements import meet
from worker import Worker

from keystep.errors import KeystepError
from keystep.run import AheadBy, Journal, Many, Run
from keystep.run.builtin import Hanoi
from keystep.run.builtin.ledger import Ledger
from keystep.run.tables import scopes, steps

WEIGHTS = (0.9, 0.04)
DISKS = 4
WRITES = ("INSERT", "UPDATE", "DELETE", "BEGIN", "COMMIT")


def run_on(journal, lm=None):
    return Run(lm or Worker(WEIGHTS), vote=AheadBy(4), journal=journal, id="r", keep_samples=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The outcome of the work, undisturbed, and how many writes it takes."""
    writes = 0

    def count(statement):
        nonlocal writes
        writes += statement.startswith(WRITES)

    journal = Journal(tmp_path_factory.mktemp("whole") / "a.db", group=4)
    meet(journal, count)
    run = run_on(journal)
    outcome = run.execute_sync(Hanoi(DISKS))
    run.close()
    assert outcome.correct
    return outcome.model_dump(exclude={"seconds"}), writes


def failing(path, number):
    """A journal whose `number`-th write fails as a disk does."""
    journal, left = Journal(path, group=4), number

    def fail(statement):
        nonlocal left
        left -= statement.startswith(WRITES)
        if left == 0 and statement.startswith(WRITES):
            left -= 1
            raise sqlite3.OperationalError("disk I/O error")

    meet(journal, fail)
    return journal


def test_every_write_fails_once(tmp_path, whole):
    """For all n: the n-th write fails, the run stops by name or ends, and goes on later to the same end."""
    outcome, writes = whole
    assert writes > 50
    stopped = 0
    for number in range(1, writes + 1):
        path = tmp_path / f"{number}.db"
        lm = Worker(WEIGHTS)
        run = run_on(failing(path, number), lm)
        try:
            run.execute_sync(Hanoi(DISKS))
        except KeystepError as error:
            stopped += 1
            assert "disk I/O error" in str(error)
        except sqlite3.OperationalError:
            pytest.fail(f"write {number} failed without a name")
        run.journal.close()
        journal = Journal(path)
        done = int(journal.totals("r")["steps"])
        again = Worker(WEIGHTS)
        resumed = run_on(journal, again)
        assert resumed.execute_sync(Hanoi(DISKS)).model_dump(exclude={"seconds"}) == outcome
        assert not {key for key, _ in again.asked} & {f"0/{seq}" for seq in range(done)}
        resumed.close()
    assert stopped > writes * 0.9


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A closed journal of a run that stopped midway, as bytes."""
    path = tmp_path_factory.mktemp("half") / "a.db"
    journal = Journal(path, group=4)
    run = run_on(journal)
    killed = iter(range(10))

    async def sample(request, inner=run.asking.lm.sample):
        if next(killed, None) is None:
            raise KeystepError("stopped")
        async for each in inner(request):
            yield each

    run.asking.lm.sample = sample
    with pytest.raises(KeystepError):
        run.execute_sync(Hanoi(DISKS))
    run.close()
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.read_bytes()


def goes_on_or_says_why(path, outcome):
    """Resume what is at `path`; true where it went on to the right end, false where it was refused by name."""
    lm = Worker(WEIGHTS)
    run = None
    try:
        run = run_on(Journal(path), lm)
        if not run.journal.run("r", missing_ok=True):
            return False  # `keystep resume r` says that there is no such run
        found = run.execute_sync(Hanoi(DISKS))
    except KeystepError:
        return False
    finally:
        if run is not None:
            run.journal.close()
    assert found.model_dump(exclude={"seconds"}) == outcome
    assert "0/0" not in {key for key, _ in lm.asked}, "begun anew"
    return True


@pytest.mark.parametrize("stride", [97, pytest.param(1, marks=pytest.mark.slow)])
def test_cut_within_its_last_page(tmp_path, whole, half, stride):
    refused = 0
    for length in (*range(len(half) - 4096, len(half), stride), len(half) - 1):
        path = tmp_path / f"{length}.db"
        path.write_bytes(half[:length])
        refused += not goes_on_or_says_why(path, whole[0])
    path = tmp_path / "whole.db"
    path.write_bytes(half)
    assert refused
    assert goes_on_or_says_why(path, whole[0])


@pytest.mark.parametrize("series", [*range(3), *(pytest.param(n, marks=pytest.mark.slow) for n in range(3, 40))])
def test_fuzzed(tmp_path, whole, half, series):
    """Bytes changed at random, one or many: the right end or a named error."""
    draw, ended = random.Random(series), 0
    for number in range(40):
        data = bytearray(half)
        for _ in range(draw.choice([1, 1, 2, 8, 64])):
            data[draw.randrange(len(data))] = draw.randrange(256)
        if draw.random() < 0.2:
            start = draw.randrange(0, len(data), 512)
            data[start : start + 512] = bytes(min(512, len(data) - start))
        path = tmp_path / f"{number}.db"
        path.write_bytes(data)
        ended += goes_on_or_says_why(path, whole[0])
    assert 0 < ended < 40


def test_steps_that_went_missing_are_missed(tmp_path, half):
    path = tmp_path / "a.db"
    path.write_bytes(half)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM steps WHERE seq = 3")
    with pytest.raises(KeystepError, match="lost steps"):
        run_on(Journal(path)).execute_sync(Hanoi(DISKS))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM scopes")
    with pytest.raises(KeystepError, match="lost steps"):
        run_on(Journal(path)).execute_sync(Hanoi(DISKS))


def test_an_answer_that_was_changed_is_refused(tmp_path, half):
    path = tmp_path / "a.db"
    path.write_bytes(half)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE steps SET answer = replace(answer, '[[4', '[[3') WHERE seq = 2")
    with pytest.raises(KeystepError, match="damaged"):
        run_on(Journal(path)).execute_sync(Hanoi(DISKS))


def test_a_state_that_was_changed_is_refused(tmp_path, half):
    path = tmp_path / "a.db"
    path.write_bytes(half)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE scopes SET at = at - 1")
    with pytest.raises(KeystepError, match="damaged"):
        run_on(Journal(path)).execute_sync(Hanoi(DISKS))


def test_a_copy_without_its_log_has_what_was_checkpointed(tmp_path, half):
    """A copy of the database file alone, taken while the run goes on, is a journal of an earlier moment."""
    path = tmp_path / "a.db"
    path.write_bytes(half)
    copy = tmp_path / "b.db"
    shutil.copy(path, copy)
    journal = Journal(copy)
    assert journal.totals("r")["steps"] > 0
    journal.close()


@pytest.mark.parametrize("number", range(55, 85, 3))
def test_the_same_run_goes_on_after_a_write_of_many_rows_failed(tmp_path, number):
    """What the rows stood at in the batch that failed is forgotten with it: no sync stores a state ahead of the journaled steps."""
    journal = failing(tmp_path / "a.db", number)
    run, store, syncs = run_on(journal), journal._store, []

    def checked():
        store()
        behind = sa.select(scopes.c.at, sa.func.count(steps.c.seq)).outerjoin(steps, steps.c.scope == scopes.c.id).group_by(scopes.c.id)
        syncs.append(all(at <= count for at, count in journal.database.run(behind).all()))

    journal._store = checked
    rows = [{"steps": 4, "instance": number} for number in range(6)]

    def many():
        return Many(lambda row: Ledger(words=5, **row), rows)

    with pytest.raises(KeystepError, match="disk I/O error"):
        many().execute_sync(run)
    outcome = many().execute_sync(run)
    assert (outcome.rows.finished, outcome.correct, outcome.steps) == (6, True, 24)
    assert len(syncs) > 2 and all(syncs)
    run.close()
