"""What `keystep run` does where it is not told otherwise, and how commands read numbers."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from keystep.errors import BadInput

MODEL = "embedded"
AHEAD_BY = 3
JOURNAL = "sqlite:///runs.db"
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number. Write one like 7") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number. Write one like 0.5") from None


def whole_option(help: str, panel: str) -> Any:
    return typer.Option(parser=whole, metavar="N", help=help, rich_help_panel=panel)


def number_option(help: str, panel: str) -> Any:
    return typer.Option(parser=number, metavar="X", help=help, rich_help_panel=panel)


@contextmanager
def noted(said: bool = True) -> Iterator[None]:
    """Warnings of what is done inside become notes to the user, without the place in our code that they come from; or nothing."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        yield
    for note in notes if said else ():
        typer.echo(f"note: {note.message}", err=True)


def pairs(flag: str, given: list[str] | None) -> dict[str, Any]:
    """What a flag said as NAME=VALUE, however often it was given.

    Raises:
        BadInput: one is written otherwise, or a name is given twice.
    """
    from keystep.run.procedure_file import parse_setting

    return dict(parse_setting(f"{name}={value}") for name, value in _named(flag, given).items())


def texts(flag: str, given: list[str] | None, *, typed: bool = False) -> dict[str, Any]:
    """What a flag said as NAME=VALUE, for settings that know their types: a value is the text that it is, with a colon, a # or a number
    in it; only [ … ], { … } and a text in quotes are read as YAML, and `null` is none.

    Args:
        typed: nobody knows the types: numbers, true and false are read as such.

    Raises:
        BadInput: as `pairs`.
    """
    from keystep.run.yaml_text import Document

    found: dict[str, Any] = {}
    for name, value in _named(flag, given).items():
        try:
            read = Document(value, name).value
        except BadInput:
            read = value
        marked = value[:1] in ("[", "{", '"', "'") or value.lower() in ("", "~", "null")
        found[name] = read if marked or (typed and isinstance(read, bool | int | float)) else value
    return found


def _named(flag: str, given: list[str] | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given or ():
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name:
            raise BadInput("is written name=value", field=flag, value=text, mend=f"for instance {flag} name=value")
        if name in found:
            raise BadInput("is given twice", field=flag, value=name, mend="give every name once")
        found[name] = value
    return found
