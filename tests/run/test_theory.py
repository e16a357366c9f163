import math
from functools import cache
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep.errors import BadInput
from keystep.run import theory

MILLION = 2**20 - 1
TABLE = [  # error of one step, real margin, whole margin, success of the whole run (maker sheet, known answer 3)
    (0.3571, 28.629, 29, 0.9596), (0.0040, 3.051, 4, 0.9997), (0.0022, 2.752, 3, 0.9888), (0.0018, 2.664, 3, 0.9939),
    (0.1839, 11.296, 12, 0.9822), (0.0358, 5.111, 6, 0.9973), (0.2342, 14.208, 15, 0.9801), (0.0569, 5.995, 6, 0.9507),
    (0.0393, 5.266, 6, 0.9951),
]  # fmt: skip


@pytest.mark.parametrize(
    ("p", "k", "success"),
    [(0.6, 1, 0.6), (0.6, 3, 0.7714285714), (0.75, 2, 0.9), (0.9, 3, 0.9986301370), (0.99, 3, 0.9999989694), (0.7, 2, 0.8448275862)],
)
def test_vote_success(p, k, success):
    assert theory.vote_success(p, k) == pytest.approx(success, abs=5e-11)


@pytest.mark.parametrize(("p", "k", "exact", "approximate"), [(0.6, 3, 8.142857, 15), (0.75, 2, 3.2, 4), (0.9, 3, 3.739726, 3.75)])
def test_mean_votes(p, k, exact, approximate):
    assert theory.mean_votes(p, k) == pytest.approx(exact, abs=5e-7)
    assert theory.approximate_mean_votes(p, k) == pytest.approx(approximate)


@given(st.floats(0.01, 1), st.integers(2, 8))
def test_where_no_two_wrong_answers_are_alike_k_or_one_more_right_votes_are_needed(p, k):
    assert k / p * (1 - 1e-12) <= theory.mean_votes_if_all_differ(p, k) <= (k + 1) / p


@pytest.mark.parametrize(("p", "k"), [(0.4, 1), (0.8, 2), (0.6, 3), (0.4, 3)])
def test_mean_votes_if_all_differ(p, k):
    live, mean = {(0, 0): 1.0}, 0.0  # probability of (right votes, wrong ones, each for an answer of its own)
    for _ in range(400):
        mean += sum(live.values())
        after = {}
        for (right, wrong), mass in live.items():
            for vote, share in (((right + 1, wrong), p), ((right, wrong + 1), 1 - p)):
                if vote[0] - min(vote[1], 1) < k and min(vote[1], 1) - vote[0] < k:
                    after[vote] = after.get(vote, 0.0) + mass * share
        live = after
    assert theory.mean_votes_if_all_differ(p, k) == pytest.approx(mean)


def test_mean_votes_at_the_edges():
    assert theory.mean_votes(0.7, 3) == pytest.approx(6.405405, abs=5e-7)
    assert theory.mean_votes(0.5, 4) == 16
    assert theory.mean_votes(0.5 + 1e-9, 4) == pytest.approx(16)
    assert theory.mean_votes(1, 5) == theory.mean_votes(0, 5) == 5
    assert [theory.mean_votes(p, 1) for p in (0.1, 0.5, 0.8)] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(("error", "real", "whole", "success"), TABLE)
def test_margin_of_a_million_steps(error, real, whole, success):
    assert theory.real_margin(1 - error, MILLION, 0.95) == pytest.approx(real, abs=6e-4)
    assert theory.least_margin(1 - error, MILLION, 0.95) == whole
    assert theory.run_success(1 - error, whole, MILLION) == pytest.approx(success, abs=6e-5)


def test_margins_of_short_runs():
    targets = (0.5, 0.9, 0.95, 0.99)
    assert [theory.least_margin(0.9, 1023, t) for t in targets] == [4, 5, 5, 6]
    assert [theory.least_margin(0.99, 1023, t) for t in targets] == [2, 2, 3, 3]
    assert [theory.least_margin(0.9, 7, t) for t in targets] == [2, 2, 3, 3]
    real = [theory.real_margin(0.99, 2**disks - 1, 0.95) for disks in (5, 10, 15, 20)]
    assert real == pytest.approx([1.394, 2.155, 2.909, 3.663], abs=6e-4)
    assert theory.least_margin(0.999, 1, 0.5) == theory.least_margin(1, MILLION, 0.99) == 1


def test_run_success_of_the_sheets_ratios():
    assert 10 * math.log(theory.run_success(0.9978, 1, MILLION // 10)) == pytest.approx(-2309, abs=1)
    assert theory.run_success(0.9978, 1, MILLION) == 0.0  # e^-2309
    assert theory.run_success(0.9978, 3, MILLION) == pytest.approx(0.989, abs=5e-4)
    assert theory.run_success(0.9978, 2, MILLION) == pytest.approx(0.006, abs=5e-4)
    assert theory.run_success(0.99, 1, 1023) == pytest.approx(3.4e-5, abs=1e-6)
    assert theory.run_success(0.99, 2, 1023) == pytest.approx(0.90, abs=5e-3)
    assert theory.run_success(0.99, 3, 1023) == pytest.approx(0.9989, abs=1e-4)


def test_undecided_steps_shrink():
    left = [MILLION * theory.undecided_after(0.9978, 3, rounds) for rounds in range(3)]
    assert left == pytest.approx([6905.4, 45.5, 0.30], rel=4e-3)
    assert [theory.undecided_after(0.9, 3, rounds) for rounds in range(3)] == pytest.approx([0.27, 0.0729, 0.019683])
    assert [theory.undecided_after(0.9, 2, rounds) for rounds in range(3)] == pytest.approx([0.18, 0.0324, 0.005832])
    assert theory.undecided_after(0.6, 1, 0) == 0


def test_cost():
    calls = theory.expected_cost(0.9978, MILLION, 0.95)
    assert calls == pytest.approx(3_159_627, abs=1)
    assert calls * (590 * 0.4 + 538 * 1.6) / 1e6 == pytest.approx(3465, abs=1)
    assert calls * 538 * 1.6 / 1e6 == pytest.approx(2720, abs=1)
    assert theory.expected_cost(0.9978, MILLION, 0.95, valid=0.5) == pytest.approx(2 * calls)


def test_longer_calls_are_not_always_dearer():
    def continuous(p, steps, per_call):
        return theory.real_margin(p, steps, 0.95, per_call) / (p ** (per_call - 1) * (2 * p - 1))

    best = {(p, s): min(range(1, 60), key=lambda m: continuous(p, s, m)) for p, s in [(0.99, 1023), (0.9978, MILLION), (0.9, MILLION)]}
    assert best == {(0.99, 1023): 14, (0.9978, MILLION): 34, (0.9, MILLION): 1}
    assert continuous(0.9978, MILLION, 34) / continuous(0.9978, MILLION, 1) == pytest.approx(0.85, abs=0.01)
    assert continuous(0.9, MILLION, 50) / continuous(0.9, MILLION, 1) == pytest.approx(134, abs=1)
    whole = {m: theory.expected_cost(0.99, 1023, 0.95, per_call=m) for m in range(1, 60)}
    assert min(whole, key=whole.__getitem__) == 3
    assert whole[3] / whole[1] == pytest.approx(0.68, abs=0.005)


def test_more_than_two_candidates():
    assert theory.race([0.6, 0.2, 0.2], 2)[0] == pytest.approx(0.8419, abs=5e-5)
    assert theory.race([0.4, 0.3, 0.3], 3)[0] == pytest.approx(0.5762, abs=5e-5)
    assert theory.vote_success(0.6, 2) == pytest.approx(0.692, abs=5e-4)
    assert theory.vote_success(0.75, 2) == pytest.approx(0.9)
    assert theory.vote_success(0.4, 3) == pytest.approx(0.229, abs=5e-4)
    assert theory.race([1.0], 3) == [1.0]
    assert theory.race([1.0, 0.0], 3) == [1.0, 0.0]


@given(st.floats(0.01, 0.99), st.integers(1, 6))
def test_a_race_of_two_is_the_formula(p, k):
    assert theory.race([p, 1 - p], k) == pytest.approx([theory.vote_success(p, k), theory.vote_error(p, k)], abs=1e-8)


@given(st.floats(0, 1), st.integers(1, 400))
def test_success_and_error_are_stable(p, k):
    success, error = theory.vote_success(p, k), theory.vote_error(p, k)
    assert success + error == pytest.approx(1)
    assert error == pytest.approx(theory.vote_success(1 - p, k), rel=1e-9, abs=1e-12)
    if p > 0.5:
        assert success >= p or success == pytest.approx(p)
        assert theory.vote_success(p, k + 1) >= success


def test_no_digits_are_lost():
    assert theory.vote_error(0.999, 100) == pytest.approx((1 / 999) ** 100, rel=1e-9)
    assert theory.vote_success(1e-300, 50) == 0.0
    assert theory.vote_success(0.5, 10**9) == 0.5
    # At 10^12 steps t^(-1/s) - 1 is 5e-14; a plain difference would be off in the third digit.
    assert theory.real_margin(0.9, 10**12, 0.95) == pytest.approx(math.log(10**12 / -math.log(0.95)) / math.log(9), rel=1e-12)


@given(st.floats(0.501, 0.9999), st.integers(1, 10**7), st.floats(0.01, 0.999), st.integers(1, 20))
def test_the_least_margin_is_the_least(p, steps, target, per_call):
    k = theory.least_margin(p, steps, target, per_call)
    assert theory.run_success(p, k, steps, per_call) >= target * (1 - 1e-9)
    if k > 1:
        assert theory.run_success(p, k - 1, steps, per_call) < target * (1 + 1e-9)


@given(st.floats(0.02, 0.98), st.integers(1, 4))
def test_mean_votes_is_the_sum_of_what_stays_open(p, k):
    """E[N] = k + 2 * (sum over rounds of the chance to be still open)."""
    total, rounds = float(k), 0
    while (left := theory.undecided_after(p, k, rounds)) > 1e-7:
        total, rounds = total + 2 * left, rounds + 1
    assert theory.mean_votes(p, k) == pytest.approx(total, abs=1e-4)
    if p > 0.5:
        assert theory.approximate_mean_votes(p, k) >= theory.mean_votes(p, k) * (1 - 1e-12)


@pytest.mark.parametrize(("k", "rounds"), list(product((1, 2, 3, 4), (0, 1, 2))))
def test_undecided_after_against_all_ways_to_vote(k, rounds):
    p = 0.8

    @cache
    def still_open(votes, lead):
        if abs(lead) == k:
            return 0.0
        return p * still_open(votes - 1, lead + 1) + (1 - p) * still_open(votes - 1, lead - 1) if votes else 1.0

    assert theory.undecided_after(p, k, rounds) == pytest.approx(still_open(k + 2 * rounds, 0))


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: theory.least_margin(0.5, 10, 0.9), "p"),
        (lambda: theory.real_margin(0.3, 10, 0.9), "p"),
        (lambda: theory.approximate_mean_votes(0.5, 3), "p"),
        (lambda: theory.mean_votes_if_all_differ(0, 3), "p"),
        (lambda: theory.expected_cost(0.4, 10, 0.9), "p"),
        (lambda: theory.expected_cost(0.9, 10, 0.9, valid=0), "valid"),
        (lambda: theory.least_margin(0.9, 10, 1.0), "target"),
        (lambda: theory.least_margin(0.9, 0, 0.9), "steps"),
        (lambda: theory.run_success(0.9, 2, 10, 0), "per_call"),
        (lambda: theory.vote_success(1.2, 2), "p"),
        (lambda: theory.vote_success(math.nan, 2), "p"),
        (lambda: theory.vote_success(0.9, 0), "k"),
        (lambda: theory.undecided_after(0.9, 3, -1), "rounds"),
        (lambda: theory.race([0.5, 0.4], 2), "probabilities"),
        (lambda: theory.race([], 2), "probabilities"),
    ],
)
def test_refusals_name_the_field(call, field):
    with pytest.raises(BadInput) as refused:
        call()
    assert refused.value.field == field
