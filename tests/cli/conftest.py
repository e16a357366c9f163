"""In-process calls of the command line in a folder of their own, with the test worker as the model, and real ones against a real server."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "run"))
from worker import written


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the commands run in; nothing of the environment names a model or a key."""
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def keystep(here: Path) -> Callable[..., Any]:
    """keystep("run", "hanoi", …) -> typer's result; anything but an exit is a failure of the test."""
    from typer.testing import CliRunner

    from keystep.cli import app

    def call(*arguments: str) -> Any:
        result = CliRunner().invoke(app, list(arguments))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return call


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """use(model): whatever model is named, it is this one."""

    def use(lm: Any) -> Any:
        monkeypatch.setattr("keystep.cli.job.lm", lambda name, **options: lm)
        return lm

    return use


@pytest.fixture
def server() -> Iterator[Any]:
    """A chat server that answers the built-in prompts truly; `server.pause` seconds later, from request `server.slow_after` on."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            listening.asked += 1  # type: ignore[attr-defined]
            if listening.asked > listening.slow_after:  # type: ignore[attr-defined]
                time.sleep(listening.pause)  # type: ignore[attr-defined]
            text = written(asked["messages"][-1]["content"], 0)
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
            choices = [{**choice, "index": index} for index in range(asked.get("n") or 1)]
            body = json.dumps(
                {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices, "usage": usage}
            ).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    listening.daemon_threads = True
    listening.asked, listening.pause, listening.slow_after = 0, 0.0, 0  # type: ignore[attr-defined]
    listening.model = f"http://127.0.0.1:{listening.server_port}/v1#m"  # type: ignore[attr-defined]
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield listening
    listening.shutdown()
    listening.server_close()
    thread.join()
