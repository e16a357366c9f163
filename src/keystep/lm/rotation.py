"""Several models behind one name: sample i comes from model i mod M, so that a vote hears them all in turn.

Models that err in different places outvote each other's errors; one model asked often repeats its own. The models may be of any kind.
It gives no embeddings: vectors of different models cannot be compared.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from keystep.errors import BadInput
from keystep.lm.base import LM, Request, Sample


class Rotation(LM):
    """`models` take turns. A model that itself has several members goes on from member to member at each of its turns.

    All models of a request are asked at once; if one fails, the others are cancelled and its error is raised.
    """

    def __init__(self, models: Sequence[LM], name: str = "") -> None:
        if not models:
            raise BadInput("a rotation needs at least one model", field="models")
        self.models = list(models)
        self.members = len(self.models)
        self.name = name or ",".join(model.name for model in self.models)

    def identity(self) -> Any:
        return {"rotation": [model.identity() for model in self.models]}

    async def close(self) -> None:
        await asyncio.gather(*(model.close() for model in self.models))

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        """Samples as any of the models finishes them."""
        come: asyncio.Queue[Sample | BaseException | None] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._turns(turn, part, come)) for turn in range(self.members) if (part := self._part(request, turn)).n > 0
        ]
        running = len(tasks)
        try:
            while running:
                got = await come.get()
                if isinstance(got, BaseException):
                    raise got
                if got is None:
                    running -= 1
                else:
                    yield got
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _part(self, request: Request, turn: int) -> Request:
        """What model `turn` is asked: its turns numbered without gaps, under a key of its own, lest two like models draw alike."""
        first, last = (-(-(index - turn) // self.members) for index in (request.first, request.first + request.n))
        return replace(request, first=first, n=last - first, key=f"{request.key}/{turn}")

    async def _turns(self, turn: int, part: Request, come: asyncio.Queue[Sample | BaseException | None]) -> None:
        try:
            async with aclosing(self.models[turn].sample(part)) as samples:
                async for sample in samples:
                    come.put_nowait(replace(sample, index=sample.index * self.members + turn))
        except BaseException as error:
            come.put_nowait(error)
            raise
        come.put_nowait(None)
