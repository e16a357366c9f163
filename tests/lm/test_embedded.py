"""The embedded models: what they answer and refuse, that no sample depends on its company, and how requests share a batch."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import aclosing, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import keystep as ks
from keystep.errors import BadInput, ModelError, Refused
from keystep.lm.base import Message, Request, Sample
from keystep.lm.embedded import hanoi, ledger
from keystep.lm.embedded.model import MANY, MODELS, WEIGHTS, Embedded, Ensemble, answer_probabilities, load
from keystep.run import Flag
from keystep.run.builtin import builtin

HANOI = hanoi.render([1, 0, 1], [[3, 2], [1], []])
TALLER = hanoi.render(None, [[5, 4, 3, 2, 1], [], []])
LEDGER = [ledger.render({"oak": 7, "elm": -3, "ash": 41}, total, word) for total, word in [(0, "oak"), (-40, "ash"), (12345, "elm")]]


def make(path: Path, vocabulary: int, members: int = 3) -> Ensemble:
    """An ensemble of untrained members in a file, as training/train.py packs it. They answer noise, which no test here minds."""
    tensors, about = {}, []
    for number in range(members):
        torch.manual_seed(number)
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=16 + 4 * (number % 2),
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=True,
            initializer_range=0.25,
            bos_token_id=None,
            eos_token_id=0,
        )
        weights = LlamaForCausalLM(config).state_dict()
        tensors |= {f"{number}.{key}": value.clone() for key, value in weights.items() if key != "lm_head.weight"}
        about.append({"seed": number, "config": config.to_dict()})
    save_file(tensors, path, metadata={"members": json.dumps(about, default=str)})
    return Ensemble(path)


@pytest.fixture(scope="module")
def ensembles(tmp_path_factory: pytest.TempPathFactory) -> list[Ensemble]:
    folder = tmp_path_factory.mktemp("weights")
    return [make(folder / "hanoi.safetensors", hanoi.VOCABULARY), make(folder / "ledger.safetensors", ledger.VOCABULARY)]


@pytest.fixture(scope="module")
def model(ensembles: list[Ensemble]) -> Embedded:
    return Embedded(ensembles=ensembles)


def answers(samples: list[Sample]) -> list[Any]:
    """All of the samples but the seconds."""
    return [replace(sample, seconds=0.0) for sample in samples]


def test_members_take_turns_and_say_what_they_did(model: Embedded, ensembles: list[Ensemble]) -> None:
    samples = model.complete_sync(HANOI, n=7, key="run/1", seed=3)
    prompt, _ = hanoi.encode(HANOI) or ([], 0)
    assert [sample.index for sample in samples] == list(range(7))
    assert [sample.model for sample in samples] == [f"embedded:{index % 3}" for index in range(7)]
    assert [sample.tokens_in for sample in samples] == [len(prompt)] * 3 + [0] * 4
    assert model.members == 3 and all(sample.tokens_out >= 1 and sample.seconds > 0 for sample in samples)
    assert len({sample.text for sample in samples}) > 1
    assert answers(model.complete_sync(HANOI, n=7, key="run/1", seed=3)) == answers(samples)
    for changed in ({"key": "run/2", "seed": 3}, {"key": "run/1", "seed": 4}):
        assert answers(model.complete_sync(HANOI, n=7, **changed)) != answers(samples)


def test_logprob_is_that_of_the_sampled_tokens_at_temperature_one(ensembles: list[Ensemble]) -> None:
    """Greedy answers are known to teacher forcing: exp(logprob) is their probability, whatever member."""
    model = Embedded(ensembles=ensembles)
    seen: list[list[int]] = []
    ensemble = ensembles[0]
    real = ensemble.decoder.answer
    prompt, _ = hanoi.encode(HANOI) or ([], 0)
    for member in ensemble.members:
        rows: list[Any] = []
        ensemble.decoder.answer = lambda asked, rows=rows: rows.extend(asked) or real(asked)  # type: ignore[method-assign]
        try:
            sample = model.complete_sync(HANOI, first=member.number, temperature=0)[0]
        finally:
            del ensemble.decoder.answer
        tokens = real(rows)[0].tokens
        seen.append(tokens)
        p, right = answer_probabilities(member, np.array([prompt]), np.array([tokens]))
        assert right[0] and sample.logprob == pytest.approx(np.log(p[0]), abs=1e-3) and sample.tokens_out == len(tokens)
    assert len(set(map(tuple, seen))) > 1


requests = st.lists(
    st.builds(
        Request,
        st.sampled_from([HANOI, TALLER, hanoi.render([2, 0, 2], [[3], [1], [2]]), *LEDGER]),
        n=st.integers(1, 7),
        first=st.integers(0, 5),
        key=st.sampled_from(["a", "b"]),
        seed=st.integers(0, 2),
        temperature=st.sampled_from([0.0, 0.6, 1.0, 1.0]),
        top_p=st.sampled_from([0.7, 1.0, 1.0]),
        max_tokens=st.sampled_from([1, 20, 45]),
        stop=st.sampled_from([(), ("\n",), ("]",)]),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=30)
@given(asked=requests)
def test_no_sample_depends_on_its_company(model: Embedded, asked: list[Request]) -> None:
    """Bitwise, texts and log-probabilities: asked one after another, one sample at a time, and all at once."""

    async def ask(request: Request) -> list[Sample]:
        return [sample async for sample in model.sample(request)]

    async def together() -> list[list[Sample]]:
        return await asyncio.gather(*map(ask, asked))

    alone = [answers(asyncio.run(ask(request))) for request in asked]
    assert [answers(samples) for samples in asyncio.run(together())] == alone
    for request, samples in zip(asked[:3], alone, strict=False):
        single = [asyncio.run(ask(replace(request, first=sample.index, n=1)))[0] for sample in samples]
        assert [(one.text, one.logprob, one.tokens_out, one.finish) for one in single] == [
            (sample.text, sample.logprob, sample.tokens_out, sample.finish) for sample in samples
        ]


def test_one_member_alone_gives_its_samples_of_the_whole(model: Embedded, ensembles: list[Ensemble]) -> None:
    alone = Embedded("embedded:2", ensembles=ensembles)
    whole = {sample.index: sample for sample in model.complete_sync(HANOI, n=9, key="k")}
    assert alone.members == 1 and alone.identity()["members"] == [2]
    for sample in alone.complete_sync(HANOI, n=9, key="k"):
        assert sample.model == "embedded:2"
        if sample.index % 3 == 2:
            assert (sample.text, sample.logprob) == (whole[sample.index].text, whole[sample.index].logprob)


def counted(model: Embedded, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of the Hanoi decoder gets."""
    sizes: list[int] = []
    decoder = model.ensembles[0].decoder
    real = decoder.answer
    monkeypatch.setattr(decoder, "answer", lambda rows: sizes.append(len(rows)) or real(rows))
    return sizes


def test_requests_made_together_are_decoded_together(model: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = counted(model, monkeypatch)

    async def late(turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await model.complete(HANOI, n=3)

    async def go() -> None:
        await asyncio.gather(*(late(number % 2) for number in range(20)))

    asyncio.run(go())
    assert [size for size in sizes if size] == [60]


def test_who_leaves_is_not_decoded_and_disturbs_nobody(model: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = answers(model.complete_sync(HANOI, n=3, key="stays"))
    sizes = counted(model, monkeypatch)

    async def go() -> list[Sample]:
        leaver = asyncio.create_task(model.complete(HANOI, n=3, key="leaves"))
        stayer = asyncio.create_task(model.complete(HANOI, n=3, key="stays"))
        await asyncio.sleep(0)
        leaver.cancel()
        return await stayer

    assert answers(asyncio.run(go())) == undisturbed
    assert [size for size in sizes if size] == [3]

    async def breaks_out() -> str:
        async with aclosing(model.sample(Request(HANOI, n=3, key="stays"))) as samples:
            async for sample in samples:
                return sample.text
        return ""

    assert asyncio.run(breaks_out()) == undisturbed[0].text


def test_many_event_loops_one_after_another(model: Embedded) -> None:
    """A loop that dies with a request in it leaves nothing behind, nor does one in another thread beside it."""

    async def dies() -> None:
        left = asyncio.create_task(model.complete(HANOI))
        await asyncio.sleep(0)
        assert not left.done()

    async def beside() -> list[Sample]:
        return model.complete_sync(HANOI, key="k")

    expected = answers(model.complete_sync(HANOI, key="k"))
    for _ in range(3):
        asyncio.run(dies())
        assert answers(model.complete_sync(HANOI, key="k")) == expected
        assert answers(asyncio.run(beside())) == expected


def test_a_failure_reaches_everyone_who_waits_and_passes(model: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    async def both() -> list[Any]:
        return await asyncio.gather(model.complete(HANOI), model.complete(LEDGER[0]), model.complete(TALLER), return_exceptions=True)

    def breaks(rows: object) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(model.ensembles[0].decoder, "answer", breaks)
        assert [type(result) for result in asyncio.run(both())] == [MemoryError] * 3
    assert all(isinstance(result, list) for result in asyncio.run(both()))


@pytest.mark.parametrize(
    "prompt",
    [
        "What is the capital of France?",
        "",
        HANOI + " ",
        hanoi.render(None, [[2, 1], [], []]),
        (Message("system", "Be brief."), Message("user", HANOI)),
        (Message("user", HANOI), Message("assistant", "move"), Message("user", HANOI)),
        (Message("assistant", HANOI),),
        ledger.render({"oak": 7, "elm": -3}, 99993, "oak"),  # the sum would be 100,000, for which there are no tokens
        ledger.render({"oak": 7, "elm": -3}, -99997, "elm"),
        (Message("user", [{"type": "text", "text": HANOI}, {"type": "image_url", "image_url": {"url": "x"}}]),),
        (),
    ],
)
def test_unknown_prompts_are_refused_by_saying_what_is_known(model: Embedded, prompt: Any) -> None:
    with pytest.raises(Refused) as refused:
        model.complete_sync(prompt)
    assert hanoi.KNOWS in str(refused.value) and ledger.KNOWS in str(refused.value)


def test_one_user_message_is_the_same_as_its_text(model: Embedded) -> None:
    expected = answers(model.complete_sync(HANOI, n=2))
    assert answers(model.complete_sync((Message("user", HANOI),), n=2)) == expected
    assert answers(model.complete_sync((Message("user", [{"type": "text", "text": HANOI}]),), n=2)) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prefix", "move = "),
        ("schema", {"type": "object"}),
        ("tools", ({"type": "function"},)),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("max_tokens", 0),
        ("n", -1),
        ("first", -1),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(model: Embedded, field: str, value: Any) -> None:
    with pytest.raises(BadInput) as refused:
        model.complete_sync(HANOI, **{field: value})
    assert refused.value.field == field and refused.value.value is value and not isinstance(refused.value, Refused)


def test_stop_strings_and_max_tokens(model: Embedded) -> None:
    whole = model.complete_sync(HANOI, n=3, temperature=0)
    for sample in whole:
        assert sample.finish == "length" or sample.tokens_out < 60
    cut = model.complete_sync(HANOI, n=3, temperature=0, stop=("\n", "never there"))
    for sample, full in zip(cut, whole, strict=True):
        assert sample.text == full.text.split("\n")[0]
        if "\n" in full.text:
            assert sample.tokens_out == 4 and sample.finish == "stop" and sample.logprob > full.logprob
    short = model.complete_sync(HANOI, n=3, temperature=0, max_tokens=2)
    assert all(sample.tokens_out <= 2 for sample in short)
    assert any(sample.finish == "length" and full.text.startswith(sample.text[:-1]) for sample, full in zip(short, whole, strict=True))


def test_no_answer_is_longer_than_the_context(model: Embedded) -> None:
    prompt, _ = hanoi.encode(HANOI) or ([], 0)
    samples = model.complete_sync(HANOI, n=200, max_tokens=10_000, temperature=1.5)
    assert max(sample.tokens_out for sample in samples) <= 64 - len(prompt)


def test_identity_changes_with_the_weights(ensembles: list[Ensemble], tmp_path: Path) -> None:
    one, same = Embedded(ensembles=ensembles), Embedded(ensembles=ensembles)
    other = Embedded(ensembles=[make(tmp_path / "hanoi.safetensors", hanoi.VOCABULARY, members=2)])
    assert one.identity() == same.identity() == json.loads(json.dumps(one.identity()))
    assert one.identity()["weights"]["hanoi"] != other.identity()["weights"]["hanoi"]


@pytest.mark.parametrize("name", ["embedded:5", "embedded:-1", "embedded:x", "embedded:²"])
def test_no_such_member(name: str, ensembles: list[Ensemble]) -> None:
    with pytest.raises(BadInput, match="counted from 0 to 2"):
        Embedded(name, ensembles=ensembles)


def test_an_ensemble_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("keystep.lm.embedded.model.WEIGHTS", tmp_path)
    load.cache_clear()  # of what other tests have loaded
    with pytest.raises(BadInput, match="not in this installation"):
        load("no-such-large")
    with pytest.raises(BadInput, match="not in this installation"):
        Embedded("embedded-large")
    with pytest.raises(BadInput, match="no such model"):
        Embedded("embeded")


PROCEDURES = {
    "arithmetic": "multiply",
    "pairs": "sort",
    "lists": "edits",
    "strings": "letters",
    "problems": "problem",
}  # where the skill is not called as its procedure
SHIPPED = [
    name for name in dict.fromkeys(name for parts in MODELS.values() for name in parts) if (WEIGHTS / f"{name}.safetensors").exists()
]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_card_is_of_the_shipped_weights(name: str) -> None:
    card = json.loads((WEIGHTS / f"{name}.card.json").read_text())
    assert card["weights"] == load(name).digest, f"run `python training/card.py {name}`"
    assert card["random"]["steps"] >= 10_000


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_members_know_their_prompts(name: str) -> None:
    """What training wrote is what the decoder reads: on the first steps of its own task every member is mostly right."""
    skill = name.removesuffix("-large")
    work = builtin(PROCEDURES.get(skill, skill), {"operations": 30} if skill == "problems" else {})
    model = Embedded(ensembles=[load(name)])
    known = model.ensembles[0].skill.tokenizer.encode
    right = [0] * model.members
    for state, answer in islice(((state, answer) for state, answer in work.truth() if known(work.prompt(state))), 20):
        for sample in model.complete_sync(work.prompt(state), n=4 * model.members):
            with suppress(Flag):
                right[sample.index % model.members] += work.parse(sample.text, state) == answer
    assert min(right) > 40, right  # of 80


def test_processes_of_its_own_give_the_same_answers(ensembles: list[Ensemble], model: Embedded) -> None:
    prompts = [HANOI, TALLER, *LEDGER]
    asked = [Request(prompts[number % len(prompts)], n=3, key=str(number), seed=5) for number in range(2 * MANY)]

    async def together(lm: Embedded) -> list[list[Sample]]:
        async def ask(request: Request) -> list[Sample]:
            return [sample async for sample in lm.sample(request)]

        found = await asyncio.gather(*map(ask, asked))
        left = asyncio.ensure_future(ask(asked[0]))  # one who does not wait for it
        await asyncio.sleep(0)
        left.cancel()
        return list(map(answers, [*found, await ask(asked[1])]))

    lm = Embedded(ensembles=ensembles, processes=2)
    first = asyncio.run(together(lm))
    assert lm._pool is not None
    assert first == asyncio.run(together(lm)) == asyncio.run(together(model))
    asyncio.run(lm.close())
    with pytest.raises(BadInput, match="processes: is at least 1"):
        Embedded(ensembles=ensembles, processes=0)


def test_a_decoding_process_that_dies_is_said(ensembles: list[Ensemble]) -> None:
    lm = Embedded(ensembles=ensembles, processes=2)

    async def ask(number: int) -> list[Sample]:
        return [sample async for sample in lm.sample(Request(HANOI, key=str(number)))]

    async def killed() -> list[Any]:
        await asyncio.gather(*map(ask, range(MANY)))
        assert lm._pool is not None
        for pid in list(lm._pool._processes):
            os.kill(pid, signal.SIGKILL)
        return await asyncio.gather(*map(ask, range(MANY)), return_exceptions=True)

    found = asyncio.run(killed())
    assert {type(error) for error in found} == {ModelError} and "a decoding process died" in str(found[0])
    asyncio.run(lm.close())


def test_a_decoding_process_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal\n"
        "from keystep.lm.embedded import cores\n"
        "if __name__ == '__main__':\n"
        "    pool = cores.start(1)\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert child and parent.stdout.read() == ""  # the child holds the pipe too: this returns when it has ended


def test_a_model_by_name(tmp_path: Path) -> None:
    from keystep.lm.endpoint import Endpoint

    made = ks.lm("http://127.0.0.1:9/v1#small", retries=0)
    assert isinstance(made, Endpoint) and made.name == "small"
    assert isinstance(ks.lm("openai:some-model", base_url="http://127.0.0.1:9/v1"), Endpoint)
    assert isinstance(ks.lm("embedded"), Embedded)
    assert ks.lm("embedded:1").members == 1
    for name in ("", "gpt", "http://u:secret@127.0.0.1/v1", "openai:", "hf:", "replay:", "embedded,", "embedded-huge"):
        with pytest.raises(BadInput, match="there are: embedded") as refused:
            ks.lm(name)
        assert "secret" not in str(refused.value)
    with pytest.raises(BadInput, match="speed"):
        ks.lm("embedded", speed=3)


def in_a_new_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "code", ["import keystep.lm", "import keystep.lm.embedded.hanoi, keystep.lm.embedded.ledger", "import keystep; keystep.lm"]
)
def test_names_and_prompts_load_nothing_heavy(code: str) -> None:
    heavy = "numpy", "safetensors", "aiohttp", "torch"
    assert in_a_new_process(f"{code}; import sys; print([name for name in {heavy} if name in sys.modules])").strip() == "[]"


def test_the_embedded_models_need_no_torch() -> None:
    assert in_a_new_process("import keystep as ks, sys; ks.lm('embedded').complete_sync; print('torch' in sys.modules)").strip() == "False"
