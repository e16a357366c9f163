"""`keystep train METHOD`: the trainings of methods that have one. Each is a command here, and loads what it needs when it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keystep.cli.defaults import AsJson, number_option, texts, whole_option

if TYPE_CHECKING:
    from keystep.nn.tuning import Tell
    from keystep.solve.daslam.train import Report

train = typer.Typer(name="train", no_args_is_help=True, help="Train a model by one of the published methods.")


@train.callback()
def _trainings() -> None:
    """Train a model by one of the published methods; every one of them goes on where it stopped."""


@train.command()
def daslam(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="What becomes the decomposer: a Hugging Face folder, or a name.")],
    data: Annotated[Path, typer.Option(metavar="FILE", help='JSON lines: {"question", "answer", "reasoning", "sub_questions"}.')],
    solver: Annotated[str, typer.Option(metavar="MODEL", help="The model it is to help: any of `keystep models`.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Gets the decomposer, checkpoints, log, and what the solver answered.")],
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the training.")] = None,
    base_url: Annotated[str | None, typer.Option(help="The server of an openai:MODEL.", rich_help_panel="Solver")] = None,
    api_key_env: Annotated[str | None, typer.Option(metavar="VARIABLE", help="Where its key is.", rich_help_panel="Solver")] = None,
    prices: Annotated[str | None, typer.Option(metavar="FILE", help="A JSON table of prices.", rich_help_panel="Solver")] = None,
    seed: Annotated[int, whole_option("Of every random draw.", "Training")] = 0,
    budget_calls: Annotated[int | None, whole_option("Stop after so many of the solver's answers.", "Budget")] = None,
    budget_tokens: Annotated[int | None, whole_option("Stop after so many tokens.", "Budget")] = None,
    budget_cost: Annotated[float | None, number_option("Stop after so much money.", "Budget")] = None,
    budget_seconds: Annotated[float | None, number_option("Stop after so many seconds.", "Budget")] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:  # fmt: skip
    """Train a small model to ask the sub-questions that help a large one (DaSLaM).

    The same command again goes on where it stopped. Exit code: 0 trained, 2 bad input, 3 stopped.
    """
    flags = dict(locals())
    from keystep.cli.job import Job
    from keystep.cli.stopping import carried, stoppable
    from keystep.solve.daslam.problems import load
    from keystep.solve.daslam.train import Settings, train

    chosen = Settings.of(texts("--set", settings))
    problems = load(data)
    kept = ("base_url", "api_key_env", "prices", "seed", "budget_calls", "budget_tokens", "budget_cost", "budget_seconds")
    job = Job.of({**{name: flags[name] for name in kept}, "model": solver, "procedure": "train daslam", "first": True})
    job.check_priced()

    async def work(tell: Tell) -> Report:
        stoppable()
        lm = job.build_lm()
        try:
            return await train(model, problems, lm, out, chosen, seed=seed, tell=tell, budget=job.budget())
        finally:
            await lm.close()

    with _stages(quiet or as_json) as tell:
        report = carried(work(tell), "done")
    if as_json:
        typer.echo(report.model_dump_json())
        return
    typer.echo(f"the solver alone: {report.solver_right:.1%} of all {report.problems + report.held_out} problems")
    for stage, found in report.judged.items():
        rescue, damage = ("-" if share is None else f"{share:.1%}" for share in (found.rescue, found.damage))
        typer.echo(f"{stage}: {found.direct:.1%} alone, {found.decomposed:.1%} decomposed (rescued {rescue}, damaged {damage})")
    typer.echo(f"the decomposer is in {report.decomposer}; use it: keystep solve daslam --set decomposer=hf:{report.decomposer}")


@train.command()
def explore_execute(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="What is trained: a Hugging Face folder, or a name.")],
    data: Annotated[Path, typer.Option(metavar="FILE", help='Rows: {"question", "plan", "execution"}, of rl {"question", "answer"}.')],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Gets the trained model, when it is whole.")],
    stage: Annotated[str, typer.Option(metavar="STAGE", help="sft, ef-sft (plans alone) or rl.")],
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the training.")] = None,
    seed: Annotated[int, whole_option("Of every random draw.", "Training")] = 0,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:  # fmt: skip
    """Train a model to explore plans and to execute one (E²C): sft first, then ef-sft for a new domain, or rl.

    The same command again goes on from the last checkpoint. Exit code: 0 trained, 2 bad input, 3 stopped.
    """
    from keystep.solve.explore_execute.train import Settings, train

    chosen = Settings.of(texts("--set", settings))
    try:
        with _stages(quiet or as_json) as tell:
            report = train(model, data, out, stage, chosen, seed=seed, tell=tell)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on from the last checkpoint", err=True)
        raise typer.Exit(3) from None
    if as_json:
        typer.echo(json.dumps({**report.model_dump(mode="json"), "out": str(out)}))
        return
    typer.echo(
        f"{report.steps} steps on {report.rows} rows, {report.tokens:,} tokens"
        + (f"; {report.left_out} rows were too long" if report.left_out else "")
    )
    typer.echo(f"the model is in {out}; use it: keystep solve explore-execute 'QUESTION' --set tagged=true --model hf:{out}")


@contextmanager
def _stages(quiet: bool) -> Iterator[Any]:
    """A bar for each stage, where standard error is a terminal; gives what is told of (stage, done, total, note)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        bars: dict[str, Any] = {}

        def tell(stage: str, done: int, total: int, note: str) -> None:
            if stage not in bars:
                bars[stage] = progress.add_task(stage, total=total, note="")
            progress.update(bars[stage], completed=done, total=total, note=note)

        yield tell
