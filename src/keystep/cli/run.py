"""`keystep run` and `keystep resume`: the main job."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keystep.cli.defaults import AHEAD_BY, JOURNAL, MODEL, AsJson, pairs
from keystep.cli.defaults import number_option as _number
from keystep.cli.defaults import whole_option as _whole
from keystep.cli.forecast import TARGET, forecast_first
from keystep.cli.stopping import stoppable
from keystep.cli.telemetry import Otel, OtelContent, sent
from keystep.errors import BadInput, KeystepError, Undecided

if TYPE_CHECKING:
    from keystep.cli.job import Job
    from keystep.run import Outcome, Run
    from keystep.run.compare import Way
    from keystep.run.journal import Journal


JournalUrl = Annotated[str, typer.Option("--journal", metavar="URL", help="Where the run is kept: a path or a database URL.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
BudgetCalls = Annotated[int | None, _whole("Stop after so many samples.", "Budget")]
BudgetTokens = Annotated[int | None, _whole("Stop after so many tokens.", "Budget")]
BudgetCost = Annotated[float | None, _number("Stop after so much money, in the price table's unit.", "Budget")]
BudgetSeconds = Annotated[float | None, _number("Stop after so many seconds of running.", "Budget")]
Processes = Annotated[int | None, _whole("Processes that embedded models decode in (default: one a core).", "Model")]
Concurrency = Annotated[int | None, _whole("Rows under way at once (default: 64).", "Many inputs")]
MaxCrashes = Annotated[int | None, _whole("Set a row aside that crashed so often at one step (default: 3).", "Many inputs")]

_FORECAST = ("forecast", "target", "truth", "reference")
_NOT_KEPT = ("settings", "journal", "dry_run", "as_json", "quiet", "otel", "otel_content", *_FORECAST)  # flags that no resumed run needs
_NOT_CHANGED = ("run_id", "journal", "as_json", "quiet", "otel", "otel_content")  # flags of a resume that change nothing of the job


def run(
    procedure: Annotated[str, typer.Argument(metavar="PROCEDURE|FILE", help="A built-in one (hanoi, multiply, …) or a YAML file.")],
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting, or a value of the state.")] = None,
    model: Annotated[str, typer.Option(help="`keystep models` lists them; several with commas between.", rich_help_panel="Model")] = MODEL,
    base_url: Annotated[str | None, typer.Option(help="The server of an openai:MODEL.", rich_help_panel="Model")] = None,
    api_key_env: Annotated[str | None, typer.Option(metavar="VARIABLE", help="Where its key is.", rich_help_panel="Model")] = None,
    prices: Annotated[str | None, typer.Option(metavar="FILE", help="A JSON table of prices per model.", rich_help_panel="Model")] = None,
    record: Annotated[str | None, typer.Option(metavar="FILE", help="Record every sample.", rich_help_panel="Model")] = None,
    replay: Annotated[str | None, typer.Option(metavar="FILE", help="Replay a recording, offline.", rich_help_panel="Model")] = None,
    processes: Processes = None,
    ahead_by: Annotated[int | None, _whole(f"First to lead by K votes (default: {AHEAD_BY}).", "Vote")] = None,
    majority: Annotated[int | None, _whole("The most votes of N.", "Vote")] = None,
    first: Annotated[bool, typer.Option("--first", help="The first valid answer; no vote.", rich_help_panel="Vote")] = False,
    cap: Annotated[int | None, _whole("Most samples of one step (default: 100).", "Vote")] = None,
    temperature: Annotated[float | None, _number("Of sampling; 0 is greedy.", "Sampling")] = None,
    max_tokens: Annotated[int | None, _whole("Most tokens of one answer.", "Sampling")] = None,
    too_long: Annotated[int | None, _whole("Throw answers of more tokens away.", "Sampling")] = None,
    seed: Annotated[int, _whole("Of every random draw.", "Sampling")] = 0,
    journal: JournalUrl = JOURNAL,
    keep_samples: Annotated[bool, typer.Option("--keep-samples", help="Keep every sample, not only those of disputed steps.")] = False,
    speculate: Annotated[bool, typer.Option("--speculate", help="Start a step while the vote before it closes.")] = False,
    budget_calls: BudgetCalls = None,
    budget_tokens: BudgetTokens = None,
    budget_cost: BudgetCost = None,
    budget_seconds: BudgetSeconds = None,
    inputs: Annotated[
        str | None, typer.Option(metavar="FILE", help="Run every row (.csv, .tsv, .jsonl) of settings.", rich_help_panel="Many inputs")
    ] = None,
    results: Annotated[
        str | None, typer.Option(metavar="FILE", help="Gets a line per row (default: beside the inputs).", rich_help_panel="Many inputs")
    ] = None,
    concurrency: Concurrency = None,
    max_crashes: MaxCrashes = None,
    on: Annotated[
        str | None, typer.Option(metavar="ray[://HOST:PORT]", help="Spread the rows over a Ray cluster.", rich_help_panel="Many inputs")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also go every single-call way with the same models.")] = False,
    forecast: Annotated[bool, typer.Option("--forecast", help="Forecast first, and take its k.", rich_help_panel="Forecast")] = False,
    target: Annotated[float | None, _number(f"Wanted probability that the whole run is right (default: {TARGET}).", "Forecast")] = None,
    truth: Annotated[str | None, typer.Option(metavar="FILE", help="Labelled steps to measure by.", rich_help_panel="Forecast")] = None,
    reference: Annotated[str | None, typer.Option(metavar="MODEL", help="A model to measure by.", rich_help_panel="Forecast")] = None,
    otel: Otel = False,
    otel_content: OtelContent = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the first prompt and the price; call nothing.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Carry out a procedure: every step sampled, checked, voted on and journaled.

    Exit code: 0 finished and right (or nobody could check), 1 finished and wrong, 2 bad input, 3 stopped (`keystep resume` goes on).
    """
    flags = dict(locals())
    given = {name: value for name, value in flags.items() if name not in _NOT_KEPT}
    from keystep.cli.job import Job, absolute, open_journal
    from keystep.cli.rows import carry_out_rows
    from keystep.run.builtin import BUILTIN

    values = pairs("--set", settings)
    paths = {name: absolute(given[name]) for name in ("prices", "record", "replay", "inputs", "results")}
    if inputs and results is None:
        paths["results"] = absolute(f"{inputs.removesuffix(Path(inputs).suffix)}.results.jsonl")
    if inputs and forecast:
        raise BadInput("exclude each other", field="--inputs and --forecast", mend="forecast on a single input: keystep forecast")
    if forecast and (majority or first):
        raise BadInput("exclude each other", field="--forecast and --majority or --first", mend="a forecast is for --ahead-by")
    for name in _FORECAST[1:]:
        if flags[name] is not None and not forecast:
            raise BadInput("is the forecast's", field=f"--{name}", value=flags[name], mend="add --forecast")
    job = Job.of({**given, **paths, "settings": values})
    job.check_priced()
    if job.procedure not in BUILTIN:
        job = job.model_copy(update={"procedure": absolute(job.procedure)})
    if job.on:
        from keystep.run.cluster import check_shared

        check_shared(journal)
        if otel:
            raise BadInput("exclude each other", field="--on and --otel", mend="trace a run without a cluster")
    work, lm = job.build_procedure(), job.build_lm()
    many = job.build_many(work) if inputs else None
    if dry_run:
        from keystep.cli.dry import dry

        dry(job, job.of_row(work)(many.rows[0]) if many else work, lm, as_json)
        if many:
            typer.echo(f"note: this is row 0 of {many.total:,} alone", err=True)
        return
    with sent(otel, otel_content) as tracing, closing(open_journal(journal, must_exist=False)) as store:
        options = {"target": TARGET if target is None else target, "truth": truth, "reference": reference, "ahead_by": ahead_by}
        wanted = options if forecast else None
        built = job.build_run(lm, store, None, tracing)
        if many:
            carry_out_rows(job, built, many, journal, as_json, quiet)
            return
        _carry_out(job, built, work, journal, as_json, quiet, wanted)


def resume(
    run_id: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Its name; the latest unfinished one when left out.")] = None,
    journal: JournalUrl = JOURNAL,
    budget_calls: BudgetCalls = None,
    budget_tokens: BudgetTokens = None,
    budget_cost: BudgetCost = None,
    budget_seconds: BudgetSeconds = None,
    concurrency: Concurrency = None,
    max_crashes: MaxCrashes = None,
    otel: Otel = False,
    otel_content: OtelContent = False,
    processes: Processes = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a run that stopped or was killed. Nothing that was decided is asked again."""
    given = {name: value for name, value in locals().items() if name not in _NOT_CHANGED and value is not None}
    from keystep.cli.job import Job, open_journal
    from keystep.cli.rows import carry_out_rows

    with sent(otel, otel_content) as tracing, closing(open_journal(journal)) as store:
        id = run_id or _latest(store, journal)
        spec = store.run(id)["spec"]
        if not isinstance(spec, dict) or "procedure" not in spec:
            whole = spec.get("chunk_of") if isinstance(spec, dict) else None
            if whole:
                raise BadInput("is a chunk of another run", field="run", value=id, mend=f"resume that one: {whole}")
            raise BadInput("was not begun with `keystep run`", field="run", value=id, mend="resume it from the program that began it")
        job = Job.of({**spec, **given})
        if budget_cost is not None:
            job.check_priced()
        work = job.build_procedure()
        many = job.build_many(work) if job.inputs else None
        built = job.build_run(job.build_lm(), store, id, tracing)
        if many:
            carry_out_rows(job, built, many, journal, as_json, quiet)
            return
        _carry_out(job, built, work, journal, as_json, quiet)


def _latest(store: Journal, journal: str) -> str:
    for row in store.all_runs():
        if row["status"] != "finished" and row["spec"] and "chunk_of" not in row["spec"]:
            return str(row["id"])
    raise BadInput("has no unfinished run", field="--journal", value=journal, mend="`keystep runs` lists the finished ones")


def _carry_out(
    job: Job, run: Run, work: Any, journal: str, as_json: bool, quiet: bool, forecast: dict[str, Any] | None = None
) -> None:  # fmt: skip
    """Run it, after a forecast with these options where one is wanted, and print what came out."""
    from keystep.cli.job import resume_command
    from keystep.cli.show import report, result_json

    try:
        job, outcome, ways = asyncio.run(_work(job, run, work, as_json, quiet, forecast))
    except KeystepError as error:
        typer.echo(f"error: {error}", err=True)
        if error.exit_code == 3 and run.journal.run(run.id, missing_ok=True):
            if isinstance(error, Undecided):
                where = resume_command(run.id, journal).removeprefix(f"keystep resume {run.id}")
                typer.echo(f"settle it: keystep decide {run.id} {error.step} ANSWER{where}", err=True)
            typer.echo(f"go on with: {resume_command(run.id, journal)}", err=True)
        raise typer.Exit(error.exit_code) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        if not run.journal.run(run.id, missing_ok=True):
            raise KeyboardInterrupt from None
        typer.echo(
            f"stopped after {run.meter.steps:,} steps; all of them are kept. Go on with: {resume_command(run.id, journal)}", err=True
        )
        raise typer.Exit(3) from None
    if as_json:
        typer.echo(json.dumps(result_json(outcome, ways if job.compare else None, job)))
    else:
        report(outcome, ways if job.compare else None, journal, job.forecast)
    if outcome.correct is False:
        raise typer.Exit(1)


async def _work(
    job: Job, run: Run, work: Any, as_json: bool, quiet: bool, forecast: dict[str, Any] | None
) -> tuple[Job, Outcome, list[Way]]:  # fmt: skip
    from keystep.cli.show import comparing, following
    from keystep.run.compare import compare

    stoppable()
    try:
        if forecast is not None:
            job = await forecast_first(job, run.asking, work, as_json, quiet, **forecast)
            run.asking, run.spec = replace(run.asking, rule=job.rule()), job.model_dump(mode="json")
        with following(run, quiet):
            outcome = await run.execute(work)
        if not job.compare:
            return job, outcome, []
        with comparing(quiet) as moved:
            return job, outcome, await compare(run.asking, work, moved)
    finally:
        await run.asking.lm.close()
