"""Small transformers that continue a text, behind the language-model protocol: words, numbers and fixed phrases are their tokens.

All prompts that wait at one time are answered together, each at its own temperature, with draws keyed like every draw of the engine; a text
does not depend on what else was asked. Prompts are plain text (completion style).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keystep.errors import Refused
from keystep.lm.base import LM, Request, Sample, draw_key
from keystep.reproduce._nets import Batch

AT_ONCE = 400  # texts that are continued together


class Words:
    """Texts as numbers: the longest piece that fits comes first. After the pieces come the end of a text and filling."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self.pieces = [*dict.fromkeys(pieces)]
        self.number = {piece: number for number, piece in enumerate(self.pieces)}
        self.end, self.fill, self.count = len(self.pieces), len(self.pieces) + 1, len(self.pieces) + 2
        self._piece = re.compile("|".join(re.escape(piece) for piece in sorted(self.pieces, key=len, reverse=True)))

    def read(self, text: str) -> list[int]:
        """
        Raises:
            Refused: a part of the text is no piece.
        """
        found, at = [], 0
        while at < len(text):
            piece = self._piece.match(text, at)
            if piece is None:
                raise Refused("has parts that are no tokens", field="prompt", value=text[at : at + 40])
            found.append(self.number[piece[0]])
            at = piece.end()
        return found

    def say(self, tokens: Sequence[int]) -> str:
        return "".join(self.pieces[token] for token in tokens if token < self.end)

    def batch(self, rows: Sequence[Sequence[tuple[str, bool]]]) -> Batch:
        """Rows of (text, whether the loss counts it), each with its end, filled up to the longest."""
        read = [[(token, counts) for text, counts in row for token in self.read(text)] + [(self.end, True)] for row in rows]
        tokens = np.full((len(rows), max(map(len, read))), self.fill)
        counted = np.zeros(tokens.shape, bool)
        for number, row in enumerate(read):
            tokens[number, : len(row)] = [token for token, _ in row]
            counted[number, : len(row)] = [counts for _, counts in row]
        return tokens, counted


class Speaker(LM):
    """A net that continues prompts up to `longest` tokens, to its end or to one of the `ends` (pieces at which a text stops short)."""

    def __init__(self, name: str, model: Any, words: Words, longest: int, ends: Sequence[str] = ()) -> None:
        self.name, self.model, self.words, self.longest = name, model, words, longest
        self.ends = {words.end, words.fill, *(words.number[piece] for piece in ends)}
        self._waiting: list[tuple[Request, int, asyncio.Future[list[int]]]] = []

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        if not isinstance(request.prompt, str):
            raise Refused("continues texts, not conversations", field="prompt", value=request.prompt)
        asked = self.words.read(request.prompt)
        loop = asyncio.get_running_loop()
        numbers = range(request.first, request.first + request.n)
        mine = [loop.create_future() for _ in numbers]
        if not self._waiting:
            loop.call_soon(self._work)
        self._waiting += [(request, index, future) for index, future in zip(numbers, mine, strict=True)]
        for index, tokens in zip(numbers, await asyncio.gather(*mine), strict=True):
            paid = len(asked) if index == request.first else 0
            yield Sample(self.words.say(tokens), index, tokens_in=paid, tokens_out=len(tokens) + 1, model=self.name)

    def _work(self) -> None:
        waiting, self._waiting = self._waiting, []
        rows = [self.words.read(str(request.prompt)) for request, _, _ in waiting]
        warmth = np.array([request.temperature for request, _, _ in waiting])
        keys = [draw_key(request.seed, request.key, index) for request, index, _ in waiting]
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        for start in range(0, len(order), AT_ONCE):
            some = order[start : start + AT_ONCE]
            texts = continued(self.model, [rows[row] for row in some], warmth[some], [keys[row] for row in some], self.ends, self.longest)
            for row, text in zip(some, texts, strict=True):
                if not waiting[row][2].cancelled():
                    waiting[row][2].set_result(text)


def continued(
    model: Any, rows: Sequence[Sequence[int]], warmth: NDArray[np.float64], keys: Sequence[int], ends: set[int], longest: int
) -> list[list[int]]:
    """What the model writes after each row, without the token that ended it; a temperature of 0 is greedy."""
    import torch
    from transformers import DynamicCache

    length = max(map(len, rows))
    asked = torch.tensor([[0] * (length - len(row)) + list(row) for row in rows])
    seen = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    places = (seen.cumsum(1) - 1).clamp(min=0)
    draws = [np.random.Generator(np.random.Philox(key=key)) if heat else None for key, heat in zip(keys, warmth, strict=True)]
    found: list[list[int]] = [[] for _ in rows]
    going, cache = np.arange(len(rows)), DynamicCache()
    with torch.inference_mode():
        for _ in range(longest):
            out = model(input_ids=asked, attention_mask=seen, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1)
            scores = out.logits[:, -1].double().numpy()
            for place, at in enumerate(going):
                draw = draws[at]
                if draw is not None:
                    scores[place] = scores[place] / warmth[at] + draw.gumbel(size=scores.shape[1])
            chosen = scores.argmax(1)
            kept = np.array([token not in ends for token in chosen])
            for number, token in zip(going[kept], chosen[kept], strict=True):
                found[number].append(int(token))
            if not kept.any():
                break
            if not kept.all():
                cache.batch_select_indices(torch.from_numpy(np.flatnonzero(kept)))
            going, stay = going[kept], torch.from_numpy(kept)
            asked = torch.from_numpy(chosen[kept])[:, None]
            seen = torch.cat([seen[stay], torch.ones_like(asked)], 1)
            places = places[stay][:, -1:] + 1
    return found
