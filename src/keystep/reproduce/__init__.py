"""Reproductions: one file per method, the paper's headline claim run small and honestly beside what was measured.

A module here has `main(seeds, progress) -> Reproduction`, and where it is of use `tables(found) -> str` (Markdown) and
`picture(found, path)`; `keystep reproduce NAME` runs it. Names are those of the methods.
"""

from __future__ import annotations

import os
import platform
from typing import Any

from pydantic import BaseModel, ConfigDict

from keystep.errors import MissingExtra


class Reproduction(BaseModel):
    """What a reproduction reports. `ratio` compares ours with the baseline as the claim does; `held` says whether direction and rough
    ratio of the claim were found; `settings_tried` lists every setting that was run, not only the one reported."""

    model_config = ConfigDict(extra="forbid")

    name: str
    room: str
    paper: str
    claim: str
    setting: dict[str, Any]
    baseline: dict[str, Any]
    measured: dict[str, Any]
    ratio: float | None
    held: bool
    seeds: list[int]
    seconds: float
    settings_tried: list[str]
    machine: str


def machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def torch_for(seed: int) -> None:
    """torch seeded, and on one thread.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import torch
    except ImportError:
        raise MissingExtra("training a small model", "local") from None
    torch.set_num_threads(1)
    torch.manual_seed(seed)
