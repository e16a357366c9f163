"""`keystep run --inputs`: what it prints, where results go, how it ends and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from worker import Scripted, Worker

from keystep.cli.job import Job
from keystep.run import Journal

COMMAND = [sys.executable, "-c", "from keystep.cli import main; main()"]
RUN = ("run", "ledger", "--set", "words=5", "--inputs", "rows.csv", "--first")
FORM = {
    "name": "greet",
    "state": {"who": "", "times": 1, "said": []},
    "prompt": "Greet {{ who }} {{ step }}",
    "answer": {"regex": ".+"},
    "update": {"said": "said + [answer]"},
    "until": "step >= times",
    "max_steps": 9,
    "check": {"end": "(said | length) < 4"},
}


@pytest.fixture
def rows(here):
    (here / "rows.csv").write_text("instance,steps\n" + "".join(f"{n},{2 + n % 3}\n" for n in range(9)))
    return here


def lines(path):
    return {line["row"]: line for line in map(json.loads, path.read_text().splitlines())}


def test_json_is_one_object(keystep, use, rows):
    use(Worker([1.0]))
    result = keystep(*RUN, "--json", "--seed", "3")
    assert result.exit_code == 0 and result.stderr == ""
    found = json.loads(result.stdout)
    assert list(found) == [
        *("run_id", "procedure", "steps", "correct", "first_error_step", "samples", "flagged", "votes_per_step", "tokens_in", "tokens_out"),
        *("seconds", "rows", "results", "k", "seed", "baseline"),
    ]
    assert found["rows"] == {"total": 9, "finished": 9, "wrong": 0, "failed": 0, "set_aside": 0}
    assert (found["procedure"], found["steps"], found["samples"], found["correct"], found["seed"]) == ("ledger", 27, 27, True, 3)
    assert found["results"] == str(rows / "rows.results.jsonl") and len(lines(rows / "rows.results.jsonl")) == 9
    assert "27" in keystep("runs").stdout and "finished" in keystep("runs").stdout


def test_people_get_a_sentence(keystep, use, rows):
    use(Worker([1.0], wrong_at=["row4/1"]))
    result = keystep(*RUN, "--results", "out.jsonl", "--concurrency", "2")
    assert result.exit_code == 1 and "ledger: 9 of 9 rows finished, 1 wrong" in result.stdout
    assert "out.jsonl" in result.stdout.translate(dict.fromkeys(map(ord, "│ \n")))  # a long path is wrapped
    assert (lines(rows / "out.jsonl")[4]["correct"], lines(rows / "out.jsonl")[4]["first_error_step"]) == (False, 1)
    use(Worker([1.0]))
    assert "9 of 9 rows finished, all correct" in keystep(*RUN).stdout


def test_a_yaml_procedure_for_every_row(keystep, use, here):
    use(Scripted(lambda request, index: request.prompt))
    (here / "p.yaml").write_text(json.dumps(FORM))
    (here / "rows.tsv").write_text("who\ttimes\n12\t2\nno: one\t1\n")
    (here / "rows.jsonl").write_text('{"who": "a", "times": 5}\n\n{"who": "b"}\n')
    run = ("run", "p.yaml", "--first", "--set", "times=3", "--json")
    assert keystep(*run, "--inputs", "rows.tsv").exit_code == 0
    found = lines(here / "rows.results.jsonl")
    assert [found[n]["result"]["said"] for n in (0, 1)] == [["Greet 12 0", "Greet 12 1"], ["Greet no: one 0"]]
    assert keystep(*run, "--inputs", "rows.jsonl").exit_code == 2  # the results of the other file stand there
    result = keystep(*run, "--inputs", "rows.jsonl", "--results", "b.jsonl")
    assert result.exit_code == 1 and json.loads(result.stdout)["rows"]["wrong"] == 1
    found = lines(here / "b.jsonl")
    assert [(found[n]["steps"], found[n]["correct"], found[n]["first_error_step"]) for n in (0, 1)] == [(5, False, 5), (3, True, None)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("instance,steps\n1,2\n2,0\n", "error: row 1, steps: is from 1 to 1000000 (got 0)"),
        (
            "instance,colour\n1,red\n",
            "error: row 0, colour: is not a setting of ledger (got 'red'). its settings are steps, words, instance",
        ),
        ("instance,steps\n1,2\n2,many\n", "error: row 1, steps: is a whole number (got 'many')"),
        ("instance,steps\n1,2,3\n", "error: inputs: rows.csv, line 2: 3 fields under 2 columns"),
        ("instance\n[1\n", "error: row 0, instance: is not YAML of this kind"),
        ("instance\n", "error: inputs: there are no rows"),
        ("", "error: inputs: rows.csv has no usable header"),
    ],
)
def test_bad_rows_are_named_before_anything_is_asked(keystep, use, here, text, said):
    lm = use(Worker([1.0]))
    (here / "rows.csv").write_text(text)
    result = keystep(*RUN)
    assert result.exit_code == 2 and result.stderr.startswith(said), result.stderr
    assert lm.asked == [] and [path.name for path in here.iterdir()] == ["rows.csv"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--inputs", "none.csv"), "inputs: there is no such file"),
        (("--inputs", "rows.csv", "--compare"), "--inputs and --compare: exclude each other"),
        (("--inputs", "rows.csv", "--forecast"), "--inputs and --forecast: exclude each other"),
        (("--concurrency", "3"), "--concurrency: is for many inputs"),
        (("--results", "x.jsonl"), "--results: is for many inputs"),
        (("--inputs", "rows.csv", "--concurrency", "0"), "--concurrency: "),
        (("--inputs", "rows.csv", "--max-crashes", "-1"), "--max-crashes: "),
        (("--inputs", "rows.csv", "--results", "rows.csv"), "results: is there already"),
    ],
)
def test_options_that_do_not_go_together(keystep, use, rows, options, said):
    lm = use(Worker([1.0]))
    result = keystep("run", "ledger", *options)
    assert result.exit_code == 2 and result.stderr.startswith(f"error: {said}"), result.stderr
    assert lm.asked == []


def test_dry_run(keystep, use, rows):
    lm = use(Worker([1.0]))
    result = keystep(*RUN, "--dry-run")
    assert "ledger on worker: 2 steps" in result.stdout and result.stderr == "note: this is row 0 of 9 alone\n"
    assert lm.asked == [] and len(list(rows.iterdir())) == 1


def test_a_spent_budget_stops_and_a_larger_one_goes_on(keystep, use, rows):
    lm = use(Worker([1.0]))
    result = keystep(*RUN, "--budget-calls", "11", "--concurrency", "2")
    run = Journal("runs.db").all_runs()[0]["id"]
    assert result.exit_code == 3 and f"of 9 rows are finished; go on with: keystep resume {run}\n" in result.stderr
    assert len(lm.asked) == 11
    result = keystep("resume", "--budget-calls", "100", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["rows"]["finished"] == 9
    assert len(lm.asked) == len(set(lm.asked)) == 27 and len(lines(rows / "rows.results.jsonl")) == 9


def test_changed_inputs_are_refused(keystep, use, rows):
    use(Worker([1.0]))
    assert keystep(*RUN, "--budget-calls", "11").exit_code == 3
    (rows / "rows.csv").write_text((rows / "rows.csv").read_text().replace("8,4", "8,5"))
    result = keystep("resume", "--budget-calls", "100")
    assert result.exit_code == 2 and "was begun with something else" in result.stderr and "work.rows.inputs" in result.stderr


def test_an_undecided_row_is_settled_by_a_person(keystep, use, here):
    lm = use(Scripted(lambda request, index: "ab"[index % 2] if request.key == "row1/0" else "a"))
    (here / "p.yaml").write_text(json.dumps(FORM))
    (here / "rows.csv").write_text("who\nx\ny\nz\n")
    result = keystep("run", "p.yaml", "--inputs", "rows.csv", "--ahead-by", "2", "--cap", "4")
    run = Journal("runs.db").all_runs()[0]["id"]
    assert result.exit_code == 3 and "greet: 2 of 3 rows finished, 1 failed" in result.stdout
    assert result.stderr.startswith("row 1 failed: step row1/0: no winner after 4 samples")
    assert result.stderr.endswith(f"go on with: keystep resume {run}\n")
    assert "step row1/0 is undecided" in keystep("show", run).stdout
    assert keystep("decide", run, "row1/0", "b").exit_code == 0
    drawn = lm.drawn
    assert keystep("resume").exit_code == 0 and lm.drawn == drawn
    assert lines(here / "rows.results.jsonl")[1]["result"]["said"] == ["b"]


def test_a_row_that_crashes_three_times_is_set_aside(keystep, use, here):
    use(Scripted(["a"]))
    (here / "p.yaml").write_text(json.dumps({**FORM, "update": {"said": "said + [answer] if who else said.none.none"}}))
    (here / "rows.jsonl").write_text('{"who": "x"}\n{"who": ""}\n{"who": "z"}\n')
    assert "row 1 failed: update.said: at step 0" in keystep("run", "p.yaml", "--inputs", "rows.jsonl", "--first").stderr
    assert "2 of 3 rows finished, 1 failed" in keystep("resume").stdout
    result = keystep("resume")
    assert result.exit_code == 3 and "2 of 3 rows finished, 1 set aside" in result.stdout and "larger --max-crashes" in result.stderr
    result = keystep("resume", "--max-crashes", "5", "--json")
    assert json.loads(result.stdout)["rows"] == {"total": 3, "finished": 2, "wrong": 0, "failed": 1, "set_aside": 0}
    assert sorted(lines(here / "rows.results.jsonl")) == [0, 1, 2]


def test_the_progress_line(use, rows, monkeypatch, capsys):
    """On a terminal there is one line for all rows."""
    import asyncio
    from io import StringIO

    from rich.console import Console

    import keystep.cli.rows as module

    shown = StringIO()
    monkeypatch.setattr(module, "Console", lambda **_: Console(file=shown, force_terminal=True, width=120))
    use(Worker([1.0], pause=True))
    job = Job(procedure="ledger", settings={"words": 5}, inputs="rows.csv", first=True)
    base = job.build_procedure()
    run = job.build_run(job.build_lm(), Journal())
    asyncio.run(module.follow_rows(run, job.build_many(base), quiet=False))
    assert "9 of 9 rows · 27 steps" in shown.getvalue() and "0:00 left" in shown.getvalue()
    before = shown.getvalue()
    asyncio.run(module.follow_rows(job.build_run(job.build_lm(), Journal()), job.build_many(base), quiet=True))
    assert shown.getvalue() == before


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_stops_cleanly(here, server, how):
    (here / "rows.csv").write_text("instance\n" + "".join(f"{n}\n" for n in range(6)))
    server.slow_after, server.pause = 7, 0.3
    options = ["--set", "words=5", "--set", "steps=3", "--model", server.model, "--first", "--inputs", "rows.csv", "--concurrency", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*COMMAND, "run", "ledger", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    while server.asked < 9 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(how)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 3 and out == "" and "Traceback" not in err, err
    assert "2 of 6 rows finished; all steps are kept; go on with: keystep resume" in err
    journal = Journal("runs.db")
    run = journal.all_runs()[0]
    assert run["status"] == "stopped" and not any(crashes for _, crashes, *_ in journal.row_states(run["id"]).values())
    journal.close()
    server.slow_after, asked = 10**9, server.asked
    again = subprocess.run([*COMMAND, "resume", "--json"], capture_output=True, text=True, timeout=60, env=environment)
    assert again.returncode == 0 and json.loads(again.stdout)["correct"] is True, again.stderr
    assert server.asked - asked <= 18 - 7 and sorted(lines(here / "rows.results.jsonl")) == list(range(6))
