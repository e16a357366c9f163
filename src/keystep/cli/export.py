"""`keystep export` and `keystep prune`: steps out of a journal as a file for other tools, and old runs out of it for good."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from enum import Enum
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from keystep.cli.defaults import JOURNAL, number
from keystep.errors import BadInput, JournalError, MissingExtra
from keystep.files import free_for, whole

if TYPE_CHECKING:
    from keystep.run.journal import Journal

JournalUrl = Annotated[str, typer.Option("--journal", metavar="URL", help="Where the runs are kept: a path or a database URL.")]

BATCH = 5000  # steps of one row group


class Format(str, Enum):  # noqa: UP042  (what typer takes)
    jsonl = "jsonl"
    parquet = "parquet"


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's name; `keystep runs` lists them.")],
    format: Annotated[Format, typer.Option("--format", help="jsonl, or parquet (pip install 'keystep\\[parquet]').")] = Format.jsonl,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="A new file; standard output when left out (jsonl).")] = None,
    journal: JournalUrl = JOURNAL,
) -> None:
    """Write every journaled step of a run: its place, number, answer, votes, tokens, seconds, cost."""
    from keystep.cli.job import open_journal

    if format is Format.parquet and out is None:
        raise BadInput("parquet goes into a file", field="--out", mend=f"for instance --out {run}.parquet")
    if out is not None:
        free_for(out)
    store = open_journal(journal)
    try:
        store.run(run)
        if out is None:
            for step in _steps(store, run):
                sys.stdout.write(_line(step))
            return
        write = _write_parquet if format is Format.parquet else _write_jsonl
        with whole(out) as part, part.open("wb") as file:
            count = write(_steps(store, run), file)
    finally:
        store.close()
    typer.echo(f"wrote {count:,} steps to {out}", err=True)


def prune(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN]…", help="Runs to delete; or say --older-than.")] = None,
    older_than: Annotated[
        float | None, typer.Option(parser=number, metavar="DAYS", help="Delete all runs that nothing happened in for so long.")
    ] = None,
    keep_unfinished: Annotated[bool, typer.Option("--keep-unfinished", help="Delete finished ones only.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Really delete; else only list what would go.")] = False,
    journal: JournalUrl = JOURNAL,
) -> None:
    """Delete runs with all their steps and samples, and give the space back. Without --yes it only says which."""
    from keystep.cli.job import open_journal

    if bool(runs) == (older_than is not None):
        raise BadInput("name runs, or say how old", field="RUN or --older-than", mend="one of the two, for instance --older-than 30")
    if older_than is not None and not older_than >= 0:
        raise BadInput("is 0 or more", field="--older-than", value=older_than, mend="for instance 30")
    store = open_journal(journal)
    try:
        rows = [store.run(id) for run in dict.fromkeys(runs) for id in (run, *store.chunks(run))] if runs else store.all_runs()
        if older_than is not None:
            rows = [row for row in rows if row["updated"] <= time.time() - older_than * 86400 and not store.is_held(row)]
        chosen = [row for row in rows if row["status"] == "finished" or not keep_unfinished]
        for row in chosen:
            if yes:
                store.delete(row["id"])
            typer.echo(f"{'deleted' if yes else 'would delete'} {row['id']} ({row['name']}, {row['status']})")
        if not chosen:
            typer.echo("nothing to delete")
        elif yes:
            try:
                store.vacuum()
            except JournalError as error:  # another process is reading or writing
                typer.echo(f"note: the space is given back by a later prune: {error.problem}", err=True)
        else:
            typer.echo("nothing was deleted: add --yes", err=True)
    finally:
        store.close()


def _steps(store: Journal, run: str) -> Iterator[dict[str, Any]]:
    for place, row in chain.from_iterable(store.trace(id) for id in (run, *store.chunks(run))):
        yield {"place": place} | {name: getattr(row, name) for name in row.__slots__}


def _line(step: dict[str, Any]) -> str:
    return json.dumps(step, ensure_ascii=False) + "\n"


def _write_jsonl(steps: Iterator[dict[str, Any]], file: IO[bytes]) -> int:
    count = 0
    for step in steps:
        file.write(_line(step).encode())
        count += 1
    return count


def _write_parquet(steps: Iterator[dict[str, Any]], file: IO[bytes]) -> int:
    """`answer` and `candidates` as JSON texts: they may differ from step to step."""
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError:
        raise MissingExtra("an export to parquet", "parquet") from None

    whole = ("seq", "samples", "flagged", "tokens_in", "tokens_out")
    kinds = {name: pa.int64() for name in whole} | {"seconds": pa.float64(), "cost": pa.float64()}
    names = ("place", "seq", "name", "skill", "answer", "samples", "flagged", "candidates", "tokens_in", "tokens_out", "seconds", "cost")
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
    count = 0
    with parquet.ParquetWriter(file, schema) as writer:
        while batch := list(islice(steps, BATCH)):
            for step in batch:
                step["answer"] = json.dumps(step["answer"], ensure_ascii=False)
                step["candidates"] = step["candidates"] and json.dumps(step["candidates"], ensure_ascii=False)
            writer.write_table(pa.Table.from_pylist(batch, schema))
            count += len(batch)
    return count
