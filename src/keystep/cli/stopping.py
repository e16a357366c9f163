"""How commands that can be stopped end: a word on how to go on, and the exit code."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import typer

from keystep.errors import KeystepError

T = TypeVar("T")


def stoppable() -> None:
    """SIGTERM cancels the current task, as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    with suppress(NotImplementedError, RuntimeError):  # not everywhere, and in the main thread only
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def carried(work: Coroutine[Any, Any, T], kept: str) -> T:
    """What the work gives. Where it fails or is stopped: why, what is `kept`, and exit code 3 if the same command goes on."""
    try:
        return asyncio.run(work)
    except KeystepError as error:
        typer.echo(f"error: {error}", err=True)
        if error.exit_code == 3:
            typer.echo(f"what was {kept} is kept; the same command goes on", err=True)
        raise typer.Exit(error.exit_code) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        typer.echo(f"stopped; what was {kept} is kept; the same command goes on", err=True)
        raise typer.Exit(3) from None
