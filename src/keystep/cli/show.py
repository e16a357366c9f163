"""What a run looks like: progress on standard error while it goes on, the report on standard output."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from keystep.cli.forecast import beside
from keystep.cli.job import Job
from keystep.lm.redact import redact
from keystep.run import Outcome, Run
from keystep.run.compare import Way

SHOWN = 1000  # characters of a result on the screen


@contextmanager
def following(run: Run, quiet: bool) -> Iterator[None]:
    """A line that follows the run, where standard error is a terminal."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield
        return
    with Live(get_renderable=lambda: _line(run), console=console, refresh_per_second=4, transient=True):
        yield


def _line(run: Run) -> Table:
    meter, total = run.meter, run.expected
    rate = meter.steps / meter.seconds if meter.seconds else 0.0
    parts = [
        f"{meter.steps:,}{f' of {total:,}' if total else ''} steps",
        f"{rate:,.0f} steps/s" if rate >= 10 else f"{rate:.2f} steps/s",
        f"{meter.calls / meter.steps:.2f} votes per step" if meter.steps else "",
        f"{meter.flagged:,} flagged",
        f"{clock((total - meter.steps) / rate)} left" if total and rate else "",
    ]
    line = Table.grid(padding=(0, 2))
    line.add_row(ProgressBar(total=total, completed=meter.steps, width=24, pulse=total is None), " · ".join(part for part in parts if part))
    return line


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


@contextmanager
def comparing(quiet: bool) -> Iterator[Callable[[list[Way]], None]]:
    """The same for the comparison; gives what is to be called with the ways as they move."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda ways: None
        return
    with Live(Text("comparing with single calls"), console=console, refresh_per_second=4, transient=True) as live:

        def moved(ways: list[Way]) -> None:
            furthest = max(ways, key=lambda way: way.steps)
            live.update(Text(f"comparing with {len(ways)} single-call ways: the furthest is at step {furthest.steps:,}"))

        yield moved


def result_json(outcome: Outcome, ways: list[Way] | None, job: Job) -> dict[str, Any]:
    """What `--json` prints."""
    best = None if not ways else {"way": ways[0].way, "correct": ways[0].correct, "first_error_step": ways[0].first_error_step}
    shown = outcome.model_dump(mode="json", exclude={"result", "cost"})
    expected = {} if job.forecast is None else {"forecast": job.forecast}
    result = {} if job.inputs else {"result": redact(outcome.result)}
    return {**shown, "k": job.ahead_by, "seed": job.seed, "baseline": best, **expected, **result}


def report(outcome: Outcome, ways: list[Way] | None, journal: str, forecast: dict[str, Any] | None = None) -> None:
    """The result, for people."""
    console = Console()
    verdict = {True: "correct", None: "nobody could check them", False: f"wrong at step {outcome.first_error_step}"}[outcome.correct]
    head = Text(
        f"{outcome.procedure}: {outcome.steps:,} steps, {verdict}",
        style={True: "bold green", False: "bold red", None: "bold"}[outcome.correct],
    )
    rate = f", {outcome.steps / outcome.seconds:,.0f} steps per second" if outcome.seconds else ""
    cost = f", cost {outcome.cost:.4f}" if outcome.cost else ""
    lines = [
        f"{outcome.votes_per_step:.2f} votes per step ({outcome.samples:,} samples, {outcome.flagged:,} of them flagged)",
        f"{outcome.tokens_in:,} tokens in, {outcome.tokens_out:,} out{cost}",
        f"{outcome.seconds:.1f} seconds{rate}",
        f"run {outcome.run_id} in {journal}",
    ]
    console.print(Panel(Group(head, *map(Text, lines)), expand=False))
    if outcome.result is not None:
        shown = json.dumps(redact(outcome.result), ensure_ascii=False)
        console.print(Text(f"result: {shown if len(shown) <= SHOWN else shown[:SHOWN] + '…'}"), soft_wrap=True)
    if forecast is not None:
        console.print(beside(forecast, outcome.model_dump()))
    if ways:
        console.print(_table(ways))
        console.print(Text(_verdict(ways, outcome)), soft_wrap=True)


def _table(ways: list[Way]) -> Table:
    table = Table("the same with single calls", "came out", box=None, padding=(0, 3, 0, 0))
    for way in ways:
        if way.problem:
            table.add_row(Text(way.way), Text(f"could not go on after {way.steps:,} steps: {way.problem}"))
        else:
            came = {True: "correct", None: "nobody could check it", False: f"wrong at step {way.first_error_step}"}
            table.add_row(Text(way.way), came[way.correct])
    return table


def _verdict(ways: list[Way], outcome: Outcome) -> str:
    best = ways[0]
    if any(way.correct and way.greedy for way in ways):
        greedy = next(way for way in ways if way.correct and way.greedy)
        return f"Plain greedy decoding would have done here: {greedy.way} makes no mistake either."
    if best.correct:
        return f"A single call a step would have done with this seed: {best.way} makes no mistake either."
    if best.problem:
        return "No single-call way could be followed to its end."
    if best.correct is None:
        return "Nobody can tell which of them is right: the procedure has no checker."
    return f"The best single-call way, {best.way}, goes wrong at step {best.first_error_step:,} of {outcome.steps:,}."
