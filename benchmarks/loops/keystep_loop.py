"""keystep's loop: `keystep_loop.py MODE STEPS FOLDER`; MODE is grouped, every-step or interleaved (STEPS is then those of 100 rows)."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from work import NOTE, answer, report

from keystep.lm.base import LM, Request, Sample
from keystep.run import AheadBy, Journal, Many, Procedure, Run

ROWS = 100


class Instant(LM):
    """Answers at once."""

    name = "instant"

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        assert isinstance(request.prompt, str)
        for index in range(request.first, request.first + request.n):
            yield Sample(answer(request.prompt), index, tokens_out=1)


@dataclass
class Count(Procedure):
    """Count to `steps`."""

    steps: int
    name = "count"

    def start(self) -> Any:
        return {"at": 0, "note": NOTE}

    def prompt(self, state: Any) -> str:
        return str(state["at"])

    def parse(self, text: str, state: Any) -> int:
        return int(text)

    def update(self, state: Any, answer: int) -> Any:
        return {"at": answer, "note": state["note"]}

    def done(self, state: Any) -> bool:
        return bool(state["at"] >= self.steps)

    def total(self) -> int:
        return self.steps

    def identity(self) -> Any:
        return {"count": self.steps}


def run(folder: Path, group: int = 256) -> Run:
    return Run(Instant(), vote=AheadBy(3), journal=Journal(folder / "keystep.db", group=group), id="bench")


def main(mode: str, steps: int, folder: Path) -> None:
    run(folder / "warm").execute_sync(Count(50))
    work = run(folder, group=1 if mode == "every-step" else 256)
    if mode == "interleaved":
        many = Many(lambda row: Count(steps // ROWS), [{"row": row} for row in range(ROWS)], concurrency=ROWS)
        report(steps, lambda: many.execute_sync(work).steps)
    else:
        report(steps, lambda: int(work.execute_sync(Count(steps)).result["at"]))
    work.close()


if __name__ == "__main__":
    (Path(sys.argv[3]) / "warm").mkdir()
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
