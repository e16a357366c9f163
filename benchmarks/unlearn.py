"""What a guard costs a generated token: `python benchmarks/unlearn.py [--quick]`.

Stock `generate`, greedy, beside the same call with a guard in the model: `key-space` (one box, which never fires), `three boxes` (in three
layers) and `neuron-adjust` (3 % of all neurons). Ways take turns, round after round, in one process; a guard is put in before its turn and
taken out after it, neither of which is timed. `overhead` is the median over the rounds of a way's processor time by that of stock in the
same round, less 1, and its quartiles; `noise` is the same for stock against stock. On a busy machine the noise is larger than the cost;
so `own` is what the guard's hooks and its stopping criterion took themselves, by a clock within them, by the rest of the same call.
Aim: key-space below 0.02. Writes results/benchmarks/unlearn.json and prints it as one line.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from keystep.edit.unlearn import Box, Guard, Shift, attach
from keystep.edit.unlearn.guarded import Attached, _Watch
from keystep.nn.layers import feed_forward_blocks
from keystep.reproduce import machine
from keystep.worlds.skills import small_model

OUT = Path(__file__).parent.parent / "results/benchmarks/unlearn.json"
WIDTH, LAYERS, HEADS, VOCABULARY = 768, 12, 12, 8000  # 126 million parameters
PROMPT, TOKENS, BATCHES, ROUNDS, OWN, SHARE = 32, 32, (1, 8), 9, 3, 0.03


def guards(model: Any) -> dict[str, Guard]:
    blocks = feed_forward_blocks(model)

    def box(number: int) -> Box:
        block = blocks[number]
        return Box(str(number), block.number, block.down, 1.0, 0.0, torch.zeros(block.width), torch.ones(block.width))

    draw, shifts = torch.Generator().manual_seed(0), []
    for block in blocks:
        neurons = torch.randperm(block.width, generator=draw)[: round(SHARE * block.width)].sort().values
        retain, forget, one = torch.zeros(len(neurons)), torch.full((len(neurons),), 0.1), torch.ones(len(neurons))
        shifts.append(Shift(block.number, block.gate, neurons, retain, one, forget, one))
    last = len(blocks) - 1
    return {
        "stock": Guard(), "noise": Guard(), "key-space": Guard(boxes=(box(last),), refusal=(3,)),
        "three boxes": Guard(boxes=tuple(box(n) for n in (0, last // 2, last)), refusal=(3,)), "neuron-adjust": Guard(shifts=tuple(shifts)),
    }  # fmt: skip


def timed(model: Any, guard: Guard, tokens: torch.Tensor) -> float:
    """Processor seconds."""
    attached = attach(model, guard) if guard != Guard() else None
    began = time.process_time()
    found = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
    seconds = time.process_time() - began
    assert found.shape[1] == PROMPT + TOKENS
    if attached is not None:
        assert not any(attached.flagged)
        attached.remove()
    return seconds


def own(model: Any, guard: Guard, tokens: torch.Tensor) -> float:
    """Processor time within the guard's own functions of one call, by that of the rest."""
    spent = 0.0

    def clocked(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **more: Any) -> Any:
            nonlocal spent
            began = time.process_time()
            found = work(*given, **more)
            spent += time.process_time() - began
            return found

        return run

    real = _Watch._begin, _Watch._reading, _Watch.__call__, Attached._shifting
    _Watch._begin, _Watch.__call__ = clocked(real[0]), clocked(real[2])
    _Watch._reading = lambda watch, box: clocked(real[1](watch, box))
    Attached._shifting = lambda attached, shift: clocked(real[3](attached, shift))
    try:
        whole = timed(model, guard, tokens)
    finally:
        _Watch._begin, _Watch._reading, _Watch.__call__, Attached._shifting = real
    return spent / (whole - spent)


def spread(values: list[float]) -> dict[str, Any]:
    low, middle, high = quantiles(values, n=4)
    return {"median": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)]}


def main() -> None:
    quick = "--quick" in sys.argv
    torch.set_num_threads(1)
    sizes = {"width": 64} if quick else {"width": WIDTH, "layers": LAYERS, "heads": HEADS, "vocabulary": VOCABULARY}
    model = small_model(**sizes, longest=PROMPT + TOKENS)
    contestants, rows = guards(model), []
    for batch in BATCHES:
        tokens = torch.randint(3, 40, (batch, PROMPT), generator=torch.Generator().manual_seed(0))
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        timed(model, Guard(), tokens)
        for number in range(2 if quick else ROUNDS):
            order = list(contestants.items())
            for name, guard in order[number % len(order) :] + order[: number % len(order)]:
                seconds[name].append(timed(model, guard, tokens))
        overhead, inside = {}, {}
        for name, guard in contestants.items():
            if name != "stock":
                overhead[name] = spread([mine / stock - 1 for mine, stock in zip(seconds[name], seconds["stock"], strict=True)])
            if guard != Guard():
                inside[name] = spread([own(model, guard, tokens) for _ in range(2 if quick else OWN)])
        ms = {name: round(1000 * median(each) / TOKENS, 3) for name, each in seconds.items()}
        rows.append({"batch": batch, "ms_per_token": ms, "overhead": overhead, "own": inside})
    parameters = sum(parameter.numel() for parameter in model.parameters())
    setting = {"parameters": parameters, "dtype": "float32", "prompt": PROMPT, "tokens": TOKENS, "rounds": ROUNDS, "aim": 0.02}
    result = {"name": "unlearn", "machine": machine(), **setting, "rows": rows}
    if not quick:
        OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
