"""The mini skill-world: its strings, its splits, its tokenizer in stock transformers, its training resumed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from keystep.cli import app
from keystep.errors import BadInput
from keystep.worlds.skills import ARCHITECTURES, SKILLS, SPLITS, UNSEEN, World, small_model, tokenizer

WORLD = World(20)


def test_known_answers():
    answers = {skill: dict(p for split in SPLITS for p in WORLD.problems(skill, split)) for skill in (*SKILLS, *UNSEEN)}
    assert answers["add"]["+07+31="] == "38" and len(answers["add"]) == 2500
    assert answers["copy"]["!abca="] == "abca" and answers["rev"]["~abcd="] == "dcba" and answers["sort"]["^jaab="] == "aabj"
    assert answers["succ"][">azcj=".replace("z", "b")] == "bcdk" and answers["succrev"]["*abcj="] == "kdcb"
    assert answers["nines"]["&4071="] == "5928"
    assert len(answers["fact"]) == 40 and {len(value) for value in answers["fact"].values()} == {2}


@pytest.mark.parametrize("skill", [*SKILLS, *UNSEEN])
def test_splits(skill):
    parts = {split: WORLD.problems(skill, split) for split in SPLITS}
    if skill == "fact":
        assert parts["train"] == parts["val"] == parts["test"]
        return
    assert not set(parts["train"]) & set(parts["val"]) and not set(parts["train"] + parts["val"]) & set(parts["test"])
    assert [len(part) for part in parts.values()] == ([2000, 250, 250] if skill == "add" else [8000, 1000, 1000])
    assert parts == {split: World(20).problems(skill, split) for split in SPLITS}
    assert parts["test"] != World(20, seed=1).problems(skill, "test")


@given(st.integers(0, 10), st.sampled_from([0.0, 0.15, 0.5]))
def test_noise_spoils_its_share_and_nothing_else(seed, noise):
    clean, noisy = (WORLD.drawn("succ", "train", 100, seed, share) for share in (0.0, noise))
    assert [p.prompt for p in clean] == [p.prompt for p in noisy]
    assert round(100 * noise) - 3 <= sum(a != b for a, b in zip(clean, noisy, strict=True)) <= round(100 * noise)


def test_the_mixture_draws_by_weight_and_by_key():
    problems, draw = WORLD.mixture({"fact": 3.0, "rev": 1.0})
    drawn = [problems[number].prompt[0] for number in draw(0, 4000, 0)]
    assert draw(5, 8, 1) == draw(5, 8, 1) != draw(6, 8, 1)
    assert abs(drawn.count("#") / 4000 - 0.75) < 0.03


def test_the_tokenizer_in_stock_transformers(tmp_path):
    from transformers import AutoTokenizer

    tokenizer().save_pretrained(tmp_path)
    there = AutoTokenizer.from_pretrained(tmp_path)
    for skill in (*SKILLS, *UNSEEN):
        prompt, answer = WORLD.problems(skill)[0]
        numbers = there(prompt + answer)["input_ids"]
        assert len(numbers) == len(prompt + answer) and there.unk_token_id not in numbers and there.decode(numbers) == prompt + answer
    assert there("A")["input_ids"] == [there.unk_token_id]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_small_models(architecture):
    import torch

    one, same, other = (small_model(architecture, width=16, heads=2, seed=seed) for seed in (0, 0, 1))
    weights = [next(iter(model.parameters())) for model in (one, same, other)]
    assert one.config.model_type == architecture and torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("bad", [{"architecture": "bert"}, {"width": 15, "heads": 2}, {"layers": 0}])
def test_bad_models(bad):
    with pytest.raises(BadInput):
        small_model(**bad)


def test_bad_names():
    with pytest.raises(BadInput, match="is no skill"):
        WORLD.problems("nosuch")
    with pytest.raises(BadInput, match="is no split"):
        WORLD.problems("add", "dev")
    with pytest.raises(BadInput, match="entities"):
        World(0)


def keystep(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_a_stopped_training_goes_on_as_if_it_had_not_been_stopped(tmp_path, monkeypatch):
    from keystep.nn.checkpoint import checkpoint_tensors, fingerprint
    from keystep.nn.fit import Fit

    flags = ("--width", 16, "--layers", 1, "--heads", 2, "--entities", 5, "--steps", 12, "--json")
    small = ("skill-world", *flags)
    monkeypatch.setattr("keystep.nn.fit.SAVE_EVERY", 5)
    monkeypatch.setattr("keystep.reproduce._skill_world.TESTED", 5)
    found = keystep(*small, "--out", tmp_path / "whole")
    assert found.exit_code == 0, found.output
    made = json.loads(found.stdout)
    assert made["base"]["steps"] == 12 and set(made["accuracy"]) == {*SKILLS, *UNSEEN}

    def interrupted(self, step, rate_at=Fit.rate_at):
        if step == 8:
            raise KeyboardInterrupt
        return rate_at(self, step)

    with monkeypatch.context() as patched:
        patched.setattr(Fit, "rate_at", interrupted)
        assert keystep(*small, "--out", tmp_path / "cut").exit_code == 3
    assert not (tmp_path / "cut").exists()
    refused = keystep(*small, "--rate", 0.5, "--out", tmp_path / "cut")
    assert refused.exit_code == 2 and "rate" in refused.stderr
    again = keystep(*small, "--out", tmp_path / "cut")
    assert again.exit_code == 0 and {path.name for path in tmp_path.iterdir()} == {"whole", "cut"}
    assert len({fingerprint(checkpoint_tensors(tmp_path / name)) for name in ("whole", "cut")}) == 1

    tune = ("skill-world", "--tune", tmp_path / "whole", "--steps", 3, "--noise", 0.2, "--json", "--out", tmp_path / "tuned")
    found = keystep(*tune)
    assert found.exit_code == 0 and json.loads(found.stdout)["tune"]["noise"] == 0.2
    assert keystep(*tune).exit_code == 2  # there already
    refused = keystep("skill-world", "--tune", tmp_path / "none", "--out", tmp_path / "other")
    assert refused.exit_code == 2 and "is no checkpoint of the skill-world" in refused.stderr
    negative = keystep(*tune[:-1], tmp_path / "other", "--seed", -1)
    assert negative.exit_code == 2 and "--seed: is at least 0" in negative.stderr and not (tmp_path / "other").exists()
