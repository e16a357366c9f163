import asyncio
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from statements import meet
from worker import Scripted, Worker

from keystep.errors import BadInput, BudgetSpent, Busy, ChangedWork, JournalError, Undecided
from keystep.lm.base import Sample
from keystep.run import AheadBy, Budget, Journal, Procedure, Run, Sampling, TooLong, journal_reader
from keystep.run import journal as module
from keystep.run.budget import Meter
from keystep.run.builtin import Hanoi, Ledger
from keystep.run.canonical import dumps
from keystep.run.tables import VERSION

ROW = (None, None, "1", 3, 0, None, 10, 20, 0.5, 0.25)


class Count(Procedure):
    """Adds what it is told, `steps` times; the state is a dict in which every answer is kept."""

    def __init__(self, steps, wording="add to"):
        self.steps, self.wording = steps, wording

    def start(self):
        return {"sum": 0, "last": []}

    def prompt(self, state):
        return f"{self.wording} {state['sum']}"

    def parse(self, text, state):
        return int(text)

    def update(self, state, answer):
        return {"sum": state["sum"] + answer, "last": [*state["last"][-3:], answer]}

    def done(self, state):
        return False

    def total(self):
        return self.steps

    def identity(self):
        return {"count": self.steps, "wording": self.wording}


def begun(path=None, **options):
    journal = Journal(path, **options)
    journal.begin("r", "test", {"a": 1}, {"work": {}})
    journal.acquire("r", Meter)
    return journal


def within_loop(work):
    async def main():
        return work()

    return asyncio.run(main())


def watch(journal):
    """Every statement the journal makes from now on."""
    seen = []
    meet(journal, seen.append)
    return seen


def forced(seen):
    return seen.count("PRAGMA synchronous=FULL")


# what goes in comes out

texts = st.text(max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(json_values, max_size=6), json_values)
@settings(max_examples=40)
def test_answers_come_back_in_order(answers, spec):
    journal = Journal()
    journal.begin("r", "test", spec, {"work": {}})
    journal.acquire("r", Meter)

    def work():
        scope, at, state = journal.open_scope("r", "0")
        assert (at, state) == (0, None)
        for seq, answer in enumerate(answers):
            journal.put(scope, seq, (None, None, dumps(answer), 3, 1, None, 10, 20, 0.5, 0.25))
        return list(journal.rows(scope)), list(journal.rows(scope, since=2))

    rows, later = within_loop(work)
    assert [(row.seq, row.answer) for row in rows] == list(enumerate(answers))
    assert later == rows[2:]
    assert journal.run("r")["spec"] == spec
    assert journal.totals("r") == {
        "steps": len(answers), "sampled": len(answers), "samples": 3 * len(answers), "flagged": len(answers),
        "tokens_in": 10 * len(answers), "tokens_out": 20 * len(answers), "cost": 0.25 * len(answers),
    }  # fmt: skip
    journal.close()


def test_samples_and_traces_come_back(tmp_path):
    journal = begun(tmp_path / "a.db")
    kept = [(1, "b", '"b"', None, "m", 4, -0.5), (0, "?", None, "malformed", "m", 1, None)]

    def work():
        first, _, _ = journal.open_scope("r", "0")
        second, _, _ = journal.open_scope("r", "0/sub")
        journal.put(second, 0, ("name", "skill", '{"x":[1]}', 9, 1, '{"\\"a\\"":2,"\\"b\\"":3}', 1, 2, 0.5, 0.0), kept)
        journal.put(first, 0, ROW)
        return second

    second = within_loop(work)
    assert [(s["idx"], s["text"], s["key"], s["flag"], s["logprob"]) for s in journal.samples(second, 0)] == [
        (0, "?", None, "malformed", None), (1, "b", '"b"', None, -0.5),
    ]  # fmt: skip
    in_order = list(journal.trace("r"))
    assert [path for path, _ in in_order] == ["0", "0/sub"]
    assert in_order[1][1].candidates == {'"a"': 2, '"b"': 3}
    assert (in_order[1][1].name, in_order[1][1].skill, in_order[1][1].answer) == ("name", "skill", {"x": [1]})
    assert [path for path, _ in journal.trace("r", limit=1)] == ["0/sub"]
    journal.close()
    with Journal(tmp_path / "a.db").database.engine.connect() as other:
        assert other.exec_driver_sql("SELECT count(*) FROM steps").scalar() == 2


def test_runs_are_listed_newest_first():
    journal = Journal()
    for name in ("a", "b"):
        journal.begin(name, "test", None, {})
    assert [run["id"] for run in journal.all_runs()] == ["b", "a"]
    with pytest.raises(BadInput, match="has a run of this name"):
        journal.begin("a", "test", None, {})
    with pytest.raises(BadInput, match="no such run"):
        journal.run("c")
    journal.close()


def test_decisions():
    journal = begun()
    scope, _, _ = journal.open_scope("r", "0")
    journal.note_undecided(scope, 4, "4", {"samples": 9})
    journal.note_undecided(scope, 4, "4", {"samples": 10})
    assert [(row["step"], row["ledger"], row["decision"]) for row in journal.undecided("r")] == [("4", {"samples": 10}, None)]
    assert journal.decision(scope, 4) is None
    with pytest.raises(BadInput, match="undecided are: 4"):
        journal.decide("r", "5", 1)
    journal.decide("r", "4", {"b": 1, "a": None})
    assert journal.decision(scope, 4) == '{"a":null,"b":1}'
    journal.close()


def test_canonical_json():
    assert dumps({"b": 1, "a": "é"}) == dumps({"a": "é", "b": 1}) == '{"a":"é","b":1}'
    with pytest.raises(BadInput):
        dumps({"a": float("inf")})


# which samples are kept


def test_only_samples_of_disagreeing_votes_are_kept(tmp_path):
    for keep in (False, True):
        path = tmp_path / f"{keep}.db"
        run = Run(Worker((0.85, 0.1)), vote=AheadBy(3), journal=path, id="r", keep_samples=keep)
        run.execute_sync(Hanoi(5))
        scope, _, _ = run.journal.open_scope("r", "0")
        rows = list(run.journal.rows(scope))
        kept = [len(run.journal.samples(scope, row.seq)) for row in rows]
        unanimous = [row.candidates is None and not row.flagged for row in rows]
        assert {True, False} == set(unanimous)
        assert kept == [0 if clean and not keep else row.samples for clean, row in zip(unanimous, rows, strict=True)]
        for row in rows:
            if row.candidates:
                assert sum(row.candidates.values()) == row.samples - row.flagged
                assert max(row.candidates, key=row.candidates.__getitem__) == dumps(row.answer)
        run.close()


# group commit


class Still:
    """time, standing still unless told."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def time(self):
        return time.time()


def followed(monkeypatch, steps, *, pace, **options):
    """(statements, steps unsynced at most) of a run whose clock moves on by `pace` at every step."""
    clock = Still()
    monkeypatch.setattr(module, "time", clock)
    if not pace:
        monkeypatch.setattr(module, "SYNC_SECONDS", 1e6)  # nor shall the loop's own clock have a say
    journal = Journal(**options)
    clock.now += 1
    unsynced = []

    def answer(request, index):
        clock.now += pace
        written = journal.database.connection.exec_driver_sql("SELECT count(*) FROM steps").scalar()
        unsynced.append(written - (journal.database.connection.exec_driver_sql("SELECT max(at) FROM scopes").scalar() or 0))
        return "1"

    seen = watch(journal)
    run = Run(Scripted(answer, rank=lambda index: 0), vote=AheadBy(1), journal=journal)
    outcome = run.execute_sync(Count(steps))
    assert outcome.result["sum"] == steps
    run.close()
    return seen, max(unsynced)


def test_a_group_of_steps_is_forced_to_the_disk_at_once(monkeypatch):
    seen, unsynced = followed(monkeypatch, 100, pace=0.0, group=10)
    assert (unsynced, forced(seen)) == (9, 11)  # every ten steps, and at the end


def test_by_default_256_steps_are_a_group(monkeypatch):
    seen, unsynced = followed(monkeypatch, 1024, pace=0.0)
    assert (unsynced, forced(seen)) == (255, 5)


def test_slow_steps_are_forced_one_by_one(monkeypatch):
    seen, unsynced = followed(monkeypatch, 20, pace=0.051)
    assert unsynced <= 1
    assert forced(seen) >= 20


def test_a_group_of_one_forces_every_step(monkeypatch):
    seen, unsynced = followed(monkeypatch, 20, pace=0.0, group=1)
    assert (unsynced, forced(seen)) == (0, 21)


def test_normal_leaves_the_forcing_to_sqlite(monkeypatch):
    seen, _ = followed(monkeypatch, 20, pace=0.0, group=5, synchronous="NORMAL")
    assert forced(seen) == 0
    with pytest.raises(BadInput):
        Journal(synchronous="OFF")
    with pytest.raises(BadInput):
        Journal(group=0)


def test_a_lonely_step_is_forced_by_the_clock(monkeypatch):
    """No further step comes; the timer has to do it (and not the one that renews the lease)."""
    monkeypatch.setattr(module, "LEASE_SECONDS", 1e6)
    journal = begun()

    async def main():
        journal.acquire("r", Meter)
        scope, _, _ = journal.open_scope("r", "0")
        journal.put(scope, 0, ROW, stands={"s": 0})  # the first one after a pause is forced at once
        journal.put(scope, 1, ROW, stands={"s": 1})
        for _ in range(500):
            if journal.open_scope("r", "0")[1:] == (2, {"s": 1}):
                return True
            await asyncio.sleep(0.01)
        return False

    assert asyncio.run(main())
    journal.close()


def test_what_sync_asks_leave_is_forced_before_they_return():
    run = Run(Scripted(["a"]), vote=AheadBy(1))
    seen = watch(run.journal)
    for number in range(4):
        run.ask_sync(str(number))
        assert run.journal._unsynced == 0
    assert forced(seen) >= 4
    run.close()


def test_every_step_is_written_before_the_next_is_asked(tmp_path):
    """By another connection's eyes, so it would survive this process."""
    path, found = tmp_path / "a.db", []

    def answer(request, index):
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as reader:
            found.append(reader.execute("SELECT count(*) FROM steps").fetchone()[0])
        reader.close()
        return "1"

    run = Run(Scripted(answer), vote=AheadBy(1), journal=path)
    run.execute_sync(Count(30))
    run.close()
    assert found == list(range(30))


# resume


def crashed(tmp_path, lm, work, at, **options):
    """The files of a journal as a kill leaves them, copied away in the middle of step `at`."""
    path, copy = tmp_path / "whole.db", tmp_path / "crashed.db"
    sample = lm.sample

    async def copying(request):
        if request.key == f"0/{at}" and not copy.exists():
            for end in ("-wal", ""):
                shutil.copy(f"{path}{end}", f"{copy}{end}")
        async for one in sample(request):
            yield one

    lm.sample = copying
    run = Run(lm, vote=AheadBy(2), journal=Journal(path, **options), id="r")
    outcome = run.execute_sync(work)
    run.close()
    return copy, outcome


@pytest.mark.parametrize("at", [0, 1, 700, 999])
def test_a_resume_reads_no_more_than_what_is_behind_the_last_sync(tmp_path, monkeypatch, at):
    copy, whole = crashed(tmp_path, Worker((0.9, 0.05)), Ledger(1000, words=5), at, group=64)
    read, row = [], journal_reader._row
    monkeypatch.setattr(journal_reader, "_row", lambda values: read.append(values[0]) or row(values))
    before = []

    class Watched(Worker):
        async def sample(self, request):
            before.append(len(read))
            async for one in super().sample(request):
                yield one

    lm = Watched((0.9, 0.05))
    run = Run(lm, vote=AheadBy(2), journal=copy, id="r")
    outcome = run.execute_sync(Ledger(1000, words=5))
    run.close()
    assert before[0] <= 64
    assert lm.asked[0] == (f"0/{at}", 0)
    assert outcome.model_dump(exclude={"seconds"}) == whole.model_dump(exclude={"seconds"})
    assert whole.steps == 1000


@pytest.mark.parametrize(("limit", "most"), [({"tokens": 100}, 100 / 7), ({"cost": 3.0}, 6), ({"calls": 9}, 9)])
def test_what_undecided_steps_took_counts_however_often_they_are_resumed(limit, most, tmp_path):
    drawn = 0
    for _ in range(9):
        torn = Scripted(lambda request, index: Sample(str(index), tokens_in=2, tokens_out=5, cost=0.5))
        run = Run(torn, vote=AheadBy(2, cap=4), journal=tmp_path / "a.db", id="r", budget=Budget(**limit))
        with pytest.raises((Undecided, BudgetSpent)) as stopped:
            run.execute_sync(Count(5))
        run.close()
        drawn += torn.drawn
    assert isinstance(stopped.value, BudgetSpent) and most <= drawn <= most + 4


def test_the_state_is_a_snapshot_of_where_the_steps_stand(tmp_path):
    path = tmp_path / "a.db"
    run = Run(Scripted(lambda request, index: "2"), vote=AheadBy(1), journal=path, id="r", budget=Budget(calls=7))
    with pytest.raises(BudgetSpent):
        run.execute_sync(Count(50))
    run.close()
    journal = Journal(path)
    assert journal.open_scope("r", "0")[1:] == (7, {"sum": 14, "last": [2, 2, 2, 2]})
    assert journal.run("r")["status"] == "stopped"
    assert "budget" in journal.run("r")["why"]
    assert journal.run("r")["calls"] == 7
    journal.close()
    more = Run(Scripted(["3"]), vote=AheadBy(1), journal=path, id="r")
    assert more.execute_sync(Count(50)).result["sum"] == 14 + 43 * 3
    more.close()


def test_a_finished_run_is_not_asked_again(tmp_path):
    first = Run(Worker(), journal=tmp_path / "a.db", id="r")
    outcome = first.execute_sync(Hanoi(4))
    first.close()
    lm = Worker()
    again = Run(lm, journal=tmp_path / "a.db", id="r")
    assert again.execute_sync(Hanoi(4)).model_dump(exclude={"seconds"}) == outcome.model_dump(exclude={"seconds"})
    assert lm.asked == []
    again.close()


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        ({"work": Hanoi(5)}, "work.0.procedure.disks: was 4, is 5"),
        ({"lm": Worker((0.5,))}, r"model.worker: was \[1.0\], is \[0.5\]"),
        ({"vote": AheadBy(4)}, r"vote: was 'AheadBy\(k=3, cap=100\)', is 'AheadBy\(k=4, cap=100\)'"),
        ({"flags": [TooLong(5)]}, r"flags: was \[\], is \['TooLong\(tokens=5\)'\]"),
        ({"sampling": Sampling(temperature=0.5)}, "sampling: was .*temperature=1.0.*temperature=0.5"),
        ({"seed": 1}, "seed: was 0, is 1"),
    ],
)
def test_changed_work_is_refused_with_the_difference(tmp_path, changed, shown):
    first = Run(Worker(), journal=tmp_path / "a.db", id="r")
    first.execute_sync(Hanoi(4))
    first.close()
    options = {"lm": Worker(), "work": Hanoi(4), **changed}
    lm, work = options.pop("lm"), options.pop("work")
    run = Run(lm, journal=tmp_path / "a.db", id="r", **options)
    with pytest.raises(ChangedWork, match=shown) as refused:
        run.execute_sync(work)
    assert not [line for line in str(refused.value).splitlines() if not line.strip()]  # what is equal has no line
    assert lm.asked == []
    run.close()


def test_a_changed_prompt_is_shown_as_a_difference_of_lines(tmp_path):
    before, after = "Think well.\nadd to", "Think hard.\nadd to"
    first = Run(Scripted(["1"]), journal=tmp_path / "a.db", id="r")
    first.execute_sync(Count(3, before))
    first.close()
    run = Run(Scripted(["1"]), journal=tmp_path / "a.db", id="r")
    with pytest.raises(ChangedWork, match=r"(?s)wording as begun.*-Think well\..*\+Think hard\."):
        run.execute_sync(Count(3, after))
    run.close()


@pytest.mark.parametrize("procedure", [Hanoi(3), Ledger(3, words=4)])
def test_a_changed_prompt_of_a_built_in_procedure_is_refused(tmp_path, procedure, monkeypatch):
    first = Run(Worker(), journal=tmp_path / "a.db", id="r")
    first.execute_sync(procedure)
    first.close()
    prompt = type(procedure).prompt
    monkeypatch.setattr(type(procedure), "prompt", lambda self, state: prompt(self, state).replace("exactly", "just"))
    run = Run(Worker(), journal=tmp_path / "a.db", id="r")
    with pytest.raises(ChangedWork, match="just two lines"):
        run.execute_sync(procedure)
    run.close()


def test_later_work_of_a_run_is_guarded_too(tmp_path):
    first = Run(Worker(), journal=tmp_path / "a.db", id="r")
    first.execute_sync(Hanoi(3))
    first.execute_sync(Hanoi(4))
    first.close()
    run = Run(Worker(), journal=tmp_path / "a.db", id="r")
    run.execute_sync(Hanoi(3))
    with pytest.raises(ChangedWork, match=r"work\.1\.procedure\.disks: was 4, is 5"):
        run.execute_sync(Hanoi(5))
    run.close()


# journals that cannot be used


def test_a_newer_journal_is_refused(tmp_path):
    Journal(tmp_path / "a.db").close()
    with sqlite3.connect(tmp_path / "a.db") as database:
        assert database.execute("PRAGMA user_version").fetchone() == (VERSION,)
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(JournalError, match="newer keystep"):
        Journal(tmp_path / "a.db")


def test_another_database_is_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "a.db") as database:
        database.execute("CREATE TABLE mine (x)")
    database.close()
    with pytest.raises(JournalError, match="not a journal"):
        Journal(tmp_path / "a.db")
    with sqlite3.connect(tmp_path / "a.db") as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("mine",)]
    database.close()


def test_paths_that_cannot_be_a_journal(tmp_path):
    (tmp_path / "text.db").write_text("These are the minutes of the meeting. " * 50)
    for path in (tmp_path / "text.db", tmp_path / "missing" / "a.db", tmp_path):
        with pytest.raises(JournalError, match="journal"):
            Journal(path)
    assert (tmp_path / "text.db").read_text().startswith("These are the minutes")


@pytest.mark.parametrize("url", ["mysql://localhost/x", "nosuch://x", "sqlite+nosuch:///a.db"])
def test_other_databases_are_bad_input(url):
    with pytest.raises(BadInput) as refused:
        Journal(url)
    assert refused.value.field == "journal"


def test_a_read_only_journal_is_refused(tmp_path):
    Journal(tmp_path / "a.db").close()
    with pytest.raises(JournalError, match="readonly"):
        journal = Journal(f"sqlite:///file:{tmp_path}/a.db?mode=ro&uri=true")
        within_loop(lambda: begun_in(journal))


def begun_in(journal):
    try:
        journal.begin("r", "test", None, {})
    finally:
        journal.close()


@pytest.mark.parametrize("name", ["a b.db", "what?.db", "50%.db", "#1.db", "ä.db"])
def test_any_file_name_will_do(tmp_path, name):
    Journal(tmp_path / name).close()
    assert (tmp_path / name).exists()


def test_a_full_disk_stops_the_run_and_it_goes_on_later(tmp_path):
    path = tmp_path / "a.db"
    journal = Journal(path)
    pages = journal.database.connection.exec_driver_sql("PRAGMA page_count").scalar()
    journal.database.connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 3}")
    run = Run(Worker((0.9, 0.05)), vote=AheadBy(2), journal=journal, id="r", keep_samples=True)
    with pytest.raises(JournalError, match="full"):
        run.execute_sync(Hanoi(8))
    journal.close()
    done = Journal(path).totals("r")["steps"]
    assert 0 < done < 255
    lm = Worker((0.9, 0.05))
    again = Run(lm, vote=AheadBy(2), journal=path, id="r", keep_samples=True)
    assert again.execute_sync(Hanoi(8)).correct
    assert lm.asked[0] == (f"0/{int(done)}", 0)
    again.close()


# who holds a run

HOLD = """
import asyncio, sys
from keystep.run import Journal
from keystep.run.budget import Meter

async def hold():
    Journal(sys.argv[1]).acquire("r", Meter)
    print("held", flush=True)
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(hold())
"""


def test_a_second_living_process_is_refused_and_a_dead_one_is_succeeded(tmp_path):
    path = tmp_path / "a.db"
    left = begun(path)
    left.end("stopped")
    left.close()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        lm = Scripted(["1"])
        run = Run(lm, vote=AheadBy(1), journal=path, id="r")
        run.journal._run(sa.update(module.runs).values(identity=dumps({**run.asking.identity(), "work": {}})))
        with pytest.raises(Busy, match=f"{socket.gethostname()}:{holder.pid}"):
            run.execute_sync(Count(3))
        assert lm.drawn == 0
    finally:
        holder.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet cleared away by its parent
    assert run.execute_sync(Count(3)).result["sum"] == 3
    run.close()
    holder.communicate()


def test_of_another_machine_the_lease_tells():
    journal = begun()

    def owned(lease):
        journal._run(sa.update(module.runs).values(owner="elsewhere:1", lease=lease))
        within_loop(lambda: journal.acquire("r", Meter))

    with pytest.raises(Busy):
        owned(time.time() + 60)
    owned(time.time() - 1)
    assert journal.run("r")["owner"] == f"{socket.gethostname()}:{os.getpid()}"
    journal.close()


def test_the_lease_is_renewed_while_a_step_takes_long(monkeypatch):
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.3)
    journal = begun()

    async def main():
        journal.acquire("r", lambda: Meter(calls=2))
        taken = journal.run("r")["lease"]
        for _ in range(500):
            await asyncio.sleep(0.01)
            if journal.run("r")["lease"] > taken + 0.3:  # twice renewed, past the first lease's end
                return True
        return False

    assert asyncio.run(main())
    journal.close()


def test_who_has_lost_the_lease_writes_no_state():
    journal = begun()

    def work():
        journal.acquire("r", Meter)
        scope, _, _ = journal.open_scope("r", "0")
        journal.put(scope, 0, ROW, stands={"s": 0})
        journal._run(sa.update(module.runs).values(owner="elsewhere:1", lease=time.time() + 60, fence=9))
        journal._stands[scope] = (9, {"s": "mine"})
        with pytest.raises(Busy, match="does not hold"):
            journal.sync()
        journal.end("finished")
        return scope

    within_loop(work)
    assert journal.open_scope("r", "0")[1:] == (1, {"s": 0})
    assert (journal.run("r")["owner"], journal.run("r")["status"]) == ("elsewhere:1", "running")
    journal.close()


def test_two_runs_cannot_share_one_journal_object():
    journal = Journal()
    one, two = (Run(Scripted(["a"]), vote=AheadBy(1), journal=journal) for _ in range(2))
    one.ask_sync("q")
    with pytest.raises(Busy, match="journal object"):
        two.ask_sync("q")
    assert journal.run(one.id)["status"] == "running"
    one.close()


def test_two_answers_for_one_step_are_never_both_written(tmp_path):
    journal = begun(tmp_path / "a.db")

    def work():
        scope, _, _ = journal.open_scope("r", "0")
        journal.put(scope, 0, ROW)
        with pytest.raises(JournalError):
            journal.put(scope, 0, (None, None, "2", *ROW[3:]), [(0, "2", "2", None, "m", 1, None)])
        return [row.answer for row in journal.rows(scope)], journal.samples(scope, 0)

    assert within_loop(work) == ([1], [])
    journal.close()
