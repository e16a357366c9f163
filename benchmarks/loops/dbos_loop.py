"""DBOS's loop: `dbos_loop.py MODE STEPS FOLDER`; MODE is default (its own SQLite settings) or wal-normal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from dbos import DBOS
from work import NOTE, report, voted


@DBOS.step()
def step(state: dict[str, Any]) -> dict[str, Any]:
    return {"at": voted(state["at"]), "note": state["note"]}


@DBOS.workflow()
def count(steps: int) -> int:
    state = {"at": 0, "note": NOTE}
    while state["at"] < steps:
        state = step(state)
    return int(state["at"])


def quick(connection: Any, record: object) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def main(mode: str, steps: int, folder: Path) -> None:
    if mode == "wal-normal":
        sa.event.listen(sa.Engine, "connect", quick)
    DBOS(config={"name": "benchmark", "system_database_url": f"sqlite:///{folder / 'dbos.db'}", "log_level": "ERROR"})
    DBOS.launch()
    count(20)
    report(steps, lambda: count(steps))
    DBOS.destroy()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
