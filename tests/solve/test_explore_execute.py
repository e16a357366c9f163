"""Explore–Execute: the sheet's known answers, the ways of searching, and what each costs."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from solver_case import text_of
from typer.testing import CliRunner
from worker import Scripted

from keystep.cli import app
from keystep.errors import BadInput, StepFailed
from keystep.lm.base import draw_key
from keystep.run import AheadBy, Run
from keystep.run.vote import First
from keystep.solve.explore_execute import format, selecting
from keystep.solve.explore_execute.adherence import adherence, common, overlong, reward, titles, word_ratio
from keystep.solve.explore_execute.answers import as_published, final_box, last_box, normal
from keystep.solve.explore_execute.solver import ExploreExecute
from keystep.solve.solver import task_of

PLAN = "1. Set up the equation\n2. Solve for x\n3. Check the answer"
DONE = "1. Set up the equation: 2x+3=7\n2. Divide both sides\n\\boxed{2}"
WORDS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=12)


# Known answers of the sheet.


def test_adherence_and_reward():
    assert titles(PLAN) == ["Set up the equation", "Solve for x", "Check the answer"]
    assert titles("**1.** *Set up*\n 12.Go on") == ["Set up", "Go on"]
    assert reward(PLAN, DONE, True, adhering=False) == 1
    assert reward(PLAN, DONE, True, adhering=True) == pytest.approx(2 / 3)  # "Check the answer" by the one word "the"
    assert adherence(PLAN, DONE, in_order=True) == pytest.approx(1 / 3)  # that "the" stands before the second step
    assert reward(PLAN, DONE, False, adhering=True) == reward(PLAN, DONE, False, adhering=False) == 0
    late = "1. Set up the equation\n\\boxed{2}"
    assert reward(PLAN, late + "." * 291, True, adhering=False) == 1 and reward(PLAN, late + "." * 320, True, adhering=False) == 0
    assert adherence("no numbers", DONE) == 0


def test_word_ratio():
    assert word_ratio("a b c d", "a c x y z") == 0.5
    assert word_ratio("Solve for x", "Divide both sides") == 0
    assert word_ratio("use induction on n", "prove the base case n = 1 then use induction") == 0.5
    assert word_ratio("", "a") == 0


def test_order_and_repetition():
    planned = "1. alpha\n2. beta\n3. gamma"
    assert (
        adherence(planned, "1. gamma\n2. beta\n3. alpha") == 1 and adherence(planned, "1. gamma\n2. beta\n3. alpha", in_order=True) == 1 / 3
    )
    hacked = "1. alpha beta gamma"
    assert adherence(planned, hacked) == 1 and adherence(planned, hacked, in_order=True) == 1 / 3
    assert adherence(planned, planned, in_order=True) == 1


@given(WORDS, WORDS)
def test_common_subsequence_is_what_dynamic_programming_finds(left, right):
    row = [0] * (len(right) + 1)
    for a in left:
        before, row = row, [0]
        for j, b in enumerate(right):
            row.append(before[j] + 1 if a == b else max(row[-1], before[j + 1]))
    assert common(left, right) == common(right, left) == row[-1]
    assert word_ratio(" ".join(left), " ".join(right)) == word_ratio(" ".join(right), " ".join(left))


def test_overlong():
    assert [overlong(length) for length in (4000, 4096, 5120, 6144, 8192)] == [0, 0, -0.25, -0.5, -1]


def test_clusters_and_weighted_votes():
    assert selecting.clusters(["a", "b", "a"], 3) == [(0, 1), (1, 1), (2, 1)]
    assert selecting.weighted([("A", 5), ("B", 4), ("A", 1)]) == "A" and selecting.weighted([]) is None
    plans = ["multiply the pens", "draw a circle", "multiply the pens", "draw a big circle", "multiply pens", "count the apples"]
    found = selecting.clusters(plans, 3)
    assert sum(size for _, size in found) == 6 and sorted(size for _, size in found) == [1, 2, 3]
    assert selecting.clusters(["same"] * 5, 3) == [(0, 5)]


# Answers.


def test_boxes():
    text = r"first \boxed{1}, then \boxed{\frac{1}{2}} and \boxed{ } and \boxed{3"
    box = last_box(text)
    assert box.content == r"\frac{1}{2}" and text[box.start : box.end] == r"\boxed{\frac{1}{2}}"
    assert last_box("none") is None and last_box("}" * 9) is None and last_box(r"\boxed{" * 5000) is None
    assert final_box("." * 300 + r"\boxed{1}" + "." * 500, 300, 500) is not None
    assert final_box("." * 299 + r"\boxed{1}", 300, 500) is None and final_box("." * 300 + r"\boxed{1}" + "." * 501, 300, 500) is None


def test_answers_compared():
    assert normal("1.50") == normal(r"\frac{3}{2}") == normal("3/2") == normal("$1.5$.") == normal(r"\text{1.5}")
    assert normal("1,234") == normal("1234") and normal("-3") != normal("3") and normal("1.5") != normal("15")
    assert normal(" Blue ") == normal("blue.") and normal("1/0") == "1/0"
    assert normal(r"\text{(C)}") == normal("C") and normal("(3)") != "3"  # letters of options, as of AQuA
    assert as_published("1.5") == as_published("15") and as_published("-3") == as_published("3") and as_published(r"\frac{1}{2}") == "12"
    assert not ExploreExecute().right("-3", "3") and ExploreExecute(compare="published").right("-3", "3")


def test_what_the_revising_loop_looks_at():
    text = "We take x = 3 + 4. But this is not correct. Then $y^2 = 9$, wait, that is wrong."
    assert selecting.negated(text) == ["x = 3", "y^2 = 9"]
    assert selecting.negated("x = 3 is fine") == []
    assert not selecting.avoids("take  x =3 first", ["x = 3"]) and selecting.avoids("take y", ["x = 3"])
    assert not selecting.new("solve the equation for x", "1. Solve for x the equation") and selecting.new("draw a circle", "solve it")
    assert selecting.overlap("a b", "b a") == 1 and selecting.overlap("a", "b") == 0
    assert selecting.nearest("solve for y", ["draw", "solve for x"]) == 1 and selecting.nearest("Plan 2.", ["draw", "solve"]) == 1


# The ways.


def words(draws):
    """A model of three kinds of plan: two lead to 7, which is right, one to 8. It judges for the second plan shown."""

    def says(request, index):
        prompt = text_of(request.prompt)
        drawn = draw_key(request.seed, request.key, index) % draws
        if "READY" in prompt:
            return "CONTINUE\n" + prompt.rpartition("Number 1:\n")[2].partition("\n\nNumber")[0].partition("\n\nChoose")[0]
        if "Which one leads" in prompt:
            return prompt.rpartition("Plan 2:\n")[2].partition("\n\nPlan 3")[0].partition("\n\nWhich")[0]
        if "Carry out" in prompt:
            plan = prompt.rpartition("Plan:\n")[2].partition("\n\nCarry")[0]
            return f"{plan} worked out: \\boxed{{{8 if 'guess' in plan else 7}}}"
        if "next step of the plan" in prompt:
            return f"{prompt.count('step ') - 3}. step {'abc'[drawn % 3]}"
        if "The solution so far" in prompt:
            return "3 + 4 is \\boxed{7}" if "add" in prompt.partition("so far:")[2] else "1. add them"
        if "step by step, and end" in prompt:
            return f"it is \\boxed{{{7 + (drawn == 0)}}}"
        return ("1. guess the sum", "1. add three and four", "1. count on from three")[drawn % 3]

    return Scripted(says)


def solved(way, lm=None, **settings):
    run = Run(lm or words(3), vote=First(cap=4), seed=1)
    return run.solve_sync(ExploreExecute(way=way, **settings), task_of({"question": "What is 3 + 4?"}))


@pytest.mark.parametrize(
    "way", ["one", "judge", "cluster", "consistency", "random", "layers", "greedy", "chains", "tree", "forest", "causal"]
)
def test_every_way_solves_and_counts_what_it_cost(way):
    lm = words(3)
    found = solved(way, lm, plans=8)
    assert found.answer in ("7", "8")
    assert found.details["tokens"]["total"] == sum(value for key, value in found.details["tokens"].items() if key != "total")
    spent = Run(lm, vote=First(cap=4), seed=1)
    spent.solve_sync(ExploreExecute(way=way, plans=8), task_of({"question": "What is 3 + 4?"}))
    assert spent.meter.tokens_out == found.details["tokens"]["total"]


def test_what_the_ways_execute():
    consistent = solved("consistency")
    assert consistent.answer == "7" and len(consistent.details["executions"]) == 8
    clustered = solved("cluster")
    assert clustered.answer == "7" and sum(each["weight"] for each in clustered.details["executions"]) == 8
    assert 1 < len(clustered.details["executions"]) <= 3
    chosen = solved("judge")
    assert chosen.details["plan"] == chosen.details["plans"][1] and chosen.details["adherence"] == 1
    assert solved("random").details["plan"] in solved("random").details["plans"]
    grown = solved("layers", depth=3)
    assert len(grown.details["plan"].split("\n")) == 3
    assert solved("chains", plans=5).details["tokens"].keys() == {"execute", "total"}
    pair = solved("causal").details
    assert pair["kept"] and pair["plan"] in pair["execution"] and pair["full"].startswith("it is")


def test_cost_of_the_sheet():
    """K = 32 plans of 300 tokens, executions of 2,800: select costs 12,400 and self-consistency 99,200, an eighth."""

    class Priced(Scripted):
        async def sample(self, request):
            async for sample in super().sample(request):
                prompt = text_of(request.prompt)
                sample.tokens_out = 0 if "Which one" in prompt else 2800 if "Carry" in prompt else 3100 if "by step, and" in prompt else 300
                yield sample

    def priced(way):
        lm = Priced(lambda request, index: "1. plan \\boxed{7}")
        return solved(way, lm, plans=32).details["tokens"]

    assert priced("judge") == {"explore": 9600, "select": 0, "execute": 2800, "total": 12_400}
    run = Run(Priced(lambda request, index: f"\\boxed{{{index}}}"), vote=First(cap=100))
    with pytest.raises(StepFailed):  # 32 answers that all differ, and more to break the tie, up to the cap
        run.solve_sync(ExploreExecute(way="chains", plans=32), task_of({"question": "?"}))
    assert run.meter.tokens_out == 100 * 3100 and 12_400 / (32 * 3100) == 0.125


def test_a_wrong_solution_makes_no_pair():
    task = task_of({"question": "What is 3 + 4?", "answer": "9"})
    found = Run(words(3), vote=First(cap=4)).solve_sync(ExploreExecute(way="causal"), task)
    assert found.details["kept"] is False and "plan" not in found.details


def test_react_revises_until_an_answer_is_final():
    attempts = []

    def says(request, index):
        prompt = text_of(request.prompt)
        if "Carry out" in prompt:
            attempts.append(prompt.rpartition("Plan:\n")[2].partition("\n\nCarry")[0])
            good = "circle" in attempts[-1]
            return "." * 300 + "\\boxed{7}" if good else f"Let x = {len(attempts)}. But this is not correct. I am stuck."
        if "did not come to an answer" in prompt:
            assert "- x = 1" in prompt
            return "1. draw a circle around x = 1"  # it says something new
        return "1. solve it for x"

    found = solved("react", Scripted(says), plans=2)
    assert attempts == ["1. solve it for x", "1. draw a circle around x = 1"] and found.answer == "7"
    assert found.details["tokens"].keys() == {"explore", "select", "execute", "revise", "total"}
    never = Scripted(lambda request, index: "1. the same, always")
    with pytest.raises(StepFailed, match="none of 4 executions came to an answer"):
        solved("react", never, plans=2)


def test_react_takes_an_unused_plan_that_avoids_what_was_taken_back():
    plans = iter(["1. solve x = 1 at once", "1. solve x = 1 at once", "1. count apples", "1. with x = 1 measure"])
    attempts = []

    def says(request, index):
        prompt = text_of(request.prompt)
        if "Carry out" in prompt:
            attempts.append(prompt.rpartition("Plan:\n")[2].partition("\n\nCarry")[0])
            return "x = 1. But this is not right." if len(attempts) == 1 else "." * 300 + "\\boxed{7}"
        if "Which one" in prompt:
            return "1"
        return "1. something wholly new" if "did not come" in prompt else next(plans)

    solved("react", Scripted(says), plans=4)
    assert attempts == ["1. solve x = 1 at once", "1. count apples"]


def test_a_tagged_model_goes_on_from_the_tags():
    def says(request, index):
        assert request.prompt == "What is 3 + 4?"
        if request.stop == (format.PLAN_END,):
            assert request.prefix == "<EXPLORATION>" and request.temperature == 0.9
            return "1. add"
        if request.stop[-1] == "\n":
            return "" if "add" in request.prefix else "1. add"
        assert request.stop == (format.EXECUTION_END,) and request.temperature == 0
        whole = request.prefix == "<EXPLORATION>"
        assert whole or request.prefix == "<EXPLORATION>1. add</EXPLORATION><EXECUTION>"
        return ("1. add</EXPLORATION><EXECUTION>" if whole else "") + "1. add: \\boxed{7}"

    for way in ("one", "consistency", "random", "greedy"):
        found = solved(way, Scripted(says), tagged=True)
        assert found.answer == "7" and found.details["execution"] == "1. add: \\boxed{7}"


def test_plans_are_voted_on_where_that_is_wanted():
    run = Run(words(3), vote=AheadBy(2), seed=3)
    found = run.solve_sync(ExploreExecute(way="one", vote_on_plans=True), task_of({"question": "What is 3 + 4?"}))
    assert run.meter.calls >= 4 and found.details["plan"] in ("1. guess the sum", "1. add three and four", "1. count on from three")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"plans": 0}, "plans: is from 1 to"),
        ({"again": -1}, "again: is at least 0"),
        ({"plan_temperature": float("nan")}, "plan_temperature: is at least 0"),
        ({"way": "causal", "tagged": True}, "way: is asked in words"),
    ],
)
def test_settings_out_of_range(settings, said):
    with pytest.raises(BadInput, match=said):
        ExploreExecute(**settings)


def test_unknown_ways_on_the_command_line():
    result = CliRunner().invoke(app, ["solve", "explore-execute", "Q", "--set", "way=fly"])
    assert result.exit_code == 2 and "set way" in result.stderr and json.dumps("fly")[1:-1] in result.stderr


@given(st.text(max_size=60))
def test_a_chain_is_read_back(text):
    text = text.replace("<", "")
    assert format.plan_in(format.begun(text)) == text.strip() and format.execution_in(format.chain("1. a", text)) == text.strip()
