"""A whole run over real HTTP in a storm: 30 % of the requests meet a fault, and the process is killed midway."""

import signal
import sqlite3
from collections import Counter
from contextlib import closing

import pytest
from faulty_server import Faulty, Storm
from test_kill import attempt, journaled
from worker import written

from keystep.run.builtin import builtin
from keystep.run.canonical import dumps


@pytest.mark.parametrize(("disks", "calls"), [(7, 500), pytest.param(11, 5000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_every_step_is_right_and_no_journaled_one_is_asked_again(tmp_path, disks, calls):
    tower = builtin("hanoi", {"disks": disks})
    course = list(tower.truth())
    number = {tower.prompt(state): seq for seq, (state, _) in enumerate(course)}  # every state comes once
    storm = Storm(0.3, lambda prompt: written(prompt, 0), lambda prompt: written(prompt, 1))
    path, log = tmp_path / "run.db", tmp_path / "asked.log"
    with Faulty(storm).serving() as url:
        endpoint = {"model": "m", "base_url": url, "api_key": "none", "timeout": 0.3, "retries": 20, "backoff": 0.001}
        settings = {
            "procedure": "hanoi", "set": {"disks": disks}, "model": endpoint, "k": 3, "seed": 5, "speculate": False, "keep_samples": False,
            "too_long": 100,
        }  # fmt: skip
        for fault in (f"after-write:{len(course) // 2}", None):
            before, came = journaled(path), len(storm.asked)
            assert attempt(settings, path, log, fault, patience=900) == (0 if fault is None else -signal.SIGKILL)
            asked = {number[prompt] for prompt, _ in storm.asked[came:]}  # a wrong step would lead to a prompt that is not in the course
            assert asked and not asked & before
    samples = log.read_text().splitlines()
    assert len(samples) == len(set(samples))
    with closing(sqlite3.connect(path)) as database:
        answers = [answer for (answer,) in database.execute("SELECT answer FROM steps ORDER BY seq")]
        [(status,)] = database.execute("SELECT status FROM runs").fetchall()
    assert (status, answers) == ("finished", [dumps(answer) for _, answer in course])
    met = Counter(kind for _, kind in storm.asked)
    assert met.total() >= calls and met.keys() == {None, *Storm.KINDS}
    assert 0.25 < 1 - met[None] / met.total() < 0.35
