"""The command line. The main job is on top: run, forecast, resume, runs, show, decide; then what there is, and helpers.

Every command imports what it needs when it runs, so that `keystep --help` loads nothing heavy; a room's commands go into a file of their
own here and do the same. Exit codes: 0 finished and right (or nobody could check), 1 finished and wrong, 2 bad input, 3 stopped and
resumable.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from keystep.cli.bench import bench
from keystep.cli.catalogue import methods, models
from keystep.cli.decompose import decompose
from keystep.cli.demos import demos, questions
from keystep.cli.edit import edit
from keystep.cli.export import export, prune
from keystep.cli.forecast import forecast
from keystep.cli.helpers import init, reproduce
from keystep.cli.journals import decide, runs, show
from keystep.cli.report import report, view
from keystep.cli.run import resume, run
from keystep.cli.serve import serve, serve_model
from keystep.cli.skill_world import skill_world
from keystep.cli.solve import solve
from keystep.cli.train import train
from keystep.errors import KeystepError


class _Commands(TyperGroup):
    """Says what went wrong in one sentence where it is the user's to mend; everything else is a bug and shows its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeystepError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(error.exit_code) from None


app = typer.Typer(name="keystep", cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
COMMANDS = (
    run, forecast, resume, runs, show, decide, report, view, export, prune, solve, demos, questions, init, models, methods, bench,
    decompose, reproduce, serve, serve_model, skill_world,
)  # fmt: skip
for command in COMMANDS:
    app.command()(command)
app.add_typer(edit)
app.add_typer(train)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("keystep"))
        raise typer.Exit


@app.callback()
def keystep(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Takes a long task apart into steps and gets every step right."""


def main() -> None:
    app()
