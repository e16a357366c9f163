"""The Tower of Hanoi, one move a step: the task on which MAKER (arXiv 2511.09030) made a million steps without an error.

The answer holds the move and the whole state after it; that state is what the next prompt shows. Nothing checks a move while the run
goes on: only afterwards does `check` compare it with the rule. A tall tower is taken apart into towers of `CHAIN` disks that are moved
side by side (`keystep.run.builtin.towers`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from keystep.errors import BadInput
from keystep.lm.embedded.hanoi import MAX_DISKS, MIN_DISKS, render
from keystep.plan import Plan
from keystep.run.builtin import towers
from keystep.run.flags import Flag
from keystep.run.procedure import Procedure
from keystep.skill import SkillLibrary
from keystep.worlds import hanoi

CHAIN = 14  # the tallest tower that is moved as one chain of steps where `split` does not say otherwise

_MOVE = re.compile(r"move\s*=\s*\[\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*\]", re.IGNORECASE)
_PEG = r"\[\s*((?:\d+\s*(?:,\s*\d+\s*)*)?)\]"
_STATE = re.compile(rf"next_state\s*=\s*\[\s*{_PEG}\s*,\s*{_PEG}\s*,\s*{_PEG}\s*\]", re.IGNORECASE)


@dataclass
class Hanoi(Procedure):
    """Settings: `disks` (3 to 20), and how often the tower is `split`: s times give 2^s towers side by side; 0 is one chain of steps.

    State: {"previous": move or null, "pegs": three lists}; answer: [move, pegs after it].
    """

    disks: int = 12
    split: int | None = None
    name = "hanoi"

    def __post_init__(self) -> None:
        if not MIN_DISKS <= self.disks <= MAX_DISKS:
            raise BadInput(f"is from {MIN_DISKS} to {MAX_DISKS}", field="disks", value=self.disks)
        if self.split is None:
            self.split = max(0, self.disks - CHAIN)
        if not 0 <= self.split < self.disks:
            raise BadInput("is from 0 to one less than the disks", field="split", value=self.split)
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

    def apart(self) -> tuple[Plan, SkillLibrary] | None:
        if not self.split:
            return None
        target = next(peg for peg, disks in enumerate(hanoi.goal(self.disks)) if disks)
        return towers.plan(self.disks, self.start(), 0, target, self.split), towers.library(self)

    def stretch(self, start: Any, steps: int) -> Stretch:
        """So many steps from a state on, as a procedure."""
        return Stretch(self.disks, 0, start, steps)

    def identity(self) -> Any:
        split = {"split": self.split} if self.split else {}
        return {"builtin": "hanoi", "disks": self.disks, **split, "prompt": self.prompt(self.start())}


@dataclass
class Stretch(Hanoi):
    """`steps` steps from the state `begin` on, wherever they lead."""

    begin: Any = None
    steps: int = 0

    def start(self) -> Any:
        return self.begin

    def done(self, state: Any) -> bool:
        return False

    def total(self) -> int:
        return self.steps

    def check(self, answers: Iterable[Any]) -> int | None:
        raise NotImplementedError("a stretch is judged with the whole tower")
