"""Language models behind the OpenAI interface: `/v1/models`, `/v1/completions`, `/v1/chat/completions`, `/v1/embeddings`, `/health`.

Whole answers are made at once, so a stream has one chunk of text per choice; and a model here knows the log-probability of the whole
answer, so `logprobs` holds a single entry, whose token is the whole text. Each choice also says its own `usage`. A request with
a `seed` gives the samples that `Request(prompt, seed=seed, key="http")` gives in Python; without one a fresh seed is drawn. Fields
that this server does not know are ignored. There is no authentication: it is meant for one's own machine.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from keystep.errors import BadInput, KeystepError, ModelError, Refused
from keystep.lm.base import LM, Message, Prompt, Request, Sample, ToolCall
from keystep.lm.listen import listen

log = logging.getLogger(__name__)

MOST_CHOICES = 1024  # n times the number of prompts
MOST_TOKENS = 1_000_000
_NUMBER = (int, float)


def serve(lms: Mapping[str, LM], host: str = "127.0.0.1", port: int = 8377, *, allow_remote: bool = False) -> None:
    """Serve until interrupted.

    Raises:
        BadInput: an address that other machines reach, unless `allow_remote`; a port that is taken.
    """
    risk = "" if allow_remote else "anyone who reaches this address can use the models"
    with listen(host, port, risk=risk) as listening, suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config(app(lms), log_level="warning")).run(sockets=[listening])


def app(lms: Mapping[str, LM]) -> Starlette:
    """The ASGI application for models by name."""
    if not lms:
        raise BadInput("no model to serve", field="lms")
    served, began = dict(lms), int(time.time())

    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": began, "owned_by": "keystep"}

    def model(name: Any) -> LM:
        if not isinstance(name, str) or name not in served:
            raise _UnknownModel("no such model", field="model", value=name, mend=f"this server has {', '.join(sorted(served))}")
        return served[name]

    async def health(http: HttpRequest) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(http: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [described(name) for name in sorted(served)]})

    async def one_model(http: HttpRequest) -> Response:
        model(http.path_params["name"])
        return JSONResponse(described(http.path_params["name"]))

    async def completions(http: HttpRequest) -> Response:
        body = await _json(http)
        return await _answer(http, _Job.text(model(_field(body, "model", str, must=True)), body))

    async def chat(http: HttpRequest) -> Response:
        body = await _json(http)
        return await _answer(http, _Job.chat(model(_field(body, "model", str, must=True)), body))

    async def embeddings(http: HttpRequest) -> Response:
        body = await _json(http)
        lm = model(_field(body, "model", str, must=True))
        vectors = await lm.embed(_texts(body, "input"))
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        return JSONResponse({"object": "list", "model": body["model"], "data": data, "usage": {"prompt_tokens": 0, "total_tokens": 0}})

    routes = [
        Route("/health", health),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", one_model),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={KeystepError: _failed, HTTPException: _failed, Exception: _failed})


@dataclass(frozen=True)
class _Job:
    """One HTTP request, read: the model, one `Request` per prompt, and how the answer is to look."""

    lm: LM
    model: str
    requests: list[Request]
    chatting: bool
    logprobs: bool
    stream: bool
    usage_too: bool
    id: str
    created: int

    @classmethod
    def text(cls, lm: LM, body: dict[str, Any]) -> _Job:
        return cls._read(lm, body, list(_texts(body, "prompt")), "", False)

    @classmethod
    def chat(cls, lm: LM, body: dict[str, Any]) -> _Job:
        messages = _field(body, "messages", list, must=True)
        if not messages:
            raise BadInput("is empty", field="messages")
        read = [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
        prefix = ""
        if len(read) > 1 and read[-1].role == "assistant" and not read[-1].tool_calls and isinstance(read[-1].content, str):
            prefix = read.pop().content  # type: ignore[assignment]
        only = read[0] if len(read) == 1 and read[0].role == "user" and read[0].name is None else None
        prompt: Prompt = only.content if only and isinstance(only.content, str) else tuple(read)
        return cls._read(lm, body, [prompt], prefix, True)

    @classmethod
    def _read(cls, lm: LM, body: dict[str, Any], prompts: list[Prompt], prefix: str, chatting: bool) -> _Job:
        n = _field(body, "n", int, 1, low=1, high=MOST_CHOICES // len(prompts))
        seed = _field(body, "seed", int)
        max_tokens = _field(body, "max_tokens", int, Request("").max_tokens, low=1, high=MOST_TOKENS)
        max_tokens = _field(body, "max_completion_tokens", int, max_tokens, low=1, high=MOST_TOKENS)
        stop = _field(body, "stop", (str, list), [])
        stop = [stop] if isinstance(stop, str) else stop
        if not all(isinstance(text, str) and text for text in stop):
            raise BadInput("must be a text or a list of texts, none empty", field="stop", value=stop)
        tools = _field(body, "tools", list, []) if chatting else []
        if not all(isinstance(tool, dict) for tool in tools):
            raise BadInput("must be a list of tool definitions", field="tools", value=tools)
        shared = Request(
            "",
            n=n,
            key="http",
            seed=secrets.randbits(31) if seed is None else seed,
            temperature=float(_field(body, "temperature", _NUMBER, 1.0, low=0, high=2)),
            top_p=float(_field(body, "top_p", _NUMBER, 1.0, low=0, high=1)),
            max_tokens=max_tokens,
            stop=tuple(stop),
            prefix=prefix,
            schema=_schema(body) if chatting else None,
            tools=tuple(tools),
        )
        logprobs = _field(body, "logprobs", (bool, int))
        options = _field(body, "stream_options", dict, {})
        return cls(
            lm=lm,
            model=body["model"],
            requests=[replace(shared, prompt=prompt, first=i * n) for i, prompt in enumerate(prompts)],
            chatting=chatting,
            logprobs=bool(logprobs) if chatting or isinstance(logprobs, bool) else logprobs is not None,
            stream=_field(body, "stream", bool, False),
            usage_too=_field(options, "include_usage", bool, False, within="stream_options."),
            id=f"{'chatcmpl' if chatting else 'cmpl'}-{secrets.token_hex(12)}",
            created=int(time.time()),
        )

    async def samples(self) -> AsyncGenerator[Sample]:
        for request in self.requests:
            async with aclosing(self.lm.sample(request)) as samples:
                async for sample in samples:
                    yield sample

    def whole(self, samples: list[Sample]) -> dict[str, Any]:
        choices = [self.choice(sample) for sample in sorted(samples, key=lambda s: s.index)]
        return self.frame("chat.completion" if self.chatting else "text_completion") | {"choices": choices, "usage": _usage(*samples)}

    def frame(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def choice(self, sample: Sample) -> dict[str, Any]:
        choice = {"index": sample.index, "finish_reason": sample.finish, "logprobs": self.scores(sample), "usage": _usage(sample)}
        return choice | ({"message": _said(sample)} if self.chatting else {"text": sample.text})

    def scores(self, sample: Sample) -> dict[str, Any] | None:
        if not self.logprobs or sample.logprob is None or not math.isfinite(sample.logprob):
            return None
        if self.chatting:
            entry = {"token": sample.text, "logprob": sample.logprob, "bytes": list(sample.text.encode()), "top_logprobs": []}
            return {"content": [entry], "refusal": None}
        return {"tokens": [sample.text], "token_logprobs": [sample.logprob], "top_logprobs": None, "text_offset": [0]}

    def chunks(self, sample: Sample) -> list[dict[str, Any]]:
        """What a stream says of one sample: its text, then why it ended."""
        if not self.chatting:
            return [self.frame("text_completion") | {"choices": [self.choice(sample)]}]
        delta = _said(sample)
        for i, call in enumerate(delta.get("tool_calls", [])):
            call["index"] = i
        frame, index = self.frame("chat.completion.chunk"), sample.index
        said = {"index": index, "delta": delta, "logprobs": self.scores(sample), "finish_reason": None}
        end = {"index": index, "delta": {}, "logprobs": None, "finish_reason": sample.finish, "usage": _usage(sample)}
        return [frame | {"choices": [said]}, frame | {"choices": [end]}]


async def _answer(http: HttpRequest, job: _Job) -> Response:
    if job.stream:
        samples = job.samples()
        first = await anext(samples)  # a refusal comes before the stream has begun, as an error of its own
        return StreamingResponse(_events(job, first, samples), media_type="text/event-stream")
    work = asyncio.ensure_future(_collect(job))
    gone = asyncio.ensure_future(http.receive())  # the body is read, so all that can come is the client's leaving
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            return Response(status_code=499)
        return JSONResponse(job.whole(work.result()))
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _collect(job: _Job) -> list[Sample]:
    return [sample async for sample in job.samples()]


async def _events(job: _Job, first: Sample, rest: AsyncGenerator[Sample]) -> AsyncGenerator[str]:
    seen = [first]
    async with aclosing(rest):
        try:
            for chunk in job.chunks(first):
                yield _event(chunk)
            async for sample in rest:
                seen.append(sample)
                for chunk in job.chunks(sample):
                    yield _event(chunk)
        except Exception as error:
            log.warning("a stream broke off", exc_info=error)
            yield _event(_error(error)[1])
            return
    if job.usage_too:
        yield _event(job.frame("chat.completion.chunk" if job.chatting else "text_completion") | {"choices": [], "usage": _usage(*seen)})
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _said(sample: Sample) -> dict[str, Any]:
    said: dict[str, Any] = {"role": "assistant", "content": sample.text}
    if sample.tool_calls:
        said["tool_calls"] = [call.as_json() for call in sample.tool_calls]
    return said


def _usage(*samples: Sample) -> dict[str, int]:
    tokens_in, tokens_out = sum(s.tokens_in for s in samples), sum(s.tokens_out for s in samples)
    return {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}


class _UnknownModel(BadInput):
    pass


async def _failed(http: HttpRequest, error: Exception) -> Response:
    status, body = _error(error)
    return JSONResponse(body, status)


def _error(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body, as OpenAI's servers put it; `code` "refused" is a model that does not know this kind of prompt."""
    message, field, kind, code = str(error), getattr(error, "field", "") or None, "invalid_request_error", None
    if isinstance(error, HTTPException):
        status, message = error.status_code, error.detail
    elif isinstance(error, _UnknownModel):
        status, code = 404, "model_not_found"
    elif isinstance(error, BadInput):
        status, code = 400, "refused" if isinstance(error, Refused) else None
    else:
        status, kind = 502 if isinstance(error, ModelError) else 500, "server_error"
        message = message if isinstance(error, KeystepError) else "internal error"
    return status, {"error": {"message": message, "type": kind, "param": field, "code": code}}


async def _json(http: HttpRequest) -> dict[str, Any]:
    try:
        body = json.loads(await http.body())
        json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair could be read, but never sent back
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the body is not JSON ({error})", field="body") from None
    if not isinstance(body, dict):
        raise BadInput("must be a JSON object", field="body", value=body)
    return body


def _field(
    body: dict[str, Any],
    name: str,
    kind: type | tuple[type, ...],
    default: Any = None,
    *,
    low: float | None = None,
    high: float | None = None,
    must: bool = False,
    within: str = "",
) -> Any:
    """A field of the body, checked; null and absent are the default. A bool is not taken for a number."""
    value: Any = body.get(name)
    if value is None:
        if must:
            raise BadInput("is missing", field=within + name)
        return default
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if type(value) not in kinds:
        raise BadInput(f"must be {' or '.join(_WORDS[k] for k in kinds)}", field=within + name, value=value)
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        raise BadInput(f"must be from {low:g} to {high:g}", field=within + name, value=value)
    return value


_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", list: "a list", dict: "an object"}


def _texts(body: dict[str, Any], name: str) -> list[str]:
    value = _field(body, name, (str, list), must=True)
    texts = [value] if isinstance(value, str) else value
    if not texts or not all(isinstance(text, str) for text in texts):
        raise BadInput("must be a text or a list of texts (token numbers are not read)", field=name, value=value)
    if len(texts) > MOST_CHOICES:
        raise BadInput(f"more than {MOST_CHOICES} texts at once", field=name)
    return texts


def _schema(body: dict[str, Any]) -> dict[str, Any] | None:
    form = _field(body, "response_format", dict, {})
    kind = _field(form, "type", str, "text", within="response_format.")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        raise BadInput('must be "text", "json_object" or "json_schema"', field="response_format.type", value=kind)
    named: dict[str, Any] = _field(form, "json_schema", dict, must=True, within="response_format.")
    schema: dict[str, Any] = _field(named, "schema", dict, must=True, within="response_format.json_schema.")
    return schema


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise BadInput("must be an object", field=where, value=value)
    within = where + "."
    role = _field(value, "role", str, must=True, within=within)
    if role not in ("system", "developer", "user", "assistant", "tool"):
        raise BadInput("no such role", field=within + "role", value=role, mend="use system, user, assistant or tool")
    content = _field(value, "content", (str, list), "", must=role != "assistant", within=within)
    if isinstance(content, list) and not all(isinstance(part, dict) for part in content):
        raise BadInput("must be a text or a list of content parts", field=within + "content", value=content)
    calls = _field(value, "tool_calls", list, [], within=within)
    return Message(
        role="system" if role == "developer" else role,
        content=content,
        name=_field(value, "name", str, within=within),
        tool_calls=tuple(_tool_call(call, f"{within}tool_calls[{i}]") for i, call in enumerate(calls)),
        tool_call_id=_field(value, "tool_call_id", str, within=within),
    )


def _tool_call(value: Any, where: str) -> ToolCall:
    if not isinstance(value, dict):
        raise BadInput("must be an object", field=where, value=value)
    within = f"{where}.function."
    function = _field(value, "function", dict, must=True, within=f"{where}.")
    return ToolCall(
        id=_field(value, "id", str, "", within=f"{where}."),
        name=_field(function, "name", str, must=True, within=within),
        arguments=_field(function, "arguments", str, "{}", within=within),
    )
