"""Step and Plan: the work as a directed acyclic graph."""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_serializer, model_validator

from keystep.errors import BadInput

INPUTS = "inputs"  # what refs call the plan's own inputs

_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$"  # no "/": it separates a step from the sub-steps below it


class Ref(BaseModel):
    """The output of an earlier step as an input: `Ref(step="a", path=("rows", 0))` is `output_of_a["rows"][0]`.

    `step="inputs"` is the plan's own inputs. In JSON a Ref is `{"$from": "a", "path": ["rows", 0]}` (the path may be left out).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: str
    path: tuple[str | int, ...] = ()

    @model_serializer
    def _tagged(self) -> dict[str, Any]:
        return {"$from": self.step, "path": list(self.path)}


class Need(BaseModel):
    """An edge: the step that has to come first.

    `weight` and `optional` are for scripts induced from demonstrations (how often the edge was seen; whether the order may be broken);
    the executor waits for every need, optional or not.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: str
    weight: float = Field(default=1.0, ge=0)
    optional: bool = False


class Step(BaseModel):
    """One unit of work: an instruction, its inputs, the skill it needs, the steps it needs first, and its conditions.

    `inputs` are JSON values with `Ref`s anywhere in them (a Ref is also a need). `pre` and `post` are expressions of the sandboxed Jinja
    language; both see `inputs`, `post` sees `output` too. A step whose `post` is false is tried again with the next skill that fits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=_NAME)
    instruction: str = ""
    inputs: dict[str, Any] = Field(default_factory=dict)
    skill: str = Field(min_length=1)
    needs: tuple[Need, ...] = ()
    pre: str | None = None
    post: str | None = None

    @field_validator("needs", mode="before")
    @classmethod
    def _names_are_needs(cls, needs: Any) -> Any:
        if isinstance(needs, list | tuple):
            return [{"step": need} if isinstance(need, str) else need for need in needs]
        return needs

    @field_validator("inputs", mode="after")
    @classmethod
    def _tags_are_refs(cls, inputs: dict[str, Any]) -> Any:
        return {name: _with_refs(value) for name, value in inputs.items()}

    def first(self) -> frozenset[str]:
        """Ids of the steps that have to be done before this one."""
        refs = {ref.step for ref in _refs(self.inputs) if ref.step != INPUTS}
        return frozenset(refs | {need.step for need in self.needs})


def _with_refs(value: Any) -> Any:
    if isinstance(value, dict):
        if "$from" in value and value.keys() <= {"$from", "path"}:
            return Ref(step=value["$from"], path=value.get("path", ()))
        return {name: _with_refs(part) for name, part in value.items()}
    return [_with_refs(part) for part in value] if isinstance(value, list | tuple) else value


def _refs(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _refs(part)


class Plan(BaseModel):
    """A directed acyclic graph of steps; `output` names the step whose output is the plan's (default: the last one listed).

    Raises:
        BadInput: a step id twice, a need or `output` that no step has, or a cycle; the message names the step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: tuple[Step, ...] = Field(min_length=1)
    output: str | None = None

    @model_validator(mode="after")
    def _is_a_graph(self) -> Plan:
        known: set[str] = set()
        for step in self.steps:
            if step.id == INPUTS:
                raise BadInput("is what refs call the plan's own inputs", field="steps", value=step.id, mend="give the step another id")
            if step.id in known:
                raise BadInput("two steps have this id", field="steps", value=step.id, mend="give every step an id of its own")
            known.add(step.id)
        for step in self.steps:
            for need in sorted(step.first() - known):
                mend = f"add the step {need!r} or drop the need"
                raise BadInput("needs a step that the plan does not have", field=f"step {step.id}", value=need, mend=mend)
        if self.output is not None and self.output not in known:
            raise BadInput("is not a step of the plan", field="output", value=self.output, mend=f"name one of {sorted(known)}")
        try:
            self.sorter().prepare()
        except CycleError as error:
            circle = error.args[1]
            field, value = f"step {circle[0]}", " -> ".join(circle)
            raise BadInput("the steps need one another in a circle", field=field, value=value, mend="drop one of these needs") from None
        return self

    def sorter(self) -> TopologicalSorter[str]:
        """A fresh stdlib sorter over the step ids."""
        return TopologicalSorter({step.id: sorted(step.first()) for step in self.steps})

    def order(self) -> list[str]:
        """The step ids, each after all it needs."""
        return list(self.sorter().static_order())

    def step(self, id: str) -> Step:
        for step in self.steps:
            if step.id == id:
                return step
        raise BadInput("is not a step of the plan", field="step", value=id, mend=f"name one of {[step.id for step in self.steps]}")
