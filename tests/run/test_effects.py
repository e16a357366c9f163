"""Effects outside: intent, effect, done, whatever instant the process dies at."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

import keystep as ks
from keystep.errors import BadInput
from keystep.run.faults import EFFECT_POINTS
from keystep.run.skills import ToolSkill
from keystep.run.tables import intents

CHILD = Path(__file__).with_name("effectful.py")
POINTS = [f"{point}:{count}" for count in (1, 2) for point in (*EFFECT_POINTS, "before-write", "after-write")]


def child(url, file, way, fault=""):
    env = {**os.environ, "KEYSTEP_FAULT": fault}
    return subprocess.run([sys.executable, str(CHILD), url, str(file), way], env=env, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize("way", ["once", "at least once"])
def test_killed_at_each_point(url, tmp_path, way):
    """Every line is written at least once, always with the same key, and exactly once by a tool that can tell."""
    file, killed_in_doubt = tmp_path / "file", 0
    for fault in POINTS:
        killed = child(url, file, way, fault)
        assert killed.returncode in (0, -signal.SIGKILL), killed.stderr
        killed_in_doubt += fault.startswith("after-effect") and killed.returncode != 0
        if killed.returncode == 0:
            break
    ended = child(url, file, way)
    assert (ended.returncode, ended.stdout) == (0, "6\n"), ended.stderr
    lines = file.read_text().splitlines()
    assert set(lines) == {"r/0/first/append/0 one", "r/0/second/append/0 two"}
    assert killed_in_doubt
    assert len(lines) == 2 if way == "once" else 2 < len(lines) <= 2 + killed_in_doubt + 1
    before = file.read_text()
    assert child(url, file, way).stdout == "6\n"  # a finished run does nothing again
    assert file.read_text() == before
    journal = ks.Journal(url)
    assert {key for (key,) in journal.select(sa.select(intents.c.key))} == {line.split()[0] for line in lines}
    journal.close()


def test_the_intent_is_on_the_disk_before_the_effect(tmp_path):
    """Seen by another connection from within the tool."""
    path, seen = tmp_path / "a.db", []

    async def look(key):
        other = ks.Journal(path)
        seen.append([found for (found,) in other.select(sa.select(intents.c.key))])
        other.close()
        return {"when": (1, 2)}

    library = ks.SkillLibrary([ToolSkill("look", look, key="key", effect=True)])
    run = ks.Run(ks.lm("embedded"), journal=path, id="r")
    assert run.execute_sync(ks.Plan(steps=(ks.Step(id="a", skill="look"),)), library).result == {"when": [1, 2]}
    run.close()
    assert seen == [["r/0/a/look/0"]]


def test_an_effect_that_fails_is_in_doubt_when_it_is_tried_again(tmp_path):
    asked = []

    def fail(key):
        raise OSError("the line broke")

    def happened(key):
        asked.append(key)
        return "it did"

    library = ks.SkillLibrary([ToolSkill("send", fail, key="key", effect=True, happened=happened)])
    plan = ks.Plan(steps=(ks.Step(id="a", skill="send"),))
    run = ks.Run(ks.lm("embedded"), journal=tmp_path / "a.db", id="r")
    with pytest.raises(ks.errors.StepFailed, match="the line broke"):
        run.execute_sync(plan, library)
    run.close()
    again = ks.Run(ks.lm("embedded"), journal=tmp_path / "a.db", id="r")
    assert again.execute_sync(plan, library).result == "it did"
    again.close()
    assert asked == ["r/0/a/send/0"]


def test_only_effects_are_asked_about():
    with pytest.raises(BadInput, match="effect=True"):
        ToolSkill("a", print, happened=print)
