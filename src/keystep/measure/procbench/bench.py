"""ProcBench as a benchmark of `keystep bench`: the whole procedure in one answer, or one step a call.

One step a call (`mode=stepwise`) is a `Procedure` like any other: the worker sees the rule, what is given and the state it reached, and
answers with the next state. The loop counts the steps; voting, flags, journal and resume are the engine's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from keystep.errors import BadInput
from keystep.measure.bench import Measured, OneAnswer
from keystep.measure.chart import Chart, Line
from keystep.measure.procbench.kind import sentences_of
from keystep.measure.procbench.problems import KINDS, Problem, generate, load
from keystep.measure.procbench.scoring import MISSING, Score, extract, geometric, matches, state_in
from keystep.measure.procbench.scoring import score as score_states
from keystep.run.flags import Flag

DIRECT = """\
{task}

End your answer with one JSON object, and nothing behind it:
{{"intermediate": [every state but the last one, in order], "final": the last state}}
Neither the initial nor the final state belongs into the list of intermediate states.
"""
STEP = """\
{rule}

{given}The state now: {state}
Do one step: {now}.

Answer with the state after this step as JSON, on one line, and nothing else:
state = [the state]
"""
_STATE = re.compile(r"^[ \t*]*state[ \t]*=(.+)$", re.IGNORECASE | re.MULTILINE)
BUCKETS = {"short": (2, 6), "medium": (7, 16), "long": (17, 25)}  # steps, as the paper groups them


class Settings(BaseModel):
    """`data`: problems from a file or folder instead of drawn ones. `tasks`: their numbers; None: all that can be made. `each`: problems
    for every task and length. `sentences`: a text file, which tasks 14, 18 and 20 need. `drop_repeated_final`: drop a last intermediate
    state that repeats the final one. `drop_given_pair`: the same for the given pair that an answer to task 23 begins with."""

    model_config = ConfigDict(extra="forbid")

    mode: Literal["direct", "stepwise"] = "direct"
    data: str | None = None
    tasks: list[int] | None = None
    shortest: int = Field(default=2, ge=1)
    longest: int = Field(default=25, ge=1, le=1000)
    each: int = Field(default=1, ge=1, le=1000)
    sentences: str | None = None
    drop_repeated_final: bool = False
    drop_given_pair: bool = False


def problems(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """As `Problem.as_json`; of the given lengths and tasks.

    Raises:
        BadInput: there are none, a task is unknown or needs sentences.
    """
    for task in settings.tasks or ():
        if task not in KINDS:
            raise BadInput("is no task of ProcBench", field="set tasks", value=task, mend="they are 1 to 23")
    lengths = range(settings.shortest, settings.longest + 1)
    if settings.data is not None:
        wanted = [p for p in load(Path(settings.data)) if p.steps in lengths and p.task in (settings.tasks or KINDS)]
    else:
        corpus = None if settings.sentences is None else sentences_of(settings.sentences)
        tasks = settings.tasks or [task for task, kind in KINDS.items() if corpus or not kind.sentences]
        wanted = list(generate(tasks, lengths, settings.each, seed, corpus))
    if not wanted:
        raise BadInput("no problem is left", field="set shortest, longest, tasks", value=[settings.shortest, settings.longest])
    return [problem.as_json() for problem in wanted]


def procedure(settings: Settings, problem: Mapping[str, Any]) -> Measured:
    return (Direct if settings.mode == "direct" else Stepwise)(Problem(**problem))


class Direct(OneAnswer):
    """The whole procedure in one answer: {"intermediate", "final"}."""

    name = "procbench-direct"
    sampling = MappingProxyType({"max_tokens": 4096})

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def prompt(self, state: Any) -> str:
        problem = self.problem
        told = problem.prompt or f"{problem.kind.rule}\n\nWrite down the state after every step.\n\n[Question]\n{problem.question}"
        return DIRECT.format(task=told.strip())

    def read(self, text: str, state: Any) -> Any:
        return extract(text)

    def identity(self) -> Any:
        return {"procbench": "direct", "prompt": self.prompt(0), "voted": self.voted}


class Stepwise(Measured):
    """One step a call. State: the states reached; answer: the next one. A step without a readable answer is the last one."""

    name = "procbench-stepwise"
    sampling = MappingProxyType({"max_tokens": 1024})

    def __init__(self, problem: Problem) -> None:
        self.problem, self.config = problem, problem.config

    def start(self) -> Any:
        return []

    def prompt(self, state: Any) -> str:
        kind, given = self.problem.kind, self.problem.kind.given(self.config)
        states = [self.problem.init, *state]
        shown, now = json.dumps(kind.shown(self.config, states)), kind.now(self.config, len(state))
        return STEP.format(rule=kind.rule, given=f"{given}\n" if given else "", state=shown, now=now)

    def read(self, text: str, state: Any) -> Any:
        written = _STATE.findall(text)
        if not written:
            raise Flag("no state")
        whole = isinstance(self.problem.init, int)
        return int(written[-1]) if whole else state_in(written[-1])

    def update(self, state: Any, answer: Any) -> Any:
        states = [self.problem.init, *state]
        last = len(states) == self.problem.steps
        return [*state, None if answer is None else self.problem.kind.take(self.config, states, answer, last)]

    def done(self, state: Any) -> bool:
        return bool(state) and state[-1] is None

    def total(self) -> int:
        return self.problem.steps

    def identity(self) -> Any:
        return {"procbench": "stepwise", "prompt": self.prompt([]), "voted": self.voted}


def predicted(settings: Settings, problem: Mapping[str, Any], record: Mapping[str, Any]) -> list[Any]:
    """A line has either {"intermediate": […], "final": …} or {"text": …}, what a worker wrote. Whatever the mode, it is a whole answer."""
    if isinstance(record.get("text"), str):
        try:
            record = extract(record["text"])
        except Flag:
            return []
    if not isinstance(record.get("intermediate"), list) or "final" not in record:
        return []
    answer = {"intermediate": record["intermediate"], "final": record["final"]}
    if settings.mode == "direct":
        return [answer]
    return [*answer["intermediate"], answer["final"]]


def score(settings: Settings, problems: Sequence[Mapping[str, Any]], answers: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Scores of all answers, and by task, by group of lengths and by length; what the law of independent errors says beside them."""
    rows = [(Problem(**problem), *_scored(settings, Problem(**problem), given)) for problem, given in zip(problems, answers, strict=True)]
    right = sum(scored.pml for _, scored, _ in rows)
    wrong = sum(scored.pml < problem.steps for problem, scored, _ in rows)
    p = right / (right + wrong) if right + wrong else 0.0
    by_task = [{"task": f"{task} {KINDS[task].name}", **_means([row for row in rows if row[0].task == task])} for task in KINDS]
    by_group = [{"group": name, "steps": f"{low}-{high}", **_means(_of(rows, low, high))} for name, (low, high) in BUCKETS.items()]
    by_length = []
    for steps in sorted({problem.steps for problem, _, _ in rows}):
        law = geometric(p, steps)
        by_length.append({"steps": steps, **_means(_of(rows, steps, steps)), "law SM": law[0], "law PA": law[2]})
    firsts = [scored.pml + 1 for problem, scored, _ in rows if scored.pml < problem.steps]
    failures = [
        {
            "state": place, "first wrong here": firsts.count(place),
            "reached": sum(problem.steps >= place and scored.pml >= place - 1 for problem, scored, _ in rows),
        }
        for place in range(1, max((problem.steps for problem, _, _ in rows), default=0) + 1)
    ]  # fmt: skip
    means = _means(rows)
    return {
        "summary": {**means, "step accuracy": p},
        "tables": {
            "By task": [row for row in by_task if row["problems"]], "By group of lengths": [row for row in by_group if row["problems"]],
            "By length": by_length, "First wrong state": failures,
        },
    }  # fmt: skip


def _scored(settings: Settings, problem: Problem, answers: Sequence[Any]) -> tuple[Score, bool]:
    """The score of what a worker answered, and whether nothing of it could be read."""
    if settings.mode == "direct":
        answer = answers[0] if answers else None
        whole = isinstance(answer, Mapping) and isinstance(answer.get("intermediate"), list)
        states = [*answer["intermediate"], answer.get("final", MISSING)] if whole else []  # type: ignore[index, union-attr]
    else:
        states = [problem.init]
        for number, answer in enumerate(answers):
            states.append(problem.kind.take({}, states, answer, last=number + 1 == problem.steps))
        states = states[1:]
        if answers and len(states) < problem.steps:
            states += [MISSING]
    if settings.drop_given_pair and problem.task == 23 and len(states) > 1 and matches(problem.init, states[0]):
        states = states[1:]
    if settings.drop_repeated_final and len(states) > problem.steps and states[-1] == states[-2]:  # the truth may repeat it too
        states = states[:-1]
    found = score_states([*problem.intermediate, problem.final], states)
    return found, not states or states[0] is None


def _of(rows: Sequence[Any], low: int, high: int) -> list[Any]:
    return [row for row in rows if low <= row[0].steps <= high]


def _means(rows: Sequence[tuple[Problem, Score, bool]]) -> dict[str, Any]:
    """Plain means over problems."""
    count = len(rows)

    def mean(values: Any) -> float | None:
        return sum(values) / count if count else None

    return {
        "problems": count,
        "PA": mean(scored.pa for _, scored, _ in rows),
        "SM": mean(scored.sm for _, scored, _ in rows),
        "FM": mean(scored.fm for _, scored, _ in rows),
        "PML": mean(scored.pml for _, scored, _ in rows),
        "first state wrong": mean(scored.pml == 0 for _, scored, _ in rows),
        "unreadable": mean(unread for _, _, unread in rows),
    }


def charts(scores: Mapping[str, Any]) -> list[Chart]:
    by_length, by_task, failures = (scores["tables"][name] for name in ("By length", "By task", "First wrong state"))
    steps = [row["steps"] for row in by_length]
    p = scores["summary"]["step accuracy"]
    lines = [Line(name, steps, [row[name] for row in by_length], style="o-") for name in ("SM", "PA", "FM")]
    lines.append(Line(f"SM if errors were independent, p = {p:.3f}", steps, [row["law SM"] for row in by_length], style="--"))
    places = range(len(by_task))
    hazard = [row for row in failures if row["reached"]]
    first = Line(
        "first wrong here, of those right so far", [row["state"] for row in hazard],
        [row["first wrong here"] / row["reached"] for row in hazard], style="o-",
    )  # fmt: skip
    return [
        Chart("Scores by length", "steps", "mean", lines),
        Chart(
            "Scores by task", "", "mean", [Line(name, places, [row[name] for row in by_task], style="bars") for name in ("PA", "SM")],
            names=[row["task"] for row in by_task],
        ),
        Chart("Where it first goes wrong", "state", "share", [first]),
    ]  # fmt: skip
