"""Workers of these tests: one that knows the answer to every prompt beforehand, and one that reads a conversation and adds up."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from keystep.lm.base import LM, Request, Sample, as_messages, draw_key
from keystep.measure.procbench.bench import Direct, Stepwise
from keystep.measure.procbench.problems import Problem


class Knowing(LM):
    """Says what stands in `known` for a prompt (as text), else nothing. With probability `errs` it says `wrong` instead."""

    name = "knowing"

    def __init__(self, known: Mapping[str, str], errs: float = 0.0, wrong: str = "I cannot say.") -> None:
        self.known, self.errs, self.wrong, self.asked = known, errs, wrong, 0

    def identity(self) -> Any:
        return {"knowing": len(self.known), "errs": self.errs}

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        for index in range(request.first, request.first + request.n):
            self.asked += 1
            draw = (draw_key(request.seed, request.key, index) >> 64) / 2**64
            text = self.wrong if draw < self.errs else self.known.get(str(request.prompt), "")
            yield Sample(text, index, tokens_in=1, tokens_out=1)


def truths(problems: list[dict[str, Any]], mode: str) -> dict[str, str]:
    """prompt -> right answer, of every problem and every step of it from its true state."""
    known = {}
    for row in problems:
        problem = Problem(**row)
        states = [*problem.intermediate, problem.final]
        if mode == "direct":
            known[Direct(problem).prompt(0)] = "Here it is:\n" + json.dumps({"intermediate": problem.intermediate, "final": problem.final})
            continue
        for number, state in enumerate(states):
            text = problem.config["target"] if problem.task == 13 and isinstance(state, list) else state
            known[Stepwise(problem).prompt(states[:number])] = f"state = {json.dumps(text)}"
    return known


class Adding(LM):
    """Adds the words of the last message to the last answer it sees (0 before), off by one where `errs(turn, draw)` says so."""

    name = "adding"

    def __init__(self, errs: Callable[[int, float], bool] = lambda turn, draw: False) -> None:
        self.errs, self.requests = errs, 0
        self.longest = 0  # messages

    def identity(self) -> Any:
        return "adding"

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        system, *said = as_messages(request.prompt)
        self.longest = max(self.longest, 1 + len(said))
        _, _, entries = str(system.content).partition("The dictionary:\n")
        values = {word: int(value) for word, value in re.findall(r"^(\w+) = (-?\d+)$", entries, re.MULTILINE)}
        before = re.search(r"-?\d+", str(said[-2].content)) if len(said) > 1 else None
        total = int(before[0]) if before else 0
        sums = []
        for word in str(said[-1].content).split(", "):
            total += values[word]
            sums.append(total)
        for index in range(request.first, request.first + request.n):
            self.requests += 1
            draw = (draw_key(request.seed, request.key, index) >> 64) / 2**64
            wrong = self.errs(len(said) // 2 + 1, draw)
            if "after every single word" in str(system.content):
                text = ", ".join(map(str, sums))
            else:
                text = str(total + 1000 * (1 + index) if wrong else total)
            yield Sample(f"<think>let me see, <answer>0</answer></think><answer>{text}</answer>", index, tokens_in=1, tokens_out=1)
