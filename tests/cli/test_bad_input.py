"""Whatever a user types: exit code 2 and a sentence with field, value and mend; never a traceback."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner
from worker import Scripted

from keystep.cli import app


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("run nosuch", "procedure: is neither a built-in procedure nor a file"),
        ("run nosuch.yaml", "procedure: cannot be read (No such file or directory)"),
        ("run .", "procedure: cannot be read (Is a directory)"),
        ("run hanoi --set disks", "set: is written name=value (got 'disks')"),
        ("run hanoi --set disks=x", "disks: is a whole number (got 'x')"),
        ("run hanoi --set disks=2", "disks: is from 3 to 20 (got 2)"),
        ("run hanoi --set disk=4", "set: is not a setting of hanoi (got 'disk'). its settings are disks, split"),
        ("run hanoi --set disks=4 --set disks=5", "--set: is given twice"),
        ("run hanoi --ahead-by 0", "--ahead-by: should be greater than or equal to 1 (got 0)"),
        ("run hanoi --ahead-by x", "'x' is not a whole number. Write one like 7"),
        ("run hanoi --majority -1", "--majority: should be greater than or equal to 1 (got -1)"),
        ("run hanoi --majority 3 --first", "--majority and --first: exclude each other"),
        ("run hanoi --ahead-by 5 --cap 2", "cap: the cap must be at least k = 5 (got 2)"),
        ("run hanoi --temperature nan", "--temperature: should be a finite number (got nan)"),
        ("run hanoi --temperature=-1", "--temperature: should be greater than or equal to 0 (got -1.0)"),
        ("run hanoi --too-long 0", "--too-long: should be greater than or equal to 1 (got 0)"),
        ("run hanoi --budget-cost 5", "--budget-cost: nothing has a price, so it would stop nothing (got 5.0). add --prices FILE"),
        ("serve --budget-cost 5", "--budget-cost: nothing has a price, so it would stop nothing (got 5.0)"),
        ("solve plan-and-solve hi --budget-cost 5", "--budget-cost: nothing has a price, so it would stop nothing (got 5.0)"),
        ("run hanoi --budget-cost 0", "--budget-cost: should be greater than 0 (got 0.0)"),
        ("run hanoi --seed 1.5", "'1.5' is not a whole number"),
        ("run hanoi --model nope", "model: no such model (got 'nope'). there are: embedded"),
        ("run hanoi --model embedded:77", "model: no such member (got 'embedded:77')"),
        ("run hanoi --model replay:none.jsonl", "cannot be read (No such file or directory)"),
        ("run hanoi --model openai:m", "api_key: this server wants a key. set OPENAI_API_KEY"),
        ("run hanoi --model openai:m --base-url nowhere", "base_url: not an http address (got 'nowhere')"),
        ("run hanoi --model http://127.0.0.1:1/v1#m --base-url http://127.0.0.1:2/v1", "--base-url: is already in the model's name"),
        ("run hanoi --model http://127.0.0.1:1/v1#m --api-key-env KEYSTEP_NONE", "--api-key-env: this environment variable is not set"),
        ("run hanoi --model http://127.0.0.1:1/v1#m --prices none.json", "prices: the price table cannot be read"),
        ("run hanoi --model embedded --prices none.json", "model: this model does not take these options: prices"),
        ("run hanoi --record a --replay b", "--record and --replay: exclude each other"),
        ("run hanoi --journal /nowhere/x.db", "--journal: the journal cannot be used"),
        ("run hanoi --journal=", "--journal: is empty: nothing would be kept. name a file"),
        ("runs --journal=", "--journal: is empty"),
        ("run hanoi --journal what://x", "journal: only SQLite and PostgreSQL can hold a journal"),
        ("run hanoi --nope", "No such option: --nope"),
        ("run", "Missing argument"),
        ("resume", "--journal: there is no journal here (got 'sqlite:///runs.db')"),
        ("resume x --journal none.db", "--journal: there is no journal here (got 'none.db')"),
        ("show x", "--journal: there is no journal here"),
        ("runs", "--journal: there is no journal here"),
        ("decide x 1 a", "--journal: there is no journal here"),
        ("reproduce nope", "NAME: is no reproduction (got 'nope'). there are: "),
        ("reproduce maker --seeds 0", "--seeds: is at least 1 (got 0)"),
        ("serve-model --host 0.0.0.0", "host: this address is open to other machines (got '0.0.0.0')"),
        ("serve-model --port 99999", "port: no such port (got 99999)"),
        ("serve-model --model nope", "model: no such model"),
        ("init /nowhere/p.yaml", "FILE: cannot be written"),
        ("walk", "No such command 'walk'"),
    ],
)
def test_mistakes_are_named(keystep, here, arguments, said):
    result = keystep(*arguments.split())
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert list(here.iterdir()) == []  # nothing half-made is left behind


def test_secrets_in_addresses_are_refused_and_not_shown(keystep):
    for options in (("--model", "http://me:s3cret@127.0.0.1:1/v1#m"), ("--model", "openai:m", "--base-url", "http://s3cret@127.0.0.1/v1")):
        result = keystep("run", "hanoi", *options)
        assert result.exit_code == 2 and "has a secret in its address" in result.stderr and "s3cret" not in result.stderr


def test_keys_are_not_journaled(keystep, here, server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "s3cret-key-value")
    result = keystep(
        "run", "hanoi", "--set", "disks=3", "--first", "--model", server.model, "--api-key-env", "MY_KEY", "--record", "r.jsonl"
    )
    assert result.exit_code == 0
    assert all(b"s3cret" not in file.read_bytes() for file in here.iterdir()) and {"runs.db", "r.jsonl"} <= {
        file.name for file in here.iterdir()
    }


def test_a_file_that_is_no_journal_is_left_alone(keystep, here):
    (here / "note.txt").write_text("not a database, but longer than a header of one " * 10)
    before = (here / "note.txt").read_bytes()
    for arguments in (("runs",), ("show", "x"), ("run", "hanoi"), ("resume",)):
        result = keystep(*arguments, "--journal", "note.txt")
        assert result.exit_code == 2 and "--journal: the journal cannot be used" in result.stderr
    assert (here / "note.txt").read_bytes() == before


NUMBERS = st.one_of(
    st.integers(-3, 10).map(str), st.integers().map(str), st.floats().map(str), st.sampled_from(["", "x", "1e3", "0x1", "-", "∞", "1_0"])
)
FLAGS = st.one_of(
    st.tuples(
        st.sampled_from(["--ahead-by", "--majority", "--temperature", "--max-tokens", "--too-long", "--seed", "--budget-calls",
                         "--budget-tokens", "--budget-cost", "--budget-seconds"]),
        NUMBERS,
    ),
    st.tuples(st.just("--cap"), st.integers(-3, 200).map(str)),  # a large one would have the run draw as many
    st.tuples(st.just("--set"), st.text(alphabet="disk=step34[]{}:é '\"*&!", max_size=12)),
    st.tuples(st.sampled_from(["--first", "--speculate", "--keep-samples", "--compare", "--json", "--dry-run", "--quiet", "--unknown"])),
)  # fmt: skip


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(procedure=st.sampled_from(["hanoi", "ledger", "p.yaml", "x.yaml", ""]), flags=st.lists(FLAGS, max_size=4))
def test_any_flags(monkeypatch, procedure, flags):
    form = {"name": "p", "state": {"d": 1}, "prompt": "?", "answer": {"regex": "1"}, "update": {}, "until": "step >= 2", "max_steps": 3}
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.chdir(folder)
        monkeypatch.setattr("keystep.cli.job.lm", lambda name, **options: Scripted(["1"]))
        Path("p.yaml").write_text(json.dumps(form))
        result = CliRunner().invoke(app, ["run", procedure, *(part for flag in flags for part in flag)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        # The scripted model answers the file's prompt and no other: the built-in runs stop undecided.
        assert result.exit_code in (0, 2, 3)
        if result.exit_code == 2:
            assert result.stderr.startswith(("error: ", "Usage: "))
            assert result.stdout == ""
        monkeypatch.undo()
