"""A run that goes on when it is told: `python gated.py JOURNAL` carries out a tower of 6 disks (63 steps) as run "r". At the steps in
GATES it waits for a line on standard input."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing

from worker import Worker

from keystep.lm.base import Request, Sample
from keystep.run import AheadBy, Run
from keystep.run.builtin import Hanoi

GATES = ("0/20", "0/40")


class Gated(Worker):
    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        if request.key in GATES and request.first == 0:
            await asyncio.to_thread(sys.stdin.readline)
        async with aclosing(super().sample(request)) as samples:
            async for sample in samples:
                yield sample


if __name__ == "__main__":
    spec = {"procedure": "hanoi", "settings": {"disks": 6}, "model": "gated"}
    run = Run(Gated([0.8, 0.1]), vote=AheadBy(3), journal=sys.argv[1], id="r", seed=5, spec=spec)
    outcome = run.execute_sync(Hanoi(disks=6))
    print(outcome.samples, flush=True)
