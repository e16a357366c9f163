"""`keystep edit graft`, `purge`, `keep`, `overlap`: what comes out is a checkpoint, and models that do not fit are named."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from keystep.cli import app
from keystep.edit.localize import patch_of
from keystep.edit.localize.graft import in_scope
from keystep.nn.checkpoint import checkpoint_tensors, fingerprint, load_model, save_model
from keystep.worlds.skills import World, small_model, tokenizer


def keystep(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A base, a model tuned from it, and two patches of disjoint places."""
    monkeypatch.chdir(tmp_path)
    base, tuned = (small_model(width=16, heads=2) for _ in range(2))
    draw = torch.Generator().manual_seed(0)
    uniform = {}
    for name, parameter in in_scope(tuned, "layers").items():
        parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
        uniform[name] = torch.rand(parameter.shape, generator=draw)
    save_model(base, tokenizer(), tmp_path / "base")
    save_model(tuned, tokenizer(), tmp_path / "tuned")
    own, its = dict(base.named_parameters()), dict(tuned.named_parameters())
    print_ = fingerprint(checkpoint_tensors(tmp_path / "base"))
    for name, low, high in (("a", 0.0, 0.3), ("b", 0.3, 0.6), ("ab", 0.15, 0.45)):
        masks = {key: (each >= low) & (each < high) for key, each in uniform.items()}
        patch_of(own, its, masks, fingerprint=print_, name=name).save(tmp_path / f"{name}.safetensors")
    return tmp_path


def weights(folder):
    return {name: parameter.detach() for name, parameter in load_model(folder).named_parameters()}


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def test_graft_and_purge_are_each_others_way_back(here):
    found = keystep("edit", "graft", "base", "a.safetensors", "b.safetensors", "--out", "both", "--json")
    assert found.exit_code == 0 and set(json.loads(found.stdout)["patches"]) == {"a", "b"}
    assert keystep("edit", "purge", "both", "a.safetensors", "b.safetensors", "--out", "back").exit_code == 0
    assert same(weights(here / "back"), weights(here / "base")) and not same(weights(here / "both"), weights(here / "base"))
    assert fingerprint(checkpoint_tensors(here / "back")) == fingerprint(checkpoint_tensors(here / "base"))


def test_keep_is_graft_where_the_values_are_the_tuned_models(here):
    for out, command in (("g", ("graft", "base")), ("k", ("keep", "base", "tuned"))):
        assert keystep("edit", *command, "a.safetensors", "--out", out).exit_code == 0
    assert same(weights(here / "g"), weights(here / "k"))
    purged = keystep("edit", "purge", "tuned", "a.safetensors", "--out", "p")
    assert purged.exit_code == 0 and "set back: a (" in purged.stdout
    base, tuned, grafted, left = (weights(here / name) for name in ("base", "tuned", "g", "p"))
    for name in base:  # what is grafted and what purging leaves make the tuned model
        assert torch.equal(torch.where(grafted[name] != base[name], grafted[name], left[name]), tuned[name])


def test_overlap(here):
    found = json.loads(keystep("edit", "overlap", "a.safetensors", "b.safetensors", "ab.safetensors", "--json").stdout)
    share = {(row["first"], row["second"]): row["overlap"] for row in found["overlaps"]}
    assert share["a", "b"] == share["b", "a"] == 0 and share["a", "ab"] == pytest.approx(0.5, abs=0.05)
    assert {row["layer"] for row in found["histograms"]["a"]} == {0, 1}
    shown = keystep("edit", "overlap", "a.safetensors", "ab.safetensors", "--picture", "p.svg").stdout
    assert "chance 29." in shown and (here / "p.svg").read_text().startswith("<svg")
    alone = keystep("edit", "overlap", "a.safetensors")
    assert alone.exit_code == 2 and "give two patches or more" in alone.stderr


def test_patches_of_different_models_have_no_overlap(here):
    for architecture, width, said in (("gpt2", 16, "have no tensor in common"), ("llama", 32, "differ in tensor model.layers.0.")):
        models = [small_model(architecture, width=width, heads=2, seed=seed) for seed in (0, 1)]
        one, two = (dict(model.named_parameters()) for model in models)
        patch_of(one, two, {name: torch.ones_like(tensor).bool() for name, tensor in one.items() if ".0." in name}, name="o").save(
            here / f"{architecture}.safetensors"
        )
        found = keystep("edit", "overlap", "a.safetensors", f"{architecture}.safetensors")
        assert found.exit_code == 2 and said in found.stderr and found.stdout == "", found.output


def test_a_patch_of_another_base_is_refused(here):
    save_model(small_model(width=16, heads=2, seed=4), tokenizer(), here / "other")
    found = keystep("edit", "graft", "other", "a.safetensors", "--out", "out")
    assert found.exit_code == 2 and "holds neither the base's values nor the patch's" in found.stderr
    moved = load_model(here / "base")
    with torch.no_grad():
        moved.lm_head.weight += 1
    save_model(moved, tokenizer(), here / "moved")
    found = keystep("edit", "graft", "moved", "a.safetensors", "--out", "out")
    assert found.exit_code == 2 and "was made for another base" in found.stderr
    found = keystep("edit", "graft", "base", "base/model.safetensors", "--out", "out")
    assert found.exit_code == 2 and "is no patch" in found.stderr and not (here / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "qwen2"}, "architecture differs"),
        ({"inner": 32}, "the shape of tensor model.layers.0.mlp.down_proj.weight differs: [16, 64]"),
    ],
)
def test_models_that_do_not_fit_are_named(here, change, said):
    rows = [json.dumps(problem._asdict()) for problem in World(5).drawn("succ", "train", 10)]
    (here / "d.jsonl").write_text("\n".join(rows))
    save_model(small_model(**({"width": 16, "heads": 2} | change)), tokenizer(), here / "other")
    for command in (("locate", "base", "other", "--data", "d.jsonl"), ("keep", "base", "other", "a.safetensors")):
        found = keystep("edit", *command, "--out", "out")
        assert found.exit_code == 2 and said in found.stderr and not (here / "out").exists()
    for flag, value in (("--sparsity", "0"), ("--sparsity", "2"), ("--start", "nowhere"), ("--optimizer", "no"), ("--device", "abacus")):
        found = keystep("edit", "locate", "base", "tuned", "--data", "d.jsonl", "--out", "out", flag, value)
        assert found.exit_code == 2 and found.stdout == "", (flag, found.output)


def data(here, n=20):
    rows = [json.dumps(problem._asdict()) for problem in World(5).drawn("succ", "train", n)]
    (here / "d.jsonl").write_text("\n".join(rows))


def test_the_report_and_the_picture_of_where_it_is(here):
    data(here)
    asked = ("locate", "base", "tuned", "--data", "d.jsonl", "--steps", 1, "--sparsity", 0.1)
    found = keystep("edit", *asked, "--out", "p.safetensors", "--picture", "where.svg", "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    drawn = (here / "where.svg").read_text()
    assert drawn.startswith("<svg") and told["picture"] == "where.svg"
    assert sum(row["chosen"] for row in told["histogram"]) == told["parameters"] and told["density"] <= 0.1
    assert set(told["report"]) == {"base", "tuned", "graft"} and told["report"]["tuned"]["agreement"] == 1
    assert all(0 <= each[key] <= 1 for each in told["report"].values() for key in ("accuracy", "ece", "agreement"))
    shown = keystep("edit", "overlap", "p.safetensors", "p.safetensors", "--json")
    assert json.loads(shown.stdout)["histograms"]["p"] == told["histogram"]


def test_weights_that_are_no_sound_patch_are_refused_by_content(here):
    sound = (here / "a.safetensors").read_bytes()
    length = int.from_bytes(sound[:8], "little")
    header = json.loads(sound[8 : 8 + length])
    names = sorted((name for name in header if name != "__metadata__"), key=lambda name: header[name]["data_offsets"])
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
    text = json.dumps(header).encode()
    torch.save({"a": torch.zeros(2)}, here / "pickle.pt")
    overlapping = len(text).to_bytes(8, "little") + text + sound[8 + length :]
    cases = (
        (sound[:-3], "ends within tensor"),
        (overlapping, "tensor"),
        ((here / "pickle.pt").read_bytes(), "is a pickle"),
        (b"", "is no whole"),
    )
    for content, said in cases:
        (here / "bad.safetensors").write_bytes(content)
        for command in (
            ("graft", "base", "bad.safetensors"),
            ("purge", "tuned", "bad.safetensors"),
            ("keep", "base", "tuned", "bad.safetensors"),
        ):
            found = keystep("edit", *command, "--out", "out")
            assert found.exit_code == 2 and said in found.stderr and "bad.safetensors" in found.stderr, found.output
            assert not (here / "out").exists()
        found = keystep("edit", "overlap", "a.safetensors", "bad.safetensors")
        assert found.exit_code == 2 and said in found.stderr


def test_other_tokenizers_and_dtypes_are_named(here):
    data(here)
    save_model(load_model(here / "tuned").bfloat16(), tokenizer(), here / "half")
    save_model(load_model(here / "tuned"), tokenizer(), here / "spelt")
    file = here / "spelt" / "tokenizer.json"
    table = json.loads(file.read_text())
    words = table["model"]["vocab"]
    words["x"], words["y"] = words["y"], words["x"]
    file.write_text(json.dumps(table))
    for other, said in (("half", "the dtype of tensor"), ("spelt", "the tokenizer's number of 'x' differs")):
        for command in (("locate", "base", other, "--data", "d.jsonl"), ("keep", "base", other, "a.safetensors")):
            found = keystep("edit", *command, "--out", "out")
            assert found.exit_code == 2 and said in found.stderr and not (here / "out").exists(), found.output
