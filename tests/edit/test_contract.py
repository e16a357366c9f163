"""What every method of `keystep.edit` owes, as commands, on two architectures: what it writes is loaded by stock transformers and does
there what it did here; the same seed gives the same; stopped work goes on; bad input exits 2 and leaves nothing; --json is one object.

A method is a `Case`: how to call it, and what stands afterwards. It gets a base, a model tuned from it, and data.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from keystep.cli import app
from keystep.edit.localize import Patch
from keystep.edit.unlearn import attach, load
from keystep.nn.checkpoint import load_model, save_model
from keystep.worlds.skills import World, small_model, tokenizer

ARCHITECTURES = ("llama", "gpt2")


@dataclass(frozen=True)
class Case:
    """`command` makes OUT of the checkpoints base/ and tuned/ and the examples data.jsonl (`flag`) and other.jsonl, all in the folder it
    runs in, and takes --seed and --json; `use` gives the model that OUT makes of the base, and `stock` the same by other programs, from
    what was written. A method that only prepares, or leaves logits alone, (`keeps`) makes a model that does what the base did."""

    name: str
    command: tuple[str, ...]
    use: Callable[[Path], Any]
    stock: Callable[[Path], Any]
    steps: str  # the function whose calls are the steps of the work
    stop: int = 12  # the call that is stopped
    keeps: bool = False
    flag: str = "--data"


def _patched(out: Path) -> Any:
    model = load_model(out.parent / "base")
    Patch.load(out).apply(model)
    return model


def _grafted(out: Path) -> Any:
    folder = out.with_name(f"{out.name}-grafted")
    assert keystep("edit", "graft", out.parent / "base", out, "--out", folder).exit_code == 0
    return AutoModelForCausalLM.from_pretrained(folder)


def _adapted(out: Path) -> Any:
    return PeftModel.from_pretrained(load_model(out / "base"), out)


def _guarded(out: Path) -> Any:
    model = load_model(out.parent / "base")
    attach(model, load(out))
    return model


def _guarded_alone(out: Path) -> Any:
    """By the program that lies in the folder, which knows nothing of keystep."""
    spec = importlib.util.spec_from_file_location("generate", out / "custom_generate" / "generate.py")
    assert spec is not None and spec.loader is not None
    sys.modules["generate"] = program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    del sys.modules["generate"]
    model, guard = AutoModelForCausalLM.from_pretrained(out.parent / "base"), program.read(out)
    assert program.misfit(guard, model) == ""
    program.Attached(model, guard)
    return model


_FORGET = ("edit", "forget", "base", "--skill", "data.jsonl", "--retain", "other.jsonl", "--relearn", "2", "--out", "OUT", "--method")
CASES = (
    Case("localize", ("edit", "locate", "base", "tuned", "--data", "data.jsonl", "--steps", "14", "--sparsity", "0.2", "--out", "OUT"),
         _patched, _grafted, "keystep.edit.localize.graft._Graft.step"),
    Case("corda", ("edit", "adapt", "base", "--data", "data.jsonl", "--mode", "instruction", "--rank", "3", "--out", "OUT"),
         _adapted, AutoPeftModelForCausalLM.from_pretrained, "keystep.edit.corda.adapter.decompose", 8, True),
    Case("key-space", (*_FORGET, "key-space"), _guarded, _guarded_alone, "keystep.edit.unlearn.forget._Work.step", 5, True, "--skill"),
    Case("neuron-adjust", (*_FORGET, "neuron-adjust", "--share", "0.3"), _guarded, _guarded_alone,
         "keystep.edit.unlearn.forget._Work.step", 6, False, "--skill"),
)  # fmt: skip
EVERY = pytest.mark.parametrize(("case", "architecture"), [pytest.param(c, a, id=f"{c.name}-{a}") for c in CASES for a in ARCHITECTURES])


def keystep(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run(case: Case, out: str, *more: Any) -> Any:
    return keystep(*(out if word == "OUT" else word for word in case.command), *more)


@pytest.fixture
def here(tmp_path, monkeypatch, architecture):
    monkeypatch.chdir(tmp_path)
    base, tuned = (small_model(architecture, width=16, heads=2) for _ in range(2))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if ".layers." in name or ".h." in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    save_model(base, tokenizer(), tmp_path / "base")
    save_model(tuned, tokenizer(), tmp_path / "tuned")
    for name, skill in (("data", "succ"), ("other", "rev")):
        rows = [json.dumps(problem._asdict()) for problem in World(5).drawn(skill, "train", 40)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    return tmp_path


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokenizer()(">abcd=bcde")["input_ids"]])).logits


@EVERY
def test_stock_transformers_does_what_was_done_here(case, here):
    before = logits(load_model(here / "base"))
    found = run(case, "one", "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["out"] == "one"
    mine = logits(case.use(here / "one"))
    assert torch.equal(mine, logits(case.stock(here / "one")))
    assert torch.allclose(mine, before, atol=1e-5) if case.keeps else not torch.equal(mine, before)
    assert torch.equal(logits(load_model(here / "base")), before)  # what was given is as it was


@EVERY
def test_the_same_seed_gives_the_same(case, here):
    for out, seed in (("one", 3), ("two", 3)):
        assert run(case, out, "--seed", seed, "--quiet").exit_code == 0
    assert torch.equal(*(logits(case.use(here / out)) for out in ("one", "two")))


@EVERY
def test_stopped_work_goes_on(case, here, monkeypatch):
    import importlib

    module, name, method = case.steps.rsplit(".", 2)
    owner = getattr(importlib.import_module(module), name)
    real, calls = getattr(owner, method), []

    def counted(*arguments):
        calls.append(1)
        if len(calls) == whole + case.stop:
            raise KeyboardInterrupt
        return real(*arguments)

    whole = 10**6
    monkeypatch.setattr(owner, method, counted)
    assert run(case, "whole", "--seed", 1).exit_code == 0
    whole = len(calls)
    stopped = run(case, "cut", "--seed", 1)
    assert stopped.exit_code == 3 and not (here / "cut").exists() and "the same command goes on" in stopped.stderr
    assert run(case, "cut", "--seed", 1).exit_code == 0
    assert len(calls) - whole < case.stop + whole
    assert torch.equal(*(logits(case.use(here / out)) for out in ("whole", "cut")))
    assert not list(here.glob("*unfinished*"))


@EVERY
def test_bad_input(case, here, architecture):
    def refused(said, *more):
        found = run(case, "out", *more)
        assert found.exit_code == 2 and found.stdout == "" and not list(here.glob("*out*")), found.output
        assert said in found.stderr, found.stderr

    (here / "bad.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": 1}\n')
    refused("bad.jsonl line 2", case.flag, "bad.jsonl")
    refused("cannot be read", case.flag, "none.jsonl")
    weights = here / "base" / "model.safetensors"
    content = weights.read_bytes()
    torch.save({"a": torch.zeros(3)}, weights)
    refused("is a pickle", "--json")
    weights.write_bytes(content[:-10])
    refused("ends within tensor")
    weights.write_bytes(content)
    (here / "base" / "tokenizer_config.json").rename(here / "hidden")
    refused("holds no tokenizer")
    (here / "hidden").rename(here / "base" / "tokenizer_config.json")
    save_model(small_model(architecture, width=16, heads=2, inner=8), tokenizer(), here / "small")
    config = here / "base" / "config.json"
    other = config.read_text()
    config.write_text((here / "small" / "config.json").read_text())
    refused("tensor ")
    config.write_text(other)
    (here / "taken").write_text("mine")
    assert run(case, "taken").exit_code == 2 and (here / "taken").read_text() == "mine"
    assert run(case, "out").exit_code == 0
