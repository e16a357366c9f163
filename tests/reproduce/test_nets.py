"""Workers that answer all that wait at once: what goes wrong reaches everybody who waits."""

import asyncio

import pytest

from keystep.errors import Refused
from keystep.reproduce._nets import Batched


class Raising(Batched):
    def __init__(self):
        super().__init__("raising")
        self.bad = True

    def answers(self, prompts, temperature, uniform):
        if self.bad:
            raise Refused("knows nothing", field="prompt", value=prompts[0])
        return list(prompts)


def test_an_error_reaches_all_who_wait_and_the_worker_goes_on():
    async def ask():
        lm = Raising()
        waiting = [lm.complete("a", n=3), lm.complete("b")]
        found = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), timeout=20)
        lm.bad = False
        return found, await lm.complete("c")

    found, after = asyncio.run(ask())
    assert [type(one) for one in found] == [Refused, Refused]
    assert [sample.text for sample in after] == ["c"]


def test_too_few_answers_are_an_error_and_no_hang():
    class Short(Batched):
        def answers(self, prompts, temperature, uniform):
            return []

    with pytest.raises(ValueError, match="shorter"):
        asyncio.run(asyncio.wait_for(Short("short").complete("a", n=2), timeout=20))
