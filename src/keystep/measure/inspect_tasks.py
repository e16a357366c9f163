"""The benchmarks as tasks of Inspect AI (the extra `inspect`): `inspect eval keystep/procbench --model openai/gpt-4o -T mode=stepwise`.

A sample is a problem; its solver is the benchmark's own procedure, carried out by `Run` on Inspect's model, so that stepwise modes and
votes are the same as under `keystep bench`. A sample's score holds the numbers of the benchmark's summary for that one problem; Inspect
averages them. Numbers that only make sense over many problems (a horizon, intervals) are those of `keystep bench`. `-T` takes the settings
of the benchmark, and `limit`, `seed` and `majority`; temperature and the like are Inspect's own options.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator
from typing import Any

from keystep.errors import MissingExtra
from keystep.lm.base import LM, Message, Request, as_messages
from keystep.lm.base import Sample as Drawn
from keystep.measure.bench import Benchmark, ask_one, benchmark, drawn, settings_of
from keystep.run.vote import Majority

try:
    from inspect_ai import Task, task
    from inspect_ai.dataset import MemoryDataset, Sample
    from inspect_ai.model import (
        ChatMessage,
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageUser,
        GenerateConfig,
        Model,
        ModelOutput,
        get_model,
    )
    from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, mean, metric, scorer, stderr
    from inspect_ai.solver import Generate, Solver, TaskState, solver
except ImportError:
    raise MissingExtra("an Inspect AI task", "inspect") from None

_ROLES: dict[str, Any] = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


def _message(message: Message) -> ChatMessage:
    made: ChatMessage = _ROLES[message.role](content=message.content)
    return made


class Inspected(LM):
    """Inspect's model as one of ours. Temperature and top-p are left to Inspect."""

    def __init__(self, model: Model) -> None:
        self.model, self.name = model, str(model)

    async def sample(self, request: Request) -> AsyncGenerator[Drawn]:
        messages = [_message(each) for each in as_messages(request.prompt)]
        config = GenerateConfig(max_tokens=request.max_tokens, stop_seqs=list(request.stop) or None)
        for index in range(request.first, request.first + request.n):
            output = await self.model.generate(messages, config=config)
            used = output.usage
            yield Drawn(
                output.completion, index, used.input_tokens if used else 0, used.output_tokens if used else 0,
                finish="length" if output.stop_reason in ("max_tokens", "model_length") else "stop", model=self.name,
            )  # fmt: skip


@solver
def procedure(name: str, settings: dict[str, Any], seed: int, majority: int | None) -> Solver:
    """Carry out the benchmark's procedure for a sample's problem."""
    chosen = benchmark(name)
    checked = settings_of(chosen, settings)

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        rule = None if majority is None else Majority(majority)
        answers = await ask_one(chosen, checked, state.metadata["problem"], Inspected(get_model()), rule, seed=seed)
        state.store.set("answers", answers)
        state.output = ModelOutput.from_content(str(get_model()), json.dumps(answers))
        return state

    return solve


def _over_known(scores: list[SampleScore], of: Any) -> float:
    """A metric over the samples that have this number at all (links, say, where a plan has some); the others hold NaN."""
    known = [score for score in scores if not math.isnan(score.score.as_float())]
    return float(of(known)) if known else math.nan


@metric(name="mean")
def mean_of_known() -> Metric:
    def over(scores: list[SampleScore]) -> float:  # Inspect goes by the annotation
        return _over_known(scores, mean())

    return over


@metric(name="stderr")
def stderr_of_known() -> Metric:
    def over(scores: list[SampleScore]) -> float:  # Inspect goes by the annotation
        return _over_known(scores, stderr())

    return over


@scorer(metrics={"*": [mean_of_known(), stderr_of_known()]})
def summary(name: str, settings: dict[str, Any]) -> Scorer:
    """The numbers of the benchmark's summary for one problem."""
    chosen = benchmark(name)
    checked = settings_of(chosen, settings)

    async def score(state: TaskState, target: Target) -> Score:
        answers = state.store.get("answers", [])
        found = chosen.score(checked, [state.metadata["problem"]], [answers])["summary"]
        numbers: Any = {key: math.nan if value is None else float(value) for key, value in found.items() if key != "problems"}
        return Score(value=numbers, answer=json.dumps(answers))

    return score


def _task(name: str, limit: int | None, seed: int, majority: int | None, settings: dict[str, Any]) -> Task:
    chosen: Benchmark = benchmark(name)
    checked = settings_of(chosen, settings)
    samples = []
    for problem in drawn(chosen.problems(checked, seed), limit, seed):
        work = chosen.procedure(checked, problem)
        wording = work.prompt(work.start())
        first = as_messages(wording[0] if isinstance(wording, list) else wording)
        samples.append(Sample(input=[_message(each) for each in first], id=problem["id"], metadata={"problem": problem}))
    work_of, score_of = procedure(name, settings, seed, majority), summary(name, settings)
    return Task(dataset=MemoryDataset(samples, name=name), solver=work_of, scorer=score_of)


@task
def procbench(limit: int | None = None, seed: int = 0, majority: int | None = None, **settings: Any) -> Task:
    return _task("procbench", limit, seed, majority, settings)


@task
def long_horizon_execution(limit: int | None = None, seed: int = 0, majority: int | None = None, **settings: Any) -> Task:
    return _task("long-horizon-execution", limit, seed, majority, settings)


@task
def taskbench(limit: int | None = None, seed: int = 0, majority: int | None = None, **settings: Any) -> Task:
    return _task("taskbench", limit, seed, majority, settings)
