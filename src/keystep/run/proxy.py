"""The proxy: an OpenAI-compatible endpoint whose answer to every request is the voted answer of the model behind it.

It is the model server of `keystep.lm.server` with another way of answering, so requests, models, embeddings and errors are the same.
What is more:

- headers: `X-Keystep-Key` (text, json or regex:PATTERN) says what the vote of this request goes by, `X-Keystep-Vote` (ahead-by:K,
  majority:N or first) how it is decided, up to `most_votes`;
- every choice has a `keystep` field, the vote's ledger: {votes, samples, flagged, candidates}; `usage` sums all samples;
- n > 1 gives n independent votes;
- a stream first tells how the vote goes, in chunks with an empty delta and a `keystep` field: {samples, flagged, votes};
- a vote without a winner is status 422, code "undecided", its ledger in the error's `keystep`; a spent budget is 422 "budget_spent";
- what a vote cannot give (log-probabilities) or the model cannot be asked for (penalties, ...) is refused, not ignored.

A client that leaves cancels the samples in flight. There is no authentication, and a request may cost as much as `most_votes`, the cap
and the budget allow: it is meant for one's own machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from keystep.errors import BadInput, BudgetSpent, Undecided
from keystep.lm import server
from keystep.lm.base import LM, Request
from keystep.lm.wire import Asked, Failure, usage
from keystep.run.vote import AheadBy, First, Majority, Rule
from keystep.run.voted import Decided, Tell, Voted, VoteKey, ledger
from keystep.trace import StepTrace

MOST_ANSWERS = 64  # of one request: n times the number of prompts
MOST_VOTES = 10
KEY_HEADER, VOTE_HEADER = "X-Keystep-Key", "X-Keystep-Vote"


def app(models: Mapping[str, Voted], *, default: Request | None = None, most_votes: int = MOST_VOTES) -> Starlette:
    """The ASGI application for voted models by name.

    Args:
        default: what a request that leaves temperature, top_p or max_tokens open gets.
        most_votes: the largest k or N that a request's header may ask for.
    """

    async def answered(http: HttpRequest, lm: LM, asked: Asked) -> Response:
        assert isinstance(lm, Voted)
        vote = _Vote(lm, asked, _key(http), _rule(http, lm.rule.cap, most_votes))
        if asked.stream:
            return await server.streamed(http, vote.chunks())
        whole = await server.unless_gone(http, vote.whole())
        return Response(status_code=499) if whole is None else JSONResponse(whole)

    return server.app(models, default=default, answering=answered)


class _Vote:
    """One HTTP request under way."""

    def __init__(self, lm: Voted, asked: Asked, key: VoteKey | None, rule: Rule | None) -> None:
        if asked.logprobs:
            raise BadInput("a voted answer has none", field="logprobs", value=True, mend="leave it out, or ask the model itself")
        if asked.not_carried:
            mend = "leave it out, or ask the model itself"
            raise BadInput("cannot be passed on to the models behind a vote", field=asked.not_carried[0], mend=mend)
        if sum(request.n for request in asked.requests) > MOST_ANSWERS:
            raise BadInput(f"more than {MOST_ANSWERS} voted answers at once", field="n", value=asked.requests[0].n)
        if _has(asked.requests[0].schema, "patternProperties"):
            raise BadInput("may not have patternProperties here: they could hold the server up", field="response_format")
        self.lm, self.asked, self.key, self.rule = lm, asked, key, rule

    async def whole(self) -> dict[str, Any]:
        decided = await self._decided()
        answer = self.asked.whole([each.sample for each in decided])
        for choice, each in zip(answer["choices"], decided, strict=True):
            choice["keystep"] = each.ledger
        return answer

    async def chunks(self) -> AsyncGenerator[dict[str, Any]]:
        """How the votes stand, after every sample; then the answers; then the usage, where it was asked for."""
        stands: asyncio.Queue[tuple[int, dict[str, Any]] | None] = asyncio.Queue()
        deciding = asyncio.ensure_future(self._decided(lambda index, how: stands.put_nowait((index, how))))
        deciding.add_done_callback(lambda _: stands.put_nowait(None))
        try:
            while (told := await stands.get()) is not None:
                yield self.asked.chunk(self._nothing_yet(told[0])) | {"keystep": told[1]}
            decided = await deciding
        finally:
            deciding.cancel()
            await asyncio.gather(deciding, return_exceptions=True)
        for each in decided:
            *said, end = self.asked.chunks(each.sample)
            end["choices"][0]["keystep"] = each.ledger
            for chunk in (*said, end):
                yield chunk
        if self.asked.usage_too:
            yield self.asked.chunk() | {"usage": usage(*(each.sample for each in decided))}

    def _nothing_yet(self, index: int) -> dict[str, Any]:
        said: dict[str, Any] = {"delta": {}} if self.asked.chatting else {"text": ""}
        return {"index": index, **said, "logprobs": None, "finish_reason": None}

    async def _decided(self, tell: Tell | None = None) -> list[Decided]:
        asked = self.asked
        try:
            return await self.lm.decide(
                asked.requests, vote=self.rule, key=self.key, must_call=asked.must_call, id=asked.id, tell=tell
            )  # fmt: skip
        except Undecided as error:
            raise Failure(422, "undecided", error.problem, keystep=_undecided(error.ledger)) from None
        except BudgetSpent as error:
            raise Failure(422, "budget_spent", f"{error.field}: {error.problem} (of {error.value:g})") from None


def _key(http: HttpRequest) -> VoteKey | None:
    text = _header(http, KEY_HEADER)
    if text is None:
        return None
    try:
        return VoteKey.read(text)
    except BadInput as error:
        raise BadInput(error.problem, field=KEY_HEADER, value=text, mend=error.mend or "write text, json or regex:PATTERN") from None


def _rule(http: HttpRequest, cap: int, most: int) -> Rule | None:
    text = _header(http, VOTE_HEADER)
    if text is None:
        return None
    kind, _, number = text.partition(":")
    if text == "first":
        return First(cap)
    if kind not in ("ahead-by", "majority") or not (number.isascii() and number.isdigit() and len(number) < 9):
        raise BadInput("is no rule", field=VOTE_HEADER, value=text, mend="write ahead-by:3, majority:5 or first")
    votes, most = int(number), min(most, cap)
    if not 1 <= votes <= most:
        raise BadInput(f"is from 1 to {most} on this server", field=VOTE_HEADER, value=text)
    return AheadBy(votes, cap) if kind == "ahead-by" else Majority(votes, cap)


def _header(http: HttpRequest, name: str) -> str | None:
    value = http.headers.get(name)
    try:
        return None if value is None else value.strip().encode("latin-1").decode()
    except UnicodeDecodeError:
        raise BadInput("is not UTF-8", field=name, value=value) from None


def _has(schema: Any, name: str) -> bool:
    """Whether a name stands anywhere in a schema."""
    left = [schema]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            if name in part:
                return True
            left += part.values()
        elif isinstance(part, list):
            left += part
    return False


def _undecided(trace: StepTrace) -> dict[str, Any]:
    """The ledger of a vote without a winner, with why samples were flagged and what was spent."""
    flags = [vote.flag for vote in trace.votes if vote.flag]
    return {
        **ledger(trace.candidates, trace.samples, trace.flagged),
        "flags": {flag: flags.count(flag) for flag in dict.fromkeys(flags)},
        "usage": {"prompt_tokens": trace.tokens_in, "completion_tokens": trace.tokens_out},
    }
