"""Parts for tests of the endpoint and the server: a model that needs no weights, the real server in a thread, one that misbehaves, and a
storm of every fault there is."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import uvicorn

from keystep.errors import Refused
from keystep.lm.base import LM, Request, Sample, ToolCall, as_messages, draw_key


class Echo(LM):
    """Says what it was asked. Prompts with "refuse" are refused, "wait" waits until cancelled, "boom" raises, "call" calls a tool."""

    name, members = "echo", 3

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.waiting, self.cancelled = threading.Event(), threading.Event()

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        self.asked.append(request)
        text = str(as_messages(request.prompt)[-1].content)
        if "refuse" in text:
            raise Refused("echo was not made for this", field="prompt", mend="it knows everything else")
        if "boom" in text:
            raise ZeroDivisionError("a secret of the house")
        if "wait" in text:
            try:
                self.waiting.set()
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        for i in reversed(range(request.n)):  # the last first: nothing may rely on the order
            index = request.first + i
            yield Sample(
                text=f"{text}/{request.prefix}/{request.seed}/{request.key}/{index}",
                index=index,
                tokens_in=7 if i == 0 else 0,
                tokens_out=2 + index,
                logprob=-0.5 - index,
                model=f"echo:{index % 3}",
                finish="tool_calls" if "call" in text else "stop",
                tool_calls=(ToolCall("c1", "add", '{"a": 1}'),) if "call" in text else (),
            )

    async def embed(self, texts: Any) -> list[list[float]]:
        return [[float(len(text)), 0.25] for text in texts]


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The ASGI app on a free port of this machine, in a thread; yields its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
    assert not thread.is_alive()


def chat_answer(*texts: str, **more: Any) -> dict[str, Any]:
    choices = [{"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": text}} for i, text in enumerate(texts)]
    return {"id": "x", "object": "chat.completion", "model": "m", "choices": choices} | more


def error_answer(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error"} | more}


Reply = str | tuple[int, dict[str, str], Any]
Fault = Reply | Callable[[dict[str, Any]], Reply]


class Faulty:
    """A server that answers its requests from `script`, in turn, and the last entry for ever.

    An entry is (status, headers, JSON or bytes), a word, or a function of the request's body that gives one of these. Of the words,
    "reset" breaks the connection, "truncated" sends half a JSON answer, "short" promises more bytes than it sends, "cut" ends a chunked
    stream before its last chunk, "hang" says nothing until the client has left, "drip" sends a byte now and then until it has.
    """

    def __init__(self, *script: Fault) -> None:
        self.script, self.bodies, self.headers = list(script), list[dict[str, Any]](), list[dict[str, str]]()
        self.hanging, self.left = threading.Semaphore(0), threading.Semaphore(0)
        self._lock = threading.Lock()

    def next(self, body: dict[str, Any], headers: dict[str, str]) -> Fault:
        with self._lock:
            self.bodies.append(body)
            self.headers.append(headers)
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    @contextmanager
    def serving(self) -> Iterator[str]:
        faulty = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body are written apart, and the body would wait for the client's acknowledgement

            def log_message(self, *args: Any) -> None:
                pass

            def handle(self) -> None:
                with suppress(ConnectionResetError, BrokenPipeError):  # the client was killed, or gave up
                    super().handle()

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                fault = faulty.next(body, {":path": self.path} | {name.lower(): value for name, value in self.headers.items()})
                if callable(fault):
                    fault = fault(body)
                if fault == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    self.connection.close()
                elif fault == "hang":
                    faulty.hanging.release()
                    self.connection.settimeout(10)
                    assert self.connection.recv(1) == b""
                    faulty.left.release()
                    self.close_connection = True
                elif fault == "drip":
                    faulty.hanging.release()
                    self.drip(json.dumps(chat_answer("too late" * 1000)).encode())
                    faulty.left.release()
                    self.close_connection = True
                elif fault == "cut":
                    self.send(200, {"transfer-encoding": "chunked"}, b'10\r\n{"choices": [{"m\r\n', None)
                    self.close_connection = True
                elif fault in ("truncated", "short"):
                    content = json.dumps(chat_answer("half")).encode()[:40]
                    self.send(200, {}, content, len(content) + (100 if fault == "short" else 0))
                    self.close_connection = True
                else:
                    assert not isinstance(fault, str)
                    status, headers, answer = fault
                    content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                    self.send(status, headers, content, len(content))

            def drip(self, content: bytes) -> None:
                """Byte after byte, until the client has left."""
                self.send(200, {}, b"", len(content))
                self.connection.settimeout(0.02)
                for number in range(len(content)):
                    try:
                        if self.connection.recv(1) == b"":
                            return
                    except TimeoutError:
                        self.wfile.write(content[number : number + 1])
                    except ConnectionResetError:
                        return

            def send(self, status: int, headers: dict[str, str], content: bytes, length: int | None) -> None:
                self.send_response(status)
                sizes = {} if length is None else {"content-length": str(length)}
                for name, value in {"content-type": "application/json", **sizes, **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            thread.join(10)
            server.server_close()


class Storm:
    """What a request meets: in a `share` of them one of `KINDS`, in the rest one choice, the text of `answer(prompt)`.

    It is drawn from the request's seed and how often that came before, so neither order nor interruptions change it. `asked` is the prompt
    and the kind of fault (or None) of every request; `wrong(prompt)` is well-formed, and comes at the end of over-long texts.
    """

    KINDS = (
        "time-out", "429", "500", "reset", "truncated", "short", "cut", "drip", "malformed JSON", "empty choices", "wrong format",
        "over-long",
    )  # fmt: skip

    def __init__(self, share: float, answer: Callable[[str], str], wrong: Callable[[str], str]) -> None:
        self.share, self.answer, self.wrong = share, answer, wrong
        self.asked: list[tuple[str, str | None]] = []
        self._came: dict[int, int] = {}
        self._lock = threading.Lock()

    def __call__(self, body: dict[str, Any]) -> Reply:
        prompt, seed = body["messages"][-1]["content"], body["seed"]
        with self._lock:
            came = self._came[seed] = self._came.get(seed, 0) + 1
            drawn = draw_key(seed, came)
            kind = self.KINDS[drawn % len(self.KINDS)] if (drawn >> 64) / 2**64 < self.share else None
            self.asked.append((prompt, kind))
        if kind in ("reset", "truncated", "short", "cut", "drip"):
            return kind
        replies: dict[str | None, Reply] = {
            None: (200, {}, chat_answer(self.answer(prompt), usage={"prompt_tokens": 50, "completion_tokens": 20})),
            "time-out": "hang",
            "429": (429, {"retry-after": "0.02"}, error_answer("slow down")),
            "500": (500, {}, error_answer("out of order")),
            "malformed JSON": (200, {}, b'{"choices": [{"message": {"role": "assistant", "content": "move =}]'),
            "empty choices": (200, {}, chat_answer()),
            "wrong format": (200, {}, chat_answer("I would rather not say, but the answer is 42.")),
            "over-long": (200, {}, chat_answer(f"{'Let me think. ' * 500}\n{self.wrong(prompt)}", usage={"completion_tokens": 2000})),
        }
        return replies[kind]
