"""What a model's feed-forward layers do on examples: keys at single tokens, and running means and variances over all of them.

Everything that is gathered is a tensor by name in one dict, so that unfinished probing is kept and gone on with as it is. Padding never
counts. Means and variances are merged batch by batch (Chan, Golub, LeVeque 1983), in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from keystep.edit.unlearn.guarded import Box, ratio
from keystep.nn.examples import Examples, batches
from keystep.nn.layers import FeedForward

Read = Callable[[FeedForward, Tensor], None]
Tensors = dict[str, Tensor]


@contextmanager
def reading(model: nn.Module, blocks: Sequence[FeedForward], *, gates: Read | None = None, keys: Read | None = None) -> Iterator[None]:
    """While it is entered, `gates` is called with a block's pre-activations, `keys` with its keys, both [rows, length, d_ff]."""
    hooks = []
    for block in blocks:
        if gates is not None:
            gate = model.get_submodule(block.gate)
            hooks.append(gate.register_forward_hook(lambda module, args, output, block=block: gates(block, output.detach())))
        if keys is not None:
            down = model.get_submodule(block.down)
            hooks.append(down.register_forward_pre_hook(lambda module, args, block=block: keys(block, args[0].detach())))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def prompt_end(examples: Examples, number: int, end: int | None) -> int:
    """Index of the last token of an example's prompt; of a text, its last token before `end`, the end token."""
    row = examples.rows[number]
    if examples.kind == "text":
        return max(0, len(row.tokens) - 1 - (row.tokens[-1] == end))
    return row.start - 1


def watched(examples: Examples, number: int, end: int | None) -> range:
    """Indices of the tokens at which a guard looks while the right answer is given: the prompt's last, the answer's but its last."""
    last = prompt_end(examples, number, end)
    return range(last, last + 1 if examples.kind != "answer" else max(last + 1, len(examples.rows[number].tokens) - 1))


@torch.no_grad()
def run(model: Any, rows: Sequence[Sequence[int]], padding: int) -> None:
    """One forward pass over rows of tokens, right-padded; of the layers only, no logits."""
    [batch] = batches(rows, len(rows), padding=padding, device=model.device)
    model.base_model(**batch, use_cache=False)


def at_tokens(
    model: Any, blocks: Sequence[FeedForward], examples: Examples, which: Sequence[int], places: Sequence[Sequence[int]], work: Read
) -> None:
    """Calls `work` with each block's keys [tokens, d_ff] at the places of the examples, in their order."""
    rows = [examples.rows[number].tokens[: max(at) + 1] for number, at in zip(which, places, strict=True)]
    row = torch.tensor([number for number, at in enumerate(places) for _ in at])
    column = torch.tensor([token for at in places for token in at])
    with reading(model, blocks, keys=lambda block, keys: work(block, keys[row.to(keys.device), column.to(keys.device)])):
        run(model, rows, examples.padding)


def nearest(
    model: Any, blocks: Sequence[FeedForward], boxes: Sequence[Box], examples: Examples, which: Sequence[int],
    places: Sequence[Sequence[int]],
) -> Tensor:  # fmt: skip
    """Of each example and box, the smallest ratio (`guarded.ratio`) of the keys at the example's places, [examples, boxes]."""
    ends = list(itertools.accumulate(map(len, places)))[:-1]
    found = torch.empty(len(which), len(boxes))

    def measure(block: FeedForward, keys: Tensor) -> None:
        for number, box in enumerate(boxes):
            if box.layer == block.number:
                ratios = ratio(keys, box.mean.to(keys.device), box.std.to(keys.device)).cpu()
                found[:, number] = torch.stack([part.min() for part in ratios.tensor_split(ends)])

    at_tokens(model, [block for block in blocks if any(box.layer == block.number for box in boxes)], examples, which, places, measure)
    return found


def add_keys(
    found: Tensors, name: str, model: Any, blocks: Sequence[FeedForward], examples: Examples, which: Sequence[int], end: int | None
) -> None:
    """Adds to `found` the keys at the end of the prompts, as `NAME.LAYER` [examples, d_ff] of the model's own dtype."""

    def add(block: FeedForward, keys: Tensor) -> None:
        key = f"{name}.{block.number}"
        found[key] = torch.cat([found[key], keys.cpu()]) if key in found else keys.cpu()

    at_tokens(model, blocks, examples, which, [[prompt_end(examples, number, end)] for number in which], add)


def add_moments(
    found: Tensors, name: str, model: Any, blocks: Sequence[FeedForward], examples: Examples, which: Sequence[int], part: str, what: str
) -> None:
    """Adds to `found` the number of tokens, mean and sum of squared deviations of each block's pre-activations (`what` "gates") or of the
    absolute values of its keys ("keys"), as `NAME.LAYER.n`, `.mean` and `.squares`.

    Args:
        part: "whole": all tokens of the examples; "answer": those that foretell the answer.
    """
    rows = [examples.rows[number].tokens for number in which]
    first = [0 if part == "whole" else examples.rows[number].start - 1 for number in which]
    last = [len(row) - (part == "answer") for row in rows]
    row = torch.tensor([number for number, (a, b) in enumerate(zip(first, last, strict=True)) for _ in range(a, b)])
    column = torch.tensor([token for a, b in zip(first, last, strict=True) for token in range(a, b)])

    def add(block: FeedForward, values: Tensor) -> None:
        x = values[row.to(values.device), column.to(values.device)].double()
        if what == "keys":
            x = x.abs()
        mean = x.mean(0)
        merge(found, f"{name}.{block.number}", len(x), mean.cpu(), (x - mean).square().sum(0).cpu())

    with reading(model, blocks, **{what: add}):
        run(model, rows, examples.padding)


def merge(found: Tensors, key: str, n: int, mean: Tensor, squares: Tensor) -> None:
    """Chan's update of n, mean and Σ (x − mean)² under `key` by those of more values."""
    if f"{key}.n" not in found:
        found |= {f"{key}.n": torch.tensor(n), f"{key}.mean": mean, f"{key}.squares": squares}
        return
    before, old = int(found[f"{key}.n"]), found[f"{key}.mean"]
    gap = mean - old
    found[f"{key}.n"] = torch.tensor(before + n)
    found[f"{key}.mean"] = old + gap * n / (before + n)
    found[f"{key}.squares"] = found[f"{key}.squares"] + squares + gap.square() * before * n / (before + n)
