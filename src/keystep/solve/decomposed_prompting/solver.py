"""The solver: a program's main handler is given the task's goal, with the paragraphs of `inputs.context`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

from keystep.errors import BadInput, KeystepError, StepFailed
from keystep.plan import Plan, Step
from keystep.run.run import Context
from keystep.solve.decomposed_prompting.grammar import read_line, written
from keystep.solve.decomposed_prompting.handlers import Limits, Node, every
from keystep.solve.decomposed_prompting.program import Program, built, program_text, read_form
from keystep.solve.decomposed_prompting.scoring import as_set, drop_match
from keystep.solve.solver import Solution, Solver
from keystep.task import Task


@dataclass(frozen=True, kw_only=True)
class DecomposedPrompting(Solver):
    """Decomposed Prompting (arXiv 2210.02406). From Python a derived class may give its own `load`.

    Args:
        program: a shipped program (questions, letters, reversal, commaqa), or the path of a YAML file.
        max_steps: lines of one decomposer's program; the last answer counts where it reaches them.
        max_calls, max_tokens, max_depth: what a question may take, handlers and decomposers together; None is no limit.
    """

    name: ClassVar[str] = "decomposed-prompting"
    prompt_files: ClassVar[tuple[str, ...]] = ("decomposer.txt", "handler.txt")

    program: str = "questions"
    max_steps: int = 10
    max_calls: int = 1000
    max_tokens: int | None = None
    max_depth: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self._limits()
        read_form(program_text(self.program)[0], self.program)

    def load(self) -> Program:
        """The program with its handlers, made anew for every question."""
        text, folder = program_text(self.program)
        return built(read_form(text, self.program), folder, {file: self.prompt_text(file) for file in self.prompt_files}, self._limits())

    def _limits(self) -> Limits:
        return Limits(self.max_calls, self.max_tokens, self.max_depth, self.max_steps)

    async def solve(self, task: Task, ctx: Context) -> Solution:
        program = self.load()
        try:
            tree = await answered(program, task, ctx)
        finally:
            await program.close()
        value = tree["answer"]
        return Solution(answer=value if isinstance(value, str) else written(value), details=details(tree))

    def right(self, answer: str, expected: str) -> bool:
        score = read_form(program_text(self.program)[0], self.program).score
        if score == "exact":
            return answer == expected
        if score == "set":
            return as_set(answer, expected)
        return drop_match(answer, expected) if score == "drop" else super().right(answer, expected)

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"program_text": program_text(self.program)[0], "handlers": self.load().identity()}


async def answered(program: Program, task: Task, ctx: Context) -> Node:
    """The tree of a question's calls.

    Raises:
        StepFailed, Undecided: where it failed, at whatever depth.
        BadInput: the context is no text and no list of texts.
    """
    asked = {"question": task.goal, "context": paragraphs(task), "depth": 0, "passages": []}
    plan = Plan(steps=(Step(id="q1", instruction=task.goal, skill=program.main, inputs=asked),))
    try:
        tree: Node = await ctx.execute(plan, program.library)
    except StepFailed as error:
        cause: BaseException = error  # what happened below, without the chain of steps that it ended
        while isinstance(cause, StepFailed) and isinstance(cause.__cause__, KeystepError):
            cause = cause.__cause__
        raise cause from error
    program.limits.settle(tree)
    return tree


def paragraphs(task: Task) -> list[str]:
    """The context of a task: a text is one paragraph.

    Raises:
        BadInput: it is neither a text nor a list of texts.
    """
    given = task.inputs.get("context") or []
    found = [given] if isinstance(given, str) else given
    if not isinstance(found, list) or not all(isinstance(part, str) for part in found):
        raise BadInput("is a text or a list of texts", field="inputs.context", value=given)
    return found


def details(tree: Node) -> dict[str, Any]:
    """What a solution tells: the program as a plan, the whole tree, and what was called how often."""
    calls: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for node in every(tree):
        calls[node["handler"]] += node["calls"]
        tokens[node["handler"]] += node["tokens_in"] + node["tokens_out"]
    asked = sum(node["calls"] for node in every(tree) if node["kind"] in ("prompt", "decomposer"))
    return {
        "value": tree["answer"], "calls": dict(sorted(calls.items())), "tokens": dict(sorted(tokens.items())), "model_calls": asked,
        "plan": None if "lines" not in tree else plan_of(tree).model_dump(mode="json"), "tree": tree,
    }  # fmt: skip


def plan_of(tree: Node) -> Plan:
    """The program that a decomposer emitted: a step for every line, each after the lines that it refers to."""
    steps, answers = [], list[Any]()
    for number, done in enumerate(tree["lines"], 1):
        line = read_line(done["line"], _Any(), answers, 10**6)
        assert line is not None
        needs = [str(step) for step in line.references()]
        steps.append(Step.model_validate({"id": str(number), "instruction": done["line"], "skill": line.handler, "needs": needs}))
        answers.append(done["answer"])
    return Plan(steps=tuple(steps))


class _Any(frozenset[str]):
    def __contains__(self, name: object) -> bool:
        return True
