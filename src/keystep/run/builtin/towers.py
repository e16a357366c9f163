"""The recursive planner of the Tower of Hanoi: a tower of n disks is moved as a tower of n - 1, disk n, and the tower of n - 1 once more.

The rules of the recursion say which state each part begins and ends in, the strategy's previous move included, so the parts need not
wait for one another: each is carried out from the state it is expected to begin in. What it ends in is what its own votes carried there.
A part's `post` compares that with its expected end, and the step that joins the parts requires that what one part carried to its end
*equals* what the next one began with. Where they differ the run stops; nothing is put right.

No step is skipped because an equal one was done before: every single one is sampled and voted on, in a place of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from keystep.plan import Plan, Ref, Step
from keystep.skill import Skill, SkillLibrary
from keystep.worlds import hanoi

if TYPE_CHECKING:
    from keystep.run.builtin.hanoi import Hanoi
    from keystep.run.run import Context

STANDS = "inputs.start.pegs[inputs.source][-inputs.disks:] == range(inputs.disks, 0, -1) | list"
FREE = "inputs.start.pegs[inputs.source][-1] == inputs.disk and inputs.start.pegs[inputs.target][-1:] | first | default(99) > inputs.disk"
ARRIVED = "output == inputs.end"
CHAINED = "inputs.carried == inputs.begun"


def plan(disks: int, start: Mapping[str, Any], source: int, target: int, split: int) -> Plan:
    """The plan that moves the tower of the `disks` smallest disks from peg `source` to peg `target`; `start` is the state before.

    Its two towers are split further `split - 1` times. The plan's output is the state that its last part carried to its end.
    """
    other = 3 - source - target
    below = hanoi.tower_moved(start["pegs"], disks - 1, source, other)
    across = hanoi.moved(below, [disks, source, target])
    begun = [
        {"previous": hanoi.last_move(disks - 1, source, other), "pegs": below},
        {"previous": [disks, source, target], "pegs": across},
    ]
    end = {"previous": hanoi.last_move(disks - 1, other, target), "pegs": hanoi.tower_moved(across, disks - 1, other, target)}

    def tower(id: str, start: Any, source: int, target: int, end: Any) -> Step:
        inputs = {"disks": disks - 1, "start": start, "source": source, "target": target, "split": split - 1, "end": end}
        return Step(id=id, skill="tower", inputs=inputs, pre=STANDS, post=ARRIVED)

    disk = {"disk": disks, "start": begun[0], "source": source, "target": target, "end": begun[1]}
    carried = [Ref(step="onto-the-other"), Ref(step="disk")]
    return Plan(
        steps=(
            tower("onto-the-other", dict(start), source, other, begun[0]),
            Step(id="disk", skill="disk", inputs=disk, pre=FREE, post=ARRIVED),
            tower("onto-the-disk", begun[1], other, target, end),
            Step(id="joined", skill="join", inputs={"carried": carried, "begun": begun, "end": Ref(step="onto-the-disk")}, pre=CHAINED),
        )
    )


def library(game: Hanoi) -> SkillLibrary:
    """The skills of such plans, for the game whose steps they are."""
    return SkillLibrary([_Tower(game), _Disk(game), _Join()])


class _Tower(Skill):
    """Moves a tower: by a plan while it is to be split, else step by step."""

    def __init__(self, game: Hanoi) -> None:
        super().__init__("tower")
        self.game = game

    async def call(self, inputs: Mapping[str, Any], ctx: Context) -> Any:
        disks, start, split = inputs["disks"], inputs["start"], inputs["split"]
        if split < 1 or disks < 2:
            return await ctx.execute(self.game.stretch(start, hanoi.steps(disks)))
        return await ctx.execute(plan(disks, start, inputs["source"], inputs["target"], split), library(self.game))


class _Disk(Skill):
    """Moves the one disk between two towers: a single step."""

    def __init__(self, game: Hanoi) -> None:
        super().__init__("disk")
        self.game = game

    async def call(self, inputs: Mapping[str, Any], ctx: Context) -> Any:
        return await ctx.execute(self.game.stretch(inputs["start"], 1))


class _Join(Skill):
    """Gives the last part's end on; that the parts fit together is the step's `pre`."""

    def __init__(self) -> None:
        super().__init__("join")

    async def call(self, inputs: Mapping[str, Any], ctx: Context) -> Any:
        return inputs["end"]
