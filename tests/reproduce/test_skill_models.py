"""The reproductions on models of the skill-world: their parts by hand, and the whole of them with hardly any training, to see that
everything that is measured reaches the report, the tables and the picture."""

from __future__ import annotations

import json
from statistics import mean

import pytest
import torch

from keystep.edit.corda import components
from keystep.nn.examples import judge
from keystep.reproduce import _skill_world, corda, skill_localization
from keystep.reproduce._skill_world import Base, examples
from keystep.worlds.skills import World, small_model

WORLD = World(5)


def tiny():
    return small_model(width=16, heads=2)


def rows(skill="rev", n=12):
    return [row.tokens for row in examples(WORLD.drawn(skill, "train", n)).rows]


def parts(model, metric):
    return {name: components(weight, metric[name]) for name, weight in corda._weights(model).items()}


def inputs_of(model, name, sample):
    """What a module reads, [sequences, length, d_in]."""
    seen = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model(torch.tensor(sample))
    hook.remove()
    return seen[0]


def test_nothing_left_out_is_the_model_and_everything_is_none():
    model, asked = tiny(), examples(WORLD.drawn("rev", "test", 20))
    before = judge(model, asked)
    for metric in (corda.plain(model), corda.by_asvd(model, rows()), corda.by_corda(model, rows())):
        again = judge(corda.truncated(model, parts(model, metric), 0), asked)
        assert again.loss == pytest.approx(before.loss, abs=1e-4)
        empty = corda.truncated(model, parts(model, metric), 16)
        assert all(not weight.any() for weight in corda._weights(empty).values())
    assert judge(model, asked).loss == before.loss


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"])
def test_each_order_is_the_best_one_by_its_own_measure(name):
    """Eckart-Young: no truncation to the same rank changes W M less, M being what the order multiplies W by."""
    model = tiny()
    metrics = {"plain": corda.plain(model), "asvd": corda.by_asvd(model, rows()), "corda": corda.by_corda(model, rows())}
    W = corda._weights(model)[name]
    cut = {order: corda._weights(corda.truncated(model, parts(model, metric), 6))[name] for order, metric in metrics.items()}
    for order, metric in metrics.items():
        errors = {other: float(((W - weight) @ metric[name].matrix).norm()) for other, weight in cut.items()}
        assert errors[order] == min(errors.values()) and sorted(errors.values())[1] > errors[order] * 1.001
        assert int(torch.linalg.matrix_rank(cut[order])) == 10


def test_the_scale_of_asvd_by_hand():
    model, sample = tiny(), rows(n=3)
    name = "model.layers.0.mlp.up_proj"
    X = inputs_of(model, name, sample)
    wanted = sum(x.abs().mean(0) for x in X) ** 0.5 + 1e-6
    found = corda.by_asvd(model, sample)[name]
    assert torch.allclose(found.matrix, wanted.diag()) and torch.allclose(found.matrix @ found.inverse, torch.eye(16), atol=1e-5)


def run_of(arm_rows, facts=0.8):
    return {"base": {"fact": facts}, "tuning": [
        {"arm": "LoRA", "rate": rate, "steps": steps, "after": {"fact": fact}, "facts_at": {str(level): fact for level in corda.LEVELS}}
        for rate, (steps, fact) in zip(corda.RATES, arm_rows, strict=True)
    ]}  # fmt: skip


def test_the_rate_is_chosen_among_those_that_reached_the_goal_at_every_seed():
    reached = [(None, 0.9), (200, 0.5), (100, 0.4), (40, 0.2), (30, 0.1)]
    other = [(150, 0.8), (250, 0.3), (90, 0.6), (44, 0.2), (None, 0.1)]
    runs = [run_of(reached), run_of(other)]
    kept, fast = corda.best(runs, "LoRA", "facts"), corda.best(runs, "LoRA", "steps")
    assert kept is not None and fast is not None
    assert kept["rate"] == corda.RATES[2] and kept["facts"] == [0.5, 0.75] and kept["steps"] == [100, 90]
    assert fast["rate"] == corda.RATES[3]
    assert corda.best([run_of([(None, 1.0)] * 5)], "LoRA", "steps") is None


def test_what_leaving_out_adds_to_the_loss():
    cut = [{"order": "CorDA", "sample": "fact", "skill": "fact", "dropped": dropped, "loss": 0.1 * dropped + 0.5}
           for dropped in (0, *corda.DROPPED)]  # fmt: skip
    assert corda.lost({"truncation": cut}, "CorDA", "fact", "fact") == pytest.approx(0.1 * mean(corda.DROPPED))


@pytest.mark.parametrize("arm", corda.ARMS)
def test_arms_begin_as_the_base(arm):
    model = tiny()
    samples = {skill: examples(WORLD.drawn(skill, "train", 16)) for skill in ("succ", "fact", "rev")}
    started, trained = corda._start(arm, model, samples, 0)
    batch = samples["rev"].batch(range(8))
    with torch.no_grad():
        before, now = (each(input_ids=batch.tokens, attention_mask=batch.attended).logits for each in (model, started))
    assert torch.allclose(before[batch.attended.bool()], now[batch.attended.bool()], atol=1e-4)
    assert trained and all(("lora" in name) == (arm != "all weights") for name in trained)


def reported(module, tmp_path):
    found = module.main(seeds=1)
    json.dumps(found.model_dump(mode="json"), allow_nan=False)
    assert found.seeds == [0] and found.held == all(found.measured["checks"].values())
    module.picture(found, tmp_path / "p.svg")
    assert (tmp_path / "p.svg").read_text().startswith("<svg")
    return found, module.tables(found)


@pytest.fixture
def little(monkeypatch):
    monkeypatch.setattr(_skill_world, "TESTED", 10)
    for module in (corda, skill_localization):
        monkeypatch.setattr(module, "TESTED", 10)
        monkeypatch.setattr(module, "cached_base", lambda base: small_model(width=base.width, heads=base.heads, seed=base.seed))
    return monkeypatch


def test_corda_from_end_to_end(little, tmp_path):
    little.setattr(corda, "Base", lambda seed=0: Base(seed=seed, entities=5))
    for name, value in (("MOST", 4), ("RATES", (1e-3,)), ("TRAINED", 64), ("VALIDATED", 10), ("GOAL", 0.0), ("LEVELS", (0.0,)),
                        ("SAMPLE", 16)):  # fmt: skip
        little.setattr(corda, name, value)
    found, text = reported(corda, tmp_path)
    assert {row["steps"] for run in found.measured["runs"] for row in run["tuning"]} == {corda.EVERY}  # the goal is reached at once
    assert all(arm in text for arm in corda.ARMS)
    for run in found.measured["runs"]:
        run["tuning"] = [{**row, "steps": None, "facts_at": {}} for row in run["tuning"]]  # where nothing reaches the goal
    found = corda.report(found.measured["runs"], 1.0, 1.0)
    text = corda.tables(found)
    corda.picture(found, tmp_path / "p.svg")
    assert found.measured["keeping"][corda.KEEP] is None and not found.held and "–" in text


def test_localization_from_end_to_end(little, tmp_path):
    bases = tuple(Base(width=16, heads=2, entities=5, seed=seed) for seed in range(3))
    little.setattr(skill_localization, "BASES", bases)
    for name, value in (("STEPS", 2), ("NOISY_STEPS", 2), ("TWO_STEPS", 2), ("TASK_STEPS", 2), ("TRAINED", 16), ("VALIDATED", 8),
                        ("MASK", {"steps": 2, "judged": 8}), ("GRID", (0.1, 0.2))):  # fmt: skip
        little.setattr(skill_localization, name, value)
    found, text = reported(skill_localization, tmp_path)
    run = found.measured["runs"][0]
    assert run["continual"]["old_skills"]["no graft"] == mean(run["old_skills"]["base"].values())
    assert {row["layer"] for row in run["places"]} == {0, 1} and "its own grafts" in text
