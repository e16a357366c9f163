"""MAKER at small scale: towers of Hanoi on the embedded ensemble, one call a step against first-to-ahead-by-k voting.

Every step's success is measured from its true predecessor state (exact for "error-free run": a run is error-free if and only if the vote at
every step, started from the true state, is won by the truth), so all steps of a tower are asked side by side, through the same `Run.ask`
as any run. Single calls need no sampling: their probabilities are exact by teacher forcing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from keystep.errors import Undecided
from keystep.lm.embedded import hanoi as tokens
from keystep.lm.embedded.model import Embedded, answer_probabilities, load
from keystep.reproduce import Reproduction, machine
from keystep.run import AheadBy, Run
from keystep.run.builtin.hanoi import Hanoi
from keystep.run.canonical import dumps
from keystep.worlds import hanoi

DISKS = (4, 6, 8, 9, 10, 11, 12, 13)
TASK = 12  # disks of the task that the claim is judged on; the others are for the picture
K = (1, 2, 3, 4)
JUDGED = 3  # the k that the claim is judged at, fixed beforehand: that of the paper's million steps
SIDE_BY_SIDE = 256  # steps asked at once


def states(disks: int) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """(state, right answer) of every step of the tower."""
    move, pegs = None, hanoi.start(disks)
    for _ in range(hanoi.steps(disks)):
        following = hanoi.next_move(move, pegs)
        after = hanoi.moved(pegs, following)
        yield {"previous": move, "pegs": pegs}, [following, after]
        move, pegs = following, after


def single_calls(disks: int) -> list[dict[str, Any]]:
    """Per member: the first step greedy decoding gets wrong, and the exact probability that a run sampled at T = 1 has no error."""
    prompts, answers = [], []
    for state, (move, pegs) in states(disks):
        prompt = tokens.encode(tokens.render(state["previous"], state["pegs"]))
        assert prompt is not None
        prompts.append(prompt[0])
        answers.append([*_move_tokens(move), *_peg_tokens(pegs), tokens.END])
    found = []
    for member in load("hanoi").members:
        right, greedy = answer_probabilities(member, np.array(prompts), np.array(answers))
        wrong = np.flatnonzero(~greedy).tolist()
        found.append(
            {
                "member": member.number,
                "greedy_wrong_steps": len(wrong),
                "greedy_first_error": wrong[0] if wrong else None,
                "mean_p": round(float(right.mean()), 5),
                "min_p": round(float(right.min()), 5),
                "sampled_success": float(np.exp(np.log(np.maximum(right, 1e-300)).sum())),
            }
        )
    return found


def _move_tokens(move: list[int]) -> list[int]:
    return [tokens.DISK + move[0] - 1, tokens.PEG + move[1], tokens.PEG + move[2]]


def _peg_tokens(pegs: list[list[int]]) -> list[int]:
    return [token for peg, disks in enumerate(pegs) for token in (tokens.OPEN + peg, *(tokens.DISK + disk - 1 for disk in disks))]


async def voted(lm: Embedded, disks: int, k: int, seed: int) -> dict[str, Any]:
    """One error count over every step of the tower under ahead-by-k voting."""
    procedure = Hanoi(disks)
    run = Run(lm, vote=AheadBy(k), seed=seed)

    async def one(state: dict[str, Any], truth: list[Any]) -> tuple[bool, int, int, bool]:
        try:
            answer = await run.ask(procedure.prompt(state), parse=lambda text: procedure.parse(text, state), flags=procedure.flags)
        except Undecided as error:
            return False, error.ledger.samples, error.ledger.flagged, False
        votes = [key for _, key, flag in answer.votes if flag is None][:2]
        collision = len(votes) == 2 and all(key != dumps(truth) for key in votes)
        return answer.value == truth, answer.samples, answer.flagged, collision

    pending = list(states(disks))
    results = []
    for start in range(0, len(pending), SIDE_BY_SIDE):
        results += await asyncio.gather(*(one(*item) for item in pending[start : start + SIDE_BY_SIDE]))
    run.close()
    right, samples, flagged, collisions = zip(*results, strict=True)
    wrong = [step for step, good in enumerate(right) if not good]
    return {
        "disks": disks, "k": k, "seed": seed, "steps": len(right), "wrong_steps": len(wrong), "first_error": wrong[0] if wrong else None,
        "votes_per_step": sum(samples) / len(right), "flagged": sum(flagged), "collisions": sum(collisions),
    }  # fmt: skip


def main(seeds: int = 3, progress: Progress | None = None) -> Reproduction:
    """Run the whole reproduction; `seeds` voted runs per tower and k."""
    began = time.perf_counter()
    lm = Embedded("embedded")
    chosen = list(range(seeds))
    bar = progress.add_task("towers", total=len(DISKS) * len(K) * seeds) if progress else None
    singles, votes = {}, []
    for disks in DISKS:
        singles[disks] = single_calls(disks)
        for k in K:
            for seed in chosen:
                votes.append(asyncio.run(voted(lm, disks, k, seed)))
                if progress and bar is not None:
                    progress.advance(bar)
    cells = []
    for disks in DISKS:
        for k in K:
            cell = [row for row in votes if row["disks"] == disks and row["k"] == k]
            cells.append(
                {
                    "disks": disks, "steps": cell[0]["steps"], "k": k, "runs": len(cell),
                    "error_free": sum(row["wrong_steps"] == 0 for row in cell),
                    "wrong_steps": [row["wrong_steps"] for row in cell],
                    "votes_per_step": round(sum(row["votes_per_step"] for row in cell) / len(cell), 4),
                    "flagged": sum(row["flagged"] for row in cell), "collisions": sum(row["collisions"] for row in cell),
                }
            )  # fmt: skip
    best_sampled = max(single["sampled_success"] for single in singles[TASK])
    greedy_right = any(single["greedy_wrong_steps"] == 0 for single in singles[TASK])
    at = {cell["k"]: cell for cell in cells if cell["disks"] == TASK}
    success = at[JUDGED]["error_free"] / len(chosen)
    baseline_success = 1.0 if greedy_right else best_sampled
    return Reproduction(
        name="maker", room="run",
        paper="Meyerson et al. 2025, Solving a Million-Step LLM Task with Zero Errors, arXiv 2511.09030",
        claim="One call a step, voted first-to-ahead-by-k with red flags, carries a task through without an error that is too long for any "
        "single pass.",
        setting={
            "model": lm.identity(), "temperature": 1.0, "task": f"{TASK} disks", "k": JUDGED, "disks": list(DISKS), "k_tried": list(K),
        },
        baseline={"single_calls": {str(disks): rows for disks, rows in singles.items()}, "task_success": baseline_success},
        measured={"cells": cells, "task_success": success},
        ratio=success / baseline_success if baseline_success else None,
        held=success == 1.0 and baseline_success < 0.05,
        seeds=chosen, seconds=round(time.perf_counter() - began, 1),
        settings_tried=[f"disks={cell['disks']} k={cell['k']}: {cell['error_free']} of {cell['runs']} error-free" for cell in cells],
        machine=machine(),
    )  # fmt: skip


def picture(found: Reproduction, path: Path) -> None:
    """The probability of an error-free run against its length: one call a step, and voted."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "keystep"  # the same figures give the same file
    from matplotlib import pyplot

    singles = found.baseline["single_calls"]
    lengths = [hanoi.steps(int(disks)) for disks in singles]
    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), layout="constrained")
    sampled = [max(row["sampled_success"] for row in rows) for rows in singles.values()]
    greedy = [sum(row["greedy_wrong_steps"] == 0 for row in rows) / len(rows) for rows in singles.values()]
    axes.plot(lengths, sampled, "o--", color="#b0563b", label="one call a step, sampled: the best member (exact)")
    axes.plot(lengths, greedy, "s:", color="#8a8a8a", label="one call a step, greedy: share of members without an error")
    for k, style in ((1, ":"), (3, "-")):
        cells = [cell for cell in found.measured["cells"] if cell["k"] == k]
        label = "the ensemble, first valid answer" if k == 1 else f"keystep: the ensemble, voted ahead by {k}"
        axes.plot(lengths, [cell["error_free"] / cell["runs"] for cell in cells], "^" + style, color="#2f6f8f", label=label)
    axes.set(xscale="log", xlabel="dependent steps (Tower of Hanoi)", ylabel="error-free runs", ylim=(-0.04, 1.04))
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
