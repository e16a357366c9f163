"""Auto-CoT: demonstrations for a prompt that no one had to write. Questions are clustered, and of every cluster the one nearest to its
centre whose zero-shot chain of thought passes some simple checks becomes a demonstration.

Zhang, Zhang, Li, Smola 2022, "Automatic Chain of Thought Prompting in Large Language Models", ICLR 2023, arXiv 2210.03493. `AutoCot` is
the solver: demonstrations, then the question, one call (without demonstrations it is Zero-Shot-CoT). `Selection` makes demonstrations, in
one go (stages 1 and 2 of the paper's Algorithm 1) or in bootstrapping batches (Auto-CoT*, section 5.3), where every batch is answered
with demonstrations made of the batches before. Vectors and clusters are in `keystep.solve.clusters`, zero-shot chains in
`keystep.solve.chains`.

Names: `clusters` is k, `batch` is m, `Heuristics` are the checks of section 4.2 as the published code has them. A file of demonstrations
is of the form that the published code reads and writes. Not covered: the logs of zero-shot runs that the published code starts from
(questions whose rationale is known already can be given as rows instead).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from keystep.errors import BadInput
from keystep.lm.base import Message, Prompt, as_finished
from keystep.run.flags import Flag
from keystep.run.run import Context
from keystep.run.vote import First
from keystep.solve.answers import Kind, Rules, candidates, canonical, kind
from keystep.solve.chains import Reasoner
from keystep.solve.clusters import SEED, Clusters, clustered, encoded
from keystep.solve.solver import Solution, judged, task_of
from keystep.task import Task

QUESTION = re.compile(r"Q: ?(.*?)\s*\nA:", re.S)  # how demonstrations write a question
_SAID = {"mended": re.compile(r"the answer is", re.I), "published": re.compile(r"The answer is")}


class Demo(BaseModel):
    """A demonstration as the published code has it (`question` is "Q: …\\nA:"), and where it comes from."""

    model_config = ConfigDict(extra="ignore")

    question: str
    rationale: str
    pred_ans: str
    gold_ans: str | None = None
    cluster: int | None = None
    rank: int | None = None
    distance: float | None = None

    @property
    def asked(self) -> str:
        """The question alone."""
        found = QUESTION.fullmatch(self.question)
        return found[1] if found else self.question


class Tried(BaseModel):
    """A question whose chain was looked at; `rejected` says why it became no demonstration."""

    question: str
    row: int
    rank: int
    distance: float
    answer: str | None
    rejected: str | None


class ClusterReport(BaseModel):
    """A cluster: how many questions, which were tried in what order, which one was taken. `wrong` is the share of those tried whose answer
    is known to be wrong, None where no answer is known."""

    cluster: int
    size: int
    tried: list[Tried]
    accepted: int | None
    wrong: float | None


class Demos(BaseModel):
    """Demonstrations, and how they were chosen. `calls` were made to the model for them; `answers` are those of a bootstrapping run."""

    model_config = ConfigDict(extra="ignore")

    demo: list[Demo]
    clusters: list[ClusterReport] = Field(default_factory=list)
    calls: int = 0
    settings: dict[str, Any] = Field(default_factory=dict)
    answers: list[dict[str, Any]] = Field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class AutoCot(Reasoner):
    """
    Args:
        demos: a file of demonstrations (`keystep demos` makes one); a task's own, as its input `demos`, go before them.
        leave_out: no demonstration of the very question that is asked (in the published code there may be one).
    """

    name: ClassVar[str] = "auto-cot"
    prompt_files: ClassVar[tuple[str, ...]] = (
        "chat.txt", "completion.txt", "trigger.txt", "example.txt", "said.txt", "answer-number.txt", "answer-choice.txt",
        "answer-yes-no.txt", "answer-text.txt",
    )  # fmt: skip

    demos: str | None = None
    leave_out: bool = True

    async def solve(self, task: Task, ctx: Context) -> Solution:
        """Answer with the demonstrations there are; without one, by Zero-Shot-CoT."""
        demos = [demo for demo in self._given(task) if not (self.leave_out and _alike(demo.asked, task.goal))]
        return await (self.few_shot(task.goal, demos, ctx) if demos else self.zero_shot(task.goal, ctx))

    async def few_shot(self, question: str, demos: Sequence[Demo], ctx: Context) -> Solution:
        """One call, with demonstrations before the question."""
        again = ctx.run.asking.sampling.temperature > 0 or not isinstance(ctx.run.asking.rule, First)
        changes = {} if self.reasoning_tokens is None else {"max_tokens": self.reasoning_tokens}

        def parse(text: str) -> dict[str, str | None]:
            found = cleaned(self.of, text, self.rules)
            if not text.strip() or (found is None and again):
                raise Flag(f"no {self.of.reads} in it")
            return {"text": text.strip(), "answer": found}

        prompt = self.few_shot_prompt(question, demos)
        answer = await ctx.ask(prompt, parse=parse, key=lambda found: found["answer"], **changes)
        details = {
            "way": "few-shot", "demonstrations": [demo.model_dump(exclude={"rationale", "gold_ans"}) for demo in demos],
            "reasoning": answer.value["text"], "prediction": answer.value["answer"],
            "usage": {"calls": 1, "samples": answer.samples, "tokens_in": answer.tokens_in, "tokens_out": answer.tokens_out},
        }  # fmt: skip
        return Solution(answer=answer.value["answer"] or "", details=details)

    async def zero_shot(self, question: str, ctx: Context) -> Solution:
        """Zero-Shot-CoT: two calls, no demonstrations."""
        chain = await self.chain(question, self.prompt("trigger.txt"), ctx, self._read, between="\n")
        details = {
            "way": "zero-shot", "demonstrations": [], "reasoning": chain.reasoning, "prediction": chain.answer,
            "extraction_prompt": chain.extraction_prompt, "extraction_output": chain.extraction_output, "usage": chain.usage(),
        }  # fmt: skip
        return Solution(answer=chain.answer or "", details=details)

    def few_shot_prompt(self, question: str, demos: Sequence[Demo]) -> Prompt:
        """Completion style: the demonstrations as published, the question, the trigger. Chat style: as turns of a conversation."""
        trigger = self.prompt("trigger.txt")
        last = self.first_prompt(question, trigger)
        if isinstance(last, str):
            return self.demonstrated(demos) + last
        turns: list[Message] = []
        for demo in demos:
            said = demo.rationale.removeprefix(trigger).strip()
            turns += [*_messages(self.first_prompt(demo.asked, trigger)), Message("assistant", self._conclusion(said, demo.pred_ans))]
        return (*turns, *last)

    def demonstrated(self, demos: Sequence[Demo]) -> str:
        """Demonstrations as one text."""
        return "".join(
            self.prompt("example.txt", question=demo.question, said=self._conclusion(demo.rationale, demo.pred_ans)) + "\n\n"
            for demo in demos
        )

    def demo(self, question: str, reasoning: str, answer: str) -> Demo:
        """A demonstration of a question; the reasoning becomes one line, without an answer at its end that would be said twice."""
        *_, last = [None, *re.finditer(r"(?:\s|^)(?:So |Therefore,? |Thus,? )?[Tt]he answer is[^.]*\.?\s*$", reasoning)]
        body = " ".join((reasoning if last is None else reasoning[: last.start()]).split())
        rationale = " ".join([self.prompt("trigger.txt"), body]).strip()
        return Demo(question=f"Q: {question}\nA:", rationale=rationale, pred_ans=answer)

    def right(self, answer: str, expected: str) -> bool:
        """By the published rules the texts must be the same: 18.0 is not 18."""
        if self.rules == "published":
            return answer == re.split(r"####|\nA:", expected)[-1].strip().removesuffix(".0")
        return super().right(answer, expected)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "demonstrations": [demo.model_dump() for demo in self._filed()]}

    def _read(self, text: str) -> str | None:
        return cleaned(self.of, text, self.rules, zero_shot=True)

    def _conclusion(self, rationale: str, answer: str) -> str:
        return self.prompt("said.txt", rationale=rationale, answer=answer)

    def _given(self, task: Task) -> list[Demo]:
        given = task.inputs.get("demos")
        return self._filed() if given is None else demos_of(given, "demos")

    def _filed(self) -> list[Demo]:
        return [] if self.demos is None else read_demos(Path(self.demos)).demo


def cleaned(of: Kind, text: str, rules: Rules = "mended", zero_shot: bool = False) -> str | None:
    """The answer in a model's text: the first candidate after the last "The answer is"; where that is not said the last one of all. The
    text of a second zero-shot call has its answer first."""
    reads = kind("choice") if of.reads == "option" else of
    *_, last = [None, *_SAID[rules].finditer(text)]
    found = candidates(reads, text if last is None else text[last.end() :], rules)
    if not found:
        return None
    answer = found[0 if zero_shot or last is not None else -1]
    return answer.removesuffix(".") if rules == "published" else canonical(of, answer)


def read_demos(file: Path) -> Demos:
    """A file of demonstrations, ours or the published code's.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        mend = "`keystep demos` makes one"
        raise BadInput(f"cannot be read ({error})", field="set demos", value=str(file), mend=mend) from None
    try:
        return Demos.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(f"{where}: {first['msg']}", field="set demos", value=str(file), mend="`keystep demos` makes one") from None


def demos_of(rows: Any, field: str) -> list[Demo]:
    """Demonstrations as they stand in a task.

    Raises:
        BadInput: they are none.
    """
    try:
        return Demos.model_validate({"demo": rows}).demo
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        mend = 'give a list of {"question", "rationale", "pred_ans"}'
        raise BadInput(first["msg"], field=f"{field}.{'.'.join(map(str, first['loc'][1:]))}", value=first["input"], mend=mend) from None


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
            given, rationale = tasks[row].inputs, tasks[row].inputs.get("rationale")
            if isinstance(rationale, str):
                said = given.get("prediction")
                found = _Chained(rationale, cleaned(self.solver.of, rationale, self.solver.rules) if said is None else str(said), 0)
            else:
                solution = await self.solver.zero_shot(tasks[row].goal, ctx.at(f"question-{row}"))
                found = _Chained(solution.details["reasoning"], solution.answer or None, solution.details["usage"]["calls"])
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
                calls += solution.details["usage"]["calls"]
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
                trigger = "" if "rationale" in tasks[row].inputs else self.solver.prompt("trigger.txt") + " "
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
    """Of the questions that Zero-Shot-CoT gets wrong, the share that a method gets wrong too (section 3.1); None where it gets all right."""
    wrong = [right for before, right in zip(zero_shot, method, strict=True) if not before]
    return wrong.count(False) / len(wrong) if wrong else None


async def _side_by_side(works: Iterable[Any]) -> list[Any]:
    """The results of some work, in its order; a failure cancels the rest."""

    async def numbered(number: int, work: Any) -> tuple[int, Any]:
        return number, await work

    async with aclosing(as_finished(numbered(number, work) for number, work in enumerate(works))) as finished:
        found = dict([pair async for pair in finished])
    return [found[number] for number in range(len(found))]


def _messages(prompt: Prompt) -> tuple[Message, ...]:
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def _alike(first: str, second: str) -> bool:
    return " ".join(first.split()) == " ".join(second.split())


def _short(question: str, words: int) -> bool:
    return len(f"Q: {question} A:".split()) <= words


def _expected(task: Task) -> str | None:
    found = task.state.get("expected") if isinstance(task.state, dict) else None
    return None if found is None else str(found)
