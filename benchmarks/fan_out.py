"""How much sooner 100 handler calls of one line are done side by side than one after the other: `python benchmarks/fan_out.py [--quick]`.

A program of Decomposed Prompting asks a handler about every item of a list of 100, `(project_values) [f] …`, through the solver, a journal
in a file and HTTP; the server, a process of its own, answers every call after a fixed time. The same question is worked on with 1, 16 and
100 requests in flight; `ratio` is the time with 1 by that with 100, the median over the rounds, and `ideal` is 100. Lines come from a model
in the process, so that only the handler's calls wait. Writes results/benchmarks/fan-out.json and prints it as one line.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from keystep.lm.base import LM, Request, Sample
from keystep.lm.endpoint import Endpoint
from keystep.reproduce import machine
from keystep.run import Run
from keystep.run.vote import First
from keystep.solve.decomposed_prompting.decomposer import Decomposer
from keystep.solve.decomposed_prompting.handlers import PromptHandler, tool
from keystep.solve.decomposed_prompting.program import Program
from keystep.solve.decomposed_prompting.solver import DecomposedPrompting
from keystep.solve.solver import task_of

HERE = Path(__file__).parent
OUT = HERE.parent / "results/benchmarks/fan-out.json"
CALLS = 100
IN_FLIGHT = (1, 16, 100)
ROUNDS = {0.05: 7, 0.5: 3}  # seconds that an answer takes: rounds


class Lines(LM):
    """Emits the three lines of the program."""

    name = "lines"

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        lines = ("[items] all", "(project_values) [f] What is #1?", "[EOQ]")
        yield Sample(lines[str(request.prompt).count("\nQS: ")], request.first)


@dataclass(frozen=True, kw_only=True)
class FanOut(DecomposedPrompting):
    """100 questions at once, to a server."""

    url: str = ""
    in_flight: int = 1

    def load(self) -> Program:
        server = Endpoint("m", self.url, "none", concurrency=self.in_flight)
        frames = [self.prompt_text(file) for file in self.prompt_files]
        handlers = [
            Decomposer("main", frames[0], lm=Lines()), tool("items", lambda question: list(range(CALLS))),
            PromptHandler("f", frames[1], lm=server),
        ]  # fmt: skip
        return Program(handlers, "main", limits=self._limits(), lms=[server])


def measure(url: str, in_flight: int) -> float:
    """Seconds of one question."""
    with TemporaryDirectory() as folder:
        run = Run(Lines(), vote=First(), journal=Path(folder) / "runs.db")
        began = time.perf_counter()
        found = run.solve_sync(FanOut(url=url, in_flight=in_flight), task_of({"question": "all"}))
        seconds = time.perf_counter() - began
        run.close()
    if found.details["value"] != [42] * CALLS or found.details["calls"]["f"] != CALLS:
        raise SystemExit(f"not the answers of the server: {found.answer[:200]}")
    return seconds


def main(quick: bool) -> None:
    found: dict[str, Any] = {}
    for latency, often in ROUNDS.items():
        if quick and latency > 0.1:
            continue
        command = [sys.executable, str(HERE / "loops/slow_server.py"), str(latency)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
            try:
                measure(url, CALLS)  # everything is loaded
                rounds = [{n: measure(url, n) for n in IN_FLIGHT} for _ in range(1 if quick else often)]
            finally:
                server.kill()
        ratios = [each[1] / each[CALLS] for each in rounds]
        found[str(latency)] = {
            "rounds": len(rounds),
            "ratio": round(median(ratios), 1),
            "lowest_ratio": round(min(ratios), 1),
            "highest_ratio": round(max(ratios), 1),
            "seconds": {str(n): round(median(each[n] for each in rounds), 3) for n in IN_FLIGHT},
        }
    result = {"name": "fan-out", "machine": machine(), "calls": CALLS, "ideal": CALLS, "by_latency": found}
    if not quick:
        OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
