"""OpenTelemetry spans of a run: one for the run, below it one per step, below that one per call of a model.

Names and attributes of calls are those of the GenAI semantic conventions (github.com/open-telemetry/semantic-conventions-genai, in
development); what they have no name for is `keystep.*`. Tokens stand as `gen_ai.usage.*` on calls only, so that a sum over all spans counts
them once. No prompt and no answer leaves the process unless `content` is set, and then with secrets taken out.

Where a run has no `Tracing`, nothing here is imported and an ask pays one comparison. A run of a million steps has millions of spans:
which of them are kept is the SDK's affair (OTEL_TRACES_SAMPLER). What this does not cover: metrics, and spans of tools' own calls.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from keystep.errors import MissingExtra, Undecided
from keystep.lm.base import LM, Prompt, Request, Sample, as_messages
from keystep.lm.redact import redact
from keystep.run.ask import Answer, Asking, ask
from keystep.run.budget import Meter
from keystep.trace import StepTrace

try:
    from opentelemetry import context as contexts
    from opentelemetry import trace
    from opentelemetry.trace import SpanKind, Status, StatusCode
except ImportError:
    raise MissingExtra("tracing", "otel") from None

MOST_CANDIDATES = 10  # events of one step
# Reasons of flags that say nothing of the answer; a parser's own may quote it.
_PLAIN = (
    "empty", "malformed", "too long", "unsure", "not JSON", "not by the schema", "no match", "not Unicode", "not int", "not float",
    "not finite", "the match took too long", "unknown tool", "no tool called",
)  # fmt: skip
_WITHIN = contexts.create_key("keystep-run")


class Tracing:
    """What a run's spans go to: `Run(…, tracing=Tracing())`.

    Args:
        tracer: an OpenTelemetry tracer; None takes one of the global provider.
        content: whether prompts and answers are written into the spans.
    """

    def __init__(self, tracer: trace.Tracer | None = None, *, content: bool = False) -> None:
        self.tracer = tracer or trace.get_tracer("keystep")
        self.content = content

    def of(self, run: str) -> RunSpans:
        return RunSpans(self, run)


class RunSpans:
    """The spans of one run. A step asked while the run is not open (by a forecast, say) has no parent of keystep's."""

    def __init__(self, tracing: Tracing, run: str) -> None:
        self.tracer, self.content, self.run = tracing.tracer, tracing.content, run
        self._span: trace.Span | None = None
        self._context: contexts.Context | None = None

    def begin(self, name: str) -> None:
        about = {"gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": name, "keystep.run.id": self.run}
        self._span = self.tracer.start_span(f"invoke_workflow {name}", attributes=about)
        self._context = contexts.set_value(_WITHIN, self, trace.set_span_in_context(self._span))

    def failed(self, error: BaseException) -> None:
        if self._span is not None:
            self._fail(self._span, error)

    def end(self, status: str, meter: Meter) -> None:
        if self._span is None:
            return
        self._span.set_attributes({
            "keystep.run.status": status, "keystep.run.steps": meter.steps, "keystep.run.samples": meter.calls,
            "keystep.run.flagged": meter.flagged, "keystep.usage.input_tokens": meter.tokens_in,
            "keystep.usage.output_tokens": meter.tokens_out, "keystep.usage.cost": meter.cost,
        })  # fmt: skip
        self._span.end()
        self._span = self._context = None

    @contextmanager
    def running(self, name: str, meter: Meter) -> Iterator[None]:
        """The run's span around work that is a run of its own but keeps no journal."""
        self.begin(name)
        status = "stopped"
        try:
            yield
            status = "finished"
        except BaseException as error:
            self.failed(error)
            raise
        finally:
            self.end(status, meter)

    @contextmanager
    def within(self, place: str, skill: str) -> Iterator[None]:
        """A plan's step; what is asked in it stands below it."""
        with self._below(f"step {skill}", {"keystep.step": place, "keystep.skill": skill}) as (_, here):
            token = contexts.attach(here)
            try:
                yield
            finally:
                contexts.detach(token)

    async def step(self, asking: Asking, prompts: Sequence[Prompt], where: str, meter: Meter, **more: Any) -> Answer:
        """`ask`, as a span with a span for each call of the model."""
        with self._below("vote", {"keystep.step": where, "keystep.vote.rule": repr(asking.rule)}) as (span, here):
            # It is not made the current one: a step that is begun ahead within this one is no part of it.
            traced = replace(asking, spans=None, lm=_Traced(asking.lm, self, here))
            try:
                answer = await ask(traced, prompts, where, meter, **more)
            except Undecided as error:
                self._tell(span, error.ledger)
                raise
            self._tell(span, answer.trace(where))
            return answer

    @contextmanager
    def _below(self, name: str, about: dict[str, Any]) -> Iterator[tuple[trace.Span, contexts.Context]]:
        """A span below the one of this run that we are in, and the context for what stands below it."""
        here = contexts.get_current()
        parent = here if self._context is None or contexts.get_value(_WITHIN, here) is self else self._context
        span = self.tracer.start_span(name, parent, attributes=about)
        try:
            yield span, trace.set_span_in_context(span, parent)
        except BaseException as error:
            self._fail(span, error)
            raise
        finally:
            span.end()

    def _fail(self, span: trace.Span, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError | GeneratorExit):  # it was not needed any more: no failure of its own
            span.set_attribute("keystep.cancelled", True)
            return
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(Status(StatusCode.ERROR, redact(str(error)) if self.content else None))

    def _tell(self, span: trace.Span, step: StepTrace) -> None:
        ranked = sorted(step.candidates.items(), key=lambda item: -item[1])
        span.set_attributes({
            "keystep.vote.decided": step.decided, "keystep.vote.samples": step.samples, "keystep.vote.flagged": step.flagged,
            "keystep.vote.candidates": len(ranked), "keystep.vote.votes": ranked[0][1] if ranked else 0,
            "keystep.usage.input_tokens": step.tokens_in, "keystep.usage.output_tokens": step.tokens_out,
            "keystep.usage.cost": step.cost,
        })  # fmt: skip
        for rank, (answer, votes) in enumerate(ranked[:MOST_CANDIDATES] if len(ranked) > 1 or self.content else ()):
            said = {"keystep.candidate.answer": redact(answer)} if self.content else {}
            span.add_event("keystep.candidate", {"keystep.candidate.rank": rank, "keystep.candidate.votes": votes, **said})
        for vote in step.votes:
            if vote.flag:
                span.add_event("keystep.flag", {"keystep.sample": vote.index, "keystep.flag": self._reason(vote.flag)})

    def _reason(self, flag: str) -> str:
        if self.content:
            return redact(flag)
        return next((plain for plain in _PLAIN if flag.startswith(plain)), "other")


class _Traced(LM):
    """A model whose every call is a span."""

    def __init__(self, lm: LM, spans: RunSpans, parent: contexts.Context) -> None:
        self.lm, self.name, self.members, self.spans, self.parent = lm, lm.name, lm.members, spans, parent

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        spans = self.spans
        about, kind = _request(self.lm, request)
        span = spans.tracer.start_span(f"{about['gen_ai.operation.name']} {self.name}", self.parent, kind, about)
        here, come = trace.set_span_in_context(span, self.parent), list[Sample]()
        try:
            async with aclosing(self.lm.sample(request)) as samples:
                while True:
                    # The span is the current one while the model works, and only then: between two samples others have their turn.
                    token = contexts.attach(here)
                    try:
                        sample = await anext(samples, None)
                    finally:
                        contexts.detach(token)
                    if sample is None:
                        break
                    come.append(sample)
                    yield sample
        except BaseException as error:
            if len(come) < request.n:  # a vote closes the call also when its last sample decided it
                spans._fail(span, error)
            raise
        finally:
            span.set_attributes(_response(come))
            if spans.content:
                span.set_attribute("gen_ai.input.messages", _text([_input(message) for message in as_messages(request.prompt)]))
                span.set_attribute("gen_ai.output.messages", _text([_output(sample) for sample in come]))
            span.end()


def _request(lm: LM, request: Request) -> tuple[dict[str, Any], SpanKind]:
    """What is known before the call."""
    innermost: Any = lm
    while isinstance(inner := getattr(innermost, "lm", None), LM):
        innermost = inner
    address = getattr(innermost, "base_url", None)
    chatting = innermost.api == "chat" if address else not isinstance(request.prompt, str)
    about: dict[str, Any] = {
        "gen_ai.operation.name": "chat" if chatting else "text_completion",
        "gen_ai.provider.name": "openai" if address else "keystep",
        "gen_ai.request.model": lm.name,
        "gen_ai.request.temperature": float(request.temperature),
        "gen_ai.request.top_p": float(request.top_p),
        "gen_ai.request.max_tokens": request.max_tokens,
    }
    if address:
        parts = urlsplit(address)
        about |= {"server.address": parts.hostname or "", "server.port": parts.port or (443 if parts.scheme == "https" else 80)}
    if request.n != 1:
        about["gen_ai.request.choice.count"] = request.n
    if abs(request.seed) < 2**63:
        about["gen_ai.request.seed"] = request.seed
    if request.stop:
        about["gen_ai.request.stop_sequences"] = list(request.stop)
    if request.schema is not None:
        about["gen_ai.output.type"] = "json"
    return about, SpanKind.CLIENT if address else SpanKind.INTERNAL


def _response(samples: Sequence[Sample]) -> dict[str, Any]:
    models = sorted({sample.model for sample in samples if sample.model})
    about: dict[str, Any] = {
        "gen_ai.response.finish_reasons": [sample.finish for sample in samples],
        "gen_ai.usage.input_tokens": sum(sample.tokens_in for sample in samples),
        "gen_ai.usage.output_tokens": sum(sample.tokens_out for sample in samples),
    }
    return about | ({"gen_ai.response.model": ",".join(models)} if models else {})


def _input(message: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    if message.role == "tool":
        parts.append({"type": "tool_call_response", "id": message.tool_call_id, "response": message.content})
    elif isinstance(message.content, str):
        parts.append({"type": "text", "content": message.content})
    else:
        parts += message.content
    return {"role": message.role, "parts": parts + _calls(message)}


def _output(sample: Sample) -> dict[str, Any]:
    finish = "tool_call" if sample.finish == "tool_calls" else sample.finish
    return {"role": "assistant", "parts": [{"type": "text", "content": sample.text}, *_calls(sample)], "finish_reason": finish}


def _calls(said: Any) -> list[dict[str, Any]]:
    return [{"type": "tool_call", "id": call.id, "name": call.name, "arguments": call.arguments} for call in said.tool_calls]


def _text(value: Any) -> str:
    return json.dumps(redact(value), ensure_ascii=False)
