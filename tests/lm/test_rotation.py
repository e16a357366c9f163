"""Several models in turn: who is asked for what, in what order answers come, and that nothing is left running."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

import keystep as ks
from keystep.errors import BadInput, ModelError
from keystep.lm.base import LM, Request, Sample
from keystep.lm.rotation import Rotation


class Told(LM):
    """Says its name and the index it was asked for; before each sample it waits for `gate`, if it has one."""

    def __init__(self, name: str, gate: asyncio.Event | None = None, failure: Exception | None = None) -> None:
        self.name, self.gate, self.failure = name, gate, failure
        self.asked: list[Request] = []
        self.closed = self.left = 0

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        self.asked.append(request)
        try:
            for index in range(request.first, request.first + request.n):
                if self.gate:
                    await self.gate.wait()
                if self.failure:
                    raise self.failure
                yield Sample(f"{self.name}{index}", index=index)
        finally:
            self.left += 1

    async def close(self) -> None:
        self.closed += 1


@given(models=st.integers(1, 5), first=st.integers(0, 20), n=st.integers(0, 20))
def test_sample_i_comes_from_model_i_mod_m(models: int, first: int, n: int) -> None:
    parts = [Told("abcde"[number]) for number in range(models)]
    samples = Rotation(parts).complete_sync("?", first=first, n=n)
    assert [sample.index for sample in samples] == list(range(first, first + n))
    assert [sample.text for sample in samples] == [f"{'abcde'[i % models]}{i // models}" for i in range(first, first + n)]
    assert all(
        len(part.asked) == (1 if any(i % models == number for i in range(first, first + n)) else 0) for number, part in enumerate(parts)
    )


def test_two_equal_models_are_asked_under_different_keys() -> None:
    twins = [Told("a"), Told("a")]
    Rotation(twins).complete_sync("?", n=2, key="run/7")
    assert twins[0].asked[0].key != twins[1].asked[0].key
    assert all(twin.asked[0].key.startswith("run/7") for twin in twins)


def test_samples_come_as_they_finish_and_leaving_cancels_the_rest() -> None:
    async def go() -> None:
        never = asyncio.Event()
        slow, fast = Told("slow", never), Told("fast")
        async with aclosing(Rotation([slow, fast]).sample(Request("?", n=4))) as samples:
            assert [(await anext(samples)).text for _ in range(2)] == ["fast0", "fast1"]
            assert slow.asked and not slow.left
        assert slow.left == 1
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(go())


def test_an_error_is_raised_and_the_others_are_cancelled() -> None:
    async def go() -> None:
        slow, broken = Told("slow", asyncio.Event()), Told("broken", failure=ModelError("gone"))
        with pytest.raises(ModelError, match="gone"):
            await Rotation([slow, broken]).complete("?", n=2)
        assert slow.left == 1
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(go())


def test_cancelling_the_asker_cancels_the_models() -> None:
    async def go() -> None:
        slow = Told("slow", asyncio.Event())
        asking = asyncio.create_task(Rotation([slow, slow]).complete("?", n=2))
        await asyncio.sleep(0.01)
        assert len(slow.asked) == 2
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert slow.left == 2

    asyncio.run(go())


def test_name_identity_members_close() -> None:
    parts = [Told("a"), Told("b")]
    both = Rotation(parts)
    assert both.name == "a,b" and both.members == 2 and both.identity() == {"rotation": ["a", "b"]}
    asyncio.run(both.close())
    assert [part.closed for part in parts] == [1, 1]
    with pytest.raises(BadInput, match="at least one"):
        Rotation([])


def test_by_name_with_commas() -> None:
    both = ks.lm("http://127.0.0.1:9/v1#x, http://127.0.0.1:9/v1#y", retries=0)
    assert isinstance(both, Rotation) and both.name == "x,y"
