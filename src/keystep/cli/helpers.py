"""`keystep init` and `reproduce`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from keystep.cli.defaults import AsJson, whole
from keystep.errors import BadInput
from keystep.files import write_text

EXAMPLE = Path(__file__).with_name("example.yaml")


def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The file to write.")] = Path("procedure.yaml"),
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of procedure files, for editors; write nothing.")] = False,
) -> None:
    """Write an example procedure, with comments, that runs as it is."""
    if schema:
        from keystep.run.procedure_file import SCHEMA

        typer.echo(SCHEMA.read_text("utf-8"), nl=False)
        return
    text = EXAMPLE.read_text("utf-8").replace("FILE", file.name)
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError:
        raise BadInput("is there already", field="FILE", value=str(file), mend="name another one; nothing was changed") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot be written ({error})", field="FILE", value=str(file), mend="name another one") from None
    typer.echo(f"wrote {file}. Try: keystep run {file} --dry-run, then keystep run {file}")


def reproduce(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A method; lists them when left out.")] = None,
    seeds: Annotated[int | None, typer.Option(parser=whole, metavar="N", help="How many seeds (default: the reproduction's own).")] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where NAME.json goes, and its tables and pictures.")] = Path(
        "results/reproductions"
    ),
    as_json: AsJson = False,
) -> None:
    """Run a paper's headline claim, small and honestly, beside what it said."""
    if seeds is not None and seeds < 1:
        raise BadInput("is at least 1", field="--seeds", value=seeds, mend="for instance 3")
    known = reproductions()
    if name is None:
        typer.echo(json.dumps(known) if as_json else "\n".join(known) or "none yet")
        return
    if name not in known:
        raise BadInput("is no reproduction", field="NAME", value=name, mend=f"there are: {', '.join(known) or 'none'}")
    from importlib import import_module

    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    options: dict[str, Any] = {} if seeds is None else {"seeds": seeds}
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        module = import_module(f"keystep.reproduce.{name.replace('-', '_')}")
        found = module.main(progress=progress, **options)
    result: dict[str, Any] = found.model_dump(mode="json")
    file = out / f"{name}.json"
    write_text(file, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    if hasattr(module, "tables"):
        write_text(out / f"{name}.md", module.tables(found))
    if hasattr(module, "picture"):
        try:
            module.picture(found, out / f"{name}.svg")
        except ImportError:
            typer.echo("no picture: it needs matplotlib (pip install 'keystep[plot]')", err=True)
    if as_json:
        typer.echo(json.dumps(result))
        return
    for label in ("paper", "claim", "ratio", "held", "seeds", "seconds"):
        typer.echo(f"{label}: {result.get(label)}")
    typer.echo(f"the whole of it is in {file}")


def reproductions() -> list[str]:
    """The names that `keystep reproduce` knows: those of the methods' files."""
    from pkgutil import iter_modules

    import keystep.reproduce

    return sorted(module.name.replace("_", "-") for module in iter_modules(keystep.reproduce.__path__) if not module.name.startswith("_"))
