"""A whole run over real HTTP in a storm: 30 % of the requests meet a fault, and the process is killed twice on the way."""

import signal
import sqlite3
from collections import Counter
from contextlib import closing

import pytest
from faulty_server import Faulty, Storm
from test_kill import attempt, journaled
from worker import written

from keystep.run.builtin import builtin


@pytest.mark.parametrize("steps", [130, pytest.param(1300, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
def test_every_step_is_right_and_no_journaled_one_is_asked_again(tmp_path, steps):
    setting = {"steps": steps, "words": 30}
    ledger = builtin("ledger", setting)
    course = list(ledger.truth())
    number = {ledger.prompt(state): seq for seq, (state, _) in enumerate(course)}
    assert len(number) == steps, "every step has a prompt of its own"
    storm = Storm(0.3, lambda prompt: written(prompt, 0), lambda prompt: written(prompt, 1))
    path, log = tmp_path / "run.db", tmp_path / "asked.log"
    with Faulty(storm).serving() as url:
        endpoint = {"model": "m", "base_url": url, "api_key": "none", "timeout": 0.3, "retries": 20, "backoff": 0.001}
        settings = {
            "procedure": "ledger", "set": setting, "model": endpoint, "k": 3, "seed": 5, "speculate": False, "keep_samples": False,
            "too_long": 100,
        }  # fmt: skip
        for fault in (f"after-write:{steps // 3}", f"before-ask:{steps // 3}", None):
            before, came = journaled(path), len(storm.asked)
            assert attempt(settings, path, log, fault) == (0 if fault is None else -signal.SIGKILL)
            asked = {number[prompt] for prompt, _ in storm.asked[came:]}  # a wrong step would lead to a prompt that is not in the course
            assert asked and not asked & before
    twice = {sample.split()[0] for sample, times in Counter(log.read_text().splitlines()).items() if times > 1}
    assert len(twice) <= 1  # the step that was not decided when the process was killed before an ask
    with closing(sqlite3.connect(path)) as database:
        answers = [answer for (answer,) in database.execute("SELECT answer FROM steps ORDER BY seq")]
        [(status,)] = database.execute("SELECT status FROM runs").fetchall()
    assert (status, answers) == ("finished", [f"[{value},{total}]" for _, (value, total) in course])
    met = Counter(kind for _, kind in storm.asked)
    assert met.total() >= 5000 * steps // 1300 and met.keys() == {None, *Storm.KINDS}
    assert 0.25 < 1 - met[None] / met.total() < 0.35
