"""Training examples for the embedded list steps, in the tokens of `keystep.lm.embedded.lists`.

Operations that are harder to learn are drawn more often, and so are lists of 8 and last places. In every other list there are few different
numbers; what is counted is in the list three times in four.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from keystep.lm.embedded.lists import AMOUNT, END, FROM, ITEM, LARGEST, MOST, NAMES, NONE, NUMBER, OPERATION, OTHER, PLACE
from keystep.worlds.edits import Edit, sources

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

PROMPT = MOST + 5  # operation, two arguments, length, items, number; then where items stood and the items, of `count` how many, the end
ANSWER = 2 * MOST + 2
POOL = 30_000  # examples, and their seed
FEW = 3  # different numbers, where they are few
FULL, END_PLACE = 0.2, 0.2  # of lists: as long as can be; an argument is the last place
SHARE = {"swap": 1.5, "insert": 1.5, "extract": 1.5, "count": 3.0}  # how often an operation is drawn; else 1


def examples(rng: np.random.Generator, operations: np.ndarray) -> np.ndarray:
    """Random whole examples of these operations (their numbers in NAMES), int [N]: int [N, 31]. Behind the first end come more of them."""
    size, name = len(operations), np.array(NAMES)[operations]
    is_ = {each: name == each for each in NAMES}
    length = rng.integers(1 + is_["delete"], MOST + 1 - is_["insert"])
    length = np.where(rng.random(size) < FULL, MOST - is_["insert"], length)
    items = rng.integers(0, LARGEST + 1, (size, MOST))
    few = rng.random(size) < 0.5
    items = np.where(few[:, None], np.take_along_axis(items, rng.integers(0, FEW, (size, MOST)), 1), items)
    place, other = (np.where(rng.random(size) < END_PLACE, most - 1, rng.integers(0, most)) for most in (length + is_["insert"], length))
    place, other = np.where(is_["extract"], np.minimum(place, other), place), np.where(is_["extract"], np.maximum(place, other), other)
    listed = is_["count"] & (rng.random(size) < 0.75)
    number = np.where(listed, np.take_along_axis(items, other[:, None], 1)[:, 0], rng.integers(0, LARGEST + 1, size))
    return rows(operations, items, length, place, other, number)


def rows(
    operations: np.ndarray, items: np.ndarray, length: np.ndarray, place: np.ndarray, other: np.ndarray, number: np.ndarray
) -> np.ndarray:
    """Examples of these lists, `items` int [N, 8] of which `length` are there, and arguments; all else int [N]."""
    is_ = {each: (operations == at)[:, None] for at, each in enumerate(NAMES)}
    column, last, first, second = np.arange(MOST)[None], length[:, None], place[:, None], other[:, None]
    shift = np.where(is_["delete"] & (column >= first), 1, np.where(is_["insert"] & (column > first), -1, is_["extract"] * first))
    source = column + shift  # the answer's item stood there
    source = np.where(is_["swap"], np.where(column == first, second, np.where(column == second, first, column)), source)
    source = np.where(is_["rotate"], (column + first) % last, np.where(is_["reverse"], last - 1 - column, source))
    there = (items == number[:, None]) & (column < last)
    source = np.where(is_["count"], np.argsort(~there, axis=1, kind="stable"), source)  # those that are counted come first
    source = np.where(is_["insert"] & (column == first), MOST, source).clip(0, MOST)
    found = np.take_along_axis(np.concatenate([items, number[:, None]], 1), source, 1)
    left = np.where(is_["extract"], second - first + 1, last + is_["insert"] - is_["delete"])
    left = np.where(is_["count"], there.sum(1)[:, None], left)

    told = np.full((len(items), ANSWER), END)
    told[:, : 2 * MOST : 2] = np.where(column < left, FROM + (MOST + 1) * column + source, END)
    told[:, 1 : 2 * MOST : 2] = np.where(column < left, NUMBER + found, END)
    np.put_along_axis(told, 2 * left, np.where(is_["count"], AMOUNT + left, END), 1)
    takes = {each: is_[each][:, 0] for each in NAMES}
    one = np.where(takes["reverse"] | takes["count"], NONE, np.where(takes["rotate"], AMOUNT, PLACE) + place)
    two = np.where(takes["swap"] | takes["extract"], OTHER + other, NONE)
    head = np.stack([OPERATION + operations, one, two, AMOUNT + length], 1)
    about = np.where(takes["insert"] | takes["count"], NUMBER + number, NONE)[:, None]
    shown = np.where(column < last, _items(items), NONE)
    return np.concatenate([head, shown, about, told], 1)


def _items(numbers: np.ndarray) -> np.ndarray:
    """Tokens of the numbers of lists, int [N, 8]."""
    return ITEM + (LARGEST + 1) * np.arange(MOST)[None] + numbers


def batch(rng: np.random.Generator, size: int) -> np.ndarray:
    """`size` whole examples, prompt and answer: int [size, 31]."""
    share = np.array([SHARE.get(name, 1.0) for name in NAMES])
    return examples(rng, rng.choice(len(NAMES), size, p=share / share.sum()))


def pool() -> np.ndarray:
    """Examples among which those are looked for that a member gets wrong: always the same ones, drawn as in training."""
    return batch(np.random.default_rng(POOL), POOL)


def answer(edit: Edit, items: list[int]) -> list[int]:
    """The right answer's tokens, ANSWER of them."""
    found = [(MOST, edit.numbers[0]) if place is None else (place, items[place]) for place in sources(edit, items)]
    tokens = [token for at, (place, number) in enumerate(found) for token in (FROM + (MOST + 1) * at + place, NUMBER + number)]
    tokens += [AMOUNT + len(found)] if edit.name == "count" else []
    return tokens + [END] * (ANSWER - len(tokens))


def start(net: LlamaForCausalLM) -> None:
    """Embeddings to begin with: a number in the list begins as its place (the first components) and the number (the others), which an
    argument or a number in an answer is too. From a blank start 800 tokens must each find out what they are. And a head to begin with: one
    of the first layer looks for its like, as counting needs."""
    weight, first = net.model.embed_tokens.weight, net.model.layers[0].self_attn
    with torch.no_grad():
        weight.normal_(0, 0.15)
        places, numbers = torch.eye(MOST) * 0.5, torch.randn(LARGEST + 1, weight.shape[1] - MOST) * 0.15
        weight[NUMBER:ITEM, MOST:] = numbers
        weight[ITEM:FROM] *= 0.1
        weight[ITEM:FROM] += torch.cat([places.repeat_interleave(LARGEST + 1, 0), numbers.repeat(MOST, 1)], 1)
        weight[FROM:].unflatten(0, (MOST, MOST + 1))[:, :MOST, :MOST] += places  # what it asks for
        size = weight.shape[1] // net.config.num_attention_heads
        alike = torch.randn(size, weight.shape[1] - MOST) * 0.1
        for matrix in (first.q_proj.weight, first.k_proj.weight):
            matrix[:size, :MOST], matrix[:size, MOST:] = 0, alike
