"""Zero errors on 20 seeds, and every single-call way beside it: `python benchmarks/zero_errors.py`.

The task, the model, the rule and K are fixed here, before any run. The runs go side by side in one process, which changes no answer. A
sampled member is twenty runs; a greedy member is one run on the tower, and twenty on the ledger, whose dictionary changes with the seed.
Writes results/benchmarks/zero-errors.json and prints it as one line.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from keystep.lm import lm
from keystep.reproduce import machine
from keystep.run import AheadBy, Procedure, Run
from keystep.run.builtin import builtin
from keystep.run.compare import compare

SEEDS = range(20)
K = 3
OUT = Path(__file__).parent.parent / "results/benchmarks/zero-errors.json"


def tasks(name: str) -> list[Procedure]:
    if name == "hanoi":
        return [builtin("hanoi", {"disks": 12}) for _ in SEEDS]
    return [builtin("ledger", {"steps": 2000, "words": 100, "instance": seed}) for seed in SEEDS]


async def measure(name: str) -> dict[str, Any]:
    model, work = lm("embedded"), tasks(name)
    began = time.perf_counter()
    runs = [Run(model, vote=AheadBy(K), seed=seed) for seed in SEEDS]
    outcomes = await asyncio.gather(*(run.execute(procedure) for run, procedure in zip(runs, work, strict=True)))
    seconds = time.perf_counter() - began
    found = [await compare(run.asking, procedure) for run, procedure in zip(runs, work, strict=True)]
    alone: dict[str, list[int | None]] = {}
    for seed, ways in zip(SEEDS, found, strict=True):
        for way in ways:
            if not (way.greedy and name == "hanoi" and seed):
                alone.setdefault(way.way, []).append(way.first_error_step)
    return {
        "steps": outcomes[0].steps,
        "k": K,
        "runs": len(outcomes),
        "correct": sum(outcome.correct is True for outcome in outcomes),
        "first_error_steps": [outcome.first_error_step for outcome in outcomes],
        "votes_per_step": round(sum(outcome.votes_per_step for outcome in outcomes) / len(outcomes), 4),
        "flagged": sum(outcome.flagged for outcome in outcomes),
        "alone": {
            way: {"runs": len(errors), "wrong": sum(error is not None for error in errors), "first_error_steps": errors}
            for way, errors in sorted(alone.items())
        },
        "seconds": round(seconds, 1),
    }


def main() -> None:
    result = {"name": "zero-errors", "machine": machine()} | {name: asyncio.run(measure(name)) for name in ("hanoi", "ledger")}
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
