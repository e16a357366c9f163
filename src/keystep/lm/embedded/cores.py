"""Decoding in processes of its own, so that an ensemble uses more than one core and the event loop goes on meanwhile.

One thread a process: matrices this small gain nothing from more. Answers do not depend on which process decodes them, nor on what it
decodes beside. A process ends with the one that started it, however that ends.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import ProcessPoolExecutor

    from keystep.lm.embedded.decoder import Answer, Row
    from keystep.lm.embedded.model import Ensemble

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def available() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start(processes: int) -> ProcessPoolExecutor:
    """So many processes, started."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_attend)
    with _one_thread():
        for _ in range(processes):
            pool.submit(os.getpid)
    return pool


def answer(path: Path, rows: list[Row]) -> list[Answer]:
    """The answers of the ensemble in this file."""
    return _ensemble(path).decoder.answer(rows)


@cache
def _ensemble(path: Path) -> Ensemble:
    from keystep.lm.embedded.model import Ensemble

    return Ensemble(path)


def _attend() -> None:
    """End when the parent has ended; a parent that is killed cannot say so."""
    from multiprocessing import parent_process

    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _one_thread() -> Iterator[None]:
    """A new process finds these variables when it loads numpy."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
