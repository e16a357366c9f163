"""`keystep bench`: a model, or a file of predictions, on one of the benchmarks of `keystep.measure`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keystep.cli.defaults import JOURNAL, MODEL, AsJson, number, pairs, whole
from keystep.errors import BadInput, KeystepError, MissingExtra
from keystep.files import write_text

if TYPE_CHECKING:
    from pydantic import BaseModel

    from keystep.measure.bench import Benchmark
    from keystep.run import Many, Run

SHOWN = 3  # failed problems that are named


def bench(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A benchmark; lists them when left out.")] = None,
    model: Annotated[str, typer.Option(help="`keystep models` lists them; several with commas between.")] = MODEL,
    base_url: Annotated[str | None, typer.Option(help="The server of an openai:MODEL.")] = None,
    api_key_env: Annotated[str | None, typer.Option(metavar="VARIABLE", help="Where its key is.")] = None,
    prices: Annotated[str | None, typer.Option(metavar="FILE", help="A JSON table of prices per model.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the benchmark.")] = None,
    limit: Annotated[int | None, typer.Option(parser=whole, metavar="N", help="Only N of the problems, drawn by the seed.")] = None,
    seed: Annotated[int, typer.Option(parser=whole, metavar="N", help="Of the problems and of every random draw.")] = 0,
    temperature: Annotated[float, typer.Option(parser=number, metavar="X", help="Of sampling; 0 (the default) is greedy.")] = 0.0,
    max_tokens: Annotated[int | None, typer.Option(parser=whole, metavar="N", help="Most tokens of one answer.")] = None,
    ahead_by: Annotated[int | None, typer.Option(parser=whole, metavar="K", help="Vote: first to lead by K.")] = None,
    majority: Annotated[int | None, typer.Option(parser=whole, metavar="N", help="Vote: the most votes of N.")] = None,
    concurrency: Annotated[int, typer.Option(parser=whole, metavar="N", help="Problems under way at once.")] = 64,
    predictions: Annotated[str | None, typer.Option(metavar="FILE", help="Score these (JSONL) instead of asking a model.")] = None,
    journal: Annotated[str, typer.Option(metavar="URL", help="Where the run is kept: a path or a database URL.")] = JOURNAL,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the report and the figures go.")] = Path("results/bench"),
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Measure a model on a benchmark: one answer a question, or voted. The same command again goes on where it stopped.

    Exit code: 0 measured, 2 bad input, 3 stopped, or some problems got no answer (the same command asks for those again).
    """
    from keystep.measure.bench import BENCHMARKS, benchmark, drawn, read_predictions, settings_of

    if name is None:
        typer.echo(json.dumps(sorted(BENCHMARKS)) if as_json else "\n".join(sorted(BENCHMARKS)))
        return
    chosen = benchmark(name)
    found = settings_of(chosen, pairs("--set", settings))
    problems = drawn(chosen.problems(found, seed), limit, seed)
    about = {"benchmark": name, "settings": found.model_dump(mode="json"), "seed": seed, "limit": limit, "problems": len(problems)}
    if predictions is not None:
        answers, odd = read_predictions(chosen, found, problems, Path(predictions))
        about |= {"predictions": predictions, **odd}
        _finish(chosen, about, chosen.score(found, problems, answers), out, f"{name}-{_digest(about)}", as_json)
        return
    sampling = {"temperature": temperature, "max_tokens": max_tokens, "ahead_by": ahead_by, "majority": majority}
    about = {"model": model, **({} if base_url is None else {"base_url": base_url}), **sampling, **about}
    flags = {**sampling, "model": model, "base_url": base_url, "api_key_env": api_key_env, "prices": prices, "seed": seed}
    _measure(chosen, found, problems, about, flags, journal, out, concurrency, as_json, quiet)


def _measure(
    chosen: Benchmark, settings: BaseModel, problems: list[dict[str, Any]], about: dict[str, Any], flags: Mapping[str, Any], journal: str,
    out: Path, concurrency: int, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Ask the model for what the journal does not have yet, then score all of it."""
    from keystep.cli.job import Job, open_journal
    from keystep.measure.bench import journaled, many

    voted = flags["ahead_by"] is not None or flags["majority"] is not None
    job = Job.of({**flags, "procedure": f"bench {about['benchmark']}", **({} if voted else {"first": True, "cap": 1})})
    work = many(chosen, settings, problems, voted, concurrency)
    id = f"bench-{about['benchmark']}-{_digest(about)}"
    lm, store = job.build_lm(), open_journal(journal, must_exist=False)
    try:
        run = job.build_run(lm, store, id)
        run.spec = None  # `keystep resume` does not know how to go on with it; the same command does
        outcome = _carry_out(run, work, quiet)
        failures = [json.loads(line) for line in store.row_lines(id, "failed")]
        answers = journaled(run, len(problems))
    finally:
        store.close()
    if len(failures) == len(problems) and not any(answers):
        raise BadInput(f"answered none of the problems: {failures[0]['error']}", field="--model", value=about["model"])
    spent = outcome.model_dump(mode="json", include={"run_id", "samples", "flagged", "tokens_in", "tokens_out", "cost", "seconds"})
    about |= {"failed": len(failures), **spent}
    _finish(chosen, about, chosen.score(settings, problems, answers), out, id.removeprefix("bench-"), as_json)
    for failure in failures[:SHOWN]:
        typer.echo(f"{problems[failure['row']]['id']} got no answer: {failure['error']}", err=True)
    if failures:
        typer.echo(f"{len(failures)} of {len(problems)} problems got no answer; the same command asks for them again", err=True)
        raise typer.Exit(3)


def _carry_out(run: Run, work: Many, quiet: bool) -> Any:
    from keystep.cli.rows import follow_rows

    again = "the same command goes on"
    try:
        return asyncio.run(follow_rows(run, work, quiet))
    except KeystepError as error:
        typer.echo(f"error: {error}", err=True)
        if error.exit_code == 3:
            typer.echo(f"{work.finished:,} of {work.total:,} problems are answered; {again}", err=True)
        raise typer.Exit(error.exit_code) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        typer.echo(f"stopped with {work.finished:,} of {work.total:,} problems answered; {again}", err=True)
        raise typer.Exit(3) from None


def _digest(about: Mapping[str, Any]) -> str:
    """Names a run by what was asked for, so that the same command finds it again."""
    return blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=5).hexdigest()


def _finish(chosen: Benchmark, about: dict[str, Any], scores: dict[str, Any], out: Path, stem: str, as_json: bool) -> None:
    """Write report and figures, and print the figures."""
    from keystep.measure.chart import svg
    from keystep.measure.page import page

    try:
        pictures = [svg([chart]) for chart in chosen.charts(scores)]
    except MissingExtra as error:
        typer.echo(f"no pictures in the report: {error}", err=True)
        pictures = []
    report = out / f"{stem}.html"
    result = {**about, **scores, "report": str(report)}
    write_text(report, page(about["benchmark"], about, scores, pictures))
    write_text(out / f"{stem}.json", json.dumps(result, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(result))
        return
    _print(about, scores)
    typer.echo(f"report: {report}")


def _print(about: Mapping[str, Any], scores: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    what = about.get("predictions") or about.get("model")
    table = Table(box=None, padding=(0, 3, 0, 0), show_header=False)
    for name, value in scores["summary"].items():
        table.add_row(Text(name), "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value))
    for name in ("failed", "unreadable_lines", "unknown_ids", "repeated_ids", "missing", "tokens_in", "tokens_out", "seconds"):
        if about.get(name):
            table.add_row(name.replace("_", " "), f"{about[name]:,}")
    console = Console()
    console.print(Text(f"{about['benchmark']}: {what}", style="bold"), soft_wrap=True)
    console.print(table)
