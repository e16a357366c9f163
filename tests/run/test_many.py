"""Many inputs: rows do not disturb one another, whatever happens to one of them, to the process, or to the order."""

import asyncio
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from dataclasses import dataclass

import killed_many
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worker import Scripted, Worker

from keystep.errors import BadInput, BudgetSpent, ChangedWork, JournalError, ModelError
from keystep.run import AheadBy, Budget, Context, First, Journal, Many, Procedure, Run
from keystep.run.builtin.ledger import Ledger
from keystep.run.many import UNREACHED, input_rows

ROWS = [{"steps": 3 + number * 5 % 7, "instance": number} for number in range(7)]


def ledger(row):
    return Ledger(words=5, **row)


def run_on(path=None, lm=None, **options):
    return Run(lm or Worker([0.85, 0.08]), **{"vote": AheadBy(2), "journal": path, "id": "r", "seed": 0, **options})


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_row(path):
    found = lines(path)
    assert [each for each, times in Counter(line["row"] for line in found).items() if times > 1] == []
    return {line["row"]: line for line in found}


def steps_of(path):
    """Every journaled step, by (place, number), but for times."""
    with closing(sqlite3.connect(path)) as database:
        query = """SELECT path, seq, answer, samples, flagged, candidates, tokens_in, tokens_out FROM steps JOIN scopes ON scope = id"""
        return {(place, seq): rest for place, seq, *rest in database.execute(query)}


# A row's result is its own.


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The journaled steps and the last state of every row of ROWS, each run by itself, last row first."""
    steps, results = {}, {}
    for number in reversed(range(len(ROWS))):
        path = tmp_path_factory.mktemp("alone") / "run.db"
        run = run_on(path)

        async def one(run, place, procedure):
            run._begin({place: {"name": "alone"}})
            return await Context(run, place).carry_out(procedure, None, None)

        results[number] = asyncio.run(one(run, f"row{number}", ledger(ROWS[number])))
        run.close()
        steps |= steps_of(path)
    return steps, results


@pytest.mark.parametrize(("concurrency", "pause"), [(1, False), (3, False), (3, True), (64, True)])
def test_a_row_comes_out_as_it_does_alone(tmp_path, alone, concurrency, pause):
    run = run_on(tmp_path / "run.db", Worker([0.85, 0.08], pause=pause))
    outcome = Many(ledger, ROWS, results=tmp_path / "out.jsonl", concurrency=concurrency).execute_sync(run)
    steps, results = alone
    assert steps_of(tmp_path / "run.db") == steps
    found = by_row(tmp_path / "out.jsonl")
    assert {number: line["result"] for number, line in found.items()} == results
    for number, line in found.items():
        assert list(line) == ["row", "ok", "result", "correct", "first_error_step", "steps", "samples", "error"]
        assert (line["ok"], line["steps"], line["error"]) == (True, ROWS[number]["steps"], None)
        assert line["correct"] is (line["first_error_step"] is None)
    assert outcome.steps == len(steps) == sum(row["steps"] for row in ROWS)
    assert outcome.samples == sum(line["samples"] for line in found.values()) == run.meter.calls
    assert outcome.rows.model_dump() == {
        "total": 7, "finished": 7, "failed": 0, "set_aside": 0, "wrong": sum(not line["correct"] for line in found.values()),
    }  # fmt: skip
    assert run.journal.run("r")["status"] == "finished"


def test_rows_start_in_file_order_and_take_turns(tmp_path):
    lm = Worker([1.0])  # it never waits for anything
    Many(ledger, [{"steps": 10}] * 12, concurrency=4).execute_sync(run_on(lm=lm, vote=First()))
    asked = [tuple(map(int, re.findall(r"\d+", key))) for key, _ in lm.asked]
    assert list(dict.fromkeys(row for row, _ in asked)) == list(range(12))
    done = Counter()
    for row, step in asked:
        assert step == done[row]
        done[row] += 1
        first_group = [done[number] for number in range(4)]
        assert max(first_group) - min(first_group) <= 1


def test_a_thousand_rows(tmp_path):
    @dataclass
    class Count(Procedure):
        row: int
        name = "count"

        def start(self):
            return 0

        def prompt(self, state):
            return f"{self.row} {state}"

        def update(self, state, answer):
            return state + 1

        def done(self, state):
            return state == 5

        def identity(self):
            return "count"

    lm = Scripted(lambda request, index: request.prompt, rank=lambda index: 0)
    run = run_on(tmp_path / "run.db", lm, vote=First())
    outcome = Many(lambda row: Count(**row), [{"row": n} for n in range(1000)], results=tmp_path / "out.jsonl").execute_sync(run)
    assert (outcome.steps, outcome.samples, outcome.correct, outcome.rows.finished) == (5000, 5000, None, 1000)
    assert sorted(by_row(tmp_path / "out.jsonl")) == list(range(1000))
    assert {place: row.answer for place, row in run.journal.trace("r") if row.seq == 4} == {f"row{n}": f"{n} 4" for n in range(1000)}


# What goes wrong in a row stays in it.


@dataclass
class Odd(Ledger):
    """A ledger that something is the matter with, at step 1."""

    wrong: str = ""

    def update(self, state, answer):
        if state[0] == 1 and self.wrong == "exception":
            raise KeyError("no such \ud800 thing")
        if state[0] == 1 and self.wrong == "bad input":
            raise BadInput("cannot be used", field="x")
        if state[0] == 1 and self.wrong == "cancelled":
            raise asyncio.CancelledError
        return super().update(state, answer)

    def done(self, state):
        return super().done(state) and self.wrong != "endless"

    def total(self):
        return None if self.wrong == "endless" else super().total()

    max_steps = 4

    def prompt(self, state):
        return super().prompt(state if state[0] < self.steps else [0, 0])


def odd(row):
    return Odd(steps=3, words=5, **row)


def test_failures_stay_in_their_row(tmp_path):
    kinds = ["", "exception", "bad input", "cancelled", "endless", "", "undecided", ""]
    rows = [{"instance": n, "wrong": kind if kind != "undecided" else ""} for n, kind in enumerate(kinds)]
    split = lambda request, index: written_of(request, index % 2 if request.key == "row6/2" else 0)  # noqa: E731
    lm = Scripted(split)
    run = run_on(tmp_path / "run.db", lm, vote=AheadBy(2, cap=6))
    out = tmp_path / "out.jsonl"
    outcome = Many(odd, rows, results=out, concurrency=3).execute_sync(run)
    assert outcome.rows.model_dump() == {"total": 8, "finished": 3, "wrong": 0, "failed": 5, "set_aside": 0}
    assert outcome.correct is None
    found = by_row(out)
    assert [number for number in range(8) if found[number]["ok"]] == [0, 5, 7]
    starts = {
        1: "KeyError: 'no such",
        2: "x: cannot be used",
        3: "CancelledError",
        4: "max_steps: did not end",
        6: "step row6/2: no winner",
    }
    for number, start in starts.items():
        assert found[number]["error"].startswith(start)
        assert (found[number]["result"], found[number]["correct"]) == (None, None)
    assert (found[1]["steps"], found[6]["steps"], found[4]["steps"]) == (1, 2, 4)
    row = run.journal.run("r")
    assert (row["status"], row["why"]) == ("stopped", "of 8 rows 5 failed")
    # Of the same run, once more: those that would fail for ever have their chances counted, finished ones are not asked.
    candidates = run.journal.undecided("r")[0]["ledger"]["candidates"]
    run.journal.decide("r", "row6/2", json.loads(next(iter(candidates))))
    asked = len(lm.requests)
    for attempt in (2, 3, 4):
        outcome = Many(odd, rows, results=out, concurrency=3).execute_sync(run)
        assert outcome.rows.finished == 4
        assert (outcome.rows.failed, outcome.rows.set_aside) == ((4, 0) if attempt < 3 else (1, 3))
        assert sorted(by_row(out)) == list(range(8))
    assert by_row(out)[6]["ok"] and by_row(out)[6]["steps"] == 3
    assert {request.key for request in lm.requests[asked:]} == {"row1/1", "row2/1", "row3/1"}
    assert run.journal.run("r")["why"] == "of 8 rows 1 failed and 3 set aside"
    outcome = Many(odd, rows, results=out, max_crashes=9).execute_sync(run)  # another chance
    assert (outcome.rows.failed, outcome.rows.set_aside) == (4, 0)
    assert outcome.steps == len(steps_of(tmp_path / "run.db"))


def written_of(request, candidate):
    from worker import written

    return written(request.prompt, candidate)


def test_a_mended_row_is_no_longer_set_aside_when_it_gets_on(tmp_path):
    """Crashes count in succession at one step: a row that gets further starts anew."""
    broken = {"at": 1}

    @dataclass
    class Mended(Ledger):
        def update(self, state, answer):
            if state[0] == broken["at"]:
                raise RuntimeError("not yet")
            return super().update(state, answer)

    run = run_on(tmp_path / "run.db", Worker([1.0]))
    many = Many(lambda row: Mended(steps=6, words=5), [{}])
    for at in (1, 1, 2, 3, 3):
        broken["at"] = at
        assert many.execute_sync(run).rows.failed == 1
    assert run.journal.row_states("r")[0][:3] == ("failed", 2, 3)
    assert many.execute_sync(run).rows.set_aside == 1


def test_a_model_that_is_gone_stops_all_and_one_bad_answer_does_not(tmp_path):
    class Gone(Worker):
        gone = ()

        async def sample(self, request):
            if self.gone == "all" or request.key in self.gone:
                raise ModelError("cannot be reached", field="model")
            async for sample in super().sample(request):
                yield sample

    lm, rows = Gone([1.0]), [{"steps": 2, "instance": n} for n in range(30)]
    run, out = run_on(tmp_path / "run.db", lm, vote=First()), tmp_path / "out.jsonl"
    lm.gone = "all"
    with pytest.raises(ModelError):
        Many(ledger, rows, results=out, concurrency=2).execute_sync(run)
    assert len(lines(out)) < UNREACHED + 2
    lm.gone = ("row3/1", "row20/0")
    outcome = Many(ledger, rows, results=out, concurrency=2).execute_sync(run)
    assert (outcome.rows.finished, outcome.rows.failed) == (28, 2)
    lm.gone = ()
    assert Many(ledger, rows, results=out).execute_sync(run).correct is True
    assert sorted(by_row(out)) == list(range(30)) and len(set(lm.asked)) == len(lm.asked) == 60


# What stops all.


def test_a_budget_is_that_of_all_rows(tmp_path):
    lm, rows = Worker([0.85, 0.08], pause=True), [{"steps": 4, "instance": n} for n in range(20)]
    for calls in (1, 50, 51, 150):
        run = run_on(tmp_path / "run.db", lm, budget=Budget(calls=calls))
        with pytest.raises(BudgetSpent, match=r"budget\.calls"):
            Many(ledger, rows, results=tmp_path / "out.jsonl", concurrency=8).execute_sync(run)
        assert run.meter.calls == calls and run.meter.flying == 0
        row = run.journal.run("r")
        assert (row["status"], row["calls"]) == ("stopped", calls)
        assert {status for status, *_ in run.journal.row_states("r").values()} <= {"stopped", "finished"}
        run.close()
    outcome = Many(ledger, rows, results=tmp_path / "out.jsonl").execute_sync(run_on(tmp_path / "run.db", lm))
    assert outcome.rows.finished == 20 and all(crashes == 0 for _, crashes, *_ in Journal(tmp_path / "run.db").row_states("r").values())
    Many(ledger, rows).execute_sync(run_on(tmp_path / "whole.db"))
    assert steps_of(tmp_path / "run.db") == steps_of(tmp_path / "whole.db")


def test_what_is_in_flight_when_a_budget_is_spent_is_kept(tmp_path):
    lm, rows = Worker([1.0], pause=True), [{"steps": 4, "instance": n} for n in range(20)]
    run = run_on(tmp_path / "run.db", lm, budget=Budget(tokens=1))
    with pytest.raises(BudgetSpent, match=r"budget\.tokens"):
        Many(ledger, rows, concurrency=8).execute_sync(run)
    assert run.meter.calls == 16  # two of each of eight rows, all of them asked before the first came
    assert len(steps_of(tmp_path / "run.db")) == 8


def test_a_journal_that_fails_stops_all(tmp_path):
    class Full(Journal):
        left = 30

        def put(self, *arguments, **options):
            self.left -= 1
            if not self.left:
                raise JournalError("disk full")
            return super().put(*arguments, **options)

    lm = Worker([0.85, 0.08], pause=True)
    journal = Full(tmp_path / "run.db")
    with pytest.raises(JournalError):
        Many(ledger, ROWS, results=tmp_path / "out.jsonl", concurrency=3).execute_sync(run_on(journal, lm))
    journal.close()
    assert not all(line["error"] for line in lines(tmp_path / "out.jsonl"))
    assert Many(ledger, ROWS, results=tmp_path / "out.jsonl").execute_sync(run_on(tmp_path / "run.db", lm)).rows.finished == 7
    assert sorted(by_row(tmp_path / "out.jsonl")) == list(range(7))


def test_cancelled_it_stops_cleanly_and_goes_on(tmp_path):
    lm = Worker([0.85, 0.08], pause=True)

    async def cancelled():
        run = run_on(tmp_path / "run.db", lm)
        task = asyncio.ensure_future(Many(ledger, ROWS, results=tmp_path / "out.jsonl", concurrency=3).execute(run))
        while len(lm.asked) < 40:  # noqa: ASYNC110
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        states = run.journal.row_states("r").values()
        assert {status for status, *_ in states} == {"finished", "stopped"} and not any(crashes for _, crashes, *_ in states)
        assert run.journal.run("r")["status"] == "stopped" and run.meter.flying == 0
        run.close()

    asyncio.run(cancelled())
    before = steps_of(tmp_path / "run.db")
    lm.asked.clear()
    Many(ledger, ROWS, results=tmp_path / "out.jsonl").execute_sync(run_on(tmp_path / "run.db", lm))
    assert not {key for key, _ in lm.asked} & {f"{place}/{seq}" for place, seq in before}
    assert sorted(by_row(tmp_path / "out.jsonl")) == list(range(7))


def test_a_second_process_is_refused(tmp_path):
    class Holds(Worker):
        async def sample(self, request):
            if not self.asked:
                code = f"""
import sys; sys.path[:0] = {[str(killed_many.__file__).rpartition("/")[0]]}
import keystep, test_many as t
try:
    t.Many(t.ledger, t.ROWS, results={str(tmp_path / "out.jsonl")!r}).execute_sync(t.run_on({str(tmp_path / "run.db")!r}))
except keystep.Busy:
    print("busy")
"""
                Holds.said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)  # noqa: ASYNC221
            async for sample in super().sample(request):
                yield sample

    outcome = Many(ledger, ROWS, results=tmp_path / "out.jsonl").execute_sync(run_on(tmp_path / "run.db", Holds([0.85, 0.08])))
    assert Holds.said.stdout == "busy\n", Holds.said.stderr
    assert outcome.rows.finished == 7 and len(by_row(tmp_path / "out.jsonl")) == 7


# Killed.


def attempt(child, folder, fault=None):
    command = [sys.executable, killed_many.__file__, json.dumps(child), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **({"KEYSTEP_FAULT": fault} if fault else {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def test_killed_with_rows_interleaved(tmp_path, alone):
    """Nothing journaled is asked again, no row is done twice, and every row comes out as it does alone."""
    child, read = {"rows": ROWS, "concurrency": 3}, 0
    faults = ["before-ask:7", "after-vote:9", "before-write:8", "after-write:11", "before-sync:2", "after-sync:2", "before-finish:1", None]
    (tmp_path / "asked.log").touch()
    for fault in faults:
        before = set(steps_of(tmp_path / "run.db")) if read else set()
        code = attempt(child, tmp_path, fault)
        assert code == (-signal.SIGKILL if fault else 0), f"{fault} was never passed"
        noted = (tmp_path / "asked.log").read_text().splitlines()
        asked, read = [tuple(line.split()) for line in noted[read:]], len(noted)
        assert max(Counter(asked).values(), default=1) == 1
        places = {(key.partition("/")[0], int(key.partition("/")[2])) for key, _ in asked}
        assert not places & before, f"asked again after {fault}"
        assert len(places - set(steps_of(tmp_path / "run.db"))) <= 3  # one open step per row under way
        with closing(sqlite3.connect(tmp_path / "run.db")) as database:
            finished = {row for (row,) in database.execute("SELECT row FROM rows WHERE status = 'finished'")}
        assert set(by_row(tmp_path / "results.jsonl")) <= finished
    steps, results = alone
    assert steps_of(tmp_path / "run.db") == steps
    assert {number: line["result"] for number, line in by_row(tmp_path / "results.jsonl").items()} == results


def test_killed_between_the_journal_and_the_results_file(tmp_path):
    child = {"rows": [{"steps": 1, "instance": n} for n in range(3)], "concurrency": 1, "model": [1.0]}
    assert attempt(child, tmp_path, "after-write:4")  # step, row, step, row
    assert [line["row"] for line in lines(tmp_path / "results.jsonl")] == [0]
    with (tmp_path / "results.jsonl").open("a") as torn:
        torn.write('{"row": 1, "ok": tr')
    assert attempt(child, tmp_path) == 0
    assert [line["row"] for line in lines(tmp_path / "results.jsonl")] == [0, 1, 2]
    assert len((tmp_path / "asked.log").read_text().splitlines()) == 6


def test_a_row_that_kills_the_process_is_set_aside_and_its_neighbours_are_not(tmp_path):
    child = {"rows": [{"steps": 4, "instance": n, "poison": 2 if n == 1 else None} for n in range(6)], "concurrency": 4, "model": [1.0]}
    codes = []
    while len(codes) < 8 and 0 not in codes:
        codes.append(attempt(child, tmp_path))
    assert codes == [-signal.SIGKILL] * 3 + [0]
    found = by_row(tmp_path / "results.jsonl")
    assert [number for number in range(6) if found[number]["ok"]] == [0, 2, 3, 4, 5]
    assert found[1]["error"] == "the process died 3 times at step 2" and found[1]["steps"] == 2
    with closing(sqlite3.connect(tmp_path / "run.db")) as database:
        assert database.execute("SELECT status, why FROM runs").fetchone() == ("stopped", "of 6 rows 1 set aside")


# What is read and written.


def test_a_resume_reads_no_step_of_a_row_that_ended(tmp_path):
    run = run_on(tmp_path / "run.db", budget=Budget(calls=60))
    with pytest.raises(BudgetSpent):
        Many(ledger, ROWS, concurrency=2).execute_sync(run)
    ended = [scope for status, _, _, scope in run.journal.row_states("r").values() if status == "finished"]
    assert len(ended) >= 2
    run.close()
    totals = Journal(tmp_path / "run.db").totals("r")
    with closing(sqlite3.connect(tmp_path / "run.db")) as database:
        summed = database.execute("SELECT count(*), sum(samples), sum(flagged), sum(tokens_in), sum(tokens_out) FROM steps").fetchone()
        database.executemany("DELETE FROM steps WHERE scope = ?", [(scope,) for scope in ended])
        database.commit()
    assert tuple(totals[name] for name in ("steps", "samples", "flagged", "tokens_in", "tokens_out")) == summed
    outcome = Many(ledger, ROWS).execute_sync(run_on(tmp_path / "run.db"))
    assert (outcome.rows.finished, outcome.steps) == (7, sum(row["steps"] for row in ROWS))


def test_a_journal_from_before_there_were_rows(tmp_path):
    run_on(tmp_path / "run.db", id="old").execute_sync(Ledger(steps=2, words=5))
    with closing(sqlite3.connect(tmp_path / "run.db")) as database:
        for table in ("rows", "intents"):
            database.execute(f"DROP TABLE {table}")
        for table, column in (("runs", "steps"), ("runs", "fence"), ("scopes", "crc"), ("steps", "crc")):
            database.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        database.execute("PRAGMA user_version=1")
    run = run_on(tmp_path / "run.db")
    assert Many(ledger, ROWS).execute_sync(run).rows.finished == 7
    assert run.journal.totals("old")["steps"] == 2


@pytest.mark.parametrize("rows", [ROWS[:-1], ROWS[::-1], [{**ROWS[0], "steps": 9}, *ROWS[1:]]])
def test_changed_inputs_are_refused(tmp_path, rows):
    run = run_on(tmp_path / "run.db", budget=Budget(calls=20))
    with pytest.raises(BudgetSpent):
        Many(ledger, ROWS, results=tmp_path / "out.jsonl").execute_sync(run)
    run.close()
    lm = Worker([0.85, 0.08])
    with pytest.raises(ChangedWork, match=r"work\.rows\.inputs"):
        Many(ledger, rows, results=tmp_path / "out.jsonl").execute_sync(run_on(tmp_path / "run.db", lm))
    assert lm.asked == []


def test_no_other_file_is_overwritten(tmp_path):
    lm, out = Worker([1.0]), tmp_path / "out.jsonl"
    out.write_text("precious\n")
    for place in (out, tmp_path, tmp_path / "none" / "out.jsonl", "/dev/null", "a\0b"):
        with pytest.raises(BadInput, match="results"):
            Many(ledger, ROWS, results=place).execute_sync(run_on(tmp_path / "run.db", lm))
    assert out.read_text() == "precious\n" and lm.asked == [] and Journal(tmp_path / "run.db").all_runs() == []


def test_results_that_cannot_be_written_stop_all_and_are_mended(tmp_path):
    out = tmp_path / "out.jsonl"
    many = Many(ledger, ROWS, results=out)
    mend = many._mend_results

    def full(run, **options):
        mend(run, **options)
        many._lines.close()
        many._lines = open("/dev/full", "ab", buffering=0)  # noqa: SIM115

    many._mend_results = full
    with pytest.raises(Exception, match="No space left"):
        many.execute_sync(run := run_on(tmp_path / "run.db"))
    assert run.journal.run("r")["status"] == "stopped"
    assert Many(ledger, ROWS, results=out).execute_sync(run).rows.finished == 7
    assert sorted(by_row(out)) == list(range(7))


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"max_crashes": 0}])
def test_numbers_out_of_range(options):
    with pytest.raises(BadInput, match="at least 1"):
        Many(ledger, ROWS, **options)


def test_no_rows():
    with pytest.raises(BadInput, match="there are no rows"):
        Many(ledger, [])


# Rows that cannot be used.


@pytest.mark.parametrize(
    ("row", "said"),
    [({"steps": 0}, r"row 7, steps: is from 1 to 1000000 \(got 0\)"), ({"words": 10**6}, "row 7, words: is from")],
)
def test_a_bad_row_is_named(row, said):
    with pytest.raises(BadInput, match=said):
        Many(lambda row: Ledger(**row), [*ROWS, row])


values = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.floats(), st.lists(st.integers(), max_size=2))


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from(["steps", "words", "instance", "set", "colour", ""]), values, min_size=1), st.integers(0, 3))
def test_whatever_stands_in_a_row_it_is_run_or_refused_by_name(row, place):
    from keystep.run.builtin import builtin

    build = lambda row: builtin("ledger", {"steps": 2, "words": 5, **{k: min(v, 9) if type(v) is int else v for k, v in row.items()}})  # noqa: E731
    rows = [{"instance": 1}] * place + [row]
    try:
        many = Many(build, rows)
    except BadInput as error:
        assert re.match(rf"row {place}, ", error.field)
        assert str(error).startswith(f"row {place}, {error.field.partition(', ')[2]}: ")
        return
    assert row.keys() <= {"steps", "words", "instance"}
    assert many.execute_sync(run_on(lm=Worker([1.0]))).correct is True


@settings(max_examples=150)
@given(
    st.binary(max_size=80) | st.text(alphabet="a,b\n\"'1[]{}: \t-&*!", max_size=60).map(str.encode),
    st.sampled_from(["csv", "tsv", "jsonl", "json"]),
)
def test_any_file_is_read_or_refused(tmp_path_factory, raw, kind):
    path = tmp_path_factory.getbasetemp() / f"rows.{kind}"
    path.write_bytes(raw)
    try:
        rows = input_rows(path, {"a"})
    except BadInput as error:
        assert error.field == "inputs" or error.field.startswith("row ")
        return
    assert all(isinstance(row, dict) and all(isinstance(name, str) for name in row) for row in rows)
    if kind in ("csv", "tsv"):
        assert all(isinstance(row.get("a", ""), str) for row in rows)


def test_cells_are_read_as_settings_are(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('a,b,c,d\n12,12,007,"[1, x]"\nno: 1,no,-3,\n1e3,1e3,true,"""12"""\n')
    assert input_rows(path, {"a"}) == [
        {"a": "12", "b": 12, "c": 7, "d": [1, "x"]},
        {"a": "no: 1", "b": "no", "c": -3, "d": None},
        {"a": "1e3", "b": 1000.0, "c": True, "d": "12"},
    ]
    path.write_text("a,b\nx,y\nx,[1\n")
    with pytest.raises(BadInput, match=r"row 1, b: is not YAML.* \(got '\[1'\)"):
        input_rows(path)
    path.with_suffix(".jsonl").write_text('{"a": 1}\n[2]\n')
    with pytest.raises(BadInput, match=r"row 1: is no mapping of names \(got \[2\]\)"):
        input_rows(path.with_suffix(".jsonl"))
    with pytest.raises(BadInput, match="no such file"):
        input_rows(tmp_path / "none.csv")
