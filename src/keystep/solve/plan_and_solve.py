"""Plan-and-Solve: have a model first understand the problem and devise a plan, then carry the plan out; no examples.

Wang, Xu, Lan, Hu, Lan, Lee, Lim 2023, "Plan-and-Solve Prompting: Improving Zero-Shot Chain-of-Thought Reasoning by Large Language Models",
ACL 2023, arXiv 2305.04091. What changes the reasoning is a trigger behind the problem; a second call draws the answer out
(`keystep.solve.chains`), and with several samples the most frequent answer counts (self-consistency). The published triggers have
numbers: 101 is Zero-shot-CoT, 201 is PS, 301, 302, 305 and 307 are PS+, 303, 304 and 306 are those of single data sets. The wordings
behind the numbers are our own, in plain files; nothing stands in the way of the paper's.

The paper's other zero-shot baseline is here as the trigger `pot`: Zero-shot-PoT (Chen et al. 2022, arXiv 2211.12588), where the model
writes a program. It is carried out by `keystep.solve.programs`, never by Python; for letters of choices a second call picks the one that
its outcome is nearest to.

Not covered: planning agents that call tools. For examples made by themselves see `keystep.solve.auto_cot`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar, Literal

from keystep.errors import BadInput
from keystep.lm.base import as_finished
from keystep.run.flags import Flag
from keystep.run.run import Context
from keystep.run.vote import First
from keystep.solve.answers import majority, read
from keystep.solve.chains import Chain, Reasoner
from keystep.solve.programs import outcome, program_in
from keystep.solve.solver import Solution
from keystep.solve.worked import sections
from keystep.task import Task

TRIGGERS = ("101", "201", "301", "302", "303", "304", "305", "306", "307")
CLAUSES = ("understand", "variables", "plan", "intermediates", "attention", "show")
PROGRAM = "pot"
TEMPERATURE = 0.7  # of the reasonings of self-consistency

Clause = Literal["understand", "variables", "plan", "intermediates", "attention", "show"]


@dataclass(frozen=True, kw_only=True)
class PlanAndSolve(Reasoner):
    """
    Args:
        trigger: a published number, or a wording of one's own; "" takes the number published for the kind of answer; `pot` has a program
            written.
        clauses: builds the trigger of these clauses instead (understand, variables, plan, intermediates, attention, show).
        samples: reasonings whose answers are counted; 10 in the paper. Every reasoning is then drawn on its own, without a vote.
        temperature: of the reasonings; None is the run's, with several samples 0.7.
        answer_trigger_of: `paper` names what is wanted ("arabic numerals"), `code` is the shorter one of the published code.
    """

    name: ClassVar[str] = "plan-and-solve"
    prompt_files: ClassVar[tuple[str, ...]] = (
        "chat.txt", "completion.txt", "clauses.txt", *(f"trigger-{number}.txt" for number in (*TRIGGERS, PROGRAM)),
        "answer-number.txt", "answer-choice.txt", "answer-yes-no.txt", "answer-text.txt", "answer-short.txt",
    )  # fmt: skip

    trigger: str = ""
    clauses: list[Clause] = field(default_factory=list)
    samples: int = 1
    temperature: float | None = None
    answer_trigger_of: Literal["paper", "code"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trigger.isdigit() and self.trigger not in TRIGGERS:
            mend = f"there are {', '.join(TRIGGERS)}; or write the wording itself"
            raise BadInput("is no trigger", field="set trigger", value=self.trigger, mend=mend)
        if self.trigger and self.clauses:
            raise BadInput("exclude each other", field="set trigger and clauses", mend="leave one out")
        if self.samples < 1:
            raise BadInput("must be at least 1", field="set samples", value=self.samples)
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise BadInput("must be from 0 to 2", field="set temperature", value=self.temperature)

    def wording(self) -> str:
        """The trigger, in words."""
        if self.clauses:
            return self.prompt("clauses.txt", clauses=self.clauses)
        chosen = self.trigger or self.of.trigger
        return self.prompt(f"trigger-{chosen}.txt") if chosen in (*TRIGGERS, PROGRAM) else chosen

    def answer_trigger(self) -> str:
        return self.prompt("answer-short.txt") if self.answer_trigger_of == "code" else super().answer_trigger()

    async def solve(self, task: Task, ctx: Context) -> Solution:
        """Reason in one or several ways, and take the most frequent answer; "" where nothing could be read."""
        trigger = self.wording()
        chains = [await self._one(task.goal, trigger, ctx)] if self.samples == 1 else await self._several(task.goal, trigger, ctx)
        answers = [chain.answer for chain in chains]
        answer = majority(answers, self.rules)
        shown = next(chain for chain in chains if chain.answer == answer)
        details: dict[str, Any] = {
            "trigger": "clauses" if self.clauses else self.trigger or self.of.trigger,
            "wording": trigger, "reasoning": shown.reasoning, "sections": sections(shown.reasoning),
            "extraction_prompt": shown.extraction_prompt, "extraction_output": shown.extraction_output, "prediction": answer,
            "calls": sum(chain.calls for chain in chains),
        }  # fmt: skip
        if self.samples > 1:
            details["answers"] = answers
            details["reasonings"] = [chain.reasoning for chain in chains]
        return Solution(answer=answer or "", details=details)

    async def _one(self, problem: str, trigger: str, ctx: Context) -> Chain:
        reasoning = {} if self.temperature is None else {"temperature": self.temperature}
        return await self._chain(problem, trigger, ctx, reasoning, {})

    async def _several(self, problem: str, trigger: str, ctx: Context) -> list[Chain]:
        """Self-consistency: the reasonings side by side, each in a place of its own, with a greedy second call."""
        alone = First(cap=ctx.run.asking.rule.cap)
        temperature = TEMPERATURE if self.temperature is None else self.temperature

        async def draw(number: int) -> tuple[int, Chain]:
            reasoning, extraction = {"vote": alone, "temperature": temperature}, {"vote": alone, "temperature": 0.0}
            return number, await self._chain(problem, trigger, ctx.at(f"sample-{number}"), reasoning, extraction)

        async with aclosing(as_finished(draw(number) for number in range(self.samples))) as finished:
            drawn = dict([pair async for pair in finished])
        return [drawn[number] for number in range(self.samples)]

    async def _chain(self, problem: str, trigger: str, ctx: Context, reasoning: Mapping[str, Any], extraction: Mapping[str, Any]) -> Chain:
        """One reasoning in words, or as a program."""
        if self.trigger != PROGRAM:
            return await self.chain(problem, trigger, ctx, self._read, reasoning=reasoning, extraction=extraction)
        rule = reasoning.get("vote", ctx.run.asking.rule)
        again = not isinstance(rule, First) or reasoning.get("temperature", ctx.run.asking.sampling.temperature) > 0
        limit: dict[str, Any] = {} if self.reasoning_tokens is None else {"max_tokens": self.reasoning_tokens}

        def parse(text: str) -> dict[str, str | None]:
            """A program that fails is drawn again, unless the same one would come."""
            try:
                found = self._outcome(text)
            except Flag:
                if again:
                    raise
                found = None
            return {"text": text, "answer": found}

        options = {"key": lambda found: found["answer"], **limit, **reasoning}
        first = (await ctx.ask(self.first_prompt(problem, trigger), parse=parse, **options)).value
        if self.of.wants != "choice" or first["answer"] is None:
            return Chain(first["text"], first["answer"], None, None)
        worked = f"{first['text']}\n\nThe program gives {first['answer']}."
        prompt, shown = self.second_prompt(problem, trigger, worked, " ")
        second = await self.extracted(prompt, self._read, ctx, extraction)
        return Chain(first["text"], second.value["answer"], shown, second.value["text"])

    def _outcome(self, text: str) -> str | None:
        """What the program in a text comes to, as an answer; of choices as it is.

        Raises:
            Flag: it comes to nothing, or to nothing of this kind.
        """
        found = outcome(program_in(text))
        if self.of.reads == "yes-no" and isinstance(found, bool):
            return "yes" if found else "no"
        said = format(Decimal(repr(found)), "f").removesuffix(".0") if isinstance(found, float) else str(found)  # 3e-05 in digits
        answer = said.strip() if self.of.wants == "choice" else self._read(said)
        if not answer:
            raise Flag(f"the program gives no {self.of.reads}")
        return answer

    def _read(self, text: str) -> str | None:
        return read(self.of, text, self.rules)


def accuracy_by_samples(answers: Sequence[str | None], right: Sequence[bool], sizes: Sequence[int] = (1, 3, 5, 10)) -> dict[int, float]:
    """How often the majority of n of these samples of one question is right, over all runs of n neighbours (the last next to the first).

    `right` says of every sample whether its answer is. Sizes above the number of samples are left out.
    """
    n, verdict = len(answers), dict(zip(answers, right, strict=True))
    found = {}
    for size in sizes:
        if 1 <= size <= n:
            winners = [majority([answers[(start + i) % n] for i in range(size)]) for start in range(n)]
            found[size] = sum(winner is not None and verdict[winner] for winner in winners) / n
    return found
