"""Plans: what they refuse, by name, and how refs travel."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from keystep import BadInput, Plan, Ref, Step


def steps(**needs: list[str]) -> tuple[Step, ...]:
    return tuple(Step(id=id, skill="s", needs=tuple(first)) for id, first in needs.items())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: Plan(steps=steps(a=["c"], b=["a"], c=["b"], d=[])), ["in a circle", "a", "b", "c", "->"]),
        (lambda: Plan(steps=steps(a=["a"])), ["step a", "circle"]),
        (lambda: Plan(steps=steps(a=[], b=["nobody"])), ["step b", "nobody", "does not have"]),
        (lambda: Plan(steps=(Step(id="a", skill="s", inputs={"x": [{"y": Ref(step="gone")}]}),)), ["step a", "gone"]),
        (lambda: Plan(steps=(*steps(a=[]), *steps(a=[]))), ["two steps", "'a'"]),
        (lambda: Plan(steps=steps(a=[]), output="b"), ["output", "'b'", "['a']"]),
        (lambda: Plan(steps=steps(inputs=[])), ["inputs", "another id"]),
        (lambda: Plan(steps=()), ["steps", "at least 1"]),
        (lambda: Step(id="a/b", skill="s"), ["id", "a/b"]),
        (lambda: Step(id="a", skill=""), ["skill"]),
        (lambda: Step(id="a", skill="s", colour=1), ["colour"]),  # type: ignore[call-arg]
        (lambda: Step(id="a", skill="s", inputs={"x": {"$from": 3}}), ["step", "3"]),
    ],
)
def test_a_plan_that_cannot_be_names_the_step(made: Any, words: list[str]) -> None:
    with pytest.raises((BadInput, ValidationError)) as caught:
        made()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_only_a_tagged_mapping_is_a_ref() -> None:
    deep = [{"x": {"$from": "inputs", "path": ["rows", 0]}}]
    data = {"plain": {"step": "a"}, "ref": {"$from": "a"}, "deep": deep, "not": {"$from": "a", "more": 1}}
    step = Step.model_validate({"id": "b", "skill": "s", "inputs": data, "needs": ["c", {"step": "d", "optional": True}]})
    assert Step(id="b", skill="s", inputs={"$from": "a"}).inputs == {"$from": "a"}  # a name of an input is only a name
    assert step.inputs["plain"] == {"step": "a"}
    assert step.inputs["not"] == {"$from": "a", "more": 1}
    assert step.inputs["ref"] == Ref(step="a")
    assert step.inputs["deep"][0]["x"] == Ref(step="inputs", path=("rows", 0))
    assert step.first() == {"a", "c", "d"}
    assert step.model_dump(mode="json")["inputs"]["deep"] == deep


def test_the_order_is_the_same_in_every_process() -> None:
    text = (
        "from keystep import Plan, Step\n"
        "steps = [Step(id=f's{i}', skill='s', needs=tuple(f's{j}' for j in range(i % 7))) for i in range(7, 40)]\n"
        "steps += [Step(id=f's{i}', skill='s') for i in range(7)]\n"
        "print(*Plan(steps=tuple(steps)).order())"
    )
    seen = {
        subprocess.run([sys.executable, "-c", text], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True).stdout
        for seed in ("1", "2", "3")
    }
    assert len(seen) == 1
