"""Programs: a set of handlers by name, and the one that gets the question. From Python, or from a YAML file:

    main: decompose
    handlers:
      decompose: {kind: decomposer, examples: …}
      split: {kind: prompt, examples: …, gives: list}
      join: {kind: tool, match: '"(.*?)"', value: "match | upper"}
      look_up: {kind: retriever, folder: texts, top: 4}
      small: {kind: prompt, model: "http://127.0.0.1:8377/v1#small"}

`ProgramForm` has all names. Shipped ones are beside the prompts of this solver; a file of one's own can be begun from any of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from keystep.errors import BadInput
from keystep.lm import lm as model_of
from keystep.lm.base import LM
from keystep.run.yaml_text import Document
from keystep.skill import SkillLibrary
from keystep.solve.decomposed_prompting.decomposer import All, Decomposer
from keystep.solve.decomposed_prompting.handlers import Handler, Limits, PromptHandler, calculator, match_tool
from keystep.solve.decomposed_prompting.retrieval import Passages, Retriever

SHIPPED = Path(__file__).parent.parent / "prompts/decomposed-prompting"
Scoring = Literal["words", "exact", "set", "drop"]


class SamplingForm(BaseModel):
    """How the handler's replies are drawn; in place of what the run says."""

    model_config = ConfigDict(extra="forbid")

    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    stop: list[str] | None = Field(default=None, description="Texts that end a reply; [] for none. A new line where it is left out")


class RetrieveForm(BaseModel):
    """A folder of texts, and how many passages of it."""

    model_config = ConfigDict(extra="forbid")

    folder: str = Field(description="Counts from the folder of the program file")
    top: int = Field(default=4, ge=1)


class HandlerForm(BaseModel):
    """One handler. What is for some kinds only is refused for the others."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["prompt", "decomposer", "tool", "retriever", "calculator"]
    description: str = ""
    cost: float | None = Field(default=None, description="Of several handlers for a name the cheapest is tried first")
    can: list[str] = Field(default=[], description="Further names that it answers to")
    model: str | None = Field(default=None, description="A model of its own, as --model has it")
    examples: str = Field(default="", description="Few-shot examples, in the form of the frame")
    instructions: str = Field(default="", description="Words before them")
    frame: str | None = Field(default=None, description="The template of the prompt, in place of handler.txt or decomposer.txt")
    sampling: SamplingForm = SamplingForm()
    uses: list[str] | None = Field(default=None, description="The handlers that a decomposer may name (default: all)")
    context: bool = Field(default=False, description="Whether a prompt is shown the context")
    pooled: bool = Field(default=False, description="Whether a prompt is shown what was retrieved before it")
    retrieve: RetrieveForm | None = Field(default=None, description="Passages that a prompt is shown for its question")
    answer: str | None = Field(default=None, description="A regular expression: its last match in the reply is the answer")
    gives: str | dict[str, Any] | None = Field(default=None, description="A JSON schema, or text, number, list, pairs, yes or no")
    empty: bool = Field(default=False, description="Whether a reply may be empty")
    match: str | None = Field(default=None, description="A tool's regular expression: its last match in the question")
    value: str | None = Field(default=None, description="A tool's expression over question, json, match and context")
    folder: str | None = Field(default=None, description="Of a retriever")
    top: int = Field(default=4, ge=1, description="Passages that a retriever gives")


_ASKING = {"model", "examples", "instructions", "frame", "sampling", "cost", "can"}
_FOR: dict[str, set[str]] = {
    "prompt": _ASKING | {"context", "pooled", "retrieve", "answer", "gives", "empty"},
    "decomposer": _ASKING | {"uses"},
    "tool": {"match", "value"},
    "retriever": {"folder", "top"},
    "calculator": set(),
}


class ProgramForm(BaseModel):
    """A program file."""

    model_config = ConfigDict(extra="forbid")

    main: str = Field(description="The handler that gets the question")
    handlers: dict[str, HandlerForm] = Field(min_length=1)
    score: Scoring = Field(default="words", description="How answers are compared: words, exact, set (of a JSON list), drop")
    about: str = Field(default="", description="What it is for; nothing reads it")


class Program:
    """Handlers, ready to be asked.

    Args:
        handlers: their names are what lines call them by.
        main: the name of the one that gets the question.
        limits: what a question may take.
        score: how answers are compared.
        lms: the models of its own, which `close` lets go.

    Raises:
        BadInput: two of a name, none called `main`, or a decomposer uses one that is not there.
    """

    def __init__(
        self, handlers: Iterable[Handler], main: str, *, limits: Limits | None = None, score: Scoring = "words", lms: Iterable[LM] = ()
    ) -> None:  # fmt: skip
        self.library, self.main, self.score, self.lms = SkillLibrary(handlers), main, score, list(lms)
        self.limits = limits or Limits()
        self.handlers = [skill for skill in self.library if isinstance(skill, Handler)]
        if main not in {handler.name for handler in self.handlers}:
            known = ", ".join(handler.name for handler in self.handlers)
            raise BadInput("is no handler", field="main", value=main, mend=f"there are: {known}")
        self.library.add(All())
        for handler in self.handlers:
            handler.limits = self.limits
            if isinstance(handler, Decomposer):
                handler.library = self.library
                handler.usable()

    def identity(self) -> dict[str, Any]:
        return {"main": self.main, "score": self.score, "handlers": {handler.name: handler.identity() for handler in self.handlers}}

    async def close(self) -> None:
        for each in self.lms:
            await each.close()


def program_text(name: str) -> tuple[str, Path]:
    """The text of a shipped program, or of a file, and the folder its paths count from.

    Raises:
        BadInput: there is none.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = SHIPPED / f"{name}.yaml"
        shipped = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
        if name not in shipped:
            mend = f"a .yaml file, or one of: {', '.join(shipped)}"
            raise BadInput("is no program", field="set program", value=name, mend=mend)
    try:
        return path.read_text("utf-8-sig"), path.parent
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot be read ({error})", field="set program", value=name, mend="name a YAML file") from None


@lru_cache(maxsize=32)
def read_form(text: str, name: str) -> ProgramForm:
    """A program file, checked but for what its handlers check.

    Raises:
        BadInput: the message names the field, the value and the line.
    """
    document = Document(text, name)
    try:
        form = ProgramForm.model_validate(document.value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = f" ({name}, line {document.line(first['loc'])})"
        problem = first["msg"].removeprefix("Value error, ") + where
        raise BadInput(problem, field=".".join(map(str, first["loc"])), value=first["input"], mend="see the page of this method") from None
    for handler, about in form.handlers.items():
        for field in sorted(about.model_fields_set - _FOR[about.kind] - {"kind", "description"}):
            where = f" ({name}, line {document.line(('handlers', handler, field))})"
            mend = f"there are: {', '.join(sorted(_FOR[about.kind])) or 'none'}"
            raise BadInput(f"is not for a {about.kind}{where}", field=f"handlers.{handler}", value=field, mend=mend)
    return form


def built(form: ProgramForm, folder: Path, frames: dict[str, str], limits: Limits) -> Program:
    """The program of a file.

    Args:
        folder: what its paths count from.
        frames: the templates of prompts, by file name.

    Raises:
        BadInput: a handler cannot be made; the message names it.
    """
    lms: dict[str, LM] = {}

    def model(name: str | None) -> LM | None:
        if name is None:
            return None
        if name not in lms:
            lms[name] = _local(name) if name.startswith("hf:") else model_of(name)
        return lms[name]

    made = [_handler(name, about, folder, frames, model(about.model)) for name, about in form.handlers.items()]
    return Program(made, form.main, limits=limits, score=form.score, lms=lms.values())


def _handler(name: str, about: HandlerForm, folder: Path, frames: dict[str, str], lm: LM | None) -> Handler:
    if about.kind == "calculator":
        return calculator(name, about.description)
    if about.kind == "tool":
        if about.match is None and about.value is None:
            raise BadInput("a tool has a match or a value", field=f"handlers.{name}")
        return match_tool(name, about.match, about.value, about.description)
    if about.kind == "retriever":
        if about.folder is None:
            raise BadInput("is missing", field=f"handlers.{name}.folder", mend="name a folder of texts")
        return Retriever(name, Passages(folder / about.folder), about.top, description=about.description)
    sampling = about.sampling.model_dump(exclude_none=True)
    if "stop" in sampling:
        sampling["stop"] = tuple(sampling["stop"])
    shared: dict[str, Any] = {
        "examples": about.examples.strip("\n"), "instructions": about.instructions.strip("\n"), "sampling": sampling, "lm": lm,
        "description": about.description, "cost": 1.0 if about.cost is None else about.cost, "can": about.can,
    }  # fmt: skip
    if about.kind == "decomposer":
        return Decomposer(name, about.frame or frames["decomposer.txt"], uses=about.uses, **shared)
    retriever = None
    if about.retrieve is not None:
        passages, top = Passages(folder / about.retrieve.folder), about.retrieve.top
        retriever = lambda question: passages.best(question, top)  # noqa: E731
    return PromptHandler(
        name, about.frame or frames["handler.txt"], context=about.context, pooled=about.pooled, retriever=retriever, answer=about.answer,
        gives=about.gives, empty=about.empty, **shared,
    )  # fmt: skip


@lru_cache(maxsize=8)
def _local(name: str) -> LM:
    """A model on this machine is loaded once, however many questions there are."""
    return model_of(name)
