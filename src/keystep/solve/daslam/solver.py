"""DaSLaM at work: the solver answers first, the decomposer sees question and answer and asks sub-questions, the solver answers those and
then the question again.

Paper: Juneja, Dutta, Chakrabarti, Manchanda, Chakraborty 2023, "Small Language Models Fine-tuned to Coordinate Larger Language Models
improve Complex Reasoning", EMNLP, arXiv 2310.18338. Names: the solver is theta (the run's model), the decomposer phi (`decomposer`), the
first answer s0 (`first`), the sub-questions and their answers {q_k, a_k}.

Paper and released code differ: in the paper's figure each answer is appended to the prompt of the next sub-question (`share_answers=True`,
the default); the code asks every sub-question alone (`False`; they then run side by side). The code takes fewer than three sub-questions
for none (`fewest=3`). Its checker that stops after a right first answer belongs to training and is not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from keystep.errors import BadInput
from keystep.lm import lm
from keystep.lm.base import LM
from keystep.plan import Plan, Ref, Step
from keystep.run.ask import plain
from keystep.run.flags import Flag
from keystep.run.run import Context
from keystep.skill import Skill, SkillLibrary
from keystep.solve.daslam.text import answer_of, before_marks, context_of, last_marked, same_answer, sub_questions, with_options
from keystep.solve.solver import Solution, Solver
from keystep.task import Task


@dataclass(frozen=True, kw_only=True)
class DaSLaM(Solver):
    """Asks the run's model with the help of a decomposer.

    Args:
        decomposer: the model that asks the sub-questions (any name of `keystep.lm`: `hf:FOLDER` of a trained one); None: the run's model.
        feedback: whether the decomposer sees the solver's first answer.
        share_answers: whether a sub-question is asked together with those before it and their answers.
        fewest, most: sub-questions; fewer count as none (then the question is merely asked again), with more the decomposition is flagged.
        marked: flag empty texts, and a last answer without [[Answer: …]]; else any text counts, as in the released code.

    A task's input `options` (a list) is shown with the question.
    """

    name = "daslam"
    prompt_files = ("solver.txt", "decomposer.txt", "examples.txt")

    decomposer: str | None = None
    feedback: bool = True
    share_answers: bool = True
    fewest: int = 1
    most: int = 12
    marked: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fewest < 1:
            raise BadInput("is at least 1", field="fewest", value=self.fewest)
        if self.most < self.fewest:
            raise BadInput("is at least fewest", field="most", value=self.most)

    async def solve(self, task: Task, ctx: Context) -> Solution:
        question = question_of(task)
        first = await self.first(question, ctx)
        asked = await self.decompose(question, first, ctx)
        final, answers = await self.with_answers(question, asked, ctx)
        details = {"first": first, "first_answer": answer_of(first), "sub_questions": asked, "sub_answers": answers, "final": final}
        return Solution(answer=answer_of(final), details=details)

    async def first(self, question: str, ctx: Context, **sampling: Any) -> str:
        """s0, the solver's own chain of thought; any text will do, votes go by its answer."""
        return str((await ctx.ask(self.solver_prompt(question), parse=self.said, key=answer_key, **sampling)).value)

    async def decompose(self, question: str, first: str, ctx: Context) -> list[str]:
        """The decomposer's sub-questions, given the solver's first answer."""
        model = self.decomposing()
        changes: dict[str, Any] = {} if model is None else {"lm": model}
        return list((await ctx.ask(self.decomposer_prompt(question, first), parse=self.read, **changes)).value)

    async def with_answers(self, question: str, asked: Sequence[str], ctx: Context) -> tuple[str, list[str]]:
        """The solver's answers to sub-questions, and its answer to the question after them: (last answer, those before)."""
        library = SkillLibrary([SolverSkill(self, last=False), SolverSkill(self, last=True)])
        found = await ctx.execute(self.plan(question, asked), library)
        return str(found["said"]), [str(pair["answer"]) for pair in found["earlier"]]

    async def in_turn(self, question: str, asked: Sequence[str], ctx: Context, **sampling: Any) -> tuple[str, list[str]]:
        """`with_answers` one after the other and without a plan: the same prompts, for the many short decompositions of a training."""
        context, pairs = context_of(question), list[dict[str, str]]()
        for sub in asked:
            prompt = self.solver_prompt(sub, pairs if self.share_answers else [], context)
            answer = await ctx.ask(prompt, parse=self.said, key=answer_key, **sampling)
            pairs.append({"question": sub, "answer": str(answer.value)})
        final = await ctx.ask(self.solver_prompt(question, pairs), parse=self.said_at_last, key=answer_key, **sampling)
        return str(final.value), [pair["answer"] for pair in pairs]

    def plan(self, question: str, asked: Sequence[str]) -> Plan:
        """A step for every sub-question, needing those before it where answers are shared, and one for the question after all of them."""
        pairs = [{"question": sub, "answer": Ref(step=f"sub-{number}", path=("said",))} for number, sub in enumerate(asked, 1)]
        context = context_of(question)
        steps = []
        for number, sub in enumerate(asked, 1):
            earlier = pairs[: number - 1] if self.share_answers else []
            inputs = {"question": sub, "context": context, "earlier": earlier}
            steps.append(Step(id=f"sub-{number}", instruction=sub, inputs=inputs, skill="answer"))
        last = {"question": question, "context": "", "earlier": pairs}
        return Plan(steps=(*steps, Step(id="final", instruction=question, inputs=last, skill="answer-at-last")))

    def solver_prompt(self, question: str, earlier: Sequence[Mapping[str, str]] = (), context: str = "") -> str:
        """What the solver reads: a question with its context, after questions that are answered."""
        examples = self.prompt_text("examples.txt")
        return self.prompt("solver.txt", question=question, earlier=[dict(pair) for pair in earlier], context=context, examples=examples)

    def decomposer_prompt(self, question: str, first: str) -> str:
        """What the decomposer reads: the question, and the first answer where there is feedback."""
        return self.prompt("decomposer.txt", question=question, reasoning=before_marks(first).strip() if self.feedback else "")

    def read(self, text: str) -> list[str]:
        """The decomposer's text as sub-questions.

        Raises:
            Flag: there are more than `most`.
        """
        found = sub_questions(text, self.fewest)
        if len(found) > self.most:
            raise Flag(f"more than {self.most} sub-questions")
        return found

    def said(self, text: str) -> str:
        """A chain of thought, without what the model began after it.

        Raises:
            Flag: there is none, and that counts.
        """
        found = before_marks(text)
        return plain(found) if self.marked else found.strip()

    def said_at_last(self, text: str) -> str:
        """`said`, with an answer that is marked.

        Raises:
            Flag: there is none, and that counts.
        """
        found = self.said(text)
        if self.marked and not last_marked(found):
            raise Flag("no [[Answer: …]]")
        return found

    def decomposing(self) -> LM | None:
        """The decomposer's model; None: the run's."""
        return None if self.decomposer is None else _model(self.decomposer)

    def right(self, answer: str, expected: str) -> bool:
        return same_answer(answer, expected)

    def identity(self) -> dict[str, Any]:
        model = self.decomposing()
        return super().identity() | ({} if model is None else {"decomposer_model": model.identity()})


class SolverSkill(Skill):
    """Asks the run's model a question of the plan."""

    def __init__(self, solver: DaSLaM, last: bool) -> None:
        super().__init__("answer-at-last" if last else "answer", cost=1.0)
        self.solver, self.parse = solver, solver.said_at_last if last else solver.said

    async def call(self, inputs: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
        prompt = self.solver.solver_prompt(inputs["question"], inputs["earlier"], inputs["context"])
        answer = await ctx.ask(prompt, parse=self.parse, key=answer_key)
        return {"said": answer.value, "earlier": inputs["earlier"]}


def question_of(task: Task) -> str:
    """The question with its options.

    Raises:
        BadInput: the options are no list of texts.
    """
    options = task.inputs.get("options")
    if options is not None and not (isinstance(options, list) and all(isinstance(option, str) for option in options)):
        raise BadInput("are a list of texts", field="options", value=options, mend='write {"options": ["A) 5", "B) 7"]}')
    return with_options(task.goal, options)


def answer_key(text: str) -> str:
    """What votes on chains of thought go by: their answers, without regard to case and white space."""
    return " ".join(answer_of(text).lower().split())


@lru_cache(maxsize=8)
def _model(name: str) -> LM:
    return lm(name)
