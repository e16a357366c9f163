"""Any OpenAI-compatible server as a language model.

Time-outs, broken connections, overloaded servers and unreadable answers are tried again; what a server does not support (several
choices at once, temperature, a seed, ...) is learned from its first answer and left out from then on. What this does not cover: the
Responses API, streaming (a vote needs whole answers), audio. An assistant `prefix` is sent as a trailing assistant message; whether
the chat model continues it or starts anew is the server's affair (`api="completions"` always continues).
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import random
import re
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from keystep.errors import BadInput, ModelError, Refused
from keystep.lm.base import LM, Message, Request, Sample, ToolCall, as_finished, as_messages, draw_key
from keystep.lm.limits import Bucket, Gate, Pace
from keystep.lm.redact import redact

log = logging.getLogger(__name__)
T = TypeVar("T")

OPTIONAL = ("max_tokens", "temperature", "top_p", "n", "seed", "stop", "logprobs")  # what a server may turn out not to take
_REFUSES = re.compile(r"unsupported|not support|unrecognized|unknown|unexpected|not permitted|not allowed|only the default|instead", re.I)
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
_EMBED_AT_ONCE = 256
_APIS: dict[Literal["chat", "completions"], str] = {"chat": "/chat/completions", "completions": "/completions"}  # the longer one first


class Endpoint(LM):
    """A model behind an OpenAI-compatible server.

    `base_url` and `api_key` default to OPENAI_BASE_URL and OPENAI_API_KEY; a server of one's own needs no key. `api` is what the
    address ends in, /chat/completions or /completions, and chat where it ends in neither. `timeout` is seconds for one whole answer. A
    failed request is tried `retries` times more, after a random wait of up to `backoff` · 2^i seconds (60 at most) or as long as the
    server asks; it gives up at once when asked to wait more than `longest_wait` seconds. `concurrency` is the most requests in flight,
    halved at every sign of overload and slowly raised again. `prices` is a dict, or a JSON file, of {model: {"input": price, "output":
    price}} per million tokens. `reasoning`: None finds out by itself that a model takes no temperature and wants
    `max_completion_tokens`, True says so, False forbids. `extra_body` goes into every request as it is.

    Raises:
        BadInput: no key for the official server, a bad address, a bad limit, a price table without this model.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 60,
        retries: int = 6,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        concurrency: int = 64,
        prices: Mapping[str, Mapping[str, float]] | str | Path | None = None,
        reasoning: bool | None = None,
        api: Literal["chat", "completions"] | None = None,
        headers: Mapping[str, str] | None = None,
        logprobs: bool = True,
        extra_body: Mapping[str, Any] | None = None,
        backoff: float = 0.5,
        longest_wait: float = 300,
    ) -> None:
        base_url = base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        self.base_url, told = _public_address(base_url)
        api = api or told or "chat"
        key = api_key or os.environ.get("OPENAI_API_KEY")
        if not key and "//api.openai.com/" in self.base_url:
            raise BadInput("this server wants a key", field="api_key", mend="set OPENAI_API_KEY, or give base_url for another server")
        if api not in _APIS:
            raise BadInput("no such interface", field="api", value=api, mend='use "chat" or "completions"')
        for field, number in (("timeout", timeout), ("requests_per_minute", requests_per_minute), ("tokens_per_minute", tokens_per_minute)):
            if number is not None and not number > 0:
                raise BadInput("must be above 0", field=field, value=number)
        if concurrency < 1 or retries < 0:
            field, least, value = ("concurrency", 1, concurrency) if concurrency < 1 else ("retries", 0, retries)
            raise BadInput(f"must be {least} or more", field=field, value=value)
        self.name = self.model = model
        self.api, self.timeout, self.retries, self.backoff, self.longest_wait = api, timeout, retries, backoff, longest_wait
        self.logprobs, self.reasoning, self.extra_body = logprobs, reasoning, dict(extra_body or {})
        self.price = _price(prices, model)
        self._query = urlsplit(base_url).query
        own = {name.lower(): value for name, value in (headers or {}).items()}
        self._headers = _request_headers(urlsplit(base_url), key or "none") | own
        self._secrets = (key or "", base_url if base_url != self.base_url else "", self._query, *own.values())
        self._left_out = {"max_tokens", "temperature", "top_p"} if reasoning else set[str]()
        self._pace = Pace(concurrency)
        self._requests = Bucket(requests_per_minute) if requests_per_minute else None
        self._tokens = Bucket(tokens_per_minute) if tokens_per_minute else None
        self._loops: dict[asyncio.AbstractEventLoop, _Here] = {}
        self._lock = threading.Lock()

    def identity(self) -> Any:
        extra = {"extra_body": redact(self.extra_body, *self._secrets)} if self.extra_body else {}
        return {"model": self.model, "base_url": self.base_url, "api": self.api, **extra}

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        """All samples in one request where the server can, else one request for each, side by side.

        Each sample's `seconds` is the time its request took; where a server counts tokens only in sum, they are shared out by length.
        """
        got = 0
        if request.n == 1 or "n" not in self._left_out:
            samples = await self._ask(request, request.first, request.n)
            got = len(samples)
            if got < request.n:
                self._leave_out("n")
            for sample in samples:
                yield sample
        missing = range(request.first + got, request.first + request.n)
        if not missing:
            return
        async with aclosing(as_finished(self._ask(request, index, 1) for index in missing)) as answers:
            async for (sample,) in answers:
                yield sample

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        vectors: list[list[float]] = []
        for start in range(0, len(texts), _EMBED_AT_ONCE):
            part = list(texts[start : start + _EMBED_AT_ONCE])

            def read(answer: Any, seconds: float, wanted: int = len(part)) -> list[list[float]]:
                rows = sorted(answer["data"], key=lambda row: row["index"])
                if len(rows) != wanted:
                    raise ValueError(f"{len(rows)} vectors for {wanted} texts")
                return [[float(x) for x in row["embedding"]] for row in rows]

            body = {"model": self.model, "input": part, "encoding_format": "float"}
            vectors += await self._post("/embeddings", body, sum(map(len, part)) // 4, read)
        return vectors

    async def close(self) -> None:
        here = self._loops.pop(asyncio.get_running_loop(), None)
        if here:
            await here.lifetime.aclose()

    async def _ask(self, request: Request, first: int, n: int) -> list[Sample]:
        """The samples of one HTTP request: up to n of them, one at least."""
        body: dict[str, Any] = {"model": self.model, "max_tokens": request.max_tokens, "temperature": request.temperature}
        body["seed"] = draw_key(request.seed, request.key, first) & 0x7FFFFFFF
        if n > 1:
            body["n"] = n
        if request.top_p != 1:
            body["top_p"] = request.top_p
        if request.stop:
            body["stop"] = list(request.stop)
        if self.api == "chat":
            body |= _chat_body(request)
        else:
            body["prompt"] = _plain_text(request) + request.prefix
        if self.logprobs:
            body["logprobs"] = True if self.api == "chat" else 1
        body |= self.extra_body
        units = len(json.dumps(body.get("messages", body.get("prompt")))) // 4 + n * request.max_tokens if self._tokens else 0
        return await self._post(_APIS[self.api], body, units, lambda answer, seconds: self._samples(answer, request, first, n, seconds))

    def _samples(self, answer: Any, request: Request, first: int, n: int, seconds: float) -> list[Sample]:
        choices = answer["choices"][:n]
        if not choices:
            raise ValueError("no choices")
        read = [_read_choice(choice, self.api) for choice in choices]
        usage = answer.get("usage") or {}
        tokens_in, tokens_out = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        shares = _share_out(tokens_out, [weight for *_, weight in read])
        samples = []
        for i, (text, finish, logprob, calls, _) in enumerate(read):
            cut = min((text.find(stop) for stop in request.stop if stop in text), default=-1) if "stop" in self._left_out else -1
            paid = tokens_in if i == 0 else 0
            samples.append(
                Sample(
                    text=text if cut < 0 else text[:cut],
                    index=first + i,
                    tokens_in=paid,
                    tokens_out=shares[i],
                    logprob=logprob,
                    finish=finish if cut < 0 else "stop",
                    seconds=seconds,
                    cost=(paid * self.price[0] + shares[i] * self.price[1]) / 1e6,
                    model=str(answer.get("model") or self.model),
                    tool_calls=calls,
                )
            )
        return samples

    async def _post(self, path: str, body: dict[str, Any], units: int, read: Callable[[Any, float], T]) -> T:
        """What `read` makes of the server's answer, after as many tries as it takes.

        Raises:
            Refused: a keystep server's model does not know this kind of prompt.
            ModelError: the server refuses the request, or all tries failed.
        """
        here = await self._here()
        url = URL(f"{self.base_url}{path}" + (f"?{self._query}" if self._query else ""))
        tries = 0
        while True:
            async with here.gate:
                age = self._pace.age
                await self._pay(units)
                sent = self._trimmed(body)
                began = time.perf_counter()
                overloaded, asked, spent = False, None, 0
                try:
                    async with asyncio.timeout(self.timeout), here.session.post(url, data=json.dumps(sent)) as raw:
                        text = await raw.read()
                    if not raw.ok:
                        raise _StatusError(raw.status, raw.headers, text)
                    answer = json.loads(text)
                    if isinstance(answer, dict) and answer.get("error"):  # some gateways say it with status 200
                        raise ValueError(str(answer["error"])[:500])
                    result = read(answer, time.perf_counter() - began)
                    spent = _total_tokens(answer) or units
                    self._pace.succeeded()
                    return result
                except TimeoutError:
                    problem, overloaded = f"no answer within {self.timeout:g} s", True
                except _StatusError as error:
                    if self._learn(error, sent):
                        continue
                    problem = self._check(error)
                    overloaded, asked = error.status in (429, 503), _asked_wait(error.headers)
                except (aiohttp.ClientError, OSError) as error:
                    problem = f"the connection failed ({error or type(error).__name__})"
                except _UNREADABLE as error:
                    problem = f"it answered nothing usable ({type(error).__name__}: {error})"
                finally:
                    if self._tokens:
                        self._tokens.give(units - spent)  # what was taken was an estimate
                if overloaded:
                    self._pace.overloaded(age)
            if tries == self.retries or (asked or 0) > self.longest_wait:
                problem += f", after {tries + 1} tries" if tries == self.retries else f", and asks to wait {asked:g} s"
                raise ModelError(
                    self._clean(f"{self.model} at {self.base_url}: {problem}"), field="model", mend="see that the server is up"
                )
            await asyncio.sleep((asked or 0) + random.uniform(0, min(60.0, self.backoff * 2**tries)))
            tries += 1

    async def _pay(self, units: int) -> None:
        """Wait until the limits per minute allow one more request of about `units` tokens."""
        wait = max(self._requests.take(1) if self._requests else 0, self._tokens.take(units) if self._tokens else 0)
        if not wait:
            return
        try:
            await asyncio.sleep(wait)
        except asyncio.CancelledError:
            if self._requests:
                self._requests.give(1)
            if self._tokens:
                self._tokens.give(units)
            raise

    def _trimmed(self, body: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in body.items() if name not in self._left_out}
        if "max_tokens" in self._left_out and "max_tokens" in body:
            kept["max_completion_tokens"] = body["max_tokens"]
        return kept

    def _learn(self, error: _StatusError, sent: dict[str, Any]) -> bool:
        """Whether the server says that it does not take an optional parameter, which is left out from now on."""
        if error.status not in (400, 422) or self.reasoning is False or not _REFUSES.search(f"{error.code} {error.message}"):
            return False
        named = [name for name in OPTIONAL if name == error.param or (not error.param and re.search(rf"['\"`]{name}['\"`]", error.message))]
        learned = [name for name in named if name in sent]
        for name in learned:
            self._leave_out(name)
        return bool(learned)

    def _leave_out(self, name: str) -> None:
        if name not in self._left_out:
            self._left_out.add(name)
            log.info("%s does not take %r: left out from now on", self.model, name)

    def _check(self, error: _StatusError) -> str:
        """What is wrong, where trying again may help.

        Raises:
            Refused, ModelError: where it does not.
        """
        status, problem = error.status, self._clean(f"{self.model} at {self.base_url} answered {error.status}: {error.message}")
        if error.code == "refused":
            raise Refused(self._clean(error.message), field="prompt") from None
        if (status in (408, 409, 429) or status >= 500) and error.code != "insufficient_quota":
            return f"it answered {status}: {error.message}"
        mend = {401: "check the API key", 403: "check what the API key may do", 404: "check model and base_url", 429: "check the account"}
        raise ModelError(problem, field="model", mend=mend.get(status, "")) from None

    def _clean(self, text: str) -> str:
        return redact(text, *self._secrets)

    async def _here(self) -> _Here:
        """Connections and queue of the running loop: neither can cross loops."""
        loop = asyncio.get_running_loop()
        here = self._loops.get(loop)
        if here is None:
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(), headers=self._headers,
                proxy=_proxy(self.base_url), cookie_jar=aiohttp.DummyCookieJar(), request_class=_Request,
            )  # fmt: skip
            here = _Here(session, Gate(self._pace), _lifetime(session))
            await anext(here.lifetime)
            with self._lock:
                self._loops = {old: kept for old, kept in self._loops.items() if not old.is_closed()} | {loop: here}
        return here


class _Request(aiohttp.ClientRequest):
    """A request whose body goes out with its head.

    aiohttp writes a body in a task, which before Python 3.12 begins a turn of the loop later. Answers that come in the same turn would all
    be read before the first of them is asked on, and requests that began together would stay together, each waiting for all others.
    """

    if sys.version_info < (3, 12):

        def write_bytes(self, *args: Any, **options: Any) -> Coroutine[Any, Any, None]:
            return _Begun(super().write_bytes(*args, **options))


class _Begun(Coroutine[Any, None, None]):
    """A coroutine that has run up to where it first waits."""

    def __init__(self, work: Coroutine[Any, None, None]) -> None:
        self.work, self.waits_for = work, list[Any]()
        with suppress(StopIteration):
            self.waits_for.append(work.send(None))
        self.finished = not self.waits_for

    def send(self, value: None) -> Any:
        if self.finished:
            raise StopIteration
        return self.waits_for.pop() if self.waits_for else self.work.send(value)

    def throw(self, error: Any, *more: Any) -> Any:
        if self.finished:
            raise error
        return self.work.throw(error, *more)

    def close(self) -> None:
        self.work.close()

    def __await__(self) -> Generator[Any]:
        raise NotImplementedError("it is run as a task")


@dataclass(frozen=True)
class _Here:
    session: aiohttp.ClientSession
    gate: Gate
    lifetime: AsyncGenerator[None]


async def _lifetime(session: aiohttp.ClientSession) -> AsyncGenerator[None]:
    """Closes the session when it is closed itself: by `close`, or by the event loop, which closes its generators at its end."""
    try:
        yield
    finally:
        await session.close()


class _StatusError(Exception):
    """An answer whose status says that something is wrong, with what it says."""

    def __init__(self, status: int, headers: Mapping[str, str], text: bytes) -> None:
        self.status, self.headers = status, headers
        said: Any = text.decode(errors="replace")
        with suppress(ValueError, RecursionError):
            said = json.loads(said)
        if isinstance(said, dict):
            said = said.get("error") or said
        named = said if isinstance(said, dict) else {}
        self.code, self.param = named.get("code"), named.get("param")
        self.message = str(named.get("message") or named.get("detail") or said)[:500]


def _proxy(address: str) -> str | None:
    """The proxy that the environment names for it, if any. (aiohttp's `trust_env` would ask for it anew, in a thread, at every request.)"""
    parts = urlsplit(address)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


def _request_headers(address: SplitResult, key: str) -> dict[str, str]:
    """What every request says: user and password where the address has them, else the key."""
    if address.username is None:
        allowed = f"Bearer {key}"
    else:
        pair = f"{unquote(address.username)}:{unquote(address.password or '')}"
        allowed = f"Basic {base64.b64encode(pair.encode()).decode()}"
    return {"authorization": allowed, "content-type": "application/json"}


def _public_address(base_url: str) -> tuple[str, Literal["chat", "completions"] | None]:
    """The address without user, password, query and interface; the interface, where the address ends in one."""
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise BadInput("not an http address", field="base_url", value=redact(base_url), mend="for instance http://127.0.0.1:8377/v1")
    address = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
    for api in _APIS:
        if address.endswith(end := _APIS[api]):
            return address.removesuffix(end), api
    return address, None


def _price(prices: Mapping[str, Mapping[str, float]] | str | Path | None, model: str) -> tuple[float, float]:
    """Price per million tokens in and out; 0 without a table."""
    if prices is None:
        return 0.0, 0.0
    if isinstance(prices, str | Path):
        try:
            prices = json.loads(Path(prices).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise BadInput(f"the price table cannot be read ({error})", field="prices", value=str(prices)) from None
    row = prices.get(model) if isinstance(prices, Mapping) else None
    try:
        each = float(row["input"]), float(row["output"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        each = -1.0, -1.0
    if not (0 <= each[0] < float("inf") and 0 <= each[1] < float("inf")):
        mend = f'give {{"{model}": {{"input": …, "output": …}}}} in money per million tokens'
        raise BadInput("the price table has no usable row for this model", field="prices", value=row, mend=mend)
    return each


def _chat_body(request: Request) -> dict[str, Any]:
    messages = [_message_json(message) for message in as_messages(request.prompt)]
    if request.prefix:
        messages.append({"role": "assistant", "content": request.prefix})
    body: dict[str, Any] = {"messages": messages}
    if request.schema is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": request.schema}}
    if request.tools:
        body["tools"] = list(request.tools)
    return body


def _message_json(message: Message) -> dict[str, Any]:
    """A message as the chat completions interface writes it."""
    whole: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        whole["name"] = message.name
    if message.tool_calls:
        whole["tool_calls"] = [call.as_json() for call in message.tool_calls]
    if message.tool_call_id is not None:
        whole["tool_call_id"] = message.tool_call_id
    return whole


def _plain_text(request: Request) -> str:
    for field, value in (("tools", request.tools), ("schema", request.schema)):
        if value:
            raise BadInput("the completions interface cannot do this", field=field, mend='use api="chat"')
    if isinstance(request.prompt, str):
        return request.prompt
    raise BadInput("the completions interface takes text, not messages", field="prompt", mend='give text, or use api="chat"')


def _read_choice(choice: Any, api: str) -> tuple[str, str, float | None, tuple[ToolCall, ...], int]:
    """Text, finish, log-probability, tool calls, and a weight that shares out the tokens of a request with several choices."""
    scores = choice.get("logprobs") or {}
    calls: tuple[ToolCall, ...] = ()
    if api == "chat":
        message = choice["message"]
        content = message.get("content") or message.get("refusal") or ""
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        logprobs = [token["logprob"] for token in scores.get("content") or []]
        calls = tuple(_read_call(call) for call in message.get("tool_calls") or [])
    else:
        text = choice["text"]
        if not isinstance(text, str):
            raise ValueError("the text of a choice is no text")
        logprobs = [value for value in scores.get("token_logprobs") or [] if value is not None]
    own = (choice.get("usage") or {}).get("completion_tokens")  # keystep's server says it for each choice
    weight = int(own) if own is not None else len(logprobs) or len(text) + 1
    return text, str(choice.get("finish_reason") or "stop"), float(sum(logprobs)) if logprobs else None, calls, weight


def _read_call(call: Any) -> ToolCall:
    arguments = call["function"].get("arguments") or "{}"
    return ToolCall(str(call.get("id") or ""), call["function"]["name"], arguments if isinstance(arguments, str) else json.dumps(arguments))


def _share_out(total: int, weights: Sequence[int]) -> list[int]:
    """`total` split into whole numbers in proportion to the weights (largest remainders first)."""
    whole = sum(weights) or 1
    shares = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: -(total * weights[i] % whole))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def _total_tokens(answer: dict[str, Any]) -> int:
    usage = answer.get("usage") or {}
    return int(usage.get("prompt_tokens") or 0) + int(usage.get("completion_tokens") or 0)


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: retry-after-ms, or Retry-After as a number or a date."""
    try:
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    except (KeyError, ValueError):
        pass
    after = headers.get("retry-after", "")
    try:
        return max(0.0, float(after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    except ValueError:
        return None
