"""The child of test_mixed_plan: one Plan of prompts, tools and a policy. `python mixed_plan.py JOURNAL LOG` carries it out, or goes on.

Whatever costs something (a tool, an episode, a model's samples) first appends its address in the run to LOG.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import gymnasium

import keystep as ks
from keystep.lm.base import Request, Sample
from keystep.lm.embedded import hanoi
from keystep.run.builtin.hanoi import Hanoi
from keystep.run.skills import PolicySkill, PromptSkill, ToolSkill

LOG = Path(sys.argv[2] if len(sys.argv) > 2 else "log")


def log(address: str) -> None:
    with LOG.open("a") as file:
        file.write(address.removeprefix("mixed/") + "\n")


class Logged(ks.LM):
    """The embedded models, every request logged."""

    def __init__(self) -> None:
        self.inner = ks.lm("embedded")
        self.name, self.members = self.inner.name, self.inner.members

    async def sample(self, request: Request) -> AsyncGenerator[Sample]:
        log(request.key)
        async for sample in self.inner.sample(request):
            yield sample


def start(disks: int, once: str) -> dict[str, Any]:
    log(once)
    return {"disks": disks, "pegs": [list(range(disks, 0, -1)), [], []]}


def guess(move: Any, pegs: Any, once: str) -> str:
    log(once)
    raise ValueError("too hasty to tell")


def judge(move: Any, pegs: Any, once: str) -> bool:
    log(once)
    return bool(pegs[int(move["from"])][-1] == int(move["disk"]))


def report(once: str, **parts: Any) -> dict[str, Any]:
    log(once)
    return parts


def pole(inputs: Mapping[str, Any]) -> Any:
    log("0/balance/pole")
    return gymnasium.make("CartPole-v1", max_episode_steps=inputs["steps"])


class Climb(ks.Skill):
    """Carries a whole tower over: a procedure below a plan's step."""

    async def call(self, inputs: Mapping[str, Any], ctx: ks.Context) -> Any:
        return (await ctx.execute(Hanoi(disks=inputs["disks"])))["pegs"]


PROMPT = hanoi.PROMPT.format(disks="{{ inputs.disks }}", previous="none", pegs="{{ inputs.pegs }}")

PLAN = ks.Plan(
    steps=(
        ks.Step(id="start", skill="start", inputs={"disks": ks.Ref(step="inputs", path=("disks",))}, post="output.disks == inputs.disks"),
        ks.Step(
            id="move", skill="move", inputs={"disks": ks.Ref(step="start", path=("disks",)), "pegs": ks.Ref(step="start", path=("pegs",))}
        ),
        ks.Step(id="legal", skill="judge", inputs={"move": ks.Ref(step="move"), "pegs": ks.Ref(step="start", path=("pegs",))}),
        ks.Step(id="tower", skill="climb", inputs={"disks": ks.Ref(step="start", path=("disks",))}, needs=(ks.Need(step="legal"),)),
        ks.Step(id="balance", skill="pole", inputs={"steps": 200}, needs=(ks.Need(step="start"),), post="output.steps == inputs.steps"),
        ks.Step(id="report", skill="report", inputs={id: ks.Ref(step=id) for id in ("move", "legal", "tower", "balance")}),
    )
)
LIBRARY = ks.SkillLibrary(
    [
        ToolSkill("start", start, key="once"),
        PromptSkill(
            "own-words", "Move a disk of {{ inputs.pegs }}", cost=0.1, can=["move"]
        ),  # the model refuses: it does not know these words
        PromptSkill("move", PROMPT, r"move = \[(?P<disk>\d+), (?P<from>\d+), (?P<to>\d+)\]"),
        ToolSkill("guess", guess, key="once", cost=0, can=["judge"]),
        ToolSkill("judge", judge, key="once", cost=1),
        Climb("climb"),
        PolicySkill("pole", pole, lambda seen, inputs: int(seen[2] + 0.5 * seen[3] > 0), success=lambda result: result["truncated"]),
        ToolSkill("report", report, key="once"),
    ]
)

if __name__ == "__main__":
    run = ks.Run(Logged(), vote=ks.AheadBy(2), journal=sys.argv[1], id="mixed", seed=3)
    outcome = run.execute_sync(PLAN, LIBRARY, inputs={"disks": 3})
    run.close()
    print(json.dumps(outcome.result, sort_keys=True))
