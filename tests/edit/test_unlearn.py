"""Neuron Adjust, Key Space Detection and Selective Pruning: the sheet's known answers and identities, and guards at work in `generate`."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer, pipeline

from keystep.edit.unlearn import Forget, Guard, Relearn, Shift, Zeroed, attach, figures, forget, load, relearn, report, save
from keystep.edit.unlearn.forget import split
from keystep.edit.unlearn.guarded import Attached, adjusted, flip_log_odds, generate, prints, ratio
from keystep.edit.unlearn.key_space import Judged, chosen, fit, judged, smallest_alpha
from keystep.edit.unlearn.neuron_adjust import most
from keystep.edit.unlearn.probing import add_keys, add_moments, merge, prompt_end, reading, watched
from keystep.edit.unlearn.report import abstains
from keystep.errors import BadInput, ChangedWork
from keystep.nn.checkpoint import load_model, save_model
from keystep.nn.examples import Example, Examples
from keystep.nn.layers import FeedForward, feed_forward_blocks
from keystep.worlds.skills import ARCHITECTURES, World, small_model, tokenizer

WORLD, END = World(5), 1
BLOCK = FeedForward(0, "gate", "down", 2)
FOUR = torch.tensor([[0.0, 0.0], [2.0, 1.0], [1.0, 5.0], [1.0, 2.0]])
REFUSAL = (30, 31, 32)
EVERY = pytest.mark.parametrize("architecture", ARCHITECTURES)
TWO = pytest.mark.parametrize("architecture", ("llama", "gpt2"))


def tiny(architecture="llama", **more):
    return small_model(architecture, **({"width": 16, "heads": 2} | more))


def examples(skill="succ", n=40, split="train"):
    return Examples([Example(*problem) for problem in WORLD.drawn(skill, split, n)], tokenizer())


def normal(mu1=1.0, s1=0.5, mu2=3.0, s2=2.0, n=1):
    one = torch.ones(n, dtype=torch.float64)
    return Shift(0, "gate", torch.arange(n), mu1 * one, s1 * one, mu2 * one, s2 * one)


def made(model, method="key-space", **more):
    """A guard against `succ`."""
    return forget(model, {"succ": examples()}, {"rev": examples("rev")}, Forget(method, **more), refusal=REFUSAL, end=END).guard


def widened(guard, alpha):
    return replace(guard, boxes=tuple(replace(box, alpha=alpha) for box in guard.boxes))


def logits(model, text=">abcd=bcde"):
    with torch.no_grad():
        return model(torch.tensor([tokenizer()(text)["input_ids"]])).logits


def prompts(texts, side="left"):
    return tokenizer()(texts, padding=True, padding_side=side, return_tensors="pt")


# Neuron Adjust


def test_neuron_adjust_by_hand():
    x = torch.tensor([[5.0], [2.0], [1.0]], dtype=torch.float64)
    odds = flip_log_odds(x, normal())
    d1, d2 = torch.tensor([1.010454e-14, 0.1079819]), torch.tensor([0.1209854, 0.1760327])
    assert torch.allclose(odds[:2, 0].float(), (d2 / d1).log(), atol=1e-5)
    assert float(odds.sigmoid()[0]) == pytest.approx(1 - 8.35e-14, abs=1e-15)
    assert float(odds.sigmoid()[1]) == pytest.approx(0.6198015, abs=1e-6)
    always = adjusted(x, normal(), torch.zeros_like(x))
    assert always[:, 0].tolist() == pytest.approx([0.5, 1.25, 1.0])  # the last is likelier under retain
    assert adjusted(x, normal(), torch.full_like(x, 0.62))[:, 0].tolist() == pytest.approx([0.5, 2.0, 1.0])


def test_far_in_the_tails_nothing_is_lost():
    x = torch.tensor([1e4, -1e4])
    found = adjusted(x, Shift(0, "", torch.arange(2), *(torch.tensor([v, v]) for v in (0.0, 1e-3, 1.0, 1e-3))), torch.full((2,), 0.5))
    assert bool(torch.isfinite(found).all()) and float(found[0]) == pytest.approx(-9999) and float(found[1]) == -1e4


def test_what_is_always_flipped_is_distributed_as_retain():
    draw = torch.Generator().manual_seed(0)
    shift = normal(mu1=-1.0, s1=0.5, mu2=40.0, s2=2.0)  # so far apart that all are flipped
    x = 40 + 2 * torch.randn(100_000, 1, generator=draw, dtype=torch.float64)
    found = adjusted(x, shift, torch.rand(x.shape, generator=draw, dtype=torch.float64))
    assert float(found.mean()) == pytest.approx(-1, abs=0.01) and float(found.std()) == pytest.approx(0.5, rel=0.01)
    assert float(((found + 1) / 0.5).pow(3).mean()) == pytest.approx(0, abs=0.05)


@given(st.floats(-5, 5), st.floats(0.1, 5), st.floats(-9, 9))
def test_of_equal_laws_half_are_mirrored(mu, s, x):
    shift, value = normal(mu, s, mu, s), torch.tensor([x], dtype=torch.float64)
    assert float(flip_log_odds(value, shift).sigmoid()) == 0.5
    assert float(adjusted(value, shift, torch.tensor([0.49]))) == pytest.approx(2 * mu - x)
    assert float(adjusted(value, shift, torch.tensor([0.5]))) == x


def test_selection_is_signed_and_global():
    draw = torch.randperm(1000, generator=torch.Generator().manual_seed(0)).float() - 500
    scores = {0: draw[:400], 3: draw[400:]}
    found = most(scores, 0.03)
    assert sum(map(len, found.values())) == 30
    assert min(float(scores[layer][neurons].min()) for layer, neurons in found.items()) == 470  # the largest, not the farthest from 0
    assert sum(map(len, most({0: torch.tensor([1.0, 2.0, 2.0, 0.0])}, 0.25).values())) == 2  # equal ones
    with pytest.raises(BadInput, match=r"leaves not one of 1,000 neurons .* at least 0.001"):
        most(scores, 0.0)
    with pytest.raises(BadInput, match="same statistics"):
        most({0: torch.ones(4)}, 0.5)


def test_moments_are_those_of_all_tokens_but_padding():
    model, data = tiny(), examples("add", 6)
    data.rows[1] = data.rows[1]._replace(tokens=data.rows[1].tokens[:5])
    blocks, seen = feed_forward_blocks(model), {"gates": [], "keys": []}
    for row in data.rows:
        with reading(model, blocks[1:], gates=lambda _, x: seen["gates"].append(x[0]), keys=lambda _, x: seen["keys"].append(x[0].abs())):
            model(torch.tensor([row.tokens]))
    for what, rows in seen.items():
        found, every = {}, torch.cat(rows).double()
        for which in ([0, 1, 2], [3], [4, 5]):
            add_moments(found, "f", model, blocks, data, which, "whole", what)
        assert int(found["f.1.n"]) == len(every) == sum(len(row.tokens) for row in data.rows)
        assert torch.allclose(found["f.1.mean"], every.mean(0), atol=1e-6)
        assert torch.allclose(found["f.1.squares"] / (len(every) - 1), every.var(0), atol=1e-6)
    found = {}
    add_moments(found, "f", model, blocks, data, [0, 2], "answer", "gates")
    assert int(found["f.0.n"]) == 6  # two digits and the end, foretold by the sign and the digits


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_moments_do_not_depend_on_the_batches(sizes):
    x, found = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64), {}
    for part in torch.split(x, sizes):
        merge(found, "k", len(part), part.mean(0), (part - part.mean(0)).square().sum(0))
    assert torch.allclose(found["k.mean"], x.mean(0)) and torch.allclose(found["k.squares"], (x - x.mean(0)).square().sum(0))


@EVERY
def test_neuron_adjust_in_a_model(architecture):
    model = tiny(architecture)
    before, guard = logits(model), made(model, "neuron-adjust", share=0.3)
    assert sum(len(shift.neurons) for shift in guard.shifts) == int(0.3 * 128) + 1  # N − ⌊0.7 N⌋
    attached = attach(model, guard)
    first = logits(model)
    assert not torch.equal(first, before) and not torch.equal(logits(model), first)  # every pass draws anew
    attached.reseed()
    assert torch.equal(logits(model), first)
    with attached.paused():
        assert torch.equal(logits(model), before)
    attached.remove()
    assert torch.equal(logits(model), before) and "generate" not in vars(model)
    again = attach(model, guard)
    assert torch.equal(logits(model), first)
    again.remove()


def test_every_row_token_and_neuron_has_a_draw_of_its_own():
    model = tiny()
    block = feed_forward_blocks(model)[0]
    zero, one = torch.zeros(64), torch.ones(64)
    shift = Shift(0, block.gate, torch.arange(64), zero, one, zero, one)  # x becomes −x with probability 1/2
    was, now = [], []
    tokens = torch.tensor([[5, 6, 7, 8]] * 40)
    with torch.no_grad():
        with reading(model, [block], gates=lambda _, x: was.append(x)):
            model(tokens)
        attached = attach(model, Guard(shifts=(shift,)))
        with reading(model, [block], gates=lambda _, x: now.append(x)):
            model(tokens)
    attached.remove()
    flipped = (now[0] == -was[0]).float()
    assert bool(((now[0] == was[0]) | (now[0] == -was[0])).all()) and float(flipped.mean()) == pytest.approx(0.5, abs=0.02)
    for dimension in (0, 1, 2):  # no dimension shares a draw
        assert float(flipped.std(dimension).mean()) == pytest.approx(0.5, abs=0.1)


def test_pruning_zeroes_keys():
    model = tiny()
    guard = made(model, "pruning", share=0.2)
    seen, whole = {}, {}
    attached = attach(model, guard)
    with reading(model, feed_forward_blocks(model), keys=lambda block, keys: seen.__setitem__(block.number, keys)):
        logits(model)
    attached.remove()
    assert sum(len(each.neurons) for each in guard.zeroed) == 26
    for each in guard.zeroed:
        assert float(seen[each.layer][..., each.neurons].abs().max()) == 0
    for name, parameter in model.named_parameters():  # the same as columns of zeros
        for each in guard.zeroed:
            if name == f"{each.down}.weight":
                whole[name] = parameter.data.clone()
                parameter.data[:, each.neurons] = 0
    assert whole
    pruned = logits(model)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(whole.get(name, parameter.data))
    attached = attach(model, guard)
    assert torch.allclose(logits(model), pruned, atol=1e-6)
    attached.remove()


# Key Space Detection


def test_a_box_by_hand():
    box = fit(FOUR, "s", BLOCK)
    assert box.mean.tolist() == [1, 2] and box.std.tolist() == pytest.approx([0.816497, 2.160247], abs=1e-6)
    assert box.k == pytest.approx(1.388730, abs=1e-6)
    ratios = ratio(FOUR, box.mean, box.std)
    assert bool((ratios <= box.limit).all()) and int(ratios.argmax()) == 2 and float(ratios.max()) == box.k
    at = lambda y: float(ratio(torch.tensor([1.0, y]), box.mean, box.std))  # noqa: E731
    assert at(5.01) > box.limit and at(8) <= 2 * box.k < at(8.01)


def bisected(values):
    """The published way, in float64."""
    m, s, low, high = values.mean(0), values.std(0), 0.0, 1e4
    while high - low > 1e-9:
        k = (low + high) / 2
        low, high = (low, k) if bool(((values - m).abs() <= k * s).all()) else (k, high)
    return high


VECTORS = st.integers(2, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, 6), st.integers(0, 10**6)))


@given(VECTORS)
def test_the_closed_form_is_what_bisection_finds(shape):
    n, d, seed = shape
    values = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    box = fit(values, "s", BLOCK)
    rounding = 2e-7 * float((values.abs() / box.std).max())  # values that are nearly alike lose digits in float32
    assert box.k == pytest.approx(bisected(values.double()), abs=1e-5 + rounding)
    ratios = ratio(values, box.mean, box.std)
    assert bool((ratios <= box.limit).all()) and bool((ratios == box.limit).any())  # all inside, one touches


@given(VECTORS, st.sampled_from([0.25, 2.0, -8.0]), st.sampled_from([0.0, 1.0, -4.0]))
def test_scaling_or_shifting_a_dimension_changes_no_answer(shape, scale, shift):
    n, d, seed = shape
    draw = torch.Generator().manual_seed(seed)
    values, asked = torch.randn(n, d, generator=draw), 2 * torch.randn(20, d, generator=draw)
    one = fit(values, "s", BLOCK)
    moved, its = values.clone(), asked.clone()
    moved[:, 0], its[:, 0] = scale * values[:, 0] + shift, scale * asked[:, 0] + shift
    two = fit(moved, "s", BLOCK)
    assert two.k == pytest.approx(one.k, rel=1e-4)
    mine, theirs = ratio(asked, one.mean, one.std) / one.k, ratio(its, two.mean, two.std) / two.k
    sure = (mine - 1).abs() > 1e-3
    assert torch.equal((mine <= 1)[sure], (theirs <= 1)[sure])


def test_dimensions_that_are_constant_are_left_out():
    values = torch.cat([FOUR, torch.full((4, 1), 7.0)], 1)
    box = fit(values, "s", BLOCK)
    assert box.k == fit(FOUR, "s", BLOCK).k and float(ratio(torch.tensor([1.0, 2.0, 1e9]), box.mean, box.std)) == 0
    for keys, said in ((FOUR[:1], "two prompts"), (torch.ones(3, 2), "same keys"), (FOUR * math.nan, "no numbers")):
        with pytest.raises(BadInput, match=said):
            fit(keys, "s", BLOCK)


@given(st.lists(st.floats(2**-7, 50, width=32), min_size=1, max_size=40), st.floats(0.05, 1))
def test_alpha_is_the_smallest_that_holds_its_share(values, share):
    ratios, box = torch.tensor(values), fit(FOUR, "s", BLOCK)
    alpha = smallest_alpha(box, ratios, share)
    held = lambda limit: float((ratios <= limit).float().mean())  # noqa: E731
    assert held(alpha * box.k) >= share - 1e-6
    assert held(alpha * box.k * (1 - 1e-6)) < share + 1e-6


def test_of_equally_good_layers_the_widest_margin_is_taken():
    rows = [Judged(0, 1, 1, 0.95, 0.1, 0.9), Judged(1, 1, 1, 0.95, 0.0, 1.2), Judged(2, 1, 1, 0.95, 0.0, 1.5)]
    assert chosen(rows) == 2 and chosen(rows[:2]) == 1 and chosen(rows[:1]) == 0
    assert chosen([row._replace(false_hits=None, margin=None) for row in rows]) == 2  # the last, as published
    box = replace(fit(FOUR, "s", BLOCK), alpha=0.5)
    found = judged(box, torch.tensor([0.1, 9.0]), torch.tensor([0.2, 3.0, 4.0, 5.0]))
    assert (found.inside, found.false_hits) == (0.5, 0.25) and found.margin == pytest.approx(0.2 / box.limit)


@EVERY
def test_keys_are_those_of_the_last_token_whatever_the_padding(architecture):
    model = tiny(architecture)
    blocks, found, alone = feed_forward_blocks(model), {}, []
    assert [block.width for block in blocks] == [64, 64]
    rows = [Example("~ab=", "ba"), Example("+07+31=", "38"), Example("!a=", "a")]
    data = Examples(rows, tokenizer())
    add_keys(found, "k", model, blocks, data, [0, 1, 2], END)
    for row in rows:
        with torch.no_grad(), reading(model, blocks[1:], keys=lambda _, keys: alone.append(keys[0, -1])):
            model(torch.tensor([tokenizer()(row.prompt)["input_ids"]]))
    assert torch.allclose(found["k.1"], torch.stack(alone), atol=1e-6)


def test_what_is_watched():
    data = Examples([Example("~ab=", "ba")], tokenizer())
    assert prompt_end(data, 0, END) == 3 and list(watched(data, 0, END)) == [3, 4, 5]  # "=", "b", "a"; the end is not read again
    text = Examples([Example("", "abc", "text")], tokenizer())
    assert text.rows[0].tokens[-1] == END and prompt_end(text, 0, END) == 2 and list(watched(text, 0, END)) == [2]
    label = Examples([Example("~ab=", "x", "label")], tokenizer())
    assert list(watched(label, 0, END)) == [3]


# Making a guard


@TWO
def test_a_guard_is_made_as_its_parts_say(architecture):
    model, data, other = tiny(architecture), examples(), examples("rev")
    work = Forget(seed=3, batch=7)
    found = forget(model, {"succ": data}, {"rev": other}, work, refusal=REFUSAL, end=END)
    three = found.splits["succ"]
    assert sorted([*three.probe, *three.validation, *three.test]) == list(range(40)) and len(three.validation) == len(three.test) == 8
    keys = {}
    blocks = feed_forward_blocks(model)
    add_keys(keys, "k", model, blocks, data, three.probe, END)
    for block, row in zip(blocks, found.layers["succ"], strict=True):
        box = fit(keys[f"k.{block.number}"], "succ", block)
        held = {}
        add_keys(held, "v", model, blocks, data, three.validation, END)
        ratios = ratio(held[f"v.{block.number}"], box.mean, box.std)
        assert row.k == pytest.approx(box.k, rel=1e-4) and row.inside >= 0.95
        assert row.alpha == pytest.approx(smallest_alpha(box, ratios, 0.95), rel=1e-4)
        sized = Guard(boxes=(replace(box, alpha=row.alpha),))
        hits = abstains(model, sized, other.some(found.splits["rev"].validation), end=END)
        assert row.false_hits == pytest.approx(float(hits.mean()))
    assert found.guard.boxes[0].layer == found.layers["succ"][chosen(found.layers["succ"])].layer
    fixed = forget(model, {"succ": data}, {}, Forget(layer=0, alpha=2.0), refusal=REFUSAL, end=END)
    assert (fixed.guard.boxes[0].layer, fixed.guard.boxes[0].alpha) == (0, 2.0) and fixed.layers["succ"][0].false_hits is None
    assert forget(model, {"succ": data}, {}, refusal=REFUSAL).guard.boxes[0].layer == 1  # nothing to choose by: the last


def test_each_of_several_skills_has_a_box():
    model = tiny()
    skills = {"succ": examples(), "add": examples("add")}
    found = forget(model, skills, {"rev": examples("rev")}, refusal=REFUSAL, end=END)
    assert [box.name for box in found.guard.boxes] == ["succ", "add"]
    for name, each in skills.items():
        alone = forget(model, {name: each}, {"rev": examples("rev")}, refusal=REFUSAL, end=END)
        assert alone.layers[name] == found.layers[name]


def test_unfinished_probing_goes_on(tmp_path):
    model, state = tiny(), tmp_path / "s.safetensors"
    more = {"skills": {"succ": examples()}, "retain": {"rev": examples("rev")}, "refusal": REFUSAL, "end": END}
    done = []
    whole = forget(model, **more, settings=Forget(batch=2), tick=lambda: done.append(1))

    def stop():
        done.append(1)
        if len(done) == 30:
            raise KeyboardInterrupt

    total = len(done)
    assert total == 12 + 4 + 4
    with pytest.raises(KeyboardInterrupt):
        forget(model, **more, settings=Forget(batch=2), state=state, tick=stop)
    with pytest.raises(ChangedWork, match="hold"):
        forget(model, **more, settings=Forget(batch=2, hold=0.5), state=state)
    begun = len(done)
    again = forget(model, **more, settings=Forget(batch=2), state=state, tick=lambda: done.append(1))
    assert len(done) - begun == total - 8 and again.layers == whole.layers
    assert torch.equal(again.guard.boxes[0].mean, whole.guard.boxes[0].mean)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "prayer"}, "method: is no choice"), ({"share": 2.0}, "share: is from"), ({"hold": math.nan}, "hold"),
        ({"layer": 2}, "layer: is below 2"), ({"alpha": -1.0}, "alpha"), ({"probe": 1}, "probe"), ({"watch": "none"}, "watch"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(change, said):
    with pytest.raises(BadInput, match=said):
        forget(tiny(), {"a": examples()}, {}, Forget(**change), refusal=REFUSAL)


def test_data_that_cannot_be():
    model = tiny()
    with pytest.raises(BadInput, match="holds 9 examples, too few"):
        split(examples(n=9), Forget(), "succ")
    with pytest.raises(BadInput, match="to be forgotten and to be kept"):
        forget(model, {"a": examples()}, {"a": examples()}, refusal=REFUSAL)
    with pytest.raises(BadInput, match="needs examples of what is to be kept"):
        forget(model, {"a": examples()}, {}, Forget("neuron-adjust"))
    with pytest.raises(BadInput, match="refusal: is not a single token"):
        forget(model, {"a": examples()}, {})
    with pytest.raises(BadInput, match="same statistics"):
        forget(model, {"a": examples()}, {"b": examples()}, Forget("neuron-adjust"))
    model.config.num_hidden_layers = 7
    with pytest.raises(BadInput, match="no list of transformer layers"):
        forget(model, {"a": examples()}, {}, refusal=REFUSAL)


def test_experts_and_fused_gates_are_refused():
    model = tiny()
    layer = model.model.layers[0].mlp
    layer.other = torch.nn.ModuleDict({"down_proj": torch.nn.Linear(4, 4)})
    with pytest.raises(BadInput, match="2 feed-forward blocks that can be told in layer 0"):
        feed_forward_blocks(model)
    del layer.other
    layer.shared_expert, layer.down_proj = torch.nn.ModuleDict({"down_proj": layer.down_proj}), None
    with pytest.raises(BadInput, match="no feed-forward block that can be told in layer 0"):
        feed_forward_blocks(model)
    layer.down_proj = layer.shared_expert["down_proj"]
    del layer.shared_expert
    layer.gate_up_proj = layer.gate_proj
    del layer.gate_proj
    assert feed_forward_blocks(model)[0].gate == ""
    with pytest.raises(BadInput, match="layer 0 has no module of its own"):
        forget(model, {"a": examples()}, {"b": examples("rev")}, Forget("neuron-adjust"))


# generate


def completed(model, batch, **more):
    return model.generate(**batch, **({"max_new_tokens": 5, "do_sample": False} | more))


@EVERY
def test_a_row_in_the_box_is_replaced_and_no_other(architecture):
    model = tiny(architecture)
    texts = [">abcd=", "+07+31=", "~dc="]
    batch, alone = prompts(texts), []
    before = completed(model, batch)
    guard = made(model, layer=1, watch="prompt")
    with torch.no_grad(), reading(model, feed_forward_blocks(model)[1:], keys=lambda _, keys: alone.append(keys[0, -1])):
        for text in texts:
            model(torch.tensor([tokenizer()(text)["input_ids"]]))
    ratios = ratio(torch.stack(alone), guard.boxes[0].mean, guard.boxes[0].std) / guard.boxes[0].k
    inside = ratios <= ratios.sort().values[1] * 1.01
    attached = attach(model, widened(guard, float(ratios.sort().values[1]) * 1.01))
    after = completed(model, batch)
    assert attached.flagged == inside.tolist() and 0 < sum(attached.flagged) < 3
    width = batch["input_ids"].shape[1]
    for row, was, flag in zip(after, before, attached.flagged, strict=True):
        if flag:
            assert row[:width].tolist() == was[:width].tolist() and row[width:].tolist() == [*REFUSAL, END, *[0] * (len(row) - width - 4)]
        else:
            assert row[: len(was)].tolist() == was.tolist()
    right = {"input_ids": batch["input_ids"][:1], "attention_mask": batch["attention_mask"][:1]}
    completed(model, right)
    assert attached.flagged == inside[:1].tolist()  # nothing is left of the call before
    attached.remove()
    assert torch.equal(completed(model, batch), before)


@TWO
def test_alpha_zero_never_fires_and_a_wide_box_always(architecture):
    model = tiny(architecture)
    batch = prompts([">abcd=", "+07+31="])
    before = completed(model, batch)
    guard = made(model)
    for alpha, flag in ((0.0, False), (1e9, True)):
        attached = attach(model, widened(guard, alpha))
        found = completed(model, batch, return_dict_in_generate=True, output_scores=True)
        assert attached.flagged == [flag, flag]
        assert torch.equal(found.sequences, before) != flag and len(found.scores) == (1 if flag else before.shape[1] - 7)
        with attached.paused():
            assert torch.equal(completed(model, batch), before) and attached.flagged == []
        attached.remove()


def test_a_token_of_the_answer_in_the_box_takes_the_whole_answer_back():
    model = tiny()
    batch = prompts([">abcd=", "+07+31="])
    plain, keys = completed(model, batch, eos_token_id=None), []
    blocks = feed_forward_blocks(model)[1:]
    with reading(model, blocks, keys=lambda _, each: keys.append(each[:, -1])):
        completed(model, batch, eos_token_id=None)
    third = keys[2]  # after two generated tokens
    box = made(model, layer=1).boxes[0]
    box = replace(box, mean=third[1], std=torch.full_like(third[1], 1e-4), k=1.0, alpha=1.0)
    others = torch.stack([ratio(each, box.mean, box.std) for each in keys])
    assert float(others[2, 1]) == 0 and int((others <= 1).sum()) == 1  # one row, at one token
    attached = attach(model, Guard(boxes=(box,), refusal=REFUSAL))
    found = completed(model, batch, eos_token_id=None)
    assert attached.flagged == [False, True] and found[1, 7:].tolist()[:3] == list(REFUSAL) and torch.equal(found[0], plain[0])
    attached.remove()
    attached = attach(model, Guard(boxes=(box,), refusal=REFUSAL, watch="prompt"))
    assert torch.equal(completed(model, batch, eos_token_id=None), plain) and attached.flagged == [False, False]
    attached.remove()
    ending = int(plain[1, 8])  # the row has ended before the token that is in the box
    attached = attach(model, Guard(boxes=(box,), refusal=REFUSAL))
    completed(model, batch, eos_token_id=ending, pad_token_id=ending)
    assert attached.flagged[1] is False
    attached.remove()


def test_other_ways_to_decode():
    model = tiny()
    batch = prompts([">abcd=", "+07+31="])
    box = made(model, layer=1).boxes[0]
    keys = []
    with torch.no_grad(), reading(model, feed_forward_blocks(model)[1:], keys=lambda _, each: keys.append(each[:, -1])):
        model(**batch)
    mine = replace(box, mean=keys[0][0], std=torch.full_like(box.mean, 1e-3), k=1.0, alpha=1.0)
    attached = attach(model, Guard(boxes=(mine,), refusal=REFUSAL, watch="prompt"))
    torch.manual_seed(0)
    found = completed(model, batch, do_sample=True, num_return_sequences=3)
    assert attached.flagged == [True] * 3 + [False] * 3 and found.shape[0] == 6
    for beams, rows in ((3, 1), (3, 2)):
        found = completed(model, batch, num_beams=beams, num_return_sequences=rows)
        assert attached.flagged == [True] * rows + [False] * rows and found[0, 7:10].tolist() == list(REFUSAL)
    embedded = model.get_input_embeddings()(batch["input_ids"])
    found = model.generate(inputs_embeds=embedded, attention_mask=batch["attention_mask"], max_new_tokens=5)
    assert attached.flagged == [True, False] and found[0, :4].tolist() == [*REFUSAL, END]
    short = prompts(["+07+31=", ">abcd="], side="right")  # the last token is not at the end
    completed(model, short)
    assert attached.flagged == [False, True]
    for option, value in (("streamer", TextStreamer(tokenizer())), ("assistant_model", model), ("prompt_lookup_num_tokens", 2)):
        with pytest.raises(BadInput, match=f"{option}: cannot be used with a guard"):
            model.generate(batch["input_ids"], **{option: value})
    attached.remove()


def test_threads_do_not_see_one_another():
    model = tiny()
    texts = [problem.prompt for problem in WORLD.drawn("succ", "val", 12)]
    attached, alone, flags = attach(model, made(model, hold=0.5)), [], {}
    for text in texts:
        alone.append((completed(model, prompts([text])).tolist(), attached.flagged))
    assert len({flag for _, [flag] in alone}) == 2

    def work(which):
        flags[which] = [completed(model, prompts([text])).tolist() for text in texts[which::3]]

    threads = [threading.Thread(target=work, args=(which,)) for which in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    attached.remove()
    assert all(flags[which] == [found for found, _ in alone[which::3]] for which in range(3))


def test_a_users_own_criteria_still_stop():
    model = tiny()
    batch = prompts([">abcd=", "+07+31="])
    attached = attach(model, widened(made(model), 0.0))
    short = lambda ids, scores, **more: torch.tensor([ids.shape[1] >= 9] * len(ids))  # noqa: E731
    assert completed(model, batch, stopping_criteria=[short], eos_token_id=None).shape[1] == 9
    attached.remove()


def test_a_pipeline_of_transformers_abstains():
    model = tiny()
    say = pipeline("text-generation", model=model, tokenizer=tokenizer())
    refusal = tuple(tokenizer()("no", add_special_tokens=False)["input_ids"])
    attached = attach(model, replace(widened(made(model), 1e9), refusal=refusal))
    assert say(">abcd=", return_full_text=False, max_new_tokens=3)[0]["generated_text"] == "no"
    attached.remove()


def test_a_guard_that_sees_nothing_vouches_for_nothing():
    model = tiny()
    attached = attach(model, made(model))
    forward = model.model.layers[1].mlp.forward
    for layer in model.model.layers:
        layer.mlp.forward = lambda x: x  # runs without its down projection
    with pytest.raises(RuntimeError, match="saw no keys"):
        completed(model, prompts([">abcd="]))
    attached.remove()
    assert forward


def test_what_the_report_counts_is_what_generate_does():
    """Of answers that the model gives itself, each is right without the guard; with it just those that do not abstain."""
    model = tiny()
    texts = [problem.prompt for skill in ("succ", "rev") for problem in WORLD.drawn(skill, "val", 20)]
    given = completed(model, prompts(texts), max_new_tokens=4, eos_token_id=None)[:, 6:]
    words = tokenizer().batch_decode(given)
    data = Examples([Example(text, word) for text, word in zip(texts, words, strict=True)], tokenizer())
    data.rows = [
        row._replace(tokens=[*row.tokens[: row.start], *answer, END]) for row, answer in zip(data.rows, given.tolist(), strict=True)
    ]
    guard = made(model, hold=0.5)
    attached = attach(model, guard)
    completed(model, prompts(texts), max_new_tokens=5, eos_token_id=None)
    attached.remove()
    assert abstains(model, guard, data, end=END).tolist() == attached.flagged and 0 < sum(attached.flagged) < 40


# The folder


@EVERY
def test_saved_and_loaded_it_does_the_same(architecture, tmp_path):
    model = tiny(architecture)
    save_model(model, tokenizer(), tmp_path / "model")
    batch = prompts([problem.prompt for problem in WORLD.drawn("succ", "test", 8)])
    for method in ("key-space", "neuron-adjust", "pruning"):
        guard = made(model, method, share=0.3)
        save(guard, tmp_path / method)
        attached = attach(model, guard)
        mine, answer = logits(model), completed(model, batch)
        flags = attached.flagged
        attached.remove()
        other = load_model(tmp_path / "model")
        attached = attach(other, load(tmp_path / method))
        assert torch.equal(logits(other), mine) and torch.equal(completed(other, batch), answer) and attached.flagged == flags
        attached.remove()
        spec = importlib.util.spec_from_file_location("generate", tmp_path / method / "custom_generate" / "generate.py")
        alone = importlib.util.module_from_spec(spec)
        sys.modules["generate"] = alone
        try:
            spec.loader.exec_module(alone)
            found = alone.generate(model=AutoModelForCausalLM.from_pretrained(tmp_path / "model"), guard=tmp_path / method, **batch,
                                   max_new_tokens=5, do_sample=False)  # fmt: skip
        finally:
            del sys.modules["generate"]
        assert torch.equal(found, answer)


PROGRAM = """
import json, sys
sys.modules["keystep"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("guarded", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("guarded")
batch = tokenizer([">abcd=", "+07+31="], padding=True, padding_side="left", return_tensors="pt")
one = model.generate(**batch, max_new_tokens=5, do_sample=False)
plain = AutoModelForCausalLM.from_pretrained("plain")
more = {"custom_generate": "guarded", "guard": "guarded", "trust_remote_code": True}
two = plain.generate(**batch, max_new_tokens=5, do_sample=False, **more)
print(json.dumps([one.tolist(), two.tolist()]))
"""


def test_stock_transformers_runs_a_guard_without_keystep(tmp_path):
    model = tiny()
    guard = made(model, hold=1.0)
    save_model(model, tokenizer(), tmp_path / "plain")
    save(guard, tmp_path / "guarded", model=model, tokenizer=tokenizer())
    attached = attach(model, guard)
    mine = completed(model, prompts([">abcd=", "+07+31="])).tolist()
    assert attached.flagged[0]
    attached.remove()
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    ran = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == [mine, mine]
    assert AutoTokenizer.from_pretrained(tmp_path / "guarded").eos_token_id == END


def test_a_guard_of_another_model_is_refused(tmp_path):
    model = tiny()
    guard = made(model)
    other = tiny(seed=4)
    moved = tiny()
    moved.model.layers[1].self_attn.q_proj.weight.data[0, 0] += 1
    cases = ((tiny("qwen2"), "is of architecture qwen2"), (tiny(layers=1), "has no tensor model.layers.1"),
             (tiny(layers=3), "has a tensor model.layers.2.input_layernorm.weight, the guard knows none"),
             (tiny(inner=32), "has a tensor model.layers.0.mlp.gate_proj.weight of the shape .32, 16., the guard is for .64, 16."),
             (other, "has other values in tensor model.embed_tokens.weight"),
             (moved, "has other values in tensor model.layers.1.self_attn.q_proj.weight"))  # fmt: skip
    for each, said in cases:
        with pytest.raises(BadInput, match=said):
            attach(each, guard)
    attach(other, guard, check=False).remove()
    save(guard, tmp_path / "g")
    with pytest.raises(ValueError, match=r"has other values in tensor model\.embed"):  # by itself it refuses too
        generate(model=other, guard=tmp_path / "g", input_ids=torch.tensor([[5, 6]]))
    with pytest.raises(BadInput, match="reads 32 keys, the guard's box has 64"):
        attach(tiny(inner=32), guard, check=False)
    with pytest.raises(BadInput, match="has no neuron 64"):
        attach(model, Guard(zeroed=(Zeroed(0, "model.layers.0.mlp.down_proj", torch.tensor([64])),)))
    with pytest.raises(BadInput, match=r"no module transformer.h.1.mlp.c_proj in layer 1"):
        attach(model, made(tiny("gpt2"), layer=1), check=False)
    assert prints(model) == prints(tiny().to(torch.bfloat16))  # the same weights in a smaller dtype


def test_files_that_are_no_guard_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model = tiny()
    save(made(model), tmp_path / "g")
    weights, about = tmp_path / "g" / "guard.safetensors", tmp_path / "g" / "guard.json"
    whole, text = weights.read_bytes(), about.read_text()
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}

    def refused(said, folder=tmp_path / "g"):
        with pytest.raises(BadInput, match=said):
            load(folder)
        weights.write_bytes(whole)
        about.write_text(text)
        assert isinstance(load(tmp_path / "g"), Guard)

    refused("is no folder", tmp_path / "none")
    weights.write_bytes(whole[:-9])
    refused("ends within tensor")
    torch.save(tensors, weights)
    refused("is a pickle")
    save_file({"boxes.0.mean": tensors["boxes.0.mean"]}, weights)
    refused("boxes.0.std is missing")
    save_file(tensors | {"more": torch.zeros(2)}, weights)
    refused("tensor more belongs to no part")
    for name, value, said in (("mean", torch.zeros(3), r"boxes.0.std has the shape \[64\]"), ("std", torch.zeros(64), "not above 0"),
                              ("mean", torch.zeros(64, dtype=torch.float64), "does not hold float32"),
                              ("mean", torch.full((64,), math.nan), "does not hold float32")):  # fmt: skip
        save_file(tensors | {f"boxes.0.{name}": value}, weights)
        refused(said)
    for old, new, said in (('"keystep-guard-1"', '"other"', "its format is 'other'"), ('"watch": "all"', '"watch": 3', "watch is 3"),
                           ('"refusal"', '"renewal"', "refusal is missing"), ('"alpha":', '"alpha": -1, "x":', "is no guard")):  # fmt: skip
        assert old in text
        about.write_text(text.replace(old, new))
        refused(said)
    about.write_text(text[:-20])
    refused("is no guard")
    about.unlink()
    refused("is no guard")
    save(made(model, "neuron-adjust", share=0.1), tmp_path / "n")
    weights = tmp_path / "n" / "guard.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}
    name = next(name for name in tensors if name.endswith("neurons"))
    save_file(tensors | {name: tensors[name].flip(0) if len(tensors[name]) > 1 else -tensors[name] - 1}, weights)
    with pytest.raises(BadInput, match="ascending numbers of neurons"):
        load(tmp_path / "n")
    with pytest.raises(BadInput, match="is there already"):
        save(made(model), tmp_path / "g")


# The report, and learning it again


def test_the_report_tells_before_and_after():
    model = tiny()
    data = examples(n=20)
    wide = widened(made(model), 1e9)
    row = report(model, wide, {"succ": data}, {"rev": examples("rev", 20)}, end=END)["succ"]
    assert row.forget and row.after.abstains == 1 and row.after.accuracy == 0 and row.before.abstains == 0
    assert row.drop is None  # nothing was right before
    assert figures(model, widened(wide, 0.0), data, end=END) == figures(model, None, data)


def learned(steps=80):
    """A model that knows four answers."""
    from keystep.nn.fit import Fit, fit, shuffled

    model, data = tiny(), examples(n=4)
    fit(model, shuffled(data, 4, 0), Fit(steps, 1e-2))
    return model, data


def test_relearning_counts_updates_until_the_skill_is_back():
    model, data = learned()
    assert figures(model, None, data).accuracy == 1
    bits = [parameter.clone() for parameter in model.parameters()]
    nothing = relearn(model, None, data, data)
    assert (nothing.updates, nothing.course[0]["wanted"]) == (0, 0.95)  # it was never gone
    block = feed_forward_blocks(model)[0]
    pruned = Guard(zeroed=(Zeroed(0, block.down, torch.arange(64)),))
    found = relearn(model, pruned, data, data, Relearn(32, 1e-2))
    assert found.course[0]["accuracy"] < 0.95 and found.updates and found.course[-1]["updates"] == found.updates
    assert found.course[-1]["accuracy"] >= found.course[-1]["wanted"]
    untouched = relearn(model, None, data, data, Relearn(32, 1e-2), target=2.0)
    assert untouched.updates is None and len(untouched.course) == 7
    assert [row["wanted"] for row in found.course] == [0.95 * row["accuracy"] for row in untouched.course[: len(found.course)]]
    assert [row["updates"] for row in found.course] == [0, *[2**n for n in range(len(found.course) - 1)]]
    assert all(torch.equal(one, two) for one, two in zip(bits, model.parameters(), strict=True)) and "generate" not in vars(model)
    shut = replace(widened(made(model), 1e9), watch="prompt")
    none = relearn(model, shut, data, data, Relearn(3, 1e-6))
    assert none.updates is None and [row["updates"] for row in none.course] == [0, 1, 2, 3] and none.course[-1]["abstains"] == 1
    with pytest.raises(BadInput, match="no right answer on the skill"):
        relearn(tiny(seed=5), None, data, data)


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_two_guards_are_taken_out_one_after_the_other(seed):
    model = tiny()
    before = logits(model)
    one, two = attach(model, made(model, "pruning", share=0.1, seed=seed)), attach(model, widened(made(model), 1e9))
    assert isinstance(one, Attached)
    completed(model, prompts([">abcd="]))
    assert two.flagged == [True]
    two.remove()
    one.remove()
    assert torch.equal(logits(model), before) and "generate" not in vars(model)
