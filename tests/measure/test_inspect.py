"""`inspect eval` on the package's model server. Inspect AI cannot be installed beside the versions of constraints.txt (it caps fsspec and
wants an older python-dateutil), so `make test` runs these in an environment of their own, .venv-inspect."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import uvicorn
from answering import Knowing, truths

pytest.importorskip("inspect_ai")

from keystep.lm import lm
from keystep.lm.base import as_messages
from keystep.lm.server import app
from keystep.measure.bench import benchmark
from keystep.measure.procbench.bench import Settings

PROCBENCH = {"mode": "stepwise", "tasks": [17, 22], "longest": 5}


class Told(Knowing):
    """As a chat server's model is asked: by messages."""

    async def sample(self, request):
        async for sample in super().sample(replace(request, prompt=str(as_messages(request.prompt)[-1].content))):
            yield sample


@pytest.fixture(scope="module")
def server():
    """The package's server, on loopback, with the embedded models and one that knows some problems of ProcBench and of TaskBench."""
    known = truths(benchmark("procbench").problems(Settings(**PROCBENCH), 0), "stepwise")
    requests = benchmark("taskbench")
    for problem in requests.problems(requests.Settings(n=6), 0):
        known[requests.procedure(requests.Settings(n=6), problem).prompt(0)] = json.dumps(problem)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serving = uvicorn.Server(uvicorn.Config(app({"embedded": lm("embedded"), "told": Told(known)}), port=port))
    thread = threading.Thread(target=serving.run, daemon=True)
    thread.start()
    while not serving.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}/v1"
    serving.should_exit = True
    thread.join()


def evaluated(task, model, server, folder, *options):
    """What `inspect eval` logs, as JSON."""
    command = [sys.executable, "-m", "inspect_ai", "eval", f"keystep/{task}", "--model", f"openai-api/local/{model}"]
    command += ["--model-base-url", server, "--log-dir", str(folder), "--log-format", "json", "--display", "none", *options]
    done = subprocess.run(command, env={**os.environ, "LOCAL_API_KEY": "none"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    [log] = folder.glob("*.json")
    found = json.loads(log.read_text())
    assert found["status"] == "success", found.get("error")
    return found, {score["name"]: score["metrics"]["keystep/mean"]["value"] for score in found["results"]["scores"]}


def test_long_horizon_on_the_embedded_models(server, tmp_path):
    options = ("-T", 'ways=["fresh"]', "-T", "horizon=10", "-T", "instances=4", "-T", "majority=3", "--temperature", "0.5")
    found, scores = evaluated("long_horizon_execution", "embedded", server, tmp_path, *options)
    assert found["eval"]["dataset"]["samples"] == 4 and scores["turn accuracy"] > 0.9 and scores["unreadable"] < 0.1
    assert scores["steps before the first error"] > 5


def test_procbench_on_a_served_model(server, tmp_path):
    given = [f"{name}={json.dumps(value)}" for name, value in PROCBENCH.items()]
    options = [part for pair in given for part in ("-T", pair)]
    found, scores = evaluated("procbench", "told", server, tmp_path, *options)
    assert found["eval"]["dataset"]["samples"] == 8
    assert scores["SM"] == scores["PA"] == scores["FM"] == 1 and scores["unreadable"] == 0


def test_taskbench_on_a_served_model(server, tmp_path):
    found, scores = evaluated("taskbench", "told", server, tmp_path, "-T", "n=6")
    assert found["eval"]["dataset"]["samples"] == 6
    assert scores["node_f1"] == scores["exact_graph"] == scores["coverage"] == 1 and scores["edit_distance"] == 0


def test_a_setting_that_cannot_be_is_said(server, tmp_path):
    command = [sys.executable, "-m", "inspect_ai", "eval", "keystep/procbench", "--model", "mockllm/model", "-T", "mode=nosuch"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "set mode: Input should be 'direct' or 'stepwise'" in " ".join((done.stdout + done.stderr).split())
