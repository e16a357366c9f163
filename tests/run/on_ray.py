"""What test_cluster.py has the workers of a Ray cluster do: every sample noted in a file, and one of the processes killed once."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from worker import Logged, Worker

from keystep.run import AheadBy, Many, Run
from keystep.run.builtin.ledger import Ledger


@dataclass
class Deadly(Ledger):
    """Kills its process when it is to take in the answer of step `poison`, unless the file `once` says that this was done."""

    poison: int | None = None
    once: str | None = None

    def update(self, state, answer):
        if state[0] == self.poison:
            if self.once is None:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                Path(self.once).touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
            except FileExistsError:
                pass
        return super().update(state, answer)

    def identity(self):
        return {"ledger": [self.steps, self.words, self.instance]}


def build(row):
    return Deadly(words=5, **row)


def run_of(journal, id, log, budget=None):
    lm = Logged(Worker((0.85, 0.08), pause=True), log)
    return Run(lm, vote=AheadBy(2), journal=journal, id=id, seed=5, budget=budget)


def begin(log, journal, id, budget, rows, since):
    return run_of(journal, id, log, budget), Many(build, rows, since=since)
