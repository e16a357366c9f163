"""The nets of the reproductions, hardly trained: what they say has its form, the same for a seed, and stays within what it is held to."""

import asyncio
import random

import pytest

from keystep.errors import Refused
from keystep.measure.llm_algorithms import measure
from keystep.measure.llm_algorithms.tasks import Counting, Retrieving, Sorting
from keystep.measure.taskbench import draw, report
from keystep.measure.taskbench.templates import toolbox_graph, toolbox_request, toolbox_wordings
from keystep.reproduce import _trained_workers as workers
from keystep.reproduce import taskbench
from keystep.reproduce._taskbench_planner import LITERALS, Config, Planner, without_literals
from keystep.run import First, Run

GRAPH = toolbox_graph()


def requests(n, seed=0):
    drawn = random.Random(seed)
    return [toolbox_request(draw(GRAPH, drawn), GRAPH, toolbox_wordings(), drawn, str(number)) for number in range(n)]


@pytest.fixture(scope="module")
def planner():
    samples = requests(200)
    made = Planner(GRAPH, [sample.request for sample in samples], Config(steps=12, batch=16), 3)
    made.losses = made.train(samples, 3)
    return made


def test_training_learns(planner):
    assert sum(planner.losses[-3:]) < sum(planner.losses[:3])


def test_tokens_say_the_gold(planner):
    for sample in requests(200, seed=1):
        literals = without_literals(sample.request)[1]
        if len(literals) <= LITERALS:
            assert planner.solution(planner.answer(sample), literals).nodes == sample.gold.nodes


def test_plans_held_to_the_graph_have_no_other_links(planner):
    samples = requests(40, seed=2)
    asked = [sample.request for sample in samples]
    plans = planner.plan(asked, held_to_graph=True)
    assert plans == planner.plan(asked, held_to_graph=True)
    for sample, plan in zip(samples, plans, strict=True):
        found = report([sample], {sample.id: plan}, GRAPH)["groups"]["overall"]["honest"]
        assert not found["invented_links"] and not found["invented_nodes"]


def test_held_out_combinations_are_a_fifth():
    drawn = random.Random(5)
    several = [sub for sub in (draw(GRAPH, drawn) for _ in range(2000)) if len(sub.tools) > 1]
    assert sum(map(taskbench.is_held_out, several)) / len(several) == pytest.approx(1 / taskbench.HELD_OUT, abs=0.04)
    trained = taskbench.requests(GRAPH, 50, drawn, False, False)
    tested = taskbench.requests(GRAPH, 50, drawn, True, True)
    combinations = [{frozenset(node.task for node in s.gold.nodes) for s in some if len(s.gold.nodes) > 1} for some in (trained, tested)]
    assert not combinations[0] & combinations[1]


@pytest.mark.parametrize(
    ("make", "algorithm", "n"), [(workers.Counter, Counting(), 30), (workers.Sorter, Sorting(), 30), (workers.Retriever, Retrieving(), 400)]
)
def test_workers_answer_in_form(make, algorithm, n, monkeypatch):
    monkeypatch.setattr(workers, "STEPS", {"counting": 3, "sorting": 3, "retrieval": 3})
    problems = [algorithm.problem(n, random.Random(number)) for number in range(3)]
    run = Run(make(4), vote=First(cap=1), seed=1)
    found = asyncio.run(measure(run, algorithm, problems, n // 2))
    again = asyncio.run(measure(Run(make(4), vote=First(cap=1), seed=1), algorithm, problems, n // 2))
    assert [row.errors for row in found] == [row.errors for row in again]
    prompts = [algorithm.prompt(problem, part) for problem in problems for part in algorithm.parts(problem, n // 2)]
    assert sum(row.tokens_in for row in found) == sum(map(len, prompts))
    if isinstance(algorithm, Sorting):  # it points at what it was given, so nothing is lost or made up
        assert all(row.errors["length"] == 0 for row in found)
    with pytest.raises(Refused):
        asyncio.run(make(4).complete("hello"))
