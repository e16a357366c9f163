"""The parts of the reproduction of MAKER, one function each, all through the engine: `Run`, `Many`, `compare`, `forecast`, `theory`.

Every part gives rows of one seed. `pooled` puts those of all seeds together: whole numbers are counts and add up, other numbers are
averaged, lists are put one behind the other.

Whole runs are real ones, each step from the state that the vote before carried there. Figures of single steps come from votes at every step
from its *true* state, side by side: a run is free of errors if and only if all of these are right, so nothing is lost by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystep.errors import Undecided
from keystep.lm.base import LM
from keystep.lm.embedded import Embedded, answer_probabilities, hanoi, ledger
from keystep.lm.embedded.model import load
from keystep.reproduce._maker_work import Chained, Repairing, Several
from keystep.run import AheadBy, Many, Procedure, Run, Sampling, theory
from keystep.run.builtin.hanoi import Hanoi
from keystep.run.builtin.ledger import Ledger
from keystep.run.canonical import dumps
from keystep.run.compare import compare
from keystep.run.forecast import forecast
from keystep.run.foreseen import Forecast
from keystep.run.vote import Rule

Row = dict[str, Any]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

SIDE_BY_SIDE = 256  # steps voted on at once
HEAT = 1.0  # temperature where a part does not say another


@dataclass(frozen=True)
class Setting:
    """All that is fixed before a run. Lengths are given with how many whole runs of them a seed makes."""

    target: float = 0.95  # probability that a whole run is right
    sample: int = 200  # steps of a forecast
    disks: dict[int, int] = field(default_factory=lambda: {4: 20, 6: 20, 8: 20, 10: 6, 12: 1})
    ledgers: dict[int, int] = field(default_factory=lambda: {8: 20, 32: 20, 128: 20, 512: 5, 2048: 1})
    words: int = 100
    ledger_heat: float = 0.7
    vote_disks: int = 8
    vote_heats: tuple[float, ...] = (1.0, 1.3, 1.6)
    vote_margins: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    parser_disks: int = 8
    parser_heat: float = 1.6
    parser_margin: int = 2
    parser_runs: int = 6
    call_steps: int = 500
    call_sizes: tuple[int, ...] = (1, 2, 5, 10)
    call_heats: tuple[float, ...] = (0.5, 0.7)
    apart_disks: int = 12
    apart_best: int = 2  # members that vote alone, those that are right most often
    apart_margin: int = 3
    weak_member: int = 4
    weak_disks: int = 9
    weak_margins: tuple[int, ...] = (1, 2, 4, 8)


@dataclass(slots=True)
class Votes:
    """The votes at every step of a procedure: whether each was right, and what they took. `collided`: the first two valid samples were both
    wrong; `alike`: and said the same."""

    right: Bools
    samples: int
    flagged: int
    collided: int
    alike: int


# (a), (b), (c): single calls, and whole runs with the k of the forecast.


def single_calls(seeds: Sequence[int], setting: Setting) -> list[Row]:
    """The exact chance of every member to do the whole task by itself, one sampled call a step, and whether it does it greedily. A tower is
    the same for all seeds."""
    rows = []
    for seed in seeds:
        for each in _lengths(seed, setting):
            if each.task == "hanoi" and seed != seeds[0]:
                continue
            p, greedy = exact(each.procedure, each.heat)
            for member, (chances, right) in enumerate(zip(p, greedy, strict=True)):
                rows.append(
                    {"task": each.task, "length": _total(each.procedure), "member": member, "p": float(chances.mean()), "tried": 1,
                     "sampled": float(np.exp(np.log(np.maximum(chances, 1e-300)).sum())), "greedy": int(right.all())}
                )  # fmt: skip
    return rows


def followed(lm: LM, seeds: Sequence[int], setting: Setting) -> list[Row]:
    """The longest of each task by every single-call way, followed to its first error; the seeds side by side, so that they batch."""

    async def all_seeds(name: str) -> list[Row]:
        work = []
        for seed in seeds:
            longest = [each for each in _lengths(seed, setting) if each.task == name][-1]
            work.append(compare(_run(lm, seed, longest.heat).asking, longest.procedure))
        ways = [way for found in await asyncio.gather(*work) for way in found]
        return [
            {"task": name, "length": _total(longest.procedure), "way": way.way, "tried": 1, "right": int(way.correct is True),
             "first_errors": [way.first_error_step]} for way in ways
        ]  # fmt: skip

    return [row for name in ("hanoi", "ledger") for row in asyncio.run(all_seeds(name))]


def whole_runs(lm: LM, seeds: Sequence[int], setting: Setting, tick: Callable[[], object]) -> list[Row]:
    """A forecast for every length and seed, and whole runs with the k that it names; those of all seeds side by side."""

    async def one(seed: int, each: Length) -> Row:
        steps = _total(each.procedure)
        seen = await foreseen(lm, each.typical, seed, each.heat, setting, steps=steps)
        run = _run(lm, seed, each.heat, AheadBy(seen.k, seen.cap))
        came = await Many(lambda row: each.procedure, [{"run": number} for number in range(each.runs)], concurrency=each.runs).execute(run)
        run.close()
        tick()
        p, v = seen.p.value, seen.v.value
        return {
            "task": each.task, "length": steps, "k": [seen.k], "p": p, "v": v, "promised": seen.success.value,
            "votes_by_theory": theory.mean_votes(p, seen.k) / v, "real_margin": theory.real_margin(p, steps, setting.target),
            "runs": each.runs, "error_free": came.rows.finished - came.rows.wrong, "steps": came.steps, "samples": came.samples,
            "flagged": came.flagged,
        }  # fmt: skip

    async def at_once(every: Iterable[Length]) -> list[Row]:
        return await asyncio.gather(*(one(seed, each) for seed, each in zip(seeds, every, strict=True)))

    return [row for every in zip(*(_lengths(seed, setting) for seed in seeds), strict=True) for row in asyncio.run(at_once(every))]


def votes_per_step(lm: LM, seed: int, setting: Setting) -> list[Row]:
    """Votes at every step of one tower for every k, at temperatures that make the worker err more and more."""
    rows = []
    procedure = Hanoi(setting.vote_disks)
    for heat in setting.vote_heats:
        seen = asyncio.run(foreseen(lm, procedure, seed, heat, setting))
        p, v = seen.p.value, seen.v.value
        for k in setting.vote_margins:
            found = votes(lm, procedure, seed, heat, AheadBy(k, seen.cap))
            rows.append(
                {"heat": heat, "margin": k, "p": p, "v": v, "exact": theory.mean_votes(p, k) / v,
                 "paper": theory.approximate_mean_votes(p, k) / v, "if_all_differ": theory.mean_votes_if_all_differ(p, k) / v,
                 "steps": len(found.right), "samples": found.samples,
                 "wrong_steps": int((~found.right).sum())}
            )  # fmt: skip
    return rows


# (d): throwing malformed answers away, or mending them.


def parsers(lm: LM, seed: int, setting: Setting) -> list[Row]:
    """The same votes, on the same draws, with the parser that flags and with the one that repairs."""
    rows = []
    kinds = {"flags": Hanoi(setting.parser_disks), "repairs": Repairing(setting.parser_disks)}
    for name, procedure in kinds.items():
        for again in range(setting.parser_runs):
            found = votes(lm, procedure, seed * setting.parser_runs + again, setting.parser_heat, AheadBy(setting.parser_margin))
            wrong = int((~found.right).sum())
            rows.append(
                {"parser": name, "runs": 1, "error_free": int(wrong == 0), "wrong_steps": wrong, "steps": len(found.right),
                 "samples": found.samples, "flagged": found.flagged, "collided": found.collided, "alike": found.alike}
            )  # fmt: skip
    return rows


# (e): several steps in one call.


def steps_per_call(lm: LM, seed: int, setting: Setting) -> list[Row]:
    """One ledger with m steps in every call; k and the cost by the theory from a forecast with one step a call."""
    rows = []
    procedure = Ledger(setting.call_steps, setting.words, seed)
    for heat in setting.call_heats:
        seen = asyncio.run(foreseen(lm, procedure, seed, heat, setting))
        p, v = seen.p.value, seen.v.value
        for m in setting.call_sizes:
            k = theory.least_margin(p, seen.steps, setting.target, m)
            cost = theory.expected_cost(p, seen.steps, setting.target, per_call=m, valid=v**m) / seen.steps
            all_differ = theory.mean_votes_if_all_differ(p**m, k) / v**m
            found = votes(Chained(lm, procedure), Several(procedure, m), seed, heat, AheadBy(k, 1000))
            rows.append(
                {"heat": heat, "size": m, "k": [k], "p": p, "v": v, "by_formula": cost, "if_all_differ": all_differ, "runs": 1,
                 "error_free": int(found.right.all()),
                 "steps": seen.steps, "calls": found.samples, "flagged": found.flagged}
            )  # fmt: skip
    return rows


# One model or several, and the error that no vote cures.


def decorrelation(seed: int, setting: Setting) -> list[Row]:
    """Votes at every step of one tower, by the ensemble and by each of its best members alone."""
    rows = []
    procedure = Hanoi(setting.apart_disks)
    p, _ = exact(procedure, HEAT)
    best = sorted(np.argsort(-p.mean(1))[: setting.apart_best].tolist())
    for name, own in (("embedded", p.mean(0)), *((f"embedded:{member}", p[member]) for member in best)):
        found = votes(Embedded(name), procedure, seed, HEAT, AheadBy(setting.apart_margin))
        wrong = int((~found.right).sum())
        rows.append(
            {"worker": name, "p": float(own.mean()), "least_p": float(own.min()), "below_half": [int((own < 0.5).sum())], "runs": 1,
             "error_free": int(wrong == 0), "wrong_steps": wrong, "steps": len(found.right), "samples": found.samples}
        )  # fmt: skip
    return rows


def systematic(seed: int, setting: Setting) -> list[Row]:
    """One member alone: what the forecast of all its steps names, the exact p there, and the votes at every k; then the ensemble."""
    rows = []
    procedure = Hanoi(setting.weak_disks)
    p, _ = exact(procedure, HEAT)
    alone = f"embedded:{setting.weak_member}"
    for name, own in ((alone, p[setting.weak_member]), ("embedded", p.mean(0))):
        lm = Embedded(name)
        seen = asyncio.run(foreseen(lm, procedure, seed, HEAT, setting, sample=len(own)))
        named = [int(step.step) for step in seen.hard_steps if step.systematic]
        hard = [int(step.step) for step in seen.hard_steps if not step.systematic]
        for k in setting.weak_margins if name == alone else [seen.k]:
            right = votes(lm, procedure, seed, HEAT, AheadBy(k, max(seen.cap, 1000))).right
            rows.append(
                {"worker": name, "margin": k, "runs": 1, "error_free": int(right.all()), "wrong": np.flatnonzero(~right).tolist(),
                 "hard": hard, "named": named, "named_below_half": int((own[named] < 0.5).sum()), "named_right": int(right[named].sum()),
                 "below_half": [int((own < 0.5).sum())], "promising": int(seen.promising), "least_k": [seen.least_k]}
            )  # fmt: skip
    return rows


def pooled(rows: Iterable[Row], *by: str) -> list[Row]:
    """Rows that agree in the columns `by` as one: counts added, other numbers averaged, lists joined."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    return [dict(zip(by, key, strict=True)) | {name: _together([row[name] for row in group]) for name in group[0] if name not in by}
            for key, group in groups.items()]  # fmt: skip


def _together(values: list[Any]) -> Any:
    if isinstance(values[0], list):
        return [one for value in values for one in value]
    return sum(values) if isinstance(values[0], int) else float(f"{np.mean(values):.6g}")


def samples_per_step(row: Row) -> float:
    """Votes per step."""
    return float(row["samples"] / row["steps"])


def written_per_step(row: Row) -> float:
    """Steps written for every step of the task."""
    return float(row["size"] * row["calls"] / row["steps"])


def grouped(rows: Sequence[Row], column: str) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[column], []).append(row)
    return groups


# The engine's work.


@dataclass(frozen=True, slots=True)
class Length:
    """A task at one length. `typical` is what a forecast for it samples: steps of a ledger are alike at any length, those of towers not."""

    task: str
    procedure: Procedure
    typical: Procedure
    runs: int
    heat: float


def _lengths(seed: int, setting: Setting) -> list[Length]:
    """The shortest of each task first."""
    towers = [Hanoi(disks) for disks in setting.disks]
    sums = [Ledger(steps, setting.words, seed) for steps in setting.ledgers]
    return [
        *(Length("hanoi", tower, tower, runs, HEAT) for tower, runs in zip(towers, setting.disks.values(), strict=True)),
        *(Length("ledger", each, sums[-1], runs, setting.ledger_heat) for each, runs in zip(sums, setting.ledgers.values(), strict=True)),
    ]


def _total(procedure: Procedure) -> int:
    total = procedure.total()
    assert total is not None
    return total


def _run(lm: LM, seed: int, heat: float, rule: Rule | None = None) -> Run:
    return Run(lm, vote=rule, seed=seed, sampling=Sampling(temperature=heat))


async def foreseen(
    lm: LM, procedure: Procedure, seed: int, heat: float, setting: Setting, *, sample: int | None = None, steps: int | None = None
) -> Forecast:  # fmt: skip
    """The engine's forecast, from a seed of its own: its samples are not those of the runs."""
    run = _run(lm, seed + 1000, heat)
    try:
        return await forecast(run.asking, procedure, target=setting.target, sample=sample or setting.sample, steps=steps)
    finally:
        run.close()


def votes(lm: LM, procedure: Procedure, seed: int, heat: float, rule: Rule) -> Votes:
    """A vote at every step from its true state."""
    run = _run(lm, seed, heat, rule)
    assert procedure.truth is not None
    waiting = list(procedure.truth())

    async def one(state: Any, truth: Any) -> tuple[bool, int, int, bool, bool]:
        def parse(text: str) -> Any:
            return procedure.parse(text, state)

        try:
            trace = (await run.ask(procedure.prompt(state), parse=parse, max_tokens=procedure.sampling["max_tokens"])).trace("")
        except Undecided as error:
            trace = error.ledger
        first = [vote.key for vote in trace.votes if vote.flag is None][:2]
        collided = len(first) == 2 and dumps(truth) not in first
        return trace.decided and trace.answer == truth, trace.samples, trace.flagged, collided, collided and first[0] == first[1]

    async def every() -> list[tuple[bool, int, int, bool, bool]]:
        found = []
        for begin in range(0, len(waiting), SIDE_BY_SIDE):
            found += await asyncio.gather(*(one(*step) for step in waiting[begin : begin + SIDE_BY_SIDE]))
        return found

    right, samples, flagged, collided, alike = zip(*asyncio.run(every()), strict=True)
    run.close()
    return Votes(np.array(right), sum(samples), sum(flagged), sum(collided), sum(alike))


# Exact probabilities.


def exact(procedure: Procedure, heat: float) -> tuple[Floats, Bools]:
    """The probability of every step's right answer, and whether it is the greedy one, of each member: both [members, steps]."""
    encode, answer_tokens = (hanoi.encode, _tower_tokens) if isinstance(procedure, Hanoi) else (ledger.encode, _sum_tokens)
    assert procedure.truth is not None
    prompts, answers, shared = [], [], 0
    for state, answer in procedure.truth():
        prompt = procedure.prompt(state)
        assert isinstance(prompt, str)
        known = encode(prompt)
        assert known is not None
        shared = known[1]
        prompts.append(known[0])
        answers.append(answer_tokens(answer))
    members = load(procedure.name).members
    both = [answer_probabilities(member, np.array(prompts), np.array(answers), heat, shared) for member in members]
    return np.stack([p for p, _ in both]), np.stack([greedy for _, greedy in both])


def _tower_tokens(answer: Any) -> list[int]:
    move, pegs = answer
    state = [token for peg, disks in enumerate(pegs) for token in (hanoi.OPEN + peg, *(hanoi.DISK + disk - 1 for disk in disks))]
    return [hanoi.DISK + move[0] - 1, hanoi.PEG + move[1], hanoi.PEG + move[2], *state, hanoi.END]


def _sum_tokens(answer: Any) -> list[int]:
    value, total = answer
    digits = [ledger.DIGIT + total // 10**place % 10 for place in range(ledger.DIGITS)]
    return [ledger.VALUE + ledger.MAX_VALUE + value, *digits, ledger.END]
