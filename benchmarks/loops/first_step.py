"""Resume a run and die at the first ask: `first_step.py JOURNAL STEPS BEGAN` prints how long that took, also since BEGAN
(seconds since the epoch)."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import AsyncGenerator

from keystep_loop import Count, Instant

from keystep.lm.base import Request, Sample
from keystep.run import AheadBy, Journal, Run


class Asked(Instant):
    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        took = {"seconds": time.time() - made, "cpu": time.process_time() - processor, "whole": time.time() - float(sys.argv[3])}
        print(json.dumps(took), flush=True)
        os._exit(0)  # as if killed: the next round finds the journal as this one did
        yield Sample("")


if __name__ == "__main__":
    made, processor = time.time(), time.process_time()
    Run(Asked(), vote=AheadBy(3), journal=Journal(sys.argv[1]), id="bench").execute_sync(Count(int(sys.argv[2])))
    sys.exit("it never asked")
