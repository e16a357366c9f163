"""Settings by name, as `--set` gives them, for a dataclass that has a field for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from keystep.errors import BadInput

T = TypeVar("T")


def made(kind: type[T], values: Mapping[str, Any], what: str) -> T:
    """The dataclass `kind` with these values, checked by their types; `what` has the settings, in words.

    Raises:
        BadInput: one is unknown, of another type or out of range.
    """
    known = sorted(field.name for field in fields(kind))  # type: ignore[arg-type]  # mypy has no name for "a dataclass"
    for name in values:
        if name not in known:
            raise BadInput(f"is no setting of this {what}", field="set", value=name, mend=f"there are: {', '.join(known)}")
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(first["msg"].removeprefix("Value error, "), field=f"set {where}", value=first["input"]) from None
