"""One Plan of prompts, tools and a policy, two branches and two escalations, killed with SIGKILL wherever it hurts, and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from keystep import Journal

CHILD = Path(__file__).with_name("mixed_plan.py")
EXPECTED_SKILLS = {"start": "start", "move": "move", "legal": "judge", "tower": "climb", "balance": "pole", "report": "report"}


class Work:
    """A folder with a journal and a log of effects; each call of `child` is one process on it."""

    def __init__(self, folder: Path) -> None:
        self.journal, self.log = folder / "runs.db", folder / "log"

    def child(self, fault: str = "") -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "KEYSTEP_FAULT": fault, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(CHILD), str(self.journal), str(self.log)]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)

    def rows(self) -> list[tuple[str, int, str | None, str | None, Any]]:
        if not self.journal.exists():
            return []
        journal = Journal(self.journal)
        found = sorted((path, row.seq, row.name, row.skill, row.answer) for path, row in journal.trace("mixed"))
        journal.close()
        return found

    def paid_for(self) -> set[str]:
        """Addresses of all the journal has a result of."""
        journaled = set()
        for path, seq, name, skill, _ in self.rows():
            step = path if name == "failed" else f"{path}/{name}"
            journaled.add(f"{path}/{seq}" if name is None else f"{step}/{skill}")
        return journaled

    def done(self) -> list[str]:
        """Addresses of all that was done, in order."""
        return self.log.read_text().split() if self.log.exists() else []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Work]:
    work = Work(tmp_path_factory.mktemp("undisturbed"))
    child = work.child()
    assert child.returncode == 0, child.stderr
    return child.stdout, work


def test_the_plan_runs_to_its_end(undisturbed: tuple[str, Work]) -> None:
    shown, work = undisturbed
    result = json.loads(shown)
    assert result["move"] == {"disk": "1", "from": "0", "to": "1"}
    assert result["legal"] is True
    assert result["tower"] in ([[], [3, 2, 1], []], [[], [], [3, 2, 1]])
    assert (result["balance"]["steps"], result["balance"]["success"]) == (200, True)
    rows = work.rows()
    assert {name: skill for path, _, name, skill, _ in rows if path == "0"} == EXPECTED_SKILLS
    failed = {(path, skill): reason for path, _, name, skill, reason in rows if name == "failed"}
    assert failed.keys() == {("0/move", "own-words"), ("0/legal", "guess")}
    assert "too hasty to tell" in failed["0/legal", "guess"]
    assert len([row for row in rows if row[2] is None]) == 1 + 7  # one move asked for, seven of the tower
    effects = [address for address in work.done() if not address[-1].isdigit()]
    assert sorted(effects) == ["0/balance/pole", "0/legal/guess", "0/legal/judge", "0/report/report", "0/start/start"]


FAULTS = [
    "before-ask:3",
    "after-vote:1",
    "before-write:2",
    "after-write:2",
    "after-write:6",
    "before-write:13",
    "after-sync:1",
    "before-finish:1",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_killed_and_resumed_it_ends_the_same_and_nothing_is_done_twice(fault: str, undisturbed: tuple[str, Work], tmp_path: Path) -> None:
    work = Work(tmp_path)
    assert work.child(fault).returncode == -signal.SIGKILL
    before, paid = work.done(), work.paid_for()
    child = work.child()
    assert child.returncode == 0, child.stderr
    again = work.done()[len(before) :]
    assert not paid & set(again)
    assert child.stdout == undisturbed[0]
    assert work.rows() == undisturbed[1].rows()
    assert {*before, *again} == set(undisturbed[1].done())


def test_killed_again_and_again(undisturbed: tuple[str, Work], tmp_path: Path) -> None:
    work = Work(tmp_path)
    for _ in range(4):
        assert work.child("after-write:3").returncode == -signal.SIGKILL
    paid, before = work.paid_for(), work.done()
    child = work.child()
    assert child.returncode == 0, child.stderr
    assert not paid & set(work.done()[len(before) :])
    assert child.stdout == undisturbed[0]
    assert work.rows() == undisturbed[1].rows()
