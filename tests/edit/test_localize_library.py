"""Patches as skills of one model: each answers as its own grafted checkpoint does, whatever is asked before or beside it."""

from __future__ import annotations

import pytest
import torch

import keystep as ks
from keystep.edit.localize import patch_of
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
    shelf.switch("")
    assert all(torch.equal(before[name], weight) for name, weight in shelf.local.model.state_dict().items())


def test_identities_tell_patches_apart(shelf):
    one, two = (shelf.lm(name).identity() for name in ("p0", "p1"))
    assert one != two and one["model"] == two["model"] and one["patch"] == digest(shelf.patches["p0"])


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
