"""The solver, and demonstrations as data."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from keystep.errors import BadInput
from keystep.lm.base import Message, Prompt
from keystep.run.flags import Flag
from keystep.run.run import Context
from keystep.run.vote import First
from keystep.solve.answers import Kind, Rules, behind, candidates, canonical, kind
from keystep.solve.chains import Reasoner
from keystep.solve.solver import Solution
from keystep.task import Task

QUESTION = re.compile(r"Q: ?(.*?)\s*\nA:", re.S)  # how demonstrations write a question
_CONCLUDED = re.compile(r"(?:\b(?:so|therefore|thus|hence),?\s+)?\bthe answer is(?:(?!the answer is)[^\n]){0,80}\s*\Z", re.I)
_SAID = {"mended": re.compile(r"the answer is", re.I), "published": re.compile(r"The answer is")}


class Demo(BaseModel):
    """A demonstration as the published code has it (`question` is "Q: …\\nA:"), and where it comes from."""

    model_config = ConfigDict(extra="ignore")

    question: str
    rationale: str
    pred_ans: str
    gold_ans: str | None = None
    cluster: int | None = None
    rank: int | None = None
    distance: float | None = None

    @property
    def asked(self) -> str:
        """The question alone."""
        found = QUESTION.fullmatch(self.question)
        return found[1] if found else self.question


class Tried(BaseModel):
    """A question whose chain was looked at; `rejected` says why it became no demonstration."""

    question: str
    row: int
    rank: int
    distance: float
    answer: str | None
    rejected: str | None


class ClusterReport(BaseModel):
    """A cluster: how many questions, which were tried in what order, which one was taken. `wrong` is the share of those tried whose answer
    is known to be wrong, None where no answer is known."""

    cluster: int
    size: int
    tried: list[Tried]
    accepted: int | None
    wrong: float | None


class Demos(BaseModel):
    """Demonstrations, and how they were chosen. `calls` were made to the model for them; `answers` are those of a bootstrapping run."""

    model_config = ConfigDict(extra="ignore")

    demo: list[Demo]
    clusters: list[ClusterReport] = Field(default_factory=list)
    calls: int = 0
    settings: dict[str, Any] = Field(default_factory=dict)
    answers: list[dict[str, Any]] = Field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class AutoCot(Reasoner):
    """
    Args:
        demos: a file of demonstrations (`keystep demos` makes one); a task's own, as its input `demos`, go before them.
        leave_out: no demonstration of the very question that is asked (in the published code there may be one).
    """

    name: ClassVar[str] = "auto-cot"
    prompt_files: ClassVar[tuple[str, ...]] = (
        "chat.txt", "completion.txt", "trigger.txt", "example.txt", "said.txt", "answer-number.txt", "answer-choice.txt",
        "answer-yes-no.txt", "answer-text.txt",
    )  # fmt: skip

    demos: str | None = None
    leave_out: bool = True

    async def solve(self, task: Task, ctx: Context) -> Solution:
        """Answer with the demonstrations there are; without one, by Zero-Shot-CoT."""
        demos = [demo for demo in self._given(task) if not (self.leave_out and _alike(demo.asked, task.goal))]
        return await (self.few_shot(task.goal, demos, ctx) if demos else self.zero_shot(task.goal, ctx))

    async def few_shot(self, question: str, demos: Sequence[Demo], ctx: Context) -> Solution:
        """One call, with demonstrations before the question."""
        again = ctx.run.asking.sampling.temperature > 0 or not isinstance(ctx.run.asking.rule, First)
        changes = {} if self.reasoning_tokens is None else {"max_tokens": self.reasoning_tokens}

        def parse(text: str) -> dict[str, str | None]:
            found = cleaned(self.of, text, self.rules)
            if not text.strip() or (found is None and again):
                raise Flag(f"no {self.of.reads} in it")
            return {"text": text.strip(), "answer": found}

        prompt = self.few_shot_prompt(question, demos)
        answer = await ctx.ask(prompt, parse=parse, key=lambda found: found["answer"], **changes)
        details: dict[str, Any] = {
            "way": "few-shot", "demonstrations": [demo.model_dump(exclude={"rationale", "gold_ans"}) for demo in demos],
            "reasoning": answer.value["text"], "prediction": answer.value["answer"],
            "calls": 1,
        }  # fmt: skip
        return Solution(answer=answer.value["answer"] or "", details=details)

    async def zero_shot(self, question: str, ctx: Context) -> Solution:
        """Zero-Shot-CoT: two calls, no demonstrations."""
        chain = await self.chain(question, self.prompt("trigger.txt"), ctx, self._read, between="\n")
        details: dict[str, Any] = {
            "way": "zero-shot", "demonstrations": [], "reasoning": chain.reasoning, "prediction": chain.answer,
            "extraction_prompt": chain.extraction_prompt, "extraction_output": chain.extraction_output, "calls": chain.calls,
        }  # fmt: skip
        return Solution(answer=chain.answer or "", details=details)

    def few_shot_prompt(self, question: str, demos: Sequence[Demo]) -> Prompt:
        """Completion style: the demonstrations as published, the question, the trigger. Chat style: as turns of a conversation."""
        trigger = self.prompt("trigger.txt")
        last = self.first_prompt(question, trigger)
        if isinstance(last, str):
            return self.demonstrated(demos) + last
        turns: list[Message] = []
        for demo in demos:
            said = demo.rationale.removeprefix(trigger).strip()
            turns += [*_messages(self.first_prompt(demo.asked, trigger)), Message("assistant", self._conclusion(said, demo.pred_ans))]
        return (*turns, *last)

    def demonstrated(self, demos: Sequence[Demo]) -> str:
        """Demonstrations as one text."""
        return "".join(
            self.prompt("example.txt", question=demo.question, said=self._conclusion(demo.rationale, demo.pred_ans)) + "\n\n"
            for demo in demos
        )

    def demo(self, question: str, reasoning: str, answer: str) -> Demo:
        """A demonstration of a question; the reasoning becomes one line, without an answer at its end that would be said twice."""
        last = _CONCLUDED.search(reasoning)
        body = " ".join((reasoning if last is None else reasoning[: last.start()]).split())
        rationale = " ".join([self.prompt("trigger.txt"), body]).strip()
        return Demo(question=f"Q: {question}\nA:", rationale=rationale, pred_ans=answer)

    def right(self, answer: str, expected: str) -> bool:
        """By the published rules the texts must be the same: 18.0 is not 18."""
        if self.rules == "published":
            return answer == behind(expected).removesuffix(".0")
        return super().right(answer, expected)

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "demonstrations": [demo.model_dump() for demo in self._filed()]}

    def _read(self, text: str) -> str | None:
        return cleaned(self.of, text, self.rules, zero_shot=True)

    def _conclusion(self, rationale: str, answer: str) -> str:
        return self.prompt("said.txt", rationale=rationale, answer=answer)

    def _given(self, task: Task) -> list[Demo]:
        given = task.inputs.get("demos")
        return self._filed() if given is None else demos_of(given, "demos")

    def _filed(self) -> list[Demo]:
        return [] if self.demos is None else read_demos(Path(self.demos)).demo


def cleaned(of: Kind, text: str, rules: Rules = "mended", zero_shot: bool = False) -> str | None:
    """The answer in a model's text: the first candidate after the last "The answer is"; where that is not said the last one of all. The
    text of a second zero-shot call has its answer first."""
    reads = kind("choice") if of.reads == "option" else of
    *_, last = [None, *_SAID[rules].finditer(text)]
    found = candidates(reads, text if last is None else text[last.end() :], rules)
    if not found:
        return None
    answer = found[0 if zero_shot or last is not None else -1]
    return answer.removesuffix(".") if rules == "published" else canonical(of, answer)


def read_demos(file: Path) -> Demos:
    """A file of demonstrations, ours or the published code's.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        mend = "`keystep demos` makes one"
        raise BadInput(f"cannot be read ({error})", field="set demos", value=str(file), mend=mend) from None
    try:
        return Demos.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(f"{where}: {first['msg']}", field="set demos", value=str(file), mend="`keystep demos` makes one") from None


def demos_of(rows: Any, field: str) -> list[Demo]:
    """Demonstrations as they stand in a task.

    Raises:
        BadInput: they are none.
    """
    try:
        return Demos.model_validate({"demo": rows}).demo
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        mend = 'give a list of {"question", "rationale", "pred_ans"}'
        raise BadInput(first["msg"], field=f"{field}.{'.'.join(map(str, first['loc'][1:]))}", value=first["input"], mend=mend) from None


def _messages(prompt: Prompt) -> tuple[Message, ...]:
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def _alike(first: str, second: str) -> bool:
    return " ".join(first.split()) == " ".join(second.split())
