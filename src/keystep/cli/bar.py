"""Progress bars on standard error, where that is a terminal: of training, with its loss, and of plain steps."""

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


@contextmanager
def steps_bar(steps: int, what: str, quiet: bool) -> Iterator[Callable[[], None]]:
    """A function to call after each of `steps` steps."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        bar = progress.add_task(what, total=steps)
        yield lambda: progress.update(bar, advance=1)
