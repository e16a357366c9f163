"""Durable steps a second of keystep, LangGraph and DBOS: `make bench`, or `python benchmarks/engine.py [--quick]`.

One step is three votes of a model that answers at once, in this process, on a state of about 120 bytes (benchmarks/loops/). All contestants
run in turn in every round, each in a process of its own on a new SQLite file, and only the loop is timed; a ratio is the median over the
rounds of keystep's rate through the other's in the same round. The steps, rounds and settings are fixed here.

What each has on disk before its next step begins:

- keystep: the step in SQLite's write-ahead log (survives the death of the process); forced to the disk every 50 ms or 256 steps.
- keystep, every step: forced to the disk at every step (`group=1`). Interleaved: 100 rows as one run, otherwise as the first.
- LangGraph sync: a checkpoint, forced to the disk at every step; sync-normal: the same under synchronous=NORMAL, that is with keystep's
  durability against the death of the process and less than keystep's against the loss of power. exit: nothing until the end.
- DBOS: the step, forced to the disk (SQLite's rollback journal); wal-normal: as sync-normal.

Writes results/benchmarks/engine.json and prints it as one line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from keystep.reproduce import machine

HERE = Path(__file__).parent
OUT = HERE.parent / "results/benchmarks/engine.json"
SPACE = HERE.parent / "artefacts"  # on the disk of the repository: /tmp may be memory
PEERS = HERE.parent / ".venv-bench/bin/python"
ROUNDS = 5
CONTESTANTS = {  # (program, mode): steps
    ("keystep", "grouped"): 10_000,
    ("langgraph", "sync"): 1_000,
    ("dbos", "default"): 300,
    ("langgraph", "exit"): 3_000,
    ("keystep", "interleaved"): 20_000,
    ("keystep", "every-step"): 1_000,
    ("langgraph", "sync-normal"): 1_000,
    ("dbos", "wal-normal"): 500,
}


def timed(program: str, mode: str, steps: int) -> dict[str, float]:
    """One loop in a process of its own: its steps a second by the clock and by the processor."""
    SPACE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SPACE) as folder:
        python = sys.executable if program == "keystep" else str(PEERS)
        done = subprocess.run(
            [python, str(HERE / f"loops/{program}_loop.py"), mode, str(steps), folder], capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    if done.returncode:
        sys.exit(f"{program} {mode} failed:\n{done.stderr[-2000:]}")
    took = json.loads(done.stdout.splitlines()[-1])
    return {"clock": steps / took["seconds"], "processor": steps / took["cpu_seconds"]}


def ratio(rounds: list[dict[str, dict[str, float]]], ours: str, theirs: str, by: str = "clock") -> float:
    return round(median(each[ours][by] / each[theirs][by] for each in rounds), 2)


def main(quick: bool) -> None:
    if not PEERS.exists():
        sys.exit("the other engines have an environment of their own, .venv-bench: `make bench` makes it")
    rounds: list[dict[str, dict[str, float]]] = []
    scale, often = (10, 2) if quick else (1, ROUNDS)
    for number in range(often):
        order = list(CONTESTANTS)
        order = order[number % len(order) :] + order[: number % len(order)]
        rounds.append({" ".join(name): timed(*name, max(100, CONTESTANTS[name] // scale)) for name in order})
        shown = ", ".join(f"{name} {rate['clock']:,.0f}/s" for name, rate in rounds[-1].items())
        print(f"round {number + 1} of {often}: {shown}", flush=True)
    rates: dict[str, Any] = {
        " ".join(name): {
            "steps": max(100, steps // scale),
            "steps_per_second": round(median(each[" ".join(name)]["clock"] for each in rounds)),
            "highest": round(max(each[" ".join(name)]["clock"] for each in rounds)),
            "lowest": round(min(each[" ".join(name)]["clock"] for each in rounds)),
            "steps_per_cpu_second": round(median(each[" ".join(name)]["processor"] for each in rounds)),
        }
        for name, steps in CONTESTANTS.items()
    }
    result = {
        "name": "engine",
        "machine": machine(),
        "versions": peers() | {"keystep": version("keystep")},
        "rounds": often,
        "votes_per_step": 3,
        "steps_per_second": rates["keystep grouped"]["steps_per_second"],
        "interleaved_steps_per_second": rates["keystep interleaved"]["steps_per_second"],
        "ratio_langgraph_sync": ratio(rounds, "keystep grouped", "langgraph sync"),
        "ratio_langgraph_exit": ratio(rounds, "keystep grouped", "langgraph exit"),
        "ratio_dbos": ratio(rounds, "keystep grouped", "dbos default"),
        "ratios_at_like_durability": {
            "every step forced to the disk, langgraph sync": ratio(rounds, "keystep every-step", "langgraph sync"),
            "every step forced to the disk, dbos default": ratio(rounds, "keystep every-step", "dbos default"),
            "every step in the log, langgraph sync-normal": ratio(rounds, "keystep grouped", "langgraph sync-normal"),
            "every step in the log, dbos wal-normal": ratio(rounds, "keystep grouped", "dbos wal-normal"),
        },
        "ratios_of_processor_time": {
            name: ratio(rounds, "keystep grouped", name, "processor") for name in ("langgraph sync", "langgraph exit", "dbos default")
        },
        "contestants": rates,
    }
    if not quick:
        OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def peers() -> dict[str, str]:
    names = ("langgraph", "langgraph-checkpoint-sqlite", "dbos")
    program = f"import json, importlib.metadata as m; print(json.dumps({{name: m.version(name) for name in {names!r}}}))"
    return dict(json.loads(subprocess.run([str(PEERS), "-c", program], capture_output=True, text=True, check=True).stdout))


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
