"""The main job on the models of the package: long procedures end without an error, where every single call goes wrong."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from keystep.cli.defaults import AHEAD_BY
from keystep.lm import lm
from keystep.run import AheadBy, Run
from keystep.run.builtin import builtin
from keystep.run.compare import compare

TASKS = [("hanoi", {"disks": 12}, 4095), ("ledger", {"steps": 2000, "words": 100}, 2000)]


@pytest.mark.parametrize(("name", "settings", "steps"), TASKS)
def test_no_error_in_thousands_of_steps(name, settings, steps):
    outcome = Run(lm("embedded"), vote=AheadBy(AHEAD_BY), seed=7).execute_sync(builtin(name, settings))
    assert (outcome.steps, outcome.correct, outcome.first_error_step) == (steps, True, None)
    assert AHEAD_BY < outcome.votes_per_step < AHEAD_BY + 1  # the votes did differ, and seldom


def test_every_member_alone_goes_wrong_on_the_tower():
    run = Run(lm("embedded"), seed=7)
    ways = asyncio.run(compare(run.asking, builtin("hanoi", {"disks": 12})))
    assert len(ways) == 10 and all(way.correct is False for way in ways)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hanoi", "ledger"])
def test_twenty_of_twenty(name):
    sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
    from zero_errors import measure

    found = asyncio.run(measure(name))
    assert found["correct"] == found["runs"] == 20
    for way, alone in found["alone"].items():
        assert alone["wrong"] >= 0.75 * alone["runs"], way
