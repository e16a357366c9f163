"""What the reproduction of MAKER asks and counts: known answers on a worker whose error rate is known."""

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker import Scripted, Worker

from keystep.errors import BadInput
from keystep.lm.embedded import Embedded
from keystep.reproduce import maker
from keystep.reproduce._maker_parts import Setting, exact, pooled, votes, whole_runs
from keystep.reproduce._maker_work import BETWEEN, Chained, Repairing, Several
from keystep.run import AheadBy, First, Flag, Run, theory
from keystep.run.builtin.hanoi import Hanoi
from keystep.run.builtin.ledger import Ledger


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("move = [1, 0, 1\nnext_state = [[3, 2], [1], [", [[1, 0, 1], [[3, 2], [1], []]]),  # brackets are added
        ("move = [1, 0, 1]\nnext_state = [[3, 3], [1]]", [[1, 0, 1], [[3, 3], [1]]]),  # and nothing is checked
        ("move = [?, 0, 1]\nnext_state = [[3, 2, ?], [1], []]", [[0, 1], [[3, 2], [1], []]]),
    ],
)
def test_the_repairing_parser_takes_what_the_other_flags(text, answer):
    assert Repairing(3).parse(text, None) == answer
    with pytest.raises(Flag):
        Hanoi(3).parse(text, None)


def test_of_a_sound_answer_both_parsers_read_the_same():
    for state, answer in Hanoi(3).truth():
        text = f"move = {answer[0]}\nnext_state = {answer[1]}"
        assert Repairing(3).parse(text, state) == Hanoi(3).parse(text, state) == answer


def test_even_a_repairing_parser_needs_a_list():
    for text in ("", "I cannot say.", "move = [1, 0, 1]", "move = ]\nnext_state = [[], [], []]"):
        with pytest.raises(Flag):
            Repairing(3).parse(text, None)


def several(size, lm, k=1, **options):
    ledger = Ledger(20, 5, 3)
    run = Run(Chained(lm, ledger), vote=AheadBy(k), **options)
    return ledger, run, run.execute_sync(Several(ledger, size))


@pytest.mark.parametrize("size", [1, 5, 20])
def test_calls_of_several_steps_lead_where_single_steps_lead(size):
    ledger, run, outcome = several(size, Worker([1.0]))
    last = [ledger.update(state, answer) for state, answer in ledger.truth()][-1]
    assert (outcome.steps, outcome.result) == (20 // size, last)
    run.close()


def test_a_size_has_to_divide_the_steps():
    with pytest.raises(BadInput, match="divide"):
        Several(Ledger(20, 5, 3), 3)


def test_a_call_ends_where_it_lost_its_way():
    ledger = Ledger(4, 5, 3)
    lm = Chained(Scripted(["value = 1\nsum = 1", "what?"]), ledger)
    work = Several(ledger, 4)
    sample = asyncio.run(lm.complete(work.prompt(work.start()), n=2))[1]
    assert sample.text == "what?"
    with pytest.raises(Flag, match="too few"):
        work.parse(sample.text, work.start())
    assert len(work.parse(BETWEEN.join(["value = 1\nsum = 1"] * 4), work.start())) == 4


def test_a_call_of_m_steps_is_right_with_the_mth_power():
    ledger, p, m = Ledger(2000, 5, 1), 0.9, 4
    found = votes(Chained(Worker([p, 1 - p]), ledger), Several(ledger, m), 0, 1.0, First())
    n, wanted = len(found.right), p**m
    assert n == 500 and abs(found.right.mean() - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / n)


def test_votes_and_collisions_are_those_of_the_theory():
    p, k, steps = 0.7, 3, 1000
    found = votes(Worker([p, 1 - p]), Ledger(steps, 5, 1), 0, 1.0, AheadBy(k))
    for came, wanted in ((found.right.mean(), theory.vote_success(p, k)), (found.collided / steps, (1 - p) ** 2)):
        assert abs(came - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / steps)
    assert found.alike == found.collided  # there is one wrong answer only
    scatter = math.sqrt(theory.variance_of_votes(p, k) / steps)
    assert abs(found.samples / steps - theory.mean_votes(p, k)) < 4 * scatter and found.flagged == 0


def test_whole_runs_take_the_forecasts_k_and_count_what_came():
    setting = Setting(disks={3: 3}, ledgers={8: 2, 16: 2}, words=5, sample=16)
    tower, short, longer = whole_runs(Worker([0.95, 0.03]), [0], setting, lambda: None)
    assert (tower["length"], short["length"], longer["length"]) == (7, 8, 16)
    assert (tower["runs"], longer["steps"]) == (3, 32) and short["p"] == longer["p"]  # of one and the same calibration
    assert short["k"] <= longer["k"] and 0 < longer["promised"] < 1 and longer["samples"] >= longer["k"][0] * 32


def test_exact_probabilities_are_those_of_the_samples():
    tower = Hanoi(3)
    p, greedy = exact(tower, 1.0)
    assert p.shape == greedy.shape == (5, 7) and greedy.all()
    for member in (0, 3):
        lm = Embedded(f"embedded:{member}")
        said = [lm.complete_sync(tower.prompt(state), temperature=0.0)[0] for state, _ in tower.truth()]
        assert p[member] == pytest.approx([math.exp(sample.logprob) for sample in said], abs=1e-5)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.floats(0, 1)), min_size=1))
def test_pooling_adds_counts_averages_shares_and_joins_lists(drawn):
    rows = [{"who": who, "count": count, "share": share, "list": [count]} for who, count, share in drawn]
    for row in pooled(rows, "who"):
        mine = [one for one in drawn if one[0] == row["who"]]
        assert row["count"] == sum(row["list"]) == sum(count for _, count, _ in mine)
        assert row["share"] == pytest.approx(sum(share for _, _, share in mine) / len(mine), rel=1e-4, abs=1e-12)


def test_the_slope_of_votes_that_follow_the_theory_is_the_theorys():
    p, v, target = 0.9, 0.8, 0.95
    rows = []
    for steps in (10, 100, 1000, 10000):
        votes_of_real_k = theory.real_margin(p, steps, target) / (2 * p - 1) / v
        rows.append({"length": steps, "p": p, "v": v, "samples": votes_of_real_k * steps, "steps": steps})
    slope, expected = maker.slopes(rows)
    assert slope == pytest.approx(expected, rel=0.01)
