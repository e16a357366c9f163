import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from keystep.errors import BadInput
from keystep.measure import long_horizon as lh

VALUES = [[5, -3, 10, 2, 7]]


def rows(*scores):
    return [score[0].astype(int).tolist() for score in scores]


def test_horizon_law():
    assert [lh.horizon_law(p) for p in (0.9, 0.95, 0.99)] == pytest.approx([6.5788, 13.5134, 68.9676], abs=5e-5)
    assert lh.horizon_law(0.999) == pytest.approx(692.80, abs=5e-3)
    assert lh.horizon_law(0.9999) == pytest.approx(6931.13, abs=5e-3)
    assert [math.ceil(lh.horizon_law(p)) for p in (0.9, 0.95, 0.99, 0.999)] == [7, 14, 69, 693]
    assert lh.horizon_law(0.99, 0.8) == pytest.approx(22.2026, abs=5e-5)


def test_horizon_slope():
    assert lh.horizon_slope(0.99) == pytest.approx(6931.53, abs=5e-3)
    assert math.log(2) / 0.01**2 == pytest.approx(6931.47, abs=5e-3)
    step = 1e-7
    assert lh.horizon_slope(0.97, 0.8) == pytest.approx(
        (lh.horizon_law(0.97 + step, 0.8) - lh.horizon_law(0.97 - step, 0.8)) / (2 * step), rel=1e-5
    )


def test_the_three_accuracies():
    scores = lh.score(VALUES, [[5, 3, 13, 15, 21]])
    assert rows(scores.index, scores.step, scores.prefix) == [[1, 0, 0, 0, 1], [1, 0, 1, 1, 0], [1, 0, 0, 0, 0]]
    assert not scores.invalid.any()


def test_an_unreadable_answer_is_charged_once():
    scores = lh.score(VALUES, [[5, None, 12, None, None]])
    assert rows(scores.index, scores.step, scores.prefix) == [[1, 0, 1, 0, 0], [1, 0, 1, 0, 0], [1, 0, 0, 0, 0]]
    assert rows(scores.invalid) == [[0, 1, 0, 1, 1]]
    # The chain that goes on is the worker's own, with its earlier error in it.
    assert rows(lh.score(VALUES, [[6, None, 13, 15, 22]]).step) == [[0, 0, 1, 1, 1]]


def test_with_a_shown_history_the_base_is_what_was_shown():
    shown = [[5, 9, 12, 14, 0]]
    assert rows(lh.score(VALUES, [[5, 2, 19, None, 21]], shown).step) == [[1, 1, 1, 0, 1]]
    assert rows(lh.score(VALUES, [[5, 2, 12, 14, 21]], shown).step) == [[1, 1, 0, 1, 1]]


def test_answers_may_be_of_any_size():
    huge = 10**40
    assert rows(lh.score(VALUES, [[huge, huge - 3, 12, 14, 21]]).step) == [[0, 1, 0, 1, 1]]


@given(st.data())
def test_index_and_step_are_never_below_prefix(data):
    turns = data.draw(st.integers(1, 8))
    values = data.draw(st.lists(st.lists(st.integers(-3, 3), min_size=turns, max_size=turns), min_size=1, max_size=3))
    answer = st.one_of(st.none(), st.integers(-6, 6))
    answers = [data.draw(st.lists(answer, min_size=turns, max_size=turns)) for _ in values]
    scores = lh.score(values, answers)
    assert (scores.index >= scores.prefix).all() and (scores.step >= scores.prefix).all()
    assert (np.diff(scores.prefix.astype(int), axis=1) <= 0).all()
    assert not (scores.invalid & (scores.index | scores.step)).any()
    # The chain rule: right so far and right relative to oneself is right.
    assert (scores.prefix == np.logical_and.accumulate(scores.step, axis=1)).all()


def test_a_constant_rate_worker_compounds_and_does_not_sink():
    """3,000 instances that err with 3% at every turn, by amounts that never cancel."""
    generator = np.random.default_rng(5)
    values = generator.integers(-99, 100, (3000, 60))
    errors = np.where(generator.random(values.shape) < 0.03, 1000, 0)
    scores = lh.score(values.tolist(), (values + errors).cumsum(axis=1).tolist())
    turns = np.arange(1, 61)
    held = scores.prefix.sum(axis=0)
    for n in (1, 5, 20, 60):
        assert stats.binomtest(int(held[n - 1]), 3000, 0.97**n).pvalue > 1e-3
    assert (scores.index == scores.prefix).all()  # errors that never cancel leave no lucky repairs
    assert stats.linregress(turns, scores.step.mean(axis=0)).pvalue > 0.01
    assert lh.horizon(scores.prefix) == pytest.approx(lh.horizon_law(0.97), abs=2)


def test_horizon_measured():
    prefix = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=bool)
    assert lh.horizon(prefix) == 3
    assert lh.horizon(prefix, 0.8) == 2
    assert lh.horizon(prefix, per_turn=10) == 30
    assert lh.horizon(prefix, 0.25) == 4
    assert lh.horizon(prefix[:, :2]) is None
    assert lh.horizon(np.array([[True], [False]])) is None  # half is not fewer than half


def test_turns_and_steps():
    assert lh.turn_accuracy(0.99, 10) == pytest.approx(0.904382, abs=5e-7)
    assert lh.turn_accuracy(0.99, 10) ** 100 == pytest.approx(4.317e-5, abs=5e-9)
    assert lh.step_accuracy(lh.turn_accuracy(0.99, 10), 10) == pytest.approx(0.99)
    assert lh.step_accuracy(0, 3) == 0


def test_author_error():
    assert lh.author_error(0, 0) == pytest.approx(0.16)
    assert lh.author_error(0, 10) == pytest.approx(0.029357, abs=5e-7)
    assert lh.author_error(3, 10) == pytest.approx(0.299128, abs=5e-7)
    past = 39
    accuracy = [1 - lh.author_error(round(e * past), past) for e in (0, 0.25, 0.5, 0.75, 1)]
    assert accuracy == pytest.approx([0.98, 0.7, 0.7, 0.7, 0.7], abs=5e-3)
    assert lh.author_error(0, 5000) == pytest.approx(0.02)  # no underflow
    assert lh.author_error(5000, 5000) == pytest.approx(0.3)
    assert lh.author_error(5, 10, prior=(1, 0)) == pytest.approx(0.02)


@given(st.integers(0, 30), st.integers(0, 30))
def test_more_errors_promise_more_errors(errors, right):
    now = lh.author_error(errors, errors + right)
    assert lh.author_error(errors + 1, errors + right + 1) >= now >= lh.author_error(errors, errors + right + 1)


def test_noise_is_sometimes_none():
    assert lh.realised_rate(1) == pytest.approx(0.952381, abs=5e-7)
    assert 1 - lh.realised_rate(1) == pytest.approx(1 / 21)
    sums = np.arange(40_000).reshape(200, 200)
    for rate in (0.0, 0.25, 1.0):
        shown = lh.inject(sums, rate, np.random.default_rng(3))
        wrong = int((shown != sums).sum())
        assert abs(shown - sums).max() <= 10
        assert stats.binomtest(wrong, sums.size, lh.realised_rate(rate)).pvalue > 1e-3
    counts = np.bincount((shown - sums).ravel() + 10, minlength=21)
    assert stats.chisquare(counts).pvalue > 1e-3


def test_self_conditioned_error():
    assert [1 - lh.self_conditioned_error(0.05, 0.6, t) for t in (1, 10, 50, 200)] == pytest.approx(
        [0.95, 0.8956, 0.8856, 0.8811], abs=5e-5
    )
    assert [lh.self_conditioned_error(0.05, 0, t) for t in (1, 10, 200)] == pytest.approx([0.05] * 3)
    assert lh.self_conditioned_error(0.05, 0.6, 200_000) == pytest.approx(0.125, abs=1e-3)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: lh.score([[1, 2]], [[1]]), "answers"),
        (lambda: lh.score([[1, 2]], [[1, 2], [1, 2]]), "answers"),
        (lambda: lh.score([[1, 2], [3]], [[1, 2], [3]]), "values"),
        (lambda: lh.score([[1.5]], [[1]]), "values"),  # type: ignore[list-item]
        (lambda: lh.score([], []), "values"),
        (lambda: lh.score([[1]], [[1]], [[1, 2]]), "shown"),
        (lambda: lh.horizon_law(1.0), "p"),
        (lambda: lh.horizon_law(0.9, 0), "share"),
        (lambda: lh.turn_accuracy(0.9, 0), "per_turn"),
        (lambda: lh.author_error(3, 2), "errors"),
        (lambda: lh.author_error(1, 2, rates=(0, 0.5)), "rates"),
        (lambda: lh.author_error(1, 2, prior=(1,)), "prior"),
        (lambda: lh.author_error(1, 2, prior=(0, 0)), "prior"),
        (lambda: lh.realised_rate(1.1), "rate"),
        (lambda: lh.self_conditioned_error(0.5, 0.6, 3), "base + pull"),
    ],
)
def test_refusals_name_the_field(call, field):
    with pytest.raises(BadInput) as refused:
        call()
    assert refused.value.field == field
