r"""Explore–Execute chains (E²C): plans are drawn and searched, one is carried out; all test-time variants, and what each costs in tokens.

Yang et al. 2025, Explore-Execute Chain: Towards an Efficient Structured Reasoning Paradigm, arXiv 2509.23946 (v1, v2 select and vote, v3
revises; all are here). p(plan, execution | c) = p(plan | c) p(execution | plan, c): c is the task's goal, K is `plans`, M `clusters`.

It works with any model, asked for plans and executions in words, and with one trained on chains (`tagged`; `train.py` makes such): that one
goes on from the tags. Plans that stand beside one another are drawn, each by itself and unvoted, because a vote would make them alike; all
other calls vote as the run does. The first sample of an execution is greedy, as published; only a second one, where a vote wants it or
the first was flagged, is drawn (`again`).

Not covered: sentence embeddings for clusters (TF-IDF of words stands in), MCTS in the forest of thoughts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Literal

from keystep.errors import BadInput, StepFailed
from keystep.lm.base import draw_key
from keystep.plan import Plan, Ref, Step
from keystep.run.flags import Flag
from keystep.run.run import Context
from keystep.run.vote import First, Majority
from keystep.skill import Skill, SkillLibrary
from keystep.solve.explore_execute import format, selecting
from keystep.solve.explore_execute.adherence import adherence
from keystep.solve.explore_execute.answers import as_published, final_box, last_box, normal
from keystep.solve.solver import Solution, Solver, judged
from keystep.task import Task

Way = Literal["one", "judge", "cluster", "consistency", "random", "layers", "react", "greedy", "chains", "tree", "forest", "causal"]
PLAN_SHOWN, ATTEMPT_SHOWN = 5000, 3500  # characters that a revision is shown: of the plan, and of the attempt's end
REVISING, REVISION = 0.3, 1024  # temperature and tokens
MOST = 1_000_000  # of anything that is counted
FRESH = 0.95  # temperature of a plan drawn anew

Done = dict[str, Any]  # of a call: {"text", "answer", "tokens"}; of a judge's {"choice", "ready", "tokens"}


@dataclass(frozen=True, kw_only=True)
class ExploreExecute(Solver):
    """Explores plans for a question, then executes.

    Args:
        way: one (a plan, executed) · judge (K plans, the model selects one) · cluster (one plan for each of M clusters, executed, vote
            weighted by size) · consistency (all K executed, majority) · random (one of the K) · layers (the plan grows step by step, K
            candidates for each) · react (judge, and up to `revisions` better plans where an execution does not come to an answer).
            Baselines: greedy (one solution) · chains (self-consistency over K solutions; where the run votes, by its rule) · tree (a
            solution grows step by step) · forest (`trees` trees, majority). causal: writes a training pair (a solution, its plan, an
            execution made from the plan).
        tagged: the model was trained on chains.
        plans: K.
        plan_temperature, plan_tokens, execution_temperature, execution_tokens: of sampling.
        again: the temperature of an execution's second and later samples.
        depth: steps that layers and trees grow at most.
        box_after, box_within: react takes an answer as final whose box begins after so many characters and is followed by so few.
        vote_on_plans: with `one`, the plan is voted on too, as text; for short plans of a fixed form.
        compare: how answers are compared; "published" drops signs and decimal points as the official program does.
    """

    name: ClassVar[str] = "explore-execute"
    prompt_files: ClassVar[tuple[str, ...]] = (
        "question.txt", "plan.txt", "execute.txt", "chain.txt", "summarise.txt", "judge.txt", "layer.txt", "thought.txt",
        "layer-judge.txt", "revise.txt",
    )  # fmt: skip

    way: Way = "judge"
    tagged: bool = False
    plans: int = 8
    clusters: int = 3
    plan_temperature: float = 0.9
    plan_tokens: int = 512
    execution_temperature: float = 0.0
    again: float = 0.7
    execution_tokens: int = 16384
    depth: int = 5
    revisions: int = 3
    trees: int = 3
    box_after: int = 300
    box_within: int = 500
    vote_on_plans: bool = False
    compare: Literal["exact", "published"] = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("plans", "clusters", "plan_tokens", "execution_tokens", "depth", "trees"):
            if not 1 <= getattr(self, field) <= MOST:
                raise BadInput(f"is from 1 to {MOST:,}", field=field, value=getattr(self, field))
        for field in ("plan_temperature", "execution_temperature", "again", "revisions", "box_after", "box_within"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise BadInput("is at least 0", field=field, value=getattr(self, field))
        if self.way == "causal" and self.tagged:
            raise BadInput("is asked in words, not by tags", field="way", value="causal", mend="leave tagged out")

    def right(self, answer: str, expected: str) -> bool:
        return self._key(answer) == self._key(expected)

    async def solve(self, task: Task, ctx: Context) -> Solution:
        work = _Search(self, task.goal, ctx)
        if self.way == "causal":
            return await work.causal(task)
        await getattr(work, self.way)()
        return work.solution()

    def _key(self, answer: str) -> str:
        return normal(answer) if self.compare == "exact" else as_published(answer)


class _Search:
    """One question under way: what was drawn, what was carried out, what it cost."""

    def __init__(self, solver: ExploreExecute, question: str, ctx: Context) -> None:
        self.solver, self.question, self.ctx = solver, question, ctx
        self.tokens: dict[str, int] = {}
        self.drawn: list[str] = []
        self.executed: list[dict[str, Any]] = []  # {"plan", "text", "answer", "weight"}
        self.one_plan = First(cap=ctx.run.asking.rule.cap)

    # The ways.

    async def one(self) -> None:
        voted = {"vote": self.ctx.run.asking.rule} if self.solver.vote_on_plans else {}
        self.drawn = [(await self._together("explore", self._plan, [voted]))[0]["text"]]
        await self._execute([(self.drawn[0], 1)])

    async def judge(self) -> None:
        await self._explore(self.solver.plans)
        await self._execute([(await self._judged(), 1)])

    async def random(self) -> None:
        await self._explore(self.solver.plans)
        choice = Random(draw_key(self.ctx.seed, self.ctx.path, "plan")).randrange(len(self.drawn))
        await self._execute([(self.drawn[choice], 1)])

    async def consistency(self) -> None:
        await self._explore(self.solver.plans)
        await self._execute([(plan, 1) for plan in self.drawn])

    async def cluster(self) -> None:
        await self._explore(self.solver.plans)
        chosen = selecting.clusters(self.drawn, self.solver.clusters)
        await self._execute([(self.drawn[place], size) for place, size in chosen])

    async def layers(self) -> None:
        await self._execute([(await self._grown("a plan", self._layer), 1)])

    async def react(self) -> None:
        await self._explore(self.solver.plans)
        plan = await self._judged()
        tried = [plan]
        for revision in range(self.solver.revisions + 1):
            await self._execute([(plan, 1)])
            attempt = self.executed[-1]["text"]
            if final_box(attempt, self.solver.box_after, self.solver.box_within) is not None or revision == self.solver.revisions:
                break
            plan = await self._next_plan(plan, attempt, tried)
            tried.append(plan)
        for earlier in self.executed[:-1]:
            earlier["weight"] = 0

    async def greedy(self) -> None:
        self._take(await self._together("execute", self._chain, [{}]), [("", 1)])

    async def chains(self) -> None:
        rule = self.ctx.run.asking.rule
        vote = Majority(self.solver.plans, max(self.solver.plans, rule.cap)) if isinstance(rule, First) else rule
        voted = {"vote": vote, "temperature": self.solver.plan_temperature, "first_temperature": None}
        self._take(await self._together("execute", self._chain, [voted]), [("", 1)])

    async def tree(self) -> None:
        await self._trees(1)

    async def forest(self) -> None:
        await self._trees(self.solver.trees)

    async def causal(self, task: Task) -> Solution:
        """A pair for training: the execution is made from the plan, the plan from a solution that was right, where that is known."""
        await self.greedy()
        full = self.executed.pop()
        if judged(self.solver, task, full["answer"]) is False:
            return Solution(answer=full["answer"], details={"question": self.question, "kept": False, "tokens": self._ledger()})
        plan = (await self._together("summarise", self._summary, [{"solution": full["text"]}]))[0]
        await self._execute([(plan["text"], 1)])
        found = self.solution()
        more = {"question": self.question, "kept": True, "plan": plan["text"], "full": full["text"]}
        return Solution(answer=found.answer, details={**found.details, **more})

    def solution(self) -> Solution:
        """The answer that the executions come to, by weight; those without one do not count.

        Raises:
            StepFailed: none has one.
        """
        votes = [(each, self.solver._key(each["answer"])) for each in self.executed if each["answer"] is not None and each["weight"]]
        winner = selecting.weighted((key, each["weight"]) for each, key in votes)
        if winner is None:
            mend = "give more execution_tokens, or another way"
            raise StepFailed(f"none of {len(self.executed)} executions came to an answer in \\boxed{{}}", field="execution", mend=mend)
        best = next(each for each, key in votes if key == winner)
        shown = [{name: each[name] for name in ("plan", "answer", "weight")} for each in self.executed]
        details: dict[str, Any] = {"way": self.solver.way, "execution": best["text"], "tokens": self._ledger(), "executions": shown}
        if best["plan"]:
            s, ordered = (adherence(best["plan"], best["text"], in_order=strict) for strict in (False, True))
            details |= {"plan": best["plan"], "plans": self.drawn, "adherence": s, "adherence_in_order": ordered}
        return Solution(answer=best["answer"], details=details)

    # What the ways are made of.

    async def _explore(self, n: int) -> None:
        self.drawn = [plan["text"] for plan in await self._together("explore", self._plan, [{"vote": self.one_plan}] * n)]

    async def _execute(self, plans: Sequence[tuple[str, int]]) -> None:
        """Carry out plans; each counts with its weight."""
        strict = len(plans) == 1 and self.solver.way != "react"
        found = await self._together("execute", self._execution, [{"plan": plan, "strict": strict} for plan, _ in plans])
        self._take(found, plans)

    def _take(self, found: Sequence[Done], plans: Sequence[tuple[str, int]]) -> None:
        for done, (plan, weight) in zip(found, plans, strict=True):
            self.executed.append({"plan": plan, "weight": weight, "text": done["text"], "answer": done["answer"]})

    async def _judged(self) -> str:
        """The plan that the model takes for the best."""
        if len(self.drawn) == 1:
            return self.drawn[0]
        return self.drawn[(await self._together("select", self._selection, [{}]))[0]["choice"]]

    async def _next_plan(self, plan: str, attempt: str, tried: list[str]) -> str:
        """What is carried out after an attempt that stalled: a revision that says something new, or a plan that lies by."""
        stuck = selecting.negated(attempt)
        asked = {"plan": plan[:PLAN_SHOWN], "attempt": attempt[-ATTEMPT_SHOWN:], "stuck": stuck}
        revision = (await self._together("revise", self._revision, [asked]))[0]["text"]
        unused = [other for other in self.drawn if other not in tried and selecting.overlap(other, plan) <= selecting.UNUSED]
        choices = [other for other in unused if selecting.avoids(other, stuck)] if stuck else []
        choices += [revision] if selecting.new(revision, plan) else []
        choices += unused
        if choices:
            return choices[0]
        fresh = {"vote": self.one_plan, "temperature": FRESH, "forbidden": stuck}
        return str((await self._together("explore", self._plan, [fresh]))[0]["text"])

    async def _grown(self, what: str, step: Callable[..., Awaitable[Done]]) -> str:
        """A text that grows by one step at a time, the best of K by the model's own judgement."""
        text = ""
        for _ in range(self.solver.depth):
            found = await self._together("explore", step, [{"text": text}] * self.solver.plans)
            beginnings = list(dict.fromkeys(done["text"] for done in found))
            asked = {"what": what, "beginnings": beginnings}
            judged = (await self._together("select", self._layer_judge, [asked]))[0]
            text = beginnings[judged["choice"]]
            if what == "a plan":
                self.drawn = beginnings
            if judged["ready"] or last_box(text) is not None:
                break
        return text

    async def _trees(self, n: int) -> None:
        for _ in range(n):
            text = await self._grown("a solution", self._thought)
            if last_box(text) is None:
                text = (await self._together("execute", self._thought, [{"text": text, "last": True}]))[0]["text"]
            box = last_box(text)
            self.executed.append({"plan": "", "weight": 1, "text": text, "answer": None if box is None else box.content})

    async def _together(self, phase: str, do: Callable[..., Awaitable[Done]], inputs: Sequence[Mapping[str, Any]]) -> list[Done]:
        """Calls that do not need one another, as the steps of one plan; what they cost goes to their phase."""
        steps = [Step(id=f"{phase}-{n}", inputs={"n": n}, skill=phase) for n in range(len(inputs))]
        together = Step(id="all", inputs={"found": [Ref(step=step.id) for step in steps]}, skill="all")
        plan = Plan(steps=(*steps, together))

        async def call(given: Mapping[str, Any], ctx: Context) -> Done:
            return await do(ctx, **inputs[given["n"]])

        found: list[Done] = await self.ctx.execute(plan, SkillLibrary([_Calls(phase, call), _Calls("all", _found)]))
        for done in found:
            self.tokens[phase] = self.tokens.get(phase, 0) + done["tokens"]
        return found

    def _ledger(self) -> dict[str, int]:
        """Tokens that were generated, flagged and outvoted samples too."""
        return {**self.tokens, "total": sum(self.tokens.values())}

    # The calls.

    async def _plan(self, ctx: Context, *, vote: Any = None, temperature: float | None = None, forbidden: Sequence[str] = ()) -> Done:
        rule = vote or self.one_plan
        warm = self.solver.plan_temperature if temperature is None else temperature
        sampling: dict[str, Any] = {"temperature": warm, "max_tokens": self.solver.plan_tokens}
        if self.solver.tagged and not forbidden:
            prompt = self.solver.prompt("question.txt", question=self.question)
            sampling |= {"prefix": format.PLAN, "stop": (format.PLAN_END,)}
        else:
            prompt = self.solver.prompt("plan.txt", question=self.question, forbidden=list(forbidden))
        return await _call(ctx, prompt, parse=_as_plan, key=_plan_key, vote=rule, **sampling)

    async def _summary(self, ctx: Context, *, solution: str) -> Done:
        prompt = self.solver.prompt("summarise.txt", question=self.question, solution=solution)
        return await _call(ctx, prompt, parse=_as_plan, key=_plan_key, **self._drawn_after(0.0, self.solver.plan_tokens))

    async def _revision(self, ctx: Context, *, plan: str, attempt: str, stuck: list[str]) -> Done:
        prompt = self.solver.prompt("revise.txt", question=self.question, plan=plan, attempt=attempt, stuck=stuck)
        return await _call(ctx, prompt, parse=_as_plan, key=_plan_key, temperature=REVISING, max_tokens=REVISION)

    async def _execution(self, ctx: Context, *, plan: str, strict: bool) -> Done:
        sampling = self._drawn_after(self.solver.execution_temperature, self.solver.execution_tokens)
        if self.solver.tagged:
            prompt = self.solver.prompt("question.txt", question=self.question)
            sampling |= {"prefix": format.begun(plan), "stop": (format.EXECUTION_END,)}
        else:
            prompt = self.solver.prompt("execute.txt", question=self.question, plan=plan)
        return await _call(ctx, prompt, parse=_as_solution if strict else _as_attempt, key=self._answer_key, **sampling)

    async def _chain(self, ctx: Context, **changes: Any) -> Done:
        """A whole solution; of a tagged model, a plan and its execution in one go."""
        sampling = self._drawn_after(self.solver.execution_temperature, self.solver.execution_tokens)
        if self.solver.tagged:
            prompt = self.solver.prompt("question.txt", question=self.question)
            more = self.solver.plan_tokens + self.solver.execution_tokens
            sampling |= {"prefix": format.PLAN, "stop": (format.EXECUTION_END,), "max_tokens": more}
        else:
            prompt = self.solver.prompt("chain.txt", question=self.question)
        return await _call(ctx, prompt, parse=_as_solution, key=self._answer_key, **(sampling | changes))

    async def _layer(self, ctx: Context, *, text: str) -> Done:
        """The plan with one more step."""
        sampling = {"temperature": self.solver.plan_temperature, "max_tokens": self.solver.plan_tokens, "vote": self.one_plan}
        if not self.solver.tagged:
            prompt = self.solver.prompt("layer.txt", question=self.question, plan=text)
            return await _call(ctx, prompt, parse=lambda said: _longer(text, format.plan_in(said)), **sampling)
        prompt = self.solver.prompt("question.txt", question=self.question)
        begun = f"{format.PLAN}{text}\n" if text else format.PLAN
        stop = (format.PLAN_END, "\n")
        return await _call(ctx, prompt, parse=lambda said: _longer(text, said), prefix=begun, stop=stop, **sampling)

    async def _thought(self, ctx: Context, *, text: str, last: bool = False) -> Done:
        """The solution with one more step, or with all that is left."""
        warm = self.solver.execution_temperature if last else self.solver.plan_temperature
        sampling: dict[str, Any] = {"temperature": warm, "max_tokens": self.solver.execution_tokens}
        sampling |= {} if last else {"vote": self.one_plan}
        if not self.solver.tagged:
            prompt = self.solver.prompt("thought.txt", question=self.question, solution=text, last=last)
            return await _call(ctx, prompt, parse=lambda said: _longer(text, said), **sampling)
        prompt = self.solver.prompt("question.txt", question=self.question)
        begun = f"{format.PLAN}{text}\n" if text else format.PLAN
        stop = (format.EXECUTION_END,) if last else (format.EXECUTION_END, "\n")
        return await _call(ctx, prompt, parse=lambda said: _longer(text, said), prefix=begun, stop=stop, **sampling)

    async def _selection(self, ctx: Context) -> Done:
        prompt = self.solver.prompt("judge.txt", question=self.question, plans=self.drawn)

        def read(text: str) -> Done:
            return {"choice": selecting.nearest(_said(format.plan_in(text)), self.drawn)}

        return await _call(ctx, prompt, parse=read, **self._drawn_after(0.0, self.solver.plan_tokens))

    async def _layer_judge(self, ctx: Context, *, what: str, beginnings: list[str]) -> Done:
        prompt = self.solver.prompt("layer-judge.txt", question=self.question, what=what, beginnings=beginnings)

        def read(text: str) -> Done:
            verdict, _, best = text.strip().partition("\n")
            ready = verdict.strip(" .*:").upper()
            if ready not in ("READY", "CONTINUE"):
                raise Flag("says neither READY nor CONTINUE")
            return {"choice": selecting.nearest(_said(best), beginnings), "ready": ready == "READY"}

        most = self.solver.plan_tokens if what == "a plan" else self.solver.execution_tokens
        return await _call(ctx, prompt, parse=read, **self._drawn_after(0.0, most))

    def _drawn_after(self, first: float, most: int) -> dict[str, Any]:
        """The first sample at a temperature, the others at `again`."""
        return {"first_temperature": first, "temperature": self.solver.again, "max_tokens": most}

    def _answer_key(self, done: Done) -> Any:
        return None if done["answer"] is None else self.solver._key(done["answer"])


class _Calls(Skill):
    """A call as a step's skill."""

    def __init__(self, name: str, do: Callable[[Mapping[str, Any], Context], Awaitable[Any]]) -> None:
        super().__init__(name)
        self.do = do

    async def call(self, inputs: Mapping[str, Any], ctx: Context) -> Any:
        return await self.do(inputs, ctx)


async def _found(inputs: Mapping[str, Any], ctx: Context) -> Any:
    return inputs["found"]


async def _call(ctx: Context, prompt: str, **options: Any) -> Done:
    answer = await ctx.ask(prompt, **options)
    return {**answer.value, "tokens": answer.tokens_out}


def _said(text: str) -> str:
    if not text.strip():
        raise Flag("empty")
    return text.strip()


def _as_plan(text: str) -> Done:
    return {"text": _said(format.plan_in(text))}


def _plan_key(done: Done) -> str:
    return " ".join(str(done["text"]).lower().split())


def _as_attempt(text: str) -> Done:
    box = last_box(text)
    return {"text": _said(format.execution_in(text)), "answer": None if box is None else box.content}


def _as_solution(text: str) -> Done:
    done = _as_attempt(text)
    if done["answer"] is None:
        raise Flag("no answer in \\boxed{}")
    return done


def _longer(text: str, more: str) -> Done:
    """A text with one more step; without one it is complete."""
    more = more.strip()
    return {"text": _said(f"{text}\n{more}" if text and more else text or more)}
