"""`keystep decompose`: how finely to split a long input over many calls, predicted from pilot calls, and measured."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keystep.cli.defaults import JOURNAL, MODEL, AsJson, noted, number, whole
from keystep.errors import BadInput

if TYPE_CHECKING:
    from keystep.measure.llm_algorithms import Algorithm, Given, Prices
    from keystep.run import Run


@dataclass(frozen=True, slots=True)
class _Wish:
    """What is to be predicted and measured."""

    algorithm: Algorithm
    n: int
    sizes: list[int]
    parallel: int
    trials: int
    problems: int
    objective: str
    at_most: dict[str, float]
    prices: Prices
    seed: int


def decompose(
    task: Annotated[str | None, typer.Argument(metavar="[TASK]", help="counting, sorting, retrieval or retrieval-augmented.")] = None,
    n: Annotated[int, typer.Option("--n", parser=whole, metavar="N", help="The size of the whole input.")] = 200,
    sizes: Annotated[str | None, typer.Option(metavar="M,M,…", help="Sizes of a part to try (default: a grid).")] = None,
    graph: Annotated[Path | None, typer.Option(metavar="FILE", help="Predict this graph of calls instead; JSON.")] = None,
    model: Annotated[str, typer.Option(help="`keystep models` lists them.")] = MODEL,
    base_url: Annotated[str | None, typer.Option(help="The server of an openai:MODEL.")] = None,
    api_key_env: Annotated[str | None, typer.Option(metavar="VARIABLE", help="Where its key is.")] = None,
    parallel: Annotated[int, typer.Option(parser=whole, metavar="P", help="Calls at once.")] = 4,
    trials: Annotated[int, typer.Option(parser=whole, metavar="N", help="Pilot calls at each size.")] = 20,
    problems: Annotated[int, typer.Option(parser=whole, metavar="N", help="Problems to measure the choice on; 0 only predicts.")] = 10,
    objective: Annotated[str | None, typer.Option(metavar="FIGURE", help="What to make small (default: the error).")] = None,
    at_most: Annotated[list[str] | None, typer.Option(metavar="FIGURE=X", help="A constraint, for instance money=0.01.")] = None,
    price_in: Annotated[float, typer.Option(parser=number, metavar="X", help="Money per token read.")] = 0.0,
    price_out: Annotated[float, typer.Option(parser=number, metavar="X", help="Money per token written.")] = 0.0,
    speed_of: Annotated[str | None, typer.Option(metavar="RUN", help="With --graph: the speed of calls is that of this run.")] = None,
    majority: Annotated[int, typer.Option(parser=whole, metavar="N", help="Answers of each call that vote.")] = 1,
    temperature: Annotated[float, typer.Option(parser=number, metavar="X", help="Of sampling.")] = 0.0,
    seed: Annotated[int, typer.Option(parser=whole, metavar="N", help="Of the problems and of every random draw.")] = 0,
    journal: Annotated[str, typer.Option(metavar="URL", help="Where the runs are kept: a path or a database URL.")] = JOURNAL,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the report and the figures go.")] = Path("results/decompose"),
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Predict error, cost and latency of a split at every size, choose one, and measure it beside the unsplit call.

    Calls are journaled: the same command again goes on where it stopped. Exit code: 0 done, 2 bad input, 3 stopped.
    """
    from keystep.cli.job import Job, open_journal
    from keystep.measure.llm_algorithms import TASKS, Prices, grid
    from keystep.run import Majority, Run

    for name, value, least in (("--n", n, 1), ("--parallel", parallel, 1), ("--problems", problems, 0), ("--majority", majority, 1)):
        if value < least:
            raise BadInput(f"is at least {least}", field=name, value=value)
    if graph is not None:
        if task is not None:
            raise BadInput("goes without a task", field="--graph", value=str(graph), mend=f"leave {task} out, or --graph")
        _predict_graph(graph, parallel, speed_of, journal, as_json)
        return
    if task not in TASKS:
        raise BadInput("is no task", field="TASK", value=task, mend=f"there are {', '.join(TASKS)}; or give --graph FILE")
    if speed_of is not None:
        raise BadInput(
            "is for a graph of your own", field="--speed-of", value=speed_of, mend="a task's pilot calls tell; give --graph FILE"
        )
    for name, price in (("--price-in", price_in), ("--price-out", price_out)):
        if not 0 <= price < float("inf"):
            raise BadInput("is at least 0", field=name, value=price)
    algorithm = TASKS[task]
    wish = _Wish(
        algorithm, n, [whole(text) for text in sizes.split(",")] if sizes else grid(n, max(1, n // 20)), parallel, trials, problems,
        objective or algorithm.main, dict(_limit(text) for text in at_most or ()), Prices(price_in, price_out), seed,
    )  # fmt: skip
    about = {"task": task, "model": model, "majority": majority, "temperature": temperature}
    about |= {name: value for name, value in asdict(wish).items() if name != "algorithm"}
    asked = [about[name] for name in ("task", "n", "sizes", "trials", "model", "majority", "temperature", "seed")]
    if base_url is not None:
        asked.append(base_url)
    stem = f"{task}-{blake2b(json.dumps(asked).encode(), digest_size=5).hexdigest()}"
    job = Job.of({"procedure": f"decompose {task}", "model": model, "base_url": base_url, "api_key_env": api_key_env, "seed": seed,
                  "temperature": temperature, "majority": majority})  # fmt: skip
    lm, store = job.build_lm(), open_journal(journal, must_exist=False)

    def begun(part: str) -> Run:
        rule = Majority(majority, cap=max(100, 10 * majority))
        with noted(said=part == "pilot"):  # once
            return Run(lm, vote=rule, seed=seed, journal=store, id=f"decompose-{stem}-{part}", sampling=job.sampling())

    try:
        found = asyncio.run(_all(wish, begun, quiet))
    except (KeyboardInterrupt, asyncio.CancelledError):
        typer.echo("stopped; all answers are kept; the same command goes on", err=True)
        raise typer.Exit(3) from None
    finally:
        store.close()
    _finish(about, found, out, stem, as_json)


def _limit(text: str) -> tuple[str, float]:
    name, sign, value = text.partition("=")
    if not sign:
        raise BadInput("is not FIGURE=X", field="--at-most", value=text, mend="write one like money=0.01")
    return name, number(value)


def _predict_graph(file: Path, parallel: int, speed_of: str | None, journal: str, as_json: bool) -> None:
    from keystep.measure.llm_algorithms import load

    given: Given = load(file)
    if speed_of is not None:
        from keystep.cli.job import open_journal
        from keystep.measure.llm_algorithms import Profile, calls_of

        store = open_journal(journal)
        try:
            store.run(speed_of)
            calls = calls_of(store, speed_of)
        finally:
            store.close()
        if not calls:
            raise BadInput("has no call", field="--speed-of", value=speed_of, mend="name a run that asked a model")
        given.speed = Profile(tuple(calls)).speed()
    found = asdict(given.estimate(parallel))
    typer.echo(json.dumps(found) if as_json else "\n".join(f"{name}: {value:.6g}" for name, value in found.items()))


async def _all(wish: _Wish, begun: Callable[[str], Run], quiet: bool) -> dict[str, Any]:
    """Profile, predict, choose, measure; `begun` gives the run of a part of it."""
    from keystep.measure.llm_algorithms import choose, compare, measure, pilot, predict
    from keystep.measure.llm_algorithms.run import means

    algorithm, n = wish.algorithm, wish.n
    run = begun("pilot")
    try:
        profile = await _followed(run, "pilot calls", None, pilot(run, algorithm, n, wish.sizes, wish.trials, wish.seed), quiet)
        table = [predict(algorithm, profile, n, m, wish.parallel, wish.prices) for m in wish.sizes]
        chosen = choose(table, wish.objective, wish.at_most).best
        found: dict[str, Any] = {"chosen": chosen.m, "predicted": [{"m": row.m, "worst": row.worst, **row.figures} for row in table]}
        problems = [algorithm.problem(n, Random(f"{algorithm.name} {wish.seed} {number}")) for number in range(wish.problems)]
        direct = predict(algorithm, profile, n, n, wish.parallel, wish.prices)
        for what, row in (("chosen", chosen), ("direct", direct)) if problems else ():
            run = begun(f"m{row.m}")
            calls = sum(len(algorithm.parts(problem, row.m)) for problem in problems)
            work = measure(run, algorithm, problems, row.m, wish.parallel)
            measured = await _followed(run, f"parts of {row.m}", calls, work, quiet)
            found[f"measured, {what}"] = compare(row.figures, means(measured, wish.prices))
    finally:
        await run.asking.lm.close()
    return found


async def _followed(run: Run, label: str, total: int | None, work: Coroutine[Any, Any, Any], quiet: bool) -> Any:
    """The work's result, with a bar that counts its journaled calls."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        bar = progress.add_task(label, total=total)
        task = asyncio.ensure_future(work)
        while not task.done():
            await asyncio.wait([task], timeout=0.25)
            progress.update(bar, completed=run.meter.steps)
        return task.result()


def _finish(about: dict[str, Any], found: dict[str, Any], out: Path, stem: str, as_json: bool) -> None:
    """Write report and figures, and print them."""
    from keystep.errors import MissingExtra
    from keystep.files import write_text
    from keystep.measure.chart import Chart, Line, svg
    from keystep.measure.page import page

    rows = found["predicted"]
    sizes = [row["m"] for row in rows]
    charts = [
        Chart(name, "size of a part, m", name, [Line("predicted", sizes, [row[name] for row in rows], style="o-")], log="x", share=False)
        for name in dict.fromkeys((about["objective"], "seconds", "tokens_in"))
    ]
    try:
        pictures = [svg([chart]) for chart in charts]
    except MissingExtra as error:
        typer.echo(f"no pictures in the report: {error}", err=True)
        pictures = []
    best = next(row for row in rows if row["m"] == found["chosen"])
    tables = {"Predicted": rows} | {name.capitalize(): found[name] for name in found if name.startswith("measured")}
    scores = {"summary": {"chosen m": found["chosen"], **{name: best[name] for name in best if name != "m"}}, "tables": tables}
    report = out / f"{stem}.html"
    result = {**about, **found, "report": str(report)}
    write_text(report, page(f"decompose {about['task']}", about, scores, pictures))
    write_text(out / f"{stem}.json", json.dumps(result, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(result))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table(*rows[0], box=None, padding=(0, 2, 0, 0))
    for row in rows:
        style = "bold" if row["m"] == found["chosen"] else ""
        shown.add_row(*("–" if value is None else f"{value:.4g}" for value in row.values()), style=style)
    console = Console()
    console.print(shown)
    typer.echo(f"chosen: parts of {found['chosen']}")
    for name in found:
        if name.startswith("measured"):
            typer.echo(name)
            for row in found[name]:
                ratio = "" if row["ratio"] is None else f"  (predicted / measured {row['ratio']:.3g})"
                typer.echo(f"  {row['figure']}: {row['predicted']:.4g} predicted, {row['measured']:.4g} measured{ratio}")
    typer.echo(f"report: {report}")
