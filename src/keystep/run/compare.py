"""The baseline: the same procedure followed by single calls, by every member of the model on its own, greedy and sampled.

One call a step, the answer taken as it comes. A way ends at its first malformed answer and, where the procedure can tell, soon after its
first wrong one. All ways go side by side, so that models that batch can. They draw from the same seed as the run they are compared with,
and share one budget of its size.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from keystep.errors import BadInput, BudgetSpent, ModelError, Refused, Stopped
from keystep.lm.base import LM, Request, Sample
from keystep.run.ask import Asking, ask
from keystep.run.budget import Meter
from keystep.run.procedure import Procedure, adapted
from keystep.run.vote import First


@dataclass(slots=True)
class Way:
    """How far one single-call way came. `correct` is None where nobody can tell; `problem` says why a way could not be followed."""

    way: str
    greedy: bool
    correct: bool | None = None
    first_error_step: int | None = None
    steps: int = 0
    problem: str = ""


class _Member(LM):
    """Member `number` of a model, alone."""

    def __init__(self, lm: LM, number: int) -> None:
        self.lm, self.number, self.name = lm, number, lm.name if lm.members == 1 else f"{lm.name}, member {number}"

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        # Sample i comes from member i mod `members`.
        for turn in range(request.first, request.first + request.n):
            async with aclosing(self.lm.sample(replace(request, n=1, first=turn * self.lm.members + self.number))) as drawn:
                async for sample in drawn:
                    self.name = sample.model or self.name
                    yield replace(sample, index=turn)


async def compare(asking: Asking, procedure: Procedure, progress: Callable[[list[Way]], None] | None = None) -> list[Way]:
    """Follow `procedure` in every single-call way with the model of `asking`; the best way comes first.

    `progress` is called with the ways whenever one has moved. A model that cannot be reached, or a spent budget, ends a way and not
    the comparison.
    """
    asking = adapted(asking, procedure)
    heats = [0.0] if asking.sampling.temperature == 0 else [0.0, asking.sampling.temperature]
    meter = Meter()
    ways: list[Way] = []
    work = []
    for number in range(asking.lm.members):
        member = _Member(asking.lm, number)
        for heat in heats:
            sampling = replace(asking.sampling, temperature=heat, first_temperature=None)
            way = Way(member.name, heat == 0)
            ways.append(way)
            single = replace(asking, lm=member, rule=First(cap=1), sampling=sampling)
            work.append(_follow(way, single, procedure, meter, lambda: progress and progress(ways)))
    await asyncio.gather(*work)
    return sorted(ways, key=_rank)


def _rank(way: Way) -> tuple[int, int, bool]:
    """Right, then unknown, then wrong, then not to be followed; of the wrong the furthest first; greedy before sampled."""
    kind = 3 if way.problem else {True: 0, None: 1, False: 2}[way.correct]
    return kind, -(way.steps if way.first_error_step is None else way.first_error_step), not way.greedy


async def _follow(way: Way, asking: Asking, procedure: Procedure, meter: Meter, moved: Callable[[], object]) -> None:
    answers: list[Any] = []
    look = 16  # how many answers there are at the next look whether all are right; looks get rarer, so that they cost little in all

    def first_wrong() -> int | None:
        found = None if procedure.check is None else procedure.check(answers)
        return found if found is not None and found < len(answers) else None  # at the number of answers: right as far as it goes

    failed = False  # at the step after the last answer
    try:
        state = procedure.start()
        total = procedure.total()
        while way.steps != total and not procedure.done(state):
            if way.steps == procedure.max_steps:
                raise Stopped("did not end within its steps")
            # An address of its own: a recording tells these calls from those of the run.
            answer = await _call(asking, procedure, state, f"alone/{way.steps}", meter)
            state = procedure.update(state, answer)
            answers.append(answer)
            way.steps += 1
            if way.steps >= look:
                moved()
                if first_wrong() is not None:
                    break
                look += max(16, look // 4)
    except (BudgetSpent, ModelError) as error:
        way.problem = str(error)
    except (Stopped, BadInput):  # a malformed answer, a refused prompt, a state that leads nowhere
        failed = True
    way.way = f"{asking.lm.name}, {'greedy' if way.greedy else 'sampled'}"
    way.first_error_step = first_wrong()
    if way.first_error_step is None and failed:
        way.first_error_step = len(answers)
    if way.first_error_step is not None:
        way.correct, way.problem = False, ""
    elif not way.problem and procedure.check is not None:
        way.first_error_step = procedure.check(answers)
        way.correct = way.first_error_step is None
    moved()


async def _call(asking: Asking, procedure: Procedure, state: Any, where: str, meter: Meter) -> Any:
    """The answer of one call."""
    wording = procedure.prompt(state)
    prompts = wording if isinstance(wording, list) else [wording]
    try:
        return (await ask(asking, prompts, where, meter, parse=lambda text: procedure.parse(text, state))).value
    except Refused:
        raise
    except BadInput as error:  # the call itself is wrong, which says nothing about the way
        raise ModelError(str(error)) from None
