"""Carry out a run, and print the resident set every 10,000 steps: `memory.py JOURNAL STEPS`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from keystep_loop import Count, Instant

from keystep.lm.base import Request, Sample
from keystep.run import AheadBy, Journal, Run

EVERY = 10_000


def resident() -> float:
    """The resident set in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGESIZE") / 2**20, 1)


class Watched(Instant):
    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        step = int(str(request.prompt)) + 1
        if step % EVERY == 0:
            print(json.dumps({"steps": step, "mib": resident()}), flush=True)
        async with aclosing(super().sample(request)) as samples:
            async for sample in samples:
                yield sample


if __name__ == "__main__":
    outcome = Run(Watched(), vote=AheadBy(3), journal=Journal(sys.argv[1]), id="bench").execute_sync(Count(int(sys.argv[2])))
    assert outcome.steps == int(sys.argv[2])
