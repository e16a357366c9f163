import asyncio
import re

import pytest
from worker import Scripted, Worker

from keystep.errors import BadInput, BudgetSpent, KeystepError, Stopped, Undecided
from keystep.lm.base import Request
from keystep.run import AheadBy, Budget, First, Flag, Majority, Procedure, Run
from keystep.run.builtin import Hanoi, Ledger
from keystep.trace import StepTrace


class Sum(Procedure):
    """Adds what it is told to a number; ends at `end`, after `max_steps`, or after `steps`."""

    def __init__(self, steps=None, end=None, max_steps=None):
        self.steps, self.end, self.max_steps = steps, end, max_steps

    def start(self):
        return 0

    def prompt(self, state):
        return f"at {state}"

    def parse(self, text, state):
        if not text.lstrip("-").isdigit():
            raise Flag("no number")
        return int(text)

    def update(self, state, answer):
        return state + answer

    def done(self, state):
        return state == self.end

    def total(self):
        return self.steps

    def identity(self):
        return [self.steps, self.end]


def rows(run, path="0"):
    """What is journaled of a procedure, without the seconds."""
    scope, _, _ = run.journal.open_scope(run.id, path)
    return [
        (row.seq, row.answer, row.samples, row.flagged, row.candidates, row.tokens_in, row.tokens_out, run.journal.samples(scope, row.seq))
        for row in run.journal.rows(scope)
    ]


def done(lm, procedure, **options):
    """(outcome without what differs from run to run, journal rows, samples drawn)."""
    run = Run(lm, **options)
    outcome = run.execute_sync(procedure)
    journaled = rows(run)
    run.close()
    return outcome.model_dump(exclude={"seconds", "run_id"}), journaled, run.meter.calls


@pytest.mark.parametrize(("procedure", "steps"), [(Hanoi(3), 7), (Hanoi(8), 255), (Ledger(200, words=30), 200), (Ledger(1, words=2), 1)])
def test_a_perfect_worker(procedure, steps):
    run = Run(Worker(), vote=AheadBy(3), id="mine")
    outcome = run.execute_sync(procedure)
    assert (outcome.run_id, outcome.procedure, outcome.steps) == ("mine", procedure.name, steps)
    assert (outcome.correct, outcome.first_error_step) == (True, None)
    assert (outcome.samples, outcome.flagged, outcome.votes_per_step) == (3 * steps, 0, 3.0)
    assert outcome.tokens_out > 0 and outcome.tokens_in > 0 and outcome.seconds >= 0
    assert (run.expected, run.meter.steps, run.meter.calls) == (steps, steps, 3 * steps)
    stored = run.journal.run("mine")
    assert (stored["status"], stored["owner"]) == ("finished", None)
    assert stored["result"] == outcome.model_dump(mode="json")
    run.close()


@pytest.mark.parametrize("procedure", [Hanoi(9), Ledger(500, words=20)])
def test_an_erring_worker_fails_alone_and_succeeds_by_vote(procedure):
    alone, _, _ = done(Worker((0.9, 0.03, 0.03)), procedure, vote=First())
    assert alone["correct"] is False
    assert 0 <= alone["first_error_step"] < 100
    voted, _, calls = done(Worker((0.9, 0.03, 0.03)), procedure, vote=AheadBy(5))
    assert (voted["correct"], voted["first_error_step"]) == (True, None)
    assert voted["flagged"] > 0
    assert calls == voted["samples"]
    assert 5 < voted["votes_per_step"] < 7
    majority, _, _ = done(Worker((0.9, 0.03, 0.03)), procedure, vote=Majority(9))
    assert majority["correct"] is True


@pytest.mark.parametrize("procedure", [Hanoi(6), Ledger(60, words=10)])
@pytest.mark.parametrize("step", [0, 17, 59])
def test_the_first_wrong_step_is_named(procedure, step):
    outcome, journaled, _ = done(Worker(wrong_at=[f"0/{step}", "0/59"]), procedure, vote=AheadBy(2))
    assert (outcome["correct"], outcome["first_error_step"]) == (False, step)
    assert outcome["steps"] == len(journaled) == procedure.total()


def test_the_seed_decides():
    worker = Worker((0.8, 0.1))
    first, again, other = (done(worker, Hanoi(6), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first[1] != other[1]


def test_where_the_journal_lies_changes_nothing(tmp_path):
    options = {"vote": AheadBy(2), "keep_samples": True}
    assert done(Worker((0.8, 0.1)), Hanoi(5), **options) == done(Worker((0.8, 0.1)), Hanoi(5), journal=tmp_path / "a.db", **options)


def test_a_run_within_a_running_loop():
    async def notebook():
        return Run(Worker()).execute_sync(Hanoi(3)), await Run(Worker()).execute(Hanoi(3))

    one, two = asyncio.run(notebook())
    assert one.correct and two.correct


def test_several_works_in_one_run():
    run = Run(Worker())
    one, two = run.execute_sync(Hanoi(3)), run.execute_sync(Ledger(5, words=3))
    assert one.correct and two.correct
    assert (len(rows(run, "0")), len(rows(run, "1"))) == (7, 5)
    run.close()


# how a loop ends


def test_a_loop_ends_when_it_is_done():
    outcome, journaled, _ = done(Scripted(["2"]), Sum(end=10), vote=First())
    assert (outcome["steps"], outcome["result"], outcome["correct"], outcome["first_error_step"]) == (5, 10, None, None)
    assert len(journaled) == 5
    assert done(Scripted(["2"]), Sum(end=0), vote=First())[0]["steps"] == 0


def test_a_loop_with_a_total_ends_there():
    assert done(Scripted(["2"]), Sum(steps=3), vote=First())[0]["result"] == 6


def test_max_steps_stops_and_can_be_raised(tmp_path):
    run = Run(Scripted(["2"]), vote=First(), journal=tmp_path / "a.db", id="r")
    with pytest.raises(Stopped, match="did not end within its steps") as stopped:
        run.execute_sync(Sum(end=10, max_steps=4))
    assert (stopped.value.field, stopped.value.value, stopped.value.exit_code) == ("max_steps", 4, 3)
    assert run.journal.run("r")["status"] == "stopped"
    run.close()
    lm = Scripted(["2"])
    more = Run(lm, vote=First(), journal=tmp_path / "a.db", id="r")
    assert more.execute_sync(Sum(end=10, max_steps=5)).result == 10
    assert lm.drawn == 1
    more.close()


def test_a_budget_stops_a_run_and_counts_what_went_before(tmp_path):
    def run(calls, lm):
        return Run(lm, vote=AheadBy(3), journal=tmp_path / "a.db", id="r", budget=Budget(calls=calls))

    lm = Worker((0.7, 0.2))
    first = run(50, lm)
    with pytest.raises(BudgetSpent):
        first.execute_sync(Hanoi(6))
    first.close()
    assert len(lm.asked) == 50
    same = run(50, lm)
    with pytest.raises(BudgetSpent):
        same.execute_sync(Hanoi(6))
    same.close()
    assert len(lm.asked) == 50
    rest = Worker((0.7, 0.2))
    last = run(10_000, rest)
    outcome = last.execute_sync(Hanoi(6))
    assert last.meter.calls == 50 + len(rest.asked)
    assert outcome.seconds >= 0
    last.close()
    whole, _, _ = done(Worker((0.7, 0.2)), Hanoi(6), vote=AheadBy(3))
    assert outcome.model_dump(exclude={"seconds", "run_id"}) == whole


def test_a_person_settles_an_undecided_step(tmp_path):
    """Also where the model would decide by itself the second time: the person's word stands."""
    tie = Scripted(lambda request, index: str(index % 2 + 1) if request.key == "0/3" else "1")
    run = Run(tie, vote=AheadBy(2, cap=6), journal=tmp_path / "a.db", id="r")
    with pytest.raises(Undecided) as raised:
        run.execute_sync(Sum(steps=6))
    assert raised.value.step == "3"
    waiting = run.journal.undecided("r")[0]
    assert StepTrace.model_validate(waiting["ledger"]).candidates == {"1": 3, "2": 3}
    run.close()

    still = Run(tie, vote=AheadBy(2, cap=6), journal=tmp_path / "a.db", id="r")
    with pytest.raises(Undecided):
        still.execute_sync(Sum(steps=6))
    still.journal.decide("r", "3", 100)
    still.close()

    settled = Scripted(["1"])
    last = Run(settled, vote=AheadBy(2, cap=6), journal=tmp_path / "a.db", id="r")
    assert last.execute_sync(Sum(steps=6)).result == 105
    assert {request.key for request in settled.requests} == {"0/4", "0/5"}
    assert [row[2] for row in rows(last)] == [2, 2, 2, 0, 2, 2]
    last.close()


def test_a_failing_model_leaves_a_run_that_goes_on(tmp_path):
    def broken(request, index):
        if request.key == "0/2":
            raise KeystepError("is gone")
        return "1"

    run = Run(Scripted(broken), vote=First(), journal=tmp_path / "a.db", id="r")
    with pytest.raises(KeystepError, match="is gone"):
        run.execute_sync(Sum(steps=4))
    assert (run.journal.run("r")["status"], run.journal.run("r")["why"]) == ("stopped", "is gone")
    run.close()
    more = Run(Scripted(["1"]), vote=First(), journal=tmp_path / "a.db", id="r")
    assert more.execute_sync(Sum(steps=4)).result == 4
    more.close()


def test_a_plan_needs_a_library():
    from keystep.plan import Plan, Step

    with pytest.raises(BadInput) as refused:
        Run(Worker()).execute_sync(Plan(steps=(Step(id="a", skill="s"),)))
    assert refused.value.field == "library"


# speculation


@pytest.mark.parametrize("procedure", [Hanoi(6), Ledger(60, words=10)])
@pytest.mark.parametrize("vote", [AheadBy(3), Majority(5)])
def test_speculation_changes_neither_journal_nor_result(procedure, vote):
    options = {"vote": vote, "keep_samples": True, "seed": 3}
    plain, journaled, calls = done(Worker((0.6, 0.2, 0.1), pause=True), procedure, **options)
    ahead, journaled_ahead, calls_ahead = done(Worker((0.6, 0.2, 0.1), pause=True), procedure, speculate=True, **options)
    assert ahead == plain
    assert journaled_ahead == journaled
    assert calls == plain["samples"]
    if isinstance(vote, AheadBy):
        assert calls_ahead > calls  # some leaders lost


def turning(request: Request, index: int) -> str:
    """Step 0 first leans to 1 (1, 1, 2) and then turns to 2; every later step says 5."""
    return "112222222"[index] if request.key == "0/0" else "5"


def test_a_step_begun_on_a_leader_that_loses_is_discarded():
    plain, journaled, calls = done(Scripted(turning), Sum(steps=3), vote=AheadBy(3), keep_samples=True)
    lm = Scripted(turning)
    ahead, journaled_ahead, calls_ahead = done(lm, Sum(steps=3), vote=AheadBy(3), keep_samples=True, speculate=True)
    assert (ahead, journaled_ahead) == (plain, journaled)
    assert plain["result"] == 2 + 5 + 5
    begun = [request.prompt for request in lm.requests if request.key == "0/1"]
    assert begun == ["at 1", "at 2"]  # on the leader of the first round, then on the winner
    assert calls_ahead >= calls


def test_a_discarded_steps_samples_are_counted():
    """The leader's next step has drawn all its samples by the time the leader loses."""
    lm = Scripted(turning, rank=lambda index: 0)
    slow = Scripted(turning, rank=lambda index: 40)

    class Uneven(Scripted):
        async def sample(self, request):
            async for one in (slow if request.key == "0/0" else lm).sample(request):
                yield one

    ahead, _, calls = done(Uneven(["never"]), Sum(steps=3), vote=AheadBy(3), speculate=True)
    assert ahead["result"] == 12
    assert calls == ahead["samples"] + 3 == slow.drawn + lm.drawn


def test_the_next_step_is_asked_while_the_vote_is_open():
    happened = []

    def leaning(request, index):
        happened.append((request.key, index))
        return "2" if request.key == "0/0" and index == 0 else "1"

    done(Scripted(leaning, rank=lambda index: 5 * index), Sum(steps=3), vote=AheadBy(3), speculate=True)
    assert happened.index(("0/1", 0)) < happened.index(("0/0", 4))  # sample 4 decides step 0
    assert [key for key, index in happened if index == 0] == ["0/0", "0/1", "0/2"]


@pytest.mark.parametrize("where", ["update", "prompt", "model"])
def test_what_a_losing_leader_breaks_is_of_no_interest(where):
    class Touchy(Sum):
        def update(self, state, answer):
            if where == "update" and answer == 1:
                raise ValueError
            return super().update(state, answer)

        def prompt(self, state):
            if where == "prompt" and state == 1:
                raise ValueError
            return super().prompt(state)

    def answer(request, index):
        if where == "model" and request.prompt == "at 1":
            raise KeystepError("cannot")
        return turning(request, index)

    ahead, _, _ = done(Scripted(answer), Touchy(steps=3), vote=AheadBy(3), speculate=True)
    assert ahead["result"] == 12


def test_nothing_is_begun_behind_the_end():
    lm = Scripted(lambda request, index: "2" if index == 0 else "1")
    done(lm, Sum(steps=1), vote=AheadBy(3), speculate=True)
    done(lm, Sum(end=1), vote=AheadBy(3), speculate=True)
    assert {request.key for request in lm.requests} == {"0/0"}
    with pytest.raises(Stopped):
        done(lm, Sum(max_steps=1), vote=AheadBy(3), speculate=True)
    assert {request.key for request in lm.requests} == {"0/0"}


def test_an_id_is_drawn_where_none_is_given():
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", Run(Worker()).id)


def test_a_run_whose_model_never_waits_can_be_cancelled():
    run = Run(Worker(), vote=First())

    async def cancelled():
        task = asyncio.create_task(run.execute(Hanoi(12)))
        asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert run.meter.steps < Hanoi(12).total()
    run.close()


def test_of_samples_with_the_same_text_one_is_parsed():
    class Counting(Sum):
        parsed = 0

        def parse(self, text, state):
            self.parsed += 1
            return super().parse(text, state)

    work = Counting(steps=2)
    outcome = Run(Scripted(["1", "2", "1", "1", "1"]), vote=AheadBy(3)).execute_sync(work)
    assert (outcome.samples, outcome.result, work.parsed) == (10, 2, 4)
