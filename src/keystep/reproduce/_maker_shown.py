"""How the reproduction of MAKER is shown: its pictures, and its figures as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from keystep.measure.chart import Chart, Line, save
from keystep.reproduce import Reproduction
from keystep.reproduce._maker_parts import Row, grouped, samples_per_step, written_per_step
from keystep.reproduce._tables import table

PARSERS = {"flags": "flagged", "repairs": "repaired"}


def picture(found: Reproduction, path: Path) -> None:
    """Error-free runs against length in one file, the other parts in a second one beside it."""
    save(list(_lengths(found)), path)
    save(list(_parts(found)), path.with_name(f"{path.stem}-parts{path.suffix}"))


def _lengths(found: Reproduction) -> Iterator[Chart]:
    singles = grouped(found.baseline["single_calls"], "task")
    for task, rows in grouped(found.measured["whole_runs"], "task").items():
        lengths = [row["length"] for row in rows]
        at = list(grouped(singles[task], "length").values())
        greedy = [sum(row["greedy"] for row in members) / sum(row["tried"] for row in members) for members in at]
        best = [max(row["sampled"] for row in members) for members in at]
        free = [row["error_free"] / row["runs"] for row in rows]
        ks = _span([k for row in rows for k in row["k"]])
        yield Chart(
            {"hanoi": "Tower of Hanoi", "ledger": "ledger"}[task], "dependent steps", "runs without an error",
            [
                Line(f"keystep: the k of the forecast ({ks})", lengths, free, style="^-"),
                Line("one sampled call a step: the best member (exact)", lengths, best, style="o--"),
                Line("one greedy call a step: share of members (exact)", lengths, greedy, style="s:"),
            ],
            log="x",
        )  # fmt: skip


def _parts(found: Reproduction) -> Iterator[Chart]:
    part = found.measured
    lines = []
    for heat, rows in grouped(part["votes_per_step"], "heat").items():
        ks = [row["margin"] for row in rows]
        lines += [Line(f"temperature {heat}: measured", ks, [samples_per_step(row) for row in rows], style="o"),
                  Line("k / (2p - 1) / v", ks, [row["paper"] for row in rows], style="--")]  # fmt: skip
    yield Chart("What a vote takes", "k", "samples per step", lines, share=False)
    lines = []
    for task, rows in grouped(part["whole_runs"], "task").items():
        lengths = [row["length"] for row in rows]
        lines += [Line(f"{task}: measured", lengths, [samples_per_step(row) for row in rows], style="o-"),
                  Line(f"{task}: by theory", lengths, [row["votes_by_theory"] for row in rows], style="--")]  # fmt: skip
    yield Chart("Cost grows with s ln s: samples per step against ln s", "steps s", "samples per step", lines, log="x", share=False)
    kinds = [PARSERS[row["parser"]] for row in part["parsers"]]
    wrong = [1000 * row["collided"] / row["steps"] for row in part["parsers"]]
    bars = [Line("both first votes wrong", range(len(kinds)), wrong, style="bars")]
    yield Chart("Malformed answers flagged, or repaired", "", "of 1,000 steps", bars, names=kinds, share=False)
    lines = []
    for heat, rows in grouped(part["steps_per_call"], "heat").items():
        sizes = [row["size"] for row in rows]
        lines += [Line(f"temperature {heat}: measured", sizes, [written_per_step(row) for row in rows], style="o-"),
                  Line("by formula", sizes, [row["by_formula"] for row in rows], style="--"),
                  Line("if all wrong answers differ", sizes, [row["if_all_differ"] for row in rows], style=":")]  # fmt: skip
    yield Chart("Several steps in one call", "steps in a call, m", "steps written per step", lines, share=False)
    rows = part["decorrelation"]
    names = [row["worker"].replace("embedded:", "member ").replace("embedded", "all members") for row in rows]
    bars = [Line("wrong samples", range(len(rows)), [1000 * (1 - row["p"]) for row in rows], style="bars"),
            Line("wrong votes", range(len(rows)), [1000 * row["wrong_steps"] / row["steps"] for row in rows], style="bars")]  # fmt: skip
    yield Chart("One model, or unlike ones in turn", "", "of 1,000 steps", bars, names=names, share=False)
    weak = [row for row in part["systematic"] if row["worker"] != "embedded"]
    ks = [row["margin"] for row in weak]
    wrong = [len(row["wrong"]) / row["runs"] for row in weak]
    named = [(len(row["named"]) - row["named_right"]) / row["runs"] for row in weak]
    lines = [Line("wrong", ks, wrong, style="o-"), Line("wrong, and named systematic by the forecast", ks, named, style="s:")]
    yield Chart("One member alone: more votes cure no systematic error", "k", "steps of a run", lines, share=False)


def tables(found: Reproduction) -> str:
    """The figures as Markdown."""
    part, checks = found.measured, found.measured["checks"]
    lengths = [
        {"task": row["task"], "steps": row["length"], "best sampled call": _best(found, row, "sampled"),
         "members right, greedy": _best(found, row, "greedy"), "p": row["p"], "valid": row["v"], "k": _span(row["k"]),
         "runs without an error": f"{row['error_free']} of {row['runs']}", "promised": row["promised"],
         "samples a step": samples_per_step(row), "by theory": row["votes_by_theory"]} for row in part["whole_runs"]
    ]  # fmt: skip
    votes = [
        {"temperature": row["heat"], "k": row["margin"], "p": row["p"], "valid": row["v"], "samples a step": samples_per_step(row),
         "exact mean": row["exact"], "k / (2p - 1) / v": row["paper"],
         "if all wrong answers differ": row["if_all_differ"], "wrong steps": f"{row['wrong_steps']} of {row['steps']:,}"}
        for row in part["votes_per_step"]
    ]  # fmt: skip
    parsers = [
        {"malformed answers are": PARSERS[row["parser"]], "steps": row["steps"], "samples": row["samples"],
         "thrown away": row["flagged"], "first two votes wrong": row["collided"], "and the same": row["alike"],
         "wrong steps": row["wrong_steps"]} for row in part["parsers"]
    ]  # fmt: skip
    calls = [
        {"temperature": row["heat"], "m": row["size"], "k": _span(row["k"]), "steps written per step": written_per_step(row),
         "by formula": row["by_formula"], "if all wrong answers differ": row["if_all_differ"],
         "runs without an error": f"{row['error_free']} of {row['runs']}"}
        for row in part["steps_per_call"]
    ]  # fmt: skip
    apart = [
        {"who votes": row["worker"], "mean p": row["p"], "least p": row["least_p"], "steps with p < 1/2": _span(row["below_half"]),
         "wrong steps": f"{row['wrong_steps']} of {row['steps']:,}", "runs without an error": f"{row['error_free']} of {row['runs']}"}
        for row in part["decorrelation"]
    ]  # fmt: skip
    weak = [
        {"who votes": row["worker"], "k": row["margin"], "runs without an error": f"{row['error_free']} of {row['runs']}",
         "wrong steps": _listed(row["wrong"]), "named systematic": _listed(row["named"]), "named hard": _listed(row["hard"]),
         "named ones right": f"{row['named_right']} of {len(row['named'])}"} for row in part["systematic"]
    ]  # fmt: skip
    titled = {
        "Whole runs": lengths, "Votes per step": votes, "Flags and repairs": parsers, "Several steps in a call": calls,
        "One model or several": apart, "An error that no k cures": weak,
        "What had to be found": [{"": name, "found": "yes" if right else "**no**"} for name, right in checks.items()],
    }  # fmt: skip
    return "\n".join(f"### {title}\n\n{table(rows)}" for title, rows in titled.items())


def _best(found: Reproduction, row: Row, column: str) -> Any:
    """Of the single calls at a row's length: the best chance, or how many are right greedily."""
    members = [one for one in found.baseline["single_calls"] if (one["task"], one["length"]) == (row["task"], row["length"])]
    if column == "sampled":
        return max(one["sampled"] for one in members)
    return f"{sum(one['greedy'] for one in members)} of {sum(one['tried'] for one in members)}"


def _span(values: Sequence[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def _listed(values: Sequence[int]) -> str:
    """Steps, each with how often where it is more than once."""
    return (
        ", ".join(f"{value}" + (f" ({values.count(value)})" if values.count(value) > 1 else "") for value in sorted(set(values))) or "none"
    )
