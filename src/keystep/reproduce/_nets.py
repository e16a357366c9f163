"""Small transformers trained from scratch, as workers of reproductions: stock Llama models, trained by Muon and AdamW, kept in a cache.

A cached net is taken again only where everything that made it is the same: its shape, its seed, its data's description, the updates.
The cache is `$XDG_CACHE_HOME/keystep` (or `~/.cache/keystep`); deleting it costs time only.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from keystep.errors import MissingExtra
from keystep.files import whole
from keystep.lm.base import LM, Prompt, Request, Sample, draw_key
from keystep.measure.bench import benchmark, journaled, many
from keystep.run import First, Run
from keystep.run.vote import Rule

Batch = tuple[NDArray[np.int64], NDArray[np.bool_]]  # tokens, and which of them the loss counts; both (rows, length)
FIRST_UPDATES = 50  # of a rising rate


@dataclass(frozen=True, slots=True)
class Net:
    """How a net is built and trained. `rate` is Muon's peak rate for the matrices, `embedding_rate` AdamW's for the rest. `data` says in
    words what it is trained on; `base` names the net that it goes on from, in the same way. With `stretch` the positions of a row have gaps
    in training, up to so many in all, so that rows which are longer by as much are not out of range."""

    data: str
    vocabulary: int
    longest: int
    updates: int
    seed: int
    width: int = 64
    layers: int = 2
    heads: int = 2
    rate: float = 2e-2
    embedding_rate: float = 3e-3
    base: str = ""
    stretch: int = 0

    @property
    def name(self) -> str:
        parts = {name: value for name, value in asdict(self).items() if name != "stretch" or value}
        return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=10).hexdigest()


def trained(
    net: Net,
    batch: Callable[[np.random.Generator], Batch],
    base: Any = None,
    tick: Callable[[], object] | None = None,
    read: Callable[[Any, NDArray[np.int64]], dict[str, Any]] | None = None,
) -> Any:
    """The net, from the cache or trained on `net.updates` batches; `tick` is called after each update.

    `read` says what the model is called with for given tokens, where that is not the tokens alone; `net.data` has to name it.

    Raises:
        MissingExtra: torch or transformers is not installed.
    """
    try:
        import torch
        from safetensors.torch import load_file, save_file
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        raise MissingExtra("training the workers of a reproduction", "local") from None
    torch.set_num_threads(1)
    torch.manual_seed(net.seed)
    config = LlamaConfig(
        vocab_size=net.vocabulary, hidden_size=net.width, intermediate_size=4 * net.width, num_hidden_layers=net.layers,
        num_attention_heads=net.heads, num_key_value_heads=net.heads, max_position_embeddings=net.longest, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    if base is not None:
        model.load_state_dict(base.state_dict())
    file = _cache() / f"{net.name}.safetensors"
    if file.exists():
        model.load_state_dict(load_file(file))
        return model.eval()
    _train(model, net, batch, tick, read)
    with whole(file, replace=True) as part:
        save_file({name: weight.contiguous() for name, weight in model.state_dict().items()}, part)
    return model.eval()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "keystep"


def _train(
    model: Any,
    net: Net,
    batch: Callable[[np.random.Generator], Batch],
    tick: Callable[[], object] | None,
    read: Callable[[Any, NDArray[np.int64]], dict[str, Any]] | None,
) -> None:
    import torch
    from torch.nn import functional

    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and ".layers." in name]
    rest = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or ".layers." not in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=net.rate, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=net.embedding_rate, weight_decay=0.01),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda at: _share(at, net.updates)) for each in optimizers]
    draw = np.random.default_rng([net.seed, 1])
    model.train()
    for _ in range(net.updates):
        rows, counts = batch(draw)
        tokens, counted = torch.from_numpy(rows), torch.from_numpy(counts)
        given = read(model, rows[:, :-1]) if read else {"input_ids": tokens[:, :-1]}
        if net.stretch:
            given["position_ids"] = torch.from_numpy(stretched(rows.shape[0], rows.shape[1] - 1, net.stretch, draw))
        logits = model(**given).logits
        wanted = counted[:, 1:]
        loss = functional.cross_entropy(logits[wanted], tokens[:, 1:][wanted])
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if tick is not None:
            tick()


def stretched(rows: int, length: int, most: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """(rows, length) rising positions from 0 with three gaps in each row, of `most` in all at most."""
    places = np.tile(np.arange(length), (rows, 1))
    for _ in range(3):
        places += (np.arange(length) >= draw.integers(length, size=(rows, 1))) * draw.integers(most // 3 + 1, size=(rows, 1))
    return places


def _share(at: int, updates: int) -> float:
    """The rate at an update as a share of its peak: up in a line, down along a cosine."""
    return min(1.0, (at + 1) / FIRST_UPDATES) * 0.5 * (1 + math.cos(math.pi * at / updates))


class Batched(LM):
    """A worker that answers all prompts that wait at the same time in one go."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._waiting: list[tuple[Request, int, asyncio.Future[str]]] = []

    @abstractmethod
    def answers(self, prompts: list[Prompt], temperature: float, uniform: NDArray[np.float64]) -> list[str]:
        """One text per prompt; `uniform` is a random number for each, which decides its draw."""

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        loop = asyncio.get_running_loop()
        numbers = range(request.first, request.first + request.n)
        mine = [loop.create_future() for _ in numbers]
        if not self._waiting:
            loop.call_soon(self._work)
        self._waiting += [(request, index, future) for index, future in zip(numbers, mine, strict=True)]
        for index, text in zip(numbers, await asyncio.gather(*mine), strict=True):
            yield Sample(text, index, tokens_in=1, tokens_out=1, model=self.name)

    def _work(self) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            uniform = np.array([(draw_key(request.seed, request.key, index) >> 64) / 2**64 for request, index, _ in waiting])
            texts = self.answers([request.prompt for request, _, _ in waiting], waiting[0][0].temperature, uniform)
            answered = list(zip(waiting, texts, strict=True))
        except Exception as error:  # it belongs to those who wait
            for _, _, future in waiting:
                if not future.cancelled():
                    future.set_exception(error)
            return
        for (_, _, future), text in answered:
            if not future.cancelled():
                future.set_result(text)


def answered(
    name: str, worker: LM, settings: BaseModel, problems: list[dict[str, Any]], rule: Rule | None = None, seed: int = 0
) -> list[list[Any]]:
    """A worker's answers to a benchmark's problems, by the way that `keystep bench` takes; one sample a step where no rule decides."""
    run = Run(worker, vote=rule or First(cap=1), seed=seed)
    asyncio.run(many(benchmark(name), settings, problems, rule is not None, concurrency=1000).execute(run))
    answers = journaled(run, len(problems))
    run.close()
    return answers
