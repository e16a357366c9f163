"""Workers that carry out procedures: they read the benchmark's prompts, and write its answers."""

import random
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from keystep.errors import Refused
from keystep.measure.procbench import KINDS, generate, geometric
from keystep.measure.procbench.bench import Settings, problems, procedure, score
from keystep.reproduce import _procedure_nets as nets
from keystep.reproduce import procbench
from keystep.reproduce._nets import Net, answered, trained


class Oracle(nets.Worker):
    """Reads and writes as the nets do, and is right."""

    def answers(self, prompts, temperature, uniform):
        texts = []
        for prompt in prompts:
            one = nets._read(prompt)
            state, states = one.state, []
            for operation in one.operations:
                state = self.step(one.task, nets.operands(operation), state)
                states.append(state)
            tokens = [token for made in states for token in (nets.NEXT, *nets.state_tokens(made))][1:]
            texts.append(nets._said([*tokens, nets.END], one.whole))
        return texts

    def step(self, task, operands, state):
        words = [nets.WORDS[token] for token in operands]
        config = {
            15: lambda: {"pieces": ["x".join(words)]},
            16: lambda: {"actions": [f"pop_{words[1]}" if words[0] == "pop" else f"push_{words[0]}({words[1]})"]},
            17: lambda: {"spans": [tuple(map(int, words))]},
            19: lambda: {"chars": words[1:]},
        }[task]()
        return KINDS[task].apply(config, [state], 0)


@pytest.mark.parametrize("mode", ["direct", "stepwise"])
def test_prompts_are_read_and_answers_written_without_loss(mode):
    settings = Settings(mode=mode, tasks=list(nets.OPERATIONS), each=1)
    given = problems(settings, 3)
    found = score(settings, given, answered("procbench", Oracle("oracle", None), settings, given))
    assert found["summary"]["SM"] == 1 and found["summary"]["unreadable"] == 0


def test_another_prompt_is_refused():
    settings = Settings(tasks=[1], longest=2)
    prompt = procedure(settings, problems(settings, 0)[0]).prompt(0)
    with pytest.raises(Refused):
        nets._read(prompt)


@pytest.mark.parametrize("task", nets.OPERATIONS)
def test_states_are_told_by_their_tokens_and_fit_their_slot(task):
    for problem in generate([task], range(2, 26), 2, 7):
        for state in (problem.init, *problem.intermediate, problem.final):
            tokens = nets.state_tokens(state)
            assert nets.state_text(tokens) == state and len(tokens) < nets.SLOT


@pytest.mark.parametrize("make", [nets.direct_batch, nets.stepwise_batch])
@pytest.mark.parametrize("task", nets.OPERATIONS)
def test_batches_are_true_problems_and_only_answers_count(make, task):
    tokens, counted = make([task], range(2, 6), 24, np.random.default_rng(1))
    position, told = nets.seats(tokens)
    for row, own, where, number in zip(tokens, counted, position, told, strict=True):
        opens = [place for place in range(len(row)) if row[place] == nets.NEXT]
        assert own[: opens[1] + 1].sum() == 0 and own[opens[1] + 1]
        assert [int(where[place]) for place in opens] == [opens[0] + nets.SLOT * number for number in range(len(opens))]
        assert [int(number[place]) for place in opens] == list(range(len(opens)))
        assert list(number[: opens[0]]) == [1 + place // nets.WIDTH for place in range(opens[0])]
        end = int(np.flatnonzero(own)[-1])
        assert row[end] == nets.END and own[opens[1] + 1 : end + 1].all()
        ends = [*opens[1:], end]
        states = [nets.state_text(row[start + 1 : stop]) for start, stop in zip(opens, ends, strict=True)]
        for number, (before, after) in enumerate(pairwise(states)):
            assert after == Oracle("oracle", None).step(task, row[nets.WIDTH * number : nets.WIDTH * (number + 1)], before)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        net = Net("test", nets.VOCABULARY, nets.LONGEST, 2, 5, width=16, layers=1)
        return trained(net, partial(nets.stepwise_batch, [17], [3], 8), read=nets.reading)


def test_writing_in_batches_with_a_cache_is_writing_alone_without(small):
    """Rows of different lengths, side by side, against every token asked for by itself."""
    import torch

    chance = random.Random(3)
    given = [
        nets.asked([KINDS[17].now(config, number) for number in range(count)], config["string"])
        for count in (1, 2, 4, 3)
        for config in [KINDS[17].draw(chance, count)]
    ]
    most, uniform = [3, 30, 12, 40], np.array([0.1, 0.45, 0.7, 0.99])
    found = nets.written(small, given, most, 1.0, uniform)
    for row, limit, start, tokens in zip(given, most, uniform, found, strict=True):
        draws = np.random.Generator(np.random.Philox(key=int(start * 2**53))).random(limit)
        own = list(row)
        for draw in draws:
            sofar = np.array([own])
            with torch.inference_mode():
                scores = small(**nets.reading(small, sofar)).logits[0, -1, : nets.NUMBER].double()
            reached = torch.softmax(scores, -1).cumsum(-1).numpy()
            own.append(int((reached < draw * reached[-1]).sum()))
            if own[-1] == nets.END:
                break
        assert tokens == own[len(row) :]


def test_the_whole_reproduction_on_hardly_trained_nets(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ways = [procbench.Way(way.name, way.mode, way.lengths, 2, 8, 16, 1) for way in procbench.WAYS]
    for name, value in (("WAYS", tuple(ways)), ("EACH", 1), ("PILOT", 1), ("ALL", (2, 20)), ("TASKS", (15,))):
        monkeypatch.setattr(procbench, name, value)
    first, again = procbench.main(1), procbench.main(1)
    assert not first.held
    assert first.measured["each"] == again.measured["each"]
    procbench.picture(procbench.Reproduction.model_validate_json(first.model_dump_json()), tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").stat().st_size


def test_the_closed_form_is_the_mean_over_tasks():
    [line] = [line for line in procbench.law({"one": 0.95, "other": 0.9}) if line["steps"] == 16]
    assert line["SM"] == pytest.approx((0.440127 + geometric(0.9, 16)[0]) / 2, abs=1e-6)
