"""CorDA: the sheet's known answers and identities, and PEFT's own initialisation beside it."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from torch import nn
from typer.testing import CliRunner

from keystep.cli import app
from keystep.edit.corda import (
    Corda,
    Covariance,
    adapt,
    batches,
    components,
    covariances,
    decompose,
    linear_modules,
    regularised,
    sequences,
    to_lora,
)
from keystep.edit.corda.covariance import _Inputs
from keystep.errors import BadInput, ChangedWork
from keystep.nn.checkpoint import load_model, save_model
from keystep.nn.examples import Example, Examples
from keystep.worlds.skills import ARCHITECTURES, World, small_model, tokenizer

WORLD = World(5)
MODES = ("knowledge", "instruction")
PEFT = {"knowledge": "kpm", "instruction": "ipm"}
W2 = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
C2 = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)


def keystep(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def examples(n=16, skills=("succ", "add", "fact")):
    return Examples([Example(*p) for skill in skills for p in WORLD.drawn(skill, "train", n)], tokenizer())


def tokens(n=16):
    return [row.tokens for row in examples(n).rows]


def tiny(architecture="llama", **more):
    return small_model(architecture, **({"width": 16, "heads": 2} | more))


def out_of(model, batch):
    with torch.no_grad():
        return model(**batch).logits[batch["attention_mask"].bool()]


def drawn(seed, d_out, d_in):
    draw = torch.Generator().manual_seed(seed)
    X = torch.randn(d_in, 2 * d_in, generator=draw, dtype=torch.float64)
    return torch.randn(d_out, d_in, generator=draw, dtype=torch.float64), X @ X.T


def product(W, C, rank, mode, scaling=1.0, damping=0.01):
    found = decompose(W, regularised(C, damping), rank, mode, scaling)
    return found.B @ found.A


def test_the_axis_that_the_sample_uses():
    W, C = torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([1.0, 9.0]))
    for damping in (0.01, 1.3):
        assert torch.allclose(product(W, C, 1, "instruction", damping=damping), torch.diag(torch.tensor([0.0, 1.0])), atol=1e-6)
        assert torch.allclose(product(W, C, 1, "knowledge", damping=damping), torch.diag(torch.tensor([2.0, 0.0])), atol=1e-6)
    assert torch.allclose(product(W, torch.eye(2), 1, "instruction"), torch.diag(torch.tensor([2.0, 0.0])), atol=1e-6)


def test_two_by_two_by_hand():
    C = regularised(C2)
    assert C.matrix.tolist() == [[2.025, 1.0], [1.0, 3.025]] and C.damping == 0.01
    assert components(W2, C)[1].tolist() == pytest.approx([19.878451, 0.515697], abs=1e-6)
    first, last = product(W2, C2, 1, "instruction"), product(W2, C2, 1, "knowledge")
    assert first.flatten().tolist() == pytest.approx([1.283045, 1.821539, 2.873623, 4.079681], abs=1e-6)
    assert last.flatten().tolist() == pytest.approx([-0.283045, 0.178461, 0.126377, -0.079681], abs=1e-6)
    assert torch.allclose(first + last, W2)
    plain = product(W2, torch.eye(2, dtype=torch.float64), 1, "instruction")
    assert plain.flatten().tolist() == pytest.approx([1.273574, 1.807207, 2.878979, 4.085286], abs=1e-6)


def test_the_scale_of_the_covariance_moves_a_and_b_but_not_their_product():
    for scale, norms in ((1, (1.225731, 4.458526)), (100, (0.122573, 44.585256))):
        found = decompose(W2, regularised(scale * C2), 1, "instruction")
        assert (float(found.A.norm()), float(found.B.norm())) == pytest.approx(norms, abs=1e-5)
        assert torch.allclose(found.B @ found.A, product(W2, C2, 1, "instruction"))


@settings(max_examples=30)
@given(st.integers(0, 999), st.integers(1, 7), st.integers(1, 7), st.data())
def test_identities_of_the_decomposition(seed, d_out, d_in, data):
    W, C = drawn(seed, d_out, d_in)
    R = min(d_out, d_in)
    rank = data.draw(st.integers(1, R))
    fixed = regularised(C)
    U, S, V = components(W, fixed)
    assert torch.allclose(U * S @ V, W)
    for mode in MODES:
        delta = product(W, C, rank, mode)
        assert int(torch.linalg.matrix_rank(delta)) == rank
        for scaling in (0.5, 2.0):
            assert torch.allclose(scaling * product(W, C, rank, mode, scaling), delta)
    if rank < R:
        assert torch.allclose(product(W, C, rank, "knowledge") + product(W, C, R - rank, "instruction"), W)
        left = product(W, C, R - rank, "instruction")  # W without its last components: Eckart-Young in the metric of C'
        error = torch.linalg.norm((W - left) @ fixed.matrix)
        assert float(error) == pytest.approx(float(S[R - rank :].square().sum().sqrt()), rel=1e-6)
        other = decompose(W, regularised(torch.eye(d_in, dtype=torch.float64)), R - rank, "instruction")
        assert float(torch.linalg.norm((W - other.B @ other.A) @ fixed.matrix)) >= float(error) * (1 - 1e-9)


def test_without_a_covariance_it_is_the_plain_svd():
    W, _ = drawn(3, 5, 7)
    U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    assert torch.allclose(product(W, torch.eye(7, dtype=torch.float64), 2, "instruction"), U[:, :2] * S[:2] @ Vt[:2])
    assert torch.allclose(product(W, torch.eye(7, dtype=torch.float64), 2, "knowledge"), U[:, -2:] * S[-2:] @ Vt[-2:])


def test_the_damping_is_doubled_until_the_inverse_is_one():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(64, 2, generator=draw)
    found = regularised(x @ x.T, damping=1e-9)
    assert found.damping > 1e-9 and math.log2(found.damping / 1e-9) == round(math.log2(found.damping / 1e-9))
    assert float(torch.dist(found.matrix @ found.inverse, torch.eye(64))) < 0.05
    for bad in (torch.zeros(3, 3), torch.full((3, 3), math.nan), torch.full((3, 3), math.inf)):
        with pytest.raises(BadInput, match=r"reads only zeros.*down"):
            regularised(bad, name="down")


def test_padding_is_not_counted_and_sequences_are_divided_by_their_own_largest():
    x, mask = torch.randn(3, 4, 5), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    x[~mask] = 1e6
    for normalise in ("max", "none"):
        batched, single = Covariance(["m"]), Covariance(["m"])
        batched.add(x, mask, normalise)
        for row, own in zip(x, mask, strict=True):
            single.add(row[own], None, normalise)
        wanted = sum(row[own].T @ row[own] / (row[own].max() ** 2 if normalise == "max" else 1) for row, own in zip(x, mask, strict=True))
        assert torch.allclose(batched.total, wanted, rtol=1e-4) and torch.allclose(single.total, wanted, rtol=1e-4)
        assert (batched.sequences, batched.tokens) == (single.sequences, single.tokens) == (3, 9)
        flat = Covariance(["m"])
        flat.add(x.reshape(12, 5), mask, normalise)
        assert torch.equal(flat.total, batched.total)
    with pytest.raises(BadInput, match="padding cannot be told"):
        Covariance(["m"]).add(x[0], mask, "none")
    with pytest.raises(BadInput, match="no input above 0"):
        Covariance(["m"]).add(torch.zeros(1, 4, 5), None, "max")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layer_by_layer_is_the_same_as_all_at_once(architecture):
    model = tiny(architecture, layers=3)
    before = copy.deepcopy(model.state_dict())
    names, sample = list(linear_modules(model)), batches(tokens(), 8)
    with _Inputs(model, names, "max") as inputs, torch.no_grad():
        for batch in sample:
            inputs.begin(batch)
            model(**batch)
    at_once = {each.modules[0]: each for each in inputs.found()}
    layers = list(covariances(model, names, sample))
    assert len(layers) == 3
    for each in (found for layer in layers for found in layer):
        other = at_once.pop(each.modules[0])
        assert torch.equal(each.total, other.total) and each.modules == other.modules and each.tokens == other.tokens
    assert not at_once and all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in model.modules())
    later = list(covariances(model, names, sample, begin=2))
    assert len(later) == 1 and torch.equal(later[0][0].total, layers[2][0].total)


def test_modules_that_read_the_same_share_one_covariance():
    shared = [
        [name.rsplit(".", 1)[-1] for name in each.modules]
        for each in next(covariances(tiny(), list(linear_modules(tiny())), batches(tokens(), 8)))
    ]
    assert shared == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_equal_to_pefts_own(architecture, mode):
    rows, alpha = tokens(24), 6
    mine = adapt(tiny(architecture), batches(rows, 7), Corda(mode=mode, rank=3, alpha=alpha))
    theirs = tiny(architecture)
    config = LoraConfig(
        r=3, lora_alpha=alpha, target_modules=sorted(mine.model.peft_config["default"].target_modules), init_lora_weights="corda",
        corda_config=CordaConfig(corda_method=PEFT[mode]), fan_in_fan_out=architecture == "gpt2", task_type="CAUSAL_LM",
    )  # fmt: skip

    def every_sequence():
        for row in rows:  # PEFT wants them one at a time
            theirs(torch.tensor([row]))

    preprocess_corda(theirs, config, run_model=every_sequence)
    theirs = get_peft_model(theirs, config)
    own, its = mine.model.state_dict(), theirs.state_dict()
    assert own.keys() == its.keys()
    for name, tensor in its.items():
        if ".lora_A." in name:
            other = name.replace(".lora_A.", ".lora_B.")
            assert torch.allclose(own[other] @ own[name], its[other] @ tensor, atol=1e-5), name
            assert torch.allclose(own[name].norm(dim=1), tensor.norm(dim=1), rtol=1e-3), name
        elif ".lora_B." not in name:
            assert torch.allclose(own[name], tensor, atol=1e-5), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("mode", MODES)
def test_before_training_the_model_is_what_it_was(architecture, mode):
    model, sample = tiny(architecture), batches(tokens(), 8)
    before, weights = out_of(model, sample[0]), {name: module.weight.clone() for name, module in linear_modules(model).items()}
    for alpha in (None, 8):
        found = adapt(copy.deepcopy(model), sample, Corda(mode=mode, rank=4, alpha=alpha))
        assert torch.allclose(out_of(found.model, sample[0]), before, atol=1e-5)
        assert {name for name, p in found.model.named_parameters() if p.requires_grad} == {
            name for name in found.model.state_dict() if "lora_" in name
        }
        merged = found.model.merge_and_unload()
        for name, weight in weights.items():
            assert torch.allclose(merged.get_submodule(name).weight, weight, atol=1e-5)
        assert [row.module for row in found.rows] == list(weights) and all(row.damping == 0.01 for row in found.rows)


def test_a_half_precision_model_keeps_its_dtype():
    model, sample = tiny().to(torch.bfloat16), batches(tokens(), 8)
    before = out_of(model, sample[0])
    found = adapt(model, sample, Corda(rank=4, mode="instruction")).model
    assert found.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight.dtype == torch.bfloat16
    assert torch.allclose(out_of(found, sample[0]).float(), before.float(), atol=0.02)


def test_any_module_without_layers_of_a_config():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 3)

        def forward(self, x, attention_mask=None):
            return self.second(torch.relu(self.first(x)))

    torch.manual_seed(0)
    model, x = Two(), torch.randn(5, 8, 6)
    before = model(x)
    found = adapt(model, [{"x": x}], Corda(rank=2, normalise="none"))
    assert torch.allclose(found.model(x), before, atol=1e-5) and [row.module for row in found.rows] == ["first", "second"]
    with pytest.raises(BadInput, match="module second has only 3 components"):
        adapt(Two(), [{"x": x}], Corda(rank=4))


def test_the_sample():
    data = examples(8, ("succ",))
    prompts, whole = sequences(data, Corda(samples=5)), sequences(data, Corda(samples=5, mode="instruction"))
    assert len(prompts) == len(whole) == 5 and all(b[: len(a)] == a and len(b) == len(a) + 5 for a, b in zip(prompts, whole, strict=True))
    assert sequences(data, Corda(samples=5, seed=1)) != prompts == sequences(data, Corda(samples=5))
    windows = sequences(data, Corda(samples=30, length=20, part="whole"))
    assert len(windows) == 30 and all(len(row) == 20 for row in windows)
    with pytest.raises(BadInput, match="has 48 tokens in all"):
        sequences(data, Corda(length=49))


@pytest.mark.parametrize(
    "bad",
    [{"mode": "kpm"}, {"rank": 0}, {"alpha": 0}, {"normalise": "x"}, {"damping": 0.0}, {"damping": math.nan}, {"length": 0}, {"seed": -1}],
)
def test_bad_settings(bad):
    with pytest.raises(BadInput, match=next(iter(bad))):
        Corda(**bad)


def test_what_cannot_be_taken_apart_is_named():
    model, sample = tiny(), batches(tokens(4), 4)
    for change, said in (({"targets": ("c_attn",)}, "choose of down_proj"), ({"rank": 17}, "has only 16 components")):
        with pytest.raises(BadInput, match=said):
            adapt(model, sample, Corda(**change))
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(BadInput, match=r"shares its weight with .*layers\.0\.mlp\.up_proj"):
        adapt(model, sample)
    quantised = tiny()
    quantised.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.zeros(64, 16, dtype=torch.int8), requires_grad=False)
    with pytest.raises(BadInput, match=r"int8.*up_proj"):
        adapt(quantised, sample)


def test_unfinished_work_of_other_settings_is_refused(tmp_path):
    state, sample = tmp_path / "s.safetensors", batches(tokens(4), 4)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(tiny(), sample, Corda(rank=2), state=state, tick=stop)
    with pytest.raises(ChangedWork, match="rank"):
        adapt(tiny(), sample, Corda(rank=3), state=state)
    ticks = []
    again = adapt(tiny(), sample, Corda(rank=2), state=state, tick=lambda: ticks.append(1))
    undisturbed = adapt(tiny(), sample, Corda(rank=2))
    assert len(ticks) == 1 and again.rows == undisturbed.rows
    assert all(torch.equal(a, b) for a, b in zip(again.model.state_dict().values(), undisturbed.model.state_dict().values(), strict=True))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(tiny(), tokenizer(), tmp_path / "base")
    rows = [json.dumps(problem._asdict()) for problem in WORLD.drawn("succ", "train", 40)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    return tmp_path


def trained(here, out="adapted"):
    """The adapter after a few steps of training with stock PEFT, saved to trained/."""
    model = AutoPeftModelForCausalLM.from_pretrained(here / out, is_trainable=True)
    batch = batches(tokens(4), 12)[0]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(here / "trained")
    return model, batch


@pytest.mark.parametrize("alpha", [4, 8])
def test_trained_and_brought_back_to_the_base(here, alpha):
    assert keystep("edit", "adapt", "base", "--data", "data.jsonl", "--rank", 4, "--alpha", alpha, "--out", "adapted").exit_code == 0
    model, batch = trained(here)
    found = keystep("edit", "to-lora", "adapted", "trained", "--out", "plain", "--json")
    assert found.exit_code == 0 and json.loads(found.stdout) == {"out": "plain", "rank": 8}
    plain = AutoPeftModelForCausalLM.from_pretrained(here / "plain")  # on the model as it was
    assert torch.allclose(out_of(plain, batch), out_of(model, batch), atol=1e-4)
    assert not torch.allclose(out_of(plain, batch), out_of(load_model(here / "base"), batch), atol=1e-3)
    model.save_pretrained(here / "pefts", path_initial_model_for_weight_conversion=str(here / "adapted"))
    theirs = PeftModel.from_pretrained(load_model(here / "base"), here / "pefts")
    assert torch.equal(out_of(theirs, batch), out_of(plain, batch))


def test_adapters_that_do_not_belong_together_are_named(here):
    for rank in (2, 3):
        assert keystep("edit", "adapt", "base", "--data", "data.jsonl", "--rank", rank, "--out", f"r{rank}").exit_code == 0
    assert keystep("edit", "adapt", "base", "--data", "data.jsonl", "--rank", 2, "--target", "q_proj", "--out", "q").exit_code == 0
    for other, said in (("r3", "r differs: 2 before, 3 after"), ("q", "tensor base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"),
                        ("base", "has no adapter_config.json")):  # fmt: skip
        found = keystep("edit", "to-lora", "r2", other, "--out", "plain")
        assert found.exit_code == 2 and said in found.stderr and not (here / "plain").exists(), found.output
    weights = here / "r2" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(BadInput, match="ends within tensor"):
        to_lora(here / "r2", here / "r2", here / "plain")
    for text in ("{", "[]", "{}"):
        (here / "r3" / "corda.json").write_text(text)
        found = keystep("edit", "to-lora", "r3", "r3", "--out", "plain")
        assert found.exit_code == 2 and "corda.json: does not tell the model" in found.stderr and not (here / "plain").exists()
    found = keystep("edit", "to-lora", "r3", "r3", "--model", "bsae", "--out", "plain")
    assert found.exit_code == 2 and "model: is no folder" in found.stderr and not (here / "plain").exists()
    assert keystep("edit", "to-lora", "r3", "r3", "--model", "base", "--out", "plain").exit_code == 0


def test_refusals_of_the_command(here):
    for more, said in ((("--mode", "kpm"), "choose of knowledge, instruction"), (("--rank", "17"), "has only 16 components"),
                       (("--target", "nothing"), "choose of"), (("--rank", "x"), "not a whole number"), (("--device", "x"), "--device"),
                       (("--length", "100000"), "tokens in all"),
                       (("--seed", "-1"), "--seed: is at least 0"), (("--limit", "0"), "limit: is at least 1")):  # fmt: skip
        found = keystep("edit", "adapt", "base", "--data", "data.jsonl", "--out", "out", *more)
        assert found.exit_code == 2 and said in found.stderr and found.stdout == "" and not list(here.glob("*out*")), found.output


def test_too_little_data_is_said(here):
    few = keystep("edit", "adapt", "base", "--data", "data.jsonl", "--limit", "3", "--out", "few")
    assert few.exit_code == 0 and "has 64 inputs and saw 18 tokens" in few.stderr
    about = json.loads((here / "few" / "corda.json").read_text())
    assert about["settings"]["rank"] == 16 and {row["damping"] for row in about["modules"]} == {0.01}
