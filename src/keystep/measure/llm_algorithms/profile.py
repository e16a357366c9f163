"""Profiles: what one call errs and costs at each size, from pilot calls, or from the journal of a run that was made anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from keystep.errors import BadInput
from keystep.measure.llm_algorithms.costs import CallCost, Speed, whole
from keystep.measure.llm_algorithms.curves import Curve, affine, rising_affine
from keystep.measure.llm_algorithms.tasks import Algorithm, Problem
from keystep.run import Answer, Context, Journal, Run
from keystep.task import Task

LARGER = "take larger sizes, where none of the parts can hold what is looked for"
PLACE = "problem-"  # a problem's place in a run of `measure`


@dataclass(frozen=True, slots=True)
class Call:
    """One call: the size of its input, what it took, and what was wrong with its answer."""

    size: float
    tokens_in: int
    tokens_out: int
    seconds: float
    errors: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Profile:
    """Calls of the parts, and of the last call where the algorithm has one."""

    calls: tuple[Call, ...]
    finals: tuple[Call, ...] = ()

    def cost(self) -> CallCost:
        """Tokens as a line over the size; it takes two sizes to tell what is fixed."""
        self._some()
        rows = [(call.size,) for call in self.calls]
        system, per_item = affine(rows, [call.tokens_in for call in self.calls])
        out, out_per_item = affine(rows, [call.tokens_out for call in self.calls])
        return CallCost(system, per_item, out, out_per_item)

    def speed(self) -> Speed:
        """Seconds as a line over the tokens, none of its coefficients below 0."""
        self._some()
        rows = [(call.tokens_in, call.tokens_out) for call in self.calls]
        return Speed(*rising_affine(rows, [call.seconds for call in self.calls]))

    def _some(self) -> None:
        if not self.calls:
            raise BadInput("holds no call", field="profile", mend=LARGER)

    def values(self, name: str) -> dict[float, list[float]]:
        """The errors of this name by size."""
        found: dict[float, list[float]] = {}
        for call in self.calls:
            if name in call.errors:
                found.setdefault(call.size, []).append(call.errors[name])
        return found

    def curve(self, name: str, of: str = "mean", *, rising: bool = False) -> Curve:
        """The mean, mean absolute value ("size"), or standard deviation ("sd") of an error over the size; `rising` makes it so.

        Raises:
            BadInput: no call has an error of this name.
        """
        values = self.values(name)
        if not values:
            raise BadInput("no call has this error", field="profile", value=name, mend=f"profile this algorithm; {LARGER}")
        points = {m: _statistic(of, some) for m, some in values.items()}
        return Curve.rising(points, {m: float(len(some)) for m, some in values.items()}) if rising else Curve.through(points)

    def as_json(self) -> dict[str, Any]:
        return {"calls": [asdict(call) for call in self.calls], "finals": [asdict(call) for call in self.finals]}

    @staticmethod
    def of(value: Mapping[str, Any]) -> Profile:
        """From its JSON."""
        return Profile(tuple(Call(**call) for call in value["calls"]), tuple(Call(**call) for call in value["finals"]))


def _statistic(of: str, values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    if of == "mean":
        return mean
    if of == "size":
        return sum(map(abs, values)) / len(values)
    return float((sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)) ** 0.5)


class Pilot:
    """The method of a pilot run (`Run.solve`): calls on drawn parts of each size, one after the other, so that their seconds are their own.

    Args:
        trials: problems a size, or for each size; a problem gives one part, or one that holds the answer and one that does not.

    Raises:
        BadInput: a size is below 1 or above n, or there are no trials.
    """

    def __init__(self, algorithm: Algorithm, n: int, sizes: Sequence[int], trials: int | Mapping[int, int] = 20, seed: int = 0) -> None:
        for m in sizes:
            if not 1 <= m <= n:
                raise BadInput("is from 1 to n", field="sizes", value=m)
        self.algorithm, self.n, self.sizes, self.seed = algorithm, n, list(sizes), seed
        self.trials = {m: whole("trials", trials if isinstance(trials, int) else trials[m]) for m in sizes}

    def __repr__(self) -> str:  # what the journal knows the method by
        return f"Pilot({self.algorithm.name}, n={self.n}, sizes={self.sizes}, trials={list(self.trials.values())}, seed={self.seed})"

    async def solve(self, task: Task, ctx: Context) -> dict[str, Any]:
        algorithm = self.algorithm
        calls: list[Call] = []
        finals: list[Call] = []
        for m in self.sizes:
            for trial in range(self.trials[m]):
                random = Random(f"pilot {self.seed} {algorithm.name} {m} {trial}")
                problem = algorithm.problem(self.n, random)
                for part in algorithm.samples(problem, m, random):
                    answer = await ctx.ask(algorithm.prompt(problem, part), parse=algorithm.read)
                    calls.append(_call(part["size"], answer, algorithm.errors(problem, part, answer.value)))
                if algorithm.final and m == self.sizes[0]:
                    found = algorithm.together(problem, problem["needles"])
                    answer = await ctx.ask(algorithm.final_prompt(problem, found), parse=algorithm.read_final)
                    finals.append(_call(len(found), answer, algorithm.metrics(problem, answer.value, [])))
        return Profile(tuple(calls), tuple(finals)).as_json()


def _call(size: float, answer: Answer, errors: dict[str, float]) -> Call:
    return Call(size, answer.tokens_in, answer.tokens_out, answer.seconds, errors)


async def pilot(
    run: Run, algorithm: Algorithm, n: int, sizes: Sequence[int], trials: int | Mapping[int, int] = 20, seed: int = 0
) -> Profile:
    """The profile of the run's model for parts of these sizes of problems of size n; see `Pilot`."""
    return Profile.of(await run.solve(Pilot(algorithm, n, sizes, trials, seed), Task(goal=f"profile {algorithm.name}")))


def calls_of(journal: Journal, run: str) -> list[Call]:
    """What the calls of any recorded run took, its size being the tokens read: one for each journaled step that asked a model.

    `Profile(tuple(calls_of(…))).speed()` is then the speed of that run's model. What the calls erred only their maker can tell.
    """
    return [Call(row.tokens_in, row.tokens_in, row.tokens_out, row.seconds) for _, row in journal.trace(run) if row.samples]


def journaled_profile(journal: Journal, run: str, algorithm: Algorithm, problems: Sequence[Problem], m: int) -> Profile:
    """The profile in the journal of a run of `measure` over these problems with parts of size m: every answer judged by its part.

    Raises:
        BadInput: the run holds no call of these problems.
    """
    calls, finals = list[Call](), list[Call]()
    for path, row in journal.trace(run):
        number = path.rpartition(PLACE)[2]
        if not row.samples or PLACE not in path or not number.isdigit() or int(number) >= len(problems):
            continue
        problem = problems[int(number)]
        parts = algorithm.parts(problem, m)
        took = (row.tokens_in, row.tokens_out, row.seconds)
        if row.seq < len(parts):
            part = parts[row.seq]
            calls.append(Call(part["size"], *took, algorithm.errors(problem, part, row.answer)))
        else:
            finals.append(Call(row.tokens_in, *took, algorithm.metrics(problem, row.answer, [])))
    if not calls:
        raise BadInput("holds no call of these problems", field="run", value=run, mend="name a run of `measure` with the same problems")
    return Profile(tuple(calls), tuple(finals))
