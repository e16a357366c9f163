"""Procedure: a long job as a loop. The state is rendered into a prompt, the voted answer makes the next state, until it is done.

Only the state goes from one step to the next: no history, no simulator, nothing handed back up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from keystep.lm.base import Prompt
from keystep.plan import Plan
from keystep.run.ask import Asking, Sampling, plain
from keystep.run.flags import RedFlag
from keystep.skill import SkillLibrary

if TYPE_CHECKING:
    from keystep.run.run import Context


class Work(ABC):
    """What can be one row of many inputs: a procedure, or anything else that carries itself out in a place of a run."""

    name: str = "work"

    @abstractmethod
    async def carry_out(self, ctx: Context) -> Any:
        """Do it, with all asking and executing in `ctx`, in an order that is always the same; gives the result, as JSON."""

    @abstractmethod
    def identity(self) -> Any:
        """What decides its results, as JSON: its text, settings, version."""

    def total(self) -> int | None:
        """How many steps it takes, where that is known beforehand."""
        return None

    def verdict(self, result: Any, answers: Iterable[Any]) -> tuple[bool | None, int | None]:
        """Whether it came out right, and the number of the first wrong one of its place's steps; None where nobody can tell."""
        return None, None


class Procedure(Work):
    """Derive from this, or write a YAML file (`keystep init`).

    States and answers are JSON values. `update` must be a pure function: after a crash it is applied again to the journaled answers, and
    speculation applies it to answers that may lose.
    """

    name: str = "procedure"
    max_steps: int | None = None
    flags: tuple[RedFlag, ...] = ()  # checks of its own, beside those of the run
    sampling: Mapping[str, Any] = {}  # fields of `Sampling` that it wants; what the run's own says goes before
    # check(answers) -> the number of the first wrong step, or None when all are right. None: nobody can tell.
    check: Callable[[Iterable[Any]], int | None] | None = None

    # What a forecast may use, where a procedure has it. truth() -> every step's (state, right answer), in order.
    truth: Callable[[], Iterable[tuple[Any, Any]]] | None = None
    # right(state, answer) -> whether the answer to that state is right, also where no right answer can be written down.
    right: Callable[[Any, Any], bool] | None = None
    # Several steps in one call: the prompt for the m steps from a state, and the m answers in a text (or Flag). The executor itself
    # asks one step a call; a forecast measures whether more would be cheaper.
    prompt_many: Callable[[Any, int], Prompt | list[Prompt]] | None = None
    parse_many: Callable[[str, Any, int], list[Any]] | None = None

    @abstractmethod
    def start(self) -> Any:
        """The state before step 0."""

    @abstractmethod
    def prompt(self, state: Any) -> Prompt | list[Prompt]:
        """The prompt of the next step, or several wordings of it for the votes to rotate over."""

    def parse(self, text: str, state: Any) -> Any:
        """The answer in the model's text; raises `Flag` (or ValueError) where it is malformed. It must not be repaired.

        A pure function: of several samples with the same text only the first is parsed.
        """
        return plain(text)

    @abstractmethod
    def update(self, state: Any, answer: Any) -> Any:
        """The state after the step; a new value, not the old one changed in place."""

    @abstractmethod
    def done(self, state: Any) -> bool:
        """Whether the procedure has reached its end."""

    def apart(self) -> tuple[Plan, SkillLibrary] | None:
        """The procedure as a plan of procedures that may run side by side, and the skills for it; None where it is one chain of steps.

        `Run.execute` carries out the plan in its place. All steps of its procedures, in the order in which the plans list them, are the
        steps that `check` gets.
        """
        return None

    def key(self, answer: Any) -> Any:
        """What of the answer the vote goes by."""
        return answer

    def total(self) -> int | None:
        """How many steps it takes, where that is known beforehand: it ends there, right or wrong."""
        return None

    async def carry_out(self, ctx: Context) -> Any:
        return await ctx.follow(self)

    def verdict(self, result: Any, answers: Iterable[Any]) -> tuple[bool | None, int | None]:
        if self.check is None:
            return None, None
        wrong = self.check(answers)
        return wrong is None, wrong


def adapted(asking: Asking, procedure: Procedure) -> Asking:
    """`asking` with the procedure's flags, and with its sampling wherever the run's own is at its default."""
    own, default = asdict(asking.sampling), asdict(Sampling())
    wanted = {name: value for name, value in procedure.sampling.items() if own[name] == default[name]}
    return replace(asking, flags=(*asking.flags, *procedure.flags), sampling=replace(asking.sampling, **wanted))
