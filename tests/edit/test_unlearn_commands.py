"""`keystep edit forget` and `blocked`: what they tell, what they write, what they refuse."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from keystep.cli import app
from keystep.edit.unlearn import attach, load
from keystep.nn.checkpoint import load_model, save_model
from keystep.nn.examples import Example, Examples
from keystep.nn.fit import Fit, fit, shuffled
from keystep.worlds.skills import World, small_model, tokenizer


def keystep(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained():
    """A model that says "a" after everything, and so is right on all that is asked here."""
    model = small_model(width=16, heads=2)
    rows = [Example(problem.prompt, "a") for skill in ("succ", "rev") for problem in World(5).drawn(skill, "train", 64)]
    fit(model, shuffled(Examples(rows, tokenizer()), 32, 0), Fit(60, 1e-2))
    return model


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(trained, tokenizer(), tmp_path / "base")
    for name in ("succ", "rev", "add"):
        rows = [json.dumps({"prompt": problem.prompt, "answer": "a"}) for problem in World(5).drawn(name, "train", 60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": f"abc{n}def"}) for n in range(60)))
    return tmp_path


FORGET = ("edit", "forget", "base", "--skill", "succ.jsonl", "--retain", "rev.jsonl", "--out", "g")


def test_what_is_told_is_what_the_guard_does(here):
    ran = keystep(*FORGET, "--relearn", "4", "--relearn-rate", "0.01", "--json")
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    row = told["report"]["succ"]
    assert row["before"]["accuracy"] == 1 and row["forget"] and not told["report"]["rev"]["forget"] and row["examples"] == 12
    assert row["drop"] == pytest.approx(row["after"]["abstains"]) and row["after"]["abstains"] > 0.5
    assert told["boxes"][0]["layer"] in (0, 1) and [each["layer"] for each in told["layers"]["succ"]] == [0, 1]
    assert told["relearned"]["succ"]["course"][0]["accuracy"] == row["after"]["accuracy"]
    guard, model = load(here / "g"), load_model(here / "base")
    assert guard.about["report"] == told["report"] and guard.boxes[0].alpha == told["boxes"][0]["alpha"]
    attached = attach(model, guard)
    batch = tokenizer()([p.prompt for p in World(5).drawn("succ", "train", 60)], return_tensors="pt")
    model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert sum(attached.flagged) >= 0.8 * 60
    shown = keystep("edit", "blocked", "base", "g", "--data", "succ.jsonl", "--data", "rev.jsonl", "--json")
    assert json.loads(shown.stdout)["report"]["succ"]["after"]["abstains"] == pytest.approx(sum(attached.flagged) / 60)
    assert "abstains" in keystep("edit", "blocked", "base", "g", "--data", "rev.jsonl").stdout


def test_in_words(here):
    ran = keystep(*FORGET, "--relearn", "2")
    assert ran.exit_code == 0 and "wrote g: key-space, succ in layer" in ran.stdout and "forget succ: right 100.0% before" in ran.stdout
    assert "relearned succ: " in ran.stdout and "only 60 examples" in ran.stderr and not list(here.glob("*unfinished*"))
    ran = keystep("edit", "forget", "base", "--skill", "texts.jsonl", "--out", "t", "--refusal", "no", "--relearn", "0")
    assert ran.exit_code == 0 and "nothing to be kept was given" in ran.stderr and load(here / "t").boxes[0].layer == 1
    ran = keystep(*FORGET[:-1], "w", "--alpha", "1e9", "--relearn", "0")
    assert "the box of succ blocks 100% of what is to be kept; try --watch prompt" in ran.stderr
    ran = keystep(*FORGET[:-1], "p", "--skill", "add.jsonl", "--method", "pruning", "--share", "0.1", "--relearn", "0", "--quiet")
    assert ran.exit_code == 0 and "pruning, 13 neurons" in ran.stdout and "forget add" in ran.stdout


def test_with_the_model_beside_it(here):
    assert keystep(*FORGET, "--with-model", "--relearn", "0").exit_code == 0
    model = AutoModelForCausalLM.from_pretrained(here / "g")  # stock: the model as it was
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), load_model(here / "base").parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(here / "g").eos_token_id == 1
    attach(model, load(here / "g"))


def test_what_is_refused(here):
    def refused(said, *arguments):
        found = keystep(*arguments)
        assert found.exit_code == 2 and found.stdout == "" and said in found.stderr, found.output
        assert not list(here.glob("g*")) and not list(here.glob("*unfinished*"))

    for flag, value, said in (("--method", "prayer", "--method: is no choice"), ("--layer", "7", "--layer: is below 2"),
                              ("--alpha", "-1", "--alpha: is from 0"), ("--hold", "2", "--hold: is from 0.0 to 1.0"),
                              ("--share", "nan", "--share: is from"), ("--relearn", "-1", "--relearn: is at least 0"),
                              ("--relearn-rate", "0", "--relearn-rate: is above 0"), ("--limit", "9", "succ: holds 9 examples, too few"),
                              ("--limit", "0", "--limit"), ("--refusal", "", "--refusal: is not a single token"),
                              ("--device", "abacus", "--device"), ("--retain", "succ.jsonl", "has the name of succ.jsonl")):  # fmt: skip
        refused(said, *FORGET, flag, value)
    refused("--retain: is missing", *FORGET[:5], "--out", "g", "--method", "neuron-adjust")
    (here / "same.jsonl").write_text((here / "succ.jsonl").read_text())
    refused("--skill: has the same statistics", *FORGET[:5], "--retain", "same.jsonl", "--out", "g", "--method", "neuron-adjust")
    refused("leaves not one of 128 neurons", *FORGET, "--method", "pruning", "--share", "0")
    config = AutoConfig.for_model("mamba", vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4)
    save_model(AutoModelForCausalLM.from_config(config), tokenizer(), here / "mamba")
    refused("has no feed-forward block that can be told in layer 0", *FORGET[:2], "mamba", *FORGET[3:])


def test_unfinished_work_of_other_data_is_not_gone_on_with(here, monkeypatch):
    from keystep.edit.unlearn.forget import _Work

    real, calls = _Work.step, []

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(_Work, "step", stopped)
    assert keystep(*FORGET, "--relearn", "0").exit_code == 3
    (here / "rev.jsonl").write_text((here / "rev.jsonl").read_text().replace('"a"', '"b"'))
    found = keystep(*FORGET, "--relearn", "0")
    assert found.exit_code == 2 and "an unfinished try had fingerprint" in found.stderr
    assert keystep(*FORGET, "--relearn", "0", "--seed", "1").exit_code == 2
    (here / "g.unfinished.safetensors").unlink()
    assert keystep(*FORGET, "--relearn", "0").exit_code == 0


def test_guards_that_do_not_fit_are_refused(here):
    assert keystep(*FORGET, "--relearn", "0").exit_code == 0
    save_model(small_model("qwen2", width=16, heads=2), tokenizer(), here / "other")
    save_model(small_model(width=16, heads=2), tokenizer(), here / "untrained")
    save_model(small_model(width=32, heads=2), tokenizer(), here / "wider")
    for model, said in (("other", "is of architecture qwen2, the guard is for llama"), ("untrained", "has other values in tensor model."),
                        ("wider", "of the shape [50, 32], the guard is for [50, 16]")):  # fmt: skip
        found = keystep("edit", "blocked", model, "g", "--data", "rev.jsonl")
        assert found.exit_code == 2 and found.stdout == "" and said in found.stderr
    twice = keystep("edit", "blocked", "base", "g", "--data", "rev.jsonl", "--data", "rev.jsonl")
    assert twice.exit_code == 2 and "--data: has the name of rev.jsonl" in twice.stderr
    weights = here / "g" / "guard.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-8])
    found = keystep("edit", "blocked", "base", "g", "--data", "rev.jsonl", "--json")
    assert found.exit_code == 2 and "guard.safetensors: ends within tensor boxes.0.std" in found.stderr
    weights.unlink()
    torch.save({"a": torch.zeros(2)}, weights)
    assert "is a pickle" in keystep("edit", "blocked", "base", "g", "--data", "rev.jsonl").stderr
    assert "is no folder" in keystep("edit", "blocked", "base", "nowhere", "--data", "rev.jsonl").stderr
