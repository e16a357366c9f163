"""DaSLaM's training on tiny models made here: what it learns and leaves, how it goes on where it stopped, what stock libraries load."""

import asyncio
import json

import pytest
from worker import Scripted

from keystep.cli import app
from keystep.errors import BadInput, BudgetSpent, ChangedWork
from keystep.lm.local import Local
from keystep.run import Budget
from keystep.solve.daslam.problems import problem
from keystep.solve.daslam.solver import DaSLaM
from keystep.solve.daslam.train import Settings, cyclic, train

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytest.importorskip("trl")

NAMES = ["Ann", "Ben"]
AMOUNTS = ["one", "two", "three", "four"]
WORDS = "<s> </s> <unk> # : . ? [ ] Q R How many has Ann Ben and they in all one two three four Answer"


@pytest.fixture(scope="module", autouse=True)
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A transformer of one layer that knows nothing, with a word-level tokenizer."""
    import tokenizers

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("base")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS.split())}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS.split()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "decomposer.txt").write_text("{{ question }} R: {{ reasoning }} Q:")
    (folder / "solver.txt").write_text("{% for pair in earlier %}{{ pair.question }} {{ pair.answer }} {% endfor %}{{ question }}")
    return str(folder)


def problems():
    """The same two names each; the file's sub-questions ask for the first of them only, half of the time."""
    found = []
    for at in range(16):
        subs = ["How many has Ann ?"] + ["How many has Ben ?"] * (at % 2)
        row = {"question": f"How many has Ann and Ben in all ? {AMOUNTS[at // 4]} {AMOUNTS[at % 4]}", "answer": "two"}
        found.append(problem({**row, "reasoning": ["Ann has one .", "Ben has one ."], "sub_questions": subs}))
    return found


def says(request, index):
    """A solver that is right only where both of the question's names were asked for before; it never gets a question right at once."""
    asked, _, question = request.prompt.rpartition("How many has")
    names = [name for name in NAMES if name in question]
    if len(names) == 1:
        return "[[Answer: one]]"
    return "[[Answer: two]]" if all(f"has {name}" in asked for name in names) else "[[Answer: three]]"


SMALL = {
    "held_out": 4,
    "lora_rank": 0,
    "sft_epochs": 40,
    "sft_rate": 1e-2,
    "sft_batch": 8,
    "micro_batch": 8,
    "sft_warmup": 5,
    "steps": 3,
    "batch": 4,
    "max_tokens": 14,
    "rate": 1e-3,
    "save_every": 2,
    "solver_temperature": 0.0,
    "device": "cpu",
}


def trained(base, prompts, out, solver=None, seed=0, **changes):
    options = {name: changes.pop(name) for name in ("budget",) if name in changes}
    settings = Settings.of({**SMALL, "prompts": prompts, **changes})
    return asyncio.run(train(str(base), problems(), solver or Scripted(says), out, settings, seed=seed, **options))


def weights(folder):
    from safetensors.torch import load_file

    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def test_cyclic_batches():
    assert cyclic([0, 1, 2], 8) == [0, 1, 2, 0, 1, 2, 0, 1] and cyclic([], 8) == []


def test_whole_models_are_fine_tuned_and_rewarded(base, prompts, tmp_path):
    """SFT imitates the file's half-good sub-questions; GRPO with correctness learns to ask for both."""
    settings = {"algorithm": "grpo", "group": 8, "steps": 12, "rate": 1e-3, "kl": 0.0, "epochs": 2, "kl_target": None}
    found = trained(base, prompts, tmp_path, **settings)
    before, after = found.judged["sft"], found.judged["step-12"]
    assert before.direct == 0 and before.rescue == before.decomposed and before.damage is None and before.sub_questions >= 1
    assert after.decomposed == 1 and after.decomposed > before.decomposed
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, 13)) and log[-1]["correct"] > log[0]["correct"]
    assert {"coverage", "consistency", "correctness", "proximity", "order", "kl", "reward", "sub_questions"} <= log[0].keys()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "decomposer")  # what another program loads
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "decomposer")
    asked = DaSLaM(prompts=prompts).decomposer_prompt("How many has Ann and Ben in all ? one one", "[[Answer: three]]")
    out = model.generate(**tokenizer(asked, return_tensors="pt"), do_sample=False, max_new_tokens=24)
    said = tokenizer.decode(out[0], skip_special_tokens=True).partition("Q")[2]
    assert "has Ann" in said and "has Ben" in said
    assert json.loads((tmp_path / "report.json").read_text())["judged"]["step-12"] == after.model_dump()


def test_ppo_moves_adapters_of_the_last_layers_alone(base, prompts, tmp_path):
    found = trained(base, prompts, tmp_path, lora_rank=4, ppo_layers=1, sft_epochs=2, lora_modules=["q_proj", "v_proj"])
    assert found.steps == 3 and found.left_out == 0
    sft, final = weights(tmp_path / "sft"), weights(tmp_path / "decomposer")
    assert sft.keys() == final.keys() and all("lora_" in name for name in final)
    moved = {name for name in final if not torch.equal(sft[name], final[name])}
    assert moved and all(".layers.1." in name for name in moved)
    fresh = transformers.AutoModelForCausalLM.from_pretrained(base)
    adapted = peft.PeftModel.from_pretrained(fresh, tmp_path / "decomposer")  # stock peft
    asked = "How many has Ann and Ben in all ?"
    read = transformers.AutoTokenizer.from_pretrained(base)(asked, return_tensors="pt")
    by_peft = adapted.generate(**read, do_sample=False, max_new_tokens=8)
    local = Local(tmp_path / "decomposer")  # the adapter's folder names its base
    (sample,) = local.complete_sync(asked, temperature=0, max_tokens=8)
    assert sample.text == local.tokenizer.decode(by_peft[0, read["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("lora", [0, 4])
def test_stopped_anywhere_it_ends_as_if_it_had_not_been(base, prompts, tmp_path, lora):
    changes = {"lora_rank": lora, "sft_epochs": 2, "steps": 5, "judge_every": 2, "concurrency": 1}
    whole = Scripted(says)
    undisturbed = trained(base, prompts, tmp_path / "whole", whole, **changes)
    calls, out = whole.drawn, tmp_path / "parts"
    asked = 0
    for budget in (5, calls // 2, calls - 3):
        lm = Scripted(says)
        with pytest.raises(BudgetSpent):
            trained(base, prompts, out, lm, budget=Budget(calls=budget), **changes)
        asked += lm.drawn
    last = Scripted(says)
    found = trained(base, prompts, out, last, **changes)
    assert asked + last.drawn == calls  # nothing is asked twice
    assert found.model_copy(update={"decomposer": ""}) == undisturbed.model_copy(update={"decomposer": ""})
    one, other = weights(tmp_path / "whole/decomposer"), weights(out / "decomposer")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert (out / "log.jsonl").read_text() == (tmp_path / "whole/log.jsonl").read_text()
    finished = Scripted(says)
    assert trained(base, prompts, out, finished, **changes) == found and finished.drawn == 0
    with pytest.raises(ChangedWork):
        trained(base, prompts, out, **{**changes, "rate": 1.0})


def test_a_solver_that_is_always_right_leaves_nothing_to_learn(base, prompts, tmp_path):
    found = trained(base, prompts, tmp_path, Scripted(["[[Answer: two]]"]), sft_epochs=1)
    assert found.solver_right == 1 and (found.steps, found.skipped) == (3, 3) and found.judged["step-3"].rescue is None
    sft, final = weights(tmp_path / "sft"), weights(tmp_path / "decomposer")
    assert all(torch.equal(sft[name], final[name]) for name in final)


def test_a_heavy_pull_keeps_the_fine_tuned_model(base, prompts, tmp_path):
    """With beta -> infinity the policy equals that of stage 1."""
    changes = {"algorithm": "grpo", "group": 4, "steps": 6, "sft_epochs": 5, "kl_target": None, "rate": 1e-3}
    free = trained(base, prompts, tmp_path / "free", kl=0.0, **changes)
    held = trained(base, prompts, tmp_path / "held", kl=1e4, **changes)
    logs = {
        name: [json.loads(line)["kl"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("free", "held")
    }
    assert abs(logs["held"][-1]) < abs(logs["free"][-1]) and free.steps == held.steps == 6


def test_what_the_solver_says_may_be_anything(base, prompts, tmp_path):
    nonsense = ["", "\x00", "{{ 7 }}", "### [[Answer: two]]", "[[[[", "]] [[Answer: two", "🤖 " * 50, "?" * 100]
    found = trained(base, prompts, tmp_path, Scripted(nonsense), sft_epochs=1, solver_temperature=0.5)
    assert found.steps == 3


def test_a_solver_behind_a_server(base, prompts, tmp_path):
    """Only text comes back, and it is the same training as with the model at hand."""
    from faulty_server import serving

    from keystep.lm.endpoint import Endpoint
    from keystep.lm.server import app as server

    lm = Scripted(says)
    with serving(server({"m": lm})) as url:

        async def over_http():
            solver = Endpoint("m", f"{url}/v1", "none")
            settings = Settings.of({**SMALL, "prompts": prompts, "sft_epochs": 1})
            try:
                return await train(str(base), problems(), solver, tmp_path / "http", settings)
            finally:
                await solver.close()

        found = asyncio.run(over_http())
    here = trained(base, prompts, tmp_path / "here", sft_epochs=1)
    assert lm.drawn and found.model_copy(update={"decomposer": ""}) == here.model_copy(update={"decomposer": ""})
    one, other = weights(tmp_path / "http/decomposer"), weights(tmp_path / "here/decomposer")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_early_end_by_damage(base, prompts, tmp_path):
    """Right first answers that decomposition makes wrong."""
    lm = Scripted(lambda request, index: "[[Answer: one]]" if "[[" in request.prompt else "[[Answer: two]]")
    found = trained(base, prompts, tmp_path, lm, judge_every=1, most_damage=0.05, sft_epochs=20)
    assert found.stopped_early and found.steps == 1 and found.judged["step-1"].damage > 0.05


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nosuch": 1}, "set: is no setting of this training"),
        ({"steps": "many"}, "set steps"),
        ({"algorithm": "dpo"}, "algorithm: is none of them"),
        ({"algorithm": "grpo"}, "group: is at least 2"),
        ({"weights": {"beauty": 1}}, "weights: is no part of the reward"),
        ({"clip": 1.0}, "clip: is between 0 and 1"),
        ({"batch": 0}, "batch: is at least 1"),
        ({"held_out": 16}, "held_out: leaves nothing"),
        ({"lora_rank": 2, "lora_modules": ["nosuch"]}, "lora_modules: none of them is in the model"),
        ({"longest": 3}, "longest: no problem with sub-questions fits"),
    ],
)
def test_settings_that_do_not_fit(base, prompts, tmp_path, changes, said):
    with pytest.raises(BadInput, match=said):
        trained(base, prompts, tmp_path / "out", **changes)
    assert not (tmp_path / "out/decomposer").exists()


# On the command line.


def command(*arguments):
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["train", "daslam", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


@pytest.fixture
def files(tmp_path, prompts, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"question": p.question, "answer": p.answer, "reasoning": p.reasoning, "sub_questions": list(p.sub_questions)} for p in problems()
    ]
    (tmp_path / "p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    monkeypatch.setattr("keystep.cli.job.lm", lambda name, **options: Scripted(says))
    small = {**SMALL, "prompts": prompts, "sft_epochs": 1}
    return [part for name, value in small.items() for part in ("--set", f"{name}={json.dumps(value)}")]


def test_the_command_trains_stops_and_goes_on(base, files, tmp_path):
    line = [base, "--data", "p.jsonl", "--solver", "m", "--out", "out", *files]
    stopped = command(*line, "--budget-calls", "10")
    assert stopped.exit_code == 3 and "the same command goes on" in stopped.stderr and stopped.stdout == ""
    result = command(*line, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0 and found["problems"] == 12 and found["held_out"] == 4 and found["steps"] == 3
    assert (tmp_path / found["decomposer"] / "model.safetensors").exists()
    assert "use it: keystep solve daslam --set decomposer=hf:out/decomposer" in command(*line).stdout
    assert command(*line, "--seed", "1").exit_code == 2  # another training in the same folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--data": "none.jsonl"}, "there is no such file"),
        ({"--data": "bad.jsonl"}, "row 0, question: is no question"),
        ({"--data": "empty.jsonl"}, "there are no"),
        ({"--out": "full"}, "--out: holds something else"),
        ({"--out": "p.jsonl"}, "--out: "),
        ({"--set": "nosuch=1"}, "set: is no setting of this training"),
        ({"MODEL": "full"}, "MODEL: cannot be loaded"),
    ],
)
def test_bad_input(base, files, tmp_path, change, said):
    (tmp_path / "bad.jsonl").write_text('{"answer": "7"}\n')
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").touch()
    given = {"--data": "p.jsonl", "--solver": "m", "--out": "out"} | {name: value for name, value in change.items() if name != "MODEL"}
    result = command(change.get("MODEL", base), *(part for pair in given.items() for part in pair), *files)
    assert result.exit_code == 2 and said in result.stderr and result.stdout == ""
    assert not (tmp_path / "out/decomposer").exists()
