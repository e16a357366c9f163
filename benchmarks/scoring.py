"""How many items a second the benchmarks score, offline: `python benchmarks/scoring.py`.

One function per benchmark gives (items, work); `work` is run often enough to take a second, and the fastest of five such rounds counts.
Writes results/benchmarks/scoring.json and prints it as one line; with --quick one round is measured and nothing written.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from keystep.measure.bench import benchmark, settings_of
from keystep.measure.long_horizon import score
from keystep.measure.procbench.bench import Settings
from keystep.reproduce import machine

OUT = Path(__file__).parent.parent / "results/benchmarks/scoring.json"
Work = tuple[int, Callable[[], object]]


def procbench() -> Work:
    """Whole answers of 20 tasks x 24 lengths, half of them wrong in the middle."""
    chosen, settings = benchmark("procbench"), Settings()
    problems = chosen.problems(settings, 0)
    answers = []
    for number, problem in enumerate(problems):
        states = list(problem["intermediate"])
        if number % 2:
            states[len(states) // 2] = "?"
        answers.append([{"intermediate": states, "final": problem["final"]}])
    return len(problems), lambda: chosen.score(settings, problems, answers)


def long_horizon_turns() -> Work:
    """Turns of 100 runs of 1,000 turns."""
    draw = np.random.default_rng(0)
    values = draw.integers(-99, 100, (100, 1000)).tolist()
    answers = (np.cumsum(values, axis=1) + (draw.random((100, 1000)) < 0.01)).tolist()
    return 100 * 1000, lambda: score(values, answers)


def taskbench() -> Work:
    """Plans of 2,000 template requests, two in three of them those of another request."""
    chosen = benchmark("taskbench")
    settings = settings_of(chosen, {"n": 2000})
    problems = chosen.problems(settings, 0)
    answers = [[problem if number % 3 == 0 else problems[(7 * number + 3) % 2000]] for number, problem in enumerate(problems)]
    return len(problems), lambda: chosen.score(settings, problems, answers)


BENCHMARKS = (procbench, long_horizon_turns, taskbench)


def main(quick: bool) -> None:
    rates = {}
    for each in BENCHMARKS:
        items, work = each()
        rounds = []
        for _ in range(1 if quick else 5):
            began, times = time.perf_counter(), 0
            while time.perf_counter() - began < 1:
                work()
                times += 1
            rounds.append(items * times / (time.perf_counter() - began))
        rates[each.__name__] = round(max(rounds))
    result = {"name": "scoring", "machine": machine(), "items_per_second": rates}
    if not quick:
        OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
