"""The algorithms run on a model, every call through `Context.ask`; and what was predicted beside what was measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from keystep.errors import BadInput
from keystep.measure.llm_algorithms.costs import Prices, latency
from keystep.measure.llm_algorithms.profile import PLACE
from keystep.measure.llm_algorithms.tasks import Algorithm, Problem
from keystep.run import Answer, Context, Run
from keystep.task import Task


@dataclass(frozen=True, slots=True)
class Measured:
    """One problem, carried through. `seconds` follow from the single calls' by the rule of `latency`, `ideal` with all at once, `wall` by
    the clock (nothing is left to measure where the calls came from a journal)."""

    errors: dict[str, float]
    calls: int
    tokens_in: int
    tokens_out: int
    seconds: float
    ideal: float
    wall: float


class Decomposed:
    """The method (`Run.solve`): a task's problems one after the other, each in parts of m, `parallel` calls at once (None: all)."""

    def __init__(self, algorithm: Algorithm, m: int, parallel: int | None = None) -> None:
        if parallel is not None and parallel < 1:
            raise BadInput("is at least 1", field="parallel", value=parallel)
        self.algorithm, self.m, self.parallel = algorithm, m, parallel

    def __repr__(self) -> str:  # what the journal knows the method by; how many at once changes no answer
        return f"Decomposed({self.algorithm.name}, m={self.m})"

    async def solve(self, task: Task, ctx: Context) -> list[dict[str, Any]]:
        problems = task.inputs["problems"]
        return [asdict(await self.one(problem, ctx.at(f"{PLACE}{number}"))) for number, problem in enumerate(problems)]

    async def one(self, problem: Problem, ctx: Context) -> Measured:
        algorithm, began = self.algorithm, time.perf_counter()
        prompts = [algorithm.prompt(problem, part) for part in algorithm.parts(problem, self.m)]
        width = self.parallel or len(prompts)
        answers: list[Answer] = []
        for at in range(0, len(prompts), width):
            group = prompts[at : at + width]
            answers += await asyncio.gather(*(ctx.ask(prompt, parse=algorithm.read) for prompt in group))
        given = [answer.value for answer in answers]
        result = algorithm.together(problem, given)
        last = list[Answer]()
        if algorithm.final:
            last = [await ctx.ask(algorithm.final_prompt(problem, result), parse=algorithm.read_final)]
            result = last[0].value
        seconds, after = [answer.seconds for answer in answers], sum(answer.seconds for answer in last)
        return Measured(
            errors=algorithm.metrics(problem, result, given), calls=len(answers) + len(last),
            tokens_in=sum(answer.tokens_in for answer in answers + last), tokens_out=sum(answer.tokens_out for answer in answers + last),
            seconds=latency(seconds, self.parallel) + after, ideal=latency(seconds) + after, wall=time.perf_counter() - began,
        )  # fmt: skip


async def measure(run: Run, algorithm: Algorithm, problems: Sequence[Problem], m: int, parallel: int | None = None) -> list[Measured]:
    """Solve the problems with parts of m, by the run's model, rule and journal."""
    task = Task(goal=algorithm.name, inputs={"problems": list(problems)})
    return [Measured(**row) for row in await run.solve(Decomposed(algorithm, m, parallel), task)]


def means(measured: Sequence[Measured], prices: Prices | None = None) -> dict[str, float]:
    """Means over the problems, under the names that predictions have."""
    prices = prices or Prices()
    rows = [
        row.errors
        | {"calls": row.calls, "tokens_in": row.tokens_in, "tokens_out": row.tokens_out, "seconds": row.seconds, "ideal": row.ideal}
        | {"money": prices.money(row.tokens_in, row.tokens_out)}
        for row in measured
    ]
    if not rows:
        raise BadInput("holds no problem", field="measured")
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def compare(predicted: Mapping[str, float], measured: Mapping[str, float]) -> list[dict[str, Any]]:
    """Every figure that both have, and predicted / measured (None where nothing was measured)."""
    return [
        {"figure": name, "predicted": value, "measured": measured[name], "ratio": value / measured[name] if measured[name] else None}
        for name, value in predicted.items()
        if name in measured
    ]
