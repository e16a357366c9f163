"""The language-model protocol: what every backend takes and gives."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool the model wants called; `arguments` is the JSON text it wrote."""

    id: str
    name: str
    arguments: str

    def as_json(self) -> dict[str, Any]:
        """As the chat completions interface writes it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message; `role` is system, user, assistant or tool. `content` is text, or a list of OpenAI content parts."""

    role: str
    content: str | list[dict[str, Any]]
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


Prompt = str | tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """n samples over one shared prompt.

    `first` is the index of the first of them and `key` names the run and step they belong to: a backend that draws its own random
    numbers keys every draw by (seed, key, index), so that a sample does not depend on what was asked before or beside it.
    `prefix` is the beginning of the answer, already written (it is not part of the returned text). `schema` is a JSON schema that the
    answer has to follow, `tools` are OpenAI tool definitions. A temperature of 0 is greedy.
    """

    prompt: Prompt
    n: int = 1
    first: int = 0
    key: str = ""
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    prefix: str = ""
    schema: dict[str, Any] | None = None
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(slots=True)
class Sample:
    """One answer. `finish` is "stop", "length", "tool_calls" or what the server said; `logprob` is natural, of the whole text.

    `tokens_in` is what this sample paid for its prompt: of n samples over one computed prompt, the first carries it and the others 0.
    """

    text: str
    index: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    logprob: float | None = None
    finish: str = "stop"
    seconds: float = 0.0
    cost: float = 0.0
    model: str = ""
    tool_calls: tuple[ToolCall, ...] = field(default=())


class LM(ABC):
    """A language model.

    `members` is how many different models stand behind it: sample i comes from member i mod `members`.
    """

    name: str
    members: int = 1

    @abstractmethod
    def sample(self, request: Request) -> AsyncGenerator[Sample]:
        """Yield `request.n` samples as they finish, in any order; closing the generator cancels the rest.

        Raises:
            Refused: the model does not know this kind of prompt.
            ModelError: it could not be reached, after all retries.
        """

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector per text."""
        from keystep.errors import BadInput

        raise BadInput("this model gives no embeddings", field="model", value=self.name)

    def identity(self) -> Any:
        """What of this model decides its answers, as JSON, without secrets; the journal refuses to resume a run on another."""
        return self.name

    async def close(self) -> None:  # noqa: B027  (most models hold none)
        """Let connections go."""

    async def complete(self, prompt: Prompt, **options: Any) -> list[Sample]:
        """All samples of one request, by index; `options` are the fields of `Request`."""
        return sorted([sample async for sample in self.sample(Request(prompt, **options))], key=lambda s: s.index)

    def complete_sync(self, prompt: Prompt, **options: Any) -> list[Sample]:
        """`complete` for scripts and notebooks."""
        return run_sync(self.complete(prompt, **options))

    def embed_sync(self, texts: Sequence[str]) -> list[list[float]]:
        return run_sync(self.embed(texts))


def as_messages(prompt: Prompt) -> tuple[Message, ...]:
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def tool_name(tool: dict[str, Any]) -> str | None:
    """The name of a function in a tool definition."""
    function = tool.get("function")
    return function.get("name") if isinstance(function, dict) else None


def draw_key(*parts: object) -> int:
    """A 128-bit key for a counter-based generator, the same on every machine."""
    return int.from_bytes(blake2b("\x1f".join(map(str, parts)).encode(), digest_size=16).digest(), "little")


async def as_finished(waits: Iterable[Awaitable[T]]) -> AsyncGenerator[T]:
    """Results as they come; closing the iterator, or a failure, cancels the rest and waits until they are gone."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        for done in asyncio.as_completed(tasks):
            yield await done
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def run_sync(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where a loop is already running (a notebook): there it gets a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    result: list[T] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            result.append(asyncio.run(work))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
