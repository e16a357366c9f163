"""The nouns: JSON round trip, validation that names what is wrong, and a light import."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

import keystep
from keystep import BadInput, Demonstration, Need, Plan, Ref, Segment, Step, StepTrace, Task, Trace, Vote

KEY = st.text(max_size=5).filter(lambda key: key != "$from")  # which would make a Ref of a mapping
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEY, inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.dictionaries(KEY, JSON, max_size=3)
WORD = KEY
COUNT = st.integers(0, 9)
VOTES = st.builds(Vote, index=COUNT, text=WORD, key=st.none() | WORD, flag=st.none() | WORD, logprob=st.none() | st.floats(-9, 0))
STEPS = st.builds(
    StepTrace, step=WORD, skill=WORD, answer=JSON, decided=st.booleans(), samples=COUNT,
    candidates=st.dictionaries(WORD, COUNT, max_size=2), votes=st.lists(VOTES, max_size=2), seconds=st.floats(0, 9), cost=st.floats(0, 9),
)  # fmt: skip


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Steps that refer to earlier ones in inputs (at any depth) and needs, listed in any order."""
    id = st.text("aZ9_", min_size=1, max_size=1).flatmap(lambda first: st.text("bY8_.-", max_size=4).map(lambda rest: first + rest))
    ids = draw(st.lists(id, min_size=1, max_size=5, unique=True))
    steps = []
    for number, id in enumerate(ids):
        refs = st.builds(Ref, step=st.sampled_from([*ids[:number], "inputs"]), path=st.tuples() | st.tuples(st.text(max_size=3), COUNT))
        values = st.recursive(
            refs | JSON, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORD, inner, max_size=2), max_leaves=4
        )
        first = draw(st.lists(st.sampled_from(ids[:number]), max_size=2)) if number else []
        needs = tuple(Need(step=step, weight=draw(st.floats(0, 5)), optional=draw(st.booleans())) for step in first)
        inputs = draw(st.dictionaries(WORD, values, max_size=2))
        steps.append(Step(id=id, skill="s", instruction=draw(WORD), inputs=inputs, needs=needs, pre=draw(st.none() | WORD)))
    return Plan(steps=tuple(draw(st.permutations(steps))), output=draw(st.none() | st.sampled_from(ids)))


def demonstrations() -> st.SearchStrategy[Demonstration]:
    def build(values: list[Any], words: list[str], label: str) -> Demonstration:
        segments = (Segment(start=0, end=1, label=label, score=0.5),)
        return Demonstration(
            id="d", observations=tuple(values), actions=tuple(values[1:]), times=tuple(range(len(values))), segments=segments
        )

    return st.builds(build, st.lists(JSON, min_size=2, max_size=4), st.lists(WORD, max_size=3), WORD)


@given(
    st.one_of(
        st.builds(Task, goal=st.text(min_size=1, max_size=8), inputs=FIELDS, state=JSON, check=st.none() | WORD),
        plans(),
        demonstrations(),
        st.builds(Trace, run=WORD, name=WORD, steps=st.lists(STEPS, max_size=3)),
    )
)
def test_every_noun_comes_back_from_json_as_it_was(noun: BaseModel) -> None:
    again = type(noun).model_validate_json(noun.model_dump_json())
    assert again == noun
    assert again.model_dump_json() == noun.model_dump_json()


@settings(max_examples=50)
@given(plans())
def test_a_plan_is_ordered_by_what_its_steps_need(plan: Plan) -> None:
    order = plan.order()
    assert sorted(order) == sorted(step.id for step in plan.steps)
    for step in plan.steps:
        assert all(order.index(first) < order.index(step.id) for first in step.first())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"id": "x", "observations": (1, 2, 3), "actions": (1,)}, ["actions", "give 3 or 2"]),
        ({"id": "x", "times": (2.0, 1.0)}, ["times", "backwards"]),
        ({"id": "x", "observations": (1, 2), "times": (0.0,)}, ["times", "give 2"]),
        ({"id": "x", "observations": (1, 2), "segments": ({"start": 0, "end": 3},)}, ["segments", "end it at 2"]),
        ({"id": "x", "segments": ({"start": 2, "end": 2},)}, ["end", "start = 2"]),
        ({"id": "x", "colour": 1}, ["colour"]),
    ],
)
def test_a_demonstration_that_cannot_be_names_what_is_wrong(data: dict[str, Any], words: list[str]) -> None:
    with pytest.raises((BadInput, ValidationError)) as caught:
        Demonstration.model_validate(data)
    assert all(word in str(caught.value) for word in words)


def test_a_task_has_a_goal() -> None:
    with pytest.raises(ValueError, match="goal"):
        Task(goal="")


def test_every_public_name_is_there_and_no_other() -> None:
    for name in keystep.__all__:
        assert getattr(keystep, name).__name__.rpartition(".")[2] == name
    assert dir(keystep) == keystep.__all__
    with pytest.raises(AttributeError, match="nonsense"):
        keystep.nonsense  # noqa: B018


HEAVY = ("numpy", "networkx", "sqlalchemy", "aiohttp", "torch", "jinja2", "transformers", "gymnasium", "opentelemetry", "pydantic")


NOUNS = "from keystep import Plan, Task, Skill, SkillLibrary, Demonstration, Trace"


@pytest.mark.parametrize(("work", "allowed"), [("import keystep", ()), (NOUNS, ("pydantic",))])
def test_importing_the_nouns_loads_nothing_heavy(work: str, allowed: tuple[str, ...]) -> None:
    text = f"{work}\nimport sys\nprint(*(name for name in {HEAVY} if name in sys.modules))"
    shown = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=120)
    assert set(shown.stdout.split()) == set(allowed)
