"""`keystep forecast`, and what `keystep run --forecast` and `keystep show` print of one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keystep.cli.defaults import AHEAD_BY, MODEL, AsJson, number_option, pairs, whole_option
from keystep.errors import BadInput, BudgetSpent

if TYPE_CHECKING:
    from keystep.cli.job import Job
    from keystep.run import Procedure
    from keystep.run.ask import Asking
    from keystep.run.foreseen import Forecast

TARGET, SAMPLE, PER_STEP = 0.999, 200, 4  # those of keystep.run.forecast, which is not loaded for --help; a test compares them


def forecast(
    procedure: Annotated[str, typer.Argument(metavar="PROCEDURE|FILE", help="A built-in procedure (hanoi, multiply, …) or a YAML file.")],
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting, or a value of the state.")] = None,
    target: Annotated[float, number_option(f"Wanted probability that the whole run is right (default: {TARGET}).", "Forecast")] = TARGET,
    sample: Annotated[int, whole_option(f"Steps to calibrate on (default: {SAMPLE}).", "Forecast")] = SAMPLE,
    per_step: Annotated[int, whole_option(f"Samples of each, rounded up to whole rounds (default: {PER_STEP}).", "Forecast")] = PER_STEP,
    truth: Annotated[
        str | None, typer.Option(metavar="FILE", help='Labelled steps, JSON lines {"state": …, "answer": …}.', rich_help_panel="Forecast")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A stronger model whose voted answers count as truth.", rich_help_panel="Forecast")
    ] = None,
    ahead_by: Annotated[int | None, whole_option("Forecast for this margin, not for the least that meets the target.", "Forecast")] = None,
    steps: Annotated[int | None, whole_option("How many steps the run has, where nobody knows.", "Forecast")] = None,
    model: Annotated[str, typer.Option(help="`keystep models` lists them; several with commas between.", rich_help_panel="Model")] = MODEL,
    base_url: Annotated[str | None, typer.Option(help="The server of an openai:MODEL.", rich_help_panel="Model")] = None,
    api_key_env: Annotated[str | None, typer.Option(metavar="VARIABLE", help="Where its key is.", rich_help_panel="Model")] = None,
    prices: Annotated[str | None, typer.Option(metavar="FILE", help="A JSON table of prices per model.", rich_help_panel="Model")] = None,
    record: Annotated[str | None, typer.Option(metavar="FILE", help="Record every sample.", rich_help_panel="Model")] = None,
    replay: Annotated[str | None, typer.Option(metavar="FILE", help="Replay a recording, offline.", rich_help_panel="Model")] = None,
    temperature: Annotated[float | None, number_option("Of sampling.", "Sampling")] = None,
    max_tokens: Annotated[int | None, whole_option("Most tokens of one answer.", "Sampling")] = None,
    too_long: Annotated[int | None, whole_option("Throw answers of more tokens away.", "Sampling")] = None,
    seed: Annotated[int, whole_option("Of every random draw.", "Sampling")] = 0,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:  # fmt: skip
    """Calibrate on a sample of steps, and say which k a run needs and what it will take, each figure with its interval.

    Exit code: 0 there is a forecast, 2 bad input or a model too weak for any vote, 3 the model could not be asked.
    """
    from keystep.cli.job import Job, absolute
    from keystep.run import Journal
    from keystep.run.builtin import BUILTIN

    path = procedure if procedure in BUILTIN else absolute(procedure)
    flags = {
        "settings": pairs("--set", settings), "model": model, "base_url": base_url, "api_key_env": api_key_env,
        "prices": absolute(prices), "record": absolute(record), "replay": absolute(replay), "temperature": temperature,
        "max_tokens": max_tokens, "too_long": too_long, "seed": seed,
    }  # fmt: skip
    job = Job.of({"procedure": path, **flags})
    work = job.build_procedure()
    options = {"target": target, "sample": sample, "per_step": per_step, "ahead_by": ahead_by, "steps": steps}

    async def made() -> Forecast:
        lm = job.build_lm()
        # A run never begun: only for what it asks with.
        asking = job.build_run(lm, Journal(None)).asking
        try:
            return await calibrated(asking, work, quiet, truth, reference, **options)
        finally:
            await asking.lm.close()

    found = asyncio.run(made())
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        report(found)


async def calibrated(asking: Asking, work: Procedure, quiet: bool, truth: str | None, reference: str | None, **options: Any) -> Forecast:
    """The forecast, with its progress; what is wrong with an option is said by the flag's name."""
    from keystep.cli.job import Job
    from keystep.run.forecast import forecast, labelled

    other = None
    try:
        if reference is not None:
            try:
                other = Job.of({"procedure": "", "model": reference}).build_lm()
            except BadInput as error:
                raise BadInput(error.problem, field="--reference", value=error.value, mend=error.mend) from None
        labels = None if truth is None else labelled(truth, work)
        with _progress(quiet) as moved:
            return await forecast(asking, work, labels=labels, reference=other, progress=moved, **options)
    except BudgetSpent as error:
        mend = "raise it, or calibrate on fewer steps (`keystep forecast --sample`)"
        raise BadInput("was spent by the forecast alone", field=error.field, value=error.value, mend=mend) from None
    finally:
        if other is not None:
            await other.close()


async def forecast_first(job: Job, asking: Asking, work: Procedure, as_json: bool, quiet: bool, **options: Any) -> Job:
    """`run --forecast`: the job with its k, its cap and the forecast in it.

    Raises:
        BadInput: the forecast does not promise the target; nothing of the run was begun.
    """
    found = await calibrated(asking, work, quiet, **options)
    if not as_json:
        report(found)
    if found.k < found.least_k:
        mend = f"take {found.least_k}, or leave it out; without --forecast it runs all the same"
        raise BadInput(f"does not reach {found.target:g} for the whole run", field="--ahead-by", value=found.k, mend=mend)
    if not found.promising:
        shown = ", ".join(step.step for step in found.hard_steps if step.systematic)
        mend = "use another model, an ensemble or another prompt; without --forecast it runs all the same"
        raise BadInput(f"is systematically wrong at steps {shown}, which no k can cure", field="--model", value=job.model, mend=mend)
    cap = job.cap or (found.cap if found.cap > 100 else None)
    return job.model_copy(update={"ahead_by": found.k, "cap": cap, "forecast": found.model_dump(mode="json")})


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda done, of: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("calibrating", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


HOW = {
    "labels": "your labelled steps", "reference": "a reference model", "procedure": "the procedure's own answers",
    "checker": "the procedure's own check", "agreement": "two samples agreeing",
}  # fmt: skip


def report(found: Forecast) -> None:
    """The forecast, for people."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from keystep.run.foreseen import sure

    console = Console()
    known = "at most " if found.steps_from == "max_steps" else ""
    console.print(Text(f"forecast: {found.procedure} on {found.model}, {known}{found.steps:,} steps", style="bold"), soft_wrap=True)
    how = f"{found.samples:,} samples of {found.sampled_steps:,} steps, truth by {HOW[found.truth]}, seed {found.seed}"
    console.print(Text(how), soft_wrap=True)
    table = Table("", "expected", f"{found.confidence:.0%} interval", box=None, padding=(0, 3, 0, 0))
    rows = (
        ("right, of valid answers (p)", ".4f", found.p),
        ("valid answers (v)", ".4f", found.v),
        (f"whole run right at k = {found.k}", "", found.success),
        ("samples", ",.0f", found.calls),
        ("tokens in", ",.0f", found.tokens_in),
        ("tokens out", ",.0f", found.tokens_out),
        ("cost", ",.4f", found.cost),
        ("seconds", ",.1f", found.seconds),
    )
    for name, form, each in rows:
        if name != "cost" or each.high:
            value, low, high = (f"{x:{form}}" if form else sure(x) for x in (each.value, each.low, each.high))
            table.add_row(name, value, f"{low} to {high}")
    for member in found.members:
        table.add_row(
            Text(f"p of {member.model or f'member {member.member}'}"), f"{member.p.value:.4f}", f"{member.p.low:.4f} to {member.p.high:.4f}"
        )
    console.print(table)
    if found.hard_steps:
        hard = Table("hard steps", "right", "of valid", "most said", "expected", box=None, padding=(0, 3, 0, 0))
        for step in found.hard_steps:
            cells = (step.step, str(step.right), str(step.valid), str(step.given)[:60], str(step.expected)[:60])
            hard.add_row(*map(Text, cells))
        console.print(hard)
    if len(found.steps_per_call) > 1:
        sizes = Table("steps per call", "p per step", "tokens out per call", box=None, padding=(0, 3, 0, 0))
        for size in found.steps_per_call:
            best = " (cheapest)" if size.steps_per_call == found.best_steps_per_call else ""
            sizes.add_row(f"{size.steps_per_call}{best}", f"{size.p.value:.4f}", f"{size.tokens_out_per_call:,.0f}")
        console.print(sizes)
    for note in found.notes:
        console.print(Text(note), soft_wrap=True)
    flags = f"--ahead-by {found.k}" + (f" --cap {found.cap}" if found.cap > 100 else "")
    more = found.k - found.least_k
    verdict = "the least that meets" if not more else "more than enough for" if more > 0 else "too little for"
    usual = " (the default)" if found.k == AHEAD_BY else ""
    console.print(Text(f"{flags}{usual} is {verdict} {found.target:g} for the whole run", style="bold"), soft_wrap=True)


def beside(forecast: dict[str, Any], came: dict[str, Any]) -> Any:
    """A table of forecast beside outcome; `forecast` as it was kept with the run, `came` an outcome's figures by name."""
    from rich.table import Table

    from keystep.run.foreseen import beside, sure

    table = Table("forecast beside outcome", "expected", "interval", "came out", box=None, padding=(0, 3, 0, 0))
    forms = {"cost": ",.4f", "seconds": ",.1f"}
    for each in beside(forecast, came):
        if each.within is None:
            assert not isinstance(each.came, float)
            verdict = {True: "yes", False: "no", None: "nobody could check"}[each.came]
            table.add_row(each.name, sure(each.value), f"{sure(each.low)} to {sure(each.high)}", verdict)
            continue
        form = forms.get(each.name, ",.0f")
        cells = (
            f"{each.value:{form}}",
            f"{each.low:{form}} to {each.high:{form}}",
            f"{each.came:{form}}{'' if each.within else ' (outside)'}",
        )
        table.add_row(each.name, *cells)
    return table
