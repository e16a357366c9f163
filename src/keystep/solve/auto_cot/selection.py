"""How demonstrations are made: clusters, their questions from the centre outwards, checks of the chains; in one go or in batches."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any, Literal

from keystep.errors import BadInput
from keystep.lm.base import as_finished
from keystep.run.run import Context
from keystep.solve.answers import Kind, behind
from keystep.solve.auto_cot.clusters import SEED, Clusters, clustered, encoded
from keystep.solve.auto_cot.solver import AutoCot, ClusterReport, Demo, Demos, Tried, cleaned
from keystep.solve.solver import Solution, judged, task_of
from keystep.task import Task


@dataclass(frozen=True, slots=True)
class Heuristics:
    """What a question and its chain have to be like to become a demonstration.

    Args:
        words: the longest question, in words, with its "Q:" and "A:".
        steps: the longest rationale, in lines or sentences; None is what is published for the kind of answer (5, last letters 7).
        counted: models that write one paragraph always pass by lines, as published; `sentences` counts those instead.
        full_stop: the rationale has to end with one.
        answer_at_end: a number has to occur in the last sentence (anywhere, as part of a longer number too) or among the last ten words.
    """

    words: int = 60
    steps: int | None = None
    counted: Literal["lines", "sentences"] = "lines"
    full_stop: bool = True
    answer_at_end: bool = True

    def __post_init__(self) -> None:
        for name in ("words", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput("must be at least 1", field=f"check {name}", value=value)

    def rejected(self, of: Kind, question: str, rationale: str, answer: str | None) -> str | None:
        """Why this becomes no demonstration, or None where it may."""
        words = len(f"Q: {question} A:".split())
        if words > self.words:
            return f"the question has {words} words, more than {self.words}"
        lines = [line for line in rationale.strip().split("\n") if line.strip()]
        steps = len(lines) if self.counted == "lines" else len(re.findall(r"[.!?](?=\s|$)", rationale))
        most = self.steps or of.lines
        if steps > most:
            return f"the rationale has {steps} {self.counted}, more than {most}"
        if self.full_stop and not rationale.strip().endswith("."):
            return "the rationale does not end with a full stop"
        if not answer:
            return "there is no answer"
        if self.answer_at_end and of.reads in ("number", "decimal"):
            sentences = rationale.strip().split(".")
            last = sentences[-2] if len(sentences) > 1 else sentences[-1]
            if answer not in last and answer not in rationale.split()[-10:]:
                return "the answer is not in the last sentence"
        return None


@dataclass(frozen=True, slots=True)
class _Chained:
    """A question of the pool with its zero-shot chain, and the calls that this took."""

    reasoning: str
    answer: str | None
    calls: int


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Makes demonstrations of questions; run it by `Run.solve(selection, task)`, with any task.

    Args:
        solver: says the kind of answers, the style of prompts and what a prompt looks like.
        rows: {"question", "answer" where it is known}; one with a "rationale" (and a "prediction") has its chain already.
        clusters: how many; None is what is published for the kind of answer.
        encoder: see `keystep.solve.clusters`.
        seed: of k-means.
        fallback: where all questions of a cluster are rejected, take the nearest one that has an answer and is short enough.
        batch: answer all questions in batches of so many, each with demonstrations of those before; None makes demonstrations only.
        tell: called with how many questions are done.
    """

    solver: AutoCot
    rows: Sequence[Mapping[str, Any]]
    clusters: int | None = None
    encoder: str = "tfidf"
    seed: int = SEED
    heuristics: Heuristics = field(default_factory=Heuristics)
    fallback: bool = False
    batch: int | None = None
    tell: Callable[[int], object] = lambda done: None

    def __post_init__(self) -> None:
        for name in ("clusters", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BadInput("must be at least 1", field=name, value=value)
        if not 0 <= self.seed < 2**32:
            raise BadInput("must be from 0 to 4294967295", field="means-seed", value=self.seed)
        if not self.rows:
            raise BadInput("there are no questions", field="inputs", value=[], mend='write {"question": "…"} on every line')

    def settings(self) -> dict[str, Any]:
        return {
            "kind": self.solver.kind, "clusters": self.clusters or self.solver.of.demonstrations, "encoder": self.encoder,
            "seed": self.seed, "heuristics": {**asdict(self.heuristics), "steps": self.heuristics.steps or self.solver.of.lines},
            "fallback": self.fallback, "batch": self.batch,
        }  # fmt: skip

    def identity(self) -> dict[str, Any]:
        digest = blake2b(json.dumps(list(self.rows), sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
        return {"selection": self.settings(), "rows": digest, "solver": self.solver.identity()}

    async def solve(self, task: Task, ctx: Context) -> Demos:
        """Make the demonstrations; in batches, also answer every question."""
        tasks = [task_of(row) for row in self.rows]
        if self.batch is None:
            return await self._chosen(tasks, range(len(tasks)), ctx.at("all"), self._chainer(tasks, ctx))
        return await self._bootstrapped(tasks, ctx)

    def _chainer(self, tasks: Sequence[Task], ctx: Context) -> Callable[[int], Any]:
        done = 0

        async def chained(row: int) -> _Chained:
            nonlocal done
            rationale, said = _chain_of(tasks[row])
            if rationale is not None:
                found = _Chained(rationale, cleaned(self.solver.of, rationale, self.solver.rules) if said is None else str(said), 0)
            else:
                solution = await self.solver.zero_shot(tasks[row].goal, ctx.at(f"question-{row}"))
                found = _Chained(solution.details["reasoning"], solution.answer or None, solution.details["calls"])
            done += 1
            self.tell(done)
            return found

        return chained

    async def _bootstrapped(self, tasks: Sequence[Task], ctx: Context) -> Demos:
        """Auto-CoT*: the first batch by Zero-Shot-CoT, every other with demonstrations of all before it."""
        assert self.batch is not None
        known: dict[int, _Chained] = {}
        chosen, answers, calls = Demos(demo=[], settings=self.settings()), list[dict[str, Any]](), 0

        async def remembered(row: int) -> _Chained:
            return known[row]

        for number, start in enumerate(range(0, len(tasks), self.batch)):
            batch = range(start, min(start + self.batch, len(tasks)))
            if known:
                chosen = await self._chosen(tasks, list(known), ctx.at(f"batch-{number}"), remembered)
            solutions = await _side_by_side(self._answered(tasks[row].goal, chosen.demo, ctx.at(f"question-{row}")) for row in batch)
            for row, solution in zip(batch, solutions, strict=True):
                calls += solution.details["calls"]
                known[row] = _Chained(solution.details["reasoning"], solution.answer or None, 0)
                right = judged(self.solver, tasks[row], solution.answer)
                answers.append({
                    "row": row, "question": tasks[row].goal, "answer": solution.answer, "correct": right, "batch": number,
                    "demonstrations": len(chosen.demo),
                })  # fmt: skip
            self.tell(len(known))
        last = await self._chosen(tasks, list(known), ctx.at("all"), remembered)
        return last.model_copy(update={"answers": answers, "calls": calls})

    async def _answered(self, question: str, demos: Sequence[Demo], ctx: Context) -> Solution:
        return await (self.solver.few_shot(question, demos, ctx) if demos else self.solver.zero_shot(question, ctx))

    async def _chosen(self, tasks: Sequence[Task], rows: Sequence[int], ctx: Context, chained: Callable[[int], Any]) -> Demos:
        """Stages 1 and 2 over some of the questions. What the clusters are is journaled, so that a resumed run goes on with the same."""
        k = self.clusters or self.solver.of.demonstrations

        async def cluster(key: str) -> Any:
            return asdict(clustered(await encoded([tasks[row].goal for row in rows], self.encoder), k, self.seed))

        found = Clusters(**await ctx.effect(cluster))

        async def walk(number: int) -> tuple[ClusterReport, Demo | None, int]:
            tried, calls, accepted, demo = list[Tried](), 0, None, None
            chains: list[_Chained] = []
            for rank, (member, distance) in enumerate(zip(found.members[number], found.distances[number], strict=True)):
                row = rows[member]
                chain: _Chained = await chained(row)
                chains.append(chain)
                calls += chain.calls
                trigger = "" if _chain_of(tasks[row])[0] is not None else self.solver.prompt("trigger.txt") + " "
                why = self.heuristics.rejected(self.solver.of, tasks[row].goal, trigger + chain.reasoning, chain.answer)
                tried.append(Tried(question=tasks[row].goal, row=row, rank=rank, distance=distance, answer=chain.answer, rejected=why))
                if why is None:
                    accepted = rank
                    break
            if accepted is None and self.fallback:
                accepted = next((each.rank for each in tried if each.answer and _short(each.question, self.heuristics.words)), None)
            if accepted is not None:
                taken = tried[accepted]
                demo = self.solver.demo(taken.question, chains[accepted].reasoning, taken.answer or "").model_copy(
                    update={"gold_ans": _expected(tasks[taken.row]), "cluster": number, "rank": accepted, "distance": taken.distance}
                )
            verdicts = [judged(self.solver, tasks[each.row], each.answer or "") for each in tried]
            judgeable = [verdict for verdict in verdicts if verdict is not None]
            wrong = judgeable.count(False) / len(judgeable) if judgeable else None
            report = ClusterReport(cluster=number, size=len(found.members[number]), tried=tried, accepted=accepted, wrong=wrong)
            return report, demo, calls

        walks = await _side_by_side(walk(number) for number in range(len(found)))
        return Demos(
            demo=[demo for _, demo, _ in walks if demo is not None], clusters=[report for report, _, _ in walks],
            calls=sum(calls for _, _, calls in walks), settings=self.settings(),
        )  # fmt: skip


def unresolving_rate(zero_shot: Sequence[bool], method: Sequence[bool]) -> float | None:
    """Of the questions that Zero-Shot-CoT gets wrong, the share that a method gets wrong too (section 3.1); None without such."""
    wrong = [right for before, right in zip(zero_shot, method, strict=True) if not before]
    return wrong.count(False) / len(wrong) if wrong else None


def _chain_of(task: Task) -> tuple[str | None, Any]:
    """The rationale and the prediction that a row brings; an empty cell of a table is none."""
    rationale, said = (task.inputs.get(name) for name in ("rationale", "prediction"))
    return (rationale, said) if isinstance(rationale, str) and rationale.strip() else (None, None)


async def _side_by_side(works: Iterable[Any]) -> list[Any]:
    """The results of some work, in its order; a failure cancels the rest."""

    async def numbered(number: int, work: Any) -> tuple[int, Any]:
        return number, await work

    async with aclosing(as_finished(numbered(number, work) for number, work in enumerate(works))) as finished:
        found = dict([pair async for pair in finished])
    return [found[number] for number in range(len(found))]


def _short(question: str, words: int) -> bool:
    return len(f"Q: {question} A:".split()) <= words


def _expected(task: Task) -> str | None:
    found = task.state.get("expected") if isinstance(task.state, dict) else None
    return None if found is None else behind(str(found))
