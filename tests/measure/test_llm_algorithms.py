import asyncio
import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from keystep.errors import BadInput, Refused
from keystep.lm.base import LM, Sample, draw_key
from keystep.measure.llm_algorithms import (
    TASKS,
    CallCost,
    CallError,
    Counting,
    Curve,
    Node,
    Pipeline,
    PowerLaw,
    Prediction,
    Prices,
    Profile,
    RetrievalAugmented,
    Retrieving,
    Sorting,
    Speed,
    calls_of,
    choose,
    compare,
    divide_and_conquer,
    grid,
    journaled_profile,
    latency,
    load,
    measure,
    parallel,
    pilot,
    predict,
    retrieval_augmented,
)
from keystep.measure.llm_algorithms.costs import overlapping, sizes
from keystep.measure.llm_algorithms.curves import power_law, rising_affine
from keystep.measure.llm_algorithms.graph import folded
from keystep.measure.llm_algorithms.predict import retrieval_error
from keystep.measure.llm_algorithms.profile import Call
from keystep.measure.llm_algorithms.run import means
from keystep.measure.llm_algorithms.tasks import cut, distances, falls, merged
from keystep.run import First, Journal, Majority, Run


class Program(LM):
    """Answers the prompts of the four algorithms exactly, but for errors drawn as `spread`, `bias`, `miss` and `false` say."""

    name = "program"

    def __init__(self, spread=0.0, bias=0.0, miss=0.0, false=0.0, swap=0.0):
        self.spread, self.bias, self.miss, self.false, self.swap, self.asked = spread, bias, miss, false, swap, 0

    async def sample(self, request):
        for index in range(request.first, request.first + request.n):
            self.asked += 1
            drawn = random.Random(draw_key(request.seed, request.key, index))
            text = self.answer(*request.prompt.split("\n", 1), drawn)
            yield Sample(text, index, tokens_in=len(request.prompt), tokens_out=len(text))

    def answer(self, question, text, drawn):
        if question.startswith("How many"):
            exact = sum(character.isdigit() for character in text)
            return f"There are {max(0, round(exact + drawn.gauss(self.bias, self.spread)))}"
        if question.startswith("Sort"):
            numbers = sorted(json.loads(text))
            if drawn.random() < self.swap * len(numbers):
                numbers[0] -= 1
            return "Sure: " + json.dumps(numbers)
        name = re.search(r"of the (\w+ \w+)[?.]", question)[1]
        if question.startswith("What is the code"):
            found = re.search(rf"The code of the {name} is (\d+)\.", text)
            if found:
                return "unknown" if drawn.random() < self.miss else found[1]
            return str(drawn.randint(1, 9) * 10**6 + drawn.randrange(10**6)) if drawn.random() < self.false else "unknown"
        sentences = re.findall(rf"The \w+ digit of the passcode of the {name} is \d\.", text)
        if question.startswith("Copy"):
            return " ".join(s for s in sentences if drawn.random() >= self.miss) or "none"
        if question.startswith("What are the six"):
            digits = dict(re.findall(r"The (\w+) digit of the passcode of the \w+ \w+ is (\d)", text))
            return str([int(digits.get(word, 0)) for word in ("first", "second", "third", "fourth", "fifth", "sixth")])
        raise Refused("knows other prompts", field="prompt", value=question)


def run(lm, **options):
    return Run(lm, vote=First(cap=1), **options)


def given_problems(algorithm, n, count):
    return [algorithm.problem(n, random.Random(f"{algorithm.name} {number}")) for number in range(count)]


# costs


def test_latency():
    seconds = [3, 1, 4, 1, 5, 9, 2, 6]
    assert [latency(seconds, p) for p in (4, 3, None, 1)] == [13, 19, 9, 31]
    assert latency([]) == 0


def test_latency_of_a_split_is_least_near_n_over_p():
    def of(start, m):
        return latency([start + 0.05 * m] * math.ceil(200 / m), 4)

    assert [of(1, m) for m in (10, 20, 40, 50, 67, 100, 200)] == pytest.approx([7.5, 6, 6, 3.5, 4.35, 6, 11])
    assert of(0, 10) == pytest.approx(of(0, 50)) == pytest.approx(2.5)


@settings(max_examples=60)
@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.integers(1, 40))
def test_latency_lies_between_all_at_once_and_one_by_one(seconds, p):
    assert latency(seconds) <= latency(seconds, p) + 1e-9
    assert latency(seconds, p) <= latency(seconds, 1) + 1e-9


def test_windows():
    assert overlapping(10_000, 4000) == [(0, 4000), (2000, 6000), (4000, 8000), (6000, 10_000)]
    assert [len(overlapping(10_000, m)) for m in (5000, 6670, 10_000, 20_000, 0)] == [3, 2, 1, 1, 1]
    assert len(overlapping(100, 30)) == 6


@settings(max_examples=60)
@given(st.integers(1, 500), st.integers(2, 600))
def test_windows_hold_every_sentence_of_their_overlap(n, m):
    windows = overlapping(n, m)
    assert windows[0][0] == 0 and windows[-1][1] == n
    length = min(m - math.ceil(m / 2), n)
    assert all(any(start <= at and at + length <= end for start, end in windows) for at in range(n - length + 1))


@settings(max_examples=60)
@given(st.integers(1, 1000), st.integers(-5, 1200))
def test_parts_make_up_the_whole(n, m):
    parts = sizes(n, m)
    assert sum(parts) == n and all(0 < part <= (m if 0 < m <= n else n) for part in parts)


def test_work_and_tokens():
    cost = CallCost(system=60)
    assert [1200 / m * cost.work(m) for m in (20, 40, 60, 120)] == [384_000, 300_000, 288_000, 324_000]
    assert [1200 / m * cost.tokens_in(m) for m in (20, 40, 60, 1200)] == [4800, 3000, 2400, 1260]


@settings(max_examples=30)
@given(st.integers(1, 500), st.integers(1, 400))
def test_finer_splits_never_read_less(n, m):
    pipeline = parallel(n, m).estimate(PowerLaw(), CallCost(system=60), Prices(token_in=1))
    finer = parallel(n, max(1, m // 2)).estimate(PowerLaw(), CallCost(system=60), Prices(token_in=1))
    assert pipeline.money == pytest.approx(60 * pipeline.calls + n)
    assert finer.money >= pipeline.money - 1e-6


# errors


def test_independent_errors_add_in_squares():
    spreads = [parallel(200, m).estimate(PowerLaw(scale=0.02 / math.sqrt(math.pi / 2), power=1.5)).sd for m in (10, 20, 50, 200)]
    assert spreads == pytest.approx([2.828, 5.657, 14.142, 56.569], abs=5e-4)
    for m in (10, 20, 50, 200):
        assert parallel(200, m).estimate(lambda m: CallError(0, 0, 0.3 * math.sqrt(m))).sd == pytest.approx(4.243, abs=5e-4)


@settings(max_examples=60)
@given(st.floats(-5, 5), st.floats(0, 5))
def test_folded_normal(mean, sd):
    value = folded(mean, sd)
    assert value >= abs(mean) - 1e-9 and value >= sd * math.sqrt(2 / math.pi) - 1e-9 and value <= math.hypot(mean, sd) + 1e-9


def test_a_bias_adds_up_and_does_not_average_out():
    estimate = parallel(100, 10).estimate(lambda m: CallError(1.0, 1.0, 0.1))
    assert estimate.bias == pytest.approx(10) and estimate.expected == pytest.approx(10, abs=0.01) and estimate.worst == pytest.approx(10)


def test_rules():
    error = lambda m: CallError(0.2)  # noqa: E731
    assert parallel(40, 10, "max").estimate(error).worst == pytest.approx(0.2)
    any_of = parallel(40, 10, "any").estimate(error)
    assert any_of.expected == pytest.approx(1 - 0.8**4) and any_of.worst == pytest.approx(0.8)
    last = retrieval_augmented([10, 10], 5).estimate(error, speed=Speed(start=1.0), parallel=1)
    assert last.expected == pytest.approx(1 - 0.8**3) and last.seconds == 3 and last.ideal == 2


def test_the_merge_of_sorted_lists_never_errs_more_than_its_worst_part():
    drawn = np.random.default_rng(1)
    for _ in range(200):
        parts = [np.sort(drawn.random(drawn.integers(1, 9))) for _ in range(4)]
        erring = [np.sort(part + drawn.uniform(-0.1, 0.1, len(part))) for part in parts]
        worst = max(np.abs(a - b).max() for a, b in zip(parts, erring, strict=True))
        assert np.abs(np.array(merged(parts)) - np.array(merged(erring))).max() <= worst + 1e-12


def test_divide_and_conquer():
    pipeline = divide_and_conquer(8, 2, merge=lambda size: size)
    assert sum(node.size is not None for node in pipeline.nodes.values()) == 7  # four leaves, two merges of 4, one of 8
    estimate = pipeline.estimate(PowerLaw(scale=1), CallCost(), speed=Speed(token_in=1), parallel=2)
    assert estimate.tokens_in == 4 * 2 + 2 * 4 + 8 and estimate.ideal == 2 + 4 + 8 and estimate.seconds == 2 + 2 + 4 + 8
    exact = divide_and_conquer(9, 2, branch=3).estimate(PowerLaw(scale=1))
    assert exact.calls == 9 and exact.worst == pytest.approx(9)
    scaled = divide_and_conquer(4, 2, lipschitz=2.0).estimate(lambda m: CallError(1.0))
    assert scaled.worst == pytest.approx(4)


def test_a_node_that_several_read_errs_once():
    nodes = [Node(name="a", size=1), Node(name="b", needs=("a",)), Node(name="c", needs=("a",)), Node(name="d", needs=("b", "c"))]
    twice = Pipeline(nodes).estimate(lambda m: CallError(1.0, mean=0.5, sd=3.0))
    assert (twice.worst, twice.bias, twice.sd) == (2, 1, 6)  # its error comes twice, and does not average out: not 3 sqrt(2)
    once = Pipeline(nodes, "any").estimate(lambda m: CallError(0.2))
    assert once.worst == pytest.approx(0.2) and once.expected == pytest.approx(0.2)


def test_a_graph_of_ones_own(tmp_path):
    file = tmp_path / "graph.json"
    nodes = [{"name": "a", "size": 40}, {"name": "b", "size": 40}, {"name": "all", "needs": ["a", "b"]}]
    file.write_text(json.dumps({"nodes": nodes, "error": {"scale": 0.1}, "cost": {"system": 60}, "speed": {"start": 1}}))
    estimate = load(file).estimate(1)
    assert (estimate.calls, estimate.tokens_in, estimate.seconds, estimate.ideal) == (2, 200, 2, 1) and estimate.worst == pytest.approx(8)
    for wrong in (
        b"",
        b"[]",
        b'{"nodes": []}',
        b'{"nodes": [{"name": "a", "size": -1}]}',
        b'{"nodes": 3}',
        b"[" * 100_000,
        b"\xff",
        b'{"nodes": [{"name": "a", "size": 1e999}]}',
        b'{"nodes": [{"name": "a", "size": 5}], "prices": {"token_in": -1}}',
        b'{"nodes": [{"name": "a", "size": 5}], "speed": {"start": NaN}}',
        b'{"nodes": [{"name": "a", "size": 9}], "error": {"scale": 1, "power": 1e9}}',
        b'{"nodes": [{"name": "a", "size": 1e200}]}',
    ):
        file.write_bytes(wrong)
        with pytest.raises(BadInput):
            load(file).estimate()
    with pytest.raises(BadInput):
        load(tmp_path / "none.json")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pipeline([Node(name="a", needs=("b",)), Node(name="b", needs=("a",))]),
        lambda: Pipeline([Node(name="a", needs=("a",))]),
        lambda: Pipeline([Node(name="a"), Node(name="a")]),
        lambda: Pipeline([Node(name="a", needs=("nobody",))]),
        lambda: Pipeline([Node(name="a")], rule="product"),
        lambda: Pipeline([]),
        lambda: divide_and_conquer(10, 2, branch=1),
        lambda: divide_and_conquer(10**12, 1),
        lambda: parallel(10**12, 1),
        lambda: parallel(0, 1),
    ],
)
def test_graphs_that_are_none(make):
    with pytest.raises(BadInput):
        make()


@settings(max_examples=60)
@given(st.dictionaries(st.integers(1, 50), st.floats(0, 10), min_size=1, max_size=12))
def test_the_rising_curve_is_isotonic_regression(points):
    curve = Curve.rising(points)
    wanted = optimize.isotonic_regression([points[m] for m in sorted(points)]).x
    assert curve.values == pytest.approx(list(wanted), abs=1e-9)
    assert curve(0) == curve.values[0] and curve(1000) == curve.values[-1]


def test_the_speed_of_calls_is_fitted_without_negative_parts():
    """Noise that makes a part of the free fit negative must not leave the others as they were with it."""
    drawn = np.random.default_rng(0)
    calls = [Call(m, 27 + m, m - 1, 0.02 + drawn.uniform(0, 0.002)) for m in (20, 50, 100) for _ in range(3)]
    speed = Profile(tuple(calls)).speed()
    assert min(speed.start, speed.token_in, speed.token_out) >= 0
    assert [speed.seconds(call.tokens_in, call.tokens_out) for call in calls] == pytest.approx([0.021] * 9, abs=0.002)
    for _ in range(20):
        rows, values = drawn.random((8, 2)), drawn.normal(size=8)
        found = rising_affine(rows.tolist(), values.tolist())
        assert found == pytest.approx(optimize.nnls(np.column_stack([np.ones(8), rows]), values)[0], abs=1e-6)


def test_power_law():
    assert power_law([10, 20, 50, 200], [0.02 * m**1.5 for m in (10, 20, 50, 200)]) == pytest.approx((0.02, 1.5))
    with pytest.raises(BadInput):
        power_law([10, 20], [0, 1])


# tasks


def test_merging():
    assert merged([[0.1, 0.4], [0.2, 0.3]]) == [0.1, 0.2, 0.3, 0.4]
    assert merged([[0.5, 0.1], [0.2, 0.3]]) == [0.2, 0.3, 0.5, 0.1]
    assert falls([0.1, 0.5, 0.3, 0.4, 0.2]) == pytest.approx(0.4)


def test_distances_of_lists():
    found = distances([0.1, 0.4], [0.1, 0.3, 0.6])
    assert found["fuzzy_linf"] == pytest.approx(0.2) and found["fuzzy_l1"] == pytest.approx(0.1)
    assert found["linf"] == found["l1"] == found["exact_error"] == 1.0 and found["length"] == pytest.approx(1 / 3)
    assert distances([0.1], [0.1])["exact_error"] == 0 and distances([], [0.5])["linf"] == 1.0


def test_votes_of_retrieval():
    assert retrieval_error(2, 5, 0.2) == pytest.approx(0.04)
    assert retrieval_error(0, 5, 0.2) == 1.0
    metrics = lambda result: Retrieving().metrics({"truth": "1"}, result, [])["error"]  # noqa: E731
    assert [metrics(result) for result in (["1"], ["1", "2"], ["2"], [], ["1", "2", "3"])] == [0, 0.5, 1, 1, pytest.approx(2 / 3)]
    # false answers that never agree, against the same votes drawn one by one
    drawn, wrong = random.Random(3), []
    for _ in range(20_000):
        votes = sum(drawn.random() >= 0.2 for _ in range(2))
        others = sum(drawn.random() < 0.1 for _ in range(8))
        result = ["1"] if votes > 1 else ["1"] * votes + [f"x{n}" for n in range(others)]
        wrong.append(metrics(result))
    assert retrieval_error(2, 8, 0.2, 0.1) == pytest.approx(sum(wrong) / len(wrong), abs=0.01)


def test_more_misses_and_false_answers_are_worse():
    errors = [retrieval_error(2, 10, miss, 0.05) for miss in (0.0, 0.1, 0.3, 0.6, 1.0)]
    assert errors == sorted(errors) and errors[-1] == 1.0
    assert retrieval_error(1, 3, 0.1, 0.05) < retrieval_error(1, 30, 0.1, 0.05)


@pytest.mark.parametrize("name", TASKS)
def test_an_exact_worker_solves_every_split(name):
    algorithm = TASKS[name]
    problems = given_problems(algorithm, 900, 3)
    for m in (200, 450, 900):
        found = asyncio.run(measure(run(Program()), algorithm, problems, m, parallel=3))
        assert all(row.errors[algorithm.main] == 0 for row in found)
        assert all(row.calls == len(algorithm.parts(p, m)) + algorithm.final for row, p in zip(found, problems, strict=True))


def test_problems_are_of_their_size_and_nested():
    for n in (1, 50, 200):
        assert Counting().problem(n, random.Random(1))["n"] == Sorting().problem(n, random.Random(1))["n"] == n
    whole = Counting().problem(200, random.Random(4))
    assert cut(cut(whole, 150), 20) == cut(whole, 20) and cut(whole, 200) == whole
    problem = Retrieving().problem(3000, random.Random(2))
    low, high = problem["needle"]
    assert problem["n"] == len(problem["text"]) == 3000 and problem["truth"] in problem["text"][low:high]
    assert problem["text"].count(problem["target"]) == 1
    with pytest.raises(BadInput):
        cut(problem, 10)
    for algorithm in (Retrieving(), RetrievalAugmented()):
        with pytest.raises(BadInput):
            algorithm.problem(10, random.Random(1))


def test_the_final_digits_are_padded():
    read = RetrievalAugmented().read_final
    assert read("so [1, 2] it is") == [1, 2, 0, 0, 0, 0] and read("[1,2,3,4,5,6,7]") == [1, 2, 3, 4, 5, 6] and read("none") == [0] * 6


CASES = [(a, p, a.parts(p, 300)[0]) for a in TASKS.values() for p in given_problems(a, 600, 1)]


@settings(max_examples=60)
@given(st.text(max_size=200))
def test_any_reply_is_read(text):
    for algorithm, problem, part in CASES:
        answer = json.loads(json.dumps(algorithm.read(text)))
        assert all(math.isfinite(value) for value in algorithm.errors(problem, part, answer).values())


@pytest.mark.parametrize(
    "text", ["[" * 5000, "[1e999]", "[NaN, 1]", "[true]", '["a"]', "[[1]]", "[0.1, 0.2", "9" * 5000, "[1e400, -1e400]"]
)
def test_hostile_replies(text):
    for algorithm in TASKS.values():
        json.dumps(algorithm.read(text), allow_nan=False)
    assert Sorting().metrics({"truth": [0.1]}, Sorting().read(text), [])["exact_error"] in (0.0, 1.0)


# profile, prediction, choice


def test_a_pilot_finds_what_the_worker_does():
    profile = asyncio.run(pilot(run(Program(spread=2.0, bias=1.0)), Counting(), 200, [50, 100], trials=400))
    assert profile.curve("signed")(50) == pytest.approx(1.0, abs=0.4) and profile.curve("signed", "sd")(100) == pytest.approx(2.0, abs=0.3)
    assert profile.cost().tokens_in(70) == pytest.approx(len(Counting().prompt({}, {"text": "x" * 70})))
    assert Profile.of(json.loads(json.dumps(profile.as_json()))) == profile


@pytest.mark.parametrize(
    ("algorithm", "worker", "n", "m"),
    [
        (Counting(), {"spread": 2.0}, 200, 20),
        (Counting(), {"spread": 1.0, "bias": 1.5}, 200, 40),
        (Sorting(), {"swap": 0.002}, 200, 40),
        (Retrieving(), {"miss": 0.3}, 2000, 200),
        (Retrieving(), {"miss": 0.3, "false": 0.05}, 2000, 200),
        (RetrievalAugmented(), {"miss": 0.1}, 2000, 400),
    ],
)
def test_predicted_beside_measured(algorithm, worker, n, m):
    trials = {m: 600 if algorithm.final else 250, 2 * m: 20}
    profile = asyncio.run(pilot(run(Program(**worker)), algorithm, n, [m, 2 * m], trials))
    expected = predict(algorithm, profile, n, m, parallel=4, prices=Prices(1, 1))
    found = means(asyncio.run(measure(run(Program(**worker), seed=1), algorithm, given_problems(algorithm, n, 120), m, 4)), Prices(1, 1))
    figures = {row["figure"]: row for row in compare(expected.figures, found)}
    main = figures[algorithm.main]
    assert main["predicted"] == pytest.approx(main["measured"], rel=0.2, abs=0.06 if main["measured"] <= 1 else 0)
    assert figures["tokens_in"]["ratio"] == pytest.approx(1, abs=0.02) and figures["calls"]["ratio"] == pytest.approx(1, abs=0.01)
    assert expected.worst is None or expected.worst >= main["predicted"] - 1e-9


def test_a_vote_helps_and_is_paid_for():
    problems = given_problems(Counting(), 100, 60)
    alone = means(asyncio.run(measure(run(Program(spread=0.6)), Counting(), problems, 20)))
    voted = means(asyncio.run(measure(Run(Program(spread=0.6), vote=Majority(5)), Counting(), problems, 20)))
    assert voted["error"] < alone["error"] and voted["tokens_out"] > alone["tokens_out"]


def test_choice():
    table = [Prediction(m, {"error": e, "money": c}) for m, e, c in ((10, 1.0, 9.0), (20, 1.0, 6.0), (50, 4.0, 3.0))]
    assert choose(table, "error").best.m == 20  # the larger one among equals
    assert choose(table, "error", {"money": 5}).best.m == 50
    assert choose(table, "money", {"error": 2}).best.m == 20
    with pytest.raises(BadInput, match="m = 50"):
        choose(table, "error", {"money": 2})
    for objective, limits in (("beauty", {}), ("error", {"beauty": 1})):
        with pytest.raises(BadInput, match="is no figure"):
            choose(table, objective, limits)


@settings(max_examples=60)
@given(st.integers(1, 5000), st.integers(1, 100))
def test_grid(n, least):
    found = grid(n, least)
    assert found == sorted(set(found)) and found[-1] == n and found[0] >= min(least, n)


def test_a_profile_of_another_algorithm():
    profile = asyncio.run(pilot(run(Program()), Counting(), 50, [10], trials=2))
    with pytest.raises(BadInput, match="no call has this error"):
        predict(Sorting(), profile, 50, 10)
    for sizes_, trials in (([0], 1), ([51], 1), ([10], 0)):
        with pytest.raises(BadInput):
            asyncio.run(pilot(run(Program()), Counting(), 50, sizes_, trials))


def test_a_recorded_run_is_a_profile(tmp_path):
    journal = Journal(tmp_path / "runs.db")
    problems = given_problems(Counting(), 200, 20)
    worker = Program(spread=2.0, bias=1.0)
    measured = asyncio.run(measure(run(worker, journal=journal, id="a"), Counting(), problems, 50, 2))
    profile = journaled_profile(journal, "a", Counting(), problems, 50)
    assert len(profile.calls) == 80 and sum(call.tokens_in for call in profile.calls) == sum(row.tokens_in for row in measured)
    errors = [sum(call.errors["signed"] for call in profile.calls[at : at + 4]) for at in range(0, 80, 4)]
    assert [abs(error) for error in errors] == [row.errors["error"] for row in measured]
    assert len(calls_of(journal, "a")) == 80
    with pytest.raises(BadInput):
        journaled_profile(journal, "a", Counting(), [], 50)
    asked = worker.asked
    again = asyncio.run(measure(run(worker, journal=journal, id="a"), Counting(), problems, 50, 4))
    assert worker.asked == asked and [row.errors for row in again] == [row.errors for row in measured]
    journal.close()


@settings(max_examples=10)
@given(st.integers(1, 7), st.integers(1, 60))
def test_how_many_run_at_once_changes_no_answer(p, m):
    problems = given_problems(Counting(), 60, 2)
    alone = asyncio.run(measure(run(Program(spread=2.0)), Counting(), problems, m, 1))
    beside = asyncio.run(measure(run(Program(spread=2.0)), Counting(), problems, m, p))
    assert [row.errors for row in alone] == [row.errors for row in beside]


# the command


@pytest.fixture
def command(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from keystep.cli import app

    monkeypatch.chdir(tmp_path)
    worker = Program(spread=1.5)
    monkeypatch.setattr("keystep.cli.job.lm", lambda name, **options: worker)

    def call(*arguments):
        result = CliRunner().invoke(app, ["decompose", *arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    call.worker = worker
    return call


def test_decompose(command):
    asked = ("counting", "--n", "100", "--sizes", "10,50,100", "--trials", "10", "--problems", "3", "--price-in", "0.001", "--json")
    result = json.loads(command(*asked).stdout)
    assert result["chosen"] in (10, 50, 100) and [row["m"] for row in result["predicted"]] == [10, 50, 100]
    assert {row["figure"] for row in result["measured, direct"]} >= {"error", "money", "tokens_in"}
    assert "<svg" in Path(result["report"]).read_text()
    before = command.worker.asked
    again = json.loads(command(*asked).stdout)
    assert command.worker.asked == before and again["chosen"] == result["chosen"]
    assert "chosen: parts of" in command(*asked[:-1]).stdout
    voted = command(*asked, "--majority", "3", "--base-url", "http://b/v1")
    assert voted.stderr.count("note: at temperature 0 one model") == 1


def test_decompose_a_graph(command, tmp_path):
    (tmp_path / "g.json").write_text('{"nodes": [{"name": "a", "size": 40}], "error": {"scale": 0.1}}')
    assert json.loads(command("--graph", "g.json", "--json").stdout)["worst"] == pytest.approx(4)
    for odd in (("counting",), ("--parallel", "0")):
        assert command("--graph", "g.json", *odd).exit_code == 2
    command("counting", "--n", "20", "--sizes", "10", "--trials", "2", "--problems", "1", "--journal", "j.db", "--quiet")
    journal = Journal("j.db")
    [first, *_] = [row["id"] for row in journal.all_runs()]
    journal.close()
    assert json.loads(command("--graph", "g.json", "--speed-of", first, "--journal", "j.db", "--json").stdout)["seconds"] >= 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("knitting",),
        (),
        ("counting", "--n", "0"),
        ("counting", "--sizes", "0"),
        ("counting", "--sizes", "300"),
        ("counting", "--parallel", "0"),
        ("counting", "--at-most", "money"),
        ("counting", "--at-most", "beauty=1"),
        ("counting", "--objective", "beauty"),
        ("counting", "--trials", "0"),
        ("counting", "--problems", "-1"),
        ("retrieval", "--n", "20"),
        ("--graph", "none.json"),
        ("counting", "--speed-of", "none"),
        ("counting", "--price-in", "-1"),
        ("counting", "--price-out", "nan"),
        ("retrieval", "--n", "2000", "--sizes", "20,30", "--trials", "2"),
        ("retrieval-augmented", "--n", "2000", "--sizes", "20,30", "--trials", "2"),
        ("sorting", "--sizes", "a"),
    ],
)
def test_bad_input(command, arguments):
    assert command(*arguments, "--quiet").exit_code == 2
