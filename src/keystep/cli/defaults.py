"""What `keystep run` does where it is not told otherwise, and how commands read numbers."""

from typing import Any

import typer

MODEL = "embedded"
AHEAD_BY = 3
JOURNAL = "sqlite:///runs.db"


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
