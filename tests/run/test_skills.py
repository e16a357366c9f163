"""The kinds of Skill: prompts, tools, policies."""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest

from keystep import BadInput, First, Flag, Majority, Message, Plan, Ref, Run, Skill, SkillLibrary, Step, TooLong
from keystep.errors import MissingExtra, StepFailed
from keystep.lm.base import LM, Request, Sample
from keystep.run.skills import PolicySkill, PromptSkill, ToolSkill


class Heard(LM):
    """Answers in turn from a list, and keeps the requests."""

    name = "heard"

    def __init__(self, *answers: str) -> None:
        self.answers, self.requests = answers, list[Request]()

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        self.requests.append(request)
        for index in range(request.first, request.first + request.n):
            yield Sample(self.answers[index % len(self.answers)], index=index, tokens_out=9)


def use(skill: Skill, lm: LM | None = None, seed: int = 0, **inputs: Any) -> Any:
    refs = {name: Ref(step="inputs", path=(name,)) for name in inputs}
    plan = Plan(steps=(Step(id="s", skill=skill.name, instruction="Be kind.", inputs=refs),))
    run = Run(lm or Heard("yes"), vote=First(), seed=seed, id="r")
    return run.execute_sync(plan, SkillLibrary([skill]), inputs=inputs).result


# prompts


def test_a_prompt_is_a_template_over_inputs_and_instruction() -> None:
    lm = Heard(" fine \n")
    assert use(PromptSkill("p", "{{ instruction }} {{ inputs.who | upper }}\n"), lm, who="ann") == "fine"
    assert lm.requests[0].prompt == "Be kind. ANN\n"
    use(PromptSkill("p", "hello", system="You are {{ plain }}", sampling={"max_tokens": 5, "temperature": 0.5}), lm)
    assert lm.requests[1].prompt == (Message("system", "You are {{ plain }}"), Message("user", "hello"))
    assert (lm.requests[1].max_tokens, lm.requests[1].temperature) == (5, 0.5)


def test_votes_rotate_over_wordings_by_the_skills_own_rule_and_model() -> None:
    lm, own = Heard("no"), Heard("1", "2", "2")
    assert use(PromptSkill("p", ["a {{ inputs.x }}", "b {{ inputs.x }}"], vote=Majority(3), lm=own), lm, x=7) == "2"
    assert {request.prompt for request in own.requests} == {"a 7", "b 7"}
    assert lm.requests == []


def flagging(text: str) -> int:
    if not text.isdigit():
        raise Flag("not a number")
    return int(text)


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (None, " a b ", "a b"),
        (r"sum = (\d+)", "sum = 1\nno, sum = 42", "42"),
        (r"(?P<a>\d+)\+(?P<b>\d+)", "it is 1+2", {"a": "1", "b": "2"}),
        ({"type": "array", "items": {"type": "integer"}}, " [1, 2] ", [1, 2]),
        (flagging, "12", 12),
    ],
)
def test_answers_are_parsed(parse: Any, text: str, value: Any) -> None:
    lm = Heard("", text)  # the first is thrown away by every parser
    assert use(PromptSkill("p", "q", parse), lm) == value
    assert lm.requests[0].schema == (parse if isinstance(parse, dict) else None)


def test_its_own_flags_replace_the_runs() -> None:
    with pytest.raises(StepFailed, match="too long"):
        use(PromptSkill("p", "q", flags=[TooLong(3)], vote=First(cap=2)))
    assert use(PromptSkill("p", "q", flags=[TooLong(9)], vote=First(cap=2))) == "yes"


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (lambda: PromptSkill("p", "{{ 1 + }}"), "skill p.prompt: line 1"),
        (lambda: PromptSkill("p", []), "skill p.prompt"),
        (lambda: PromptSkill("p", "q", "(("), "regular expression"),
        (lambda: PromptSkill("p", "q", {"type": 3}), "JSON schema"),
        (lambda: PromptSkill("p", "q", sampling={"heat": 1}), "heat"),
        (lambda: PolicySkill("p", "CartPole-v1"), "one of policy and make_policy"),
        (lambda: PolicySkill("p", "CartPole-v1", lambda seen, inputs: 0, max_steps=0), "max_steps"),
    ],
)
def test_settings_that_cannot_work_are_refused(made: Any, word: str) -> None:
    with pytest.raises(BadInput) as caught:
        made()
    assert word in str(caught.value)


# tools


async def later(x: int) -> int:
    """Adds one, later."""
    return x + 1


class Adds:
    async def __call__(self, x: int) -> int:
        return x + 1


@pytest.mark.parametrize("function", [lambda x: x + 1, later, functools.partial(lambda y, x: x + y, 1), Adds(), lambda x: later(x)])
def test_any_callable_is_a_tool(function: Any) -> None:
    assert use(ToolSkill("t", function), x=1) == 2


def test_a_tool_describes_itself_and_is_known_by_its_source() -> None:
    assert ToolSkill("t", later).description == "Adds one, later."
    known = ToolSkill("t", later).identity()
    assert (known["function"], known["kind"]) == ("later", "ToolSkill")
    assert known["source"]
    assert ToolSkill("t", Adds()).identity() == ToolSkill("t", Adds()).identity()
    assert ToolSkill("t", functools.partial(later, 1)).identity() == known
    assert ToolSkill("t", len).identity()["source"] is None


def test_a_tool_with_an_effect_gets_the_same_key_every_time() -> None:
    keys: list[str] = []
    for _ in range(2):
        use(ToolSkill("t", lambda x, once: keys.append(once), key="once"), x=1)
    assert keys == ["r/0/s/t"] * 2


# policies


class Line(gymnasium.Env[float, int]):
    """Walk from a drawn place to 0 on a line, one step at a time."""

    observation_space = gymnasium.spaces.Box(-9, 9)
    action_space = gymnasium.spaces.Discrete(2)
    closed = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.at = int(self.np_random.integers(3, 9))
        self.start = self.at
        return self.at, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.at += 1 if action else -1
        info = {"start": np.int64(self.start), "near": np.bool_(self.at < 2), "big": np.zeros(3), "nan": float("nan"), "name": "line"}
        return self.at, -1.0, self.at == 0, False, info

    def close(self) -> None:
        type(self).closed += 1


def test_a_policy_steps_an_environment_to_its_end() -> None:
    before = Line.closed
    out = use(PolicySkill("walk", lambda inputs: Line(), lambda seen, inputs: 0))
    start = out["info"].pop("start")
    ended = {"terminated": True, "truncated": False, "success": True}
    assert out == {"steps": start, "return": -float(start), **ended, "info": {"near": True, "name": "line"}}
    assert Line.closed == before + 1


def test_the_runs_seed_decides_the_reset() -> None:
    walk = PolicySkill("walk", lambda inputs: Line(), lambda seen, inputs: 0)
    starts = [use(walk, seed=seed)["steps"] for seed in range(12)]
    assert starts == [use(walk, seed=seed)["steps"] for seed in range(12)]
    assert len(set(starts)) > 2


def test_an_episode_cut_off_is_not_done() -> None:
    before = Line.closed
    with pytest.raises(StepFailed, match="not done"):
        use(PolicySkill("walk", lambda inputs: Line(), lambda seen, inputs: 1, max_steps=5))
    assert Line.closed == before + 1


def test_policies_may_be_async_or_have_a_memory_and_a_seed() -> None:
    async def slowly(seen: Any, inputs: Mapping[str, Any]) -> int:
        return int(inputs["action"])

    assert use(PolicySkill("walk", lambda inputs: Line(), slowly), action=0)["success"]
    seeds: list[int] = []

    def memory(inputs: Mapping[str, Any], seed: int) -> Any:
        seeds.append(seed)
        taken: list[float] = []

        def act(seen: float, inputs: Mapping[str, Any]) -> int:
            taken.append(seen)
            return int(len(taken) == 1)

        return act

    out = use(PolicySkill("walk", lambda inputs: Line(), make_policy=memory))
    assert out["steps"] == out["info"]["start"] + 2
    use(PolicySkill("walk", lambda inputs: Line(), make_policy=memory))
    assert len(set(seeds)) == 1


def test_a_registered_environment_and_a_success_of_ones_own() -> None:
    balance = lambda seen, inputs: int(seen[2] + 0.5 * seen[3] > 0)  # noqa: E731
    out = use(PolicySkill("pole", "CartPole-v1", balance, success=lambda result: result["truncated"]))
    assert (out["steps"], out["return"], out["truncated"], out["success"]) == (500, 500.0, True, True)


def test_without_gymnasium_the_mend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(StepFailed, match=r"pip install 'keystep\[act\]'") as caught:
        use(PolicySkill("pole", "CartPole-v1", lambda seen, inputs: 0))
    assert isinstance(caught.value.__cause__, MissingExtra)


def test_what_decides_a_policys_results_is_in_its_identity() -> None:
    def make(**change: Any) -> Any:
        return PolicySkill("p", **{"make_env": "CartPole-v1", "policy": later, "max_steps": 9, **change}).identity()

    assert make() == make()
    for change in ({"make_env": "Other-v0"}, {"policy": Adds()}, {"max_steps": 8}, {"success": len}):
        assert make(**change) != make()
