"""The recursive planner of the Tower of Hanoi: its boundaries, what it refuses, and that it can be killed."""

import json
import signal
from contextlib import closing

import killed
import pytest
from test_kill import attempt
from worker import Worker

from keystep.errors import BadInput, StepFailed
from keystep.plan import Ref
from keystep.run import AheadBy, Journal, Run
from keystep.run.builtin import builtin, towers
from keystep.run.builtin.hanoi import Hanoi
from keystep.worlds import hanoi

ERRING = (0.9, 0.05, 0.02)


def leaves(plan, library):
    """(start, steps, expected end) of the stretches that a plan comes down to, in the plan's order."""
    for step in plan.steps[:-1]:
        inputs = step.inputs
        if step.skill == "disk":
            yield inputs["start"], 1, inputs["end"]
        elif inputs["split"] < 1 or inputs["disks"] < 2:
            yield inputs["start"], hanoi.steps(inputs["disks"]), inputs["end"]
        else:
            yield from leaves(towers.plan(*(inputs[name] for name in ("disks", "start", "source", "target", "split"))), library)


@pytest.mark.parametrize("disks", range(3, 10))
def test_the_boundaries_are_those_of_the_rule(disks):
    for split in range(1, disks):
        game = Hanoi(disks, split)
        states = [state for state, _ in game.truth()]
        states.append({"previous": hanoi.last_move(disks, 0, 2 if disks % 2 == 0 else 1), "pegs": hanoi.goal(disks)})
        at = 0
        for start, steps, end in leaves(*game.apart()):
            assert (start, end) == (states[at], states[at + steps])
            at += steps
        assert at == hanoi.steps(disks)


@pytest.mark.parametrize("split", [0, 1, 3, 6])
def test_split_or_not_every_step_is_asked_once_and_right(split):
    lm, journal = Worker(ERRING), Journal()
    outcome = Run(lm, vote=AheadBy(4), journal=journal, id="r", seed=3).execute_sync(builtin("hanoi", {"disks": 7, "split": split}))
    assert (outcome.steps, outcome.correct, outcome.first_error_step) == (127, True, None)
    assert len(set(lm.asked)) == len(lm.asked) == outcome.samples  # no address twice: equal towers are sampled again
    assert len({key for key, _ in lm.asked}) == journal.totals("r")["sampled"] == 127


def test_tall_towers_are_split_by_themselves():
    assert [Hanoi(disks).split for disks in (3, 12, 14, 15, 16, 20)] == [0, 0, 0, 1, 2, 6]
    assert Hanoi(14).apart() is None and Hanoi(20, 0).apart() is None
    for split in (-1, 5):
        with pytest.raises(BadInput, match="split: is from 0 to one less than the disks"):
            builtin("hanoi", {"disks": 5, "split": split})


def test_a_wrong_step_stops_the_run_and_is_not_repaired():
    wrong = "0/onto-the-disk/tower/0/onto-the-other/tower/0/5"
    journal = Journal()
    for _ in range(2):  # nor does a resume change what was decided
        lm = Worker(ERRING, wrong_at=[wrong])
        run = Run(lm, vote=AheadBy(4), journal=journal, id="r")
        with pytest.raises(StepFailed, match=r"onto-the-other.post: its post-condition output == inputs.end does not hold"):
            run.execute_sync(builtin("hanoi", {"disks": 6, "split": 2}))
    assert not [key for key, _ in lm.asked if key.startswith(wrong.rpartition("/")[0])]


def test_parts_that_do_not_fit_together_are_refused():
    """The second tower is begun from another state than the disk between the towers was carried to."""
    game = Hanoi(4, 1)
    plan, library = game.apart()
    steps = {step.id: step for step in plan.steps}
    elsewhere = {"previous": [4, 0, 2], "pegs": [[], [], [4, 3, 2, 1]]}
    joined = steps["joined"].model_copy(update={"inputs": {**steps["joined"].inputs, "begun": [steps["disk"].inputs["start"], elsewhere]}})
    assert joined.inputs["carried"] == [Ref(step="onto-the-other"), Ref(step="disk")]
    plan = plan.model_copy(update={"steps": (*plan.steps[:-1], joined)})
    with pytest.raises(StepFailed, match=r"step joined.pre: its pre-condition does not hold"):
        Run(Worker(), vote=AheadBy(1)).execute_sync(plan, library)


def test_a_tower_that_does_not_stand_where_it_is_said_to_is_refused():
    plan, library = Hanoi(4, 1).apart()
    moved = plan.steps[0].model_copy(update={"inputs": {**plan.steps[0].inputs, "source": 1}})
    with pytest.raises(StepFailed, match=r"step onto-the-other.pre"):
        Run(Worker(), vote=AheadBy(1)).execute_sync(plan.model_copy(update={"steps": (moved, *plan.steps[1:])}), library)


def contents(path):
    """All that was decided, by place, and the outcome but for times."""
    journal = Journal(path)
    with closing(journal):
        rows = {
            scope: [(row.seq, row.name, row.answer, row.samples, row.flagged, row.candidates) for row in journal.rows(number)]
            for scope, number in journal.places("r").items()
        }
        outcome = {name: value for name, value in journal.run("r")["result"].items() if name != "seconds"}
    return rows, outcome


def test_a_split_run_is_killed_and_ends_as_if_it_had_not_been(tmp_path):
    settings = {
        "procedure": "hanoi", "set": {"disks": 9, "split": 3}, "model": ERRING, "k": 4, "seed": 7, "speculate": False,
        "keep_samples": False,
    }  # fmt: skip
    whole = killed.run(settings, str(tmp_path / "whole.db"), str(tmp_path / "whole.log"))
    whole.execute_sync(builtin("hanoi", settings["set"]))
    whole.close()
    path, log, asked = tmp_path / "run.db", tmp_path / "asked.log", []
    for fault in ["after-write:5", "before-ask:100", "after-sync:1", "after-vote:90", None]:
        code = attempt(json.loads(json.dumps(settings)), path, log, fault)
        assert code == (-signal.SIGKILL if fault else 0)
    assert contents(path) == contents(tmp_path / "whole.db")
    assert contents(path)[1]["correct"] is True and contents(path)[1]["steps"] == 511
    asked = log.read_text().splitlines()
    assert len(asked) - len(set(asked)) <= 4 * 4 * 15  # at most the open step of each of 15 parts, asked again after each kill
