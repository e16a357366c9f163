"""Answers read out of a model's text: JSON, JSON by a schema, the last match of a regular expression. What does not fit is a `Flag`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from keystep.errors import BadInput
from keystep.run.flags import Flag

MATCH_SECONDS = 0.5  # for one text; a pattern that backtracks longer than that has not matched
_BROKEN = (RecursionError, TypeError, AttributeError, ValueError, LookupError, ArithmeticError, re.error)  # what a strange schema leads to


def json_value(text: str, number: Callable[[str], Any] = float) -> Any:
    """JSON, keys sorted as they come back from a journal; `number` reads what has a point or an exponent."""
    try:
        canonical = json.dumps(json.loads(text, parse_float=number), sort_keys=True, allow_nan=False, ensure_ascii=False)
        canonical.encode()  # no half characters
        return json.loads(canonical, parse_float=number)
    except (ValueError, RecursionError):
        raise Flag("not JSON") from None


def by_schema(schema: dict[str, Any], field: str) -> Callable[[Any], None]:
    """What flags a value that does not follow a JSON schema. Nothing that the schema refers to is fetched, and no `pattern` holds it up
    for long (a `patternProperties` might).

    Raises:
        BadInput: it is no JSON schema; when it is first applied, that its $ref leads nowhere or its pattern is none.
    """
    import regex  # type: ignore[import-untyped]  # unlike `re`, it can be told to give up
    from jsonschema import exceptions, validators
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        kind = validators.validator_for(schema, default=validators.Draft202012Validator)
        kind.check_schema(schema)
    except exceptions.SchemaError as error:
        where = ".".join((field, *map(str, error.path)))
        raise BadInput(f"is not a JSON schema: {error.message}", field=where, value=error.instance, mend="see json-schema.org") from None
    except _BROKEN as error:
        raise BadInput(f"is not a JSON schema: {error}", field=field, value=schema, mend="see json-schema.org") from None

    def pattern(validator: Any, wanted: str, value: Any, schema: Any) -> Iterator[exceptions.ValidationError]:
        if isinstance(value, str) and not regex.search(wanted, value, timeout=MATCH_SECONDS):
            yield exceptions.ValidationError(f"{value!r} does not match {wanted!r}")

    validator = validators.extend(kind, {"pattern": pattern})(schema, registry=Registry())  # type: ignore[no-untyped-call]

    def check(value: Any) -> None:
        try:
            error = next(validator.iter_errors(value), None)
        except TimeoutError:
            raise Flag("the match took too long") from None
        except (Unresolvable, regex.error, *_BROKEN) as error:
            raise BadInput(f"cannot be applied: {error}", field=field, value=schema, mend="mend its $ref or pattern") from None
        if error is not None:
            raise Flag(f"not by the schema: {error.message[:100]}")

    return check


def by_last_match(pattern: str, field: str) -> Callable[[str], Any]:
    """What reads the last match: a mapping of its named groups, its only group, or all of it. No text holds it up for long.

    Raises:
        BadInput: it is no regular expression, or has several groups without names.
    """
    import regex

    try:
        compiled = regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise BadInput(f"is not a regular expression: {error}", field=field, value=pattern) from None
    if compiled.groups > 1 and not compiled.groupindex:
        raise BadInput("has several unnamed groups", field=field, value=pattern, mend="name them: (?P<sum>…)")

    def read(text: str) -> Any:
        match = None
        try:
            for match in compiled.finditer(text, timeout=MATCH_SECONDS):  # noqa: B007 (the last one counts)
                pass
        except TimeoutError:
            raise Flag("the match took too long") from None
        if match is None:
            raise Flag("no match")
        return match.groupdict() if compiled.groupindex else match[min(1, compiled.groups)]

    return read
