"""`keystep solve`: a question, or a file of them, for one of the solvers of `keystep.solve`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keystep.cli.defaults import JOURNAL, MODEL, AsJson, noted, number_option, texts, whole_option
from keystep.errors import BadInput, KeystepError

if TYPE_CHECKING:
    from keystep.run import Many, ManyOutcome, Run
    from keystep.solve.solver import Solver
    from keystep.task import Task

SHOWN = 5  # failed questions that are named


def solve(
    method: Annotated[str | None, typer.Argument(metavar="[METHOD]", help="A solver; lists them when left out.")] = None,
    question: Annotated[str | None, typer.Argument(metavar="[QUESTION]", help="What to solve.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the solver.")] = None,
    given: Annotated[list[str] | None, typer.Option("--input", metavar="NAME=VALUE", help="What else the solver reads.")] = None,
    inputs: Annotated[str | None, typer.Option(metavar="FILE", help='Solve all rows (.jsonl, .csv): {"question", "answer"}.')] = None,
    results: Annotated[str | None, typer.Option(metavar="FILE", help="Gets a line per row (default: beside the inputs).")] = None,
    model: Annotated[str, typer.Option(help="`keystep models` lists them.", rich_help_panel="Model")] = MODEL,
    base_url: Annotated[str | None, typer.Option(help="The server of an openai:MODEL.", rich_help_panel="Model")] = None,
    api_key_env: Annotated[str | None, typer.Option(metavar="VARIABLE", help="Where its key is.", rich_help_panel="Model")] = None,
    prices: Annotated[str | None, typer.Option(metavar="FILE", help="A JSON table of prices per model.", rich_help_panel="Model")] = None,
    ahead_by: Annotated[int | None, whole_option("Every call votes: first to lead by K.", "Vote")] = None,
    majority: Annotated[int | None, whole_option("Every call votes: the most votes of N.", "Vote")] = None,
    first: Annotated[bool, typer.Option("--first", help="One valid answer a call (the default).", rich_help_panel="Vote")] = False,
    cap: Annotated[int | None, whole_option("Most samples of one call (default: 100).", "Vote")] = None,
    temperature: Annotated[float, number_option("Of sampling; 0 (the default) is greedy.", "Sampling")] = 0.0,
    max_tokens: Annotated[int | None, whole_option("Most tokens of one answer (default: 512).", "Sampling")] = None,
    seed: Annotated[int, whole_option("Of every random draw.", "Sampling")] = 0,
    budget_calls: Annotated[int | None, whole_option("Stop after so many samples.", "Budget")] = None,
    budget_tokens: Annotated[int | None, whole_option("Stop after so many tokens.", "Budget")] = None,
    budget_cost: Annotated[float | None, number_option("Stop after so much money.", "Budget")] = None,
    budget_seconds: Annotated[float | None, number_option("Stop after so many seconds.", "Budget")] = None,
    concurrency: Annotated[int, whole_option("Questions under way at once.", "Many inputs")] = 64,
    journal: Annotated[str, typer.Option(metavar="URL", help="Where the run is kept: a path or a database URL.")] = JOURNAL,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:  # fmt: skip
    """Solve a question, or every question of a file, with one of the published solvers.

    The same command again goes on where it stopped. Exit code: 0 solved (right or not), 2 bad input, 3 stopped, or some got no answer.
    """
    flags = dict(locals())
    from keystep.cli.job import Job, open_journal
    from keystep.run import Many, Run
    from keystep.run.many import input_rows
    from keystep.solve.solver import SOLVERS, Solving, solver, task_of

    if method is None:
        typer.echo(json.dumps(sorted(SOLVERS)) if as_json else "\n".join(sorted(SOLVERS)))
        return
    chosen = solver(method, texts("--set", settings))
    if (question is None) == (inputs is None):
        mend = "write: keystep solve METHOD 'the question', or: keystep solve METHOD --inputs FILE"
        raise BadInput("is wanted, or --inputs FILE, and not both", field="QUESTION", value=question, mend=mend)
    more = texts("--input", given, typed=True)
    if more.keys() & {"question", "goal"}:
        raise BadInput("is the question", field="--input", value=min(more.keys() & {"question", "goal"}), mend="write it behind METHOD")
    if inputs and more:
        raise BadInput("is for one question", field="--input", value=list(more), mend="write it into the rows of the file")
    if results and not inputs:
        raise BadInput("is for --inputs", field="--results", value=results, mend="leave it out: one answer is printed")
    kept = ("model", "base_url", "api_key_env", "prices", "ahead_by", "majority", "cap", "temperature", "max_tokens", "seed",
            "budget_calls", "budget_tokens", "budget_cost", "budget_seconds")  # fmt: skip
    job = Job.of({
        **{name: flags[name] for name in kept}, "procedure": f"solve {method}", "first": first or not (ahead_by or majority),
    })  # fmt: skip
    job.check_priced()
    work: Task | Many
    if inputs is None:
        work = task_of({**more, "question": question})
    else:
        rows = input_rows(Path(inputs), frozenset({"question", "goal", "answer"}))
        where = results or f"{inputs.removesuffix(Path(inputs).suffix)}.results.jsonl"
        work = Many(lambda row: Solving(chosen, task_of(row)), rows, results=where, concurrency=concurrency)
    asked = [chosen.identity(), more, question, inputs and str(Path(inputs).resolve())]
    asked.append(job.model_dump(mode="json", exclude={"budget_calls", "budget_tokens", "budget_cost", "budget_seconds"}))
    id = f"solve-{method}-{blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=5).hexdigest()}"
    store = open_journal(journal, must_exist=False)
    try:
        with noted():
            run = Run(job.build_lm(), vote=job.rule(), journal=store, seed=job.seed, id=id, sampling=job.sampling(), budget=job.budget())
        if isinstance(work, Many):
            _all(chosen, work, run, as_json, quiet)
        else:
            _one(chosen, work, run, as_json, quiet)
    finally:
        store.close()


def _one(chosen: Solver, task: Task, run: Run, as_json: bool, quiet: bool) -> None:
    """Solve one question and print its answer."""
    from keystep.cli.stopping import carried, stoppable
    from keystep.solve.solver import judged

    async def work() -> Any:
        stoppable()
        try:
            with _following(run, quiet):
                return await run.solve(chosen, task)
        finally:
            await run.asking.lm.close()

    found = carried(work(), "decided")
    if not as_json:
        typer.echo(found.answer)
        return
    meter = run.meter
    spent = {"steps": meter.steps, "samples": meter.calls, "flagged": meter.flagged, "tokens_in": meter.tokens_in,
             "tokens_out": meter.tokens_out, "cost": meter.cost, "seconds": round(meter.seconds, 3)}  # fmt: skip
    about = {"method": chosen.name, "run_id": run.id, **found.model_dump(mode="json"), "correct": judged(chosen, task, found.answer)}
    typer.echo(json.dumps({**about, **spent}))


@contextmanager
def _following(run: Run, quiet: bool) -> Iterator[None]:
    """A line that follows one question, where standard error is a terminal."""
    from rich.console import Console
    from rich.live import Live
    from rich.spinner import Spinner

    from keystep.cli.show import clock

    console, spinner = Console(stderr=True), Spinner("dots")
    if quiet or not console.is_terminal:
        yield
        return

    def line() -> Spinner:
        meter = run.meter
        spinner.update(text=f"{meter.steps:,} steps · {meter.calls:,} samples · {clock(meter.seconds)}")
        return spinner

    with Live(get_renderable=line, console=console, refresh_per_second=8, transient=True):
        yield


def _all(chosen: Solver, many: Many, run: Run, as_json: bool, quiet: bool) -> None:
    """Every row of a file, and how many came out right where that is known."""
    from keystep.cli.rows import follow_rows

    try:
        outcome = asyncio.run(follow_rows(run, many, quiet))
    except KeystepError as error:
        typer.echo(f"error: {error}", err=True)
        if error.exit_code == 3:
            typer.echo(f"{many.finished:,} of {many.total:,} questions are answered; the same command goes on", err=True)
        raise typer.Exit(error.exit_code) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        typer.echo(f"stopped with {many.finished:,} of {many.total:,} questions answered; the same command goes on", err=True)
        raise typer.Exit(3) from None
    _report(chosen, outcome, run.journal.row_verdicts(run.id), as_json)
    for line in many.failures(run, SHOWN):
        failure = json.loads(line)
        typer.echo(f"row {failure['row']} got no answer: {failure['error']}", err=True)
    left = outcome.rows.failed + outcome.rows.set_aside
    if left:
        typer.echo(f"{left} of {outcome.rows.total} questions got no answer; the same command asks for those again", err=True)
        raise typer.Exit(3)


def _report(chosen: Solver, outcome: ManyOutcome, verdicts: dict[bool | None, int], as_json: bool) -> None:
    """What came out. A question without an answer counts as wrong where others of the file could be judged."""
    from keystep.run.forecast import wilson

    right = verdicts.get(True, 0)
    judged = right + verdicts.get(False, 0) + ((outcome.rows.failed + outcome.rows.set_aside) if right or verdicts.get(False) else 0)
    interval = wilson(right, judged) if judged else None
    spent = outcome.model_dump(mode="json", include={"run_id", "samples", "flagged", "tokens_in", "tokens_out", "cost", "seconds"})
    found = {"method": chosen.name, "questions": outcome.rows.total, "answered": outcome.rows.finished, "right": right, "judged": judged,
             "accuracy": right / judged if judged else None, "interval": interval, "results": outcome.results, **spent}  # fmt: skip
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(f"{chosen.name}: {outcome.rows.finished:,} of {outcome.rows.total:,} questions answered, {outcome.samples:,} samples")
    if interval is not None:
        typer.echo(f"{right:,} of {judged:,} right: {right / judged:.1%} (95 %: {interval[0]:.1%} to {interval[1]:.1%})")
    typer.echo(f"results in {outcome.results}")
