"""The process that test_many.py kills: many rows as one run, every sample noted in a file. Its settings come as JSON in argv[1]."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from worker import Logged, Worker

from keystep.run import AheadBy, Journal, Many, Run
from keystep.run.builtin.ledger import Ledger


@dataclass
class Deadly(Ledger):
    """Kills its process when it is to take in the answer of step `poison`."""

    poison: int | None = None

    def update(self, state, answer):
        if state[0] == self.poison:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().update(state, answer)


def execute(settings: dict, folder: Path):
    run = Run(
        Logged(Worker(settings.get("model", [0.85, 0.08]), pause=True), folder / "asked.log"), vote=AheadBy(2),
        journal=Journal(folder / "run.db", group=settings.get("group", 5)), id="r", seed=settings.get("seed", 0),
    )  # fmt: skip
    many = Many(
        lambda row: Deadly(words=5, **row), settings["rows"], results=folder / "results.jsonl", concurrency=settings["concurrency"],
    )  # fmt: skip
    try:
        return many.execute_sync(run)
    finally:
        run.close()


if __name__ == "__main__":
    execute(json.loads(sys.argv[1]), Path(sys.argv[2]))
