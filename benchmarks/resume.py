"""Resume of a run with a million journaled steps, and memory over a million steps: `python benchmarks/resume.py [--quick]`.

Resume: a journal is filled with steps, and a new process goes on with its run; `seconds_to_first_step` is from the making of `Run` to the
first ask of the model, the median over the rounds, beside the same for a run of 1,000 steps (a ratio within one round). The state stands
where the last sync of a killed process may leave it, 200 steps behind. The operating system's cache is warm.

Memory: one process carries out the steps (benchmarks/loops/) and reads its own resident set every 10,000 of them; `memory_ratio` is the
largest from 10,000 steps on through that at 10,000. Writes results/benchmarks/resume.json and prints it as one line.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from keystep.reproduce import machine
from keystep.run import AheadBy, Journal, Run
from keystep.run.budget import Meter

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "loops"))
from keystep_loop import Count, Instant  # noqa: E402

OUT = HERE.parent / "results/benchmarks/resume.json"
SPACE = HERE.parent / "artefacts"  # on the disk of the repository: /tmp may be memory
STEPS, FEW, BEHIND, ROUNDS = 1_000_000, 1_000, 200, 5
AT_ONCE = 5_000  # steps written in one transaction


async def filled(path: Path, count: int) -> None:
    """A journal whose run `bench` has `count` steps, and its state where the last sync left it."""
    lm, work, journal = Instant(), Count(count + BEHIND), Journal(path)
    identity = {
        **Run(lm, vote=AheadBy(3)).asking.identity(),
        "work": {"0": {"name": work.name, "procedure": work.identity(), "sampling": {}}},
    }
    journal.begin("bench", work.name, None, identity)
    journal.acquire("bench", lambda: Meter(calls=3 * count, seconds_before=1.0))
    scope, _, _ = journal.open_scope("bench", "0")
    for seq in range(count):
        row = (None, None, str(seq + 1), 3, 0, None, 0, 3, 2e-5, 0.0)
        stands = {**work.start(), "at": seq + 1} if seq < count - BEHIND else None
        journal.put(scope, seq, row, (), stands, later=True)
        if seq % AT_ONCE == 0:
            journal.write()
    journal.end("stopped")
    journal.close()


def first_step(path: Path, count: int) -> dict[str, Any]:
    return next(child("first_step", path, count + BEHIND, time.time()))


def child(name: str, *arguments: object) -> Iterator[dict[str, Any]]:
    """What a process of benchmarks/loops/ prints, line by line."""
    command = [sys.executable, str(HERE / f"loops/{name}.py"), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        sys.exit(f"{name} failed")


def main(quick: bool) -> None:
    many, often = (STEPS // 20, 2) if quick else (STEPS, ROUNDS)
    SPACE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SPACE) as folder:
        paths = {count: Path(folder) / f"{count}.db" for count in (FEW, many)}
        for count, path in paths.items():
            asyncio.run(filled(path, count))
        rounds = [
            {count: next(child("first_step", path, count + BEHIND, time.time())) for count, path in paths.items()} for _ in range(often)
        ]
        memory = list(child("memory", Path(folder) / "memory.db", many))
    seconds = {count: median(each[count]["seconds"] for each in rounds) for count in paths}
    base = memory[0]["mib"]
    result = {
        "name": "resume",
        "machine": machine(),
        "rounds": often,
        "journaled_steps": many,
        "seconds_to_first_step": round(seconds[many], 3),
        "cpu_seconds_to_first_step": round(median(each[many]["cpu"] for each in rounds), 3),
        "seconds_with_start_of_the_process": round(median(each[many]["whole"] for each in rounds), 3),
        "seconds_to_first_step_after_1000": round(seconds[FEW], 3),
        "ratio_to_1000": round(median(each[many]["seconds"] / each[FEW]["seconds"] for each in rounds), 1),
        "memory_ratio": round(max(each["mib"] for each in memory) / base, 3),
        "memory_least_ratio": round(min(each["mib"] for each in memory) / base, 3),
        "memory_mib": {str(each["steps"]): each["mib"] for each in memory if each["steps"] in (10_000, 100_000, many // 2, many)},
    }
    if not quick:
        OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
