"""keystep report, and what keystep view refuses."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest
from worker import Worker


@pytest.fixture
def ran(keystep, use):
    """The name of a finished run of 15 steps in runs.db."""
    use(Worker([0.8, 0.1]))
    return json.loads(keystep("run", "hanoi", "--set", "disks=4", "--json").stdout)["run_id"]


def test_a_report_is_written_and_written_anew(keystep, ran, here):
    result = keystep("report", ran)
    assert (result.exit_code, result.stdout) == (0, f"wrote {ran}.html\n")
    first = (here / f"{ran}.html").read_text("utf-8")
    assert first.startswith("<!doctype html>") and "15 steps, every one right" in first
    assert f"keystep show {ran} --json<" in first  # the usual journal is not named
    (here / f"{ran}.html").write_text(first[:2000])  # an older one
    assert keystep("report", ran).exit_code == 0
    assert (here / f"{ran}.html").read_text("utf-8").startswith(first[:2000])
    assert keystep("report", ran, "--out", "other.html").exit_code == 0
    assert sorted(path.name for path in here.iterdir() if path.suffix != ".db" and "db-" not in path.name) == [f"{ran}.html", "other.html"]


def test_json(keystep, ran, here):
    result = keystep("report", ran, "--json")
    known = json.loads(result.stdout)
    assert (known["run"], known["verdict"], known["steps"]) == (ran, "right", 15) and not list(here.glob("*.html"))
    assert json.loads(keystep("show", ran, "--json").stdout)["samples"] == known["samples"]
    assert json.loads(keystep("report", ran, "--json", "--out", "a.html").stdout)["steps"] == 15 and (here / "a.html").exists()


def test_mistakes_leave_nothing(keystep, ran, here):
    (here / "mine.html").write_text("<p>mine</p>")
    before = {path: path.read_bytes() for path in here.iterdir() if path.suffix == ".html"}
    for arguments, said in (
        (("nobody",), "run: the journal has no such run (got 'nobody')"),
        ((ran, "--out", "mine.html"), "--out: is there already and no report (got 'mine.html')"),
        ((ran, "--out", "."), "--out: is there already and no report"),
        ((ran, "--out", "mine.html/x.html"), "--out: cannot be written"),
        ((ran, "--out", "/proc/x.html"), "--out: cannot be written"),
        ((ran, "--journal", "none.db"), "--journal: there is no journal here"),
    ):
        result = keystep("report", *arguments)
        assert result.exit_code == 2 and said in " ".join(result.stderr.split())
    for arguments, said in (
        (("--host", "0.0.0.0"), "host: this address is open to other machines (got '0.0.0.0')"),
        (("--port", "70000"), "port: no such port (got 70000)"),
        (("--journal", "none.db"), "--journal: there is no journal here"),
    ):
        result = keystep("view", *arguments)
        assert result.exit_code == 2 and said in " ".join(result.stderr.split())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "port: cannot listen" in keystep("view", "--port", str(taken.getsockname()[1])).stderr
    assert {path: path.read_bytes() for path in here.iterdir() if path.suffix == ".html"} == before


def test_a_full_disk_leaves_the_old_report(keystep, ran, here):
    keystep("report", ran, "--out", "a.html")
    before = (here / "a.html").read_bytes()
    assert len(before) > 50_000
    child = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); from keystep.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", child, "report", ran, "--out", "a.html"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--out: cannot be written" in done.stderr
    assert (here / "a.html").read_bytes() == before and not list(here.glob("*.part"))
