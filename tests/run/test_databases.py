"""What a journal promises, in either kind of database: the same results, one holder at a time, and nothing lost."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import killed
import pytest
import sqlalchemy as sa
from typer.testing import CliRunner
from worker import Scripted, Worker

from keystep.cli import app
from keystep.errors import BadInput, Busy, JournalError, Undecided
from keystep.run import AheadBy, Journal, Many, Run
from keystep.run import database as database_module
from keystep.run.builtin import Hanoi, builtin
from keystep.run.builtin.ledger import Ledger
from keystep.run.faults import POINTS
from keystep.run.tables import metadata, runs, samples, scopes, steps

TOWER = {"procedure": "hanoi", "set": {"disks": 8}, "model": [0.9, 0.05, 0.02], "k": 3, "seed": 7, "speculate": False, "keep_samples": True}


def content(url):
    """Everything a journal holds, but for times, owners and fences."""
    journal = Journal(url)
    try:
        kept = {}
        for table in (runs, scopes, steps, samples):
            columns = [c for c in table.c if c.name not in ("started", "updated", "seconds", "owner", "lease", "fence", "cost")]
            kept[table.name] = sorted(map(repr, journal.select(sa.select(*columns))))
        return kept
    finally:
        journal.close()


def journaled(url):
    journal = Journal(url)
    try:
        return {seq for (seq,) in journal.select(sa.select(steps.c.seq))}
    finally:
        journal.close()


def child(settings, url, log, fault=""):
    command = [sys.executable, killed.__file__, json.dumps(settings), url, str(log)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "KEYSTEP_FAULT": fault}
    )


def without_seconds(kept):
    return {name: [row.partition('"seconds"')[0] for row in rows] for name, rows in kept.items()}


def test_both_databases_hold_the_same(postgres, tmp_path):
    """The same work leaves the same rows, whatever holds them."""
    found = []
    for url in (f"sqlite:///{tmp_path}/a.db", postgres.fresh()):
        run = Run(Worker((0.85, 0.08)), vote=AheadBy(4), journal=url, id="r", keep_samples=True)
        run.execute_sync(Hanoi(7))
        run.close()
        found.append(without_seconds(content(url)))
    assert found[0] == found[1]
    assert len(found[0]["steps"]) == 127


def test_killed_at_every_point_and_resumed(url, tmp_path):
    whole = f"sqlite:///{tmp_path}/whole.db"
    undisturbed = killed.run(TOWER, whole, tmp_path / "whole.log")
    undisturbed.execute_sync(builtin(TOWER["procedure"], TOWER["set"]))
    undisturbed.close()
    log, read, draw = tmp_path / "asked.log", 0, random.Random(3)
    log.touch()
    counts = {"before-sync": 1, "after-sync": 1, "before-finish": 1}
    for fault in [*(f"{point}:{counts.get(point, draw.randint(1, 20))}" for point in POINTS), ""]:
        before = journaled(url)
        process = child(TOWER, url, log, fault)
        _, error = process.communicate()
        assert process.returncode == (-signal.SIGKILL if fault else 0), (fault, error)
        lines = log.read_text().splitlines()
        asked, read = Counter(map(tuple, (line.split() for line in lines[read:]))), len(lines)
        assert set(asked.values()) <= {1}
        steps = {int(key.rpartition("/")[2]) for key, _ in asked}
        assert not steps & before
        assert len(steps - journaled(url)) <= 1
    assert without_seconds(content(url)) == without_seconds(content(whole))


def test_many_rows_a_decision_and_what_the_commands_show(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"steps": 3, "instance": number} for number in range(30)]
    lm = Worker((0.85, 0.08), wrong_at=())
    run = Run(lm, vote=AheadBy(4), journal=url, id="rows")
    outcome = Many(lambda row: Ledger(words=5, **row), rows, results=tmp_path / "out.jsonl", concurrency=7).execute_sync(run)
    assert (outcome.rows.finished, outcome.correct, outcome.steps) == (30, True, 90)
    assert outcome.samples == len(lm.asked)
    run.close()
    torn = Run(Scripted(["1", "2"] * 5), vote=AheadBy(2, cap=6), journal=url, id="torn")
    with pytest.raises(Undecided):
        torn.ask_sync("?", parse=int)
    torn.close()
    command = CliRunner().invoke
    assert command(app, ["decide", "torn", "/0", "3", "--journal", url]).exit_code == 0
    resumed = Run(Scripted(["1"]), vote=AheadBy(2, cap=6), journal=url, id="torn")
    assert resumed.ask_sync("?", parse=int).value == 3
    resumed.close()
    listed = {each["run_id"]: each for each in json.loads(command(app, ["runs", "--journal", url, "--json"]).stdout)}
    assert (listed["rows"]["steps"], listed["rows"]["status"], listed["torn"]["steps"]) == (90, "finished", 1)
    shown = json.loads(command(app, ["show", "rows", "--journal", url, "--json"]).stdout)
    assert shown["hardest"][0]["samples"] > 2
    exported = command(app, ["export", "rows", "--journal", url]).stdout.splitlines()
    assert len(exported) == 90 and json.loads(exported[0])["place"] == "row0"
    assert command(app, ["prune", "rows", "--yes", "--journal", url]).exit_code == 0
    journal = Journal(url)
    assert [row["id"] for row in journal.all_runs()] == ["torn"]
    assert journal.totals("rows")["steps"] == 0
    journal.close()


def test_hostile_text_comes_back(url):
    text = "nul \0 and ' and \" and % and :x and \U0001f511 \ud83d".encode("utf-8", "replace").decode()
    run = Run(Scripted([text, "?", text, text]), vote=AheadBy(4), journal=url, id="r'; DROP TABLE runs; --", keep_samples=True)
    answer = run.ask_sync("q")
    journal = run.journal
    assert answer.value == text.strip()
    assert [row.answer for row in journal.rows(1)] == [answer.value]
    assert [each["text"] for each in journal.samples(1, 0)][:2] == [text.replace("\0", "\ufffd"), "?"]
    run.close()


# who holds a run


@pytest.mark.parametrize("fault", ["after-vote:20:STOP", "before-sync:1:STOP", "after-write:9:STOP", "before-finish:1:STOP"])
def test_a_paused_process_that_wakes_up_writes_nothing(url, tmp_path, fault):
    """It is stopped for longer than its lease, another one finishes the run, and then it goes on."""
    settings = {**TOWER, "set": {"disks": 6}, "lease": 0.3}
    paused = child(settings, url, tmp_path / "paused.log", fault)
    os.waitid(os.P_PID, paused.pid, os.WSTOPPED)
    second = killed.run({**settings, "lease": 15.0}, url, tmp_path / "second.log")
    deadline = time.monotonic() + 60
    while True:
        try:
            assert second.execute_sync(Hanoi(6)).correct
            break
        except Busy:  # the lease has to end
            assert time.monotonic() < deadline
            time.sleep(0.05)
    second.close()
    before = content(url)
    paused.send_signal(signal.SIGCONT)
    _, error = paused.communicate(timeout=60)
    assert content(url) == before
    assert len(before["steps"]) == 63
    if not fault.startswith("before-finish"):  # there it had nothing more to say
        assert paused.returncode == 1 and "does not hold the run any more" in error


def test_of_many_that_want_a_run_one_gets_it(url):
    Journal(url).close()
    script = """
import asyncio, sys
from keystep.run import Journal
from keystep.run.budget import Meter
from keystep.errors import Busy, KeystepError
async def main():
    journal = Journal(sys.argv[1])
    try:
        journal.begin("r", "test", None, {"work": {}})
    except KeystepError:
        pass
    sys.stdin.readline()
    try:
        journal.acquire("r", Meter)
        print("mine", flush=True)
    except Busy:
        print("busy", flush=True)
    await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""
    racers = [
        subprocess.Popen([sys.executable, "-c", script, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [racer.stdout.readline().strip() for racer in racers]
    for racer in racers:
        racer.communicate()
    assert sorted(said) == ["busy", "busy", "busy", "mine"]


# a server that goes away


class Disturbed(Worker):
    """Calls `disturb` when so many samples have been asked for."""

    def __init__(self, weights, at, disturb):
        super().__init__(weights)
        self.at, self.disturb = set(at), disturb

    async def sample(self, request):
        async for sample in super().sample(request):
            if len(self.asked) in self.at:
                self.at.remove(len(self.asked))
                self.disturb()
            yield sample


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_postgres_restarts_under_a_thousand_short_runs(postgres, mode):
    """`immediate` is a crash: what was committed asynchronously and not yet on the disk is forgotten, and has to be brought back."""
    url, threads = postgres.fresh(), []

    def restart():
        postgres.stop(mode)
        postgres.start()

    def at_once():
        threads.append(threading.Thread(target=restart))
        threads[-1].start()

    lm = Disturbed((0.9, 0.05), [2000, 6000], at_once)
    run = Run(lm, vote=AheadBy(4), journal=url, id="r")
    rows = [{"steps": 2, "instance": number} for number in range(1000)]
    outcome = Many(lambda row: Ledger(words=5, **row), rows).execute_sync(run)
    for thread in threads:
        thread.join()
    run.close()
    assert len(threads) == 2
    assert (outcome.rows.finished, outcome.correct, outcome.steps) == (1000, True, 2000)
    assert not [key for key, times in Counter(lm.asked).items() if times > 1]
    journal = Journal(url)
    assert next(journal.select(sa.select(sa.func.count()).select_from(steps)))[0] == 2000
    assert journal.totals("r")["samples"] == len(lm.asked)
    journal.close()


def test_a_crash_of_the_server_in_the_midst_of_a_long_run(postgres, tmp_path):
    url = postgres.fresh()

    def crash():
        postgres.stop("immediate")
        postgres.start()

    lm = Disturbed((0.9, 0.05), [601, 602, 1400], crash)
    run = Run(lm, vote=AheadBy(4), journal=Journal(url, group=64), id="r", keep_samples=True)
    assert run.execute_sync(Hanoi(9)).correct
    run.close()
    plain = Run(Worker((0.9, 0.05)), vote=AheadBy(4), journal=f"sqlite:///{tmp_path}/a.db", id="r", keep_samples=True)
    plain.execute_sync(Hanoi(9))
    plain.close()
    ours, theirs = without_seconds(content(url)), without_seconds(content(f"sqlite:///{tmp_path}/a.db"))
    assert (ours["steps"], ours["samples"]) == (theirs["steps"], theirs["samples"])


def test_a_server_that_stays_away_stops_the_run_and_it_goes_on_later(postgres, monkeypatch):
    monkeypatch.setattr(database_module, "PATIENCE", 0.1)
    url = postgres.fresh()
    run = Run(Disturbed((0.9, 0.05), [600], postgres.stop), vote=AheadBy(4), journal=url, id="r")
    with pytest.raises(JournalError, match="cannot be used"):
        run.execute_sync(Hanoi(8))
    with pytest.raises(JournalError) as refused:
        Journal(url.replace("keystep@", "keystep:secret@"))
    assert "secret" not in str(refused.value)
    postgres.start()
    lm = Worker((0.9, 0.05))
    again = Run(lm, vote=AheadBy(4), journal=url, id="r")
    assert again.execute_sync(Hanoi(8)).correct
    assert int(lm.asked[0][0].rpartition("/")[2]) > 50
    again.close()


def test_the_tables_have_a_schema_of_their_own(postgres):
    """So that a journal can stand in a database that has tables of other programs, even of the same names."""
    url = postgres.fresh()
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE runs (mine integer)")
    Journal(url).close()
    Journal(url).close()
    assert set(sa.inspect(engine).get_table_names(schema="keystep")) == {*metadata.tables, "journal_version"}
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE keystep.journal_version SET version = 99")
    with pytest.raises(JournalError, match="newer keystep"):
        Journal(url)
    engine.dispose()


def test_a_driver_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    result = CliRunner().invoke(app, ["run", "hanoi", "--set", "disks=3", "--journal", "postgresql://user@127.0.0.1:1/x"])
    assert result.exit_code == 2 and "pip install 'keystep[postgres]'" in result.stderr


def test_names_of_runs_are_bounded(url):
    run = Run(Scripted(["a"]), journal=url, id="x" * 65)
    with pytest.raises(BadInput, match="1 to 64"):
        run.ask_sync("q")
    run.close()
