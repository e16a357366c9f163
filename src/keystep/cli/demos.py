"""`keystep demos`: demonstrations made of questions (Auto-CoT); `keystep questions`: published benchmarks as files of questions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keystep.cli.defaults import JOURNAL, MODEL, AsJson, noted, number_option, pairs, texts, whole, whole_option
from keystep.errors import BadInput
from keystep.files import write_text

if TYPE_CHECKING:
    from keystep.run import Run
    from keystep.solve.auto_cot import Demos, Heuristics

SHOWN = 70  # characters of a question


def demos(
    inputs: Annotated[str, typer.Option(metavar="FILE", help='Rows {"question", "answer" if known} (.jsonl, .csv).')],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Gets the demonstrations and how they were chosen, as JSON.")],
    clusters: Annotated[int | None, whole_option("How many (default: as published for the kind of answer).", "Selection")] = None,
    encoder: Annotated[
        str, typer.Option(help="tfidf, sentence-transformers:MODEL or a server (http://HOST/v1#MODEL).", rich_help_panel="Selection")
    ] = "tfidf",
    means_seed: Annotated[int, whole_option("Of k-means (published: 192).", "Selection")] = 192,
    check: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Another limit for a check of chains.", rich_help_panel="Selection")
    ] = None,
    fallback: Annotated[
        bool, typer.Option("--fallback", help="Where all are rejected, take the nearest.", rich_help_panel="Selection")
    ] = False,
    batch: Annotated[int | None, whole_option("Answer all, N at a time, with demonstrations of those before.", "Selection")] = None,
    answers: Annotated[Path | None, typer.Option(metavar="FILE", help="Gets the answers of --batch.", rich_help_panel="Selection")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the solver auto-cot.")] = None,
    model: Annotated[str, typer.Option(help="`keystep models` lists them.", rich_help_panel="Model")] = MODEL,
    base_url: Annotated[str | None, typer.Option(help="The server of an openai:MODEL.", rich_help_panel="Model")] = None,
    api_key_env: Annotated[str | None, typer.Option(metavar="VARIABLE", help="Where its key is.", rich_help_panel="Model")] = None,
    prices: Annotated[str | None, typer.Option(metavar="FILE", help="A JSON table of prices per model.", rich_help_panel="Model")] = None,
    ahead_by: Annotated[int | None, whole_option("Every call votes: first to lead by K.", "Vote")] = None,
    cap: Annotated[int | None, whole_option("Most samples of one call (default: 100).", "Vote")] = None,
    temperature: Annotated[float, number_option("Of sampling; 0 (the default) is greedy.", "Sampling")] = 0.0,
    max_tokens: Annotated[int | None, whole_option("Most tokens of one answer (default: 512).", "Sampling")] = None,
    seed: Annotated[int, whole_option("Of every random draw.", "Sampling")] = 0,
    budget_calls: Annotated[int | None, whole_option("Stop after so many samples.", "Budget")] = None,
    budget_tokens: Annotated[int | None, whole_option("Stop after so many tokens.", "Budget")] = None,
    journal: Annotated[str, typer.Option(metavar="URL", help="Where the run is kept: a path or a database URL.")] = JOURNAL,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:  # fmt: skip
    """Make demonstrations of questions, for `keystep solve auto-cot --set demos=FILE`: one of every cluster, its chain by the model.

    A row with a "rationale" (and a "prediction") has its chain already. Checks: words, steps, counted, full_stop, answer_at_end. The same
    command again goes on where it stopped. Exit code: 0 done, 2 bad input, 3 stopped.
    """
    flags = dict(locals())
    from keystep.cli.job import Job, open_journal
    from keystep.run import Run
    from keystep.run.many import input_rows
    from keystep.solve.auto_cot import AutoCot, Selection
    from keystep.solve.solver import solver

    chosen = solver("auto-cot", texts("--set", settings))
    assert isinstance(chosen, AutoCot)
    if chosen.demos is not None:
        raise BadInput("is what this command makes", field="--set demos", value=chosen.demos, mend="leave it out")
    if answers is not None and batch is None:
        raise BadInput("is for --batch", field="--answers", value=str(answers), mend="add --batch 30")
    rows = input_rows(Path(inputs), frozenset({"question", "goal", "answer", "rationale", "prediction"}))
    selection = Selection(
        solver=chosen, rows=rows, clusters=clusters, encoder=encoder, seed=means_seed, heuristics=_heuristics(pairs("--check", check)),
        fallback=fallback, batch=batch,
    )  # fmt: skip
    kept = ("model", "base_url", "api_key_env", "prices", "ahead_by", "cap", "temperature", "max_tokens", "seed", "budget_calls",
            "budget_tokens")  # fmt: skip
    job = Job.of({**{name: flags[name] for name in kept}, "procedure": "demos", "first": not ahead_by})
    asked = [selection.identity(), job.model_dump(mode="json", exclude={"budget_calls", "budget_tokens"})]
    id = f"demos-{blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=5).hexdigest()}"
    store = open_journal(journal, must_exist=False)
    try:
        with noted():
            run = Run(job.build_lm(), vote=job.rule(), journal=store, seed=job.seed, id=id, sampling=job.sampling(), budget=job.budget())
        found = _made(run, selection, quiet)
    finally:
        store.close()
    write_text(out, json.dumps(found.model_dump(mode="json", exclude={"answers"}), indent=2, ensure_ascii=False) + "\n")
    if answers is not None:
        write_text(answers, "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in found.answers))
    _report(found, out, run, as_json)


def questions(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A benchmark; lists them when left out.")] = None,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Its file, as it was published.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Gets a row per question (default: standard output).")] = None,
    count: Annotated[int, typer.Option(parser=whole, metavar="N", help="How many to draw, of those that are drawn.")] = 500,
    seed: Annotated[int, typer.Option(parser=whole, metavar="N", help="Of the drawing.")] = 0,
) -> None:
    """Write a published benchmark as a file for `keystep solve --inputs`: {"id", "question", "answer"} on every line."""
    from keystep.solve.questions import DRAWN, READ
    from keystep.solve.questions import questions as rows_of

    if name is None:
        typer.echo("\n".join([*READ, *DRAWN]))
        return
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of(name, file, count=count, seed=seed))
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text(out, text)
        typer.echo(f"{text.count(chr(10)):,} questions in {out}", err=True)


def _heuristics(values: dict[str, Any]) -> Heuristics:
    from pydantic import TypeAdapter, ValidationError

    from keystep.solve.auto_cot import Heuristics

    unknown = values.keys() - set(Heuristics.__slots__)
    if unknown:
        raise BadInput("is no check", field="--check", value=min(unknown), mend=f"there are: {', '.join(Heuristics.__slots__)}")
    try:
        return TypeAdapter(Heuristics).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BadInput(first["msg"], field=f"--check {'.'.join(map(str, first['loc']))}", value=first["input"]) from None


def _made(run: Run, selection: Any, quiet: bool) -> Demos:
    from dataclasses import replace

    from keystep.cli.stopping import carried, stoppable
    from keystep.task import Task

    async def work() -> Demos:
        stoppable()
        try:
            with _progress(len(selection.rows) if selection.batch else None, quiet) as tell:
                found: Demos = await run.solve(replace(selection, tell=tell), Task(goal="demonstrations"))
                return found
        finally:
            await run.asking.lm.close()

    return carried(work(), "asked")


@contextmanager
def _progress(total: int | None, quiet: bool) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        bar = progress.add_task("questions", total=total)
        yield lambda done: progress.update(bar, completed=done)


def _report(found: Demos, out: Path, run: Run, as_json: bool) -> None:
    known = [each["correct"] for each in found.answers if each["correct"] is not None]
    spent = {"run_id": run.id, "calls": found.calls, "samples": run.meter.calls, "tokens_in": run.meter.tokens_in,
             "tokens_out": run.meter.tokens_out, "cost": run.meter.cost}  # fmt: skip
    if as_json:
        rate = {"answered": len(found.answers), "accuracy": sum(known) / len(known) if known else None} if found.answers else {}
        typer.echo(json.dumps({**found.model_dump(mode="json", exclude={"answers"}), "out": str(out), **rate, **spent}))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("cluster", "questions", "taken", "distance", "question, and why those nearer to the centre were not taken", box=None)
    for report in found.clusters:
        taken = None if report.accepted is None else report.tried[report.accepted]
        why = [Text(_cut(taken.question) if taken else "none: all were rejected")]
        why += [
            Text(f"  not {_cut(each.question)}: {each.rejected}", "dim") for each in report.tried if each is not taken and each.rejected
        ]
        rank, distance = ("-", "-") if taken is None else (f"nr {taken.rank + 1}", f"{taken.distance:.3f}")
        table.add_row(str(report.cluster), str(report.size), rank, distance, Text("\n").join(why))
    Console().print(table)
    if found.answers:
        typer.echo(f"{len(found.answers):,} answered" + (f", {sum(known):,} of {len(known):,} right" if known else ""))
    typer.echo(f"{len(found.demo)} demonstrations in {out}; {found.calls:,} calls")


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
