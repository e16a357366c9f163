"""The losses of PPO and GRPO: known answers, limits, and a bandit that is learned."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keystep.errors import BadInput
from keystep.nn.policy_gradient import (
    AdaptiveKL,
    ValueHead,
    clipped_loss,
    entropy,
    generalised_advantages,
    group_advantages,
    kl,
    log_probabilities,
    masked_mean,
    value_loss,
    whitened,
)

FLOATS = st.floats(-5, 5, allow_nan=False, width=32)


def one(ratio, advantage, **options):
    """The loss of a single token whose rho is `ratio`."""
    new, mask = torch.tensor([[math.log(ratio)]]), torch.tensor([[True]])
    return clipped_loss(new, torch.zeros(1, 1), torch.tensor([advantage]), mask, **options).loss.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "options", "loss"),
    [
        (1.0, 2.0, {}, -2.0),
        (2.0, 1.0, {}, -1.2),
        (0.5, 1.0, {}, -0.5),
        (0.5, -1.0, {}, 0.8),
        (2.0, -1.0, {}, 2.0),
        (2.0, 1.0, {"high": 0.28}, -1.28),
        (10.0, -1.0, {"high": 0.28, "dual": 3.0}, 3.0),  # dual clip: the sheet of THOR, known answer 7
        (2.0, 1.0, {"high": 0.28, "dual": 3.0}, -1.28),
        (0.5, -1.0, {"high": 0.28, "dual": 3.0}, 0.8),
    ],
)
def test_the_clipped_surrogate(ratio, advantage, options, loss):
    assert one(ratio, advantage, **options) == pytest.approx(loss, rel=1e-6)


def test_the_gradient_stops_where_the_clip_holds():
    new = torch.tensor([[math.log(2.0), math.log(1.1), math.log(0.5)]], requires_grad=True)
    mask = torch.ones(1, 3, dtype=torch.bool)
    found = clipped_loss(new, torch.zeros(1, 3), torch.ones(1), mask)
    found.loss.backward()
    assert new.grad.tolist()[0] == pytest.approx([0.0, -1.1 / 3, -0.5 / 3]) and found.clipped == pytest.approx(2 / 3)


def test_weights_of_one_change_no_bit_and_others_multiply_the_advantage():
    torch.manual_seed(0)
    new, old, advantages = torch.randn(4, 6), torch.randn(4, 6), torch.randn(4)
    mask = torch.rand(4, 6) < 0.7
    plain = clipped_loss(new, old, advantages, mask).loss
    assert torch.equal(plain, clipped_loss(new, old, advantages, mask, weights=torch.ones(4, 6)).loss)
    assert torch.equal(plain, clipped_loss(new, old, advantages[:, None].expand(4, 6), mask).loss)
    weights = torch.rand(4, 6) + 0.5
    weighted = clipped_loss(new, old, advantages, mask, weights=weights).loss
    assert torch.equal(weighted, clipped_loss(new, old, advantages[:, None] * weights, mask).loss)


@given(st.lists(st.tuples(FLOATS, FLOATS, st.booleans()), min_size=4, max_size=12))
def test_what_is_masked_changes_nothing(tokens):
    new, old, mask = (torch.tensor([column]) for column in zip(*tokens, strict=True))
    other = torch.where(mask, new, torch.tensor(60.0))
    for per in ("token", "sequence"):
        before = clipped_loss(new, old, torch.tensor([1.5]), mask, per=per).loss
        assert torch.equal(before, clipped_loss(other, old, torch.tensor([1.5]), mask, per=per).loss)
        assert torch.isfinite(before)


def test_means_over_tokens_and_over_sequences():
    values, mask = torch.tensor([[1.0, 1.0, 1.0], [4.0, 0.0, 0.0]]), torch.tensor([[True, True, True], [True, False, False]])
    assert masked_mean(values, mask).item() == 7 / 4 and masked_mean(values, mask, "sequence").item() == 5 / 2
    assert masked_mean(values, torch.zeros_like(mask)).item() == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: one(1.0, 1.0, dual=0.5),
        lambda: one(1.0, 1.0, low=0.0),
        lambda: one(1.0, 1.0, per="word"),
        lambda: kl(torch.zeros(1), torch.zeros(1), "k4"),
        lambda: group_advantages(torch.zeros(5), 2),
        lambda: AdaptiveKL(-1.0),
    ],
)
def test_settings_out_of_range(call):
    with pytest.raises(BadInput):
        call()


def test_group_advantages():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    found = group_advantages(rewards, 4)
    assert found[:4].tolist() == pytest.approx([0.866, -0.866, -0.866, 0.866], abs=1e-3) and not found[4:].any()
    assert group_advantages(rewards, 4, scaled=False)[:4].tolist() == [0.5, -0.5, -0.5, 0.5]
    assert not group_advantages(torch.tensor([3.0, 1.0]), 1).any()


@given(st.integers(1, 4), st.floats(-10, 10, width=32))
def test_equal_rewards_give_no_gradient(groups, reward):
    """DaSLaM's sheet, known answer 9."""
    advantages = group_advantages(torch.full((groups * 3,), reward), 3)
    new = torch.randn(groups * 3, 2, requires_grad=True)
    clipped_loss(new, new.detach(), advantages, torch.ones(groups * 3, 2, dtype=torch.bool)).loss.backward()
    assert not new.grad.any()


@settings(max_examples=40)
@given(st.data(), st.sampled_from([0.0, 0.5, 0.95, 1.0]), st.sampled_from([0.9, 1.0]))
def test_generalised_advantages_are_their_sum(data, lam, gamma):
    n = data.draw(st.integers(1, 7))
    rewards, values = (torch.tensor([data.draw(st.lists(FLOATS, min_size=n, max_size=n))], dtype=torch.float64) for _ in range(2))
    mask = torch.tensor([data.draw(st.lists(st.booleans(), min_size=n, max_size=n))])
    advantages, returns = generalised_advantages(rewards, values, mask, gamma, lam)
    at = [t for t in range(n) if mask[0, t]]
    r, v = [rewards[0, t].item() for t in at], [values[0, t].item() for t in at] + [0.0]
    deltas = [r[i] + gamma * v[i + 1] - v[i] for i in range(len(at))]
    for i, t in enumerate(at):
        wanted = sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, len(at)))
        assert advantages[0, t].item() == pytest.approx(wanted, abs=1e-9) and returns[0, t].item() == pytest.approx(wanted + v[i], abs=1e-9)
    assert not advantages[~mask].any() and not returns[~mask].any()


def test_with_lambda_one_the_return_is_the_sum_of_rewards_to_come():
    rewards, values = torch.tensor([[0.0, 1.0, 0.0, 5.0]]), torch.randn(1, 4)
    _, returns = generalised_advantages(rewards, values, torch.ones(1, 4, dtype=torch.bool), 1.0, 1.0)
    assert returns[0].tolist() == pytest.approx([6.0, 6.0, 5.0, 5.0])


def test_the_value_loss_is_pessimistic():
    mask, returns = torch.ones(1, 1, dtype=torch.bool), torch.tensor([[1.0]])
    new, old = torch.tensor([[1.0]]), torch.tensor([[0.0]])
    assert value_loss(new, old, returns, mask).item() == pytest.approx(0.8**2 / 2)  # within 0.2 of the old one it is 0.2
    assert value_loss(new, old, returns, mask, clip=None).item() == 0


def test_whitened():
    values, mask = torch.tensor([[1.0, 3.0, 99.0]]), torch.tensor([[True, True, False]])
    assert whitened(values, mask)[0].tolist() == pytest.approx([-1.0, 1.0, 0.0], abs=1e-6)
    assert not whitened(torch.full((2, 2), 4.0), torch.ones(2, 2, dtype=torch.bool)).any()


def test_the_estimators_of_the_kl():
    """Over all tokens k1 and k3 are right in the mean; at equal policies all are 0."""
    torch.manual_seed(1)
    new, reference = torch.log_softmax(torch.randn(7, dtype=torch.float64), 0), torch.log_softmax(torch.randn(7, dtype=torch.float64), 0)
    exact = (new.exp() * (new - reference)).sum()
    for kind in ("k1", "k3"):
        assert torch.allclose((new.exp() * kl(new, reference, kind)).sum(), exact)
    for kind in ("k1", "k2", "k3"):
        assert not kl(new, new, kind).any()
    assert (kl(new, reference, "k2") >= 0).all() and (kl(new, reference) >= 0).all()


def test_log_probabilities_and_entropy():
    logits = torch.tensor([[0.0, math.log(3.0)]])
    assert log_probabilities(logits, torch.tensor([1])).exp().item() == pytest.approx(0.75)
    assert log_probabilities(logits, torch.tensor([1]), temperature=0.5).exp().item() == pytest.approx(0.9)
    assert entropy(torch.zeros(1, 8)).item() == pytest.approx(math.log(8))


def test_the_coefficient_follows_its_target():
    led = AdaptiveKL(0.01, 4.0, horizon=100)
    led.update(8.0, 10)
    assert led.coefficient == pytest.approx(0.01 * 1.02)
    led.update(0.0, 10)
    assert led.coefficient == pytest.approx(0.01 * 1.02 * 0.98)
    fixed = AdaptiveKL(0.01)
    fixed.update(100.0, 10)
    assert fixed.coefficient == 0.01


@pytest.mark.parametrize("beta", [0.0, 1000.0])
def test_a_bandit_is_learned_and_a_heavy_pull_keeps_the_reference(beta):
    """DaSLaM's sheet, known answer 9: without a pull the best arm wins; with beta -> infinity the policy equals the reference."""
    torch.manual_seed(0)
    start = torch.tensor([1.0, 0.0, 0.0, -1.0])
    logits = start.clone().requires_grad_()
    reference = torch.log_softmax(start, 0)
    optimiser = torch.optim.SGD([logits], lr=1e-3 if beta else 0.5)
    mask = torch.ones(32, 1, dtype=torch.bool)
    for _ in range(200):
        arms = torch.multinomial(torch.softmax(logits.detach(), 0), 32, replacement=True)
        old = log_probabilities(logits.detach().expand(32, -1), arms)[:, None]
        advantages = group_advantages((arms == 3).float(), 32)
        new = log_probabilities(logits.expand(32, -1), arms)[:, None]
        loss = clipped_loss(new, old, advantages, mask).loss + beta * masked_mean(kl(new, reference[arms][:, None]), mask)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    shares = torch.softmax(logits.detach(), 0)
    if beta:
        assert torch.allclose(shares, reference.exp(), atol=0.02)
    else:
        assert shares[3] > 0.95


def test_the_value_head_begins_at_zero():
    assert not ValueHead(5)(torch.randn(2, 3, 5)).any() and ValueHead(5)(torch.randn(2, 3, 5)).shape == (2, 3)
