"""Skills and their library: order, types, search, names."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from keystep import Skill, SkillLibrary
from keystep.errors import BadInput


class Echo(Skill):
    async def call(self, inputs: Mapping[str, Any], ctx: Any) -> Any:
        return dict(inputs)


class Pair(TypedDict):
    left: int
    right: int


class Point(BaseModel):
    x: float


def test_the_cheapest_fitting_skill_comes_first() -> None:
    offer = {"dear": 3, "b": 1, "a": 1}
    library = SkillLibrary([*(Echo(name, cost=cost, can=["add"]) for name, cost in offer.items()), Echo("add", cost=2)])
    assert [skill.name for skill in library.fitting("add")] == ["a", "b", "add", "dear"]
    assert [skill.name for skill in library.fitting("dear")] == ["dear"]
    assert len(library) == 4
    with pytest.raises(BadInput, match=r"no skill.*'fly'.*'dear'"):
        library.fitting("fly")


def test_names_are_unique_and_can_be_addressed() -> None:
    library = SkillLibrary([Echo("a")])
    with pytest.raises(BadInput, match="'a'"):
        library.add(Echo("a"))
    for name in ("", "a/b"):
        with pytest.raises(BadInput, match="name"):
            Echo(name)


def test_types_are_checked_and_the_field_is_named() -> None:
    skill = Echo("s", takes=Pair, gives=Point)
    assert skill.check_inputs({"left": "1", "right": 2}) == {"left": 1, "right": 2}
    with pytest.raises(BadInput, match=r"inputs of skill s\.right.*missing|inputs of skill s\.right.*required"):
        skill.check_inputs({"left": 1})
    with pytest.raises(BadInput, match=r"output of skill s\.x.*'wide'"):
        skill.check_output({"x": "wide"})
    assert skill.check_output({"x": 1}) == Point(x=1)
    assert Echo("free").check_inputs({"any": object}) == {"any": object}
    assert asyncio.run(Echo("free").call({"a": 1}, None)) == {"a": 1}


def test_search_ranks_by_shared_words() -> None:
    about = {"sql": "write a query for a database", "sum": "add numbers", "query": "ask"}
    library = SkillLibrary(Echo(name, description=text) for name, text in about.items())
    assert [skill.name for skill in library.search("Query the database")] == ["sql", "query"]
    assert library.search("nothing shared") == []
    assert len(library.search("query", n=1)) == 1


def test_what_decides_the_order_is_part_of_the_identity() -> None:
    assert Echo("a", cost=1).identity() != Echo("a", cost=2).identity()
    assert Echo("a").identity() != Echo("a", can=["b"]).identity()
    assert Echo("a", can=["b", "c"]).identity() == Echo("a", can=["c", "b"]).identity()
