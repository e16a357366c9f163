"""The baseline of `--compare`: every member alone, greedy and sampled."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from worker import Scripted, Worker, written

from keystep.errors import BadInput, ModelError, Refused
from keystep.lm.rotation import Rotation
from keystep.run import Budget, Run, Sampling
from keystep.run.builtin import builtin
from keystep.run.compare import compare
from keystep.run.procedure_file import from_file


def compared(lm, procedure, progress=None, **options):
    return asyncio.run(compare(Run(lm, **options).asking, procedure, progress))


def named(name, lm):
    lm.name = name
    return lm


def test_every_member_goes_greedy_and_sampled_and_the_best_comes_first():
    right, wrong = named("right", Worker([1.0])), named("wrong", Worker([1.0], wrong_at=["alone/3/1"]))
    ways = compared(Rotation([right, wrong]), builtin("hanoi", {"disks": 4}))
    found = [(way.way, way.correct, way.first_error_step) for way in ways]
    assert found[:2] == [("right, greedy", True, None), ("right, sampled", True, None)]
    assert sorted(found[2:]) == [("wrong, greedy", False, 3), ("wrong, sampled", False, 3)]


def test_at_temperature_0_there_is_only_greedy():
    asking = replace(Run(Worker([1.0])).asking, sampling=Sampling(temperature=0))
    ways = asyncio.run(compare(asking, builtin("hanoi", {"disks": 3})))
    assert [way.way for way in ways] == ["worker, greedy"]


def test_a_way_stops_soon_after_its_first_error():
    lm = Worker([1.0], wrong_at=["alone/40"])
    ways = compared(lm, builtin("ledger", {"steps": 1000, "words": 5}))
    assert all((way.correct, way.first_error_step) == (False, 40) and 41 <= way.steps <= 64 for way in ways)


def test_of_wrong_ways_the_furthest_is_the_best():
    lms = [named(f"w{step}", Worker([1.0], wrong_at=[f"alone/{step}/{turn}"])) for turn, step in enumerate((5, 9, 2))]
    ways = compared(Rotation(lms), builtin("hanoi", {"disks": 4}))
    assert (ways[0].way, ways[0].first_error_step, ways[-1].first_error_step) == ("w9, greedy", 9, 2)


def test_a_malformed_answer_is_its_failing_step():
    class Stumbles(Worker):
        def answer(self, request, index):
            return "no idea" if request.key == "alone/6" else written(request.prompt, 0)

    (greedy, sampled) = compared(Stumbles(), builtin("hanoi", {"disks": 4}))
    assert (
        (greedy.correct, greedy.first_error_step, greedy.steps)
        == (sampled.correct, sampled.first_error_step, sampled.steps)
        == (False, 6, 6)
    )


@pytest.mark.parametrize("error", [Refused("not this prompt"), ModelError("cannot be reached"), BadInput("no such option", field="x")])
def test_a_refused_prompt_is_an_error_of_the_model_and_a_failed_call_is_not(error):
    class Fails(Worker):
        async def sample(self, request):
            if request.key == "alone/6":
                raise error
            async for sample in super().sample(request):
                yield sample

    way = compared(Fails([1.0]), builtin("hanoi", {"disks": 4}))[0]
    if isinstance(error, Refused):
        assert (way.correct, way.first_error_step, way.problem) == (False, 6, "")
    else:
        assert (way.correct, way.first_error_step) == (None, None) and str(error) in way.problem


def test_the_budget_holds_for_all_ways_together():
    lm = Worker([1.0])
    ways = compared(lm, builtin("hanoi", {"disks": 4}), budget=Budget(calls=10))
    assert len(lm.asked) == 10 and all("budget" in way.problem and way.correct is None for way in ways)


def test_members_of_one_model_draw_their_own_samples():
    lm = Scripted(
        lambda request, index: written("Tower of Hanoi\nPrevious move x: none\nPegs: [[3, 2, 1], [], []]", 0 if index == 1 else 1),
        members=3,
    )
    ways = compared(lm, builtin("hanoi", {"disks": 3}))
    assert {request.first for request in lm.requests} == {0, 1, 2} and all(request.n == 1 for request in lm.requests)
    assert sorted(way.first_error_step for way in ways) == [0, 0, 0, 0, 1, 1]


def test_without_a_checker_nobody_can_tell_and_bounds_count(tmp_path):
    form = "{name: p, state: {}, prompt: '{{ step }}', answer: {regex: '\\d'}, update: {}, until: step >= 3, max_steps: %d}"
    for bound, expected in ((5, (None, None, 3)), (2, (False, 2, 2))):
        (tmp_path / "p.yaml").write_text(form % bound)
        way = compared(Scripted(["1"]), from_file(tmp_path / "p.yaml"))[0]
        assert (way.correct, way.first_error_step, way.steps) == expected


def test_progress_is_told():
    seen = []
    compared(Worker([1.0]), builtin("hanoi", {"disks": 5}), lambda ways: seen.append(max(way.steps for way in ways)))
    assert seen == sorted(seen) and seen[0] == 16 and seen[-1] == 31
