"""What a voting proxy adds to a request: `python benchmarks/proxy.py [--quick]`.

A server, a process of its own, answers at once. The same requests go to it, to `keystep serve --first` before it (no vote: what the proxy
itself costs) and to `keystep serve --ahead-by 3` (three samples a request), by turns in every round, one request after another on one
kept connection. `ratio_first` and `ratio_ahead_by_3` are times per request over the bare server's, medians over the rounds; the
milliseconds beside them depend on the machine. Writes results/benchmarks/proxy.json and prints it as one line.
"""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from keystep.reproduce import machine

HERE = Path(__file__).parent
OUT = HERE.parent / "results/benchmarks/proxy.json"
ROUNDS, REQUESTS = 15, 40
WAYS = {"first": ["--first"], "ahead_by_3": ["--ahead-by", "3"]}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def connected(port: int) -> http.client.HTTPConnection:
    """A connection to a server that may still be starting."""
    until = time.monotonic() + 120
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.connect()
            return connection
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def seconds(connection: http.client.HTTPConnection, requests: int) -> float:
    """Per request."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "What is 6 times 7?"}]})
    began = time.perf_counter()
    for _ in range(requests):
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        answer = json.loads(connection.getresponse().read())
        if answer["choices"][0]["message"]["content"] != "42":
            raise SystemExit(f"a wrong answer: {answer}")
    return (time.perf_counter() - began) / requests


def main(quick: bool) -> None:
    rounds: list[dict[str, float]] = []
    with ExitStack() as stack:
        server = stack.enter_context(
            subprocess.Popen([sys.executable, str(HERE / "loops/slow_server.py"), "0"], stdout=subprocess.PIPE, text=True)
        )
        stack.callback(server.kill)
        assert server.stdout is not None
        ports = {"bare": int(server.stdout.readline())}
        for way, flags in WAYS.items():
            ports[way] = free_port()
            model = f"http://127.0.0.1:{ports['bare']}/v1#m"
            command = [str(Path(sys.executable).with_name("keystep")), "serve", "--model", model, "--port", str(ports[way]), *flags]
            stack.callback(stack.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL)).kill)
        connections = {way: connected(port) for way, port in ports.items()}
        connections["first"].request("GET", "/v1/models")
        named = json.loads(connections["first"].getresponse().read())["data"]
        if "m" not in {each["id"] for each in named}:
            raise SystemExit(f"the proxy serves {named}")
        for connection in connections.values():
            seconds(connection, 5)
        for _ in range(2 if quick else ROUNDS):
            rounds.append({way: seconds(connection, REQUESTS) for way, connection in connections.items()})
    middle = {way: median(each[way] for each in rounds) for way in ports}
    result = {
        "name": "proxy",
        "machine": machine(),
        "rounds": len(rounds),
        "requests_per_round": REQUESTS,
        **{f"ratio_{way}": round(median(each[way] / each["bare"] for each in rounds), 2) for way in WAYS},
        "milliseconds_per_request": {way: round(1000 * value, 3) for way, value in middle.items()},
        "milliseconds_added": {way: round(1000 * (middle[way] - middle["bare"]), 3) for way in WAYS},
    }
    if not quick:
        OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main("--quick" in sys.argv[1:])
