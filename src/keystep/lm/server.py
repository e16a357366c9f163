"""Language models behind the OpenAI interface: `/v1/models`, `/v1/completions`, `/v1/chat/completions`, `/v1/embeddings`, `/health`.

A request with a `seed` gives the samples that `Request(prompt, seed=seed, key="http")` gives in Python; without one a fresh seed is
drawn. There is no authentication: it is meant for one's own machine. How requests are read and answers look is in `wire`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from keystep.errors import BadInput, KeystepError
from keystep.lm.base import LM, Request, Sample
from keystep.lm.listen import address, listen
from keystep.lm.wire import Asked, UnknownModel, error_answer, field, read_json, texts, usage

log = logging.getLogger(__name__)
T = TypeVar("T")

Answering = Callable[[HttpRequest, LM, Asked], Awaitable[Response]]


def serve(
    lms: Mapping[str, LM], host: str = "127.0.0.1", port: int = 8377, *, allow_remote: bool = False,
    ready: Callable[[str], None] = lambda address: None,
) -> None:  # fmt: skip
    """Serve until interrupted; `ready` is told the address, once it can be reached.

    Raises:
        BadInput: an address that other machines reach, unless `allow_remote`; a port that is taken.
    """
    serve_application(app(lms), host, port, allow_remote=allow_remote, ready=ready)


def serve_application(
    application: Starlette, host: str, port: int, *, allow_remote: bool = False, ready: Callable[[str], None] = lambda address: None
) -> None:  # fmt: skip
    """`serve`, for an application."""
    risk = "" if allow_remote else "anyone who reaches this address can use the models"
    with listen(host, port, risk=risk) as listening, suppress(KeyboardInterrupt):
        ready(address(host, listening))
        uvicorn.Server(uvicorn.Config(application, log_level="warning")).run(sockets=[listening])


def app(lms: Mapping[str, LM], *, default: Request | None = None, answering: Answering | None = None) -> Starlette:
    """The ASGI application for models by name.

    Args:
        default: what a request that leaves temperature, top_p or max_tokens open gets.
        answering: what answers a completion, plain or chat, instead of the model itself.
    """
    if not lms:
        raise BadInput("no model to serve", field="lms")
    served, began = dict(lms), int(time.time())
    respond, left_open = answering or answered, default or Request("")

    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": began, "owned_by": "keystep"}

    def model(name: Any) -> LM:
        if not isinstance(name, str) or name not in served:
            raise UnknownModel("no such model", field="model", value=name, mend=f"this server has {', '.join(sorted(served))}")
        return served[name]

    async def health(http: HttpRequest) -> Response:
        return JSONResponse({"status": "ok"})

    async def models(http: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [described(name) for name in sorted(served)]})

    async def one_model(http: HttpRequest) -> Response:
        model(http.path_params["name"])
        return JSONResponse(described(http.path_params["name"]))

    async def completions(http: HttpRequest) -> Response:
        body = await read_json(http)
        return await respond(http, model(field(body, "model", str, must=True)), Asked.text(body, left_open))

    async def chat(http: HttpRequest) -> Response:
        body = await read_json(http)
        return await respond(http, model(field(body, "model", str, must=True)), Asked.chat(body, left_open))

    async def embeddings(http: HttpRequest) -> Response:
        body = await read_json(http)
        lm = model(field(body, "model", str, must=True))
        vectors = await lm.embed(texts(body, "input"))
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


async def answered(http: HttpRequest, lm: LM, asked: Asked) -> Response:
    """The model's own samples."""
    if asked.stream:
        return await streamed(http, _chunks(lm, asked))
    samples = await unless_gone(http, _collected(lm, asked))
    return Response(status_code=499) if samples is None else JSONResponse(asked.whole(samples))


async def unless_gone(http: HttpRequest, work: Coroutine[Any, Any, T]) -> T | None:
    """What the work gives; None when the client leaves before, which cancels it."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(http.receive())  # the body is read, so all that can come is the client's leaving
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def streamed(http: HttpRequest, chunks: AsyncGenerator[dict[str, Any]]) -> Response:
    """The chunks as server-sent events; a failure before the first of them, such as a refusal, is an error of its own."""

    async def first() -> dict[str, Any]:
        return await anext(chunks)

    chunk = await unless_gone(http, first())
    if chunk is None:
        return Response(status_code=499)
    return StreamingResponse(_events(chunk, chunks), media_type="text/event-stream")


async def _events(first: dict[str, Any], rest: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[str]:
    async with aclosing(rest):
        yield _event(first)
        try:
            async for chunk in rest:
                yield _event(chunk)
        except Exception as error:
            log.warning("a stream broke off: %s", error, exc_info=None if isinstance(error, KeystepError) else error)
            yield _event(error_answer(error)[1])
            return
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _samples(lm: LM, asked: Asked) -> AsyncGenerator[Sample]:
    for request in asked.requests:
        async with aclosing(lm.sample(request)) as samples:
            async for sample in samples:
                yield sample


async def _collected(lm: LM, asked: Asked) -> list[Sample]:
    return [sample async for sample in _samples(lm, asked)]


async def _chunks(lm: LM, asked: Asked) -> AsyncGenerator[dict[str, Any]]:
    seen = []
    async with aclosing(_samples(lm, asked)) as samples:
        async for sample in samples:
            seen.append(sample)
            for chunk in asked.chunks(sample):
                yield chunk
    if asked.usage_too:
        yield asked.chunk() | {"usage": usage(*seen)}


async def _failed(http: HttpRequest, error: Exception) -> Response:
    status, body = error_answer(error)
    final = {"x-should-retry": "false"} if status in (422, 502) else None  # the model was tried often enough; clients heed this
    return JSONResponse(body, status, final)
