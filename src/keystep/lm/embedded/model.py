"""The embedded models: ensembles of small transformers inside the package that each know one skill, and err now and then.

`embedded` has a small ensemble for every skill, `embedded-large` one for taller towers; `embedded:2` is member 2 alone. They answer the
prompts of their skills word for word as `keystep.lm.embedded.hanoi` and `.ledger` write them, as a text or as one user message, and
refuse any other. They take no assistant prefix, no schema and no tools. A prompt and its answer together have at most as many tokens as
the skill's context; an answer that fills it ends with finish "length".

Requests that are made while others are ready too are decoded in one batch. That changes no answer: every sample is drawn by
(seed, key, index) alone, and the decoder's rounding does not depend on the batch.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from hashlib import blake2b
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, cast
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from keystep.errors import BadInput, ModelError, Refused
from keystep.lm.base import LM, Request, Sample, as_messages, draw_key
from keystep.lm.embedded import arithmetic, hanoi, ledger, lists, pairs, problems, strings
from keystep.lm.embedded.decoder import Answer, Decoder, Floats, Ints, Row

WEIGHTS = Path(__file__).parent / "weights"
if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

MANY = 16  # requests made together, from which on processes of their own are worth their start
_ONE_SIZE = ("arithmetic", "pairs", "lists", "strings", "problems")  # skills that have no larger ensemble
MODELS = {"embedded": ("hanoi", "ledger", *_ONE_SIZE), "embedded-large": ("hanoi-large", "ledger-large", *_ONE_SIZE)}


class Tokenizer(Protocol):
    """A module that knows one skill's prompts."""

    @property
    def KNOWS(self) -> str: ...
    @property
    def END(self) -> int: ...
    @staticmethod
    def encode(text: str, /) -> tuple[list[int], int] | None: ...
    @staticmethod
    def decode(tokens: Sequence[int], /) -> str: ...


@dataclass(frozen=True)
class Skill:
    """A tokenizer, and the most tokens that prompt and answer may have together."""

    tokenizer: Tokenizer
    context: int


SKILLS = {
    "hanoi": Skill(cast(Tokenizer, hanoi), 64),
    "ledger": Skill(cast(Tokenizer, ledger), 256),
    "arithmetic": Skill(cast(Tokenizer, arithmetic), 16),
    "pairs": Skill(cast(Tokenizer, pairs), 16),
    "lists": Skill(cast(Tokenizer, lists), 32),
    "strings": Skill(cast(Tokenizer, strings), 64),
    "problems": Skill(cast(Tokenizer, problems), 32),
}


@dataclass(frozen=True)
class Member:
    """One model of an ensemble; `about` says how it was made: config, seed, updates, minutes."""

    decoder: Decoder
    number: int
    about: dict[str, Any]


class Ensemble:
    """The members trained for one skill, out of a safetensors file of `training/train.py`."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.stem
        self.skill = SKILLS[self.name.removesuffix("-large")]
        self.digest = blake2b(path.read_bytes(), digest_size=16).hexdigest()
        with safe_open(path, framework="numpy") as file:
            about: list[dict[str, Any]] = json.loads(file.metadata()["members"])
            tensors: list[dict[str, Floats]] = [{} for _ in about]
            for key in file.keys():  # noqa: SIM118 (the file is no mapping)
                number, _, name = key.partition(".")
                tensors[int(number)][name] = file.get_tensor(key)
        self.parameters = [sum(tensor.size for tensor in member.values()) for member in tensors]
        decoder = Decoder([member["config"] for member in about], tensors, self.skill.context, self.skill.tokenizer.END)
        self.decoder, self.members = decoder, [Member(decoder, number, member) for number, member in enumerate(about)]


@cache
def load(name: str) -> Ensemble:
    """The ensemble `name` of the package; there is a card of each in `docs/models`.

    Raises:
        BadInput: there is none of that name here.
    """
    path = WEIGHTS / f"{name}.safetensors"
    if not path.exists():
        there = ", ".join(sorted(file.stem for file in WEIGHTS.glob("*.safetensors"))) or "none"
        raise BadInput("this ensemble is not in this installation", field="model", value=name, mend=f"there are: {there}")
    return Ensemble(path)


def answer_probabilities(
    member: Member, prompts_tokens: Ints, answers_tokens: Ints, temperature: float = 1.0, shared: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The exact probability that `member` samples each answer, float64 [N], and whether it is its greedy one, bool [N].

    `prompts_tokens` [N, P] are all of one length, `answers_tokens` [N, A] too and include the end token. `temperature` is above 0.
    The first `shared` tokens of a prompt are computed once for all rows that have the same.
    """
    return member.decoder.answer_probabilities(member.number, prompts_tokens, answers_tokens, temperature, shared)


@dataclass(slots=True)
class _Waiting:
    ensemble: Ensemble
    rows: list[Row]
    answers: asyncio.Future[list[Answer]]


class Embedded(LM):
    """`name` is one of MODELS, or one of them and a member's number (`embedded:2`), counted from 0; `ensembles` takes one's own instead.

    With more than one of `processes`, requests are decoded in so many of their own as soon as `MANY` of them are made together; then it is
    for one event loop at a time, and a script must keep its work below `if __name__ == "__main__":`.

    Raises:
        BadInput: no such model, none of its ensembles is installed, or no such member.
    """

    def __init__(self, name: str = "embedded", *, ensembles: Sequence[Ensemble] | None = None, processes: int = 1) -> None:
        if processes < 1:
            raise BadInput("is at least 1", field="processes", value=processes)
        self.name = name
        self._base, _, number = name.partition(":")
        if ensembles is None:
            if self._base not in MODELS:
                raise BadInput("no such model", field="model", value=name, mend=f"there are: {', '.join(MODELS)}")
            parts = MODELS[self._base]
            ensembles = [load(part) for part in parts if (WEIGHTS / f"{part}.safetensors").exists()] or [load(parts[0])]
        self.ensembles = list(ensembles)
        count = len(self.ensembles[0].members)
        if any(len(ensemble.members) != count for ensemble in self.ensembles):
            raise BadInput("its ensembles have unequal numbers of members", field="model", value=name)
        if number and not (number.isdecimal() and int(number) < count):
            raise BadInput("no such member", field="model", value=name, mend=f"members are counted from 0 to {count - 1}")
        self._members = [int(number)] if number else list(range(count))
        self.members = len(self._members)
        self._waiting: WeakKeyDictionary[asyncio.AbstractEventLoop, list[_Waiting]] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._processes, self._busy = processes, 0
        self._pool: ProcessPoolExecutor | None = None
        self._pool_loop: asyncio.AbstractEventLoop | None = None  # the one that waits for the processes
        self._held: deque[_Waiting] = deque()  # for a process that gets free

    def identity(self) -> Any:
        weights = {ensemble.name: ensemble.digest for ensemble in self.ensembles}
        return {"name": self.name, "members": self._members, "weights": weights}

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        """All samples at once, by index.

        Tokens out and `logprob` include the end token; `logprob` is the log-probability at temperature 1, whatever was sampled at.
        The first sample of each member carries the tokens of the prompt.
        """
        start = perf_counter()
        ensemble, prompt, shared = self._read(request)
        budget = min(request.max_tokens, ensemble.skill.context - len(prompt))
        members = [self._members[index % self.members] for index in range(request.first, request.first + request.n)]
        rows = [
            Row(member, prompt, shared, budget, _draws(request, index, budget), request.temperature, request.top_p)
            for index, member in enumerate(members, request.first)
        ]
        answers = await self._decode(ensemble, rows)
        seconds = perf_counter() - start
        paid: set[int] = set()
        for index, (row, answer) in enumerate(zip(rows, answers, strict=True), request.first):
            text, size, finish = _written(ensemble.skill.tokenizer, answer.tokens, request.stop)
            yield Sample(
                text=text,
                index=index,
                tokens_in=0 if row.member in paid else len(prompt),
                tokens_out=size,
                logprob=sum(answer.logprobs[:size]),
                finish=finish,
                seconds=seconds,
                model=f"{self._base}:{row.member}",
            )
            paid.add(row.member)

    def _read(self, request: Request) -> tuple[Ensemble, tuple[int, ...], int]:
        """The ensemble for a request, the tokens of its prompt, and how many of them are a shared prefix."""
        for field, least, value in (("n", 0, request.n), ("first", 0, request.first), ("max_tokens", 1, request.max_tokens)):
            if value < least:
                raise BadInput(f"must be {least} or more", field=field, value=value)
        if not 0 <= request.temperature < float("inf"):
            raise BadInput("must be 0 or more", field="temperature", value=request.temperature)
        if not 0 < request.top_p <= 1:
            raise BadInput("must be above 0 and at most 1", field="top_p", value=request.top_p)
        for field, given in (("prefix", request.prefix), ("schema", request.schema), ("tools", request.tools)):
            if given:
                raise BadInput(f"the embedded models take no {field}", field=field, value=given, mend="leave it out, or ask another model")
        messages = as_messages(request.prompt)
        text = messages[0].content if len(messages) == 1 and messages[0].role == "user" else None
        if isinstance(text, list):
            text = text[0].get("text") if len(text) == 1 and text[0].get("type") == "text" else None
        for ensemble in self.ensembles if isinstance(text, str) else ():
            known = ensemble.skill.tokenizer.encode(cast(str, text))
            if known and len(known[0]) < ensemble.skill.context:
                return ensemble, tuple(known[0]), known[1]
        knows = "; ".join(ensemble.skill.tokenizer.KNOWS for ensemble in self.ensembles)
        raise Refused(f"{self.name} was not trained for this prompt", field="prompt", value=request.prompt, mend=f"it knows: {knows}")

    async def _decode(self, ensemble: Ensemble, rows: list[Row]) -> list[Answer]:
        """Wait for the answers; a caller who leaves is decoded no more, or in vain."""
        loop = asyncio.get_running_loop()
        waiting = self._waiting.setdefault(loop, [])
        answers: asyncio.Future[list[Answer]] = loop.create_future()
        waiting.append(_Waiting(ensemble, rows, answers))
        if len(waiting) == 1:
            loop.call_soon(self._flush, waiting, 0)
        return await answers

    def _flush(self, waiting: list[_Waiting], before: int) -> None:
        """Decode everything that waits in this event loop, as soon as one turn of the loop has brought nothing new."""
        if len(waiting) > before:
            asyncio.get_running_loop().call_soon(self._flush, waiting, len(waiting))
            return
        asked = [one for one in waiting if not one.answers.done()]
        waiting.clear()
        if self._pool is not None or (self._processes > 1 and len(asked) >= MANY):
            if self._pool_loop is not (loop := asyncio.get_running_loop()):
                self._pool_loop, self._busy = loop, 0
                self._held.clear()
            self._held += asked
            self._hand_out()
            return
        try:
            with self._lock:
                for ensemble in self.ensembles:
                    mine = [one for one in asked if one.ensemble is ensemble]
                    answers = ensemble.decoder.answer([row for one in mine for row in one.rows])
                    for one in mine:
                        one.answers.set_result(answers[: len(one.rows)])
                        del answers[: len(one.rows)]
        except Exception as error:
            for one in asked:
                if not one.answers.done():
                    one.answers.set_exception(error)

    def _hand_out(self) -> None:
        """Give what is held to the processes that are free, in equal parts."""
        from keystep.lm.embedded import cores

        if self._pool is None:
            self._pool = cores.start(self._processes)
        while self._held and (free := self._processes - self._busy) > 0:
            part = [self._held.popleft() for _ in range(-(-len(self._held) // free))]
            ensemble = part[0].ensemble
            self._held.extendleft(reversed([one for one in part if one.ensemble is not ensemble]))
            part = [one for one in part if one.ensemble is ensemble and not one.answers.done()]
            if not part:
                continue
            try:
                work = self._pool.submit(cores.answer, ensemble.path, [row for one in part for row in one.rows])
            except RuntimeError as error:  # a process has died
                self._give(part, [], error)
                continue
            self._busy += 1
            asyncio.wrap_future(work).add_done_callback(partial(self._deliver, part))

    def _deliver(self, part: list[_Waiting], work: asyncio.Future[list[Answer]]) -> None:
        self._busy -= 1
        if work.cancelled():
            self._give(part, [], None)
        elif error := work.exception():
            self._give(part, [], error)
        else:
            self._give(part, work.result(), None)
        self._hand_out()

    def _give(self, part: list[_Waiting], answers: list[Answer], error: BaseException | None) -> None:
        """Give every one that still waits its answers, or the error where there are none."""
        for one in part:
            mine, answers = answers[: len(one.rows)], answers[len(one.rows) :]
            if one.answers.done():
                continue
            if len(mine) == len(one.rows):
                one.answers.set_result(mine)
            else:
                why = "was closed" if error is None else f"died: {error}"
                one.answers.set_exception(ModelError(f"a decoding process {why}", field="model", value=self.name, mend="resume the run"))

    async def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def _draws(request: Request, index: int, budget: int) -> NDArray[np.float64]:
    """The draws of sample `index`, one for every token, from a counter-based generator keyed by (seed, key, index)."""
    return np.random.Generator(np.random.Philox(key=draw_key(request.seed, request.key, index))).random(budget)


def _written(tokenizer: Tokenizer, tokens: list[int], stop: Sequence[str]) -> tuple[str, int, str]:
    """The text of an answer, cut before the first stop string; how many tokens it took; how it finished."""
    ended = tokens[-1] == tokenizer.END
    text = tokenizer.decode(tokens[:-1] if ended else tokens)
    found = [(place, len(word)) for word in stop if word and (place := text.find(word)) >= 0]
    if not found:
        return text, len(tokens), "stop" if ended else "length"
    place, size = min(found)
    needed = next(n for n in range(1, len(tokens) + 1) if n == len(tokens) or tokenizer.decode(tokens[:n]).startswith(text[: place + size]))
    return text[:place], needed, "stop"
