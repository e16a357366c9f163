"""Figures as Markdown, for the pages that show them (`--8<--`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same names, which are the heads of the columns."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def checks(found: Mapping[str, bool]) -> str:
    """What had to be found, and whether it was."""
    return table([{"what had to be found": name, "found": "yes" if right else "**no**"} for name, right in found.items()])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
