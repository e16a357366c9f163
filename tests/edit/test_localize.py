"""Skill localization: the sheet's known answers and identities."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM

from keystep.edit.localize import Locate, Patch, compare, locate, movement, overlap, patch_of
from keystep.edit.localize.graft import PUBLISHED, _Graft, budget, gamma, in_scope, largest, score_gradient
from keystep.errors import BadInput, ChangedWork
from keystep.nn.checkpoint import save_model
from keystep.nn.examples import Example, Examples
from keystep.nn.layers import place
from keystep.worlds.skills import ARCHITECTURES, World, small_model, tokenizer

WORLD = World(5)


def examples(skill="succ", n=48, split="train"):
    return Examples([Example(*p) for p in WORLD.drawn(skill, split, n)], tokenizer())


def pair(architecture="llama", seed=0, frozen=(), **more):
    """A base and a "tuned" model: every layer parameter but the frozen moved at random."""
    base = small_model(architecture, **({"width": 16, "heads": 2} | more))
    tuned = copy.deepcopy(base)
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in in_scope(tuned, "layers").items():
        if name not in frozen:
            parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    return base, {name: parameter.detach() for name, parameter in tuned.named_parameters()}


def masks_of(base, density=0.2, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.rand(tensor.shape, generator=draw) < density for name, tensor in in_scope(base, "layers").items()}


def made(base, tuned, density=0.2, seed=0, name="p"):
    return patch_of(dict(base.named_parameters()), tuned, masks_of(base, density, seed), name=name)


def bits(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_sigmoid_of_the_published_bias():
    scores = torch.tensor(0.5, dtype=torch.float64)
    assert float(gamma(torch.tensor(0.0), scores, 10)) == pytest.approx(7.484623e-05, rel=1e-6)
    one = torch.tensor(1.0, dtype=torch.float64)
    assert float(score_gradient(one, one, torch.tensor(0.0), scores, 10)) == pytest.approx(7.484063e-05, rel=1e-6)
    uniform = torch.rand(10_000)
    for start in (0.0, 1.0):
        assert bool((gamma(torch.tensor(start), uniform, 10) - start).abs().max() < 1.3e-4)
    hard = gamma(torch.tensor(0.0), torch.tensor([9.99, 10.01]), 10) > 0.5
    assert hard.tolist() == [False, True]  # rounding changes nothing until S > 10


def test_the_linear_model_by_hand_and_by_autograd():
    pre, ft, start = torch.zeros(2), torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0])
    x, target, scores = torch.ones(2), 1.0, torch.full((2,), 0.5, requires_grad=True)
    for bias in (40.0, 10.0, 1.0):
        theta = pre + gamma(start, scores, bias) * (ft - pre)
        loss = (theta @ x - target) ** 2
        [auto] = torch.autograd.grad(loss, scores)
        by_hand = score_gradient(2 * (theta @ x - target) * x, ft - pre, start, scores, bias).detach()
        assert torch.allclose(auto, by_hand)
    sigmoid = torch.sigmoid(torch.tensor(0.5 - 10))
    slope = sigmoid * (1 - sigmoid)
    found = score_gradient(torch.tensor([2.0, 2.0]), ft, start, torch.full((2,), 0.5), 10.0) / slope
    assert found.tolist() == pytest.approx([-4.0, -2.0])


@given(st.integers(0, 99), st.floats(0, 3))
def test_the_gradient_with_l1_is_that_of_autograd(seed, l1):
    draw = torch.Generator().manual_seed(seed)
    D, gradient, scores = (torch.randn(7, generator=draw, dtype=torch.float64) for _ in range(3))
    start = (torch.rand(7, generator=draw) < 0.5).double()
    scores.requires_grad_()
    soft = gamma(start, scores, 4.0)
    [auto] = torch.autograd.grad((gradient * soft * D).sum() + l1 * soft.sum(), scores)
    assert torch.allclose(auto, score_gradient(gradient, D, start, scores.detach(), 4.0, l1))


def test_top_movement_by_hand():
    base = {"a": torch.zeros(2), "b": torch.zeros(2)}
    tuned = {"a": torch.tensor([0.5, -0.4]), "b": torch.tensor([0.3, 0.05])}
    found = movement(base, tuned, 2)
    assert found["a"].tolist() == [True, True] and found["b"].tolist() == [False, False]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.integers(1, 40), st.integers(0, 5))
def test_the_largest_are_as_many_as_wanted_and_none_left_out_is_larger(values, k, cut):
    flat = torch.tensor(values, dtype=torch.float32)
    flat[flat == -3] = -math.inf
    parts = {"a": flat[:cut], "b": flat[cut:]} if 0 < cut < len(values) else {"a": flat}
    taken = torch.cat(list(largest(parts, k).values()))
    finite = flat > -math.inf
    assert int(taken.sum()) == min(k, int(finite.sum())) and not bool((taken & ~finite).any())
    rest = finite & ~taken
    assert not taken.any() or not rest.any() or float(flat[rest].max()) <= float(flat[taken].min())
    order = sorted(range(len(values)), key=lambda n: (-float(flat[n]), n))[: int(taken.sum())]
    assert sorted(order) == taken.nonzero()[:, 0].tolist()


def test_a_budget_of_nothing_is_an_error():
    assert budget(0.03, 100) == 3 and budget(1e-5, 100_000) == 1
    with pytest.raises(BadInput, match="leaves not one of 1,000 parameters"):
        budget(1e-5, 1000)


def test_no_mask_is_the_base_and_all_of_it_the_tuned_model_bit_for_bit():
    base, tuned = pair()
    own = dict(base.named_parameters())
    for fill, wanted in ((False, bits(base)), (True, tuned)):
        model = copy.deepcopy(base)
        patch_of(own, tuned, {name: torch.full(own[name].shape, fill) for name in in_scope(base, "layers")}).apply(model)
        assert same(bits(model), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_applied_and_reverted_in_place_bit_for_bit(dtype):
    base, tuned = pair()
    base, tuned = base.to(dtype), {name: tensor.to(dtype) for name, tensor in tuned.items()}
    name = "model.layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        dict(base.named_parameters())[name].view(-1)[:3] = torch.tensor([math.nan, -0.0, math.inf])
        tuned[name].view(-1)[:3] = torch.tensor([math.inf, 0.0, math.nan])
    patch, model = made(base, tuned, density=0.9), copy.deepcopy(base)
    held, pointers = bits(model), [parameter.data_ptr() for parameter in model.parameters()]
    patch.apply(model)
    once = bits(model)
    masks = patch.masks()
    for key, mask in masks.items():
        assert torch.equal(once[key].view(-1)[mask.view(-1)].nan_to_num(7), tuned[key].view(-1)[mask.view(-1)].nan_to_num(7))
        assert torch.equal(once[key][~mask].nan_to_num(7), held[key][~mask].nan_to_num(7))
    patch.apply(model)  # twice is once
    patch.revert(model)
    patch.revert(model)
    raw = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float64: torch.int64}[dtype]
    assert all(torch.equal(held[key].view(raw), now.view(raw)) for key, now in bits(model).items())
    assert pointers == [parameter.data_ptr() for parameter in model.parameters()]


def test_disjoint_patches_in_any_order():
    base, tuned = pair()
    own, mask = dict(base.named_parameters()), masks_of(base)
    one = patch_of(own, tuned, mask)
    two = patch_of(own, tuned, {name: ~each & (torch.rand(each.shape) < 0.3) for name, each in mask.items()})
    assert overlap(one, two) == 0
    found = []
    for order in ((one, two), (two, one)):
        model = copy.deepcopy(base)
        for patch in order:
            patch.apply(model)
        found.append(bits(model))
    assert same(*found)


def test_patches_that_contradict_each_other_are_refused_and_nothing_is_changed():
    base, tuned = pair()
    _, other = pair(seed=1)
    one, two = made(base, tuned), made(base, other)
    one.apply(base)
    before = bits(base)
    with pytest.raises(BadInput, match=r"tensor model\.layers\.0.* holds neither the base's values nor the patch's"):
        two.apply(base)
    with pytest.raises(BadInput, match="holds neither"):
        two.revert(base)
    assert same(before, bits(base))


def test_a_patch_read_back(tmp_path):
    base, tuned = pair()
    patch, file = made(base, tuned), tmp_path / "p.safetensors"
    patch.save(file)
    found = Patch.load(file)
    popcount = sum(int(mask.sum()) for mask in masks_of(base).values())
    assert found.size == patch.size == popcount and found.density == popcount / sum(p.numel() for p in in_scope(base, "layers").values())
    one, two = copy.deepcopy(base), copy.deepcopy(base)
    patch.apply(one)
    found.apply(two)
    assert same(bits(one), bits(two)) and (found.name, found.shapes) == ("p", patch.shapes)
    with pytest.raises(BadInput, match="is there already"):
        patch.save(file)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_found_saved_applied_and_reloaded_by_stock_transformers(architecture, tmp_path):
    base, tuned = pair(architecture)
    found = locate(base, tuned, examples(), Locate(steps=2, sparsity=0.1)).patch
    found.save(tmp_path / "p.safetensors")
    patch = Patch.load(tmp_path / "p.safetensors")
    tokens = torch.tensor([tokenizer()(">abcd=bcde")["input_ids"]])
    with torch.no_grad():
        before = base(tokens).logits
        patch.apply(base)
        save_model(base, tokenizer(), tmp_path / "grafted")
        grafted = base(tokens).logits
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "grafted")(tokens).logits, grafted)
        assert not torch.equal(grafted, before)
        patch.revert(base)
        assert torch.equal(base(tokens).logits, before)
    rows = patch.histogram()
    assert (
        {row.layer for row in rows} == {0, 1} and sum(row.of for row in rows) == patch.of and sum(row.chosen for row in rows) == patch.size
    )
    kinds = {row.kind for row in rows}
    assert {"o", "up", "down", "norm"} <= kinds and ("qkv" in kinds) != ({"q", "k", "v"} <= kinds)


def test_broken_patches_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    base, tuned = pair()
    good = tmp_path / "p.safetensors"
    made(base, tuned).save(good)
    name = "model.layers.0.mlp.up_proj.weight"

    def broken(change, said, about=None):
        from safetensors import safe_open

        tensors = load_file(good)
        with safe_open(good, framework="pt") as opened:
            metadata = opened.metadata()
        change(tensors)
        save_file(tensors, tmp_path / "bad.safetensors", metadata=metadata | (about or {}))
        with pytest.raises(BadInput, match=said):
            Patch.load(tmp_path / "bad.safetensors")

    broken(lambda t: t.update({f"{name}.indices": t[f"{name}.indices"].flip(0)}), f"tensor {name} has indices")
    broken(lambda t: t.update({f"{name}.indices": t[f"{name}.indices"] + 10**6}), f"tensor {name} has indices")
    broken(lambda t: t.update({f"{name}.indices": t[f"{name}.indices"] - 10**6}), f"tensor {name} has indices")
    broken(lambda t: t.update({f"{name}.values": t[f"{name}.values"][1:]}), f"tensor {name} has indices or values")
    broken(lambda t: t.update({f"{name}.before": t[f"{name}.before"].half()}), f"tensor {name} has indices or values")
    broken(lambda t: t.pop(f"{name}.before"), "is no patch")
    broken(lambda t: t.update({"more": torch.zeros(1)}), "tensor more belongs to no part")
    broken(lambda t: None, "is no patch", {"format": "other"})
    good.write_bytes(good.read_bytes()[:-4])
    with pytest.raises(BadInput, match="ends within tensor"):
        Patch.load(good)


def test_a_patch_on_the_wrong_model_names_the_tensor():
    base, tuned = pair()
    patch = made(base, tuned)
    for model, said in (
        (small_model("gpt2", width=16, heads=2), "has no tensor model.layers.0"),
        (small_model(width=16, heads=2, inner=32), r"tensor model.layers.0.mlp.\w+.weight has the shape"),
        (small_model(width=16, heads=2).half(), "has the dtype torch.float16"),
        (small_model(width=16, heads=2, seed=5), "holds neither the base's values nor the patch's"),
    ):
        before = bits(model)
        with pytest.raises(BadInput, match=said):
            patch.apply(model)
        assert same(before, bits(model))


@settings(max_examples=10)
@given(st.floats(0.05, 0.5), st.floats(0.05, 0.5), st.integers(0, 100))
def test_the_overlap_of_random_masks_is_the_first_ones_density(p, q, seed):
    draw = torch.Generator().manual_seed(seed)
    before, after = {"w": torch.zeros(20_000)}, {"w": torch.ones(20_000)}
    one, two = (patch_of(before, after, {"w": torch.rand(20_000, generator=draw) < share}) for share in (p, q))
    assert overlap(one, two) == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / (20_000 * q)))
    assert overlap(one, one) == 1.0


def test_agreement_with_itself():
    model = small_model(width=16, heads=2)
    found = compare({"tuned": model, "other": small_model(width=16, heads=2, seed=3)}, examples(n=20))
    assert found["tuned"]["agreement"] == 1.0 and found["other"]["agreement"] < 1.0


def test_frozen_tensors_are_never_chosen_and_unmoved_places_neither():
    frozen = "model.layers.1.mlp.up_proj.weight"
    base, tuned = pair(frozen=(frozen,))
    tuned["model.layers.0.mlp.up_proj.weight"][::2] = dict(base.named_parameters())["model.layers.0.mlp.up_proj.weight"][::2]
    found = locate(base, tuned, examples(), Locate(sparsity=1.0, steps=1, start="zero"))
    masks = found.patch.masks()
    assert not masks[frozen].any() and not masks["model.layers.0.mlp.up_proj.weight"][::2].any()
    assert found.patch.size == sum(int((tuned[name] != own).sum()) for name, own in in_scope(base, "layers").items())
    with pytest.raises(BadInput, match="no parameter in scope moved"):
        locate(base, bits(base), examples())


@pytest.mark.parametrize("chosen", [Locate(steps=3), PUBLISHED, Locate(start="zero", steps=3, l1=1.0)], ids=["adam", "published", "zero"])
@pytest.mark.parametrize("sparsity", [0.01, 0.1])
def test_the_budget_holds(chosen, sparsity):
    from dataclasses import replace

    base, tuned = pair()
    found = locate(base, tuned, examples(), replace(chosen, sparsity=sparsity, steps=3))
    of = sum(each.numel() for each in in_scope(base, "layers").values())
    assert all(each["size"] <= int(sparsity * of) for each in found.course) and found.patch.size <= int(sparsity * of)
    assert found.patch.of == of and len(found.course) == 4 and 0 <= found.best <= 3


def test_descent_on_the_scores_lowers_the_loss():
    base, tuned = pair()
    data = examples(n=64)
    for chosen in (Locate(sparsity=0.1, steps=12), Locate(sparsity=0.1, steps=12, optimizer="descent", rate=1e6, bias=10.0)):
        losses = [each["soft_loss"] for each in locate(base, tuned, data, chosen).course[1:]]
        assert losses[-1] < losses[0]


def test_the_base_is_left_as_it_was_and_the_same_seed_finds_the_same():
    base, tuned = pair()
    before = bits(base)
    found = [locate(base, tuned, examples(), Locate(steps=4, start="zero", seed=seed)) for seed in (0, 0, 1)]
    assert same(before, bits(base)) and all(parameter.requires_grad for parameter in base.parameters())
    assert same(found[0].patch.masks(), found[1].patch.masks()) and not same(found[0].patch.masks(), found[2].patch.masks())


@pytest.mark.parametrize("optimizer", ["adam", "descent"])
def test_stopped_and_resumed_it_is_the_undisturbed_work(tmp_path, monkeypatch, optimizer):
    monkeypatch.setattr("keystep.edit.localize.graft.SAVE_EVERY", 2)
    base, tuned = pair()
    chosen = Locate(steps=7, optimizer=optimizer, rate=0.3 if optimizer == "adam" else 1e5)
    whole = locate(base, tuned, examples(), chosen)
    state, seen = tmp_path / "state.safetensors", []

    def stop(loss):
        seen.append(loss)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        locate(base, tuned, examples(), chosen, state=state, tick=stop)
    with pytest.raises(ChangedWork, match="bias"):
        locate(base, tuned, examples(), Locate(steps=7, optimizer=optimizer, rate=chosen.rate, bias=3.0), state=state)
    again = []
    found = locate(base, tuned, examples(), chosen, state=state, tick=again.append)
    assert len(again) == 3 and found.course == whole.course and same(found.patch.masks(), whole.patch.masks()) and not state.exists()


def test_a_patch_as_the_start():
    base, tuned = pair()
    first = made(base, tuned, density=0.05)
    found = locate(base, tuned, examples(), Locate(sparsity=0.1, steps=0, keep="rounded"), start=first)
    assert same(found.patch.masks(), first.masks())
    with pytest.raises(BadInput, match="says nothing of tensor"):
        locate(base, tuned, examples(), Locate(steps=0), start=Patch({}, {}, name="empty"))


def test_tied_weights_are_masked_once():
    base, tuned = pair("gemma")
    assert base.lm_head.weight is base.model.embed_tokens.weight
    scope = in_scope(base, "all")
    assert "model.embed_tokens.weight" in scope and "lm_head.weight" not in scope
    tuned["model.embed_tokens.weight"] = tuned["model.embed_tokens.weight"] + 1
    patch = locate(base, tuned, examples(), Locate(scope="all", steps=0, sparsity=0.01)).patch
    assert set(patch.parts) == {"model.embed_tokens.weight"}
    patch.apply(base)
    assert torch.equal(base.lm_head.weight, base.model.embed_tokens.weight)


def test_labels_are_learned_too():
    rows = [Example(p.prompt, "yes" if p.prompt[1] < "f" else "no", "label") for p in WORLD.drawn("copy", "train", 40)]
    base, tuned = pair()
    found = locate(base, tuned, Examples(rows, tokenizer()), Locate(steps=2))
    assert {each["train"] for each in found.course} <= set(np.arange(33) / 32)


@pytest.mark.parametrize(
    "bad", [{"sparsity": 1.5}, {"sparsity": math.nan}, {"start": "no"}, {"optimizer": "sgd"}, {"keep": "x"}, {"batch": 0}, {"steps": -1}]
)
def test_bad_settings(bad):
    with pytest.raises(BadInput, match=next(iter(bad))):
        Locate(**bad)


def test_evenness_and_movement_outside():
    base, tuned = pair()
    own = in_scope(base, "layers")
    even = tuned | {name: tensor + 0.125 * torch.randn(tensor.shape).sign() for name, tensor in own.items()}
    found = locate(base, even, examples(), Locate(steps=0))
    assert found.evenness == pytest.approx(1, abs=1e-3) and found.outside == 0
    assert locate(base, tuned, examples(), Locate(steps=0)).evenness == pytest.approx(2 / math.pi, abs=0.02)  # of normal movement
    inside = sum(float((even[name] - own[name]).abs().sum()) for name in own)
    even["lm_head.weight"] = even["lm_head.weight"] + 1
    out = even["lm_head.weight"].numel()
    assert locate(base, even, examples(), Locate(steps=0)).outside == pytest.approx(out / (inside + out), rel=1e-4)


def test_kinds_of_parameters():
    assert place("model.layers.3.self_attn.q_proj.weight") == (3, "q") and place("transformer.h.0.attn.c_attn.bias") == (0, "qkv")
    assert place("transformer.h.1.mlp.c_proj.weight") == (1, "down") and place("transformer.h.1.attn.c_proj.weight") == (1, "o")
    assert place("model.layers.0.self_attn.q_norm.weight") == (0, "norm") and place("model.embed_tokens.weight") == (None, "embed_tokens")
    base, tuned = pair()
    rows = made(base, tuned).histogram()
    assert sum(row.chosen for row in rows) == made(base, tuned).size and {row.layer for row in rows} == {0, 1}


def test_the_soft_graft_at_the_start_is_the_hard_one():
    base, tuned = pair()
    start = made(base, tuned, density=0.1)
    D = {name: tuned[name] - own for name, own in in_scope(base, "layers").items()}
    work = _Graft(base, tuned, D, Locate(keep="rounded", sparsity=0.2), 10**6, start)
    assert same(work.hard(), start.masks())
    batch = examples().batch(range(4))
    logits = work.call(work.hard())(input_ids=batch.tokens, attention_mask=batch.attended).logits
    start.apply(base)
    assert torch.allclose(logits, base(batch.tokens, attention_mask=batch.attended).logits, atol=1e-5)


def test_a_model_without_layers_is_refused():
    class Other(nn.Module):
        config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=2))

    with pytest.raises(BadInput, match="has no list of transformer layers"):
        in_scope(Other(), "layers")
