"""Long-horizon execution put to workers: the reference's draws, every way, votes, histories with errors."""

from __future__ import annotations

import asyncio
import random
from itertools import chain

import numpy as np
import pytest
from answering import Adding

from keystep.errors import BadInput
from keystep.lm.base import as_messages
from keystep.measure import long_horizon as lh
from keystep.measure.bench import benchmark, journaled, many, settings_of
from keystep.measure.long_horizon import task
from keystep.measure.long_horizon.bench import Settings, true_sums
from keystep.run import Majority, Run
from keystep.run.vote import First

BENCH = benchmark("long-horizon-execution")
SMALL = {"instances": 6, "horizon": 12, "size": 8, "drawn": 100}


def measured(lm, settings, rule=None, seed=0):
    problems = BENCH.problems(settings, seed)
    run = Run(lm, vote=rule or First(cap=1), seed=seed)
    asyncio.run(many(BENCH, settings, problems, rule is not None).execute(run))
    return BENCH.score(settings, problems, journaled(run, len(problems)))


def test_the_reference_draws_in_this_order():
    """One sampler, seeded once: the words, their values, then the keys of every instance."""
    words = [f"w{number:04}" for number in range(300)] + ["long-word", "tiny"]
    random.seed(42)
    chosen = random.sample(words[:300], 100)
    values = [random.randint(-99, 99) for _ in chosen]
    keys = [random.choices(chosen, k=50) for _ in range(3)]
    plan = lh.generate(words, instances=3, horizon=50)
    assert list(plan.dictionary.items()) == list(zip(chosen, values, strict=True)) and plan.keys == keys


def test_plans_are_the_beginning_of_the_long_ones():
    plan = lh.generate(size=8, instances=6)
    assert len(plan.keys[0]) == 50_000
    problems = BENCH.problems(Settings(instances=6, horizon=12, size=8, per_turn=5), 0)
    assert [list(chain(*problem["turns"])) for problem in problems] == [keys[:12] for keys in plan.keys]
    assert [len(turn) for turn in problems[0]["turns"]] == [5, 5, 2]
    assert problems == BENCH.problems(Settings(instances=6, horizon=12, size=8, per_turn=5), 1)  # the plans are data_seed's
    values = plan.dictionary
    assert true_sums(problems[0]) == [sum(values[word] for word in plan.keys[0][:n]) for n in (5, 10, 12)]


def test_the_statement_has_right_examples_and_the_whole_dictionary():
    message = task.statement({"bread": 3, "stone": -7}, task.ONLY)
    assert "cedar, birch -> <answer>9</answer>" in message.content
    assert "delta, anvil, fjord -> <answer>0</answer>" in message.content
    assert "ember, cedar, birch, birch, delta, anvil -> <answer>10</answer>" in message.content
    assert "bread = 3\nstone = -7" in message.content
    assert "12, 9</answer>" in task.statement({"bread": 3}, task.ALL_AT_ONCE).content
    assert "(12) + (-3) = 9;" in task.statement({"bread": 3}, task.SHOWN).content


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ("<answer>5</answer>", 5), ("so <answer> -7 </answer> or <answer>8</answer>", -7), ("<think><answer>1</answer></think> 5", None),
        ("5", None), ("<answer>five</answer>", None), ("<answer>5.0</answer>", None), ("<answer></answer>", None), ("<answer>5", None),
        ("<answer>" + "9" * 5000 + "</answer>", None), ("<think>x</think><answer>\n+3\n</answer>", 3),
    ],
)  # fmt: skip
def test_parsing(text, total):
    assert task.whole(task.answer_in(text)) == total


@pytest.mark.parametrize("way", ["conversation", "window-3", "healed", "single-turn"])
@pytest.mark.parametrize("per_turn", [1, 5])
def test_a_worker_without_errors_is_right_in_every_way(way, per_turn):
    lm = Adding()
    scores = measured(lm, Settings(**SMALL, ways=[way], per_turn=per_turn))
    assert scores["summary"]["turn accuracy"] == scores["summary"]["first turn"] == 1
    assert scores["summary"]["H 0.5"] is None and scores["summary"]["steps before the first error"] >= 12
    assert {row["prefix accuracy"] for row in scores["tables"]["By turn"]} == {1.0}
    turns = 1 if way == "single-turn" else 12 if per_turn == 1 else 3
    assert lm.requests == 6 * turns
    assert lm.longest == (2 + 2 * min(3, turns - 1) if way == "window-3" else 2 * turns)


def test_fresh_asks_the_prompt_of_the_builtin_ledger():
    from worker import Worker

    scores = measured(Worker([0.9, 0.1]), Settings(ways=["fresh"], instances=20, horizon=20, size=8, drawn=20))
    assert 0.8 < scores["summary"]["turn accuracy"] < 1
    assert scores["tables"]["By way"][0]["H 0.5"] == pytest.approx(lh.horizon_law(0.9), abs=3)


def test_healing_keeps_errors_from_going_on():
    settings = Settings(ways=["conversation", "healed"], instances=30, horizon=20, size=8, drawn=20)
    scores = measured(Adding(lambda turn, draw: draw < 0.2), settings)
    rows = {row["way"]: row for row in scores["tables"]["By way"]}
    assert rows["conversation"]["turn accuracy"] == pytest.approx(0.8, abs=0.06)
    assert rows["healed"]["turn accuracy"] == pytest.approx(0.8, abs=0.06)
    index = {way: [row["index accuracy"] for row in scores["tables"]["By turn"] if row["way"] == way] for way in rows}
    assert np.mean(index["conversation"][10:]) < 0.2 < 0.7 < np.mean(index["healed"][10:])


def test_a_vote_on_every_turn_helps():
    def errs(turn, draw):
        return draw < 0.3

    settings = Settings(instances=20, horizon=10, size=8, drawn=20)
    alone, voted = measured(Adding(errs), settings), measured(Adding(errs), settings, Majority(5))
    assert alone["summary"]["turn accuracy"] < 0.8 and voted["summary"]["turn accuracy"] > 0.95


def test_an_unreadable_answer_goes_on_and_is_charged_once():
    class Silent(Adding):
        async def sample(self, request):
            async for sample in super().sample(request):
                if len(as_messages(request.prompt)) == 8:
                    sample.text = "I am not sure."
                yield sample

    scores = measured(Silent(), Settings(**SMALL))
    by_turn = scores["tables"]["By turn"]
    assert by_turn[3]["turn accuracy"] == 0 and by_turn[2]["turn accuracy"] == 1
    assert scores["summary"]["unreadable"] == pytest.approx(1 / 12) and len(by_turn) == 12


def test_self_conditioning_is_told_from_long_context():
    """A worker that errs with 5%, and 60% of the share of wrong answers it sees; its clean history costs nothing."""

    class Conditioned(Adding):
        async def sample(self, request):
            messages = as_messages(request.prompt)
            _, _, entries = str(messages[0].content).partition("The dictionary:\n")
            values = dict(line.split(" = ") for line in entries.partition("\n\n")[0].splitlines())
            true, wrong, shown = 0, 0, messages[1:-1]
            for asked, said in zip(shown[::2], shown[1::2], strict=True):
                true += sum(int(values[word]) for word in str(asked.content).split(", "))
                wrong += str(said.content) != f"<answer>{true}</answer>"
            pull = 0.05 + 0.6 * (wrong / (len(shown) // 2) if shown else 0)
            self.errs = lambda turn, draw: draw < pull
            async for sample in super().sample(request):
                yield sample

    settings = Settings(instances=150, size=8, drawn=20, errors=[0, 0.5, 1], target=20)
    scores = measured(Conditioned(), settings)
    [rows] = scores["tables"].values()
    at = {row["rate"]: row for row in rows}
    assert at[None]["accuracy"] == pytest.approx(0.95, abs=0.06) and at[0.0]["accuracy"] == pytest.approx(0.95, abs=0.06)
    assert at[1.0]["wrong in it"] == pytest.approx(lh.realised_rate(1), abs=0.01)
    assert at[1.0]["accuracy"] == pytest.approx(0.95 - 0.6 * lh.realised_rate(1), abs=0.12)
    assert scores["summary"]["self-conditioning, slope"] == pytest.approx(-0.6, abs=0.15)
    assert scores["summary"]["self-conditioning, gap"] == at[0.0]["accuracy"] - at[1.0]["accuracy"]
    assert len(BENCH.charts(scores)) == 1


def test_intervals_hold_what_they_say():
    """Of 200 data sets of 40 instances, about 95% of the bootstrap intervals hold the true rate at a turn, and the true horizon."""
    generator, hits, horizons = np.random.default_rng(2), 0, 0
    for number in range(200):
        prefix = np.logical_and.accumulate(generator.random((40, 30)) < 0.93, axis=1)
        band = lh.bootstrap(prefix, draws=300, seed=number)
        hits += band.low[4] <= 0.93**5 <= band.high[4]
        horizons += (band.horizon_low or 99) <= 10 <= (band.horizon_high or 99)
    assert hits >= 175 and horizons >= 175
    assert lh.bootstrap(np.ones((3, 4), dtype=bool)).horizon_low is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"ways": ["window-0"]}, "set ways: window-0 is no way"),
        ({"ways": []}, "at least one way"),
        ({"ways": ["fresh", "fresh"]}, "each once"),
        ({"errors": [1.5]}, "from 0 to 1"),
        ({"ways": ["fresh"], "per_turn": 2}, "one word a call"),
        ({"ways": ["fresh"], "size": 1}, "dictionary of 2"),
        ({"ways": ["healed"], "errors": [0.5]}, "no history"),
        ({"size": 100_000}, "words of 5 letters"),
        ({"words": "none.txt"}, "cannot be read"),
        ({"target": 60_000, "errors": [0.5]}, "beyond"),
    ],
)
def test_settings_that_cannot_be(given, said):
    with pytest.raises(BadInput, match=said):
        BENCH.problems(settings_of(BENCH, given), 0)


def test_words_of_ones_own(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("bread\nstone\nlonger-one\nbread\nwater\n")
    problems = BENCH.problems(Settings(words=str(file), size=3, instances=1, horizon=4), 0)
    assert sorted(problems[0]["dictionary"]) == ["bread", "stone", "water"]


def test_a_shorter_last_turn_ends_with_the_plan():
    bench = benchmark("long-horizon-execution")
    found = Settings(instances=3, horizon=10, per_turn=4, drawn=20)
    problems = bench.problems(found, 0)
    sums = [[{"sum": total, "text": ""} for total in true_sums(problem)] for problem in problems]
    right = bench.score(found, problems, sums)["summary"]
    assert right["H 0.5"] is None and right["steps before the first error"] == 10
    scores = bench.score(found, problems, [row[:-1] for row in sums])
    assert scores["summary"]["H 0.5"] == scores["summary"]["H 0.8"] == 10 and scores["summary"]["steps before the first error"] == 8
    assert scores["tables"]["By way"][0]["H 0.5 interval"] == "10 to 10"
