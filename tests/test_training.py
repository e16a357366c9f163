"""What trains and scans the embedded Hanoi models: its steps are the task's, its forward is the model's, its vote is the theory's."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from keystep.lm.embedded.hanoi import ARROW, decode, encode
from keystep.lm.embedded.model import answer_probabilities, load
from keystep.run import theory
from keystep.run.builtin import builtin
from keystep.run.builtin.hanoi import Hanoi

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))

import card
import forward
import hanoi
import scan
import strings
import train


@pytest.mark.parametrize("disks", [3, 6, 9])
def test_the_steps_of_the_whole_task_are_those_of_the_rule(disks):
    game = Hanoi(disks)
    for tokens, (state, answer) in zip(hanoi.path(disks).tolist(), game.truth(), strict=True):
        start = tokens.index(ARROW) + 1
        assert encode(game.prompt(state)) == (tokens[:start], 0)
        assert game.parse(decode(tokens[start:-1]), state) == answer
    numbers = np.array([2**disks - 2, 0, 5])
    assert (hanoi.path_steps(disks, numbers) == hanoi.path(disks)[numbers]).all()


def test_a_pool_has_what_it_was_asked_for():
    listed = hanoi.path_steps(7, np.array([3, 100]))
    pool = hanoi.pool(np.random.default_rng(0), 40, 7, 0.25, listed)
    task = {tuple(row) for row in hanoi.path(7).tolist()}
    assert pool.shape == (40, 28)
    assert sum(tuple(row) in task for row in pool.tolist()) >= 30
    assert {tuple(row) for row in listed.tolist()} <= {tuple(row) for row in pool.tolist()}


def test_the_short_forward_gives_the_models_own_logits():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=29, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=3, max_position_embeddings=64,
        tie_word_embeddings=True, use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    net, tokens, start = LlamaForCausalLM(config), torch.from_numpy(hanoi.path(6)), hanoi.prompt_length(6)
    with torch.no_grad():
        whole = net(tokens[:, :-1]).logits[:, start - 1 :]
    assert torch.allclose(forward.in_parts(net, tokens, start), whole, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_members_that_are_alike_vote_as_the_theory_says(k):
    p = np.array([0.75, 0.9, 0.999])
    right, votes = scan.vote(np.tile(p, (5, 1)), k)
    assert right == pytest.approx([theory.vote_success(q, k) for q in p], abs=1e-6)
    assert votes == pytest.approx([theory.mean_votes(q, k) for q in p], abs=1e-4)
    assert right[2] == pytest.approx(theory.vote_success(0.999, k), abs=1e-12)


def test_two_members_that_are_always_wrong_do_not_outvote_three_that_are_right():
    p = np.array([[0.0], [0.0], [1.0], [1.0], [1.0]])
    assert scan.vote(p, 2)[0] == 0.0  # the first two agree
    assert scan.vote(p, 3)[0] == scan.vote(p, 6)[0] == 1.0
    assert scan.vote(p[::-1], 2)[0] == 1.0
    assert scan.vote(np.array([[1.0], [0.0]]), 2) == (0.0, scan.CAP)  # never decided


def test_what_is_predicted_of_a_whole_run_is_the_product_over_its_steps():
    p = np.full((5, 100), 0.95)
    found = scan.predicted(p)
    assert found["by_margin"]["3"]["success"] == pytest.approx(theory.run_success(0.95, 3, 100))
    assert found["pool"]["below_half"] == 0 and found["members_below_half_together"] == [100, 0, 0, 0, 0, 0]
    assert builtin("hanoi", {"disks": 20}).total() == 2**20 - 1


def test_what_fills_up_a_row_behind_its_end_is_not_learned():
    answers = torch.tensor([[5, 0, 0, 0], [5, 6, 7, 0], [0, 0, 0, 0]])
    assert train.wanted(answers).tolist() == [[5, 0, -100, -100], [5, 6, 7, 0], [0, -100, -100, -100]]


def test_a_card_measures_answers_of_every_length_as_if_each_were_alone():
    ensemble, rows = load("strings"), strings.batch(np.random.default_rng(4), 30)
    found = card.measured(ensemble, card.examples("all", rows, strings.PROMPT))
    for number, row in enumerate(rows):
        end = list(row).index(0, strings.PROMPT) + 1
        one, greedy = answer_probabilities(ensemble.members[1], row[None, : strings.PROMPT], row[None, strings.PROMPT : end])
        assert found.p[1, number] == pytest.approx(one[0], rel=1e-4) and found.right[1, number] == greedy[0]


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        (card, ["nothing"], "arithmetic"),
        (train, ["hanoi", "--member", "5"], "0 to 4"),
        (train, ["hanoi", "--member", "-1"], "0 to 4"),
        (scan, ["--disks", "30"], "3-20"),
        (scan, ["--member", "9"], "0-4"),
        (scan, ["--run", "some"], "--journal"),
    ],
)
def test_what_the_scripts_cannot_do_is_said(monkeypatch, capsys, script, arguments, said):
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert said in capsys.readouterr().err
