"""runs, show, init, models, methods, reproduce, serve, serve-model."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request

import pytest
from worker import Worker

from keystep.cli.helpers import EXAMPLE
from keystep.run.procedure_file import schema_text


def test_runs_and_show(keystep, use):
    use(Worker([0.7, 0.2]))
    assert keystep("run", "hanoi", "--set", "disks=4", "--seed", "1").exit_code == 0
    assert keystep("run", "hanoi", "--set", "disks=4", "--budget-calls", "9").exit_code == 3
    stopped, finished = json.loads(keystep("runs", "--json").stdout)
    assert (stopped["status"], stopped["correct"], finished["status"], finished["correct"], finished["steps"]) == (
        "stopped",
        None,
        "finished",
        True,
        15,
    )
    assert 0 < finished["seconds"] < 60
    listed = keystep("runs").stdout
    assert finished["run_id"] in listed and "correct" in listed and "the budget is spent" in " ".join(listed.split())
    shown = json.loads(keystep("show", finished["run_id"], "--json", "--hard", "2").stdout)
    hard = shown["hardest"]
    assert len(hard) == 2 and hard[0]["samples"] >= hard[1]["samples"] > 3 and shown["spec"]["settings"] == {"disks": 4}
    assert all(each["candidates"] or each["flagged"] for each in hard)
    text = keystep("show", finished["run_id"]).stdout
    assert "15 steps" in text and "hardest steps" in text
    none = keystep("show", finished["run_id"], "--hard", "0").stdout
    assert "15 steps" in none and "hardest steps" not in none and "no step was disputed" not in none
    assert keystep("show", "nobody").exit_code == 2


def test_show_of_an_easy_run(keystep, use):
    use(Worker([1.0]))
    keystep("run", "hanoi", "--set", "disks=3")
    run = json.loads(keystep("runs", "--json").stdout)[0]["run_id"]
    assert "no step was disputed" in keystep("show", run).stdout


def test_init_writes_an_example_that_runs_and_overwrites_nothing(keystep, use, here):
    assert keystep("init").exit_code == 0
    written = (here / "procedure.yaml").read_text("utf-8")
    assert "keystep run procedure.yaml --dry-run" in written
    use(Worker([0.9]))
    found = json.loads(keystep("run", "procedure.yaml", "--json").stdout)
    assert (found["procedure"], found["steps"], found["correct"]) == ("ledger", 20, True)
    assert json.loads(keystep("run", "procedure.yaml", "--json", "--set", "words=[rope, salt]").stdout)["steps"] == 2
    result = keystep("init")
    assert result.exit_code == 2 and "is there already" in result.stderr
    assert (here / "procedure.yaml").read_text("utf-8") == written
    assert keystep("init", "--schema").stdout == schema_text()


def test_the_example_runs_on_the_embedded_models(keystep):
    from keystep.lm.embedded.model import WEIGHTS

    if not (WEIGHTS / "ledger.safetensors").exists():
        pytest.skip("the ledger ensemble is not in this checkout")
    found = json.loads(keystep("run", str(EXAMPLE), "--json").stdout)
    assert found["correct"] is True and found["steps"] == 20


def test_an_embedded_run_from_the_command_line(keystep):
    found = json.loads(keystep("run", "hanoi", "--set", "disks=4", "--json", "--compare").stdout)
    assert found["correct"] is True and found["steps"] == 15
    assert found["baseline"]["way"].startswith("embedded:")


def test_models(keystep):
    found = {each["name"]: each for each in json.loads(keystep("models", "--json").stdout)}
    assert found["embedded"]["installed"] and found["embedded"]["members"] >= 2
    assert {"embedded-large", "openai:MODEL", "hf:FOLDER_OR_NAME", "replay:FILE"} <= found.keys()
    assert "Tower of Hanoi" in " ".join(keystep("models").stdout.split())


def test_methods(keystep):
    found = json.loads(keystep("methods", "--json").stdout)
    assert {"maker", "long-horizon-execution"} <= {each["name"] for each in found}
    assert all(set(each) == {"name", "room", "paper", "use", "status"} for each in found)
    shown = keystep("methods").stdout
    assert all(each["name"] in shown for each in found)


SMALL = {
    "disks": {3: 2, 4: 2}, "ledgers": {4: 2, 8: 2}, "sample": 4, "vote_disks": 3, "vote_heats": (1.0,), "vote_margins": (1, 3),
    "parser_disks": 3, "parser_runs": 1, "call_steps": 10, "call_sizes": (1, 2), "call_heats": (0.5,), "apart_disks": 4, "weak_disks": 3,
    "weak_margins": (1, 2),
}  # fmt: skip


def test_reproduce_writes_its_result(keystep, here, monkeypatch):
    from keystep.reproduce import maker

    assert "maker" in keystep("reproduce").stdout.split()
    monkeypatch.setattr(maker, "SETTING", maker.Setting(**SMALL))
    result = keystep_json(keystep("reproduce", "maker", "--json", "--seeds", "2"))
    wanted = "name room paper claim setting baseline measured ratio held seeds seconds settings_tried machine"
    assert result.keys() == set(wanted.split()) and result["seeds"] == [0, 1]
    whole = [(row["task"], row["length"], row["runs"], row["error_free"]) for row in result["measured"]["whole_runs"]]
    assert whole == [("hanoi", 7, 4, 4), ("hanoi", 15, 4, 4), ("ledger", 4, 4, 4), ("ledger", 8, 4, 4)]
    assert {row["size"] for row in result["measured"]["steps_per_call"]} == {1, 2} and len(result["measured"]["decorrelation"]) == 3
    assert result["measured"]["task_success"] == 1 and len(result["baseline"]["single_calls"]) == 4 * 5
    assert json.loads((here / "results/reproductions/maker.json").read_text("utf-8")) == result
    written = sorted(file.name for file in (here / "results/reproductions").iterdir())
    assert written == ["maker-parts.svg", "maker.json", "maker.md", "maker.svg"]
    (here / "file").write_text("")
    assert keystep("reproduce", "maker", "--out", "file").exit_code == 2


def keystep_json(result):
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("command", [["serve-model"], ["serve", "--majority", "3", "--key", "text"]])
def test_the_servers_serve(here, command):
    command = [sys.executable, "-c", "from keystep.cli import main; main()", *command, "--port", "0"]
    process = subprocess.Popen(command, cwd=here, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        address = process.stderr.readline().partition(" at ")[2].split()[0]
        with urllib.request.urlopen(f"{address}/models", timeout=20) as answer:
            assert json.load(answer)["data"][0]["id"] == "embedded"
    finally:
        process.terminate()
        process.communicate(timeout=20)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--key", "yaml"], "key"),
        (["--key", "regex:("], "key"),
        (["--majority", "3", "--ahead-by", "2"], "--ahead-by"),
        (["--most-votes", "0"], "--most-votes"),
        (["--host", "0.0.0.0"], "host"),
        (["--model", "embedded", "--model", "embedded"], "--model"),
        (["--journal", "nowhere/runs.db"], "--journal"),
    ],
)
def test_serve_names_what_it_cannot_take(keystep, flags, named):
    result = keystep("serve", *flags)
    assert result.exit_code == 2 and named in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", ["serve", "serve-model"])
def test_an_address_is_told_once_it_is_listened_at(keystep, command):
    result = keystep(command, "--host", "0.0.0.0")
    assert result.exit_code == 2 and "serving" not in result.stderr
