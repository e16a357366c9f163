"""The decomposer: a handler that asks for the next line of a program, has it carried out as a plan, and goes on until [EOQ]."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from keystep.errors import BadInput, StepFailed
from keystep.lm.base import LM
from keystep.plan import Plan, Ref, Step
from keystep.run.run import Context
from keystep.run.templates import check_syntax, render
from keystep.skill import Skill, SkillLibrary
from keystep.solve.decomposed_prompting.grammar import Line, combined, line_of, questions, read_line, written
from keystep.solve.decomposed_prompting.handlers import Handler, Node

ALL = "(all)"  # the skill that puts a line's answers together; no handler can have this name


class Decomposer(Handler):
    """Emits a program for its question, one line a call, and carries it out with the handlers of `library`.

    Args:
        frame: the template of the prompt, over `question`, `lines` ({line, answer} of each so far), `handlers` ({name, description} of
            each that it may use), `examples` and `instructions`.
        examples: few-shot programs, as the frame shows them.
        uses: the handlers that it may name; None is all, itself among them.
        label: what the frame writes before a line; a reply that repeats it is read without.
        sampling: fields of `keystep.run.Sampling`; `stop` is a new line where it is not given.
        lm: in place of the run's.
    """

    kind = "decomposer"

    def __init__(
        self, name: str, frame: str, *, examples: str = "", instructions: str = "", uses: Iterable[str] | None = None, label: str = "QS:",
        sampling: Mapping[str, Any] | None = None, lm: LM | None = None, description: str = "", cost: float = 1.0, can: Iterable[str] = (),
    ) -> None:  # fmt: skip
        super().__init__(name, description=description, cost=cost, can=can)
        check_syntax(frame, f"handler {name}.frame", expression=False)
        self.frame, self.examples, self.instructions, self.label = frame, examples, instructions, label
        self.uses = None if uses is None else sorted(uses)
        self.changes: dict[str, Any] = {"stop": ("\n",)} | dict(sampling or {}) | ({} if lm is None else {"lm": lm})
        self.library = SkillLibrary()

    def usable(self) -> list[Skill]:
        """The handlers that it may name.

        Raises:
            BadInput: there is none of a name in `uses`.
        """
        known = {ability for skill in self.library for ability in skill.abilities} - {ALL}
        for name in self.uses or ():
            if name not in known:
                raise BadInput(
                    "is no handler", field=f"handler {self.name}.uses", value=name, mend=f"there are: {', '.join(sorted(known))}"
                )
        return [skill for skill in self.library if skill.name != ALL and (self.uses is None or not skill.abilities.isdisjoint(self.uses))]

    async def call(self, inputs: Mapping[str, Any], ctx: Context) -> Node:
        question, paragraphs, depth = inputs["question"], inputs["context"], inputs["depth"]
        if depth > self.limits.depth:
            mend = "raise it, or see why the recursion does not end"
            raise StepFailed("decomposers call one another deeper than that", field="set max_depth", value=self.limits.depth, mend=mend)
        usable = self.usable()
        names = {ability for skill in usable for ability in skill.abilities if self.uses is None or ability in self.uses}
        about = [{"name": skill.name, "description": skill.description} for skill in usable]
        lines: list[dict[str, Any]] = []
        answers: list[Any] = []
        passages: list[str] = list(inputs["passages"])
        asked = tokens_in = tokens_out = 0
        while len(lines) < self.limits.steps:  # the limit is an end of its own, as in the paper's code
            self.limits.spend(calls=1)
            shown = [{"line": line["line"], "answer": written(line["answer"])} for line in lines]
            said = {"question": question, "lines": shown, "handlers": about, "examples": self.examples, "instructions": self.instructions}
            prompt = render(self.frame, said, f"handler {self.name}.frame")
            answer = await ctx.ask(prompt, parse=partial(self._read, names, answers, len(paragraphs)), **self.changes)
            self.limits.spend(tokens=answer.tokens_in + answer.tokens_out)
            asked, tokens_in, tokens_out = asked + 1, tokens_in + answer.tokens_in, tokens_out + answer.tokens_out
            line = read_line(answer.value, names, answers, len(paragraphs))
            if line is None:
                break
            below = {"context": paragraphs, "depth": depth + 1, "passages": passages}
            nodes = await self._carried_out(line, questions(line, answers, len(paragraphs)), below, ctx)
            answers.append(combined(line, answers, [node["answer"] for node in nodes], len(paragraphs)))
            lines.append({"line": answer.value, "answer": answers[-1], "calls": nodes})
            passages = list(dict.fromkeys([*passages, *(passage for node in nodes for passage in node.get("passages", ()))]))
        node = self.node(inputs, answers[-1], asked, tokens_in, tokens_out)
        node["lines"] = lines
        new = [passage for passage in passages if passage not in inputs["passages"]]
        return node | {"passages": new} if new else node

    def _read(self, names: set[str], answers: Sequence[Any], paragraphs: int, text: str) -> str:
        found = line_of(text, self.label)
        read_line(found, names, answers, paragraphs)
        return found

    async def _carried_out(self, line: Line, asked: Sequence[str], below: Mapping[str, Any], ctx: Context) -> list[Node]:
        """The line as a plan: a step for each question, side by side, and one that puts their answers together."""
        if not asked:
            return []
        self.limits.fits(len(asked))
        steps = [
            Step(id=f"q{number}", instruction=question, skill=line.handler, inputs={**below, "question": question})
            for number, question in enumerate(asked, 1)
        ]
        together = Step(id="all", skill=ALL, inputs={"nodes": [Ref(step=step.id) for step in steps]})
        found: list[Node] = await ctx.execute(Plan(steps=(*steps, together)), self.library)
        return found

    def identity(self) -> dict[str, Any]:
        changes = {name: repr(value) for name, value in self.changes.items() if name != "lm"}
        if "lm" in self.changes:
            changes["lm"] = self.changes["lm"].identity()
        return super().identity() | {name: getattr(self, name) for name in ("frame", "examples", "instructions", "uses", "label")} | changes


class All(Skill):
    """Gives the answers of a line's questions as a list."""

    def __init__(self) -> None:
        super().__init__(ALL)

    async def call(self, inputs: Mapping[str, Any], ctx: Context) -> Any:
        return inputs["nodes"]
