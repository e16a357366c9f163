"""A local Hugging Face model, made here: tiny weights, tiny words, no network."""

import asyncio
import sys
from collections import Counter
from contextlib import aclosing

import pytest

from keystep.errors import BadInput, MissingExtra, ModelError
from keystep.lm.base import Message, Request
from keystep.lm.local import Local

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = ["<s>", "</s>", "<unk>", "user", "assistant", ":", *"abcdefghij"]


@pytest.fixture(scope="module", autouse=True)
def offline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def save(folder, seed, chat_template=None):
    import tokenizers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        bos_token_id=0,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("tiny"), 1)


@pytest.fixture(scope="module")
def lm(folder):
    return Local(folder)


def test_greedy_equals_stock_generate(lm, folder):
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(folder), transformers.AutoModelForCausalLM.from_pretrained(folder)
    for prompt in ("a b c", "d", "j i h g f e d c b a"):
        inputs = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**inputs, do_sample=False, max_new_tokens=12, return_dict_in_generate=True, output_logits=True)
        new = out.sequences[0, inputs["input_ids"].shape[1] :]
        (sample,) = lm.complete_sync(prompt, temperature=0, max_tokens=12)
        assert sample.text == tokenizer.decode(new, skip_special_tokens=True)
        assert (sample.tokens_in, sample.tokens_out) == (inputs["input_ids"].shape[1], len(new))
        scores = [torch.log_softmax(logits[0].double(), -1)[token].item() for logits, token in zip(out.logits, new, strict=True)]
        assert sample.logprob == pytest.approx(sum(scores), abs=1e-4)
        assert sample.finish == ("stop" if new[-1] == 1 else "length")


def test_a_sample_depends_on_seed_key_and_index_alone(lm):
    options = {"seed": 3, "key": "run/1", "max_tokens": 8}
    eight = lm.complete_sync("a b", n=8, **options)
    apart = [lm.complete_sync("a b", n=1, first=i, **options)[0] for i in range(8)]
    assert [sample.text for sample in eight] == [sample.text for sample in apart]
    assert [sample.logprob for sample in eight] == pytest.approx([sample.logprob for sample in apart], abs=1e-4)
    assert [sample.tokens_in for sample in eight] == [2] + [0] * 7
    assert len({sample.text for sample in eight}) > 4
    for other in ({"seed": 4}, {"key": "run/2"}):
        assert [s.text for s in lm.complete_sync("a b", n=8, **options | other)] != [sample.text for sample in eight]


def test_draws_follow_the_models_probabilities(lm):
    with torch.inference_mode():
        exact = torch.softmax(lm.model(input_ids=torch.tensor([[6]])).logits[0, -1].double() / 0.7, -1)
    drawn = Counter(sample.logprob for sample in lm.complete_sync("a", n=4000, temperature=0.7, max_tokens=1))
    plain = torch.log_softmax(lm.model(input_ids=torch.tensor([[6]])).logits[0, -1].double(), -1)
    for p, logprob in zip(exact.tolist(), plain.tolist(), strict=True):
        count = sum(times for value, times in drawn.items() if abs(value - logprob) < 1e-5)
        assert abs(count - 4000 * p) <= 5 * (4000 * p * (1 - p)) ** 0.5 + 1
    assert len({sample.text for sample in lm.complete_sync("a", n=50, max_tokens=1, top_p=1e-9)}) == 1
    best = lm.complete_sync("a", max_tokens=1, temperature=0)[0]
    assert {sample.text for sample in lm.complete_sync("a", n=50, max_tokens=1, top_p=0.0)} == {best.text}


def test_stop_and_prefix(lm):
    greedy = {prompt: lm.complete_sync(prompt, temperature=0, max_tokens=8)[0] for prompt in "abcdefghij"}
    prompt, whole = next(
        (prompt, sample) for prompt, sample in greedy.items() if len(set(sample.text.split())) > 3 and len(sample.text.split()) == 8
    )
    words = whole.text.split()
    stop = next(word for word in words[2:] if word not in words[:2])
    (cut,) = lm.complete_sync(prompt, temperature=0, max_tokens=8, stop=(stop, "never"))
    assert (cut.text, cut.finish, cut.tokens_out) == (whole.text[: whole.text.index(stop)], "stop", words.index(stop) + 1)
    (rest,) = lm.complete_sync(prompt, prefix=f" {words[0]} {words[1]}", temperature=0, max_tokens=6)
    assert rest.text.split() == words[2:]


def test_an_answer_ends_where_the_models_positions_end(lm):
    samples = lm.complete_sync("a " * 60, n=20)
    assert max(sample.tokens_out for sample in samples) == 4
    assert "length" in {sample.finish for sample in samples if sample.tokens_out == 4}


def test_a_failure_inside_is_typed(lm, monkeypatch):
    def exhausted(**inputs):
        raise RuntimeError("out of memory\nand a long story")

    monkeypatch.setattr(lm, "model", exhausted)
    with pytest.raises(ModelError, match="out of memory") as caught:
        lm.complete_sync("a")
    assert "long story" not in str(caught.value)


def test_chat_template_or_roles_joined_plainly(lm, tmp_path):
    template = "{% for m in messages %}{{ m.role }} : {{ m.content }} </s>{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
    chat = Local(save(tmp_path, 1, template))

    def tokens(lm, prompt, **options):
        return " ".join(lm.tokenizer.convert_ids_to_tokens(lm._tokens(Request(prompt, **options))))

    assert tokens(chat, "a b", prefix=" c") == "user : a b </s> assistant : c"
    assert tokens(lm, (Message("user", "a"), Message("assistant", "b"))) == "user : a assistant : b assistant :"
    assert tokens(lm, "a") == tokens(lm, (Message("user", "a"),)) == "a"
    plain = Local(tmp_path, chat=False)
    assert tokens(plain, "a") == "a" and plain.identity() != chat.identity()
    with pytest.raises(BadInput, match="chat"):
        Local(lm.model.config._name_or_path, chat=True)


def test_identity_tells_weights_apart_and_not_runs(lm, folder, tmp_path):
    (tmp_path / "a" / folder.name).mkdir(parents=True)
    assert lm.identity() == Local(folder).identity()
    assert lm.identity() != Local(save(tmp_path / "a" / folder.name, 2)).identity()


def test_closing_stops_the_work_and_the_model_goes_on(lm):
    async def go():
        async with aclosing(lm.sample(Request("a b c", n=2, max_tokens=50, seed=1))) as samples:
            await anext(samples)
        return await asyncio.gather(*(lm.complete("a b", n=2, max_tokens=4, temperature=0) for _ in range(3)))

    answers = [[sample.text for sample in samples] for samples in asyncio.run(go())]
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize(
    ("prompt", "options", "field"),
    [
        ("a", {"schema": {"type": "object"}}, "schema"),
        ("a", {"tools": ({},)}, "tools"),
        ("", {}, "prompt"),
        ("a " * 64, {}, "prompt"),
        ((Message("user", [{"type": "text", "text": "a"}]),), {}, "prompt"),
    ],
)
def test_what_it_cannot_do_is_refused(lm, prompt, options, field):
    with pytest.raises(BadInput) as caught:
        lm.complete_sync(prompt, **{"max_tokens": 4} | options)
    assert caught.value.field == field


def test_bad_models_are_named(folder, tmp_path):
    pickled = save(tmp_path / "pickled", 1)
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    cut = save(tmp_path / "cut", 1) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-9])
    for model, options, field in (
        (tmp_path / "none", {}, "model"),
        (tmp_path, {}, "model"),
        (pickled, {}, "model"),
        (cut.parent, {}, "model"),
        (folder, {"dtype": "floaty"}, "dtype"),
        (folder, {"adapter": tmp_path}, "adapter"),
    ):
        with pytest.raises(BadInput) as caught:
            Local(model, **options)
        assert caught.value.field == field


def test_without_torch_the_extra_is_named(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"pip install 'keystep\[local\]'"):
        Local(folder)


def test_a_peft_adapter_is_put_on_and_answers_as_in_stock_peft(folder, tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    base = transformers.LlamaForCausalLM.from_pretrained(folder)
    plain = [sample.text for sample in Local(folder).complete_sync("a b c", temperature=0, max_tokens=8)]
    adapted = peft.get_peft_model(
        base, peft.LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path)
    tokens = transformers.AutoTokenizer.from_pretrained(folder)("a b c", return_tensors="pt")
    wanted = adapted.eval().generate(**tokens, do_sample=False, max_new_tokens=8)[0, tokens["input_ids"].shape[1] :]
    [sample] = Local(folder, adapter=tmp_path).complete_sync("a b c", temperature=0, max_tokens=8)
    words = transformers.AutoTokenizer.from_pretrained(folder).decode(wanted, skip_special_tokens=True)
    assert sample.text.split() == words.split() and [sample.text] != plain
