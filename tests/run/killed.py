"""The process that test_kill.py and test_faults.py kill: one run with every sample it asks for noted in a file. Its settings come as JSON
in argv[1]; `model` is a name, the weights of a `Worker`, or the options of an `Endpoint`."""

from __future__ import annotations

import json
import sys

from worker import Logged, Worker

import keystep as ks
from keystep.lm.endpoint import Endpoint
from keystep.run import AheadBy, Run, TooLong
from keystep.run import journal as module
from keystep.run.builtin import builtin


def run(settings: dict, journal: str, log: str) -> Run:
    module.LEASE_SECONDS = settings.get("lease", module.LEASE_SECONDS)
    model = settings["model"]
    if isinstance(model, dict):
        lm = Endpoint(**model)
    else:
        lm = ks.lm(model) if isinstance(model, str) else Worker(model, pause=settings["speculate"])
    flags = [TooLong(settings["too_long"])] if "too_long" in settings else []
    return Run(
        Logged(lm, log), vote=AheadBy(settings["k"]), journal=journal, id="r", seed=settings["seed"], speculate=settings["speculate"],
        keep_samples=settings["keep_samples"], flags=flags,
    )  # fmt: skip


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    work = run(settings, sys.argv[2], sys.argv[3])
    print("ready", flush=True)
    work.execute_sync(builtin(settings["procedure"], settings["set"]))
