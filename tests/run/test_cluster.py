"""Rows on a Ray cluster: the results of one process, whatever dies meanwhile, and nothing asked twice."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path

import on_ray
import pytest
from typer.testing import CliRunner

from keystep.cli import app
from keystep.errors import BadInput, BudgetSpent
from keystep.run import Budget, Journal, Many
from keystep.run.cluster import OnRay

ROWS = [{"steps": 4, "instance": number} for number in range(60)]


@pytest.fixture(scope="module")
def ray():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray")
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # where the workers find keystep and on_ray
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address="local", num_cpus=2, runtime_env={"env_vars": path}, **options)
    yield ray
    ray.shutdown()


def lines(path):
    return sorted(map(json.loads, path.read_text().splitlines()), key=lambda line: line["row"])


def alone(tmp_path, rows):
    """The same rows in this process."""
    run = on_ray.run_of(f"sqlite:///{tmp_path}/alone.db", "r", tmp_path / "alone.log")
    outcome = Many(on_ray.build, rows, results=tmp_path / "alone.jsonl").execute_sync(run)
    run.close()
    return outcome, lines(tmp_path / "alone.jsonl")


def spread(tmp_path, url, rows, budget=None):
    run = on_ray.run_of(url, "r", tmp_path / "driver.log", budget)
    begin = partial(on_ray.begin, str(tmp_path / "asked.log"))
    try:
        return OnRay(on_ray.build, rows, begin, results=tmp_path / "out.jsonl").execute_sync(run)
    finally:
        run.close()


def asked(tmp_path):
    return Counter(tuple(line.split()) for line in (tmp_path / "asked.log").read_text().splitlines())


def test_a_killed_worker_changes_nothing(ray, postgres, tmp_path):
    """Ray starts another one, which goes on with the chunk: only what was under way in that process is asked again."""
    expected, results = alone(tmp_path, ROWS)
    killing, url = list(ROWS), postgres.fresh()
    killing[17] = {**ROWS[17], "poison": 2, "once": str(tmp_path / "killed")}
    outcome = spread(tmp_path, url, killing)
    assert (tmp_path / "killed").exists()
    assert outcome.rows == expected.rows and outcome.rows.finished == 60
    assert lines(tmp_path / "out.jsonl") == results
    same = ("steps", "samples", "flagged", "tokens_in", "tokens_out")
    assert [getattr(outcome, name) for name in same] == [getattr(expected, name) for name in same]
    twice = {key for (key, _), times in asked(tmp_path).items() if times > 1}
    assert len(twice) <= 4 and max(asked(tmp_path).values()) <= 2  # a step of each of the chunk's rows
    assert {int(key.split("/")[0].removeprefix("row")) for key in twice} <= set(range(16, 20))
    before = asked(tmp_path)
    assert spread(tmp_path, url, killing).rows == expected.rows  # resumed, nothing is left to do
    assert asked(tmp_path) == before
    command = CliRunner().invoke
    (listed,) = json.loads(command(app, ["runs", "--journal", url, "--json"]).stdout)
    assert (listed["run_id"], listed["status"], listed["steps"]) == ("r", "finished", 240)
    assert len(json.loads(command(app, ["runs", "--chunks", "--journal", url, "--json"]).stdout)) == 16
    assert len(command(app, ["export", "r", "--journal", url]).stdout.splitlines()) == 240
    reported = json.loads(command(app, ["report", "r", "--journal", url, "--json"]).stdout)
    assert (reported["steps"], reported["rows"]["finished"], reported["samples"]) == (240, 60, outcome.samples)
    assert sum(each["steps"] for each in reported["sizes"]) == 240
    assert command(app, ["prune", "r", "--yes", "--journal", url]).exit_code == 0
    journal = Journal(url)
    assert journal.all_runs() == []
    journal.close()


@pytest.mark.slow
def test_a_row_that_kills_every_process_is_set_aside_alone(ray, postgres, tmp_path):
    rows = [{"steps": 3, "instance": number} for number in range(20)]
    _, results = alone(tmp_path, rows)
    rows[4] = {**rows[4], "poison": 1}
    outcome = spread(tmp_path, postgres.fresh(), rows)
    assert (outcome.rows.finished, outcome.rows.set_aside, outcome.rows.failed) == (19, 1, 0)
    found = lines(tmp_path / "out.jsonl")
    assert "died 3 times" in found.pop(4)["error"]
    assert found == results[:4] + results[5:]


@pytest.mark.slow
def test_the_budget_is_that_of_all_and_a_larger_one_goes_on(ray, postgres, tmp_path):
    rows, url = ROWS[:20], postgres.fresh()
    expected, results = alone(tmp_path, rows)
    with pytest.raises(BudgetSpent, match=r"budget\.calls"):
        spread(tmp_path, url, rows, Budget(calls=90))
    drawn = asked(tmp_path)
    assert 10 <= drawn.total() <= 90
    assert spread(tmp_path, url, rows, Budget(calls=5000)).rows == expected.rows
    assert lines(tmp_path / "out.jsonl") == results


def test_the_command_runs_and_resumes_on_a_cluster(ray, postgres, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"instance": number}) + "\n" for number in range(8)))
    common = ["run", "ledger", "--set", "steps=3", "--set", "words=20", "--inputs", "rows.jsonl", "--json"]
    command, url = CliRunner().invoke, postgres.fresh()
    stopped = command(app, [*common, "--results", "out.jsonl", "--on", "ray", "--journal", url, "--budget-calls", "20"])
    assert stopped.exit_code == 3 and "keystep resume" in stopped.stderr
    done = command(app, ["resume", "--journal", url, "--budget-calls", "2000", "--json"])
    assert done.exit_code == 0, done.stderr
    single = command(app, [*common, "--results", "single.jsonl"])
    assert single.exit_code == 0, single.stderr
    ours, theirs = json.loads(done.stdout), json.loads(single.stdout)
    assert ours["rows"] == theirs["rows"] and ours["samples"] == theirs["samples"]
    assert lines(tmp_path / "out.jsonl") == lines(tmp_path / "single.jsonl")


def free_port():
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def until(done, seconds=120):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.1)


def listens(port):
    with closing(socket.socket()) as there:
        return there.connect_ex(("127.0.0.1", port)) == 0


def steps(journal):
    return sum(journal.totals(run["id"])["steps"] for run in journal.all_runs())


@pytest.mark.slow
def test_a_cluster_that_others_started(postgres, tmp_path, monkeypatch):
    """By `ray start`, through Ray's client, in processes of their own; a run that is told to end (SIGTERM) goes on later."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # a client that is not told so sends none, and `ray start` wants one by default
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"instance": number}) + "\n" for number in range(20)))
    port, url = free_port(), postgres.fresh()
    start = [Path(sys.executable).parent / "ray", "start", "--head", "--block", "--include-dashboard=false", "--num-cpus=2"]
    start += [f"--port={free_port()}", f"--ray-client-server-port={port}"]
    keystep = [sys.executable, "-c", "from keystep.cli import main; main()"]
    run = ["run", "ledger", "--set", "steps=40", "--set", "words=20", "--inputs", "rows.jsonl", "--json"]
    head = subprocess.Popen(start, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        until(lambda: listens(port))
        running = subprocess.Popen([*keystep, *run, "--results", "out.jsonl", "--on", f"ray://127.0.0.1:{port}", "--journal", url])
        with closing(Journal(url)) as journal:
            until(lambda: steps(journal) > 0 or running.poll() is not None)
            running.terminate()
            assert running.wait(60) != 0
            assert 0 < steps(journal) < 800
        done = subprocess.run([*keystep, "resume", "--journal", url, "--json"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(60)
    single = CliRunner().invoke(app, [*run, "--results", "single.jsonl"])
    assert lines(tmp_path / "out.jsonl") == lines(tmp_path / "single.jsonl")
    assert json.loads(done.stdout)["rows"] == json.loads(single.stdout)["rows"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--on", "ray"], "--journal: is on this machine alone"),
        (["--on", "ray", "--journal", "sqlite://"], "--journal: is on this machine alone"),
        (["--on", "spark"], "--on: is no cluster"),
        (["--on", "ray", "--record", "x.jsonl"], "--on and --record"),
        (["--on", "ray", "--otel", "--journal", "postgresql://u@127.0.0.1:1/x"], "--on and --otel"),
    ],
)
def test_bad_input(flags, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"steps": 3}\n')
    result = CliRunner().invoke(app, ["run", "ledger", "--inputs", "rows.jsonl", *flags])
    assert result.exit_code == 2 and said in result.stderr
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_a_cluster_is_for_many_inputs(tmp_path):
    result = CliRunner().invoke(app, ["run", "ledger", "--on", "ray"])
    assert result.exit_code == 2 and "add --inputs" in result.stderr


def test_a_journal_in_memory_is_refused(tmp_path):
    run = on_ray.run_of(None, "r", tmp_path / "asked.log")
    with pytest.raises(BadInput, match="cannot share it"):
        OnRay(on_ray.build, ROWS, partial(on_ray.begin, "")).execute_sync(run)
    run.close()


def test_budgets_are_shared_out_to_the_last_call():
    many = OnRay(on_ray.build, ROWS, partial(on_ray.begin, ""))
    for tally in many._tallies[:5]:
        tally["finished"], tally["calls"] = 4, 30
    shares = dict(many._budgets(Budget(calls=150 + 47)))
    assert list(shares) == list(range(5, 15))
    assert sum(share["calls"] for share in shares.values()) == 47


def test_a_missing_ray_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    run = on_ray.run_of("sqlite://", "r", tmp_path / "asked.log")
    run.journal.url = "postgresql://u@h/d"
    with pytest.raises(ImportError, match=r"keystep\[ray\]"):
        OnRay(on_ray.build, ROWS, partial(on_ray.begin, "")).execute_sync(run)
    run.close()
