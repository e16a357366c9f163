"""Handlers: what a line's question is given to. Each is a Skill that takes {question, context, depth, passages} and gives a `Node`.

A node is the handler's answer with how it came about, and is what the journal keeps: so a resumed run knows its calls and tokens without
asking anything again.
"""

from __future__ import annotations

import inspect
import json
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from keystep.errors import BadInput, StepFailed
from keystep.lm.base import LM
from keystep.run.canonical import dumps
from keystep.run.flags import Flag
from keystep.run.reading import by_last_match, by_schema, json_value
from keystep.run.run import Context
from keystep.run.skills import PromptSkill, ToolSkill
from keystep.run.templates import check_syntax, evaluate, render
from keystep.skill import Skill
from keystep.solve.decomposed_prompting.grammar import line_of, written

TYPES: dict[str, dict[str, Any]] = {  # what `gives` may say instead of a JSON schema
    "text": {"type": "string"},
    "number": {"type": "number"},
    "list": {"type": "array"},
    "pairs": {"type": "array", "items": {"type": "array", "minItems": 2, "maxItems": 2}},
    "yes or no": {"enum": ["yes", "no", "Yes", "No", True, False]},
}
_POINTER = re.compile(r"\bPARA_([0-9]{1,6})\b")


class Asked(TypedDict):
    """What a handler is given: the question, the paragraphs of the context, how deep in decomposers it stands, and what was retrieved
    before it."""

    question: str
    context: list[str]
    depth: int
    passages: list[str]


class Node(TypedDict):
    """A handler's call: `calls` is how often its model or function was asked (a decomposer's, once a line), `lines` are a decomposer's."""

    handler: str
    kind: str
    question: str
    answer: Any
    calls: int
    tokens_in: int
    tokens_out: int
    lines: NotRequired[list[dict[str, Any]]]
    passages: NotRequired[list[str]]


class Limits:
    """What one question may take. `spend` counts while it is under way, `settle` at its end, which holds for resumed runs too.

    Raises:
        BadInput: one is below 1.
    """

    def __init__(self, calls: int = 1000, tokens: int | None = None, depth: int = 16, steps: int = 10) -> None:
        for name, value in (("max_calls", calls), ("max_tokens", tokens), ("max_depth", depth), ("max_steps", steps)):
            if value is not None and value < 1:
                raise BadInput("is at least 1", field=f"set {name}", value=value)
        self.calls, self.tokens, self.depth, self.steps = calls, tokens, depth, steps
        self._calls = self._tokens = 0

    def spend(self, calls: int = 0, tokens: int = 0) -> None:
        """Count, and end the question where it is too much.

        Raises:
            StepFailed: it is.
        """
        self._calls += calls
        self._tokens += tokens
        self._check(self._calls, self._tokens)

    def fits(self, calls: int) -> None:
        """See beforehand that so many calls at once are not too many.

        Raises:
            StepFailed: they are.
        """
        self._check(self._calls + calls, self._tokens)

    def settle(self, tree: Node) -> None:
        """Check a finished tree.

        Raises:
            StepFailed: it took more than it may.
        """
        nodes = list(every(tree))
        self._check(sum(node["calls"] for node in nodes), sum(node["tokens_in"] + node["tokens_out"] for node in nodes))

    def _check(self, calls: int, tokens: int) -> None:
        for name, spent, limit in (("max_calls", calls, self.calls), ("max_tokens", tokens, self.tokens)):
            if limit is not None and spent > limit:
                raise StepFailed("the question takes more than it may", field=f"set {name}", value=limit, mend="raise it")


def every(node: Node) -> Iterable[Node]:
    """The node and all below it, in the order of the lines."""
    yield node
    for line in node.get("lines", ()):
        for below in line["calls"]:
            yield from every(below)


class Handler(Skill):
    """One kind of handler; `limits` are set for every question anew by the program."""

    kind = "handler"

    def __init__(self, name: str, *, description: str = "", cost: float = 0.0, can: Iterable[str] = ()) -> None:
        if not re.fullmatch(r"[^\[\]\s/()]+", name):
            mend = "letters, digits, - and _ are best"
            raise BadInput("a handler's name has no blanks, brackets or /", field="handlers", value=name, mend=mend)
        super().__init__(name, description=description, cost=cost, can=can, takes=Asked)
        self.limits = Limits()

    @abstractmethod
    async def call(self, inputs: Mapping[str, Any], ctx: Context) -> Node:
        """Answer the question."""

    def node(self, asked: Mapping[str, Any], answer: Any, calls: int = 1, tokens_in: int = 0, tokens_out: int = 0) -> Node:
        return {
            "handler": self.name, "kind": self.kind, "question": asked["question"], "answer": answer, "calls": calls,
            "tokens_in": tokens_in, "tokens_out": tokens_out,
        }  # fmt: skip


class PromptHandler(Handler):
    """A few-shot prompt to a model: the run's, or one of its own, such as a small one trained for this skill.

    Args:
        frame: the template of the prompt, over `question`, `context` (a text, "" where it gets none), `examples` and `instructions`.
        examples: few-shot examples, each "Q: …\\nA: …" as the frame shows them.
        instructions: words before them.
        context: whether it is shown the context: of a question with pointers (PARA_3) only those paragraphs.
        pooled: whether it is shown what was retrieved for the lines before it.
        retriever: gives passages for a question, which are its context then.
        answer: a regular expression whose last match in the reply is the answer; else the reply's first line.
        gives: a JSON schema, or one of `TYPES`; replies that do not follow it are drawn again.
        empty: whether a reply may be empty.
        sampling: fields of `keystep.run.Sampling`; `stop` is a new line where it is not given.
    """

    kind = "prompt"

    def __init__(
        self, name: str, frame: str, *, examples: str = "", instructions: str = "", context: bool = False, pooled: bool = False,
        retriever: Callable[[str], list[str]] | None = None, answer: str | None = None, gives: str | Mapping[str, Any] | None = None,
        empty: bool = False, sampling: Mapping[str, Any] | None = None, lm: LM | None = None, description: str = "", cost: float = 1.0,
        can: Iterable[str] = (),
    ) -> None:  # fmt: skip
        super().__init__(name, description=description, cost=cost, can=can)
        check_syntax(frame, f"handler {name}.frame", expression=False)
        self.frame, self.examples, self.instructions, self.context, self.pooled = frame, examples, instructions, context, pooled
        self.retriever, self.pattern, self.gives, self.empty = retriever, answer, gives, empty
        self.changes: dict[str, Any] = {"stop": ("\n",)} | dict(sampling or {}) | ({} if lm is None else {"lm": lm})
        self._last = None if answer is None else by_last_match(answer, f"handler {name}.answer")
        schema = TYPES.get(gives) if isinstance(gives, str) else gives
        if isinstance(gives, str) and schema is None:
            mend = f"a JSON schema, or one of: {', '.join(TYPES)}"
            raise BadInput("is no type", field=f"handler {name}.gives", value=gives, mend=mend)
        self._check = None if schema is None else by_schema(dict(schema), f"handler {name}.gives")

    async def call(self, inputs: Mapping[str, Any], ctx: Context) -> Node:
        question, found = inputs["question"], self.retriever(inputs["question"]) if self.retriever else []
        shown = found or _shown(question, inputs["context"] if self.context else [])
        if self.pooled:
            shown = list(dict.fromkeys([*inputs["passages"], *shown]))
        names = {
            "question": question, "context": "\n\n".join(shown), "examples": self.examples, "instructions": self.instructions,
        }  # fmt: skip
        self.limits.spend(calls=1)
        answer = await ctx.ask(render(self.frame, names, f"handler {self.name}.frame"), parse=self.read, **self.changes)
        self.limits.spend(tokens=answer.tokens_in + answer.tokens_out)
        node = self.node(inputs, answer.value, 1, answer.tokens_in, answer.tokens_out)
        return node | {"passages": found} if found else node

    def read(self, text: str) -> Any:
        """The answer in a reply: JSON where it is, else a text.

        Raises:
            Flag: there is none, or it is not of the handler's type.
        """
        if self._last is not None:
            found = self._last(text)
            text = written(found) if isinstance(found, dict) else str(found or "")
        text = text.strip().removeprefix("A:").strip()
        if not text and not self.empty:
            raise Flag("empty")
        value = json_or_text(line_of(text)) if text else ""
        if isinstance(value, str) and value.startswith("```"):
            raise Flag("a code fence")
        if self._check is not None:
            self._check(value)
        return value

    def identity(self) -> dict[str, Any]:
        changes = {name: repr(value) for name, value in self.changes.items() if name != "lm"}
        if "lm" in self.changes:
            changes["lm"] = self.changes["lm"].identity()
        names = ("frame", "examples", "instructions", "context", "pooled", "gives", "empty", "pattern")
        return super().identity() | {name: getattr(self, name) for name in names} | changes


class SkillHandler(Handler):
    """Any skill as a handler: it is given the question (a prompt or tool of keystep's own kinds: as `question`, with `context` where a
    tool's function has such a parameter) and its output is the answer."""

    kind = "tool"

    def __init__(self, skill: Skill, *, can: Iterable[str] = ()) -> None:
        super().__init__(skill.name, description=skill.description, cost=skill.cost, can={*can, *skill.abilities})
        self.skill = skill
        self.kind = "prompt" if isinstance(skill, PromptSkill) else "tool"
        function = skill.function if isinstance(skill, ToolSkill) else None
        self._sees_context = function is None or "context" in inspect.signature(function).parameters

    async def call(self, inputs: Mapping[str, Any], ctx: Context) -> Node:
        self.limits.spend(calls=1)
        given = {"question": inputs["question"]} | ({"context": inputs["context"]} if self._sees_context else {})
        output = self.skill.check_output(await self.skill.call(self.skill.check_inputs(given), ctx))
        if not self.skill.done(output):
            raise StepFailed("says that it is not done", field=f"handler {self.name}", value=output)
        return self.node(inputs, json.loads(dumps(output, f"answer of {self.name}")))

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"skill": self.skill.identity()}


def tool(name: str, function: Callable[..., Any], **options: Any) -> SkillHandler:
    """A Python function `function(question)` or `function(question, context)` as a handler; it gives a JSON value."""
    return SkillHandler(ToolSkill(name, function, **options))


def match_tool(name: str, pattern: str | None, value: str | None, description: str = "") -> SkillHandler:
    """A tool without code: the last match of a regular expression in the question, and an expression of the sandboxed language over
    `question`, `json` (the question as a value, where it is JSON as an inserted answer is), `match` and `context` that makes the answer of
    it (else the match is the answer)."""
    read = None if pattern is None else by_last_match(pattern, f"handler {name}.match")
    if value is not None:
        check_syntax(value, f"handler {name}.value", expression=True)

    def work(question: str, context: list[str]) -> Any:
        match = None
        if read is not None:
            try:
                match = read(question)
            except Flag:
                raise StepFailed("does not match the question", field=f"handler {name}.match", value=question) from None
        if value is not None:
            names = {"question": question, "json": json_or_text(question), "match": match, "context": context}
            return evaluate(value, names, f"handler {name}.value")
        return json_or_text(match) if isinstance(match, str) else match

    return SkillHandler(_Written(name, work, {"match": pattern, "value": value}, description))


def calculator(name: str, description: str = "") -> SkillHandler:
    """Arithmetic: the last run of numbers, signs and brackets in the question."""

    def work(question: str) -> Any:
        found = [text.strip(" .") for text in re.findall(r"[-+*/%().\d ,]*\d[-+*/%().\d ,]*", question)]
        if not found:
            raise StepFailed("has nothing to calculate", field=f"handler {name}", value=question)
        return evaluate(found[-1].replace(",", ""), {}, f"handler {name}")

    return SkillHandler(_Written(name, work, {"calculator": 1}, description))


class _Written(ToolSkill):
    """A tool that a program file describes; that is its identity."""

    def __init__(self, name: str, function: Callable[..., Any], about: dict[str, Any], description: str) -> None:
        super().__init__(name, function, description=description)
        self.about = about

    def identity(self) -> dict[str, Any]:
        return Skill.identity(self) | self.about


def json_or_text(text: str) -> Any:
    """What a reply says: JSON where it is JSON, else the text."""
    try:
        return json_value(text)
    except Flag:
        return text


def _shown(question: str, context: Sequence[str]) -> list[str]:
    """The paragraphs that the question points to, or all."""
    wanted = [int(number) for number in _POINTER.findall(question)]
    return [context[number - 1] for number in wanted if 0 < number <= len(context)] or list(context)
