"""keystep models as DSPy language models: `dspy.configure(lm=as_dspy(ks.lm("http://localhost:8000/v1#my-model")))`.

DSPy 3.4 and later take an engine, one request in and one answer out; its older way, a subclass with `forward`, is on its way out there
and is not offered. To have every call of a DSPy program decided by vote, give it a `keystep.run.voted.Voted` model. Streaming, DSPy's
judgements, sound and documents are not covered.
"""

from __future__ import annotations

import itertools
import json
import secrets
from typing import Any

from keystep.errors import BadInput, KeystepError, MissingExtra
from keystep.lm.base import LM, Message, Request, Sample, ToolCall, run_sync

try:
    import dspy
    from dspy import lm15
except ImportError:
    raise MissingExtra("as_dspy", "dspy") from None

_NOT_CARRIED = ("top_k", "reasoning", "frequency_penalty", "presence_penalty", "logprobs", "probabilities", "extensions")


def as_dspy(lm: LM, *, seed: int | None = None, schemas: bool = False, tools: bool = False, **options: Any) -> Any:
    """A `dspy.LM` that asks `lm`.

    Args:
        seed: with one, a program that makes the same calls in the same order gets the same answers; None draws afresh at every call.
        schemas, tools: whether DSPy may ask the model for answers by a JSON schema, and for calls of tools.
        options: as `dspy.LM` takes them. Its cache is off unless `cache=True`: it would not tell two models of one name apart, and a
            vote that is drawn again is meant to be drawn again.

    Raises:
        BadInput: this DSPy is older than 3.4.
    """
    if not hasattr(dspy, "lm15"):
        raise BadInput("is older than 3.4", field="dspy", value=getattr(dspy, "__version__", None), mend="pip install 'dspy>=3.4'")
    asking = _Asking(lm, seed, schemas, tools)
    name = "keystep:" + lm.name.replace("/", ":")  # DSPy would read more into a name with a slash
    return dspy.LM(name, engine=_Engine(asking), async_engine=_AsyncEngine(asking), **{"cache": False, "num_retries": 0, **options})


class _Asking:
    """What both engines share."""

    def __init__(self, lm: LM, seed: int | None, schemas: bool, tools: bool) -> None:
        self.lm, self.seed, self.schemas, self.tools = lm, seed, schemas, tools
        self.calls = itertools.count()

    async def answer(self, wanted: Any) -> Any:
        try:
            request = _request(wanted, self.seed, next(self.calls))
            (sample,) = [sample async for sample in self.lm.sample(request)]
        except BadInput as error:
            raise lm15.InvalidRequestError(str(error), provider="keystep") from error
        except KeystepError as error:  # the model was tried often enough: none of these is one that DSPy tries again
            raise lm15.ProviderError(str(error), provider="keystep", provider_code=type(error).__name__) from error
        return _response(sample, wanted.model)


class _Engine:
    def __init__(self, asking: _Asking) -> None:
        self.asking = asking
        self.supports_response_schema, self.supports_function_calling = asking.schemas, asking.tools
        self.supported_params = ("temperature", "top_p", "max_tokens", "stop", "seed", *(["response_format"] if asking.schemas else []))

    def complete(self, request: Any) -> Any:
        return run_sync(self.asking.answer(request))

    def stream(self, request: Any) -> Any:
        return lm15.response_to_events(self.complete(request))

    def close(self) -> None:
        """The model belongs to whoever made it."""


class _AsyncEngine:
    def __init__(self, asking: _Asking) -> None:
        self.asking = asking

    async def complete(self, request: Any) -> Any:
        return await self.asking.answer(request)

    async def stream(self, request: Any) -> Any:
        for event in lm15.response_to_events(await self.complete(request)):
            yield event

    async def aclose(self) -> None:
        """The model belongs to whoever made it."""


def _request(wanted: Any, seed: int | None, call: int) -> Request:
    config, default = wanted.config, Request("")
    for name in _NOT_CARRIED:
        if getattr(config, name, None):
            raise lm15.UnsupportedFeatureError(f"keystep models do not take {name}", feature=name, provider="keystep")
    messages = [] if wanted.system is None else [Message("system", _content(wanted.system))]
    messages += [each for message in wanted.messages for each in _messages(message)]
    only = messages[0] if len(messages) == 1 and messages[0].role == "user" else None
    tools = [
        {"type": "function", "function": {"name": tool.name, "description": tool.description or "", "parameters": dict(tool.parameters)}}
        for tool in _tools(wanted)
    ]
    return Request(
        only.content if only and isinstance(only.content, str) else tuple(messages),
        first=call,
        key="dspy",
        seed=next((given for given in (config.seed, seed) if given is not None), secrets.randbits(31)),
        temperature=default.temperature if config.temperature is None else config.temperature,
        top_p=default.top_p if config.top_p is None else config.top_p,
        max_tokens=config.max_tokens or default.max_tokens,
        stop=tuple(config.stop),
        schema=_schema(config.response_format),
        tools=tuple(tools),
    )


def _tools(wanted: Any) -> list[Any]:
    choice = wanted.config.tool_choice
    if choice is not None and choice.mode == "required":
        raise lm15.UnsupportedFeatureError("keystep models cannot be made to call a tool", feature="tool_choice", provider="keystep")
    if choice is not None and choice.mode == "none":
        return []
    allowed = [tool for tool in wanted.tools if choice is None or not choice.allowed or tool.name in choice.allowed]
    if any(tool.type != "function" for tool in allowed):
        raise lm15.UnsupportedFeatureError("keystep models have no tools of their own", feature="tools", provider="keystep")
    return allowed


def _schema(form: Any) -> dict[str, Any] | None:
    if form is None:
        return None
    return dict(form["schema"]) if form["type"] == "json_schema" else {"type": "object"}


def _messages(message: Any) -> list[Message]:
    """One of ours for each; the results of several tools are several."""
    results = [part for part in message.parts if part.type == "tool_result"]
    if results:
        return [Message("tool", _content(part.content), name=part.name, tool_call_id=part.id) for part in results]
    calls = tuple(ToolCall(part.id, part.name, json.dumps(part.input)) for part in message.parts if part.type == "tool_call")
    said = [part for part in message.parts if part.type not in ("tool_call", "thinking")]
    return [Message("system" if message.role == "developer" else message.role, _content(said), tool_calls=calls)]


def _content(parts: Any) -> str | list[dict[str, Any]]:
    if isinstance(parts, str):
        return parts
    if all(part.type in ("text", "refusal") for part in parts):
        return "".join(part.text for part in parts)
    return [_part(part) for part in parts]


def _part(part: Any) -> dict[str, Any]:
    """As the chat completions interface writes it."""
    if part.type in ("text", "refusal"):
        return {"type": "text", "text": part.text}
    if part.type == "image" and (part.url or part.data):
        return {"type": "image_url", "image_url": {"url": part.url or f"data:{part.media_type};base64,{part.data}"}}
    raise lm15.UnsupportedFeatureError(f"keystep models do not take a part of type {part.type}", feature=part.type, provider="keystep")


def _response(sample: Sample, model: str) -> Any:
    parts: list[Any] = [lm15.TextPart(sample.text)] if sample.text or not sample.tool_calls else []
    for number, call in enumerate(sample.tool_calls):
        try:
            arguments = json.loads(call.arguments)
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise lm15.ProviderError(f"the model called {call.name} with what is no JSON object", provider="keystep")
        parts.append(lm15.ToolCallPart(call.id or f"call_{number}", call.name, arguments))
    finish = "tool_call" if sample.tool_calls else sample.finish if sample.finish in ("length", "content_filter") else "stop"
    usage = lm15.Usage(input_tokens=sample.tokens_in, output_tokens=sample.tokens_out)
    return lm15.Response(id=None, model=sample.model or model, message=lm15.Message.assistant(parts), finish_reason=finish, usage=usage)
