"""The report of a benchmark as one HTML file that needs nothing else: figures, tables, charts. Every text in it is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }}
table {{ border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }}
th, td {{ padding: .2rem .8rem .2rem 0; text-align: left; border-bottom: 1px solid #ddd }}
svg {{ max-width: 100%; height: auto; margin: .5rem 0 }}
</style></head><body>
"""
MOST_ROWS = 500  # of one table; the rest is in the JSON


def page(title: str, about: Mapping[str, Any], scores: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """The report.

    Args:
        about: what was measured: model, settings, seed.
        scores: what the benchmark's `score` gave.
        pictures: SVG texts of our own making; they go in as they are.
    """
    parts = [_HEAD.format(title=escape(title)), f"<h1>{escape(title)}</h1>", _pairs(about), "<h2>Figures</h2>", _pairs(scores["summary"])]
    parts += pictures
    for name, rows in scores.get("tables", {}).items():
        parts.append(f"<h2>{escape(name)}</h2>")
        parts.append(_table(rows))
    return "\n".join([*parts, "</body></html>", ""])


def _pairs(values: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><th>{escape(str(name))}</th><td>{_cell(value)}</td></tr>" for name, value in values.items())
    return f"<table>{rows}</table>"


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "<p>none</p>"
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{escape(str(name))}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{_cell(row.get(name))}</td>" for name in names) + "</tr>" for row in rows[:MOST_ROWS])
    more = f"<p>and {len(rows) - MOST_ROWS:,} more</p>" if len(rows) > MOST_ROWS else ""
    return f"<table><tr>{head}</tr>{body}</table>{more}"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return escape(f"{value:.4g}" if isinstance(value, float) else str(value)[:2000])
