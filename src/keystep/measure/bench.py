"""The front of this room: what a benchmark is, and what runs any of them.

A benchmark is a module with the names of `Benchmark`, and one line in `BENCHMARKS`. In return it has `keystep bench NAME` (progress,
resume, voting, report, scoring of prediction files) and an Inspect AI task. Here is everything of that which needs no terminal.
"""

from __future__ import annotations

import json
import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from pydantic import BaseModel, ValidationError

from keystep.errors import BadInput, Undecided
from keystep.lm.base import LM, draw_key
from keystep.measure.chart import Chart
from keystep.run import Many, Procedure, Run
from keystep.run.flags import Flag
from keystep.run.vote import First, Rule

BENCHMARKS = {
    "long-horizon-execution": "keystep.measure.long_horizon.bench",
    "procbench": "keystep.measure.procbench.bench",
    "taskbench": "keystep.measure.taskbench.bench",
}

MOST_BYTES = 2**28  # of a file of predictions
Problem = dict[str, Any]


class Measured(Procedure):
    """A procedure that is asked to be measured. Derive from this one and write `read` in the place of `parse`.

    An answer that cannot be read is drawn again where several votes decide a step, as ever; where nobody votes it is an answer, None, and
    counts as wrong. So `update` and `done` have to make sense of None.
    """

    voted = False

    @abstractmethod
    def read(self, text: str, state: Any) -> Any:
        """The answer in the model's text; raises `Flag` or ValueError where there is none."""

    def parse(self, text: str, state: Any) -> Any:
        try:
            value = self.read(text, state)
            json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # what could not be journaled cannot be read either
            return value
        except (Flag, ValueError, RecursionError) as error:
            if self.voted:
                raise Flag(str(error)) from None
            return None


class OneAnswer(Measured):
    """A single call. State: how many answers there are."""

    def start(self) -> Any:
        return 0

    def update(self, state: Any, answer: Any) -> Any:
        return 1

    def done(self, state: Any) -> bool:
        return bool(state == 1)

    def total(self) -> int:
        return 1


class Benchmark(Protocol):
    """What the module of a benchmark holds."""

    Settings: type[BaseModel]  # every default in sight, unknown names forbidden; `--set NAME=VALUE`

    def problems(self, settings: Any, seed: int) -> list[Problem]:
        """JSON mappings, each with an "id" of its own; the same for the same settings and seed."""

    def procedure(self, settings: Any, problem: Problem) -> Measured:
        """How a model is asked for one of them. The answers of its steps, in order, are what is scored."""

    def predicted(self, settings: Any, problem: Problem, record: Mapping[str, Any]) -> list[Any]:
        """Those answers from a line of a file of predictions, whatever it holds beside "id"; [] where it holds none."""

    def score(self, settings: Any, problems: Sequence[Problem], answers: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """{"summary": {name: number or None}, "tables": {title: [{column: value}]}, …} as JSON, for any part of the problems, even one.

        `answers[i]` is as long as the procedure came, [] where there is no answer at all; every answer may be any JSON value.
        """

    def charts(self, scores: Mapping[str, Any]) -> list[Chart]:
        """The pictures of the report."""


def benchmark(name: str) -> Benchmark:
    """The benchmark of this name.

    Raises:
        BadInput: there is none.
    """
    if name not in BENCHMARKS:
        raise BadInput("is no benchmark", field="NAME", value=name, mend=f"there are: {', '.join(sorted(BENCHMARKS))}")
    return cast(Benchmark, import_module(BENCHMARKS[name]))


def settings_of(chosen: Benchmark, given: Mapping[str, Any]) -> BaseModel:
    """The benchmark's settings, checked.

    Raises:
        BadInput: one is unknown or out of range.
    """
    try:
        return chosen.Settings.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        known = ", ".join(chosen.Settings.model_fields)
        where = ".".join(map(str, first["loc"])) or "settings"
        raise BadInput(
            first["msg"].removeprefix("Value error, "), field=f"set {where}", value=first["input"], mend=f"its settings are {known}"
        ) from None


def drawn(problems: list[Problem], limit: int | None, seed: int) -> list[Problem]:
    """`limit` of the problems, drawn by the seed and left in their order; all of them when None."""
    if limit is None or limit >= len(problems):
        return problems
    if limit < 1:
        raise BadInput("is at least 1", field="--limit", value=limit, mend="for instance 20")
    kept = sorted(random.Random(f"limit {seed}").sample(range(len(problems)), limit))
    return [problems[number] for number in kept]


def many(chosen: Benchmark, settings: BaseModel, problems: list[Problem], voted: bool, concurrency: int = 64) -> Many:
    """All problems as rows of one run."""

    def build(problem: Mapping[str, Any]) -> Procedure:
        procedure = chosen.procedure(settings, dict(problem))
        procedure.voted = voted
        return procedure

    return Many(build, problems, concurrency=concurrency)


def journaled(run: Run, count: int) -> list[list[Any]]:
    """The answers of every row of a run, as far as each came."""
    return [_answers(run, f"row{number}") for number in range(count)]


def _answers(run: Run, path: str) -> list[Any]:
    scope, _, _ = run.journal.open_scope(run.id, path)
    return [row.answer for row in run.journal.rows(scope)]


async def ask_one(chosen: Benchmark, settings: BaseModel, problem: Problem, lm: LM, rule: Rule | None = None, seed: int = 0) -> list[Any]:
    """A single problem put to a model by itself, for other harnesses; its answers as far as they could be decided."""
    procedure = chosen.procedure(settings, problem)
    procedure.voted = rule is not None
    run = Run(lm, vote=rule or First(cap=1), seed=draw_key(seed, problem["id"]) % 2**63)  # as all have the same address
    try:
        with suppress(Undecided):
            await run.execute(procedure)
        return _answers(run, "0")
    finally:
        run.close()


def read_predictions(
    chosen: Benchmark, settings: BaseModel, problems: Sequence[Problem], file: Path
) -> tuple[list[list[Any]], dict[str, int]]:
    """The answers that a JSONL file of predictions holds for the problems, one object with an "id" a line, and what was odd about it.

    A problem without a line has no answer and is scored so. Of several lines for one problem the first counts. A line that is no JSON
    object with an id, or has one that no problem has, is counted and left out.

    Raises:
        BadInput: the file cannot be read at all, or no line of it belongs to any problem.
    """
    try:
        if file.stat().st_size > MOST_BYTES:
            raise BadInput(f"is larger than {MOST_BYTES >> 20} MiB", field="--predictions", value=str(file), mend="split it")
        text = file.read_bytes().decode("utf-8-sig", errors="replace")
    except (OSError, ValueError) as error:
        problem = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise BadInput(problem, field="--predictions", value=str(file), mend="name a .jsonl file") from None
    odd = {"unreadable_lines": 0, "unknown_ids": 0, "repeated_ids": 0, "missing": 0}
    known = {str(problem["id"]): problem for problem in problems}
    found: dict[str, list[Any]] = {}
    for line in text.split("\n"):
        if not line.strip():
            continue
        record = _record(line)
        if record is None:
            odd["unreadable_lines"] += 1
        elif (id := str(record["id"])) not in known:
            odd["unknown_ids"] += 1
        elif id in found:
            odd["repeated_ids"] += 1
        else:
            found[id] = chosen.predicted(settings, known[id], record)
    if not found:
        shown = ", ".join(list(known)[:3])
        mend = f'write one {{"id": …}} object a line, with the problems\' ids: {shown}, …'
        raise BadInput("holds no prediction for any of the problems", field="--predictions", value=str(file), mend=mend)
    odd["missing"] = len(known) - len(found)
    return [found.get(str(problem["id"]), []) for problem in problems], odd


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # also a number of more digits than Python reads
        return None
    return record if isinstance(record, dict) and isinstance(record.get("id"), str | int) else None
