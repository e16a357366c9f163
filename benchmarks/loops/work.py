"""The work of one step, the same for every engine of benchmarks/engine.py: three votes of a model that answers at once, on a state of
about 120 bytes. Standard library only, so that it runs in either environment."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

NOTE = "x" * 100  # what the state carries beside its number


def answer(prompt: str) -> str:
    """The model."""
    return str(int(prompt) + 1)


def voted(at: int) -> int:
    """One step as the other engines do it: three answers, parsed, counted; the one with all three votes wins."""
    counts: dict[int, int] = {}
    for _ in range(3):
        value = int(answer(str(at)))
        counts[value] = counts.get(value, 0) + 1
    leader = max(counts, key=lambda value: counts[value])
    assert counts[leader] == 3
    return leader


def report(steps: int, loop: Callable[[], int]) -> None:
    """Time `loop`, which gives the number that the last step reached, and print seconds of the clock and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    reached = loop()
    clock, processor = time.perf_counter() - clock, time.process_time() - processor
    if reached != steps:
        sys.exit(f"reached {reached}, not {steps}")
    print(json.dumps({"steps": steps, "seconds": clock, "cpu_seconds": processor}))
