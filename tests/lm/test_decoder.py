"""The numpy decoder against stock transformers, and its promise that a row's answer does not depend on its batch."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from keystep.lm.embedded.decoder import Decoder, Row

VOCABULARY, CONTEXT, END = 31, 48, 0
SIZES = [(20, 56, 2, 2), (24, 64, 2, 2), (32, 48, 1, 4)]  # width, hidden, layers, heads


def net(number: int) -> LlamaForCausalLM:
    width, hidden, layers, heads = SIZES[number]
    torch.manual_seed(number)
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=END,
            initializer_range=0.3,
        )
    )
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    return made.eval()


def decoder() -> Decoder:
    nets = [net(number) for number in range(len(SIZES))]
    tensors = [{key: value.detach().numpy() for key, value in made.state_dict().items()} for made in nets]
    return Decoder([made.config.to_dict() for made in nets], tensors, CONTEXT, END)


DECODER = decoder()


def row(
    number: int, member: int = 0, shared: int = 0, temperature: float = 1.0, top_p: float = 1.0, budget: int = 12, length: int = 9
) -> Row:
    rng = np.random.default_rng(number)
    prefix = np.random.default_rng(number % 2).integers(1, VOCABULARY, shared).tolist()
    prompt = (*prefix, *rng.integers(1, VOCABULARY, length - shared).tolist())
    return Row(member, prompt, shared, budget, rng.random(budget), temperature, top_p)


@pytest.mark.parametrize("member", range(len(SIZES)))
@pytest.mark.parametrize("shared", [0, 5])
def test_logits_are_those_of_transformers(member: int, shared: int) -> None:
    """Greedy answers, and the log-probability of every sampled token, agree with the stock model run on the whole text."""
    for number in range(6):
        asked = row(number, member, shared=shared, temperature=float(number % 2))
        answer = DECODER.answer([asked])[0]
        with torch.no_grad():
            logits = net(member)(torch.tensor([[*asked.prompt, *answer.tokens]])).logits[0, len(asked.prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(answer.tokens)[:, None])[:, 0].numpy()
        assert np.allclose(answer.logprobs, expected, atol=1e-4, rtol=0)
        if not asked.temperature:
            assert answer.tokens == logits.argmax(-1).tolist()


@pytest.mark.parametrize("member", range(len(SIZES)))
@pytest.mark.parametrize("shared", [0, 4])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_teacher_forcing_is_exact(member: int, shared: int, temperature: float) -> None:
    rng = np.random.default_rng(member)
    prompts, answers = rng.integers(1, VOCABULARY, (70, 9)), rng.integers(1, VOCABULARY, (70, 3))
    prompts[:, :shared] = prompts[np.arange(70) % 2, :shared]
    greedy = [DECODER.answer([Row(member, tuple(prompt), 0, 3, np.zeros(3), 0.0)])[0].tokens for prompt in prompts[:35].tolist()]
    for number, tokens in enumerate(greedy):
        answers[number, : len(tokens)] = tokens
    p, right = DECODER.answer_probabilities(member, prompts, answers, temperature, shared)
    with torch.no_grad():
        logits = net(member)(torch.from_numpy(np.concatenate([prompts, answers], 1))).logits[:, 8:-1]
    expected = (logits / temperature).log_softmax(-1).gather(2, torch.from_numpy(answers)[..., None]).sum((1, 2)).exp().numpy()
    assert np.allclose(p, expected, atol=1e-5, rtol=1e-3)
    assert np.array_equal(right, (logits.argmax(-1).numpy() == answers).all(1))
    assert right[[number for number, tokens in enumerate(greedy) if len(tokens) == 3]].all() and not right.all()


def test_samples_follow_the_distribution() -> None:
    """The shares of the first tokens of 6,000 rows with evenly spread draws are their probabilities, and top_p cuts the tail off."""
    prompt, size = row(3).prompt, 6000

    def shares(top_p: float, temperature: float) -> np.ndarray:
        rows = [Row(1, prompt, 0, 1, np.array([(number + 0.5) / size]), temperature, top_p) for number in range(size)]
        return np.bincount([answer.tokens[0] for answer in DECODER.answer(rows)], minlength=VOCABULARY) / size

    with torch.no_grad():
        logits = net(1)(torch.tensor([prompt])).logits[0, -1]
    for temperature in (1.0, 2.0):
        assert np.allclose(shares(1.0, temperature), (logits / temperature).softmax(-1).numpy(), atol=3e-4)
    expected = logits.softmax(-1).numpy()
    falling = np.sort(expected)[::-1]
    kept = np.where(expected >= falling[np.searchsorted(falling.cumsum(), 0.6)], expected, 0)
    assert np.allclose(shares(0.6, 1.0), kept / kept.sum(), atol=3e-4)


row_kinds = st.builds(
    row,
    number=st.integers(0, 30),
    member=st.integers(0, len(SIZES) - 1),
    length=st.integers(7, 9),
    shared=st.sampled_from([0, 5]),
    temperature=st.sampled_from([0.0, 0.7, 1.0, 1.0]),
    top_p=st.sampled_from([0.8, 1.0, 1.0]),
    budget=st.sampled_from([1, 12, 30]),
)


@settings(max_examples=60)
@given(rows=st.lists(row_kinds, min_size=1, max_size=40), seed=st.integers(0, 9), forget=st.booleans())
def test_a_row_is_bitwise_the_same_in_any_batch(rows: list[Row], seed: int, forget: bool) -> None:
    alone = [DECODER.answer([asked])[0] for asked in rows]
    if forget:
        DECODER._prefixes.clear()
    together = DECODER.answer(rows)
    assert together == alone
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(rows))
    cuts = [0, *sorted(rng.integers(0, len(rows) + 1, 2)), len(rows)]
    for start, stop in pairwise(cuts):
        assert DECODER.answer([rows[number] for number in order[start:stop]]) == [alone[number] for number in order[start:stop]]


@pytest.mark.parametrize("size", [2, 3, 5, 8, 17, 63, 64, 65, 130, 200])
def test_large_batches_too(size: int) -> None:
    rows = [row(number, number % 2) for number in range(200)]
    alone = [DECODER.answer([asked])[0] for asked in rows[:4] + rows[size - 4 if size > 4 else 0 : size]]
    together = DECODER.answer(rows[:size])
    assert together[: min(4, size)] == alone[: min(4, size)]
    assert together[max(0, size - 4) :] == alone[4:]


def test_finished_rows_are_let_go_without_a_trace() -> None:
    """Half of the rows are cut early, so the batch is compacted on the way; the others are as if they had been alone."""
    rows = [row(number, number % 3, budget=2 if number % 4 else 30) for number in range(60)]
    assert DECODER.answer(rows) == [DECODER.answer([asked])[0] for asked in rows]


def test_an_answer_ends_at_its_end_token_or_its_budget() -> None:
    rows = [row(number, budget=30) for number in range(200)]
    answers = DECODER.answer(rows)
    assert {END in answer.tokens for answer in answers} == {True, False}
    for answer in answers:
        assert END not in answer.tokens[:-1] and len(answer.tokens) == len(answer.logprobs)
        assert answer.tokens[-1] == END or len(answer.tokens) == 30


def test_no_more_prefixes_are_kept_than_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keystep.lm.embedded.decoder.MOST_PREFIXES", 2)
    made = decoder()
    rows = [Row(0, tuple(np.random.default_rng(number).integers(1, VOCABULARY, 9).tolist()), 5, 8, np.full(8, 0.5)) for number in range(5)]
    first = made.answer(rows)
    assert len(made._prefixes) == 2
    assert made.answer(rows) == first


ALONE_AND_TOGETHER = """
import numpy as np
from keystep.lm.embedded.decoder import Decoder, Row
rng = np.random.default_rng(0)
config = {"vocab_size": 31, "hidden_size": 24, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
          "rms_norm_eps": 1e-6, "rope_parameters": {"rope_theta": 1e4}}
layer = {"input_layernorm": (24,), "post_attention_layernorm": (24,), **{f"self_attn.{x}_proj": (24, 24) for x in "qkvo"},
         "mlp.gate_proj": (64, 24), "mlp.up_proj": (64, 24), "mlp.down_proj": (24, 64)}
shapes = {"embed_tokens": (31, 24), "norm": (24,), **{f"layers.0.{name}": shape for name, shape in layer.items()}}
decoder = Decoder([config], [{f"model.{name}.weight": rng.normal(0, 0.3, shape).astype("f") for name, shape in shapes.items()}], 40, 0)
rows = [Row(0, tuple(rng.integers(1, 31, 9).tolist()), 0, 20, rng.random(20)) for _ in range(61)]
assert decoder.answer(rows) == [decoder.answer([row])[0] for row in rows]
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="OpenBLAS's processor kinds of x86")
@pytest.mark.parametrize("kind", ["Haswell", "Nehalem", "Prescott"])
def test_rounding_is_alike_on_other_processor_kinds(kind: str) -> None:
    """All three round a row of a product by how many rows it has; the decoder must not show it."""
    subprocess.run([sys.executable, "-c", ALONE_AND_TOGETHER], check=True, env={**os.environ, "OPENBLAS_CORETYPE": kind})
