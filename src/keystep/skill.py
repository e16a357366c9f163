"""Skill and SkillLibrary: the abilities that steps are given to."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from keystep.errors import BadInput


class Skill(ABC):
    """A named ability with typed input and output, a description to retrieve it by, a cost, and a way to know when it is done.

    Args:
        name: unique within a library.
        description: what it does, in words a user would search for.
        cost: what one use costs, in any one unit the library keeps to; cheaper skills are tried first.
        can: the abilities it offers beside its own name; a step names an ability, and every skill that offers it is a candidate.
        takes, gives: Python types of the inputs (usually a pydantic model or a `typing_extensions.TypedDict`) and of the output; None
            takes anything.
    """

    def __init__(
        self, name: str, *, description: str = "", cost: float = 0.0, can: Iterable[str] = (), takes: Any = None, gives: Any = None
    ) -> None:
        if not name or "/" in name:
            raise BadInput("a skill needs a name without /", field="name", value=name)
        self.name, self.description, self.cost = name, description, cost
        self.abilities = frozenset(can) | {name}
        self._takes = None if takes is None else TypeAdapter(takes)
        self._gives = None if gives is None else TypeAdapter(gives)

    @abstractmethod
    async def call(self, inputs: Mapping[str, Any], ctx: Any) -> Any:
        """Do the work. `ctx` is the executor's `keystep.run.Context`: the step, the way to ask a model, the seed."""

    def done(self, output: Any) -> bool:
        """Whether `output` is a finished result; the executor escalates where it is not."""
        return True

    def identity(self) -> dict[str, Any]:
        """What of this skill decides its results, as JSON; the journal keeps it and refuses to resume a run on changed skills.

        Skills with settings of their own add them: `super().identity() | {...}`.
        """
        return {"kind": type(self).__name__, "cost": self.cost, "can": sorted(self.abilities)}

    def check_inputs(self, inputs: Mapping[str, Any]) -> Any:
        return _checked(self._takes, inputs, f"inputs of skill {self.name}")

    def check_output(self, output: Any) -> Any:
        return _checked(self._gives, output, f"output of skill {self.name}")


def _checked(adapter: TypeAdapter[Any] | None, value: Any, field: str) -> Any:
    if adapter is None:
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(first["msg"], field=f"{field}{'.' + where if where else ''}", value=first["input"]) from None


class SkillLibrary:
    """Skills by name and by ability."""

    def __init__(self, skills: Iterable[Skill] = ()) -> None:
        self._skills: dict[str, Skill] = {}
        for skill in skills:
            self.add(skill)

    def add(self, skill: Skill) -> None:
        if skill.name in self._skills:
            raise BadInput("the library has a skill of this name", field="skill", value=skill.name, mend="choose another name")
        self._skills[skill.name] = skill

    def __iter__(self) -> Iterator[Skill]:
        return iter(self._skills.values())

    def __len__(self) -> int:
        return len(self._skills)

    def fitting(self, ability: str) -> list[Skill]:
        """The skills that offer `ability`, cheapest first (by name among equals).

        Raises:
            BadInput: no skill offers it.
        """
        fits = sorted((s for s in self if ability in s.abilities), key=lambda s: (s.cost, s.name))
        if not fits:
            mend = f"add one, or name one of {sorted(self._skills)}"
            raise BadInput("no skill of the library can do this", field="skill", value=ability, mend=mend)
        return fits

    def search(self, words: str, n: int = 5) -> list[Skill]:
        """Up to `n` skills whose name or description shares most words with `words`, best first; those that share none are left out."""
        asked = set(re.findall(r"\w+", words.lower()))
        shared = {s.name: len(asked & set(re.findall(r"\w+", f"{s.name} {s.description}".lower()))) for s in self}
        ranked = sorted((s for s in self if shared[s.name]), key=lambda s: (-shared[s.name], s.cost, s.name))
        return ranked[:n]
