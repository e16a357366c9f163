"""A progress bar of training: steps and the loss, on standard error, where that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def loss_bar(steps: int, quiet: bool) -> Iterator[Callable[[float], None]]:
    """A function to call with the loss after each of `steps` steps."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        bar = progress.add_task("training", total=steps)
        yield lambda loss: progress.update(bar, advance=1, description=f"loss {loss:.3f}")
