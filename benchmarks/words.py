"""Exact match on last-letter questions, long texts and word problems, voted and by single calls: `python benchmarks/words.py [--quick]`.

The questions for letters are those of Decomposed Prompting's repository (100 of each number of words and each delimiter), where
KEYSTEP_DECOMPOSED_PROMPTING_DATA names their folder; else as many are generated, seeded, and `items` says so. Texts of 100 random words
and the word problems are always generated; the problems are drawn over all people and things, a fifth of which pairs were not trained on.

The model, the rule and K = 3 are those of exact_match.py, and so is what a single call is. Writes results/benchmarks/words.json and prints
it as one line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from exact_match import MODEL, SEED, K, measure

from keystep.lm import lm
from keystep.reproduce import machine

DATA = "KEYSTEP_DECOMPOSED_PROMPTING_DATA"
OUT = Path(__file__).parent.parent / "results/benchmarks/words.json"
QUESTIONS, TEXTS, PROBLEMS = 200, 10, 100  # of each kind
WORDS, TEXT_WORDS, OPERATIONS = (3, 4, 5), 100, (2, 3, 4)

Items = list[dict[str, Any]]


def questions(words: int) -> tuple[str, Items]:
    """Questions for letters of so many words, and where they are from."""
    if folder := os.environ.get(DATA):
        names = [f"letter_cat_n{words}_eg100_pos2_{glue}.json" for glue in ("space", "semic")]
        pairs = [pair for name in names for pair in json.loads((Path(folder) / name).read_text("utf-8"))["1"]["qa_pairs"]]
        return " and ".join(names), [{"question": pair["question"], "answer": pair["answer"]["spans"][0]} for pair in pairs]
    draw = random.Random(f"{SEED} {words}")
    return "generated", [
        {"text": text(draw, words, 3), "position": 3, "glue": draw.choice(("space", "semi-colon"))} for _ in range(QUESTIONS)
    ]


def text(draw: random.Random, words: int, least: int = 1) -> str:
    """Random words of at most ten letters."""
    return " ".join("".join(draw.choices(ascii_lowercase, k=draw.randint(least, 10))) for _ in range(words))


def kinds() -> dict[str, tuple[str, str, Items]]:
    """Kind: procedure, where the items are from, the items."""
    draw = random.Random(f"{SEED} texts")
    return {
        **{f"letters of {words} words": ("letters", *questions(words)) for words in WORDS},
        f"letters of {TEXT_WORDS} words": ("letters", "generated", [{"text": text(draw, TEXT_WORDS)} for _ in range(TEXTS)]),
        **{
            f"problems of {operations} operations": (
                "problem",
                "generated",
                [{"operations": operations, "instance": 1000 * operations + number} for number in range(PROBLEMS)],
            )
            for operations in OPERATIONS
        },
    }


async def measured(quick: bool) -> dict[str, Any]:
    model = lm(MODEL)
    try:
        found = kinds().items()
        return {kind: await measure(model, work, source, items[: 2 if quick else None]) for kind, (work, source, items) in found}
    finally:
        await model.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two items of each kind; writes nothing")
    given = parser.parse_args()
    kept = {"name": "words", "machine": machine(), "model": MODEL, "k": K, "seed": SEED, "kinds": asyncio.run(measured(given.quick))}
    if not given.quick:
        OUT.write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps(kept))


if __name__ == "__main__":
    main()
