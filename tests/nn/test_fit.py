"""Supervised training: the schedule by hand, frozen parameters, bad settings."""

from __future__ import annotations

import math

import pytest
import torch

from keystep.errors import BadInput
from keystep.nn.examples import Example, Examples, judge
from keystep.nn.fit import Fit, fit, shuffled
from keystep.nn.layers import layer_parameters, layers_name
from keystep.worlds.skills import ARCHITECTURES, World, small_model, tokenizer

DATA = Examples([Example(*p) for p in World(5).drawn("copy", "train", 40)], tokenizer())


def test_the_rate_by_hand():
    plain = Fit(10, 1.0)
    assert [plain.rate_at(step) for step in (0, 5, 10)] == pytest.approx([1, 0.5, 0])
    warm = Fit(10, 1.0, warmup=4, floor=1.0)
    assert [warm.rate_at(step) for step in (0, 1, 4, 9)] == pytest.approx([0.2, 0.4, 1, 1])


def test_one_step_of_sgd_is_the_gradient():
    model, other = (small_model(width=16, heads=2) for _ in range(2))
    batch = DATA.batch(range(8))
    scores = other(input_ids=batch.tokens, attention_mask=batch.attended).logits[:, :-1][batch.counted]
    torch.nn.functional.cross_entropy(scores, batch.tokens[:, 1:][batch.counted]).backward()
    fit(model, lambda step: batch, Fit(1, 0.5, "sgd", clip=0))
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, its - 0.5 * its.grad, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_the_layers_are_trained_and_the_loss_falls(architecture):
    model = small_model(architecture, width=16, heads=2)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    layers = layer_parameters(model)
    losses = fit(model, shuffled(DATA, 8, 0), Fit(20, 5e-3, batch=8), trainable=layers.items())
    assert losses[-1] < losses[0] and not model.training and all(parameter.requires_grad for parameter in model.parameters())
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
    assert moved <= set(layers) and len(moved) > len(layers) / 2 and all(name.startswith(layers_name(model)) for name in moved)


def test_every_epoch_has_all_examples_once():
    batch = shuffled(DATA, 16, 0)
    for epoch in range(2):
        rows = [row for step in range(3) for row in batch(3 * epoch + step).tokens.tolist()]
        assert sorted(map(tuple, rows)) == sorted(tuple(row.tokens) for row in DATA.rows)
    assert batch(0).tokens.tolist() != batch(3).tokens.tolist() and judge(small_model(width=16, heads=2), DATA).loss > 1


@pytest.mark.parametrize("bad", [{"steps": 0}, {"rate": math.nan}, {"rate": -1.0}, {"optimizer": "adam"}, {"batch": 0}])
def test_bad_settings(bad):
    with pytest.raises(BadInput, match=next(iter(bad))):
        Fit(**({"steps": 1, "rate": 0.1} | bad))


def test_a_loss_that_is_no_number_is_an_error():
    with pytest.raises(BadInput, match="no number any more"):
        fit(small_model(width=16, heads=2), shuffled(DATA, 8, 0), Fit(50, 1e30, "sgd", clip=0))
