"""`keystep run` and `keystep resume`: what they print, how they end, how they go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from worker import Scripted, Worker

from keystep.errors import ModelError, Undecided
from keystep.run import AheadBy, First, Journal, Run
from keystep.run.builtin import builtin

KEYS = [
    *("run_id", "procedure", "steps", "correct", "first_error_step", "samples", "flagged", "votes_per_step", "tokens_in", "tokens_out"),
    *("seconds", "k", "seed", "baseline", "result"),
]
HANOI = ("run", "hanoi", "--set", "disks=4")
COMMAND = [sys.executable, "-c", "from keystep.cli import main; main()"]


def undecidable(tmp: Path) -> tuple[str, ...]:
    """A run whose step 1 has as many votes for one answer as for the other."""
    form = {
        "name": "p",
        "state": {"seen": []},
        "prompt": "step {{ step }}",
        "answer": {"regex": "[a-z]+"},
        "until": "step >= 3",
        "max_steps": 9,
    }
    (tmp / "p.yaml").write_text(json.dumps({**form, "update": {"seen": "seen + [answer]"}}))
    return ("run", "p.yaml", "--ahead-by", "2", "--cap", "6")


def split() -> Scripted:
    """Everybody says `a`, but at step 1 every other one says `b`."""
    return Scripted(lambda request, index: "b" if request.key == "0/1" and index % 2 else "a")


def test_json_is_one_object_with_the_promised_keys(keystep, use):
    use(Worker([0.8, 0.1]))
    result = keystep(*HANOI, "--json", "--seed", "3")
    assert result.exit_code == 0 and result.stderr == ""
    found = json.loads(result.stdout)
    assert list(found) == KEYS
    assert (found["procedure"], found["steps"], found["correct"], found["k"], found["seed"], found["baseline"]) == (
        "hanoi",
        15,
        True,
        3,
        3,
        None,
    )
    assert found["samples"] > 45 and found["flagged"] > 0


def test_people_get_a_sentence(keystep, use):
    use(Worker([1.0]))
    result = keystep("run", "ledger", "--set", "steps=1200", "--set", "words=5", "--first")
    assert result.exit_code == 0
    assert "ledger: 1,200 steps, correct" in result.stdout
    assert "1.00 votes per step (1,200 samples, 0 of them flagged)" in result.stdout


def test_a_wrong_run_exits_with_1(keystep, use):
    use(Worker([1.0], wrong_at=["0/2"]))
    result = keystep(*HANOI, "--json")
    assert result.exit_code == 1
    assert (json.loads(result.stdout)["correct"], json.loads(result.stdout)["first_error_step"]) == (False, 2)
    assert "wrong at step 2" in keystep(*HANOI).stdout


def test_a_run_that_nobody_can_check_exits_with_0(keystep, use, here):
    use(Scripted(["a"]))
    result = keystep(*undecidable(here), "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["correct"] is None
    assert "nobody could check" in keystep(*undecidable(here)).stdout


def test_rules_flags_and_sampling_reach_the_run(keystep, use):
    lm = use(Scripted(["move = [1, 0, 1]\nnext_state = [[4, 3, 2], [1], []]"]))
    options = ("--majority", "4", "--cap", "7", "--temperature", "0.2", "--max-tokens", "99", "--too-long", "5", "--journal", "j.db")
    result = keystep(*HANOI, *options)
    assert result.exit_code == 3 and "none of 7 samples was a valid answer: too long" in result.stderr
    assert (lm.requests[0].n, lm.requests[0].temperature, lm.requests[0].max_tokens) == (4, 0.2, 99)


def test_a_procedures_own_sampling_is_kept_unless_a_flag_says_otherwise(keystep, use, here):
    lm = use(Scripted(["1"]))
    form = {"name": "p", "state": {}, "prompt": "?", "answer": {"regex": "1"}, "update": {}, "until": "step >= 1", "max_steps": 1}
    (here / "p.yaml").write_text(json.dumps({**form, "sampling": {"temperature": 0.4, "max_tokens": 7, "top_p": 0.5}}))
    for options in ((), ("--temperature", "0.9", "--max-tokens", "8")):
        assert keystep("run", "p.yaml", "--first", *options).exit_code == 0
    assert [(r.temperature, r.max_tokens, r.top_p) for r in lm.requests] == [(0.4, 7, 0.5), (0.9, 8, 0.5)]


def test_one_greedy_model_is_warned_about_calmly(keystep, use):
    use(Worker([1.0]))
    result = keystep(*HANOI, "--temperature", "0")
    assert result.stderr == "note: at temperature 0 one model gives the same vote every time: more than one buys nothing\n"


def test_dry_run_calls_nothing(keystep, use, here):
    lm = use(Scripted(["never"]))
    result = keystep(*HANOI, "--dry-run")
    assert result.exit_code == 0 and "Pegs: [[4, 3, 2, 1], [], []]" in result.stdout
    assert "15 steps, at least 3 samples each: 45" in result.stdout and "price: not known" in result.stdout
    found = json.loads(keystep(*HANOI, "--dry-run", "--json").stdout)
    assert (found["steps"], found["samples"], found["cost_at_most"], found["steps_known"]) == (15, 45, None, True)
    assert lm.requests == [] and list(here.iterdir()) == []


def test_dry_run_prices_an_endpoint(keystep, here):
    (here / "prices.json").write_text('{"m": {"input": 1, "output": 10}}')
    result = keystep(*HANOI, "--dry-run", "--json", "--model", "http://127.0.0.1:1/v1#m", "--prices", "prices.json", "--max-tokens", "100")
    found = json.loads(result.stdout)
    assert found["tokens_out_at_most"] == 15 * 3 * 100
    assert found["cost_at_most"] == pytest.approx((found["tokens_in"] + 10 * found["tokens_out_at_most"]) / 1e6)
    assert "price: at most 0.04" in keystep(*HANOI, "--dry-run", "--model", "http://127.0.0.1:1/v1#m", "--prices", "prices.json").stdout


def test_compare_says_where_single_calls_go_wrong(keystep, use):
    use(Worker([0.85, 0.1]))
    result = keystep("run", "hanoi", "--set", "disks=6", "--ahead-by", "4", "--compare", "--json")
    baseline = json.loads(result.stdout)["baseline"]
    assert (
        list(baseline) == ["way", "correct", "first_error_step"] and baseline["correct"] is False and 0 <= baseline["first_error_step"] < 63
    )
    shown = keystep("run", "hanoi", "--set", "disks=6", "--ahead-by", "4", "--compare").stdout
    assert f"The best single-call way, {baseline['way']}, goes wrong at step {baseline['first_error_step']} of 63." in shown
    assert "worker, greedy" in shown and "worker, sampled" in shown


def test_compare_says_so_where_greedy_would_have_done(keystep, use):
    use(Worker([1.0]))
    result = keystep(*HANOI, "--compare")
    assert "Plain greedy decoding would have done here: worker, greedy makes no mistake either." in result.stdout


# Stopping and going on.


def test_an_undecided_step_is_settled_by_a_person_and_the_run_goes_on(keystep, use, here):
    lm = use(split())
    result = keystep(*undecidable(here))
    assert result.exit_code == 3 and result.stdout == ""
    run = Journal("runs.db").all_runs()[0]["id"]
    assert "step 1: no winner after 6 samples" in result.stderr
    assert f"settle it: keystep decide {run} 1 ANSWER\ngo on with: keystep resume {run}\n" in result.stderr
    assert "step 1 is undecided after 6 samples" in keystep("show", run).stdout
    assert keystep("decide", run, "7", "a").exit_code == 2
    assert keystep("decide", run, "1", "settled").exit_code == 0
    asked = lm.drawn
    result = keystep("resume", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["run_id"] == run
    assert lm.drawn == asked + 2  # step 2 only
    assert Journal("runs.db").run(run)["result"]["result"]["seen"] == ["a", "settled", "a"]


def test_a_decision_has_to_be_of_the_candidates_kind(keystep, use):
    wrong = "move = [1, 0, 2]\nnext_state = [[4, 3, 2], [], [1]]"
    use(Scripted(lambda request, index: wrong if index % 2 else "move = [1, 0, 1]\nnext_state = [[4, 3, 2], [1], []]"))
    assert keystep(*HANOI, "--cap", "6").exit_code == 3
    run = Journal("runs.db").all_runs()[0]["id"]
    result = keystep("decide", run, "0", "the first")
    assert result.exit_code == 2
    assert (
        "ANSWER: is of another kind than the candidates (got 'the first'). write it as JSON, like [[1, 0, 1], [[4, 3, 2], [1], []]]"
        in result.stderr
    )
    assert keystep("decide", run, "0", "[[1, 0, 1], [[4, 3, 2], [1], []]]").exit_code == 0


def test_a_spent_budget_stops_and_a_larger_one_goes_on(keystep, use):
    lm = use(Worker([1.0]))
    result = keystep(*HANOI, "--budget-calls", "20", "--seed", "5", "--journal", "sqlite:///j.db")
    assert result.exit_code == 3
    run = Journal("j.db").all_runs()[0]["id"]
    assert f"go on with: keystep resume {run} --journal sqlite:///j.db\n" in result.stderr
    assert keystep("resume", "--journal", "j.db").exit_code == 3
    result = keystep("resume", run, "--journal", "j.db", "--budget-calls", "1000", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["correct"], found["steps"], found["seed"], found["k"]) == (0, True, 15, 5, 3)
    assert len(set(lm.asked)) == 45


def test_a_resumed_run_gives_what_an_undisturbed_one_gives(keystep, use):
    use(Worker([0.7, 0.2]))
    whole = json.loads(keystep(*HANOI, "--json", "--journal", "whole.db").stdout)
    assert keystep(*HANOI, "--json", "--budget-calls", "21").exit_code == 3
    parts = json.loads(keystep("resume", "--json", "--budget-calls", "100000").stdout)
    assert [whole[key] for key in KEYS[1:6]] == [parts[key] for key in KEYS[1:6]]


def test_a_changed_procedure_is_not_resumed(keystep, use, here):
    use(split())
    assert keystep(*undecidable(here)).exit_code == 3
    (here / "p.yaml").write_text((here / "p.yaml").read_text().replace("step {{ step }}", "part {{ step }}"))
    result = keystep("resume")
    assert result.exit_code == 2
    assert "was begun with something else" in result.stderr and "step {{ step }}" in result.stderr and "part {{ step }}" in result.stderr


def test_a_run_of_a_program_is_not_resumed_here(keystep, use):
    lm = use(Worker([1.0]))
    Run(lm, vote=First(), journal="runs.db", id="mine").execute_sync(builtin("hanoi", {"disks": 3}))
    assert "was not begun with `keystep run`" in keystep("resume", "mine").stderr
    assert "has no unfinished run" in keystep("resume").stderr


def test_an_unreachable_model_stops_the_run(keystep, use):
    class Gone(Worker):
        async def sample(self, request):
            if request.key == "0/3":
                raise ModelError("cannot be reached", field="model", value="worker")
            async for sample in super().sample(request):
                yield sample

    use(Gone([1.0]))
    result = keystep(*HANOI)
    assert result.exit_code == 3 and "cannot be reached" in result.stderr and "go on with: keystep resume" in result.stderr
    use(Worker([1.0]))
    assert keystep("resume").exit_code == 0


def test_a_recording_replays_the_whole_of_it_offline(keystep, server):
    options = (*HANOI, "--json", "--compare", "--model", server.model)
    first = json.loads(keystep(*options, "--record", "r.jsonl").stdout)
    asked = server.asked
    again = json.loads(keystep(*options, "--replay", "r.jsonl").stdout)
    assert server.asked == asked > 15
    for key in ("run_id", "seconds"):
        del first[key], again[key]
    assert again == first


@pytest.mark.parametrize(
    ("spec", "settled", "resumed"),
    [
        (None, "Go on with the program that began the run", "was not begun with `keystep run`"),
        (
            {"chunk_of": "whole"},
            "Go on with: keystep resume whole --journal a.db",
            "is a chunk of another run (got 'r'). resume that one: whole",
        ),
    ],
)
def test_what_goes_on_after_a_decision_is_what_can_be_resumed(keystep, here, spec, settled, resumed):
    run = Run(Scripted(["1", "2"]), vote=AheadBy(3, cap=3), journal="a.db", id="r", spec=spec)
    with pytest.raises(Undecided):
        run.execute_sync(builtin("hanoi", {"disks": 3}))
    run.close()
    assert settled in keystep("decide", "r", "0", "[1]", "--journal", "a.db").stdout
    again = keystep("resume", "r", "--journal", "a.db")
    assert again.exit_code == 2 and resumed in again.stderr


# The real thing: processes, a server, signals.


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_over_http_and_told_to_stop(here, server, how):
    server.slow_after, server.pause = 5, 0.3
    options = ["--model", server.model, "--first", "--quiet"]
    process = subprocess.Popen([*COMMAND, *HANOI, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=here)
    while server.asked < 8 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(how)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 3 and out == "" and "Traceback" not in err
    assert "Go on with: keystep resume" in err
    (stopped,) = Journal("runs.db").all_runs()
    assert (stopped["status"], stopped["why"]) == ("stopped", "told to stop")
    server.slow_after = 10**9
    asked = server.asked
    again = subprocess.run([*COMMAND, "resume", "--json"], capture_output=True, text=True, cwd=here, timeout=60)
    found = json.loads(again.stdout)
    assert again.returncode == 0 and found["correct"] is True and found["steps"] == 15
    assert server.asked - asked <= 15 - 7  # nothing that was decided is asked again


def test_killed_and_resumed(here, server):
    environment = {**os.environ, "KEYSTEP_FAULT": "after-write:9"}
    killed = subprocess.run(
        [*COMMAND, *HANOI, "--model", server.model, "--first"], env=environment, capture_output=True, cwd=here, timeout=60
    )
    assert killed.returncode == -signal.SIGKILL
    again = subprocess.run([*COMMAND, "resume"], capture_output=True, text=True, cwd=here, timeout=60)
    assert again.returncode == 0 and "hanoi: 15 steps, correct" in again.stdout and server.asked == 15


def test_help_and_version_load_nothing_heavy():
    heavy = ["numpy", "sqlalchemy", "aiohttp", "torch", "transformers", "jinja2", "starlette", "yaml", "safetensors"]
    code = f"""
import sys
from keystep.cli import app
for arguments in (["--help"], ["run", "--help"], ["--version"]):
    try:
        app(arguments)
    except SystemExit as end:
        assert not end.code, end.code
print("LOADED", [name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout and "serve-model" in done.stdout
