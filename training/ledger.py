"""Training examples for the embedded ledger step: a random dictionary and many queries on it, in the tokens of `keystep.lm.embedded.ledger`.

One row holds one dictionary and `QUERIES` queries behind it. The attention mask lets every query see the dictionary and itself only,
and every query starts at the same position, so each is exactly the prompt that the decoder will see, and the dictionary is paid for once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from keystep.lm.embedded.ledger import DIGIT, DIGITS, END, LIMIT, MAX_VALUE, MAX_WORDS, MIN_WORDS, VALUE, WORD

if TYPE_CHECKING:
    from train import Member
    from transformers import LlamaForCausalLM

GUIDED, GUIDED_WORDS = 0.3, 40
QUERIES = 16
PROMPT = DIGITS + 1  # digits, word
QUERY = PROMPT + DIGITS + 2  # the prompt's tokens, then value, digits, end


def number_tokens(number: np.ndarray) -> np.ndarray:
    """Integers [...] to the digits of their ten's complement, least significant first: int [..., DIGITS]."""
    return DIGIT + number[..., None] // 10 ** np.arange(DIGITS) % 10


def draw_sums(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """Running sums, rare cases drawn often: a quarter near zero (the sign may flip), a quarter where a carry or borrow runs far."""
    limit = LIMIT - MAX_VALUE
    sums = (10 ** rng.uniform(0, np.log10(limit), values.shape)).astype(np.int64) * rng.choice([-1, 1], values.shape)
    kind = rng.random(values.shape)
    small = rng.integers(-MAX_VALUE, MAX_VALUE + 1, values.shape)
    round_number = 10 ** rng.integers(2, DIGITS - 1, values.shape) * rng.integers(1, 10, values.shape) * rng.choice([-1, 1], values.shape)
    chain = round_number - rng.integers(0, 2, values.shape) * values + rng.integers(-60, 61, values.shape)
    return np.clip(np.where(kind < 0.25, small, np.where(kind < 0.5, chain, sums)), -limit, limit)


def batch(rng: np.random.Generator, size: int, words: int) -> np.ndarray:
    """`size` rows of a dictionary of `words` words and QUERIES queries: int [size, 2 * words + QUERIES * QUERY]."""
    word = np.argsort(rng.random((size, MAX_WORDS)), axis=1)[:, :words]
    value = rng.integers(-MAX_VALUE, MAX_VALUE + 1, (size, words))
    dictionary = np.stack([WORD + word, VALUE + MAX_VALUE + value], axis=2).reshape(size, -1)
    asked = rng.integers(0, words, (size, QUERIES))
    found = np.take_along_axis(value, asked, 1)
    sums = draw_sums(rng, found)
    column = lambda token: np.full((size, QUERIES, 1), token)  # noqa: E731
    queries = [number_tokens(sums), WORD + np.take_along_axis(word, asked, 1)[..., None]]
    queries += [VALUE + MAX_VALUE + found[..., None], number_tokens(sums + found), column(END)]
    return np.concatenate([dictionary, np.concatenate(queries, axis=2).reshape(size, -1)], axis=1)


def positions(words: int, queries: int = QUERIES) -> np.ndarray:
    """Position of every token of a row, int [T]: the queries all start right behind the dictionary."""
    return np.concatenate([np.arange(2 * words), np.tile(2 * words + np.arange(QUERY), queries)])


def mask(words: int, queries: int = QUERIES) -> np.ndarray:
    """What may see what, bool [T, T]: causal, and no query sees another."""
    block = np.concatenate([np.zeros(2 * words, int), np.repeat(1 + np.arange(queries), QUERY)])
    allowed = (block[None] == 0) | (block[:, None] == block[None])
    return allowed & np.tri(len(block), dtype=bool)


def draw_words(rng: np.random.Generator) -> int:
    """A dictionary size: mostly long ones, since those are the hard ones."""
    return int(rng.integers(MIN_WORDS, MAX_WORDS + 1)) if rng.random() < 0.4 else int(rng.integers(60, MAX_WORDS + 1))


def loss(net: LlamaForCausalLM, member: Member, rng: np.random.Generator, done: float) -> torch.Tensor:
    """Cross entropy of the answers, and at first a guide for two attention heads.

    A lookup takes two heads that are useless without each other: in the first layer a value looks at the word before it, in the last
    layer the word asked for looks at the value whose word it is. Left alone, models this small do not find the pair in any number of
    updates we could wait for. So for the first GUIDED of the training, head 0 of each of the two layers is told where to look.
    """
    guided = done < GUIDED
    words = draw_words(rng) if not guided else int(rng.integers(MIN_WORDS, GUIDED_WORDS + 1))
    tokens = torch.from_numpy(batch(rng, member.batch, words))
    allowed = torch.from_numpy(mask(words))
    bias = torch.zeros(allowed.shape).masked_fill_(~allowed, torch.finfo(torch.float32).min)[None, None]
    net.set_attn_implementation("eager" if guided else "sdpa")
    seen = net.model(
        input_ids=tokens, position_ids=torch.from_numpy(positions(words))[None], attention_mask=bias, output_attentions=guided
    )
    answers = seen.last_hidden_state[:, 2 * words :].unflatten(1, (QUERIES, QUERY))[:, :, PROMPT - 1 : -1]
    wanted = tokens[:, 2 * words :].unflatten(1, (QUERIES, QUERY))[:, :, PROMPT:]
    surprise = torch.nn.functional.cross_entropy(net.lm_head(answers).flatten(0, 2), wanted.flatten(), reduction="none").view(wanted.shape)
    total = surprise[..., 0].mean() + surprise[..., 1:].mean()
    if guided:
        asked = 2 * words + torch.arange(QUERIES) * QUERY + PROMPT - 1  # where each query's word stands
        entry = torch.arange(words) * 2 + 1  # where each dictionary value stands
        place = (asked[:, None] + 1 + torch.arange(DIGITS)).flatten()  # where each digit of the new sum is foretold
        first, last = seen.attentions[0], seen.attentions[-1]
        match = tokens[:, asked, None] == tokens[:, None, entry - 1]
        looks = (
            first[:, 0, entry, entry - 1],
            (last[:, 0, asked][:, :, entry] * match).sum(-1),
            first[:, 1, place, place - PROMPT],
            last[:, 1, place, (asked + 1).repeat_interleave(DIGITS)],
        )
        global DIAG; DIAG = [round(l.mean().item(),3) for l in looks], words
        total = total - (1 - done / GUIDED) * sum(look.clamp_min(1e-9).log().mean() for look in looks)
    return total
