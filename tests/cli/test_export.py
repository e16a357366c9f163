"""`keystep export` and `keystep prune`."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from importlib import import_module
from pathlib import Path

import pytest
from worker import Worker

from keystep.run import AheadBy, Journal, Many, Run
from keystep.run.budget import Meter
from keystep.run.builtin import builtin
from keystep.run.builtin.ledger import Ledger
from keystep.run.tables import steps

FIELDS = ["place", "seq", "name", "skill", "answer", "samples", "flagged", "candidates", "tokens_in", "tokens_out", "seconds", "cost"]


@pytest.fixture
def journal(here):
    """A finished run, a run of many rows, and one that stopped; given as {name: its steps in order}."""
    found = {}
    store = Journal("runs.db")
    Run(Worker([0.8, 0.1]), vote=AheadBy(2), journal=store, id="one").execute_sync(builtin("hanoi", {"disks": 4}))
    rows = [{"steps": 2 + n, "instance": n} for n in range(3)]
    Many(lambda row: Ledger(words=5, **row), rows).execute_sync(Run(Worker([0.8, 0.1]), vote=AheadBy(2), journal=store, id="many"))
    Run(Worker([1.0]), journal=store, id="stopped").ask_sync("Running sum: 0\nNext word: a\na = 1\n")
    store._held = None
    for id in ("one", "many", "stopped"):
        found[id] = [(place, row.seq, row.answer, row.candidates, row.samples) for place, row in store.trace(id)]
    store.close()
    with closing(sqlite3.connect("runs.db")) as database:
        database.execute("UPDATE runs SET owner = NULL, lease = 0, status = 'stopped' WHERE id = 'stopped'")
        database.commit()
    return found


def known(step):
    return (step["place"], step["seq"], step["answer"], step["candidates"], step["samples"])


def long_run(store, id, count):
    """A run of so many steps with long answers, written in one go."""
    store.begin(id, id, None, {})
    store.acquire(id, Meter)
    scope = store.open_scope(id, "0")[0]
    row = {
        "answer": json.dumps("x" * 300), "samples": 3, "flagged": 0, "tokens_in": 10, "tokens_out": 10, "seconds": 0.1, "cost": 0.0,
    }  # fmt: skip
    with store.database.transaction():
        store.database.run(steps.insert(), [{"scope": scope, "seq": seq, **row} for seq in range(count)])
    store.end("stopped")


def test_jsonl_has_every_step(keystep, journal):
    for run, count in (("one", 15), ("many", 9)):
        result = keystep("export", run, "--format", "jsonl")
        steps = [json.loads(line) for line in result.stdout.splitlines()]
        assert result.exit_code == 0 and list(steps[0]) == FIELDS
        assert [known(step) for step in steps] == journal[run] and len(steps) == count
        assert keystep("export", run, "--out", f"{run}.jsonl").stderr == f"wrote {count} steps to {run}.jsonl\n"
        assert Path(f"{run}.jsonl").read_text() == result.stdout


def test_parquet_has_every_step(keystep, journal, monkeypatch):
    from pyarrow import parquet

    monkeypatch.setattr(import_module("keystep.cli.export"), "BATCH", 4)
    assert keystep("export", "one", "--format", "parquet", "--out", "one.parquet").exit_code == 0
    file = parquet.ParquetFile("one.parquet")
    assert file.num_row_groups == 4 and file.schema_arrow.names == FIELDS
    steps = file.read().to_pylist()
    for step in steps:
        step["answer"], step["candidates"] = json.loads(step["answer"]), step["candidates"] and json.loads(step["candidates"])
    assert [known(step) for step in steps] == journal["one"]


def test_memory_is_bounded(here):
    """In a process of its own: a hundred thousand steps and a tenth of them take the same."""
    code = """
import resource, sys
from keystep.cli import app
app(["export", sys.argv[1], "--format", "parquet", "--out", sys.argv[1] + ".parquet"], standalone_mode=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    store = Journal("runs.db")
    long_run(store, "small", 10_000)
    long_run(store, "large", 100_000)
    store.close()
    peaks = [
        int(subprocess.run([sys.executable, "-c", code, run], capture_output=True, text=True, check=True, timeout=120).stdout)
        for run in ("small", "large")
    ]
    assert peaks[1] < peaks[0] + 30_000  # KiB; its texts alone are as much


def test_nothing_is_overwritten_or_left_half_written(keystep, journal, here, monkeypatch):
    before = (here / "runs.db").read_bytes()
    result = keystep("export", "one", "--out", "runs.db")
    assert result.exit_code == 2 and "--out: is there already" in result.stderr and (here / "runs.db").read_bytes() == before
    assert "--out: parquet goes into a file" in keystep("export", "one", "--format", "parquet").stderr
    assert "the journal has no such run" in keystep("export", "two", "--out", "two.jsonl").stderr
    assert "cannot be written" in keystep("export", "one", "--out", "runs.db/one.jsonl").stderr
    assert keystep("export", "one", "--journal", "other.db").exit_code == 2
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = keystep("export", "one", "--format", "parquet", "--out", "one.parquet")
    assert result.exit_code == 2 and "pip install 'keystep[parquet]'" in result.stderr
    assert {path.name for path in here.iterdir()} <= {"runs.db", "runs.db-wal", "runs.db-shm"}


# Pruning.


def names():
    store = Journal("runs.db")
    try:
        return {row["id"] for row in store.all_runs()}
    finally:
        store.close()


def tables():
    with closing(sqlite3.connect("runs.db")) as database:
        return {name: database.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in ("scopes", "steps", "samples", "rows")}


def test_without_yes_it_only_says_what_would_go(keystep, journal):
    result = keystep("prune", "one", "many")
    assert result.exit_code == 0 and result.stderr == "nothing was deleted: add --yes\n"
    assert result.stdout == "would delete one (hanoi, finished)\nwould delete many (ledger, finished)\n"
    assert names() == {"one", "many", "stopped"}


def test_a_run_goes_with_all_that_is_its(keystep, journal):
    before = tables()
    assert before["samples"] and before["rows"] == 3
    assert keystep("prune", "many", "--yes").stdout == "deleted many (ledger, finished)\n"
    assert names() == {"one", "stopped"}
    after = tables()
    assert (before["steps"] - after["steps"], before["scopes"] - after["scopes"], after["rows"]) == (9, 3, 0)
    assert 0 < after["samples"] < before["samples"]
    assert [known(json.loads(line)) for line in keystep("export", "one").stdout.splitlines()] == journal["one"]
    assert keystep("prune", "one", "stopped", "-y").exit_code == 0
    assert set(tables().values()) == {0}


def test_the_space_is_given_back(keystep, here):
    store = Journal("runs.db")
    long_run(store, "long", 2000)
    store.close()
    size = Path("runs.db").stat().st_size
    assert keystep("prune", "long", "-y").exit_code == 0 and Path("runs.db").stat().st_size < size / 5


def test_by_age(keystep, journal):
    with closing(sqlite3.connect("runs.db")) as database:
        database.execute("UPDATE runs SET updated = updated - 40 * 86400 WHERE id IN ('one', 'stopped')")
        database.commit()
    assert keystep("prune", "--older-than", "50", "-y").stdout == "nothing to delete\n"
    assert keystep("prune", "--older-than", "30", "--keep-unfinished", "-y").stdout == "deleted one (hanoi, finished)\n"
    assert keystep("prune", "--older-than", "30", "-y").stdout == "deleted stopped (ask, stopped)\n"
    assert names() == {"many"}


def test_a_run_that_goes_on_is_not_touched(keystep, journal):
    with closing(sqlite3.connect("runs.db")) as database:
        database.execute("UPDATE runs SET owner = 'elsewhere:1', lease = 1e12, status = 'running' WHERE id = 'one'")
        database.commit()
    assert "one" not in keystep("prune", "--older-than", "0").stdout
    result = keystep("prune", "one", "--yes")
    assert result.exit_code == 3 and "a process is running this" in result.stderr and "one" in names()


@pytest.mark.parametrize("options", [(), ("one", "--older-than", "3"), ("--older-than", "-1"), ("--older-than", "nan"), ("two",)])
def test_what_cannot_be_meant(keystep, journal, options):
    assert keystep("prune", *options, "--yes").exit_code == 2 and len(names()) == 3


def test_while_another_process_writes_the_space_is_given_back_later(keystep, journal, monkeypatch):
    vacuum = Journal.vacuum

    def beside_a_writer(self):
        self.database.pragma("busy_timeout=1")  # without the five seconds of patience
        with closing(sqlite3.connect("runs.db", isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            vacuum(self)

    monkeypatch.setattr(Journal, "vacuum", beside_a_writer)
    result = keystep("prune", "one", "--yes")
    assert result.stderr.startswith("note: the space is given back by a later prune: the journal cannot be used: database is locked")
    assert result.exit_code == 0 and "deleted one" in result.stdout and names() == {"many", "stopped"}


def test_the_help_says_which_extra(keystep):
    assert "keystep[parquet]" in keystep("export", "--help").stdout
