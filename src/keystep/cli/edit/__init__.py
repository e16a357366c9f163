"""`keystep edit …`: the methods that change the weights of a checkpoint. A file a method; each imports what it needs when it runs."""

from __future__ import annotations

import typer

from keystep.cli.edit.corda import adapt, to_lora
from keystep.cli.edit.localize import graft, keep, locate, overlap, purge
from keystep.cli.edit.unlearn import blocked, forget

edit = typer.Typer(name="edit", no_args_is_help=True, help="Find, move and remove skills inside a Hugging Face checkpoint.")
for command in (locate, graft, purge, keep, overlap, adapt, to_lora, forget, blocked):
    edit.command()(command)
