"""Procedures that come with keystep, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keystep.errors import BadInput
from keystep.run.builtin.hanoi import Hanoi
from keystep.run.builtin.ledger import Ledger
from keystep.run.procedure import Procedure

BUILTIN: dict[str, type[Hanoi] | type[Ledger]] = {"hanoi": Hanoi, "ledger": Ledger}


def builtin(name: str, settings: Mapping[str, Any]) -> Procedure:
    """The built-in procedure `name` with its settings.

    Raises:
        BadInput: no such procedure, no such setting, or a value out of range.
    """
    if name not in BUILTIN:
        mend = f"built in are {', '.join(BUILTIN)}; or give a YAML file"
        raise BadInput("is not a built-in procedure", field="procedure", value=name, mend=mend)
    kind = BUILTIN[name]
    known = list(kind.__dataclass_fields__)
    for setting, value in settings.items():
        if setting not in known:
            raise BadInput(f"is not a setting of {name}", field="set", value=setting, mend=f"its settings are {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadInput("is a whole number", field=setting, value=value)
    return kind(**settings)
