"""How fast a server may be asked: a token bucket per limit, and a number of requests in flight that adapts itself.

The buckets and the adapted number belong to the endpoint and outlive an event loop; the queue of those who wait belongs to one loop.
Two loops in two threads share the rates but each fills the whole number of requests in flight.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable

BURST = 0.1  # of a minute's allowance may be used at once


class Bucket:
    """At most `per_minute` units a minute, and a tenth of them (one at least) in one go.

    Taking may leave a debt; who takes waits until it is paid off, so units are never granted twice and a request larger than the
    bucket gets through in the end.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.size, self.clock = per_minute / 60, max(1.0, per_minute * BURST), clock
        self._level, self._then = self.size, clock()
        self._lock = threading.Lock()

    def take(self, units: float) -> float:
        """Take `units` and return the seconds to wait before using them."""
        with self._lock:
            now = self.clock()
            self._level = min(self.size, self._level + (now - self._then) * self.rate) - units
            self._then = now
            return max(0.0, -self._level / self.rate)

    def give(self, units: float) -> None:
        """Give back units that were not used after all (negative: more was used than taken)."""
        with self._lock:
            self._level += units


class Pace:
    """How many requests may be in flight: one more after each full window of successes, half at a sign of overload.

    One overload fails every request in flight; only those begun since the last halving count, so it halves once.
    """

    def __init__(self, most: int) -> None:
        self.most, self.width, self.age, self._successes = most, most, 0, 0

    def succeeded(self) -> None:
        self._successes += 1
        if self._successes >= self.width:
            self.width, self._successes = min(self.most, self.width + 1), 0

    def overloaded(self, age: int) -> None:
        """`age` is what `Pace.age` was when the failed request began."""
        if age == self.age:
            self.width, self._successes, self.age = max(1, self.width // 2), 0, self.age + 1


class Gate:
    """Lets `pace.width` requests of one event loop through at a time, first come first served: `async with gate:`."""

    def __init__(self, pace: Pace) -> None:
        self.pace, self.inside = pace, 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> None:
        if not self._waiting and self.inside < self.pace.width:  # no turn of the loop for it: the answers of a burst are asked on at once
            self.inside += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # let in and cancelled in the same moment: the place is free again
                await self.__aexit__()
            raise

    async def __aexit__(self, *failure: object) -> None:
        self.inside -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.inside < self.pace.width:
            turn = self._waiting.popleft()
            if not turn.done():
                self.inside += 1
                turn.set_result(None)
