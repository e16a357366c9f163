"""Zero-shot chains of thought in two calls: one to reason, one to draw the answer out of the reasoning (Kojima et al. 2022,
arXiv 2205.11916); what Plan-and-Solve and the first stage of Auto-CoT have in common.

Completion style: the second prompt is the first one, what the model wrote, and the answer trigger. Chat style: the first is one user
message, the second the whole conversation with the answer trigger as the user's next message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from keystep.errors import BadInput
from keystep.lm.base import Message, Prompt
from keystep.run.ask import Answer, plain
from keystep.run.flags import Flag
from keystep.run.run import Context
from keystep.run.vote import First
from keystep.solve.answers import Kind, Rules, kind, read, same
from keystep.solve.solver import Solver

Style = Literal["chat", "completion"]
Read = Callable[[str], str | None]  # the answer in a text

_SAID = {"mended": re.compile(r"the answer is", re.I), "published": re.compile(r"The answer is|Therefore, the answer is")}


@dataclass(frozen=True, slots=True)
class Chain:
    """One reasoning and what was drawn out of it. `extraction_prompt` and `extraction_output` are None where the reasoning said its answer
    in so many words."""

    reasoning: str
    answer: str | None
    extraction_prompt: str | None
    extraction_output: str | None

    @property
    def calls(self) -> int:
        return 1 if self.extraction_prompt is None else 2


@dataclass(frozen=True, kw_only=True)
class Reasoner(Solver):
    """A solver that has a model reason and reads a typed answer.

    Args:
        kind: of answers (number, decimal, choice, yes-no, letters, text), or a data set with its own (gsm8k, svamp, aqua, csqa, …).
        style: how prompts are built; `chat` for instruction-tuned models, `completion` for one text that is continued.
        rules: `published` reads answers with the quirks of the published code, `mended` without (`keystep.solve.answers`).
        shortcut: no second call where the reasoning says "the answer is …".
        reasoning_tokens: most tokens of a reasoning; None leaves it to the run (the papers have 256).
        answer_tokens: most tokens of the second call.
    """

    kind: str = "number"
    style: Style = "chat"
    rules: Rules = "mended"
    shortcut: bool = True
    reasoning_tokens: int | None = None
    answer_tokens: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        kind(self.kind)
        for field in ("reasoning_tokens", "answer_tokens"):
            number = getattr(self, field)
            if number is not None and number < 1:
                raise BadInput("must be at least 1", field=f"set {field}", value=number)

    @property
    def of(self) -> Kind:
        return kind(self.kind)

    def right(self, answer: str, expected: str) -> bool:
        return same(self.of, answer or None, expected)

    def answer_trigger(self) -> str:
        return self.prompt(f"answer-{self.of.wants}.txt")

    async def chain(
        self, problem: str, trigger: str, ctx: Context, drawn: Read, *, between: str = " ", reasoning: Mapping[str, Any] | None = None,
        extraction: Mapping[str, Any] | None = None,
    ) -> Chain:  # fmt: skip
        """Reason about the problem and draw out the answer; `reasoning` and `extraction` are options of the two asks.

        Under a vote, reasonings count as the same where they come to the same answer, and those that come to none are flagged.
        """
        changes: dict[str, Any] = {} if self.reasoning_tokens is None else {"max_tokens": self.reasoning_tokens}
        changes |= reasoning or {}
        key = None if isinstance(changes.get("vote", ctx.run.asking.rule), First) else self.concluded
        first = await ctx.ask(self.first_prompt(problem, trigger), parse=plain, key=key, **changes)
        text = str(first.value)
        said = self.said(text)
        answer = None if said is None else drawn(said)
        if said is not None and (answer is not None or self.rules == "published"):
            return Chain(text, answer, None, None)
        prompt, shown = self.second_prompt(problem, trigger, text, between)
        second = await self.extracted(prompt, drawn, ctx, extraction or {})
        return Chain(text, second.value["answer"], shown, second.value["text"])

    async def extracted(self, prompt: Prompt, drawn: Read, ctx: Context, changes: Mapping[str, Any]) -> Answer:
        """The second call: its value is {text, answer}. It ends at a blank line, and is greedy where nothing votes."""
        options = {"max_tokens": self.answer_tokens, "stop": ("\n\n",), **changes}
        rule, sampling = options.get("vote", ctx.run.asking.rule), ctx.run.asking.sampling
        again = sampling.temperature > 0  # else the same answer would come again
        if isinstance(rule, First):
            options.setdefault("temperature", 0.0)

        def parse(text: str) -> dict[str, str | None]:
            found = drawn(text)
            if found is None and (again or not isinstance(rule, First)):
                raise Flag(f"no {self.of.reads} in it")
            return {"text": text.strip(), "answer": found}

        return await ctx.ask(prompt, parse=parse, key=lambda found: found["answer"], **options)

    def first_prompt(self, problem: str, trigger: str) -> Prompt:
        text = self.prompt(f"{self.style}.txt", problem=problem, trigger=trigger)
        return text if self.style == "completion" else (Message("user", text),)

    def second_prompt(self, problem: str, trigger: str, reasoning: str, between: str) -> tuple[Prompt, str]:
        """The prompt of the second call, and what it adds to the first."""
        wanted = self.answer_trigger()
        first = self.first_prompt(problem, trigger)
        if isinstance(first, str):
            return f"{first} {reasoning}{between}{wanted}", wanted
        return (*first, Message("assistant", reasoning), Message("user", wanted)), wanted

    def said(self, text: str) -> str | None:
        """What stands after the last "the answer is"; None where that is not said."""
        if not self.shortcut:
            return None
        *_, last = [None, *_SAID[self.rules].finditer(text)]
        return None if last is None else text[last.end() :]

    def concluded(self, text: str) -> str:
        """The answer that a reasoning comes to, for votes on reasonings.

        Raises:
            Flag: it comes to none.
        """
        said = self.said(text)
        found = None if said is None else read(self.of, said, place=0)
        if found is None:
            end = text.rstrip().rpartition("\n")[2] if self.of.reads in ("letters", "text") else text
            found = read(self.of, end, place=-1)
        if found is None:
            raise Flag(f"it comes to no {self.of.reads}")
        return found
