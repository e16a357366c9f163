"""`keystep view` in a process of its own, runs in others, and the news of a page as a client reads them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filled import Taken

SECONDS = 120  # that a reader waits; nothing depends on how long it takes
RUN = Path(__file__).parents[1] / "run"


@contextmanager
def viewing(journal: Path) -> Iterator[Any]:
    """The process, with its address as `where`; it ends as by Ctrl-C, and by itself."""
    call = [sys.executable, "-c", "from keystep.cli import main; main()", "view", "--journal", str(journal), "--port", "0"]
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = process.stderr.readline()
            assert " are at http://127.0.0.1:" in said, said + process.stderr.read()
            process.where = said.split(" are at ")[1].split()[0]
            yield process
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            assert (process.wait(60), process.stderr.read()) == (0, "")
        finally:
            process.kill()


@contextmanager
def running(journal: Path) -> Iterator[subprocess.Popen[str]]:
    """`gated.py`; write a line to it to let it pass its next gate."""
    path = os.pathsep.join((str(RUN), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")))
    call = [sys.executable, str(Path(__file__).with_name("gated.py")), str(journal)]
    env = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


def passes(process: subprocess.Popen[str]) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


def get(where: str, path: str, **headers: str) -> tuple[int, str, Any]:
    connection = http.client.HTTPConnection(where.removeprefix("http://"), timeout=SECONDS)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    try:
        return answer.status, answer.read().decode(), answer.headers
    finally:
        connection.close()


class News:
    """The events of an address; `until` reads on to the first page that has these words."""

    def __init__(self, where: str, path: str) -> None:
        self.connection = http.client.HTTPConnection(where.removeprefix("http://"), timeout=SECONDS)
        self.connection.request("GET", path)
        self.answer = self.connection.getresponse()
        assert self.answer.getheader("content-type").startswith("text/event-stream")

    def next(self) -> tuple[str, Any] | None:
        """The next event, None where they end."""
        event = ""
        for line in self.answer:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "event":
                event = value
            elif name == "data":
                return event, json.loads(value)
        return None

    def until(self, *words: str) -> str:
        while (event := self.next()) is not None:
            said = " ".join(Taken(event[1]).text.split()) if event[0] == "page" else event[0]
            if all(word in said for word in words):
                return said
        pytest.fail(f"the news ended without {words}")

    def close(self) -> None:
        self.answer.close()
        self.connection.close()
