"""Run: one long job from its first ask to its outcome; the single way to models (`ask`) and the single executor (`execute`).

A `Context` is a place within a run: the run's own root, a plan's step, a sub-plan. Its path, with a counter, addresses every ask, and the
address with the seed keys every random draw; so the same work under the same seed gives the same result whenever and wherever it is
resumed.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import secrets
import time
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import to_jsonable_python

from keystep.errors import BadInput, ChangedWork, JournalError, KeystepError, Stopped, Undecided
from keystep.lm.base import LM, Prompt, run_sync
from keystep.plan import Plan, Step
from keystep.run.ask import Answer, Asking, Key, Parse, Sampling, ask, plain
from keystep.run.budget import Budget, Meter
from keystep.run.canonical import dumps
from keystep.run.faults import point
from keystep.run.flags import RedFlag
from keystep.run.journal import Journal
from keystep.run.journal_reader import DAMAGED, Row
from keystep.run.procedure import Procedure, Work, adapted
from keystep.run.vote import AheadBy, Rule
from keystep.skill import SkillLibrary
from keystep.task import Task

if TYPE_CHECKING:
    from keystep.run.tracing import Tracing

Effect = Callable[[str], Awaitable[Any]]


class Outcome(BaseModel):
    """What a finished run (or procedure) gave. `correct` is None where nobody could check; `seconds` is time spent running."""

    model_config = ConfigDict(extra="forbid")

    run_id: str
    procedure: str
    steps: int
    correct: bool | None
    first_error_step: int | None
    samples: int
    flagged: int
    votes_per_step: float
    tokens_in: int
    tokens_out: int
    cost: float
    seconds: float
    result: Any = None


@dataclass(slots=True)
class Ahead:
    """A step asked before the vote on the one before it closed: `key` is the answer it assumed."""

    key: str
    task: asyncio.Task[Answer]


TURN = 64  # steps after which a loop lets timers and signals have their turn, also where its model answers without waiting


class Run:
    """One run.

    Args:
        lm: the model, or several behind one name (`keystep.lm.Rotation`, the embedded ensembles).
        vote: the rule that decides a step.
        flags: red flags that every sample has to pass.
        journal: a path, a database URL or a `Journal`; None keeps it in memory.
        id: name of the run in the journal; drawn when None.
        keep_samples: journal every sample (else only those of steps whose votes disagreed).
        speculate: start a step on the leading answer while the vote before it closes. Results do not change, waiting gets shorter, and
            some samples may be drawn for nothing.
        spec: how to build this work again, as JSON (kept for `keystep resume`).
        tracing: OpenTelemetry spans of the run, its steps and its calls (`keystep.run.tracing.Tracing`); None makes none.

    Raises:
        BadInput: a setting out of range.
        Busy: another living process holds the run.
    """

    def __init__(
        self,
        lm: LM,
        *,
        vote: Rule | None = None,
        flags: Sequence[RedFlag] = (),
        journal: Journal | str | Path | None = None,
        seed: int = 0,
        id: str | None = None,
        sampling: Sampling | None = None,
        budget: Budget | None = None,
        keep_samples: bool = False,
        speculate: bool = False,
        spec: Any = None,
        tracing: Tracing | None = None,
    ) -> None:
        rule = AheadBy() if vote is None else vote
        self.asking = Asking(lm, rule, tuple(flags), sampling or Sampling(), seed, budget or Budget())
        if self.asking.sampling.temperature == 0 and lm.members == 1 and rule.wanted({}) > 1:
            warnings.warn("at temperature 0 one model gives the same vote every time: more than one buys nothing", stacklevel=2)
        self.journal = journal if isinstance(journal, Journal) else Journal(journal)
        self.id = id or f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        if tracing is not None:
            self.asking = replace(self.asking, spans=tracing.of(self.id))
        self.keep_samples, self.speculate, self.spec = keep_samples, speculate, spec
        self.meter = Meter()
        self.expected: int | None = None  # steps of the work under way, where known
        self.sharing = False  # whether other work goes on beside: then every step lets the others have their turn
        self._work: dict[str, Any] = {}  # path -> identity of what stands there
        self._open = False
        self._root = Context(self, "")

    async def ask(self, prompt: Prompt | Sequence[Prompt], *, parse: Parse = plain, key: Key | None = None, **changes: Any) -> Answer:
        """Decide one answer by vote; `changes` replace `vote`, `flags`, `lm` or fields of `Sampling` for this ask."""
        self._begin({})
        return await self._root.ask(prompt, parse=parse, key=key, **changes)

    async def execute(
        self, work: Plan | Procedure, library: SkillLibrary | None = None, *, inputs: Mapping[str, Any] | None = None
    ) -> Outcome:
        """Carry out a Plan with a library's skills, or a Procedure, to the end.

        The same work on a journal that has part of it goes on where it stopped.

        Raises:
            ChangedWork: the journal's run was begun with other work, models or sampling; the message shows the difference.
            Stopped: it cannot go on now (undecided step, spent budget, failed step) and can be resumed.
        """
        place = self._begun(lambda: _identity(work, library, inputs))
        self.expected = work.total() if isinstance(work, Procedure) else None
        apart = work.apart() if isinstance(work, Procedure) else None
        self.sharing = apart is not None
        try:
            result = await (place.carry_out(work, library, inputs) if apart is None else place.carry_out(*apart, None))
            outcome = self._outcome(place.path, work, result)
        except BaseException as error:
            self._stop(error)
            raise
        finally:
            self.sharing = False
        self._end("finished", result=outcome.model_dump(mode="json"))
        return outcome

    async def solve(self, method: Any, task: Task) -> Any:
        """Have a solver (`keystep.solve.solver.Solver`) work on a task."""
        settings = method.identity() if hasattr(method, "identity") else repr(method)
        about = {"method": type(method).__name__, "settings": settings, "task": task.model_dump(mode="json")}
        place = self._begun(lambda: about)
        try:
            answer = await method.solve(task, place)
        except BaseException as error:
            self._stop(error)
            raise
        self._end("finished", result=answer.model_dump(mode="json") if isinstance(answer, BaseModel) else answer)
        return answer

    def ask_sync(self, prompt: Prompt, **options: Any) -> Answer:
        """`ask` for scripts and notebooks."""
        try:
            return run_sync(self.ask(prompt, **options))
        finally:
            self.journal.sync()  # the loop whose timer would do it is gone

    def execute_sync(self, work: Plan | Procedure, library: SkillLibrary | None = None, **options: Any) -> Outcome:
        return run_sync(self.execute(work, library, **options))

    def solve_sync(self, method: Any, task: Task) -> Any:
        return run_sync(self.solve(method, task))

    def close(self) -> None:
        """Store what there is and let the journal go."""
        self._end("stopped", why="closed")
        self.journal.close()

    def _begun(self, identity: Callable[[], dict[str, Any]]) -> Context:
        """The next place, with its work begun; where it could not be, the next try gets the same place."""
        place = self._root.below()
        try:
            self._begin({place.path: identity()})
        except BaseException:
            self._root.give_back()
            raise
        return place

    def _begin(self, work: dict[str, Any]) -> None:
        """Take the run in the journal, new or begun, and make sure that what it began with is what goes on now."""
        if self._open and work.keys() <= self._work.keys():
            self.journal.attend()
            return
        identity = {**self.asking.identity(), "work": self._work | work}
        known = self.journal.run(self.id, missing_ok=True)
        if known:
            _refuse_changes(self.id, known["identity"], identity)
        else:
            name = next((value.get("name") or value.get("method", "") for value in work.values()), "ask")
            self.journal.begin(self.id, str(name), self.spec, identity)
        self._work |= work
        if not self._open:
            self._take_up(known)
        if known and work.keys() - known["identity"]["work"].keys():
            self.journal.widen(self.id, {**identity, "work": known["identity"]["work"] | self._work})

    def _take_up(self, known: dict[str, Any]) -> None:
        """Hold the run, and go on counting where it stopped."""
        self.journal.acquire(self.id, lambda: self.meter)
        if known:
            spent = self.journal.totals(self.id, *self.journal.chunks(self.id))
            self.journal.verify(known, int(spent["steps"]))
            self.meter = Meter(
                calls=max(known["calls"], int(spent["samples"])), flagged=int(spent["flagged"]), steps=int(spent["steps"]),
                tokens_in=max(known["tokens_in"], int(spent["tokens_in"])), tokens_out=max(known["tokens_out"], int(spent["tokens_out"])),
                cost=max(known["cost"], spent["cost"]), seconds_before=known["seconds"],
            )  # fmt: skip
        self.meter.started = time.monotonic()
        self._open = True
        if self.asking.spans is not None:
            self.asking.spans.begin(self.journal.run(self.id)["name"])

    def _stop(self, error: BaseException) -> None:
        if self.asking.spans is not None:
            self.asking.spans.failed(error)
        told = isinstance(error, asyncio.CancelledError | KeyboardInterrupt)  # by Ctrl-C, or by the program that runs it
        self._end("stopped", why=str(error) if isinstance(error, KeystepError) else "told to stop" if told else type(error).__name__)

    def _end(self, status: str, *, why: str | None = None, result: Any = None) -> None:
        if self._open:
            self.meter.seconds_before, self.meter.started, self._open = self.meter.seconds, time.monotonic(), False
            if self.asking.spans is not None:
                self.asking.spans.end(status, self.meter)
            self.journal.end(status, why=why, result=result)

    def _outcome(self, path: str, work: Plan | Procedure, result: Any) -> Outcome:
        spent = self.journal.totals(self.id)
        check = work.check if isinstance(work, Procedure) else None
        scopes = self.journal.procedures(self.id, path) if isinstance(work, Procedure) else [self.journal.open_scope(self.id, path)[0]]
        first_error = None if check is None else check(row.answer for scope in scopes for row in self.journal.rows(scope))
        return Outcome(
            run_id=self.id,
            procedure=work.name if isinstance(work, Procedure) else "plan",
            steps=sum(map(self.journal.count, scopes)),
            correct=None if check is None else first_error is None,
            first_error_step=first_error,
            samples=int(spent["samples"]),
            flagged=int(spent["flagged"]),
            votes_per_step=round(spent["samples"] / max(1, spent["sampled"]), 4),
            tokens_in=int(spent["tokens_in"]),
            tokens_out=int(spent["tokens_out"]),
            cost=spent["cost"],
            seconds=round(self.meter.seconds, 3),
            result=result,
        )


class Context:
    """A place within a run, handed to every skill: where to ask, and where to execute sub-work. Everything asked here is journaled here.

    Attributes:
        run: the run.
        path: the place's address, unique within the run.
        step: the plan's step that is being done here, or None.
    """

    def __init__(self, run: Run, path: str, step: Step | None = None) -> None:
        self.run, self.path, self.step = run, path, step
        self._next = 0
        self._scope: int | None = None
        self._done: dict[int, Row] = {}

    @property
    def seed(self) -> int:
        return self.run.asking.seed

    def take(self) -> int:
        """The next number of this place. Numbers are given in the order of the calls, so the same work takes the same ones."""
        self._next += 1
        return self._next - 1

    def give_back(self) -> None:
        """Undo the last `take`: nothing came of it."""
        self._next -= 1

    def at(self, name: str, step: Step | None = None) -> Context:
        """A place below this one."""
        return Context(self.run, f"{self.path}/{name}" if self.path else name, step)

    async def ask(self, prompt: Prompt | Sequence[Prompt], *, parse: Parse = plain, key: Key | None = None, **changes: Any) -> Answer:
        """Decide one answer by vote, or take it from the journal if it was decided before; see `Run.ask`.

        A vote that ends undecided is noted for a person; a decision given since is taken instead of asking again.
        """
        seq, scope = self.take(), self._opened()
        if seq in self._done:
            return _answer(self._done[seq])
        given = self.run.journal.decision(scope, seq)
        if given is not None:
            answer = Answer(value=json.loads(given), json=given)
        else:
            asking = _changed(self.run.asking, changes)
            try:
                answer = await ask(asking, _prompts(prompt), f"{self.path}/{seq}", self.run.meter, parse=parse, key=key)
            except Undecided as error:
                self.run.journal.note_undecided(scope, seq, error.step, error.ledger.model_dump(mode="json"))
                raise
        self._put(scope, seq, answer)
        return answer

    async def effect(self, do: Effect, *, happened: Effect | None = None) -> Any:
        """Have something happen outside that the journal cannot take back: a mail, a row in somebody's table.

        `do(key)` makes it happen and gives JSON. Journaled are the intent, on the disk before `do` is called, and the outcome, on the disk
        before anything else is done. A process that dies between the two leaves an intent alone, and nobody can tell from that whether it
        happened: it is then done again, with the same key (at least once). `happened(key)`, where given, is asked first; it gives the
        outcome of what did happen, or None.
        """
        seq, scope = self.take(), self._opened()
        if seq in self._done:
            return self._done[seq].answer
        key = f"{self.run.id}/{self.path}/{seq}"
        intended = self.run.journal.intend(scope, seq, key)
        point("after-intent")
        outcome = await happened(key) if intended and happened is not None else None
        if outcome is None:
            outcome = await do(key)
            point("after-effect")
        answer = Answer(value=outcome, json=dumps(to_jsonable_python(outcome), "outcome of an effect"))
        self._put(scope, seq, answer, name="effect")
        self.run.journal.sync()
        return json.loads(answer.json)

    def below(self) -> Context:
        """The next numbered place below this one."""
        return self.at(str(self.take()))

    async def execute(self, work: Plan | Procedure, library: SkillLibrary | None = None, *, inputs: Mapping[str, Any] | None = None) -> Any:
        """Carry out a plan or a procedure below here; gives the plan's output, or the procedure's last state."""
        return await self.below().carry_out(work, library, inputs)

    async def carry_out(self, work: Plan | Work, library: SkillLibrary | None, inputs: Mapping[str, Any] | None) -> Any:
        """`execute` in this very place."""
        if isinstance(work, Work):
            return await work.carry_out(self)
        from keystep.run.execute import execute

        if library is None:
            raise BadInput("a plan needs a library of skills", field="library")
        return await execute(self, work, library, inputs or {})

    async def follow(self, procedure: Procedure) -> Any:
        """A procedure's loop in this very place: prompt, ask, update, journal."""
        run = self.run
        scope, at, state = run.journal.open_scope(run.id, self.path)
        if at == 0:
            state = procedure.start()
        for row in run.journal.rows(scope, since=at):  # written behind the last sync
            if row.seq != at:
                raise JournalError("the journal has lost a step", field=f"step {at}", value=row.seq, mend=DAMAGED)
            state, at = procedure.update(state, row.answer), row.seq + 1
        total = procedure.total()
        asking = adapted(run.asking, procedure)
        key = None if type(procedure).key is Procedure.key else procedure.key
        ahead: Ahead | None = None
        given = run.journal.decision(scope, at)  # a run stops at an undecided step, so a person's answer is for the one it stands before

        async def decide(state: Any, seq: int, leader: Callable[[Any, str], None] | None) -> Answer:
            prompts = _prompts(procedure.prompt(state))
            parse = lambda text: procedure.parse(text, state)  # noqa: E731
            return await ask(asking, prompts, f"{self.path}/{seq}", run.meter, parse=parse, key=key, leader=leader)

        def look_ahead(value: Any, name: str) -> None:
            nonlocal ahead
            if ahead is not None and ahead.key == name:
                return
            _discard(ahead)
            ahead = None
            try:
                following = procedure.update(state, value)
                if procedure.done(following) or at + 1 in (total, procedure.max_steps):
                    return
            except Exception:  # an answer that may yet lose may make no sense; if it wins, the loop itself meets the error
                return
            ahead = Ahead(name, asyncio.ensure_future(decide(following, at + 1, None)))

        behind = -1  # the batch of steps that this one's last step is written with
        try:
            while at != total and not procedure.done(state):
                if procedure.max_steps is not None and at >= procedure.max_steps:
                    raise Stopped("did not end within its steps", field="max_steps", value=procedure.max_steps, mend="raise max_steps")
                if run.sharing or at % TURN == 0:  # the first to come back from a turn writes all that was decided in it
                    await asyncio.sleep(0)
                    run.journal.write(behind)
                try:
                    if given is not None:
                        answer, given = Answer(value=json.loads(given), json=given), None
                    elif ahead is not None:
                        waiting, ahead = ahead, None
                        answer = await waiting.task
                    else:
                        answer = await decide(state, at, look_ahead if run.speculate else None)
                except Undecided as error:
                    run.journal.note_undecided(scope, at, error.step, error.ledger.model_dump(mode="json"))
                    raise
                if ahead is not None and ahead.key != (answer.json if key is None else dumps(key(answer.value))):
                    _discard(ahead)
                    ahead = None
                state = procedure.update(state, answer.value)
                behind = self._put(scope, at, answer, stands=state)
                at += 1
        finally:
            _discard(ahead)
        return state

    def journaled(self) -> list[Row]:
        """What the journal had here when this place was first used."""
        self._opened()
        return list(self._done.values())

    def put(self, seq: int, answer: Answer, *, name: str, skill: str) -> None:
        """Journal an answer of this place under a number, a name and the skill that gave it."""
        self._put(self._opened(), seq, answer, name=name, skill=skill)

    def _opened(self) -> int:
        """This place's scope in the journal, its earlier rows read."""
        if self._scope is None:
            self._scope, _, _ = self.run.journal.open_scope(self.run.id, self.path)
            self._done = {row.seq: row for row in self.run.journal.rows(self._scope)}
        return self._scope

    def _put(self, scope: int, seq: int, answer: Answer, *, name: str | None = None, skill: str | None = None, stands: Any = None) -> int:
        disagreed = len(answer.counts) > 1
        kept: list[tuple[Any, ...]] = []
        if disagreed or answer.flagged or self.run.keep_samples:
            kept = [(s.index, _storable(s.text), vote, flag, s.model, s.tokens_out, s.logprob) for s, vote, flag in answer.votes]
        candidates = dumps(answer.counts) if disagreed else None
        row = (
            name, skill, answer.json, answer.samples, answer.flagged, candidates, answer.tokens_in, answer.tokens_out,
            round(answer.seconds, 6), float(answer.cost),
        )  # fmt: skip
        batch = self.run.journal.put(scope, seq, row, kept, stands, later=self.run.sharing and stands is not None)
        self.run.meter.steps += 1
        return batch


def _storable(text: str) -> str:
    """PostgreSQL's texts cannot hold the character 0."""
    return text.replace("\0", "\ufffd")


def _prompts(prompt: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    if isinstance(prompt, list):
        if not prompt:
            raise BadInput("needs at least one wording", field="prompt")
        return prompt
    return (prompt,)  # type: ignore[return-value]  # text, or a tuple of messages: one prompt


def _changed(asking: Asking, changes: Mapping[str, Any]) -> Asking:
    """`asking` with some of its parts replaced for one ask."""
    if not changes:
        return asking
    parts = {name: changes[name] for name in ("lm", "flags") if name in changes}
    if "vote" in changes:
        parts["rule"] = changes["vote"]
    rest = {name: value for name, value in changes.items() if name not in ("lm", "flags", "vote")}
    unknown = rest.keys() - set(Sampling.__slots__)
    if unknown:
        mend = f"known are lm, vote, flags and {', '.join(Sampling.__slots__)}"
        raise BadInput("is not an option of an ask", field=min(unknown), mend=mend)
    return replace(asking, **parts, sampling=replace(asking.sampling, **rest))


def _answer(row: Row) -> Answer:
    return Answer(
        value=row.answer, json=dumps(row.answer), samples=row.samples, flagged=row.flagged, counts=row.candidates or {},
        tokens_in=row.tokens_in, tokens_out=row.tokens_out, seconds=row.seconds, cost=row.cost,
    )  # fmt: skip


def _discard(ahead: Ahead | None) -> None:
    """Cancel a step that was begun on an answer that lost; what it raised meanwhile is of no interest."""
    if ahead is not None:
        ahead.task.cancel()
        ahead.task.add_done_callback(lambda task: task.cancelled() or task.exception())


def _identity(work: Plan | Procedure, library: SkillLibrary | None, inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    if isinstance(work, Procedure):
        return {"name": work.name, "procedure": work.identity(), "sampling": dict(work.sampling)}
    skills = {skill.name: skill.identity() for skill in library or ()}
    given = json.loads(dumps(dict(inputs or {}), "inputs"))
    return {"name": "plan", "plan": work.model_dump(mode="json"), "skills": skills, "inputs": given}


def _refuse_changes(id: str, before: Any, now: Any) -> None:
    now = json.loads(dumps(now, "identity"))
    # Each may know of work that the other has not reached yet; what both know has to agree.
    both = before["work"].keys() & now["work"].keys()
    before, now = ({**side, "work": {path: side["work"][path] for path in both}} for side in (before, now))
    if before == now:
        return
    changes = list(_differences(before, now))
    raise ChangedWork(
        "was begun with something else:\n  " + "\n  ".join(changes[:12]), field=f"run {id}", mend="put it back, or begin a new run"
    )


def _differences(before: Any, now: Any, where: str = "") -> Any:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(name), now.get(name), f"{where}.{name}" if where else name)
    elif before != now and isinstance(before, str) and isinstance(now, str) and "\n" in before + now:
        diff = difflib.unified_diff(before.splitlines(), now.splitlines(), f"{where} as begun", f"{where} now", lineterm="", n=0)
        yield "\n    ".join(diff)
    elif before != now:
        yield f"{where}: was {before!r}, is {now!r}"
