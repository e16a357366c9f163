"""Exact match on products and sorted lists, voted and by single calls: `python benchmarks/exact_match.py [--quick]`.

The items are those of MAKER's repository (200 products each of two 5-, 6- and 10-digit numbers, 200 lists of 5, 50 lists of 500), where the
variable KEYSTEP_MAKER_DATA names their folder; else as many of the same kinds are generated, seeded, and `items` says so. `--products`,
`--short` and `--long` say how many items of each kind are taken, from the front of the file.

The model, the rule and K are fixed here, before any run: K = 3 from what the models' cards say of random tasks of the same kinds. A single
call is one member that goes the whole procedure alone, one call a step; `best_single` is the member, greedy or sampled, that got most items
of the kind right, so it is chosen after the fact and the vote is not. Writes results/benchmarks/exact-match.json and prints it as one line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from itertools import compress
from pathlib import Path
from typing import Any

from keystep.errors import Refused, Stopped
from keystep.lm import lm
from keystep.lm.base import LM
from keystep.reproduce import machine
from keystep.run import AheadBy, Outcome, Run
from keystep.run.builtin import builtin
from keystep.run.compare import Way, compare

K, SEED, MODEL = 3, 0, "embedded"
DATA = "KEYSTEP_MAKER_DATA"
OUT = Path(__file__).parent.parent / "results/benchmarks/exact-match.json"

Item = dict[str, str]


def product(digits: int) -> Callable[[random.Random], Item]:
    def item(draw: random.Random) -> Item:
        a, b = (draw.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
        return {"question": f"{a} × {b}", "answer": str(a * b)}

    return item


def numbers(size: int) -> Callable[[random.Random], Item]:
    def item(draw: random.Random) -> Item:
        listed = [draw.randint(-9999, 9999) for _ in range(size)]
        return {"question": json.dumps(listed), "answer": json.dumps(sorted(listed))}

    return item


KINDS: dict[str, tuple[str, str, str, Callable[[random.Random], Item]]] = {  # kind: procedure, option, file, generator
    "products of 5 digits": ("multiply", "products", "bench_long_mul_5_5__200.jsonl", product(5)),
    "products of 6 digits": ("multiply", "products", "bench_long_mul_6_6__200.jsonl", product(6)),
    "products of 10 digits": ("multiply", "products", "bench_long_mul_10_10__200.jsonl", product(10)),
    "lists of 5": ("sort", "short", "synthetic_sort_len_5__200.jsonl", numbers(5)),
    "lists of 500": ("sort", "long", "bench_sort_len_500__50.jsonl", numbers(500)),
}


def items(kind: str, count: int) -> tuple[str, list[Item]]:
    """Where the items are from, and so many of them."""
    _, _, name, generated = KINDS[kind]
    if folder := os.environ.get(DATA):
        lines = (Path(folder) / name).read_text("utf-8").splitlines()
        return name, [json.loads(line) for line in lines[:count]]
    draw = random.Random(f"{SEED} {kind}")
    return "generated", [generated(draw) for _ in range(count)]


async def measure(model: LM, procedure: str, source: str, asked: list[dict[str, Any]]) -> dict[str, Any]:
    """How many items, settings of a procedure, come out right by vote and by every single-call way; `source` says where they are from."""
    works = [builtin(procedure, item) for item in asked]
    runs = [Run(model, vote=AheadBy(K), seed=SEED + number) for number in range(len(works))]
    began = time.perf_counter()
    done = await asyncio.gather(*(run.execute(work) for run, work in zip(runs, works, strict=True)), return_exceptions=True)
    seconds = time.perf_counter() - began
    for outcome in done:
        if isinstance(outcome, BaseException) and not isinstance(outcome, Stopped | Refused):
            raise outcome
    known = [not isinstance(outcome, Refused) for outcome in done]  # one holds a number that the model was not trained for: not right
    outcomes = [outcome for outcome in done if isinstance(outcome, Outcome)]
    alone: Counter[str] = Counter()
    for ways in await asyncio.gather(*(compare(run.asking, work) for run, work in compress(zip(runs, works, strict=True), known))):
        alone.update({way.way: matched(way) for way in ways})
    best = max(alone, key=lambda way: alone[way])
    totals = [work.total() or 0 for work in works]
    return {
        "items": source,
        "count": len(works),
        "refused": known.count(False),
        "steps": {"least": min(totals), "most": max(totals)},
        "voted": sum(outcome.correct is True for outcome in outcomes),
        "votes_per_step": round(sum(each.samples - each.flagged for each in outcomes) / max(1, sum(each.steps for each in outcomes)), 4),
        "best_single": {"way": best, "right": alone[best]},
        "single_calls": dict(sorted(alone.items())),
        "seconds": round(seconds, 1),
    }


def matched(way: Way) -> bool:
    if way.problem:
        raise RuntimeError(f"{way.way}: {way.problem}")
    return way.correct is True


async def measured(counts: dict[str, int]) -> dict[str, Any]:
    model = lm(MODEL)
    try:
        return {kind: await measure(model, KINDS[kind][0], *items(kind, counts[KINDS[kind][1]])) for kind in KINDS}
    finally:
        await model.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two items of each kind, one of the long ones; writes nothing")
    for option, most, what in (("products", 200, "products of each length"), ("short", 200, "lists of 5"), ("long", 10, "lists of 500")):
        parser.add_argument(f"--{option}", type=int, default=most, metavar="N", help=f"{what} (default: %(default)s)")
    given = parser.parse_args()
    counts = (
        {"products": 2, "short": 2, "long": 1} if given.quick else {name: getattr(given, name) for name in ("products", "short", "long")}
    )
    if min(counts.values()) < 1:
        parser.error("take at least one item of each kind")
    result = {"name": "exact-match", "machine": machine(), "model": MODEL, "k": K, "seed": SEED, "kinds": asyncio.run(measured(counts))}
    if not given.quick:
        OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
