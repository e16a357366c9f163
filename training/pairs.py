"""Training examples for the embedded sort-pair step, in the tokens of `keystep.lm.embedded.pairs`.

Of two random numbers the first digits nearly always say which is smaller. So a part of every batch is drawn close together: the same
first two digits, the same last two, neighbours, the same number twice, the same number with the other sign, numbers below a hundred.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from keystep.lm.embedded.pairs import END, FIRST, LIMIT, MINUS, PLUS, SECOND, TWO

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

PROMPT = 6  # two numbers of three tokens, then which is the smaller, both again in order, the end
KINDS = ("random", "same first digits", "same last digits", "neighbours", "near", "equal", "opposite", "below a hundred")
POOL = 30_000  # examples, and their seed
PLAIN = 0.3  # share of a batch that is random numbers; the other kinds have equal parts of the rest


def number_tokens(numbers: np.ndarray) -> np.ndarray:
    """Integers [N] to tokens, int [N, 3]."""
    size = np.abs(numbers)
    return np.stack([np.where(numbers < 0, MINUS, PLUS), TWO + size // 100, TWO + size % 100], 1)


def examples(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whole examples of pairs, both int [N]: int [N, 14]."""
    prompt = np.concatenate([number_tokens(first), number_tokens(second)], 1)
    swapped = (second < first)[:, None]
    ordered = np.where(swapped, np.roll(prompt, 3, axis=1), prompt)
    return np.concatenate([prompt, np.where(swapped, SECOND, FIRST), ordered, np.full((len(first), 1), END)], 1)


def draw(rng: np.random.Generator, size: int, kind: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of numbers, the rare kinds among them drawn often, or all of one kind."""
    first, second = rng.integers(-LIMIT, LIMIT + 1, (2, size))
    sign, count = np.where(first < 0, -1, 1), np.abs(first)
    below = rng.integers(0, 100, (3, size))
    close = np.stack([
        second,
        sign * (count // 100 * 100 + below[0]),
        np.clip(sign * (below[0] * 100 + count % 100), -LIMIT, LIMIT),
        np.clip(first + rng.choice([-3, -2, -1, 1, 2, 3], size), -LIMIT, LIMIT),
        np.clip(first + rng.choice([-1, 1], size) * (100 * (below[1] % 4) + below[0]), -LIMIT, LIMIT),
        first,
        -first,
        rng.choice([-1, 1], size) * below[1],
    ])  # fmt: skip
    kinds = np.where(rng.random(size) < PLAIN, 0, rng.integers(1, len(close), size)) if kind is None else np.full(size, kind)
    first = np.where(kinds == len(close) - 1, sign * below[2], first)
    second = close[kinds, np.arange(size)]
    turned = rng.random(size) < 0.5
    return np.where(turned, second, first), np.where(turned, first, second)


def batch(rng: np.random.Generator, size: int) -> np.ndarray:
    """`size` whole examples, prompt and answer: int [size, 14]."""
    return examples(*draw(rng, size))


def pool() -> np.ndarray:
    """Examples among which those are looked for that a member gets wrong: always the same ones, drawn as in training."""
    return batch(np.random.default_rng(POOL), POOL)


def start(net: LlamaForCausalLM) -> None:
    """Embeddings to begin with: two digits begin as what number they are, on a line and on turns of it, and something of their own."""
    weight = net.model.embed_tokens.weight
    line = torch.linspace(-1, 1, 100)[:, None]
    turn = torch.cat([line, *(wave(line * torch.pi * times / 2) for times in (1, 2, 4, 8, 16) for wave in (torch.sin, torch.cos))], 1)
    with torch.no_grad():
        weight.normal_(0, 0.1)
        weight[TWO:] += turn @ torch.randn(turn.shape[1], weight.shape[1]) * 0.2
