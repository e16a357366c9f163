"""`keystep skill-world`: the models and the data of the mini skill-world, for trying the methods that work inside a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from keystep.cli.bar import loss_bar
from keystep.cli.defaults import AsJson, number, whole
from keystep.errors import BadInput


def skill_world(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the checkpoint and the data go.")],
    architecture: Annotated[str, typer.Option(help="llama, qwen2, qwen3, mistral, gemma or gpt2.")] = "llama",
    width: Annotated[int, typer.Option(parser=whole, metavar="N", help="Hidden size.")] = 64,
    layers: Annotated[int, typer.Option(parser=whole, metavar="N", help="Transformer layers.")] = 2,
    heads: Annotated[int, typer.Option(parser=whole, metavar="N", help="Attention heads.")] = 4,
    entities: Annotated[int, typer.Option(parser=whole, metavar="N", help="Two facts each are memorised.")] = 60,
    steps: Annotated[int | None, typer.Option(parser=whole, metavar="N", help="Of training (default: 1200; of tuning: 300).")] = None,
    rate: Annotated[float | None, typer.Option(parser=number, metavar="X", help="Of learning, at its peak.")] = None,
    tune: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Tune this base on --skill instead of training one.")] = None,
    skill: Annotated[list[str] | None, typer.Option(metavar="NAME", help="What to tune on; several times (default: succ).")] = None,
    examples: Annotated[int, typer.Option(parser=whole, metavar="N", help="Of each skill that is tuned on.")] = 512,
    noise: Annotated[float, typer.Option(parser=number, metavar="X", help="Share of those with a wrong answer.")] = 0.0,
    optimizer: Annotated[str, typer.Option(help="Of tuning: sgd or adamw.")] = "sgd",
    seed: Annotated[int, typer.Option(parser=whole, metavar="N", help="Of the world, the weights and every random draw.")] = 0,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:  # fmt: skip
    """Train a small model on the skill-world (about a minute), or tune one on a skill that it has never seen.

    The folder is an ordinary checkpoint with data/SKILL.SPLIT.jsonl beside it. Stopped, the same command goes on.
    """
    from keystep.reproduce._skill_world import Base, Tune, make_base, make_tuned

    if not 0 <= noise <= 1:
        raise BadInput("is from 0 to 1", field="--noise", value=noise)
    if seed < 0:
        raise BadInput("is at least 0", field="--seed", value=seed)
    for name, value in (("--examples", examples), ("--steps", 1 if steps is None else steps)):
        if value < 1:
            raise BadInput("is at least 1", field=name, value=value)
    total = steps or (1200 if tune is None else 300)
    with loss_bar(total, quiet) as tick:
        try:
            if tune is None:
                shape = {"architecture": architecture, "width": width, "layers": layers, "heads": heads, "entities": entities}
                made: dict[str, Any] = make_base(out, Base(**shape, steps=total, rate=rate or 4e-3, seed=seed), tick)  # type: ignore[arg-type]
            else:
                chosen = Tune(tuple(skill or ["succ"]), examples, noise, optimizer, rate or (0.3 if optimizer == "sgd" else 1e-3), total,
                              seed=seed)  # fmt: skip
                made = make_tuned(tune, out, chosen, tick)
        except KeyboardInterrupt:
            typer.echo("stopped; the same command goes on from the last 250 steps kept", err=True)
            raise typer.Exit(3) from None
    if as_json:
        typer.echo(json.dumps({"out": str(out), **made}))
        return
    typer.echo(
        f"wrote {out}; right answers by skill (test): " + ", ".join(f"{name} {share:.2f}" for name, share in made["accuracy"].items())
    )
