"""Voted: a model whose every answer is the one that another model's samples agreed on. The proxy serves it; DSPy can be given it.

Every request is a run of its own, with its own meter, budget and, where one is named, journal: nothing goes from one request to the
next. A request for n answers gets n independent votes. What a vote goes by is a `VoteKey`; a schema that the request brings flags what
does not follow it, and calls of tools are compared by name and arguments. The winner's text is that of its first sample, word for word.
A voted answer has no log-probability.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keystep.errors import BadInput
from keystep.lm.base import LM, Request, Sample, ToolCall, as_finished, draw_key, tool_name
from keystep.run.ask import Answer, Asking, Sampling, ask, plain
from keystep.run.budget import Budget, Meter
from keystep.run.canonical import dumps
from keystep.run.flags import Flag, RedFlag
from keystep.run.reading import by_last_match, by_schema, json_value
from keystep.run.run import Context, Run
from keystep.run.vote import AheadBy, Rule
from keystep.task import Task

if TYPE_CHECKING:
    from keystep.run.tracing import Tracing

LONGEST_PATTERN = 1000


@dataclass(frozen=True, slots=True)
class VoteKey:
    """What a vote goes by: `text` as it is but for white space around it, `json` the value (1 and 1.0 are the same), `regex` the last
    match of `pattern`. What is no JSON, or does not match, is flagged and drawn again."""

    kind: str = "text"
    pattern: str = ""

    def __post_init__(self) -> None:
        if self.kind not in ("text", "json", "regex"):
            raise BadInput("is no key of a vote", field="key", value=self.kind, mend="write text, json or regex:PATTERN")
        if (self.kind == "regex") != bool(self.pattern):
            raise BadInput("a pattern belongs to regex, and only to it", field="key", value=str(self), mend="write regex:PATTERN")
        if len(self.pattern) > LONGEST_PATTERN:
            raise BadInput(f"is longer than {LONGEST_PATTERN} characters", field="key", value=self.pattern)
        if self.pattern:
            by_last_match(self.pattern, "key")

    @classmethod
    def read(cls, text: str) -> VoteKey:
        """The key of "text", "json" or "regex:PATTERN"."""
        kind, _, pattern = text.partition(":")
        return cls(kind, pattern)

    def __str__(self) -> str:
        return f"{self.kind}:{self.pattern}" if self.pattern else self.kind

    def reader(self) -> Callable[[str], Any]:
        if self.kind == "regex":
            return by_last_match(self.pattern, "key")
        return (lambda text: json_value(text, _number)) if self.kind == "json" else plain


@dataclass(frozen=True, slots=True)
class Decided:
    """One voted answer: the winner's first sample, with the tokens and the cost of the whole vote, and how the vote went."""

    sample: Sample
    ledger: dict[str, Any]


Tell = Callable[[int, dict[str, Any]], None]  # the number of the answer, and how its vote stands


class Voted(LM):
    """`lm`, with every answer voted on.

    Args:
        vote: the rule that decides an answer.
        key: what the vote goes by (text); of a request with a schema it is `json`.
        flags: red flags that every sample has to pass.
        budget: of every single request.
        journal: a path or a database URL; None keeps nothing.
        tracing: OpenTelemetry spans of every request; None makes none.
    """

    def __init__(
        self, lm: LM, *, vote: Rule | None = None, key: VoteKey | str | None = None, flags: Sequence[RedFlag] = (),
        budget: Budget | None = None, journal: str | Path | None = None, tracing: Tracing | None = None,
    ) -> None:  # fmt: skip
        self.lm, self.name, self.rule, self.flags = lm, lm.name, AheadBy() if vote is None else vote, tuple(flags)
        self.key = VoteKey.read(key) if isinstance(key, str) else key or VoteKey()
        self.budget, self.journal, self.tracing = budget or Budget(), journal, tracing

    def identity(self) -> Any:
        return {"voted": self.lm.identity(), "vote": repr(self.rule), "key": str(self.key), "flags": [repr(flag) for flag in self.flags]}

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        """Every sample is decided by a vote of its own.

        Raises:
            Undecided, BudgetSpent, and what the model raises.
        """
        for decided in await self.decide([request]):
            yield decided.sample

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return await self.lm.embed(texts)

    async def close(self) -> None:
        await self.lm.close()

    async def decide(
        self, requests: Sequence[Request], *, vote: Rule | None = None, key: VoteKey | None = None, must_call: bool = False,
        id: str | None = None, tell: Tell | None = None,
    ) -> list[Decided]:  # fmt: skip
        """The answers of requests that differ in their prompts only, as one run; `vote` and `key` go before all others.

        Args:
            must_call: flag what calls no tool.
            id: the run's name in the journal.
            tell: called after every sample.
        """
        first = requests[0]
        wanted = key or (VoteKey("json") if first.schema is not None else self.key)
        votes = VotedAnswers(requests, wanted, must_call, self.flags, tell or (lambda index, stands: None))
        rule, seed = vote or self.rule, draw_key(first.seed, first.key) & 0x7FFFFFFF
        if self.journal is None:
            spans = None if self.tracing is None else self.tracing.of(id or "")
            return await votes.taken(Asking(self.lm, rule, seed=seed, budget=self.budget, spans=spans))
        run = Run(
            self.lm, vote=rule, flags=self.flags, budget=self.budget, journal=self.journal, id=id, seed=seed, tracing=self.tracing
        )  # fmt: skip
        try:
            await run.solve(votes, Task(goal="voted answers"))
            return votes.decided
        finally:
            run.close()


class VotedAnswers:
    """The votes of one run, side by side."""

    def __init__(self, requests: Sequence[Request], key: VoteKey, must_call: bool, flags: tuple[RedFlag, ...], tell: Tell) -> None:
        self.requests, self.key, self.must_call, self.flags, self.tell = requests, key, must_call, flags, tell
        self.check = None if requests[0].schema is None else by_schema(requests[0].schema, "response_format.json_schema.schema")
        self.decided: list[Decided] = []

    def __repr__(self) -> str:
        return f"{sum(request.n for request in self.requests)} answers by {self.key}"

    async def solve(self, task: Task, ctx: Context) -> list[dict[str, Any]]:
        """Decide all in a run with a journal; gives what the journal keeps of them as the run's result."""

        async def asked(request: Request, index: int, reading: _Reading) -> Answer:
            return await ctx.at(str(index)).ask(request.prompt, parse=reading.parse, flags=(reading,), **_sampling(request))

        self.decided = await self._all(asked)
        return [{"index": each.sample.index, "text": each.sample.text, **each.ledger} for each in self.decided]

    async def taken(self, asking: Asking) -> list[Decided]:
        """Decide all and keep nothing: the same votes, at the same addresses, without the price of a journal."""
        meter = Meter()

        async def asked(request: Request, index: int, reading: _Reading) -> Answer:
            this = replace(asking, flags=(reading,), sampling=Sampling(**_sampling(request)))
            answer = await ask(this, (request.prompt,), f"0/{index}/0", meter, parse=reading.parse)
            meter.steps += 1
            return answer

        with nullcontext() if asking.spans is None else asking.spans.running(type(self).__name__, meter):
            return await self._all(asked)

    async def _all(self, asked: Callable[[Request, int, _Reading], Awaitable[Answer]]) -> list[Decided]:
        async def vote(request: Request, index: int) -> Decided:
            reading = _Reading(request, self.key, self.check, self.must_call, self.flags, lambda stands: self.tell(index, stands))
            return _decided(await asked(request, index, reading), index)

        votes = [vote(request, index) for request in self.requests for index in range(request.first, request.first + request.n)]
        async with aclosing(as_finished(votes)) as finished:
            return sorted([decided async for decided in finished], key=lambda decided: decided.sample.index)


def _sampling(request: Request) -> dict[str, Any]:
    return {name: getattr(request, name) for name in ("temperature", "top_p", "max_tokens", "stop", "prefix", "schema", "tools")}


def _decided(answer: Answer, index: int) -> Decided:
    winner = min((sample for sample, name, _ in answer.votes if name == answer.json), key=lambda sample: sample.index)
    sample = replace(
        winner, index=index, logprob=None, tokens_in=answer.tokens_in, tokens_out=answer.tokens_out, cost=answer.cost,
        seconds=answer.seconds,
    )  # fmt: skip
    return Decided(sample, {"votes": answer.counts[answer.json]} | ledger(answer.counts, answer.samples, answer.flagged))


class _Reading:
    """What one sample counts for. It is a flag, because a flag sees the whole sample and a parser only its text."""

    def __init__(
        self, request: Request, key: VoteKey, check: Callable[[Any], None] | None, must_call: bool, flags: Sequence[RedFlag],
        tell: Callable[[dict[str, Any]], None],
    ) -> None:  # fmt: skip
        self.prefix, self.kind, self.read, self.check = request.prefix, key.kind, key.reader(), check
        self.tools, self.must_call, self.flags, self.tell = {tool_name(tool) for tool in request.tools}, must_call, flags, tell
        self.value: Any = None
        self.samples = self.flagged = 0
        self.votes: Counter[str] = Counter()

    def __call__(self, sample: Sample) -> str | None:
        flag = next((reason for reason in (check(sample) for check in self.flags) if reason), None)
        if flag is None:
            try:
                self.value = self._called(sample.tool_calls) if sample.tool_calls else self._said(sample.text)
                self.votes[dumps(self.value)] += 1
            except Flag as raised:
                flag = str(raised)
        self.samples += 1
        self.flagged += flag is not None
        self.tell({"samples": self.samples, "flagged": self.flagged, "votes": sorted(self.votes.values(), reverse=True)})
        return flag

    def parse(self, text: str) -> Any:
        """The value of the sample that passed just before."""
        return self.value

    def _said(self, text: str) -> Any:
        if self.must_call:
            raise Flag("no tool called")
        value = self.read(text if self.kind == "text" else self.prefix + text)
        if self.check is not None:
            self.check(value if self.kind == "json" else json_value(self.prefix + text, _number))
        return value

    def _called(self, calls: tuple[ToolCall, ...]) -> Any:
        if any(call.name not in self.tools for call in calls):
            raise Flag("unknown tool")
        return {"tool_calls": [{"name": call.name, "arguments": json_value(call.arguments, _number)} for call in calls]}


def _number(text: str) -> float | int:
    """A JSON number with a point or an exponent; a whole one is the integer, as far as both are exact."""
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def ledger(counts: Mapping[str, int], samples: int, flagged: int) -> dict[str, Any]:
    """How a vote went: the most votes first."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    candidates = [{"answer": json.loads(name), "votes": count} for name, count in ranked]
    return {"samples": samples, "flagged": flagged, "candidates": candidates}
