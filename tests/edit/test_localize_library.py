"""Patches as skills of one model: each answers as its own grafted checkpoint does, whatever is asked before or beside it."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import keystep as ks
from keystep.edit.localize import Patch, patch_of
from keystep.edit.localize.graft import in_scope
from keystep.edit.localize.library import Shelf, digest
from keystep.errors import BadInput
from keystep.lm.local import Local
from keystep.nn.checkpoint import load_model, save_model
from keystep.worlds.skills import small_model, tokenizer


@pytest.fixture
def shelf(tmp_path):
    """A model and three patches of overlapping places with different values."""
    base = small_model(width=16, heads=2)
    save_model(base, tokenizer(), tmp_path / "base")
    patches = []
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        tuned = {name: own + torch.randn(own.shape, generator=draw) for name, own in in_scope(base, "layers").items()}
        masks = {name: torch.rand(own.shape, generator=draw) < 0.6 for name, own in tuned.items()}
        patches.append(patch_of(dict(base.named_parameters()), tuned, masks, name=f"p{seed}"))
    return Shelf(Local(tmp_path / "base"), patches)


def greedy(model, prompt):
    with torch.no_grad():
        tokens = torch.tensor([tokenizer()(prompt)["input_ids"]])
        out = model.generate(tokens, max_new_tokens=5, do_sample=False, pad_token_id=0)[0, tokens.shape[1] :]
    return tokenizer().decode(out, skip_special_tokens=True)


def test_every_skill_answers_as_its_own_model(shelf, tmp_path):
    wanted = {}
    for name, patch in shelf.patches.items():
        model = load_model(tmp_path / "base")
        patch.apply(model)
        wanted[name] = greedy(model, ">abcd=")
    assert len(set(wanted.values())) == 3
    before = {name: weight.clone() for name, weight in shelf.local.model.state_dict().items()}
    names = ["p0", "p1", "p2", "p1", "p0", "p2"]
    steps = [ks.Step(id=f"s{number}", skill=name, inputs={"prompt": ">abcd="}) for number, name in enumerate(names)]  # all of them at once
    steps.append(ks.Step(id="all", skill="join", inputs={"texts": [ks.Ref(step=step.id) for step in steps]}))
    library = shelf.library(sampling={"max_tokens": 5}, descriptions={"p1": "shifts letters"})
    library.add(ks.ToolSkill("join", lambda texts: texts))
    for _ in range(2):  # and again, in a loop of its own
        run = ks.Run(shelf.local, vote=ks.First())
        found = run.execute_sync(ks.Plan(steps=steps), library)
        assert found.result == [wanted[name] for name in names]
    assert [skill.name for skill in library.search("letters")] == ["p1"]
    shelf.switch()
    assert all(torch.equal(before[name], weight) for name, weight in shelf.local.model.state_dict().items())


def test_identities_tell_patches_apart(shelf):
    one, two = (shelf.lm(name).identity() for name in ("p0", "p1"))
    assert one != two and one["model"] == two["model"] and one["patches"] == [digest(shelf.patches["p0"])]


def test_patches_that_do_not_fit_are_refused(shelf):
    with pytest.raises(BadInput, match="is no patch of this shelf"):
        shelf.lm("nosuch")
    with pytest.raises(BadInput, match="of no patch or of two"):
        Shelf(shelf.local, [shelf.patches["p0"]] * 2)
    other = small_model(width=16, heads=2, seed=9)
    tuned = {name: own + 1 for name, own in in_scope(other, "layers").items()}
    masks = {name: torch.ones(own.shape, dtype=torch.bool) for name, own in tuned.items()}
    with pytest.raises(BadInput, match="holds neither the base's values"):
        Shelf(shelf.local, [patch_of(dict(other.named_parameters()), tuned, masks, name="other")])


def weights(model):
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def random_patch(model, name, seed, low=0.0, high=1.0, step=1.0):
    """New values at a share of the places that the seed draws: those between `low` and `high`, which the same seed draws again."""
    draw = torch.Generator().manual_seed(seed)
    own = {key: tensor.clone() for key, tensor in in_scope(model, "layers").items()}
    places = {key: torch.rand(tensor.shape, generator=draw) for key, tensor in own.items()}
    masks = {key: (low <= each) & (each < high) for key, each in places.items()}
    return patch_of(own, {key: tensor + step for key, tensor in own.items()}, masks, name=name)


def learned_in_a_row(local):
    """Three patches, each made with those before it in and over some of their places, and the weights with each of them in."""
    shelf, model, states, on = Shelf(local), copy.deepcopy(local.model), {"": weights(local.model)}, ""
    for number, name in enumerate(("one", "two", "three")):
        patch = random_patch(model, name, number, high=0.5, step=0.5 + number)
        shelf.add(patch, on=on)
        patch.apply(model)
        states[name], on = weights(model), name
    return shelf, states


@pytest.fixture
def local(tmp_path):
    save_model(small_model(width=16, heads=2), tokenizer(), tmp_path / "base")
    return Local(tmp_path / "base")


def test_what_was_learned_in_a_row_is_all_there(local, tmp_path):
    shelf, states = learned_in_a_row(local)
    shelf.save(tmp_path / "shelf")
    for each in (shelf, Shelf.load(local, tmp_path / "shelf")):
        for name in ("three", "one", "two", "", "two", "three", ""):
            each.switch(*([name] if name else []))
            assert same(weights(local.model), states[name])
        assert each.chain("three") == each.chain("one", "three") == each.chain("three", "one") == ("one", "two", "three")
        assert each.lm("two").identity()["patches"] == [digest(each.patches[name]) for name in ("one", "two")]


def test_added_while_another_is_in(local):
    shelf, states = learned_in_a_row(local)
    shelf.switch("two")
    patch = random_patch(local.model, "four", 9, high=0.2)  # on top of two
    with pytest.raises(BadInput, match="holds neither the base's values"):
        shelf.add(patch)
    assert same(weights(local.model), states["two"]) and "four" not in shelf.patches
    shelf.add(patch, on="two")
    assert same(weights(local.model), states["two"])
    with pytest.raises(BadInput, match="has the patch 'three' on top"):
        shelf.remove("two")
    for name in ("four", "three", "two"):
        shelf.switch(name)
        shelf.remove(name)
        assert same(weights(local.model), states[""]) and name not in shelf.patches
    shelf.switch("one")
    assert same(weights(local.model), states["one"])
    with pytest.raises(BadInput, match="is no patch of this shelf"):
        shelf.remove("two")
    with pytest.raises(BadInput, match="is no patch of this shelf"):
        shelf.add(patch, on="two")
    shelf.remove("one")
    assert same(weights(local.model), states[""]) and not shelf.patches


def test_several_at_once(local):
    base = weights(local.model)
    apart = [random_patch(local.model, "a", 0, high=0.3), random_patch(local.model, "b", 0, low=0.3, high=0.6)]
    agreeing, other = random_patch(local.model, "c", 0, low=0.1, high=0.4), random_patch(local.model, "d", 0, high=0.1, step=2.0)
    shelf = Shelf(local, [*apart, agreeing, other])
    found = []
    for names in (("a", "b"), ("b", "a"), ("a", "c", "b")):
        shelf.switch(*names)
        found.append(weights(local.model))
    assert same(found[0], found[1]) and same(found[0], found[2])
    shelf.switch("a")  # what c shared with a is still there
    model = copy.deepcopy(local.model)
    apart[0].check(model)
    assert same(weights(local.model), {**base, **{k: torch.where(m, base[k] + 1, base[k]) for k, m in apart[0].masks().items()}})
    with pytest.raises(BadInput, match="holds neither"):
        shelf.switch("b", "a", "d")
    assert same(weights(local.model), base)
    library = shelf.library(sampling={"max_tokens": 5}, together={"both": ("a", "b")})
    steps = [ks.Step(id=name, skill=name, inputs={"prompt": ">abcd="}) for name in ("a", "both", "b")]
    found = ks.Run(local, vote=ks.First()).execute_sync(ks.Plan(steps=[*steps, ks.Step(id="last", skill="both", needs=["a", "both", "b"],
                                                                                    inputs={"prompt": "~aabb="})]), library)  # fmt: skip
    shelf.switch("a", "b")
    assert found.result == greedy(local.model, "~aabb=")


def test_broken_shelves_are_refused(local, tmp_path):
    shelf, _ = learned_in_a_row(local)
    shelf.switch("three")
    folder = tmp_path / "shelf"
    shelf.save(folder)
    with pytest.raises(BadInput, match="is there already"):
        shelf.save(folder)
    table = json.loads((folder / "shelf.json").read_text())

    def refused(said, rows):
        (folder / "shelf.json").write_text(json.dumps(rows))
        with pytest.raises(BadInput, match=said):
            Shelf.load(Local(tmp_path / "base"), folder)

    first, second, third = table["patches"]
    refused("that can be read", [])
    refused("that can be read", {"patches": [{**first, "file": "../x"}]})
    refused("is no patch of this shelf", {"patches": [first, third]})
    refused("holds the patch 'one', not 'two'", {"patches": [{**second, "file": first["file"]}]})
    refused("holds neither", {"patches": [{**second, "on": ""}]})
    (folder / first["file"]).write_bytes((folder / first["file"]).read_bytes()[:-1])
    refused("ends within tensor", table)
    torch.save({}, folder / first["file"])
    refused("is a pickle", table)
    (folder / "shelf.json").unlink()
    with pytest.raises(BadInput, match=r"has no shelf\.json"):
        Shelf.load(local, folder)
    Patch.load(folder / second["file"])  # the others are sound
