"""The Tower of Hanoi, one move a step: the task on which MAKER (arXiv 2511.09030) made a million steps without an error.

The answer holds the move and the whole state after it; that state is what the next prompt shows. Nothing checks a move while the run
goes on: only afterwards does `check` compare it with the rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from keystep.errors import BadInput
from keystep.lm.embedded.hanoi import MAX_DISKS, MIN_DISKS, render
from keystep.run.flags import Flag
from keystep.run.procedure import Procedure
from keystep.worlds import hanoi

_MOVE = re.compile(r"move\s*=\s*\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]", re.IGNORECASE)
_PEG = r"\[\s*((?:\d+\s*(?:,\s*\d+\s*)*)?)\]"
_STATE = re.compile(rf"next_state\s*=\s*\[\s*{_PEG}\s*,\s*{_PEG}\s*,\s*{_PEG}\s*\]", re.IGNORECASE)


@dataclass
class Hanoi(Procedure):
    """Settings: `disks` (3 to 20). State: {"previous": move or null, "pegs": three lists}; answer: [move, pegs after it]."""

    disks: int = 12
    name = "hanoi"

    def __post_init__(self) -> None:
        if not MIN_DISKS <= self.disks <= MAX_DISKS:
            raise BadInput(f"is from {MIN_DISKS} to {MAX_DISKS}", field="disks", value=self.disks)
        self.sampling = {"max_tokens": 40 + 12 * self.disks}  # of a model that writes about three tokens a disk, with room
        self._all = list(range(1, self.disks + 1))

    def start(self) -> Any:
        return {"previous": None, "pegs": hanoi.start(self.disks)}

    def prompt(self, state: Any) -> str:
        return render(state["previous"], state["pegs"])

    def parse(self, text: str, state: Any) -> Any:
        """The last move and the last state in the text. As in MAKER's flagging parser, form is checked (three numbers, three lists,
        every disk once) and legality is not."""
        moves, states = _MOVE.findall(text), _STATE.findall(text)
        if not moves or not states:
            raise Flag("no move or no state")
        try:
            move = [int(part) for part in moves[-1]]
            pegs = [[int(disk) for disk in peg.split(",") if disk.strip()] for peg in states[-1]]
        except ValueError:
            raise Flag("a number of thousands of digits") from None
        if sorted(pegs[0] + pegs[1] + pegs[2]) != self._all:
            raise Flag("not every disk once")
        return [move, pegs]

    def update(self, state: Any, answer: Any) -> Any:
        return {"previous": answer[0], "pegs": answer[1]}

    def done(self, state: Any) -> bool:
        # The rule passes through the goal only at its end, so the whole tower on another peg is the end, right or wrong.
        return bool(len(state["pegs"][1]) == self.disks or len(state["pegs"][2]) == self.disks)

    def total(self) -> int:
        return hanoi.steps(self.disks)

    def check(self, answers: Iterable[Any]) -> int | None:
        move, pegs = None, hanoi.start(self.disks)
        number = -1
        for number, (answered, after) in enumerate(answers):
            move = hanoi.next_move(move, pegs)
            pegs = hanoi.moved(pegs, move)
            if answered != move or after != pegs:
                return number
        return None if pegs == hanoi.goal(self.disks) else number + 1

    def truth(self) -> Iterable[tuple[Any, Any]]:
        move, pegs = None, hanoi.start(self.disks)
        for _ in range(self.total()):
            state = {"previous": move, "pegs": pegs}
            move = hanoi.next_move(move, pegs)
            pegs = hanoi.moved(pegs, move)
            yield state, [move, pegs]

    def identity(self) -> Any:
        return {"builtin": "hanoi", "disks": self.disks, "prompt": self.prompt(self.start())}
