"""`keystep run --inputs`: many rows as one run; its progress and its report."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from keystep.cli.job import Job, resume_command
from keystep.cli.show import clock, result_json
from keystep.cli.stopping import stoppable
from keystep.errors import KeystepError
from keystep.run import Many, ManyOutcome, Run

SHOWN = 5  # failed rows that are named


def carry_out_rows(job: Job, run: Run, many: Many, journal: str, as_json: bool, quiet: bool) -> None:
    """Run all rows and print what came out; exits with 3 where rows failed or everything stopped, with 1 where a row came out wrong."""
    again = f"go on with: {resume_command(run.id, journal)}"
    try:
        outcome = asyncio.run(follow_rows(run, many, quiet))
    except KeystepError as error:
        typer.echo(f"error: {error}", err=True)
        if error.exit_code == 3 and run.journal.run(run.id, missing_ok=True):
            typer.echo(f"{many.finished:,} of {many.total:,} rows are finished; {again}", err=True)
        raise typer.Exit(error.exit_code) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        typer.echo(f"stopped with {many.finished:,} of {many.total:,} rows finished; all steps are kept; {again}", err=True)
        raise typer.Exit(3) from None
    if as_json:
        typer.echo(json.dumps(result_json(outcome, None, job)))
    else:
        _report(outcome, journal)
    left = outcome.rows.failed + outcome.rows.set_aside
    for line in many.failures(run, SHOWN):
        failure = json.loads(line)
        typer.echo(f"row {failure['row']} failed: {failure['error']}", err=True)
    if left > SHOWN:
        typer.echo(f"… and {left - SHOWN:,} more", err=True)
    if outcome.rows.failed:
        typer.echo(again, err=True)
    if outcome.rows.set_aside:
        typer.echo(f"rows that were set aside get another chance with a larger --max-crashes; {again}", err=True)
    if left:
        raise typer.Exit(3)
    if outcome.rows.wrong:
        raise typer.Exit(1)


async def follow_rows(run: Run, many: Many, quiet: bool) -> ManyOutcome:
    """Carry the rows out, with a line that follows them; SIGTERM stops them as Ctrl-C does."""
    stoppable()
    try:
        with _following(run, many, quiet):
            return await many.execute(run)
    finally:
        await run.asking.lm.close()


@contextmanager
def _following(run: Run, many: Many, quiet: bool) -> Iterator[None]:
    """A line that follows all rows, where standard error is a terminal."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield
        return
    started = time.monotonic()
    before: int | None = None

    def line() -> Table:
        nonlocal before
        meter, ended = run.meter, many.finished + many.set_aside + many.failed
        before = ended if before is None else before
        rate = meter.steps / meter.seconds if meter.seconds else 0.0
        left = None
        if run.expected and rate:
            left = (run.expected - meter.steps) / rate
        elif ended > before:
            left = (many.total - ended) * (time.monotonic() - started) / (ended - before)
        parts = [
            f"{many.finished:,} of {many.total:,} rows",
            f"{many.failed:,} failed" if many.failed else "",
            f"{many.set_aside:,} set aside" if many.set_aside else "",
            f"{meter.steps:,} steps",
            f"{rate:,.0f} steps/s" if rate >= 10 else f"{rate:.2f} steps/s",
            "" if left is None else f"{clock(max(0.0, left))} left",
        ]
        grid = Table.grid(padding=(0, 2))
        grid.add_row(ProgressBar(total=many.total, completed=ended, width=24), " · ".join(part for part in parts if part))
        return grid

    with Live(get_renderable=line, console=console, refresh_per_second=4, transient=True):
        yield


def _report(outcome: ManyOutcome, journal: str) -> None:
    rows = outcome.rows
    parts = [f"{n:,} {what}" for n, what in ((rows.wrong, "wrong"), (rows.failed, "failed"), (rows.set_aside, "set aside")) if n]
    checked = "all correct" if outcome.correct else "" if parts else "nobody could check them"
    head = f"{outcome.procedure}: {rows.finished:,} of {rows.total:,} rows finished, {', '.join(parts) or checked}"
    rate = f", {outcome.steps / outcome.seconds:,.0f} steps per second" if outcome.seconds else ""
    cost = f", cost {outcome.cost:.4f}" if outcome.cost else ""
    lines = [
        f"{outcome.steps:,} steps, {outcome.votes_per_step:.2f} votes per step ({outcome.samples:,} samples, {outcome.flagged:,} flagged)",
        f"{outcome.tokens_in:,} tokens in, {outcome.tokens_out:,} out{cost}",
        f"{outcome.seconds:.1f} seconds{rate}",
        f"results in {outcome.results}",
        f"run {outcome.run_id} in {journal}",
    ]
    style = "bold red" if parts else "bold green" if outcome.correct else "bold"
    Console().print(Panel(Group(Text(head, style=style), *map(Text, lines)), expand=False))
