"""`keystep report` and `keystep view`: a run as a page to look at, kept as a file or served while it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from keystep.cli.defaults import JOURNAL, whole
from keystep.errors import BadInput

JournalUrl = Annotated[str, typer.Option("--journal", metavar="URL", help="Where the runs are kept: a path or a database URL.")]


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's name; `keystep runs` lists them.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The page (default: RUN.html here).")] = None,
    journal: JournalUrl = JOURNAL,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the page says as JSON; a page only with --out.")] = False,
) -> None:
    """Write a run, finished or not, as one HTML page that needs nothing else: outcome, votes, hard steps, flags, what it took."""
    from keystep.cli.job import open_journal
    from keystep.files import write_text
    from keystep.view.page import page, read

    file = out if out is not None or as_json else Path(f"{run.replace('/', '-')}.html")
    if file is not None and file.exists() and not _is_report(file):
        raise BadInput("is there already and no report", field="--out", value=str(file), mend="name another one; nothing was changed")
    store = open_journal(journal)
    try:
        known, aggregate = read(store, run)
        text = None if file is None else page(store, known, aggregate)
    finally:
        store.close()
    if file is not None and text is not None:
        write_text(file, text)
        typer.echo(f"wrote {file}", err=as_json)
    if as_json:
        typer.echo(json.dumps(known))


def view(
    journal: JournalUrl = JOURNAL,
    host: Annotated[str, typer.Option(help="The address to listen on; only this machine's own.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(parser=whole, metavar="N", help="0 takes a free one.")] = 8378,
) -> None:
    """Serve the runs of a journal as live pages, on this machine only, while they go on."""
    from keystep.cli.job import open_journal
    from keystep.view.live import serve

    store = open_journal(journal)
    try:
        serve(store, host, port, ready=lambda address: typer.echo(f"the runs of {journal} are at {address} (stop with Ctrl-C)", err=True))
    finally:
        store.close()


def _is_report(file: Path) -> bool:
    """Whether it may be written anew: nothing but an older report is."""
    try:
        with file.open("rb") as there:
            return b'<meta name="generator" content="keystep report">' in there.read(1000)
    except OSError:
        return False
