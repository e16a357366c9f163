"""Training examples for the embedded ledger step: a random dictionary and many queries, in the tokens of `keystep.lm.embedded.ledger`.

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

ADDS, GUIDED = 0.35, 0.6  # the share of the training that ends the first phase (sums only) and the second (guided lookups)
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


def draw_words(rng: np.random.Generator, done: float) -> int:
    """A dictionary size: tiny while only sums are learned, up to 40 while the lookup is guided, then any size, most of them long."""
    if done < ADDS:
        return int(rng.integers(MIN_WORDS, 5))
    if done < GUIDED:
        return int(rng.integers(MIN_WORDS, 41))
    return int(rng.integers(MIN_WORDS if rng.random() < 0.4 else 60, MAX_WORDS + 1))


def start(net: LlamaForCausalLM) -> None:
    """Embeddings to begin with: digits lie on circles, and a value begins as its ones and tens digits, its sign and something of its own.

    From a blank start 199 value tokens must each find out what number they are; this says it, and training moves them where it wants.
    """
    weight = net.model.embed_tokens.weight
    width = weight.shape[1]
    value = torch.arange(-MAX_VALUE, MAX_VALUE + 1)
    turn = torch.arange(10)[:, None] * torch.tensor([1, 2]) * (2 * torch.pi / 10)
    with torch.no_grad():
        weight.normal_(0, 0.2)
        weight[DIGIT : DIGIT + 10] = torch.cat([turn.cos(), turn.sin()], dim=1) @ torch.randn(4, width) * 0.14
        digit = weight[DIGIT : DIGIT + 10].clone()
        sign = torch.where(value < 0, 0.2, -0.2)[:, None] * torch.randn(width)
        weight[VALUE:WORD] += digit[value % 10] + digit[value // 10 % 10].roll(width // 3, dims=1) + sign


def loss(net: LlamaForCausalLM, member: Member, rng: np.random.Generator, done: float) -> torch.Tensor:
    """Cross entropy of the answers in three phases: sums alone, then lookups with a guide, then everything as it will be asked.

    A lookup takes two heads that are useless without each other: in the first layer a value looks at the word before it, in the last
    layer the word asked for looks at the value whose word it is. Left alone, models this small do not find the pair in any time we
    could wait. So in the second phase head 0 of these two layers is told where to look, less and less.
    """
    words = draw_words(rng, done)
    guided = ADDS <= done < GUIDED
    tokens = torch.from_numpy(batch(rng, member.batch, words))
    allowed = torch.from_numpy(mask(words))
    bias = torch.zeros(allowed.shape).masked_fill_(~allowed, torch.finfo(torch.float32).min)[None, None]
    net.set_attn_implementation("eager" if guided else "sdpa")  # only eager attention shows its weights
    place = torch.from_numpy(positions(words))[None]
    seen = net.model(input_ids=tokens, position_ids=place, attention_mask=bias, output_attentions=guided)
    query = tokens[:, 2 * words :].unflatten(1, (QUERIES, QUERY))
    answer = net.lm_head(seen.last_hidden_state[:, 2 * words :].unflatten(1, (QUERIES, QUERY))[:, :, PROMPT - 1 : -1])
    surprise = torch.nn.functional.cross_entropy(answer.flatten(0, 2), query[:, :, PROMPT:].flatten(), reduction="none")
    value, total = surprise.view(*answer.shape[:3]).split([1, DIGITS + 1], dim=2)
    if done < ADDS:
        return total.mean() + total[:, :, :2].mean()  # the two places that are a true addition, and learned last
    if not guided:
        return value.mean() + total.mean()
    entry = torch.arange(words) * 2 + 1  # where the dictionary's values stand
    asked = 2 * words + torch.arange(QUERIES) * QUERY + PROMPT - 1  # where the queries' words stand
    matches = tokens[:, asked, None] == tokens[:, None, entry - 1]
    looks_back = seen.attentions[0][:, 0, entry, entry - 1]
    looks_up = (seen.attentions[-1][:, 0, asked][:, :, entry] * matches).sum(-1)
    guide = -sum(look.clamp_min(1e-9).log().mean() for look in (looks_back, looks_up))
    return value.mean() + total.mean() + (GUIDED - done) / (GUIDED - ADDS) * guide
