"""The front of this room: what a solver is, which there are, and what runs any of them on one question or on a file of them.

A solver is a frozen dataclass with the names of `Solver`, and one line in `SOLVERS`. In return it has `keystep solve NAME` (settings,
progress, batch, resume, voting, accuracy) and its place in the room's contract test. Here is everything of that which needs no terminal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from keystep.errors import BadInput
from keystep.run.canonical import dumps
from keystep.run.procedure import Work
from keystep.run.run import Context
from keystep.run.templates import evaluate, render
from keystep.solve.answers import behind
from keystep.solve.settings import made
from keystep.task import Task

SOLVERS: dict[str, str] = {  # name -> "module:class"
    "auto-cot": "keystep.solve.auto_cot:AutoCot",
    "decomposed-prompting": "keystep.solve.decomposed_prompting.solver:DecomposedPrompting",
    "plan-and-solve": "keystep.solve.plan_and_solve:PlanAndSolve",
    "daslam": "keystep.solve.daslam.solver:DaSLaM",
    "explore-execute": "keystep.solve.explore_execute.solver:ExploreExecute",
}
TEXTS = 2**20  # bytes of a prompt file, at most


class Solution(BaseModel):
    """What a solver found. `details` is JSON of its own: the chain of thought, the plan, the program, what was counted."""

    model_config = ConfigDict(extra="forbid")

    answer: str
    details: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """Derive a frozen, keyword-only dataclass; its fields, all with defaults and JSON values, are its settings (`--set NAME=VALUE`).

    One with rules for its settings checks them in `__post_init__`, after that of this class, and raises `BadInput`.

    Args:
        prompts: a folder with prompts of the user's own; a file that it lacks is taken from the solver's.

    Raises:
        BadInput: there is no such folder, or it has a text that is no prompt of this solver.
    """

    name: ClassVar[str]  # that of the method
    prompt_files: ClassVar[tuple[str, ...]] = ()  # what stands in src/keystep/solve/prompts/NAME/

    prompts: str | None = None

    def __post_init__(self) -> None:
        if self.prompts is None:
            return
        try:
            found = sorted(file.name for file in Path(self.prompts).iterdir() if file.suffix == ".txt")
        except (OSError, ValueError):
            raise BadInput("there is no such folder", field="prompts", value=self.prompts, mend="name a folder of text files") from None
        for file in found:
            if file not in self.prompt_files:
                mend = f"there are: {', '.join(self.prompt_files) or 'none'}"
                raise BadInput("is no prompt of this solver", field="prompts", value=file, mend=mend)

    @abstractmethod
    async def solve(self, task: Task, ctx: Context) -> Solution:
        """Work on the task: `goal` is the question, `inputs` whatever else the solver reads.

        Asks and executes in an order that is always the same for the same answers, so that a resumed run asks nothing again.
        """

    def right(self, answer: str, expected: str) -> bool:
        """Whether an answer is the expected one; the default compares words, without regard to case, white space and a final full stop."""
        return _plain(answer) == _plain(expected)

    def prompt(self, file: str, **names: Any) -> str:
        """The prompt file of this name, rendered (sandboxed Jinja); texts among `names` are inserted as they are, whatever they hold."""
        return render(self.prompt_text(file), names, f"prompt {file}")

    def prompt_text(self, file: str) -> str:
        """A prompt file as it is written: the user's own where there is one.

        Raises:
            BadInput: it cannot be read.
        """
        path = Path(self.prompts) / file if self.prompts else None
        if path is None or not path.exists():
            path = Path(__file__).parent / "prompts" / self.name / file
        try:
            if path.stat().st_size > TEXTS:
                raise BadInput("is too long for a prompt", field="prompts", value=str(path), mend="keep it below a megabyte")
            return path.read_text("utf-8").rstrip("\n")
        except (OSError, ValueError) as error:
            raise BadInput(f"cannot be read ({error})", field="prompts", value=str(path), mend="name a folder of text files") from None

    def identity(self) -> dict[str, Any]:
        """What decides its results, as JSON: its settings and the prompts that they lead to."""
        return {"solver": self.name, **asdict(self), "texts": {file: self.prompt_text(file) for file in self.prompt_files}}


class Solving(Work):
    """A solver on one task, as the work of a row."""

    def __init__(self, solver: Solver, task: Task) -> None:
        self.solver, self.task, self.name = solver, task, f"solve {solver.name}"

    async def carry_out(self, ctx: Context) -> Any:
        return (await self.solver.solve(self.task, ctx)).model_dump(mode="json")

    def verdict(self, result: Any, answers: Iterable[Any]) -> tuple[bool | None, int | None]:
        return judged(self.solver, self.task, result["answer"]), None

    def identity(self) -> Any:
        return {**self.solver.identity(), "task": self.task.model_dump(mode="json")}


def solver(name: str, settings: Mapping[str, Any] | None = None) -> Solver:
    """The solver of this name, with settings.

    Raises:
        BadInput: there is none, a setting is unknown or out of range.
    """
    if name not in SOLVERS:
        raise BadInput("is no solver", field="METHOD", value=name, mend=f"there are: {', '.join(sorted(SOLVERS))}")
    module, _, kind = SOLVERS[name].partition(":")
    chosen: type[Solver] = getattr(import_module(module), kind)
    return made(chosen, settings or {}, "solver")


def task_of(row: Mapping[str, Any]) -> Task:
    """The task of a row of a file: `question` (or `goal`), an `answer` where it is known, `id`, and whatever else the solver reads.

    The known answer goes into `state` and is never shown to the solver's models. One that is empty, as the cell of a table may be, is not
    known.

    Raises:
        BadInput: there is no question, or something is no Unicode text or not JSON.
    """
    rest = dict(row)
    goal = rest.pop("question", None) or rest.pop("goal", None)
    if not isinstance(goal, str) or not goal.strip():
        raise BadInput("is no question", field="question", value=goal, mend='write {"question": "…", "answer": "…"} on every line')
    answer, check = (
        None if isinstance(each, str) and not each.strip() else each for each in (rest.pop("answer", None), rest.pop("check", None))
    )
    for field, value in (("question", goal), ("answer", answer), ("check", check), ("inputs", rest)):
        try:
            dumps(value, field).encode()
        except UnicodeEncodeError:
            raise BadInput("is not Unicode (it has half a surrogate pair)", field=field, value=value, mend="replace it") from None
    if check is not None and not isinstance(check, str):
        raise BadInput("is no expression", field="check", value=check, mend='for instance "answer == inputs.total"')
    return Task(goal=goal, inputs=rest, state=None if answer is None else {"expected": answer}, check=check)


def judged(solver: Solver, task: Task, answer: str) -> bool | None:
    """Whether the answer is right: by the task's `check`, else by its expected answer, which may stand behind a worked solution as in GSM8K
    (`… #### 18`); None where nobody can tell."""
    expected = task.state.get("expected") if isinstance(task.state, dict) else None
    if task.check is not None:
        return bool(evaluate(task.check, {"inputs": task.inputs, "state": task.state, "answer": answer}, "check"))
    if expected is None:
        return None
    return solver.right(answer, behind(expected) if isinstance(expected, str) else dumps(expected))


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).removesuffix(".")
