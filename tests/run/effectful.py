"""The process that test_effects.py kills: a plan of two tools that append a line to a file. `python effectful.py JOURNAL FILE WAY`; WAY
"once" has a tool that can tell a repetition by its key."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from worker import Scripted

import keystep as ks
from keystep.run.skills import ToolSkill

FILE = Path(sys.argv[2]) if len(sys.argv) > 2 else Path("file")
PLAN = ks.Plan(
    steps=(
        ks.Step(id="first", skill="append", inputs={"text": "one"}),
        ks.Step(id="second", skill="append", inputs={"text": "two", "after": ks.Ref(step="first")}),
    )
)


def append(text: str, key: str, after: int = 0) -> int:
    with FILE.open("a") as file:
        file.write(f"{key} {text}\n")
    return after + len(text)


def happened(text: str, key: str, after: int = 0) -> int | None:
    return after + len(text) if FILE.exists() and any(line.startswith(key) for line in FILE.read_text().splitlines()) else None


def library(way: str) -> ks.SkillLibrary:
    return ks.SkillLibrary([ToolSkill("append", append, key="key", effect=True, happened=happened if way == "once" else None)])


if __name__ == "__main__":
    run = ks.Run(Scripted(["?"]), journal=sys.argv[1], id="r")
    print(json.dumps(run.execute_sync(PLAN, library(sys.argv[3])).result))
    run.close()
