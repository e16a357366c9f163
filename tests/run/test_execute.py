"""The executor of Plans: order, refs, escalation, failure, resume."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from keystep import BadInput, Budget, First, Majority, Plan, Ref, Run, Skill, SkillLibrary, Step
from keystep.errors import BudgetSpent, ChangedWork, JournalError, StepFailed
from keystep.lm.base import LM, Request, Sample
from keystep.run.journal import Journal
from keystep.run.procedure import Procedure
from keystep.run.skills import PromptSkill, ToolSkill

Row = tuple[str, str | None, str | None, Any]


class Killed(BaseException):
    """Ends the process's work here and now; test_mixed_plan does it with real kills."""


class Said(LM):
    """Answers by a function of (prompt, sample number); counts its samples."""

    def __init__(self, answer: Callable[[str, int], str] = lambda prompt, index: prompt.upper()) -> None:
        self.name, self.answer, self.samples = "said", answer, 0

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        for index in range(request.first, request.first + request.n):
            self.samples += 1
            yield Sample(self.answer(str(request.prompt), index), index=index, tokens_out=1)


class Done(Skill):
    """Calls an async function of (inputs, ctx); `finished` judges what it gives."""

    def __init__(self, name: str, work: Callable[..., Any], finished: Callable[[Any], bool] = lambda output: True, **more: Any) -> None:
        super().__init__(name, **more)
        self.work, self.finished = work, finished

    async def call(self, inputs: Mapping[str, Any], ctx: Any) -> Any:
        return await self.work(inputs, ctx)

    def done(self, output: Any) -> bool:
        return self.finished(output)


def run_of(lm: LM | None = None, journal: Any = None, **more: Any) -> Run:
    return Run(lm or Said(), vote=more.pop("vote", First()), journal=journal, id="r", **more)


def carry_out(plan: Plan, skills: list[Skill], run: Run | None = None, **inputs: Any) -> Any:
    run = run or run_of()
    return run.execute_sync(plan, SkillLibrary(skills), inputs=inputs).result


def rows(run: Run) -> list[Row]:
    return [(path, row.name, row.skill, row.answer) for path, row in run.journal.trace(run.id)]


def tool(name: str, function: Callable[..., Any], **more: Any) -> ToolSkill:
    return ToolSkill(name, function, **more)


def one(step: str = "only", skill: str = "do", **more: Any) -> Plan:
    return Plan(steps=(Step(id=step, skill=skill, **more),))


# order and data


def test_outputs_flow_along_refs_at_any_depth() -> None:
    plan = Plan(
        steps=(
            Step(id="sum", skill="add", inputs={"values": [Ref(step="rows", path=("all", 0)), Ref(step="inputs", path=("more", -1)), 3]}),
            Step(id="rows", skill="make", inputs={"n": Ref(step="inputs", path=("n",))}),
            Step(id="show", skill="show", inputs={"what": {"sum": Ref(step="sum"), "deep": [{"rows": Ref(step="rows")}]}}),
        ),
        output="show",
    )
    skills: list[Skill] = [
        tool("make", lambda n: {"all": [n, n + 1]}),
        tool("add", lambda values: sum(values)),
        tool("show", lambda what: what),
    ]
    assert carry_out(plan, skills, n=10, more=[1, 2]) == {"sum": 15, "deep": [{"rows": {"all": [10, 11]}}]}


def test_the_output_is_the_last_listed_steps_unless_named() -> None:
    steps = (Step(id="b", skill="tell", inputs={"x": "b"}, needs=("a",)), Step(id="a", skill="tell", inputs={"x": "a"}))  # type: ignore[arg-type]
    skills: list[Skill] = [tool("tell", lambda x: x)]
    assert carry_out(Plan(steps=steps), skills) == "a"
    assert carry_out(Plan(steps=steps, output="b"), skills) == "b"


def test_independent_steps_run_side_by_side_and_needs_are_waited_for() -> None:
    seen: list[str] = []
    meet = {"a": asyncio.Event(), "b": asyncio.Event()}

    async def wait_for_the_other(inputs: Mapping[str, Any], ctx: Any) -> str:
        me = ctx.step.id
        meet[me].set()
        await asyncio.wait_for(meet["b" if me == "a" else "a"].wait(), 30)
        seen.append(me)
        return str(me)

    async def last(inputs: Mapping[str, Any], ctx: Any) -> list[str]:
        return sorted(seen)

    steps = (Step(id="end", skill="last", needs=("a", "b")), Step(id="a", skill="meet"), Step(id="b", skill="meet"))  # type: ignore[arg-type]
    assert carry_out(Plan(steps=steps, output="end"), [Done("meet", wait_for_the_other), Done("last", last)]) == ["a", "b"]


def test_a_wide_plan_ends_in_one_step() -> None:
    wide = tuple(Step(id=f"s{i}", skill="tell", inputs={"x": i}) for i in range(300))
    end = Step(id="end", skill="add", inputs={"values": [Ref(step=step.id) for step in wide]})

    async def tell(inputs: Mapping[str, Any], ctx: Any) -> Any:
        return inputs["x"]

    assert carry_out(Plan(steps=(*wide, end)), [Done("tell", tell), tool("add", lambda values: sum(values))]) == sum(range(300))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("rows", 5), ["nothing at rows.5", "a list of 1"]),
        (("cols",), ["nothing at cols", "there is n, rows"]),
        (("rows", "x"), ["nothing at rows.x", "a list of 1"]),
        (("n", "deep"), ["nothing at n.deep", "no more below"]),
    ],
)
def test_a_ref_that_leads_to_nothing_names_step_and_path(path: tuple[Any, ...], words: list[str]) -> None:
    steps = (Step(id="make", skill="make"), Step(id="use", skill="tell", inputs={"x": [Ref(step="make", path=path)]}))
    with pytest.raises(BadInput) as caught:
        carry_out(Plan(steps=steps), [tool("make", lambda: {"rows": [1], "n": 1}), tool("tell", lambda x: x)])
    assert caught.value.field == "step use.inputs.x.0"
    assert caught.value.value == list(path)
    assert all(word in str(caught.value) for word in ["output of step make", *words])
    with pytest.raises(BadInput, match=r"plan's inputs have nothing at gone"):
        carry_out(one(inputs={"x": Ref(step="inputs", path=("gone",))}), [tool("do", lambda x: x)])


def test_inputs_and_outputs_are_json() -> None:
    class Point(BaseModel):
        x: int
        tags: tuple[str, ...]

    spoiled: list[Any] = []

    def spoil(rows: list[int]) -> Point:
        rows.append(9)
        spoiled.append(rows)
        return Point(x=len(rows), tags=("b", "a"))

    steps = (Step(id="a", skill="spoil", inputs={"rows": Ref(step="inputs", path=("rows",))}),
             Step(id="b", skill="spoil", inputs={"rows": Ref(step="inputs", path=("rows",))}, needs=("a",)),  # type: ignore[arg-type]
             Step(id="c", skill="pair", inputs={"a": Ref(step="a"), "b": Ref(step="b")}))  # fmt: skip
    out = carry_out(Plan(steps=steps), [tool("spoil", spoil), tool("pair", lambda a, b: [a, b])], rows=[1])
    assert out == [{"x": 2, "tags": ["b", "a"]}] * 2  # neither step saw what the other did to its copy
    with pytest.raises(BadInput, match=r"^inputs: is not JSON"):
        carry_out(one(), [tool("do", lambda: 1)], bad={1, 2})


def test_what_cannot_work_is_refused_before_anything_begins() -> None:
    calls: list[int] = []
    skills: list[Skill] = [tool("do", lambda: calls.append(1))]
    for second in (Step(id="b", skill="fly"), Step(id="b", skill="do", post="1 +"), Step(id="b", skill="do", pre="{{ x }}")):
        with pytest.raises(BadInput):
            carry_out(Plan(steps=(Step(id="a", skill="do"), second)), skills)
    with pytest.raises(BadInput, match="library"):
        run_of().execute_sync(one())
    assert calls == []


# escalation


async def cost(inputs: Mapping[str, Any], ctx: Any) -> Any:
    return inputs.get("n", 1)


async def broken(inputs: Mapping[str, Any], ctx: Any) -> Any:
    raise RuntimeError("out of order")


async def never_agrees(inputs: Mapping[str, Any], ctx: Any) -> Any:
    return (await ctx.ask("never", vote=Majority(3, cap=4))).value


async def cancels_itself(inputs: Mapping[str, Any], ctx: Any) -> Any:
    raise asyncio.CancelledError


def differ(prompt: str, index: int) -> str:
    return f"answer {index}"


@pytest.mark.parametrize(
    ("skill", "reason"),
    [
        (Done("small", broken, can=["do"]), "RuntimeError: out of order"),
        (Done("small", never_agrees, can=["do"]), "no winner after 4 samples"),
        (PromptSkill("small", "hi", r"\d{9}", vote=First(cap=3), cost=0, can=["do"]), "none of 3 samples was a valid answer: no match"),
        (PromptSkill("small", "{{ inputs.gone }}", cost=0, can=["do"]), "a mapping has no 'gone'"),
        (Done("small", cost, lambda output: False, can=["do"]), "says that it is not done"),
        (Done("small", cost, can=["do"], gives=str), "output of skill small: Input should be a valid string"),
        (Done("small", cost, can=["do"], takes=dict[str, bool]), "inputs of skill small.n: Input should be a valid boolean"),
        (tool("small", lambda n: object(), can=["do"]), "PydanticSerializationError"),
        (tool("small", lambda n: float("nan"), can=["do"]), "output of skill small: is not JSON"),
        (tool("small", lambda: 1, can=["do"]), "TypeError"),
        (tool("small", lambda n: -1, can=["do"]), "its post-condition output > 0 and inputs.n == 7 does not hold (got -1)"),
        (tool("small", lambda n: "text", can=["do"]), "step only.post: line 1:"),
        (Done("small", cancels_itself, can=["do"]), "cancelled itself"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_skill_that_fails_gives_way_to_the_next(skill: Skill, reason: str) -> None:
    run = run_of(Said(differ))
    plan = one(inputs={"n": 7}, post="output > 0 and inputs.n == 7")
    big = Done("big", cost, can=["do"], cost=5)
    assert carry_out(plan, [big, skill], run) == 7
    done = [row for row in rows(run) if row[0] in ("0", "0/only")]
    assert done[0] == ("0", "only", "big", 7)
    assert done[1][:3] == ("0/only", "failed", "small")
    assert reason in done[1][3]
    assert len(done) == 2


def test_a_step_that_no_skill_can_do_names_itself_and_every_reason() -> None:
    skills: list[Skill] = [Done("a", broken, can=["do"]), Done("b", cost, lambda output: False, can=["do"], cost=2)]
    with pytest.raises(StepFailed) as caught:
        carry_out(one(), skills)
    assert caught.value.field == "step only"
    assert "a: RuntimeError: out of order" in str(caught.value)
    assert "b: skill b: says that it is not done" in str(caught.value)
    assert isinstance(caught.value.__cause__, StepFailed)
    with pytest.raises(StepFailed) as caught:
        carry_out(one(), skills[:1])
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_a_false_precondition_fails_the_step_at_once() -> None:
    calls: list[int] = []
    skills: list[Skill] = [tool("do", lambda n: calls.append(n))]
    with pytest.raises(StepFailed, match=r"step only\.pre: its pre-condition does not hold \(got 'inputs\.n > 3'\)"):
        carry_out(one(inputs={"n": 3}, pre="inputs.n > 3"), skills)
    with pytest.raises(BadInput, match=r"step only\.pre: line 1.*zz"):
        carry_out(one(inputs={"n": 3}, pre="inputs.zz > 3"), skills)
    assert calls == []
    carry_out(one(inputs={"n": 4}, pre="inputs.n > 3"), skills)
    assert calls == [4]


def test_what_stops_the_whole_run_is_not_escalated() -> None:
    second: list[int] = []

    async def in_a_group(inputs: Mapping[str, Any], ctx: Any) -> Any:
        async with asyncio.TaskGroup() as group:
            for prompt in "abc":
                group.create_task(ctx.ask(prompt))

    async def journal_gone(inputs: Mapping[str, Any], ctx: Any) -> Any:
        raise JournalError("the disk is full")

    for work, error in ((in_a_group, BudgetSpent), (journal_gone, JournalError)):
        run = run_of(budget=Budget(calls=2))
        with pytest.raises(error):
            carry_out(one(), [Done("a", work, can=["do"]), tool("b", lambda: second.append(1), can=["do"], cost=1)], run)
    assert second == []


def test_reasons_hold_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_API_KEY", "a-very-secret-value")

    async def leaks(inputs: Mapping[str, Any], ctx: Any) -> Any:
        raise RuntimeError("401 for key a-very-secret-value")

    run = run_of()
    with pytest.raises(StepFailed) as caught:
        carry_out(one(), [Done("do", leaks)], run)
    assert "a-very-secret-value" not in str(caught.value) + str(rows(run)) + str(run.journal.run("r")["why"])


# failure beside others


def test_a_failed_step_cancels_those_under_way_and_keeps_those_done(tmp_path: Path) -> None:
    reached, cancelled, calls = asyncio.Event(), [], []
    mended = False

    async def quick(inputs: Mapping[str, Any], ctx: Any) -> str:
        calls.append("quick")
        return "done"

    async def slow(inputs: Mapping[str, Any], ctx: Any) -> str:
        calls.append("slow")
        if mended:
            return "slow"
        reached.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(ctx.step.id)
            raise
        return "never"

    async def fails(inputs: Mapping[str, Any], ctx: Any) -> str:
        if mended:
            return "mended"
        await reached.wait()
        raise RuntimeError("no")

    steps = (Step(id="q", skill="quick"), Step(id="s", skill="slow"), Step(id="f", skill="fails", needs=("q",)),  # type: ignore[arg-type]
             Step(id="end", skill="join", inputs={"parts": [Ref(step=id) for id in "qsf"]}))  # fmt: skip
    skills: list[Skill] = [Done("quick", quick), Done("slow", slow), Done("fails", fails), tool("join", lambda parts: parts)]
    run = run_of(journal=tmp_path / "j.db")
    with pytest.raises(StepFailed, match="step f"):
        carry_out(Plan(steps=steps), skills, run)
    assert cancelled == ["s"]
    assert [row[:3] for row in rows(run)] == [("0", "q", "quick"), ("0/f", "failed", "fails")]
    assert run.journal.run("r")["status"] == "stopped"
    run.close()
    mended = True
    assert carry_out(Plan(steps=steps), skills, run_of(journal=tmp_path / "j.db")) == ["done", "slow", "mended"]
    assert calls == ["quick", "slow", "slow"]


def test_cancelling_the_run_leaves_it_resumable(tmp_path: Path) -> None:
    async def main() -> None:
        run, under_way = run_of(journal=tmp_path / "j.db"), asyncio.Event()

        async def stuck(inputs: Mapping[str, Any], ctx: Any) -> None:
            under_way.set()
            await asyncio.sleep(60)

        work = asyncio.ensure_future(run.execute(one(), SkillLibrary([Done("do", stuck)])))
        await under_way.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert run.journal.run("r")["status"] == "stopped"
        assert rows(run) == []
        run.close()

    asyncio.run(main())
    assert carry_out(one(), [Done("do", cost)], run_of(journal=tmp_path / "j.db")) == 1


# resume


def test_what_is_journaled_is_not_done_again(tmp_path: Path) -> None:
    calls: list[str] = []
    fail = [True]

    async def twice(inputs: Mapping[str, Any], ctx: Any) -> Any:
        first, second = await ctx.ask("one"), await ctx.ask("two")
        if fail[0]:
            raise Killed
        return [first.value, second.value]

    def note(x: str) -> dict[str, Any]:
        calls.append(x)
        return {"z": x, "a": (1, 2)}

    steps = (Step(id="t", skill="note", inputs={"x": "t"}), Step(id="m", skill="twice", needs=("t",)),  # type: ignore[arg-type]
             Step(id="end", skill="both", inputs={"t": Ref(step="t"), "m": Ref(step="m")}))  # fmt: skip
    skills: list[Skill] = [tool("note", note), Done("twice", twice), tool("both", lambda t, m: [t, m])]
    lm = Said()
    with pytest.raises(Killed):
        carry_out(Plan(steps=steps), skills, run_of(lm, tmp_path / "j.db"))
    assert (calls, lm.samples) == (["t"], 2)
    fail[0] = False
    run = run_of(lm, Journal(tmp_path / "j.db"))
    assert carry_out(Plan(steps=steps), skills, run) == [{"a": [1, 2], "z": "t"}, ["ONE", "TWO"]]
    assert (calls, lm.samples) == (["t"], 2)
    assert [row[:3] for row in rows(run) if row[0] == "0/m/twice"] == [("0/m/twice", None, None)] * 2
    run.close()
    assert carry_out(Plan(steps=steps), skills, run_of(lm, tmp_path / "j.db"))[1] == ["ONE", "TWO"]  # a finished run, executed again
    assert (calls, lm.samples) == (["t"], 2)


def test_a_killed_escalation_goes_on_with_the_next_skill_and_a_lost_step_starts_over(tmp_path: Path) -> None:
    calls: list[str] = []
    stop = [True]

    async def a(inputs: Mapping[str, Any], ctx: Any) -> Any:
        calls.append("a")
        await ctx.ask("kept")
        raise RuntimeError("a fails")

    async def b(inputs: Mapping[str, Any], ctx: Any) -> Any:
        calls.append("b")
        if stop[0]:
            raise Killed
        raise RuntimeError("b fails")

    lm = Said()
    skills: list[Skill] = [Done("a", a, can=["do"]), Done("b", b, can=["do"], cost=1)]

    def attempt(error: type[BaseException]) -> None:
        run = run_of(lm, tmp_path / "j.db")
        try:
            with pytest.raises(error) as caught:
                carry_out(one(), skills, run)
            if error is StepFailed:
                assert "a: RuntimeError: a fails" in str(caught.value)
                assert "b: RuntimeError: b fails" in str(caught.value)
        finally:
            run.close()

    attempt(Killed)
    stop[0] = False
    attempt(StepFailed)
    assert calls == ["a", "b", "b"]
    attempt(StepFailed)
    assert calls == ["a", "b", "b", "a", "b"]
    assert lm.samples == 1  # what was decided in it was kept


def test_a_persons_decision_lets_the_step_go_on(tmp_path: Path) -> None:
    async def asks(inputs: Mapping[str, Any], ctx: Any) -> Any:
        return {"said": (await ctx.ask("never", vote=Majority(3, cap=4))).value}

    skills: list[Skill] = [Done("do", asks)]
    run = run_of(Said(differ), tmp_path / "j.db")
    with pytest.raises(StepFailed, match=r"step only/do/0: no winner after 4 samples"):
        carry_out(one(), skills, run)
    run.journal.decide("r", "only/do/0", "settled")
    run.close()
    assert carry_out(one(), skills, run_of(Said(differ), tmp_path / "j.db")) == {"said": "settled"}


def other(n: int) -> int:
    return n + 1


def another(n: int) -> int:
    return n + 2


@pytest.mark.parametrize(
    ("change", "where", "was", "now"),
    [
        ({"instruction": "two"}, "work.0.plan.steps", "one", "two"),
        ({"prompt": "Say {{ inputs.n }}!"}, "work.0.skills.p.prompt", "Say {{ inputs.n }}", "Say {{ inputs.n }}!"),
        ({"parse": "b"}, "work.0.skills.p.parse", "'.*'", "'b'"),
        ({"vote": Majority(3)}, "work.0.skills.p.vote", "First", "Majority(n=3"),
        ({"temperature": 0.5}, "work.0.skills.p.temperature", "0.9", "0.5"),
        ({"function": another}, "work.0.skills.t.function", "other", "another"),
        ({"cost": 2.0}, "work.0.skills.t.cost", "0.0", "2.0"),
        ({"n": 2}, "work.0.inputs.n", "1", "2"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else "",
)
def test_changed_work_is_refused_and_the_difference_shown(tmp_path: Path, change: dict[str, Any], where: str, was: str, now: str) -> None:
    def attempt(changed: dict[str, Any]) -> None:
        use = {"instruction": "one", "prompt": "Say {{ inputs.n }}", "parse": ".*", "vote": First(), "temperature": 0.9, "function": other,
               "cost": 0.0, "n": 1, **changed}  # fmt: skip
        prompt = PromptSkill("p", use["prompt"], use["parse"], vote=use["vote"], sampling={"temperature": use["temperature"]})
        skills: list[Skill] = [prompt, tool("t", use["function"], cost=use["cost"])]
        inputs = {"n": Ref(step="inputs", path=("n",))}
        plan = Plan(steps=(Step(id="a", skill="p", inputs=inputs, instruction=use["instruction"]), Step(id="b", skill="t", inputs=inputs)))
        run = run_of(journal=tmp_path / "j.db")
        try:
            carry_out(plan, skills, run, n=use["n"])
        finally:
            run.close()

    attempt({})
    attempt({})
    with pytest.raises(ChangedWork) as caught:
        attempt(change)
    assert all(word in str(caught.value) for word in ("run r", where, was, now)), str(caught.value)


def test_a_sub_plan_that_changed_is_refused(tmp_path: Path) -> None:
    names, fail = ["x", "y"], [True]

    async def plans(inputs: Mapping[str, Any], ctx: Any) -> Any:
        steps = tuple(Step(id=name, skill="tell", inputs={"x": name}) for name in names)
        output = await ctx.execute(Plan(steps=steps), SkillLibrary([tool("tell", lambda x: x)]))
        if fail[0]:
            raise Killed
        return output

    with pytest.raises(Killed):
        carry_out(one(), [Done("do", plans)], run_of(journal=tmp_path / "j.db"))
    names.reverse()
    fail[0] = False
    run = run_of(journal=tmp_path / "j.db")
    with pytest.raises(ChangedWork, match=r"step [xy]: is not the step that the journal has in its place"):
        carry_out(one(), [Done("do", plans)], run)
    run.close()
    names.reverse()
    assert carry_out(one(), [Done("do", plans)], run_of(journal=tmp_path / "j.db")) == "y"


class Count(Procedure):
    """Asks `to` times; its state counts them."""

    name = "count"

    def __init__(self, to: int) -> None:
        self.to = to

    def start(self) -> int:
        return 0

    def prompt(self, state: int) -> str:
        return f"step {state}"

    def update(self, state: int, answer: str) -> int:
        return state + 1

    def done(self, state: int) -> bool:
        return state == self.to

    def identity(self) -> int:
        return self.to


def test_skills_carry_out_plans_and_procedures_below(tmp_path: Path) -> None:
    async def nested(inputs: Mapping[str, Any], ctx: Any) -> Any:
        steps = (Step(id="up", skill="ask", inputs={"x": Ref(step="inputs", path=("word",))}),)
        said = await ctx.execute(Plan(steps=steps), SkillLibrary([PromptSkill("ask", "{{ inputs.x }}")]), inputs={"word": "deep"})
        return [said, await ctx.execute(Count(3))]

    lm = Said()
    run = run_of(lm, tmp_path / "j.db")
    assert carry_out(one(), [Done("do", nested)], run) == ["DEEP", 3]
    assert [row[0] for row in rows(run) if row[1] is None] == ["0/only/do/0/up/ask", *["0/only/do/1"] * 3]
    assert lm.samples == 4
    run.close()
    carry_out(one(), [Done("do", nested)], run_of(lm, tmp_path / "j.db"))
    assert lm.samples == 4


def test_a_failure_below_says_where() -> None:
    async def nested(inputs: Mapping[str, Any], ctx: Any) -> Any:
        return await ctx.execute(one("inner"), SkillLibrary([Done("do", broken)]))

    with pytest.raises(StepFailed, match=r"(?s)step only.*step inner.*out of order"):
        carry_out(one(), [Done("do", nested)])


def test_tools_run_beside_the_loop() -> None:
    """Two blocking tools that wait for one another can only end when neither holds the loop."""
    gate = threading.Barrier(2)
    steps = tuple(Step(id=id, skill="wait") for id in "ab")
    carry_out(Plan(steps=steps), [tool("wait", lambda: gate.wait(30))])


@pytest.mark.parametrize("by_tool", [True, False])
def test_the_plan_of_the_documentation_runs(by_tool: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import keystep

    def add_up(rows: list[int]) -> int:
        if not by_tool:
            raise RuntimeError("no calculator")
        return sum(rows)

    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs/plans.md").read_text("utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {"read_rows": lambda path: [40, 2], "add_up": add_up}
    monkeypatch.setattr(keystep, "lm", lambda name: Said(lambda prompt, index: "42" if "[40, 2]" in prompt else prompt), raising=False)
    exec(code, names)
    assert names["outcome"].result == "One sentence. The total is 42."
