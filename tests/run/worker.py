"""Language models for tests: one that errs at a known rate, keyed so that batching and interruptions change nothing, and one by script."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from keystep.lm.base import LM, Request, Sample, as_finished, draw_key
from keystep.lm.embedded.problems import fitting
from keystep.worlds import hanoi

MALFORMED = (
    "",
    "I cannot say.",
    "move = [1, 0",
    "next_state = [[1], [], []]",
    "value = seven\nsum = 3",
    "move = [1, 0, 1]\nnext_state = [[1], [1], []]",
)


class Worker(LM):
    """Answers the prompts of the built-in procedures.

    `weights[0]` is the probability of the truth, `weights[j]` that of the j-th wrong answer, the rest is malformed. Every draw is keyed by
    (seed, key, index). `wrong_at` names steps (keys) that are always answered with the first wrong answer; `pause` lets other tasks run
    before every sample.
    """

    name = "worker"

    def __init__(self, weights: Sequence[float] = (1.0,), *, wrong_at: Sequence[str] = (), pause: bool = False) -> None:
        self.weights, self.wrong_at, self.pause = tuple(weights), frozenset(wrong_at), pause
        self.asked: list[tuple[str, int]] = []

    def identity(self) -> Any:
        return {"worker": list(self.weights), "wrong_at": sorted(self.wrong_at)}

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        assert isinstance(request.prompt, str)
        for index in range(request.first, request.first + request.n):
            self.asked.append((request.key, index))
            if self.pause:
                await asyncio.sleep(0)
            text = self.answer(request, index)
            yield Sample(text, index, tokens_in=len(request.prompt) if index == 0 else 0, tokens_out=len(text), model=self.name)

    def answer(self, request: Request, index: int) -> str:
        key = draw_key(request.seed, request.key, index)
        drawn, choice = (key >> 64) / 2**64, key % 2**64
        if request.key in self.wrong_at:
            return written(request.prompt, 1)
        for candidate, weight in enumerate(self.weights):
            if drawn < weight:
                return written(request.prompt, candidate)
            drawn -= weight
        return MALFORMED[choice % len(MALFORMED)]


class Logged(LM):
    """Another model; every sample asked of it is first noted in a file, as a line "key index" that outlives the process."""

    def __init__(self, model: LM, log: str | Path) -> None:
        self.model, self.name, self.members = model, model.name, model.members
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def identity(self) -> Any:
        return self.model.identity()

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        asked = range(request.first, request.first + request.n)
        os.write(self._log, "".join(f"{request.key} {index}\n" for index in asked).encode())
        async with aclosing(self.model.sample(request)) as samples:
            async for sample in samples:
                yield sample


def written(prompt: Any, candidate: int) -> str:
    """The answer to a built-in procedure's prompt: the truth (candidate 0) or one of the well-formed wrong ones (1, 2, 3)."""
    if prompt.startswith("Tower of Hanoi"):
        shown = re.search(r"^Previous move .*: (.*)\nPegs: (.*)$", prompt, re.MULTILINE)
        assert shown
        previous, pegs = None if shown[1] == "none" else json.loads(shown[1]), json.loads(shown[2])
        try:
            move = hanoi.next_move(previous, pegs)
        except IndexError:  # an earlier wrong answer left a state without a next move
            candidate = 1
        if candidate:
            move = [1, candidate % 3, (candidate + 1) % 3]  # the state stays as it is, which no true answer does
        else:
            pegs = hanoi.moved(pegs, move)
        return f"move = {move}\nnext_state = {pegs}"
    if prompt.startswith(("Long ", "Two whole numbers")):
        return _computed(prompt, candidate)
    if prompt.startswith(("The next word", "One letter", "Two pieces")):
        return _spelt(prompt, candidate)
    if prompt.startswith("One sentence of a word"):
        return _told(prompt, candidate)
    if prompt.startswith("List:"):
        return _edited(prompt, candidate)
    shown = re.search(r"^Running sum: (.*)\nNext word: (.*)$", prompt, re.MULTILINE)
    assert shown
    entry = re.search(rf"^{shown[2]} = (.*)$", prompt, re.MULTILINE)
    assert entry
    value = int(entry[1]) + candidate
    return f"value = {value}\nsum = {int(shown[1]) + value}"


def _computed(prompt: str, candidate: int) -> str:
    """The answer to a prompt of `add`, `multiply` or `sort`; a sorted pair has one wrong answer, and none where both are the same."""
    numbers = [int(number) for number in re.findall(r"-?\d+", prompt.partition("\n\n")[0])]
    if prompt.startswith("Two"):
        first, second = numbers
        kept = (first <= second) == (candidate == 0)
        return f"smaller = {'first' if kept else 'second'}\nsorted = {numbers if kept else numbers[::-1]}"
    result = numbers[0] * numbers[1] + sum(numbers[2:]) if prompt.startswith("Long multiplication") else sum(numbers)
    return f"digit = {(result + candidate) % 10}\ncarry = {result // 10}"


def _spelt(prompt: str, candidate: int) -> str:
    """The answer to a prompt of `letters`; a wrong one has other letters."""
    shown = dict(re.findall(r'^(Text|Word|First|Second): "(.*)"$', prompt, re.MULTILINE))
    if "Text" in shown:
        word, _, rest = shown["Text"].partition(" ")
        return f'answer = "{"abc"[candidate - 1] * 2 if candidate else word}"\nrest = "{rest}"'
    if "Word" in shown:
        asked = prompt.partition("1: ")[2].partition("\n")[0]
        letter = shown["Word"][-1 if asked == "last" else int(asked) - 1]
        return f'answer = "{chr(ord(letter) + candidate)}"'
    between = {"nothing": "", "a space": " ", "a comma": ",", "a semi-colon": ";"}[prompt.partition("them: ")[2].partition("\n")[0]]
    return f'answer = "{shown["First"]}{between}{shown["Second"]}{"x" * candidate}"'


def _told(prompt: str, candidate: int) -> str:
    """The answer to a reading prompt of `problem`; a wrong one has other things, or other people."""
    known = fitting(prompt.partition("\nSentence: ")[2].partition("\n")[0])
    assert known
    lines = [
        f"{who}: {operation} {' x '.join(map(str, numbers))} {what}{'es' * candidate}"
        for who, what, operation, *numbers in known[0].reading(known[1])
    ]
    return "\n".join(lines) or (f"Somebody: + {candidate} things" if candidate else "none")


def _edited(prompt: str, candidate: int) -> str:
    """The answer to a prompt of `edits`: a wrong list ends in another one of its numbers, a wrong count counts the first one too."""
    shown, _, told = prompt.partition("\n")
    items, (first, second) = json.loads(shown.removeprefix("List: ")), [*map(int, re.findall(r"\d+", told.partition(". ")[2])), 0, 0][:2]
    pairs = [f"{place}: {item}" for place, item in enumerate(items)]
    if "Count" in told:
        found = [pair for pair, item in zip(pairs, items, strict=True) if item == first] + pairs[:1] * candidate
        return f"list = [{', '.join(found)}]\ncount = {len(found)}"
    if "Swap" in told:
        pairs[first], pairs[second] = pairs[second], pairs[first]
    elif "Insert" in told:
        pairs[second:second] = [f"new: {first}"]
    elif "Delete" in told:
        pairs[first : first + 1] = []
    elif "Move" in told:
        pairs = [*pairs[first:], *pairs[:first]]
    elif "Keep" in told:
        pairs = pairs[first : second + 1]
    elif "Reverse" in told:
        pairs = pairs[::-1]
    if candidate:
        pairs[-1] = f"{candidate % len(items)}: {items[candidate % len(items)]}"
    return f"list = [{', '.join(pairs)}]"


class Scripted(LM):
    """Sample i is the i-th of some texts (the last one for ever), or what `answer(request, i)` gives; keeps the requests it was sent.

    All samples of a request are under way at once and come in order, or by `rank` (the number of turns of the loop each takes). Those
    whose number is in `hang` never come; `cancelled` tells which waits were ended from outside.
    """

    name = "scripted"

    def __init__(
        self, answer: Sequence[str] | Callable[[Request, int], str | Sample], *, members: int = 1, hang: Sequence[int] = (),
        rank: Callable[[int], int] = lambda index: index,
    ) -> None:  # fmt: skip
        if callable(answer):
            self._answer: Callable[[Request, int], str | Sample] = answer
        else:
            texts = answer
            self._answer = lambda request, index: texts[min(index, len(texts) - 1)]
        self.members, self.hang, self.rank = members, frozenset(hang), rank
        self.requests: list[Request] = []
        self.cancelled: list[int] = []

    @property
    def drawn(self) -> int:
        return sum(request.n for request in self.requests)

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        self.requests.append(request)
        async with aclosing(as_finished(self._one(request, index) for index in range(request.first, request.first + request.n))) as samples:
            async for sample in samples:
                yield sample

    async def _one(self, request: Request, index: int) -> Sample:
        try:
            if index in self.hang:
                await asyncio.Event().wait()
            for _ in range(self.rank(index)):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled.append(index)
            raise
        answer = self._answer(request, index)
        if isinstance(answer, str):
            answer = Sample(answer, tokens_in=7 if index == request.first else 0, tokens_out=len(answer))
        answer.index = index
        return answer
