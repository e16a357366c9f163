"""The training of chains: what the loss sees, token weights, and folders that go in and come out."""

from __future__ import annotations

import json
import shutil
from random import Random

import pytest

from keystep.errors import BadInput
from keystep.solve.explore_execute.format import TAGS, chain

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from typer.testing import CliRunner  # noqa: E402

from keystep.cli import app  # noqa: E402
from keystep.nn import tuning  # noqa: E402
from keystep.nn.policy_gradient import clipped_loss, group_advantages  # noqa: E402
from keystep.nn.rollout import rows  # noqa: E402
from keystep.reproduce._ranked_arithmetic import untrained  # noqa: E402
from keystep.solve.explore_execute import data  # noqa: E402
from keystep.solve.explore_execute import train as training  # noqa: E402
from keystep.solve.explore_execute.data import Row, Tags, split  # noqa: E402
from keystep.solve.explore_execute.train import Settings, token_weights, train  # noqa: E402
from keystep.worlds.ranked_arithmetic import problem, read_plan, ruled_problem  # noqa: E402

PROBLEMS = [problem(Random(number), 3) for number in range(4)]
TAG = Tags(plan=90, plan_end=91, execution=92, execution_end=93, end=0)
SFT = {"rate": 5e-3, "steps": 150, "epochs": 1000, "batch": 4, "micro_batch": 4}
RL = {
    "rate": 1e-3,
    "questions": 2,
    "mini": 1,
    "warm_rollouts": 6,
    "warm_temperature": 0.7,
    "rollouts": 4,
    "response": 60,
    "micro_batch": 4,
    "save_every": 1,
}


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    torch.set_num_threads(1)
    return str(untrained(tmp_path_factory.mktemp("base") / "model", 0, width=32, layers=2, heads=2))


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    pairs = [{"question": p.question, "plan": p.plan(), "execution": p.execution()} for p in PROBLEMS]
    asked = [{"question": p.question, "answer": int(p.answer())} for p in PROBLEMS]
    for name, lines in (("pairs", pairs), ("asked", asked)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


@pytest.fixture(scope="session")
def trained(base, files, tmp_path_factory):
    """A model that knows four questions by heart."""
    out = tmp_path_factory.mktemp("trained") / "model"
    train(base, files / "pairs.jsonl", out, "sft", Settings(**SFT))
    return out


def weights(folder):
    return tuning.loaded(str(folder))[0].state_dict()


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# The world.


def test_an_order_and_its_execution():
    p = problem(Random(0), 5)
    assert read_plan(p.plan()) == p.order() and len(p.execution().splitlines()) == 5
    p = type(p)((4, 1, 2, 6, 3), "---*", "-*+", False)
    assert p.question == "-*+>4-a1-b2-c6*d3" and p.plan() == "1.c\n2.b\n3.a\n4.d"
    assert p.execution().splitlines()[0] == "1.c2-6=3;4-a1-b3*d3" and p.answer() == "4"
    assert p.answer([3, 0, 1, 2]) == str((((4 - 1) - 2) - 18) % 7)
    ruled = ruled_problem(Random(1), 4)
    assert ruled.question[0] in "PQR" and ruled.question[1:] == ruled.expression


# Known answers of the sheet.


def test_a_plan_weighs_lambda():
    assert torch.allclose(group_advantages(torch.tensor([1.0, 0, 0, 0]), 4), torch.tensor([1.5, -0.5, -0.5, -0.5]), atol=1e-4)
    expected = torch.tensor([0.7071, 0.7071, 0, -1.4142])
    assert torch.allclose(group_advantages(torch.tensor([1.0, 1, 2 / 3, 0]), 4), expected, atol=1e-4)
    prompts, responses = [[5, 90]], [[1, 2, 91, 92, 3, 93]]  # a plan of two tokens, an execution of four
    batch = rows(prompts, responses)
    advantage, ratio = torch.tensor([1.5]), torch.zeros(1, 7)
    for weight, expected in ((2.0, -2.0), (1.0, -1.5)):
        w = token_weights(batch, prompts, responses, TAG, weight)
        assert clipped_loss(ratio, ratio, advantage, batch.counted, weights=w).loss.item() == pytest.approx(expected)


def test_where_an_execution_begins():
    assert split([1, 2, 91, 92, 91], TAG) == 2 and split([1, 92, 3], TAG) == 1 and split([1, 2], TAG) is None
    batch = rows([[5, 90]] * 2, [[1, 2], [1, 91]])
    assert token_weights(batch, [[5, 90]] * 2, [[1, 2], [1, 91]], TAG, 3.0)[:, 1:].tolist() == [
        [3, 3],
        [3, 1],
    ]  # without a split all is plan


def test_lambda_of_one_is_plain_grpo_bit_for_bit(trained, files, tmp_path, monkeypatch):
    def moved(name, weight=1.0):
        log = train(str(trained), files / "asked.jsonl", tmp_path / name, "rl", Settings(**RL, warm_weight=weight, plan_weight=weight)).log
        assert any(0 < entry["reward"] < 1 for entry in log)
        return weights(tmp_path / name)

    weighted, more = moved("weighted"), moved("more", 2.0)
    plain = lambda *given, weights, **more: clipped_loss(*given, weights=None, **more)  # noqa: E731
    monkeypatch.setattr("keystep.nn.policy_gradient.clipped_loss", plain)
    assert same(weighted, moved("plain")) and not same(weighted, weights(trained)) and not same(weighted, more)


# What the loss sees.


def test_rows_as_tokens(trained):
    _, tokenizer = tuning.loaded(str(trained))
    tags, p = data.tags_of(tokenizer), PROBLEMS[0]
    row = Row(p.question, p.plan(), p.execution())
    whole = data.example(tokenizer, tags, p.question, row, "sft")
    counted = [token for token, label in zip(whole["input_ids"], whole["labels"], strict=True) if label >= 0]
    assert tokenizer.decode(whole["input_ids"]) == f"{p.question}{chain(p.plan(), p.execution())}<end>"
    assert tokenizer.decode(counted) == f"{p.plan()}</EXPLORATION><EXECUTION>{p.execution()}</EXECUTION><end>"
    plans = data.example(tokenizer, tags, p.question, row, "ef-sft")
    assert tokenizer.decode(plans["input_ids"]) == f"{p.question}<EXPLORATION>{p.plan()}</EXPLORATION>"
    assert tokenizer.decode([label for label in plans["labels"] if label >= 0]) == f"{p.plan()}</EXPLORATION>"
    hostile = data.example(tokenizer, tags, "1</EXPLORATION><EXPLORATION>2", row, "ef-sft")  # a question with tags in it
    assert tokenizer.decode([label for label in hostile["labels"] if label >= 0]) == f"{p.plan()}</EXPLORATION>"


def test_results_of_the_causal_way_are_read(tmp_path):
    pair = {"question": "Q", "plan": "1. add", "execution": "1. add: 7", "kept": True}
    line = {"row": 0, "ok": True, "correct": True, "result": {"answer": "7", "details": pair}}
    other = {**pair, "execution": "2. something"}
    lines = [line, {**line, "correct": None}, {**line, "correct": False}, {**line, "ok": False, "result": None}]
    lines += [{**line, "result": {"answer": "7", "details": {"question": "Q", "kept": False}}}]
    lines += [{**line, "result": {"answer": "7", "details": other}}]
    file = tmp_path / "q.results.jsonl"
    file.write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    assert data.load(file, "sft") == [Row("Q", "1. add", "1. add: 7")] * 2 + [Row("Q", "1. add", "2. something")]
    assert data.load(file, "sft", least_adherence=0.5) == [Row("Q", "1. add", "1. add: 7")] * 2
    assert data.load(file, "rl")[0] == Row("Q", answer="7")
    (tmp_path / "gsm8k.jsonl").write_text(json.dumps({"question": "Q", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"}))
    assert data.load(tmp_path / "gsm8k.jsonl", "rl") == [Row("Q", answer="7")]


# Folders.


def test_a_trained_model_is_solved_with(trained, tmp_path, monkeypatch):
    """Stock transformers loads it, and the solver gets the answers out of it over both phases."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert AutoModelForCausalLM.from_pretrained(trained).num_parameters() > 1000
    assert set(TAGS) <= AutoTokenizer.from_pretrained(trained).get_vocab().keys()
    assert not [file for file in trained.iterdir() if file.suffix in (".bin", ".pt", ".pkl", ".pth")]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.jsonl").write_text("".join(f"{json.dumps({'question': p.question, 'answer': p.answer()})}\n" for p in PROBLEMS))
    line = ["solve", "explore-execute", "--inputs", "q.jsonl", "--model", f"hf:{trained}", "--set", "tagged=true", "--json"]
    for way in ("one", "cluster"):
        more = ["--set", f"way={way}", "--set", "plans=4", "--set", "plan_temperature=0.2", "--set", "execution_tokens=80"]
        result = CliRunner().invoke(app, [*line, *more, "--results", f"{way}.jsonl"])
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["accuracy"] == 1
    found = json.loads((tmp_path / "one.jsonl").read_text().splitlines()[0])["result"]["details"]
    assert found["adherence"] == 1 and found["tokens"].keys() == {"explore", "execute", "total"}


def test_stopped_training_goes_on_and_ends_the_same(base, trained, files, tmp_path):
    class Stop(Exception):
        pass

    def stopping(at):
        def tell(stage, done, total, note):
            if done == at:
                raise Stop

        return tell

    settings = Settings(**SFT | {"steps": 8}, save_every=3)
    whole = train(base, files / "pairs.jsonl", tmp_path / "whole", "sft", settings)
    with pytest.raises(Stop):
        train(base, files / "pairs.jsonl", tmp_path / "out", "sft", settings, tell=stopping(5))
    assert not (tmp_path / "out").exists() and list((tmp_path / "out.unfinished").glob("checkpoint-3"))
    with pytest.raises(BadInput, match="another training stands unfinished"):
        train(base, files / "pairs.jsonl", tmp_path / "out", "sft", settings, seed=1)
    seen = []
    report = train(base, files / "pairs.jsonl", tmp_path / "out", "sft", settings, tell=lambda *told: seen.append(told[1]))
    assert seen == [4, 5, 6, 7, 8] and report == whole and same(weights(tmp_path / "out"), weights(tmp_path / "whole"))
    assert not (tmp_path / "out.unfinished").exists()
    assert train(base, files / "pairs.jsonl", tmp_path / "out", "sft", settings, tell=stopping(1)) == report  # it is there already
    with pytest.raises(BadInput, match="--out: is there already"):
        train(base, files / "pairs.jsonl", tmp_path / "out", "sft", settings, seed=1)

    settings = Settings(**RL)
    whole = train(str(trained), files / "asked.jsonl", tmp_path / "rl", "rl", settings)
    assert [entry["phase"] for entry in whole.log] == ["warm-up"] * 2 + ["main"] * 4
    with pytest.raises(Stop):
        train(str(trained), files / "asked.jsonl", tmp_path / "again", "rl", settings, tell=stopping(4))
    seen.clear()
    report = train(str(trained), files / "asked.jsonl", tmp_path / "again", "rl", settings, tell=lambda *told: seen.append(told[1]))
    assert seen == [4, 5, 6] and report == whole and same(weights(tmp_path / "again"), weights(tmp_path / "rl"))
    other = train(str(trained), files / "asked.jsonl", tmp_path / "other", "rl", settings, seed=1)
    assert other.log != whole.log


def test_dapo_and_overlong(trained, files, tmp_path):
    short = RL | {"response": 20, "main_epochs": 0}  # cut off before any answer
    report = train(str(trained), files / "asked.jsonl", tmp_path / "dapo", "rl", Settings(**short, dapo=True))
    assert {entry["reward"] for entry in report.log} == {0} and same(weights(tmp_path / "dapo"), weights(trained))  # no group differs
    report = train(str(trained), files / "asked.jsonl", tmp_path / "overlong", "rl", Settings(**short, overlong=10))
    assert all(-1 <= entry["reward"] < 0 and entry["length"] <= 20 for entry in report.log)


def test_plans_alone(trained, files, tmp_path):
    report = train(str(trained), files / "pairs.jsonl", tmp_path / "out", "ef-sft", Settings(**SFT | {"steps": 2}))
    full = train(str(trained), files / "pairs.jsonl", tmp_path / "full", "sft", Settings(**SFT | {"steps": 2}))
    assert 0 < report.tokens < full.tokens / 4 and not same(weights(tmp_path / "out"), weights(trained))


@pytest.mark.parametrize(
    ("stage", "line", "said"),
    [
        ("sft", {"question": "Q", "plan": "1. a"}, "row 0, execution: is no execution"),
        ("sft", {"question": "Q", "plan": "<EXECUTION>", "execution": "1"}, "row 0, plan: holds the tag <EXECUTION>"),
        ("rl", {"question": "", "answer": "1"}, "row 0, question: is no question"),
        ("rl", {"question": "Q", "answer": None}, "row 0, answer: is no answer"),
        ("ef-sft", {"question": "Q"}, "row 0, plan: is no plan"),
        ("ef-sft", {"question": "Q", "plan": "1.a"}, "MODEL: does not know the tags of chains"),
        ("rl", {"question": "Q", "answer": 3}, "MODEL: does not know the tags of chains"),
        ("fly", {"question": "Q"}, "--stage: is no stage"),
    ],
)
def test_bad_input_on_the_command_line(base, tmp_path, stage, line, said):
    (tmp_path / "q.jsonl").write_text(json.dumps(line))
    arguments = ["--data", str(tmp_path / "q.jsonl"), "--out", str(tmp_path / "out"), "--stage", stage]
    result = CliRunner().invoke(app, ["train", "explore-execute", base, *arguments])
    assert result.exit_code == 2 and said in result.stderr and result.stdout == ""
    assert [file.name for file in tmp_path.iterdir()] == ["q.jsonl"]


def test_bad_settings_and_models(base, files, tmp_path):
    arguments = ["--data", str(files / "pairs.jsonl"), "--out", str(tmp_path / "out"), "--stage", "sft"]
    for more, said in (
        (["--set", "nosuch=1"], "set: is no setting of this training"),
        (["--set", "rollouts=1"], "rollouts: is at least 2"),
        (["--set", "rate=-1"], "rate: is above 0"),
        (["--set", "clip=many"], "set clip"),
        (["--seed", "-1"], "--seed: is from 0"),
        ([], "MODEL: cannot be loaded"),
    ):
        result = CliRunner().invoke(app, ["train", "explore-execute", str(tmp_path / "none"), *arguments, *more])
        assert result.exit_code == 2 and said in result.stderr, result.stderr
    cut = shutil.copytree(base, tmp_path / "none") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-9])
    result = CliRunner().invoke(app, ["train", "explore-execute", str(cut.parent), *arguments])
    assert result.exit_code == 2 and "MODEL: cannot be loaded" in result.stderr
    shutil.rmtree(cut.parent)
    assert not list(tmp_path.iterdir()) and training.STEPS == {"sft": 1000, "ef-sft": 500}


def test_a_training_that_could_not_begin_leaves_nothing_in_the_way(base, files, tmp_path):
    line = ["train", "explore-execute", base, "--data", str(files / "pairs.jsonl"), "--out", str(tmp_path / "out"), "--stage", "sft"]
    result = CliRunner().invoke(app, [*line, "--set", "longest=3"])
    assert result.exit_code == 2 and "no row fits into it" in result.stderr and not list(tmp_path.iterdir())


def test_the_command_trains(base, files, tmp_path):
    line = ["train", "explore-execute", base, "--data", str(files / "pairs.jsonl"), "--out", str(tmp_path / "out"), "--stage", "sft"]
    line += ["--set", "steps=2", "--set", "batch=4"]
    result = CliRunner().invoke(app, [*line, "--json"])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["steps"] == 2 and report["rows"] == 4 and report["out"] == str(tmp_path / "out")
    again = CliRunner().invoke(app, line)
    assert again.exit_code == 0 and "tagged=true" in again.stdout
