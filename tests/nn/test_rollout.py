"""Batched rollouts of a stock transformer: the same as one row at a time."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from keystep.nn.policy_gradient import ValueHead, log_probabilities
from keystep.nn.rollout import rows, sampled, scored

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if request.param == "gpt2":
        made = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0))
    else:
        made = LlamaForCausalLM(
            LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
        )
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(5)  # else all tokens are about as likely
    return made.eval()


def test_greedy_answers_are_those_of_each_row_alone(model):
    together = sampled(model, PROMPTS, 8, [], temperature=0)
    for prompt, answer in zip(PROMPTS, together, strict=True):
        tokens = list(prompt)
        for _ in range(8):
            tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        assert answer == tokens[len(prompt) :]


def test_an_end_token_ends_its_row_only(model):
    free = sampled(model, PROMPTS, 8, [], temperature=0)
    end = free[0][2]
    for before, after in zip(free, sampled(model, PROMPTS, 8, [end], temperature=0), strict=True):
        assert after == (before[: before.index(end) + 1] if end in before else before)


def test_draws_follow_their_generator_and_the_share(model):
    def drawn(seed, **options):
        return sampled(model, PROMPTS, 6, [], torch.Generator().manual_seed(seed), **options)

    assert drawn(1) == drawn(1) and drawn(1) != drawn(2)
    assert drawn(1, top_p=1e-9) == sampled(model, PROMPTS, 6, [], temperature=0)


def test_numbers_decide_a_row_whatever_stands_beside_it(model):
    numbers = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    together = sampled(model, PROMPTS, 6, [], numbers=numbers)
    assert together == [sampled(model, [prompt], 6, [], numbers=numbers[row : row + 1])[0] for row, prompt in enumerate(PROMPTS)]
    shares = torch.softmax(model(input_ids=torch.tensor([[4]])).logits[0, -1], -1)
    found = torch.tensor(sampled(model, [[4]] * 2000, 1, [], numbers=(torch.arange(2000) / 2000)[:, None]))[:, 0]
    assert torch.allclose(torch.bincount(found, minlength=20) / 2000, shares, atol=2e-3)


def test_frequencies_are_those_of_the_model(model):
    shares = torch.softmax(model(input_ids=torch.tensor([[1, 2, 3]])).logits[0, -1], -1)
    found = torch.tensor(sampled(model, [[1, 2, 3]] * 4000, 1, [], torch.Generator().manual_seed(0)))[:, 0]
    assert torch.allclose(torch.bincount(found, minlength=20) / 4000, shares, atol=0.03)


def test_scores_are_of_the_answers_alone_however_long_the_others(model):
    answers = [[3, 1], [2, 2, 2, 2], []]
    batch, head = rows(PROMPTS, answers), ValueHead(16)
    torch.nn.init.ones_(head.linear.weight)
    with torch.no_grad():
        scores, values = scored(model, batch, head)
        for row, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
            out = model(input_ids=torch.tensor([[*prompt, *answer]]), output_hidden_states=True)
            at = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
            assert torch.allclose(
                scores[row][batch.counted[row]], log_probabilities(out.logits[0, at], torch.tensor(answer, dtype=torch.long)), atol=1e-4
            )
            assert torch.allclose(values[row][batch.counted[row]], head(out.hidden_states[-1][0, at]), atol=1e-4)
    assert batch.counted.sum(1).tolist() == [2, 4, 0]
