"""A small decoder for ensembles of Llama models (tied embeddings, RMSNorm, rotary positions, SiLU gate) in plain numpy.

The members of an ensemble are stacked, padded with zeros to the widest, and decoded side by side. Norm weights, the square root of
the width and the 1/sqrt(head size) of attention are folded into the matrices that follow them; the half-turn of the rotary positions
is a second copy of the query and key columns.

A row's answer is bitwise the same alone and among hundreds of others. BLAS rounds a row differently in products of different shapes
(OpenBLAS does so on every processor kind we tried), so every product has one shape, whatever the batch: a prompt is one product per
row, and a decoding step goes in blocks of `BLOCK` rows, in which all rows are rounded alike. Attention runs over exactly the
positions there are, never over padding; a shared prefix and the rest of a prompt are always two separate chunks.

Limits: float32, one thread, no grouped-query attention, no biases, the default rotary type only.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

BLOCK = 4  # rows of one matrix product while decoding
MOST_ROWS = 64  # rows per member that are decoded together
MOST_PREFIXES = 512  # shared prefixes kept, over all members
PART = 8  # prompts that are computed together: more no longer fit the processor's cache
COMPACT = 16  # from this many rows on, a batch of which half is finished is shrunk to the rest


@dataclass(frozen=True, slots=True)
class Row:
    """One answer to be sampled: at most `budget` tokens from member `member`, with one draw from [0, 1) for every token.

    The first `shared` tokens of the prompt are a prefix that other rows have too. A temperature of 0 is greedy.
    """

    member: int
    prompt: tuple[int, ...]
    shared: int
    budget: int
    draws: NDArray[np.float64]
    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The sampled tokens, the end token included, and the natural log-probability of each at temperature 1."""

    tokens: list[int]
    logprobs: list[float]


@dataclass(frozen=True)
class _Layer:
    qkv: Floats  # [M, 1, W, 5HD]: queries, keys, both again with turned halves, values
    out: Floats  # [M, 1, HD, W]
    gate_up: Floats  # [M, 1, W, 2F], negated
    down: Floats  # [M, 1, F, W]


@dataclass(frozen=True)
class _Weights:
    """M stacked members: heads H of size D, width W, hidden F, vocabulary V, context C."""

    embed: Floats  # [M, V, W]
    head: Floats  # [M, 1, W, V]
    layers: tuple[_Layer, ...]
    eps: Floats  # [M, 1], times the width
    cos: Floats  # [C, M, 1, 2HD]
    sin: Floats
    heads: int

    def of(self, members: tuple[int, ...]) -> _Weights:
        chosen = list(members)
        layers = tuple(_Layer(*(part[chosen] for part in (a.qkv, a.out, a.gate_up, a.down))) for a in self.layers)
        return _Weights(
            self.embed[chosen], self.head[chosen], layers, self.eps[chosen], self.cos[:, chosen], self.sin[:, chosen], self.heads
        )

    def room(self, rows: int, length: int) -> tuple[Floats, Floats]:
        """Empty keys [layers, M, rows, H, length, D] and values [..., D + 1], whose last column of ones sums the attention's weights."""
        members, _, inner, _ = self.layers[0].out.shape
        shape = (len(self.layers), members, rows, self.heads, length, inner // self.heads)
        values = np.empty((*shape[:-1], shape[-1] + 1), np.float32)
        values[..., -1] = 1
        return np.empty(shape, np.float32), values


class Decoder:
    """An ensemble: `configs` are its members' Llama configurations, `tensors` their weights named as in transformers, `end` ends an answer.

    Prompt and answer together have at most `context` tokens. Not for use by several threads at once.
    """

    def __init__(self, configs: Sequence[Mapping[str, Any]], tensors: Sequence[Mapping[str, Floats]], context: int, end: int) -> None:
        self.context, self.end, self.members = context, end, len(configs)
        self._all = _stack(configs, tensors, context)
        self._of = lru_cache(maxsize=32)(self._all.of)
        self._prefixes: OrderedDict[tuple[int, tuple[int, ...]], tuple[Floats, Floats]] = OrderedDict()

    def answer(self, rows: Sequence[Row]) -> list[Answer]:
        """An answer for every row. Members with equally many rows and prompts, of one length, are decoded side by side."""
        parts: dict[tuple[int, int, int], list[int]] = {}
        for number, row in enumerate(rows):
            parts.setdefault((len(row.prompt), row.shared, row.member), []).append(number)
        alike: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for (length, shared, member), numbers in sorted(parts.items()):
            for start in range(0, len(numbers), MOST_ROWS):
                part = numbers[start : start + MOST_ROWS]
                prompts = len({rows[number].prompt for number in part})
                alike.setdefault((length, shared, len(part), prompts), []).append((member, part))
        answers: dict[int, Answer] = {}
        with np.errstate(over="ignore"):  # exp(-gate) may be infinite: its share is then exactly 0
            for group in alike.values():
                members, grid = tuple(member for member, _ in group), [part for _, part in group]
                found = self._decode(members, [[rows[number] for number in part] for part in grid])
                answers |= zip((number for part in grid for number in part), found, strict=True)
        return [answers[number] for number in range(len(rows))]

    def answer_probabilities(
        self, member: int, prompts: Ints, answers: Ints, temperature: float = 1.0, shared: int = 0
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The exact probability of each whole answer, float64 [N], and whether greedy decoding gives it, bool [N], by teacher forcing.

        `prompts` are tokens [N, P] and `answers` tokens [N, A] with the end token. `shared` tokens of prefix are computed once for all
        rows that have the same.
        """
        size, length = prompts.shape
        probability, greedy = np.empty(size), np.empty(size, dtype=bool)
        weights = self._of((member,))
        tokens = np.concatenate([prompts, answers[:, :-1]], axis=1)
        group = np.unique(prompts[:, :shared], axis=0, return_inverse=True)[1] if shared else np.zeros(size, dtype=np.int64)
        with np.errstate(over="ignore"):
            for which in range(group.max() + 1 if size else 0):
                numbers = np.flatnonzero(group == which)
                for start in range(0, len(numbers), PART):
                    part = numbers[start : start + PART]
                    keys, values = weights.room(len(part), tokens.shape[1])
                    if shared:
                        self._fill(keys[:, 0], values[:, 0], member, tuple(prompts[part[0], :shared].tolist()))
                    x = _extend(weights, tokens[None, part, shared:], keys, values, shared)
                    logits = (_normed(x[:, :, length - 1 - shared :], weights.eps) @ weights.head)[0].astype(np.float64)
                    wanted = np.take_along_axis(logits, answers[part][..., None], 2)[..., 0]
                    greedy[part] = (logits.argmax(-1) == answers[part]).all(1)
                    shifted = (logits - wanted[..., None]) / temperature
                    probability[part] = np.exp(-np.logaddexp.reduce(shifted, axis=-1).sum(1))
        return probability, greedy

    def _fill(self, keys: Floats, values: Floats, member: int, prefix: tuple[int, ...]) -> None:
        """Write a shared prefix's keys and values to the front of `keys`, `values` [layers, ..., H, length, D]; the latest are kept."""
        known = self._prefixes.pop((member, prefix), None)
        if known is None:
            weights = self._of((member,))
            room = weights.room(1, len(prefix))
            _extend(weights, np.array(prefix)[None, None], *room, 0)
            known = room[0][:, 0, 0], room[1][:, 0, 0]
        self._prefixes[member, prefix] = known
        if len(self._prefixes) > MOST_PREFIXES:
            self._prefixes.popitem(last=False)
        rows = (slice(None), None) if keys.ndim == 5 else ()
        keys[..., : len(prefix), :], values[..., : len(prefix), :] = known[0][rows], known[1][rows]

    def _decode(self, members: tuple[int, ...], grid: list[list[Row]]) -> list[Answer]:
        """Answers of a grid of rows [M, R] whose prompts, shared prefixes and numbers of distinct prompts are of one size."""
        rows = [row for part in grid for row in part]
        budget = np.array([row.budget for row in rows]).reshape(len(grid), -1)
        steps, least = int(budget.max()), int(budget.min())
        batch, logits = self._begin(members, grid, steps)
        draws = np.zeros((steps, len(rows)))
        for place, row in enumerate(rows):
            draws[: row.budget, place] = row.draws[: row.budget]
        choice = _Choice(rows)
        chosen, logprobs = np.empty((steps, len(rows)), np.int64), np.empty((steps, len(rows)))
        origin, alive = np.arange(len(rows)).reshape(budget.shape), np.ones(budget.shape, dtype=bool)
        for step in range(steps):
            token, logprobs[step, origin] = choice.of(logits, draws[step, origin], origin)
            chosen[step, origin] = token
            alive &= token != self.end
            if step + 1 >= least:
                alive &= budget > step + 1
            left = np.count_nonzero(alive)
            if not left:
                break
            if alive.size >= COMPACT and 2 * left <= alive.size:  # those still alive move to the front, whole members go
                kept = np.flatnonzero(alive.any(1))[:, None]
                order = np.argsort(~alive[kept[:, 0]], axis=1, kind="stable")[:, : alive.sum(1).max()]
                members = tuple(members[place] for place in kept[:, 0])
                batch = _Batch(self._of(members), batch.keys[:, kept, order], batch.values[:, kept, order], batch.at)
                origin, alive, budget, token = (part[kept, order] for part in (origin, alive, budget, token))
            logits = batch.step(token)
        answers = []
        for place, row in enumerate(rows):
            tokens = chosen[: min(step + 1, row.budget), place].tolist()
            size = tokens.index(self.end) + 1 if self.end in tokens else len(tokens)
            answers.append(Answer(tokens[:size], logprobs[:size, place].tolist()))
        return answers

    def _begin(self, members: tuple[int, ...], grid: list[list[Row]], steps: int) -> tuple[_Batch, Floats]:
        """The rows' prompts computed, each distinct one once, with room for `steps` tokens more; logits [M, R, V] of the first."""
        weights, length, shared = self._of(members), len(grid[0][0].prompt), grid[0][0].shared
        distinct = [{prompt: place for place, prompt in enumerate(dict.fromkeys(row.prompt for row in part))} for part in grid]
        keys, values = weights.room(len(distinct[0]), length + steps)
        if shared:
            for m, prompts in enumerate(distinct):
                for prompt, place in prompts.items():
                    self._fill(keys[:, m, place], values[:, m, place], members[m], prompt[:shared])
        tokens = np.array([[prompt[shared:] for prompt in prompts] for prompts in distinct])
        parts = [slice(start, start + PART) for start in range(0, len(distinct[0]), PART)]
        x = np.concatenate([_extend(weights, tokens[:, p], keys[:, :, p], values[:, :, p], shared)[:, :, -1:] for p in parts], axis=1)
        logits: Floats = (_normed(x, weights.eps) @ weights.head)[:, :, 0]
        if len(distinct[0]) < len(grid[0]):
            place_of = [[prompts[row.prompt] for row in part] for part, prompts in zip(grid, distinct, strict=True)]
            each = np.arange(len(grid))[:, None], np.array(place_of)
            keys, values, logits = keys[:, *each], values[:, *each], logits[each]
        return _Batch(weights, keys, values, length), logits


class _Choice:
    """Picks a token of every row by its draw, the way its temperature and top_p ask."""

    def __init__(self, rows: list[Row]) -> None:
        temperature = np.array([row.temperature for row in rows], np.float32)
        self.greedy = temperature == 0
        self.temperature = np.where(self.greedy, np.float32(1), temperature)
        self.top_p = np.array([row.top_p for row in rows])
        self.tempered = bool((self.temperature != 1).any())
        self.any_greedy, self.nucleus = bool(self.greedy.any()), bool((self.top_p < 1).any())

    def of(self, logits: Floats, draw: NDArray[np.float64], origin: Ints) -> tuple[Ints, NDArray[np.float64]]:
        """Tokens [M, R] and their log-probabilities at temperature 1, from logits [M, R, V] and draws [M, R]."""
        logits -= logits.max(-1, keepdims=True)
        weight = np.exp(logits)
        total = summed = weight.cumsum(-1, dtype=np.float64)
        if self.tempered:
            weight = np.exp(logits / self.temperature[origin][..., None])
            summed = weight.cumsum(-1, dtype=np.float64)
        if self.nucleus:
            summed = np.where(self.top_p[origin][..., None] < 1, _nucleus(weight, self.top_p[origin]).cumsum(-1, dtype=np.float64), summed)
        size = logits.shape[-1]
        token = (summed <= (draw * summed[..., -1])[..., None]).sum(-1)
        np.minimum(token, size - 1, out=token)
        if self.any_greedy:
            token = np.where(self.greedy[origin], logits.argmax(-1), token)
        picked = logits.reshape(-1)[token + np.arange(0, logits.size, size).reshape(token.shape)]
        return token, picked - np.log(total[..., -1])


def _nucleus(weight: Floats, top_p: NDArray[np.float64]) -> Floats:
    """The weights of the fewest tokens that together have at least `top_p` of the whole; those of all others are 0."""
    order = np.argsort(-weight, axis=-1, kind="stable")
    falling = np.take_along_axis(weight, order, -1)
    before = falling.cumsum(-1, dtype=np.float64) - falling
    kept = np.empty_like(weight)
    np.put_along_axis(kept, order, np.where(before < top_p[..., None] * falling.sum(-1, keepdims=True), falling, np.float32(0)), -1)
    return kept


class _Batch:
    """Rows [M, R] that grow by one token a step. All arrays of a step are made once; views name their parts."""

    def __init__(self, weights: _Weights, keys: Floats, values: Floats, at: int) -> None:
        self.weights, self.keys, self.values, self.at = weights, keys, values, at
        _, members, rows, heads, _, size = keys.shape
        width, hidden, inner = weights.embed.shape[2], weights.layers[0].down.shape[2], heads * size
        blocks = -(-rows // BLOCK)

        def buffer(columns: int) -> tuple[Floats, Floats]:
            """An array in blocks, as the products want it, and its rows."""
            whole = np.zeros((members, blocks, BLOCK, columns), np.float32)
            return whole, whole.reshape(members, blocks * BLOCK, columns)[:, :rows]

        self.normed_blocks, self.normed = buffer(width)
        self.qkv_blocks, qkv = buffer(5 * inner)
        self.seen_blocks, seen = buffer(inner)
        self.gate_up_blocks, gate_up = buffer(2 * hidden)
        self.gated_blocks, self.gated = buffer(hidden)
        self.added_blocks, self.added = buffer(width)
        self.logits_blocks, self.logits = buffer(weights.embed.shape[1])
        self.straight, self.turned = qkv[..., : 2 * inner], qkv[..., 2 * inner : 4 * inner]
        self.value = qkv[..., 4 * inner :].reshape(members, rows, heads, size)
        self.seen = seen.reshape(members, rows, heads, size)
        self.gate, self.up = gate_up[..., :hidden], gate_up[..., hidden:]
        self.rotated = np.empty((members, rows, 2 * inner), np.float32)
        parts = self.rotated.reshape(members, rows, 2, heads, size)
        self.query, self.key = parts[:, :, 0, :, None], parts[:, :, 1]
        self.x = np.empty((members, rows, width), np.float32)
        self.exp = np.empty((members, rows, hidden), np.float32)
        self.square = np.empty((members, rows), np.float32)
        self.embed = weights.embed.reshape(-1, width)
        self.offset = np.arange(members)[:, None] * weights.embed.shape[1]
        self.layers = list(zip(weights.layers, keys, keys.swapaxes(-1, -2), values, strict=True))

    def norm(self) -> None:
        np.vecdot(self.x, self.x, out=self.square)
        self.square += self.weights.eps
        np.sqrt(self.square, out=self.square)
        np.divide(self.x, self.square[..., None], out=self.normed)

    def step(self, tokens: Ints) -> Floats:
        """Take one token of every row, int [M, R]; the logits of the next, [M, R, V], are valid until the next step."""
        at, x = self.at, self.x
        self.embed.take(tokens + self.offset, axis=0, out=x, mode="clip")
        cos, sin = self.weights.cos[at], self.weights.sin[at]
        for layer, keys, keys_across, values in self.layers:
            self.norm()
            np.matmul(self.normed_blocks, layer.qkv, out=self.qkv_blocks)
            np.multiply(self.straight, cos, out=self.rotated)
            self.turned *= sin
            self.rotated += self.turned
            keys[..., at, :] = self.key
            values[..., at, :-1] = self.value
            weight = np.matmul(self.query, keys_across[..., : at + 1])
            weight -= np.maximum.reduce(weight, axis=-1, keepdims=True)
            np.exp(weight, out=weight)
            seen = np.matmul(weight, values[..., : at + 1, :])[..., 0, :]
            np.divide(seen[..., :-1], seen[..., -1:], out=self.seen)
            np.matmul(self.seen_blocks, layer.out, out=self.added_blocks)
            x += self.added
            self.norm()
            np.matmul(self.normed_blocks, layer.gate_up, out=self.gate_up_blocks)
            np.exp(self.gate, out=self.exp)
            self.exp += 1
            np.multiply(self.gate, self.up, out=self.gated)
            self.gated /= self.exp
            np.matmul(self.gated_blocks, layer.down, out=self.added_blocks)
            x += self.added
        self.norm()
        np.matmul(self.normed_blocks, self.weights.head, out=self.logits_blocks)
        self.at = at + 1
        return self.logits


def _normed(x: Floats, eps: Floats) -> Floats:
    """RMS norm of x [M, U, T, W] without its weights and sqrt(W), which the next matrix holds."""
    norm: Floats = np.sqrt(np.vecdot(x, x) + eps[..., None])
    return x / norm[..., None]


def _extend(weights: _Weights, tokens: Ints, keys: Floats, values: Floats, start: int) -> Floats:
    """Run tokens [M, U, T] behind `start` known positions; keys and values are written, the last layer's output [M, U, T, W] returned."""
    members, rows, length = tokens.shape
    heads, size, stop = weights.heads, keys.shape[-1], start + length
    inner = heads * size
    cos, sin = (np.moveaxis(table[start:stop], 0, 2) for table in (weights.cos, weights.sin))
    mask = np.where(np.tri(length, stop, start, dtype=bool), np.float32(0), np.float32(-np.inf))
    x = weights.embed[np.arange(members)[:, None, None], tokens]
    for layer, key, value in zip(weights.layers, keys, values, strict=True):
        qkv = _normed(x, weights.eps) @ layer.qkv
        rotated = qkv[..., : 2 * inner] * cos + qkv[..., 2 * inner : 4 * inner] * sin
        query, new_key = np.moveaxis(rotated.reshape(members, rows, length, 2, heads, size), (3, 4), (0, 3))
        key[..., start:stop, :] = new_key
        value[..., start:stop, :-1] = qkv[..., 4 * inner :].reshape(members, rows, length, heads, size).swapaxes(2, 3)
        weight = query @ key[..., :stop, :].swapaxes(-1, -2)
        weight += mask
        weight -= weight.max(-1, keepdims=True)
        np.exp(weight, out=weight)
        seen = weight @ value[..., :stop, :]
        x = x + (seen[..., :-1] / seen[..., -1:]).swapaxes(2, 3).reshape(members, rows, length, inner) @ layer.out
        gate, up = np.split(_normed(x, weights.eps) @ layer.gate_up, 2, axis=-1)
        x = x + gate * up / (1 + np.exp(gate)) @ layer.down
    return x


def _stack(configs: Sequence[Mapping[str, Any]], tensors: Sequence[Mapping[str, Floats]], context: int) -> _Weights:
    """The members' weights, padded with zeros to the largest and folded: a padded layer, head or hidden unit adds exactly nothing."""
    if any(config["rope_parameters"].get("rope_type", "default") != "default" for config in configs):
        raise ValueError("only the default rotary positions are known")
    layers, heads, vocabulary, width, hidden = (
        max(config[part] for config in configs)
        for part in ("num_hidden_layers", "num_attention_heads", "vocab_size", "hidden_size", "intermediate_size")
    )
    size = max(config["hidden_size"] // config["num_attention_heads"] for config in configs)
    members = len(configs)

    def zeros(*shape: int) -> Floats:
        return np.zeros((members, *shape), np.float32)

    stacked = _Weights(
        zeros(vocabulary, width),
        zeros(1, width, vocabulary),
        tuple(
            _Layer(zeros(1, width, 5 * heads * size), zeros(1, heads * size, width), zeros(1, width, 2 * hidden), zeros(1, hidden, width))
            for _ in range(layers)
        ),
        zeros(1),
        np.zeros((context, members, 1, 2 * heads * size), np.float32),
        np.zeros((context, members, 1, 2 * heads * size), np.float32),
        heads,
    )
    for m, (config, tensor) in enumerate(zip(configs, tensors, strict=True)):
        w, f, h = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
        d = w // h
        root = math.sqrt(w)
        stacked.eps[m] = config["rms_norm_eps"] * w
        stacked.embed[m, :, :w] = tensor["model.embed_tokens.weight"]
        stacked.head[m, 0, :w] = (tensor["model.embed_tokens.weight"] * tensor["model.norm.weight"] * root).T
        angle = np.arange(context)[:, None] * config["rope_parameters"]["rope_theta"] ** (-np.arange(0, d, 2) / d)
        for table, turn in ((stacked.cos, np.cos(angle)), (stacked.sin, np.sin(angle))):
            table[:, m, 0].reshape(context, 2 * heads, size)[..., :d] = np.concatenate([turn, turn], 1)[:, None]
        for number, layer in enumerate(stacked.layers[: config["num_hidden_layers"]]):
            part = {key.split(".", 3)[3]: value for key, value in tensor.items() if key.startswith(f"model.layers.{number}.")}
            before, between = part["input_layernorm.weight"] * root, part["post_attention_layernorm.weight"] * root
            q, k, v = ((part[f"self_attn.{name}_proj.weight"] * before).T.reshape(w, h, d) for name in "qkv")
            q = (q / math.sqrt(d)).astype(np.float32)
            columns = layer.qkv[m, 0].reshape(width, 5, heads, size)
            for place, matrix in enumerate((q, k, _turned(q), _turned(k), v)):
                columns[:w, place, :h, :d] = matrix
            layer.out[m, 0].reshape(heads, size, width)[:h, :d, :w] = part["self_attn.o_proj.weight"].T.reshape(h, d, w)
            gate_up = layer.gate_up[m, 0].reshape(width, 2, hidden)
            gate_up[:w, 0, :f], gate_up[:w, 1, :f] = (-(part[f"mlp.{name}_proj.weight"] * between).T for name in ("gate", "up"))
            layer.down[m, 0, :f, :w] = part["mlp.down_proj.weight"].T
    return stacked


def _turned(columns: Floats) -> Floats:
    """The halves of every head's columns [W, H, D] swapped, the new first half negated."""
    first, second = np.split(columns, 2, axis=-1)
    return np.concatenate([-second, first], axis=-1)
