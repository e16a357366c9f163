"""The executor of Plans: every step by the cheapest skill that gets it done, independent steps side by side, all of it journaled.

Where things stand in the journal: a step's output in the plan's place, numbered as the steps are listed, with the step's id and the skill
that did it; what a skill asks, in `PLAN/STEP/SKILL`; a skill that failed, as a row named "failed" in `PLAN/STEP`, with its reason as the
answer. A run that is killed while it escalates goes on with the next skill; a step at which all skills failed starts over when it is
resumed, with what was decided in it kept.

Limits: a tool that runs in a thread cannot be interrupted, so its effects may come after the plan has stopped. All steps that are ready
start at once; what bounds them is the models' and the threads' own limits.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from keystep.errors import BadInput, BudgetSpent, Busy, ChangedWork, JournalError, KeystepError, StepFailed
from keystep.lm.redact import redact
from keystep.plan import INPUTS, Plan, Ref, Step
from keystep.run.ask import Answer
from keystep.run.canonical import dumps
from keystep.run.run import Context
from keystep.run.templates import check_syntax, evaluate
from keystep.skill import Skill, SkillLibrary

_STOPS_ALL = (BudgetSpent, Busy, ChangedWork, JournalError)  # another skill would not help


async def execute(ctx: Context, plan: Plan, library: SkillLibrary, inputs: Mapping[str, Any]) -> Any:
    """Carry out `plan` in the place `ctx` and give its output.

    A step's candidates are the skills that offer its ability, cheapest first. One has failed, and the next is tried, when the step's
    inputs do not fit it, its asks end undecided, it raises an exception, its output is not of its type, not done by its own word or not
    JSON, or the step's `post` is false.

    Raises:
        BadInput: a condition does not parse, no skill fits a step, or a Ref leads to nothing.
        StepFailed: a step's `pre` is false, or all its candidates failed; steps under way are cancelled, those journaled stay.
        BudgetSpent, Busy, ChangedWork, JournalError: as they are.
    """
    outputs = {INPUTS: json.loads(dumps(dict(inputs), INPUTS))}
    candidates = {step.id: library.fitting(step.skill) for step in plan.steps}
    _check_conditions(plan)
    steps, numbers = {step.id: step for step in plan.steps}, {step.id: number for number, step in enumerate(plan.steps)}
    for row in ctx.journaled():
        if row.name is None or numbers.get(row.name) != row.seq:
            mend = "put the plan back, or begin a new run"
            raise ChangedWork("is not the step that the journal has in its place", field=f"step {row.name}", value=row.seq, mend=mend)
        outputs[row.name] = row.answer
    sorter = plan.sorter()
    sorter.prepare()

    async def carry(step: Step) -> None:
        if step.id not in outputs:
            place, spans = ctx.at(step.id, step), ctx.run.asking.spans
            with nullcontext() if spans is None else spans.within(place.path, step.skill):
                answer, skill = await _carry_out(place, step, candidates[step.id], _inputs(step, outputs))
            ctx.put(numbers[step.id], answer, name=step.id, skill=skill)
            outputs[step.id] = answer.value
        sorter.done(step.id)
        start()

    def start() -> None:
        for id in sorter.get_ready():
            group.create_task(carry(steps[id]))

    try:
        async with asyncio.TaskGroup() as group:
            start()
    except BaseExceptionGroup as errors:
        first = errors.exceptions[0]  # the others came while it was being cleared away
        raise first from first.__cause__
    return outputs[plan.output or plan.steps[-1].id]


async def _carry_out(place: Context, step: Step, candidates: Sequence[Skill], inputs: str) -> tuple[Answer, str]:
    """The step's answer and the name of the skill that gave it; `inputs` are JSON."""
    started = time.perf_counter()
    if step.pre is not None and not evaluate(step.pre, {"inputs": json.loads(inputs)}, f"step {step.id}.pre"):
        raise StepFailed("its pre-condition does not hold", field=f"step {step.id}.pre", value=step.pre, mend="see what its inputs are")
    failed = [(row.skill or "", str(row.answer)) for row in place.journaled()]
    before = len(failed) // len(candidates) * len(candidates)  # of rounds in which every skill failed
    failed, cause = failed[before:], None
    for skill in candidates[len(failed) :]:
        try:
            value = await _attempt(skill, place.at(skill.name, step), step, inputs)
        except Exception as error:
            if (through := _stops_all(error)) is not None:
                raise through from through.__cause__
            reason = redact(str(error) if isinstance(error, KeystepError) else f"{type(error).__name__}: {error}")
            place.put(before + len(failed), Answer(value=reason, json=dumps(reason)), name="failed", skill=skill.name)
            failed.append((skill.name, reason))
            cause = error
        else:
            return Answer(value=value, json=dumps(value), seconds=time.perf_counter() - started), skill.name
    reasons = "".join(f"\n  {name}: {reason}" for name, reason in failed)
    raise StepFailed(f"no skill could do it:{reasons}", field=f"step {step.id}") from cause


async def _attempt(skill: Skill, place: Context, step: Step, inputs: str) -> Any:
    """The skill's output as JSON, or the exception that says why it does not count."""
    given = skill.check_inputs(json.loads(inputs))
    try:
        output = await skill.call(dict(given) if isinstance(given, BaseModel) else given, place)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise StepFailed("cancelled itself", field=f"skill {skill.name}") from None
    output = skill.check_output(output)
    if not skill.done(output):
        raise StepFailed("says that it is not done", field=f"skill {skill.name}", value=output)
    value = json.loads(dumps(to_jsonable_python(output), f"output of skill {skill.name}"))
    post = f"step {step.id}.post"
    if step.post is not None and not evaluate(step.post, {"inputs": json.loads(inputs), "output": value}, post):
        raise StepFailed(f"its post-condition {step.post} does not hold", field=post, value=value)
    return value


def _stops_all(error: Exception) -> Exception | None:
    """The exception in `error`, which may be a group of them, that the whole run has to stop for."""
    if isinstance(error, ExceptionGroup):
        return next(filter(None, map(_stops_all, error.exceptions)), None)
    return error if isinstance(error, _STOPS_ALL) else None


def _check_conditions(plan: Plan) -> None:
    for step in plan.steps:
        for name, text in (("pre", step.pre), ("post", step.post)):
            if text is not None:
                check_syntax(text, f"step {step.id}.{name}", expression=True)


def _inputs(step: Step, outputs: Mapping[str, Any]) -> str:
    """The step's inputs as JSON, every Ref replaced by what it leads to; as a text, because every candidate gets a copy of its own."""
    fields = {name: _resolved(value, outputs, f"step {step.id}.inputs.{name}") for name, value in step.inputs.items()}
    return dumps(fields, f"step {step.id}.inputs")


def _resolved(value: Any, outputs: Mapping[str, Any], field: str) -> Any:
    if isinstance(value, dict):
        return {name: _resolved(part, outputs, f"{field}.{name}") for name, part in value.items()}
    if isinstance(value, list):
        return [_resolved(part, outputs, f"{field}.{number}") for number, part in enumerate(value)]
    if not isinstance(value, Ref):
        return value
    found = outputs[value.step]
    for depth, part in enumerate(value.path):
        known = found.keys() if isinstance(found, dict) else range(-len(found), len(found)) if isinstance(found, list) else ()
        if part not in known:
            whose = "the plan's inputs have" if value.step == INPUTS else f"the output of step {value.step} has"
            mend = f"there is {', '.join(found) if isinstance(found, dict) else f'a list of {len(found)}' if known else 'no more below'}"
            path = ".".join(map(str, value.path[: depth + 1]))
            raise BadInput(f"{whose} nothing at {path}", field=field, value=list(value.path), mend=mend)
        found = found[part]
    return found
