"""The OpenAI interface on the wire: requests read and checked, answers, chunks and errors framed. The model server and the proxy share it.

Whole answers are made at once, so a stream has one chunk of text per choice; and a model here knows the log-probability of the whole
answer, so `logprobs` holds a single entry, whose token is the whole text. Each choice also says its own `usage`. Fields that are not
known here are ignored.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from dataclasses import dataclass, replace
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest

from keystep.errors import BadInput, KeystepError, ModelError, Refused
from keystep.lm.base import Message, Prompt, Request, Sample, ToolCall, tool_name

MOST_CHOICES = 1024  # n times the number of prompts
MOST_TOKENS = 1_000_000
MOST_BYTES = 64 * 2**20  # of a request's body
_NUMBER = (int, float)
# Fields of the interface that no `Request` can carry, with the values that ask for nothing.
_NOT_CARRIED: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "top_logprobs": (0,), "best_of": (1,), "echo": (False,),
    "suffix": ("",), "modalities": (["text"],), "functions": ([],), "function_call": ("auto", "none"),
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """One HTTP request, read: the model, one `Request` per prompt, and how the answer is to look.

    `must_call` is whether a tool has to be called; `tools` are only those that `tool_choice` allows. `not_carried` names what it asks
    for that no `Request` can say.
    """

    model: str
    requests: list[Request]
    chatting: bool
    logprobs: bool
    stream: bool
    usage_too: bool
    must_call: bool
    not_carried: tuple[str, ...]
    id: str
    created: int

    @classmethod
    def text(cls, body: dict[str, Any], default: Request) -> Asked:
        """A completion; what the body leaves open is as in `default`."""
        return cls._read(body, default, list(texts(body, "prompt")), "", False)

    @classmethod
    def chat(cls, body: dict[str, Any], default: Request) -> Asked:
        messages = field(body, "messages", list, must=True)
        if not messages:
            raise BadInput("is empty", field="messages")
        read = [_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
        prefix = ""
        if len(read) > 1 and read[-1].role == "assistant" and not read[-1].tool_calls and isinstance(read[-1].content, str):
            prefix = read.pop().content  # type: ignore[assignment]
        only = read[0] if len(read) == 1 and read[0].role == "user" and read[0].name is None else None
        prompt: Prompt = only.content if only and isinstance(only.content, str) else tuple(read)
        return cls._read(body, default, [prompt], prefix, True)

    @classmethod
    def _read(cls, body: dict[str, Any], default: Request, prompts: list[Prompt], prefix: str, chatting: bool) -> Asked:
        n = field(body, "n", int, 1, low=1, high=MOST_CHOICES // len(prompts))
        seed = field(body, "seed", int)
        max_tokens = field(body, "max_tokens", int, default.max_tokens, low=1, high=MOST_TOKENS)
        max_tokens = field(body, "max_completion_tokens", int, max_tokens, low=1, high=MOST_TOKENS)
        stop = field(body, "stop", (str, list), [])
        stop = [stop] if isinstance(stop, str) else stop
        if not all(isinstance(text, str) and text for text in stop):
            raise BadInput("must be a text or a list of texts, none empty", field="stop", value=stop)
        tools, must_call = _tools(body) if chatting else ([], False)
        shared = Request(
            "",
            n=n,
            key="http",
            seed=secrets.randbits(31) if seed is None else seed,
            temperature=float(field(body, "temperature", _NUMBER, default.temperature, low=0, high=2)),
            top_p=float(field(body, "top_p", _NUMBER, default.top_p, low=0, high=1)),
            max_tokens=max_tokens,
            stop=tuple(stop),
            prefix=prefix,
            schema=_schema(body) if chatting else None,
            tools=tuple(tools),
        )
        logprobs = field(body, "logprobs", (bool, int))
        options = field(body, "stream_options", dict, {})
        return cls(
            model=body["model"],
            requests=[replace(shared, prompt=prompt, first=i * n) for i, prompt in enumerate(prompts)],
            chatting=chatting,
            logprobs=bool(logprobs) if chatting or isinstance(logprobs, bool) else logprobs is not None,
            stream=field(body, "stream", bool, False),
            usage_too=field(options, "include_usage", bool, False, within="stream_options."),
            must_call=must_call,
            not_carried=tuple(name for name, nothing in _NOT_CARRIED.items() if body.get(name) not in (None, *nothing)),
            id=f"{'chatcmpl' if chatting else 'cmpl'}-{secrets.token_hex(12)}",
            created=int(time.time()),
        )

    def whole(self, samples: list[Sample]) -> dict[str, Any]:
        choices = [self.choice(sample) for sample in sorted(samples, key=lambda s: s.index)]
        return self._frame("chat.completion" if self.chatting else "text_completion") | {"choices": choices, "usage": usage(*samples)}

    def chunk(self, *choices: dict[str, Any]) -> dict[str, Any]:
        return self._frame("chat.completion.chunk" if self.chatting else "text_completion") | {"choices": list(choices)}

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def choice(self, sample: Sample) -> dict[str, Any]:
        choice = {"index": sample.index, "finish_reason": sample.finish, "logprobs": self.scores(sample), "usage": usage(sample)}
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
            return [self.chunk(self.choice(sample))]
        delta = _said(sample)
        for i, call in enumerate(delta.get("tool_calls", [])):
            call["index"] = i
        said = {"index": sample.index, "delta": delta, "logprobs": self.scores(sample), "finish_reason": None}
        end = {"index": sample.index, "delta": {}, "logprobs": None, "finish_reason": sample.finish, "usage": usage(sample)}
        return [self.chunk(said), self.chunk(end)]


def _said(sample: Sample) -> dict[str, Any]:
    said: dict[str, Any] = {"role": "assistant", "content": sample.text}
    if sample.tool_calls:
        said["tool_calls"] = [call.as_json() for call in sample.tool_calls]
    return said


def usage(*samples: Sample) -> dict[str, int]:
    tokens_in, tokens_out = sum(s.tokens_in for s in samples), sum(s.tokens_out for s in samples)
    return {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}


class UnknownModel(BadInput):
    pass


class Failure(KeystepError):
    """A failure with a status, a code and more to tell of its own."""

    def __init__(self, status: int, code: str, problem: str, **more: Any) -> None:
        super().__init__(problem)
        self.status, self.code, self.more = status, code, more


def error_answer(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body, as OpenAI's servers put it; `code` "refused" is a model that does not know this kind of prompt."""
    message, param, kind, code = str(error), getattr(error, "field", "") or None, "invalid_request_error", None
    more: dict[str, Any] = {}
    if isinstance(error, HTTPException):
        status, message = error.status_code, error.detail
    elif isinstance(error, UnknownModel):
        status, code = 404, "model_not_found"
    elif isinstance(error, BadInput):
        status, code = 400, "refused" if isinstance(error, Refused) else None
    elif isinstance(error, Failure):
        status, kind, code, more = error.status, error.code, error.code, error.more
    else:
        status, kind = 502 if isinstance(error, ModelError) else 500, "server_error"
        message = message if isinstance(error, KeystepError) else "internal error"
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code, **more}}


async def read_json(http: HttpRequest) -> dict[str, Any]:
    try:
        body = json.loads(await _body(http))
        json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair could be read, but never sent back
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the body is not JSON ({error})", field="body") from None
    if not isinstance(body, dict):
        raise BadInput("must be a JSON object", field="body", value=body)
    return body


async def _body(http: HttpRequest) -> bytes:
    parts, size = [], 0
    async for part in http.stream():
        size += len(part)
        if size > MOST_BYTES:
            raise HTTPException(413, f"the body is larger than {MOST_BYTES:,} bytes")
        parts.append(part)
    return b"".join(parts)


def field(
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


def texts(body: dict[str, Any], name: str) -> list[str]:
    value = field(body, name, (str, list), must=True)
    texts = [value] if isinstance(value, str) else value
    if not texts or not all(isinstance(text, str) for text in texts):
        raise BadInput("must be a text or a list of texts (token numbers are not read)", field=name, value=value)
    if len(texts) > MOST_CHOICES:
        raise BadInput(f"more than {MOST_CHOICES} texts at once", field=name)
    return texts


def _schema(body: dict[str, Any]) -> dict[str, Any] | None:
    form = field(body, "response_format", dict, {})
    kind = field(form, "type", str, "text", within="response_format.")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        raise BadInput('must be "text", "json_object" or "json_schema"', field="response_format.type", value=kind)
    named: dict[str, Any] = field(form, "json_schema", dict, must=True, within="response_format.")
    schema: dict[str, Any] = field(named, "schema", dict, must=True, within="response_format.json_schema.")
    return schema


def _tools(body: dict[str, Any]) -> tuple[list[dict[str, Any]], bool]:
    """The tools that may be called, and whether one has to be."""
    tools = field(body, "tools", list, [])
    if not all(isinstance(tool, dict) for tool in tools):
        raise BadInput("must be a list of tool definitions", field="tools", value=tools)
    choice = field(body, "tool_choice", (str, dict), "auto")
    if choice == "none":
        return [], False
    if isinstance(choice, str):
        if choice not in ("auto", "required"):
            raise BadInput('must be "none", "auto", "required" or a function', field="tool_choice", value=choice)
        if choice == "required" and not tools:
            raise BadInput("there are no tools to choose from", field="tool_choice", value=choice)
        return tools, choice == "required"
    within = "tool_choice.function."
    name = field(field(choice, "function", dict, must=True, within="tool_choice."), "name", str, must=True, within=within)
    named = [tool for tool in tools if tool_name(tool) == name]
    if not named:
        raise BadInput("is none of the tools", field=f"{within}name", value=name)
    return named, True


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise BadInput("must be an object", field=where, value=value)
    within = where + "."
    role = field(value, "role", str, must=True, within=within)
    if role not in ("system", "developer", "user", "assistant", "tool"):
        raise BadInput("no such role", field=within + "role", value=role, mend="use system, user, assistant or tool")
    content = field(value, "content", (str, list), "", must=role != "assistant", within=within)
    if isinstance(content, list) and not all(isinstance(part, dict) for part in content):
        raise BadInput("must be a text or a list of content parts", field=within + "content", value=content)
    calls = field(value, "tool_calls", list, [], within=within)
    return Message(
        role="system" if role == "developer" else role,
        content=content,
        name=field(value, "name", str, within=within),
        tool_calls=tuple(_tool_call(call, f"{within}tool_calls[{i}]") for i, call in enumerate(calls)),
        tool_call_id=field(value, "tool_call_id", str, within=within),
    )


def _tool_call(value: Any, where: str) -> ToolCall:
    if not isinstance(value, dict):
        raise BadInput("must be an object", field=where, value=value)
    within = f"{where}.function."
    function = field(value, "function", dict, must=True, within=f"{where}.")
    return ToolCall(
        id=field(value, "id", str, "", within=f"{where}."),
        name=field(function, "name", str, must=True, within=within),
        arguments=field(function, "arguments", str, "{}", within=within),
    )
