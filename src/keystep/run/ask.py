"""One ask: sample, red-flag, parse, vote, until the rule has a winner (MAKER, arXiv 2511.09030, `do_vote` and `get_vote`).

The candidate a sample votes for is its whole parsed answer as canonical JSON, so that two answers that agree in part are still two
candidates; a `key` function can name what counts instead (for free-form answers). A flagged sample is thrown away and drawn again,
never repaired.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from keystep.errors import Undecided
from keystep.lm.base import LM, Prompt, Request, Sample, as_finished
from keystep.run.budget import Budget, Meter
from keystep.run.canonical import dumps
from keystep.run.faults import point
from keystep.run.flags import Flag, RedFlag
from keystep.run.vote import AheadBy, Rule
from keystep.trace import StepTrace, Vote

if TYPE_CHECKING:
    from keystep.run.tracing import RunSpans

Parse = Callable[[str], Any]
Key = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How samples are drawn; the fields are those of `keystep.lm.Request`. The very first sample of a step may have a temperature of its
    own (MAKER draws it at 0)."""

    temperature: float = 1.0
    first_temperature: float | None = None
    top_p: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    prefix: str = ""
    schema: dict[str, Any] | None = None
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Asking:
    """What an ask is done with: the model, the rule, the flags, the sampling, and where its spans go."""

    lm: LM
    rule: Rule = field(default_factory=AheadBy)
    flags: tuple[RedFlag, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    budget: Budget = field(default_factory=Budget)
    spans: RunSpans | None = None

    def identity(self) -> dict[str, Any]:
        """What decides the answers, as JSON."""
        flags = [repr(flag) if not hasattr(flag, "__code__") else getattr(flag, "__qualname__", "flag") for flag in self.flags]
        return {"model": self.lm.identity(), "vote": repr(self.rule), "flags": flags, "sampling": repr(self.sampling), "seed": self.seed}


@dataclass(slots=True)
class Answer:
    """A decided step: the winning value, its text and canonical JSON, and what it took."""

    value: Any
    json: str
    text: str = ""
    samples: int = 0
    flagged: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    cost: float = 0.0
    votes: list[tuple[Sample, str | None, str | None]] = field(default_factory=list)  # sample, key, flag

    def trace(self, step: str, decided: bool = True) -> StepTrace:
        votes = [
            Vote(index=s.index, text=s.text, key=key, flag=flag, model=s.model, tokens_out=s.tokens_out, logprob=s.logprob)
            for s, key, flag in self.votes
        ]
        return StepTrace(
            step=step, answer=self.value, decided=decided, samples=self.samples, flagged=self.flagged, candidates=self.counts, votes=votes,
            tokens_in=self.tokens_in, tokens_out=self.tokens_out, seconds=self.seconds, cost=self.cost,
        )  # fmt: skip


def plain(text: str) -> str:
    """The default parser: the text without surrounding white space; nothing is no answer."""
    text = text.strip()
    if not text:
        raise Flag("empty")
    return text


async def ask(
    asking: Asking,
    prompts: Sequence[Prompt],
    where: str,
    meter: Meter,
    *,
    parse: Parse = plain,
    key: Key | None = None,
    leader: Callable[[Any, str], None] | None = None,
) -> Answer:
    """Decide one step.

    Args:
        prompts: paraphrases of one prompt; after every round over the model's members the next one is used.
        where: the step's address; with the seed and the sample's number it keys every random draw.
        leader: called with (value, key) of the sole leader whenever a round ends undecided (for speculation).

    Raises:
        Undecided: the rule's cap is reached without a winner, or without any valid answer.
        BudgetSpent, ModelError, Refused.
    """
    if asking.spans is not None:
        return await asking.spans.step(asking, prompts, where, meter, parse=parse, key=key, leader=leader)
    answer = Answer(value=None, json="")
    read = _Reader(asking.flags, parse, key)
    rule, counts, started = asking.rule, answer.counts, time.perf_counter()
    winner = None
    while winner is None:
        wanted = min(rule.wanted(counts), rule.cap - answer.samples)
        if wanted <= 0:
            answer.seconds = time.perf_counter() - started
            raise _undecided(answer, where)
        flying = meter.room(asking.budget, wanted)
        point("before-ask")
        requests = _requests(asking, prompts, where, answer.samples, flying)
        try:
            async with aclosing(asking.lm.sample(requests[0]) if len(requests) == 1 else _in_parts(asking.lm, requests)) as drawn:
                async for sample in drawn:
                    flying -= 1
                    meter.flying -= 1
                    meter.add(sample)
                    name, flag = read(sample)
                    if name is None:
                        answer.flagged += 1
                        meter.flagged += 1
                    else:
                        counts[name] = counts.get(name, 0) + 1
                    answer.samples += 1
                    answer.tokens_in += sample.tokens_in
                    answer.tokens_out += sample.tokens_out
                    answer.cost += sample.cost
                    answer.votes.append((sample, name, flag))
                    winner = rule.winner(counts)
                    if winner is not None:
                        break  # closing `drawn` cancels what is still under way
        finally:
            meter.flying -= flying  # what will not come any more
        if winner is None and leader is not None and counts:
            ranked = sorted(counts, key=lambda name: -counts[name])
            if len(ranked) == 1 or counts[ranked[0]] > counts[ranked[1]]:
                leader(read.values[ranked[0]][0], ranked[0])
    answer.value, answer.text = read.values[winner]
    answer.json = winner if key is None else dumps(answer.value)
    answer.seconds = time.perf_counter() - started
    point("after-vote")
    return answer


class _Reader:
    """Reads the samples of one step as votes. `values` are the candidates' (value, text), kept as JSON gives the value back, so that a
    resumed run goes on from the very same one."""

    __slots__ = ("flags", "key", "names", "parse", "values")

    def __init__(self, flags: Sequence[RedFlag], parse: Parse, key: Key | None) -> None:
        self.flags, self.parse, self.key = flags, parse, key
        self.values: dict[str, tuple[Any, str]] = {}
        self.names: dict[str, str] = {}  # candidates of the texts read so far: the same text is the same vote

    def __call__(self, sample: Sample) -> tuple[str, None] | tuple[None, str]:
        """The candidate that the sample votes for, or why it is flagged."""
        text = sample.text
        try:
            text.encode()  # half a surrogate pair could not be journaled
            for check in self.flags:
                if reason := check(sample):
                    return None, reason
            name = self.names.get(text)
            if name is None:
                name = self.names[text] = self._candidate(text)
            return name, None
        except Flag as raised:
            return None, str(raised) or "malformed"
        except UnicodeEncodeError:
            sample.text = text.encode(errors="replace").decode()
            return None, "not Unicode"
        except ValueError as raised:  # what int() and json.loads() raise: the same as a Flag
            return None, f"malformed: {raised}"

    def _candidate(self, text: str) -> str:
        value = self.parse(text)
        written = dumps(value)
        name = written if self.key is None else dumps(self.key(value))
        if name not in self.values:
            self.values[name] = (json.loads(written), text)
        return name


def _requests(asking: Asking, prompts: Sequence[Prompt], where: str, first: int, n: int) -> list[Request]:
    s = asking.sampling
    base = Request(
        prompts[0], n=n, first=first, key=where, seed=asking.seed, temperature=s.temperature, top_p=s.top_p, max_tokens=s.max_tokens,
        stop=s.stop, prefix=s.prefix, schema=s.schema, tools=s.tools,
    )  # fmt: skip
    if len(prompts) == 1 and (s.first_temperature is None or first > 0):
        return [base]
    requests: list[Request] = []
    for index in range(first, first + n):
        prompt = prompts[index // asking.lm.members % len(prompts)]
        temperature = s.first_temperature if index == 0 and s.first_temperature is not None else s.temperature
        last = requests[-1] if requests else None
        if last is not None and last.prompt is prompt and last.temperature == temperature:
            requests[-1] = replace(last, n=last.n + 1)
        else:
            requests.append(replace(base, prompt=prompt, n=1, first=index, temperature=temperature))
    return requests


async def _in_parts(lm: LM, requests: list[Request]) -> AsyncGenerator[Sample]:
    async def all_of(request: Request) -> list[Sample]:
        async with aclosing(lm.sample(request)) as drawn:
            return [sample async for sample in drawn]

    async with aclosing(as_finished(all_of(request) for request in requests)) as finished:
        async for some in finished:
            for sample in some:
                yield sample


def _undecided(answer: Answer, where: str) -> Undecided:
    step = where.removeprefix("0/")
    ledger = answer.trace(step, decided=False)
    if not answer.counts:
        reasons = sorted({vote.flag for vote in ledger.votes if vote.flag})
        return Undecided(f"none of {answer.samples} samples was a valid answer: {', '.join(reasons)}", step=step, ledger=ledger)
    shown = ", ".join(f"{count} for {name[:60]}" for name, count in sorted(answer.counts.items(), key=lambda item: -item[1])[:3])
    return Undecided(f"no winner after {answer.samples} samples: {shown}", step=step, ledger=ledger)
