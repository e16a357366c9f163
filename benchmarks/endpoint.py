"""How near to its ideal rate an endpoint keeps 64 requests in flight: `python benchmarks/endpoint.py [--quick]`.

The server, a process of its own, answers every request after 50 ms, so 64 requests in flight could bring 1,280 answers a second. `share` is
the part of that which `Endpoint` brings, the median over the rounds; how much of one core it takes is measured beside it. Requests that all
begin in the same moment are answered in the same moment, and wait for each other until chance has spread them: the first twenty answers
each are measured by themselves, as `share_at_first`, and `share` is what follows. A smaller number in flight shows what waiting alone
costs. Writes results/benchmarks/endpoint.json and prints it as one line.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from keystep.lm.endpoint import Endpoint
from keystep.reproduce import machine

HERE = Path(__file__).parent
OUT = HERE.parent / "results/benchmarks/endpoint.json"
LATENCY, ROUNDS = 0.05, 7
IN_FLIGHT = {4: 400, 16: 1_600, 64: 6_400}  # how many at once: requests a round
AT_FIRST = 20  # requests each, before those


async def drive(lm: Endpoint, requests: int, in_flight: int) -> list[tuple[float, float]]:
    """Wall clock and processor time at the end of every request."""
    waiting, ends = iter(range(requests)), list[tuple[float, float]]()

    async def one_after_another() -> None:
        for number in waiting:
            await lm.complete("What is 6 times 7?", key=str(number))
            ends.append((time.perf_counter(), time.process_time()))

    await asyncio.gather(*(one_after_another() for _ in range(in_flight)))
    return ends


async def measure(url: str, requests: int, in_flight: int) -> dict[str, float]:
    lm = Endpoint("m", url, "none", concurrency=in_flight)
    await drive(lm, in_flight, in_flight)  # connections are opened
    early, began = AT_FIRST * in_flight, time.perf_counter()
    ends = await drive(lm, early + requests, in_flight)
    await lm.close()
    (spread, used_then), (end, used) = ends[early - 1], ends[-in_flight]  # without the last ones, who have nobody beside them any more
    counted, ideal = requests - in_flight + 1, in_flight / LATENCY
    return {
        "share": counted / (end - spread) / ideal,
        "share_at_first": early / (spread - began) / ideal,
        "core": (used - used_then) / (end - spread),
        "ms": (used - used_then) / counted * 1000,
    }


def main(quick: bool) -> None:
    rounds: list[dict[int, dict[str, float]]] = []
    scale, often = (5, 2) if quick else (1, ROUNDS)
    with subprocess.Popen([sys.executable, str(HERE / "loops/slow_server.py"), str(LATENCY)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        try:
            for _ in range(often):
                rounds.append({n: asyncio.run(measure(url, requests // scale, n)) for n, requests in IN_FLIGHT.items()})
        finally:
            server.kill()

    def middle(n: int, name: str) -> float:
        return round(median(each[n][name] for each in rounds), 3)

    result: dict[str, Any] = {
        "name": "endpoint",
        "machine": machine(),
        "rounds": often,
        "latency": LATENCY,
        "share": middle(64, "share"),
        "in_flight": {
            str(n): {
                "requests": requests // scale,
                "share": middle(n, "share"),
                "share_at_first": middle(n, "share_at_first"),
                "highest_share": round(max(each[n]["share"] for each in rounds), 3),
                "of_a_core": middle(n, "core"),
                "cpu_ms_per_request": middle(n, "ms"),
            }
            for n, requests in IN_FLIGHT.items()
        },
    }
    if not quick:
        OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
