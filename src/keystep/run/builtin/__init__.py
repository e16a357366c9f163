"""Procedures that come with keystep, by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from keystep.errors import BadInput
from keystep.run.builtin.arithmetic import Add, Multiply
from keystep.run.builtin.edits import Edits
from keystep.run.builtin.hanoi import Hanoi
from keystep.run.builtin.ledger import Ledger
from keystep.run.builtin.letters import Letters
from keystep.run.builtin.problem import Problem
from keystep.run.builtin.sort import Sort
from keystep.run.procedure import Procedure

BUILTIN: dict[str, type[Hanoi] | type[Ledger] | type[Add] | type[Multiply] | type[Sort] | type[Edits] | type[Letters] | type[Problem]] = {
    "hanoi": Hanoi,
    "ledger": Ledger,
    "add": Add,
    "multiply": Multiply,
    "sort": Sort,
    "edits": Edits,
    "letters": Letters,
    "problem": Problem,
}  # fmt: skip


def builtin(name: str, settings: Mapping[str, Any]) -> Procedure:
    """The built-in procedure `name` with its settings.

    Raises:
        BadInput: no such procedure, no such setting, or a value out of range.
    """
    if name not in BUILTIN:
        mend = f"built in are {', '.join(BUILTIN)}; or give a YAML file"
        raise BadInput("is not a built-in procedure", field="procedure", value=name, mend=mend)
    kind = BUILTIN[name]
    known = kind.__dataclass_fields__
    taken = dict(settings)
    for setting, value in settings.items():
        if setting not in known:
            raise BadInput(f"is not a setting of {name}", field="set", value=setting, mend=f"its settings are {', '.join(known)}")
        wanted = str(known[setting].type).removesuffix(" | None")
        if wanted == "str" and (_whole(value) or (setting == "answer" and isinstance(value, list))):
            value = taken[setting] = json.dumps(value)  # an answer or id that is a number or list, as a file or YAML reads it
        if problem := _unlike(value, wanted):
            mend = f"""in quotes a text is taken as it is: --set '{setting}="…"'""" if wanted == "str" else ""
            raise BadInput(problem, field=setting, value=value, mend=mend)
    return kind(**taken)


def _unlike(value: Any, wanted: str) -> str | None:
    """What is wrong with a setting whose field has this type."""
    if wanted == "str":
        return None if isinstance(value, str) else "is a text"
    if wanted == "list[int]":
        return None if isinstance(value, list) and all(map(_whole, value)) else "is a list of whole numbers"
    if wanted == "list[str]":
        return None if isinstance(value, list) and all(isinstance(each, str) for each in value) else "is a list of texts"
    return None if _whole(value) else "is a whole number"


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
