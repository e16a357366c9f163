"""What the reproduction of MAKER asks, beside the built-in procedures: a parser that repairs, and calls of several steps."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, cast

from keystep.errors import BadInput, Refused
from keystep.lm.base import LM, Request, Sample
from keystep.run import Flag, Procedure
from keystep.run.builtin.hanoi import Hanoi
from keystep.run.builtin.ledger import Ledger
from keystep.run.canonical import dumps

BETWEEN = "\n\n"  # the answers of one call

_MOVE = re.compile(r"move\s*=([^\n]*)", re.IGNORECASE)
_STATE = re.compile(r"next_state\s*=([^\n]*)", re.IGNORECASE)


@dataclass
class Repairing(Hanoi):
    """The tower with the baseline parser of the paper: it adds the brackets that are missing and checks nothing."""

    def parse(self, text: str, state: Any) -> Any:
        return [_repaired(_MOVE, text), _repaired(_STATE, text)]


def _repaired(pattern: re.Pattern[str], text: str) -> Any:
    """The list after the last match, whatever is in it; `Flag` where there is none even so."""
    found = pattern.findall(text)
    written = re.sub(r"[^\d,\[\]]", "", found[-1]) if found else ""
    written = re.sub(r",(?=[,\]])|(?<=\[),", "", written) + "]" * (written.count("[") - written.count("]"))
    try:
        value = json.loads(written)
    except ValueError:
        raise Flag("no list") from None
    return value


@dataclass
class Several(Procedure):
    """`inner` with `size` of its steps in every call; asked of `Chained`. State: that of `inner`; answer: the list of its answers."""

    inner: Any
    size: int
    name: str = field(default="several", init=False)

    def __post_init__(self) -> None:
        if self.inner.total() % self.size:
            raise BadInput("does not divide the steps", field="size", value=self.size)
        self.sampling = self.inner.sampling

    def start(self) -> Any:
        return self.inner.start()

    def prompt(self, state: Any) -> str:
        return dumps({"state": state, "steps": self.size})

    def parse(self, text: str, state: Any) -> Any:
        parts, answers = text.split(BETWEEN), []
        if len(parts) != self.size:
            raise Flag("too few steps")
        for part in parts:
            answers.append(self.inner.parse(part, state))
            state = self.inner.update(state, answers[-1])
        return answers

    def update(self, state: Any, answer: Any) -> Any:
        for one in answer:
            state = self.inner.update(state, one)
        return state

    def done(self, state: Any) -> bool:
        return bool(self.inner.done(state))

    def total(self) -> int:
        return int(self.inner.total() // self.size)

    def truth(self) -> Iterable[tuple[Any, Any]]:
        steps = iter(self.inner.truth())
        while call := list(islice(steps, self.size)):
            yield call[0][0], [answer for _, answer in call]

    def identity(self) -> Any:
        return {"several": self.inner.identity(), "size": self.size}


class Chained(LM):
    """A model that does several steps in one call: sample i is one member going on from its own last answer, unvoted, as a model does
    that writes all of them at once. It gets no worse in the course of a call, which models that read what they wrote do."""

    def __init__(self, lm: LM, procedure: Hanoi | Ledger) -> None:
        self.lm, self.procedure, self.name, self.members = lm, procedure, f"{lm.name}, several steps", lm.members

    def identity(self) -> Any:
        return {"chained": self.lm.identity()}

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        asked = json.loads(cast(str, request.prompt))
        numbers = range(request.first, request.first + request.n)
        for sample in await asyncio.gather(*(self._call(request, number, asked["state"], asked["steps"]) for number in numbers)):
            yield sample

    async def _call(self, request: Request, number: int, state: Any, steps: int) -> Sample:
        drawn: list[Sample] = []
        for step in range(steps):
            try:
                one = replace(request, prompt=self.procedure.prompt(state), n=1, first=number, key=f"{request.key}/{step}")
                drawn += [sample async for sample in self.lm.sample(one)]
                state = self.procedure.update(state, self.procedure.parse(drawn[-1].text, state))
            except (Flag, Refused) as error:
                if isinstance(error, Refused) and not drawn:
                    raise
                break  # it lost its way: the call ends here, too short to be valid
        return replace(
            drawn[0], text=BETWEEN.join(sample.text for sample in drawn), tokens_in=sum(sample.tokens_in for sample in drawn),
            tokens_out=sum(sample.tokens_out for sample in drawn), logprob=sum(sample.logprob or 0.0 for sample in drawn),
        )  # fmt: skip
