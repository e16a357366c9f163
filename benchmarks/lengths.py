"""How long a procedure stays free of errors: `python benchmarks/lengths.py [--quick]`.

Procedures on the embedded models (those whose ensembles are installed), each in four ways: one member alone, greedy and sampled; the
majority of 3; first to lead by 3.

The lengths, the numbers of runs and the rules are fixed here, before any run. Every run goes its whole length, so the share of runs whose
first error comes later than step s is measured for every s at once; a way of one member is measured for every member.

Predicted is the same from the exact probability of every right answer (teacher forcing) at the temperature the procedure samples at: the
product over the steps, as if a malformed or wrong answer were always a vote for one rival, which is a lower bound where answers are
flagged or wrong ones differ. Writes results/benchmarks/lengths.json and .svg.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystep.errors import Undecided
from keystep.lm import lm
from keystep.lm.base import LM
from keystep.lm.embedded.model import answer_probabilities, load
from keystep.measure.chart import Chart, Line, save
from keystep.reproduce import machine
from keystep.run import AheadBy, Majority, Procedure, Run
from keystep.run.builtin import builtin
from keystep.run.compare import compare
from keystep.run.forecast import wilson

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "training"))
import card  # noqa: E402
from scan import vote  # noqa: E402

OUT = HERE.parent / "results/benchmarks/lengths"
MODEL, RUNS, QUICK = "embedded", 12, 2
RULES = {"majority of 3": Majority(3), "ahead by 3": AheadBy(3)}
ENSEMBLES = {"hanoi": "hanoi", "ledger": "ledger", "multiply": "arithmetic", "sort": "pairs"}
WAYS = ("greedy", "sampled", *RULES)

Floats = NDArray[np.float64]


def procedures(name: str, run: int) -> Procedure:
    """Run number `run` of about a thousand steps: the tower is always the same, all others are other tasks."""
    if name == "hanoi":
        return builtin("hanoi", {"disks": 10})
    if name == "ledger":
        return builtin("ledger", {"steps": 1000, "words": 100, "instance": 1000 + run})
    if name == "multiply":
        draw = np.random.default_rng([7, run])
        a, b = (int("".join(map(str, [draw.integers(1, 10), *draw.integers(0, 10, 31)]))) for _ in range(2))
        return builtin("multiply", {"a": a, "b": b})
    return builtin("sort", {"size": 150, "instance": 1000 + run})


def steps_of(name: str, run: int) -> card.Steps:
    """The tokens of its prompts and right answers."""
    if name == "hanoi":
        return card.hanoi_steps(card.hanoi.path(10), 10)
    if name == "ledger":
        return card.ledger_run(1000 + run, 1000)
    return card.run_steps(run, procedures(name, run))


def predicted(name: str, runs: int) -> dict[str, Floats]:
    """The chance that no error was made up to each step, the mean over the runs and, of single calls, over the members: [steps]."""
    ensemble = load(ENSEMBLES[name])
    found: dict[str, list[Floats]] = {way: [] for way in WAYS}
    for run in range(1 if name == "hanoi" else runs):
        steps = steps_of(name, run)
        heat = procedures(name, run).sampling.get("temperature", 1.0)
        both = [answer_probabilities(each, steps.prompts, steps.answers, heat, steps.shared) for each in ensemble.members]
        p, right = np.stack([each for each, _ in both]), np.stack([each for _, each in both])
        found["greedy"] += list(right.cumprod(1).astype(float))
        found["sampled"] += list(p.cumprod(1))
        first, second, third = p[:3]
        of_three = first * second + (first * (1 - second) + (1 - first) * second) * third
        found["majority of 3"].append(of_three.cumprod())
        found["ahead by 3"].append(vote(p, 3)[0].cumprod())
    size = max(len(each) for each in found["sampled"])
    # A shorter run that has ended stays as it is.
    return {way: np.mean([np.pad(each, (0, size - len(each)), mode="edge") for each in parts], axis=0) for way, parts in found.items()}


async def measured(model: LM, name: str, runs: int) -> dict[str, list[int | None]]:
    """The first wrong step of every run, None where there is none."""
    works = [procedures(name, run) for run in range(runs)]
    found: dict[str, list[int | None]] = {way: [] for way in WAYS}
    for number, ways in enumerate(await asyncio.gather(*(compare(Run(model, seed=s).asking, work) for s, work in enumerate(works)))):
        for way in ways:
            if not way.greedy or number == 0 or name != "hanoi":
                found["greedy" if way.greedy else "sampled"].append(way.first_error_step)
    for rule, each in RULES.items():
        found[rule] = await asyncio.gather(*(first_error(Run(model, vote=each, seed=s), work) for s, work in enumerate(works)))
    return found


async def first_error(run: Run, work: Procedure) -> int | None:
    try:
        return (await run.execute(work)).first_error_step
    except Undecided as error:
        return int(error.step.rsplit("/", 1)[-1])


def survival(errors: list[int | None], steps: int) -> Floats:
    """The share of runs without an error up to each step."""
    wrong = np.bincount([error for error in errors if error is not None], minlength=steps)[:steps]
    return 1 - wrong.cumsum() / len(errors)


def at(lengths: list[int], share: Floats) -> list[float]:
    return [round(float(share[length - 1]), 6) for length in lengths]


async def task(model: LM, name: str, runs: int) -> tuple[dict[str, Any], Chart]:
    began = time.perf_counter()
    errors, expected = await measured(model, name, runs), predicted(name, runs)
    steps = len(expected["greedy"])
    lengths = sorted({*(length for length in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if length < steps), steps})
    came = {way: survival(errors[way], steps) for way in WAYS}
    drawn = (("measured", came, "-"), ("predicted", expected, "--"))
    lines = [
        Line(f"{way}, {what}", range(1, steps + 1), of[way].tolist(), style=style, like=number)
        for what, of, style in drawn
        for number, way in enumerate(WAYS)
    ]
    ways = {
        way: {
            "runs": len(errors[way]),
            "without_error": sum(error is None for error in errors[way]),
            "interval": list(wilson(sum(error is None for error in errors[way]), len(errors[way]))),
            "first_error_steps": errors[way],
            "measured": at(lengths, came[way]),
            "predicted": at(lengths, expected[way]),
        }
        for way in WAYS
    }
    found = {"steps": steps, "lengths": lengths, "ways": ways, "seconds": round(time.perf_counter() - began, 1)}
    return found, Chart(name, "steps", "runs without an error", lines, log="x")


async def all_tasks(runs: int) -> tuple[dict[str, Any], list[Chart]]:
    model = lm(MODEL)
    try:
        found = {name: await task(model, name, runs) for name in ENSEMBLES}
    finally:
        await model.close()
    return {name: each for name, (each, _) in found.items()}, [chart for _, chart in found.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} runs of each; writes nothing")
    quick = parser.parse_args().quick
    tasks, charts = asyncio.run(all_tasks(QUICK if quick else RUNS))
    result = {"name": "lengths", "machine": machine(), "model": MODEL, "tasks": tasks}
    if not quick:
        OUT.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        save(charts, OUT.with_suffix(".svg"))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
