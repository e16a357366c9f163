"""Procedures written as YAML files: state, prompt, answer, update, until. `keystep init` writes a commented example.

Prompts are templates and conditions are expressions of the sandboxed language of `keystep.run.templates`, over the state's keys, `step`
(how many steps are done) and `data` (the records of the data file). Models' answers are matched or rejected, never repaired. What this does
not cover: steps that run side by side, branches, tools (those are Plans); a regular expression that backtracks for ever on some answer
holds the run up.
"""

from __future__ import annotations

import difflib
import json
import keyword
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from keystep.errors import BadInput
from keystep.lm.base import Message, Prompt
from keystep.run.canonical import dumps
from keystep.run.flags import Flag, Mismatch, RedFlag, TooLong, Unsure
from keystep.run.procedure import Procedure
from keystep.run.reading import by_schema, json_value
from keystep.run.records import KINDS, records
from keystep.run.templates import check_syntax, evaluate, render
from keystep.run.yaml_text import Document

SCHEMA = Path(__file__).with_name("procedure.schema.json")  # for editors; a test keeps it current
RESERVED = ("step", "answer", "data")

_EXPRESSION = {"type": ["string", "number", "boolean"]}
Expression = Annotated[
    str,
    BeforeValidator(lambda value: json.dumps(value) if isinstance(value, bool | int | float) else value),
    Field(json_schema_extra=_EXPRESSION),
]
Text = Annotated[str, Field(min_length=1)]
Type = Literal["int", "float", "str", "json"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class MessageText(_Part):
    """One chat message of a prompt."""

    role: Literal["system", "user", "assistant"] = Field(description="system, user or assistant")
    content: str = Field(description="A template")


class AnswerForm(_Part):
    """How the answer stands in the model's text: a regular expression or a JSON schema."""

    regex: str | None = Field(default=None, min_length=1, description="Its last match counts: named groups make a mapping, else a text")
    type: Type = Field(default="str", description="What the text of a regex without named groups is: int, float, str or json")
    types: dict[str, Type] = Field(default_factory=dict, description="What named groups are: int, float, str or json; str where not named")
    schema_: dict[str, Any] | None = Field(
        default=None, alias="schema", description="A JSON schema: the whole text is JSON that follows it"
    )


class FlagForm(_Part):
    """Samples that are thrown away and drawn again."""

    max_tokens: int | None = Field(default=None, gt=0, description="Flag answers of more tokens")
    mismatch: str | None = Field(default=None, min_length=1, description="Flag answers that do not contain this regular expression")
    min_logprob: float | None = Field(default=None, le=0, description="Flag answers whose mean log-probability per token is below this")


class SamplingForm(_Part):
    """How samples are drawn; flags of the command line go before."""

    temperature: float | None = Field(default=None, ge=0, description="0 is greedy")
    first_temperature: float | None = Field(default=None, ge=0, description="Of every step's first sample")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Above 0, at most 1")
    max_tokens: int | None = Field(default=None, gt=0, description="Most tokens of one answer")
    stop: list[Text] | None = Field(default=None, description="Texts that end an answer")


class CheckForm(_Part):
    """How to tell whether the run went right, afterwards; it changes nothing while the run goes on."""

    step: Expression | None = Field(default=None, description="True when a step's `answer` is right, over the state before it")
    end: Expression | None = Field(default=None, description="True when the last state is right")


class ProcedureForm(_Part):
    """A long job as a loop: the state is rendered into a prompt, the voted answer updates the state, until it is done."""

    name: str = Field(min_length=1, max_length=100, description="What the run is called")
    state: dict[str, Any] = Field(description="The state before step 0: names and values; `--set name=value` replaces values")
    prompt: Text | Annotated[list[Text], Field(min_length=1)] | Annotated[list[MessageText], Field(min_length=1)] = Field(
        description="A template, a list of paraphrases for the votes to rotate over, or a list of {role, content} messages"
    )
    answer: AnswerForm = Field(description="{regex: …} or {schema: …}")
    update: dict[str, Expression] = Field(description="State name: expression over the state, `answer`, `step`; what is left out stays")
    until: Expression = Field(description="An expression over the state and `step`; the run ends when it is true")
    max_steps: int = Field(gt=0, description="A whole number above 0; a run that is not done by then stops")
    key: Expression | None = Field(default=None, description="An expression over `answer`: what of it the votes are counted by")
    flags: FlagForm = Field(default=FlagForm(), description="Which answers are thrown away")
    sampling: SamplingForm = Field(default=SamplingForm(), description="How answers are drawn")
    check: CheckForm = Field(default=CheckForm(), description="How to tell afterwards whether the run went right")
    data: str | None = Field(default=None, min_length=1, description=f"A file of records ({KINDS}) beside this one; `data[step]` is one")


_SECTIONS: dict[str, type[BaseModel]] = {
    "": ProcedureForm, "prompt": MessageText, "answer": AnswerForm, "flags": FlagForm, "sampling": SamplingForm, "check": CheckForm,
}  # fmt: skip


def schema_text() -> str:
    """The JSON schema of procedure files, as it is shipped in `SCHEMA`."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps({**head, **ProcedureForm.model_json_schema(by_alias=True), "title": "keystep procedure"}, indent=2) + "\n"


def from_file(path: str | Path, settings: Mapping[str, Any] | None = None) -> YamlProcedure:
    """The procedure in a YAML file; `settings` replace values of its initial state.

    Raises:
        BadInput: the file, its data file or a setting cannot be used; the message names the field, the value, the line and the mend.
    """
    path = Path(path)
    try:
        document = Document(path.read_text("utf-8-sig"), path.name)
    except OSError as error:
        mend = "`keystep init` writes an example"
        raise BadInput(f"cannot be read ({error.strerror})", field="procedure", value=str(path), mend=mend) from None
    except UnicodeDecodeError as error:
        raise BadInput(f"is not UTF-8 (byte {error.start})", field="procedure", value=str(path), mend="save it as UTF-8") from None
    try:
        form = _form(document.value)
        _check_names(form)
        _check_syntax(form)
        return YamlProcedure(form, settings or {}, path.parent)
    except BadInput as error:
        steps = [int(part) if part.isdecimal() else part for part in error.field.split(".")]
        line = document.line(steps) if steps[0] != "set" else 0
        where = f" ({document.name}, line {line})" if line else ""
        mend = error.mend or "mend the template there; `keystep init` writes an example"
        raise BadInput(error.problem + where, field=error.field, value=error.value, mend=mend) from None


def parse_setting(text: str) -> tuple[str, Any]:
    """`name=value` of `--set`, the value read as YAML."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise BadInput("is written name=value", field="set", value=text, mend="for instance --set disks=12")
    return name.strip(), Document(value, f"set {name.strip()}").value


class YamlProcedure(Procedure):
    """A procedure from a YAML file. State: the file's, with `step`; a decided answer's shape is what `answer` says.

    `sampling` holds the file's sampling as fields of `keystep.run.Sampling`, for whoever builds the Run.
    """

    def __init__(self, form: ProcedureForm, settings: Mapping[str, Any], folder: Path) -> None:
        self.form, self.name, self.max_steps = form, form.name, form.max_steps
        self._state = _first_state(form, settings)
        self._data: list[Any] = []
        self._data_hash: str | None = None
        if form.data is not None:
            self._data, self._data_hash = records(folder / form.data)
        self._parse = reader(form.answer)
        self.flags = _flags(form.flags)
        drawn = form.sampling.model_dump(exclude_none=True)
        if "stop" in drawn:
            drawn["stop"] = tuple(drawn["stop"])
        if form.flags.max_tokens:
            drawn.setdefault("max_tokens", form.flags.max_tokens)  # an answer cut there is thrown away anyway
        self.sampling = drawn
        self._offer_checks()

    def having(self, settings: Mapping[str, Any]) -> YamlProcedure:
        """The same procedure with these settings instead, its file and data not read again.

        Raises:
            BadInput: as `from_file`.
        """
        other = copy(self)
        other._state = _first_state(self.form, settings)
        other._offer_checks()
        return other

    def _offer_checks(self) -> None:
        if self.form.check.step is not None or self.form.check.end is not None:
            self.check = self._check
        if self.form.check.step is not None:
            self.right = self._right

    def start(self) -> Any:
        return {**self._state, "step": 0}

    def prompt(self, state: Any) -> Prompt | list[Prompt]:
        if isinstance(self.form.prompt, str):
            return self._render(self.form.prompt, state, "prompt")
        wording: Sequence[str | MessageText] = self.form.prompt
        rendered: list[Prompt] = []
        messages: list[Message] = []
        for number, part in enumerate(wording):
            if isinstance(part, str):
                rendered.append(self._render(part, state, f"prompt.{number}"))
            else:
                messages.append(Message(part.role, self._render(part.content, state, f"prompt.{number}.content")))
        return rendered or tuple(messages)

    def parse(self, text: str, state: Any) -> Any:
        return self._parse(text)

    def update(self, state: Any, answer: Any) -> Any:
        given = {"answer": answer}
        changed = {name: self._value(text, state, f"update.{name}", given) for name, text in self.form.update.items()}
        return {**state, **changed, "step": state["step"] + 1}

    def done(self, state: Any) -> bool:
        return bool(self._value(self.form.until, state, "until"))

    def key(self, answer: Any) -> Any:
        return answer if self.form.key is None else evaluate(self.form.key, {"answer": answer}, "key")

    def identity(self) -> Any:
        # Neither max_steps nor the check decides an answer: a run that met its bound, or has a faulty check, goes on when that is mended.
        form = self.form.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"max_steps", "check", "state"})
        return {**form, "state": self._state, "data": self._data_hash}

    def _right(self, state: Any, answer: Any) -> bool:
        return bool(self._value(self.form.check.step or "", state, "check.step", {"answer": answer}))

    def _check(self, answers: Iterable[Any]) -> int | None:
        state, check = self.start(), self.form.check
        for answer in answers:
            if check.step is not None and not self._right(state, answer):
                return int(state["step"])
            state = self.update(state, answer)
        if check.end is None or self._value(check.end, state, "check.end"):
            return None
        return int(state["step"])

    def _render(self, text: str, state: Any, field: str) -> str:
        try:
            return render(text, {**state, "data": self._data}, field)
        except BadInput as error:
            raise _at_step(error, state) from None

    def _value(self, text: str, state: Any, field: str, more: Mapping[str, Any] | None = None) -> Any:
        try:
            return evaluate(text, {**state, "data": self._data, **(more or {})}, field)
        except BadInput as error:
            raise _at_step(error, state) from None


def _first_state(form: ProcedureForm, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The state before step 0, keys sorted, as they come back from a journal."""
    for setting in settings:
        if setting not in form.state:
            known = ", ".join(form.state) or "none"
            raise BadInput("is not a name of the state", field="set", value=setting, mend=f"the state's names are {known}")
    state = {**form.state, **settings}
    for name, value in state.items():
        _json_only(value, f"set.{name}" if name in settings else f"state.{name}")
    first: dict[str, Any] = json.loads(dumps(state, "state"))
    return first


def _at_step(error: BadInput, state: Any) -> BadInput:
    mend = error.mend or "mend the file and begin a new run"
    return BadInput(f"at step {state['step']}: {error.problem}", field=error.field, value=error.value, mend=mend)


# Reading the file.


def _form(value: Any) -> ProcedureForm:
    if not isinstance(value, dict):
        mend = "`keystep init` writes an example"
        raise BadInput("a procedure file is a mapping of name, state, prompt, answer, …", field="procedure", value=value, mend=mend)
    try:
        return ProcedureForm.model_validate(value)
    except ValidationError as error:
        # Of the branches of a union the one that got furthest says most.
        found = [(_path(each["loc"], value), each) for each in error.errors(include_url=False)]
        path, worst = max(found, key=lambda pair: len(pair[0]))
        section = _SECTIONS[path[0] if len(path) > 1 and path[0] in _SECTIONS else ""] if path else ProcedureForm
        fields = {field.alias or name: field.description for name, field in section.model_fields.items()}
        name = str(path[-1])
        where = ".".join(map(str, path))
        if worst["type"] == "missing":
            raise BadInput("is missing", field=where, mend=f"add it: {fields[name]}") from None
        if worst["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, fields, 1)
            mend = f"did you mean {near[0]}?" if near else f"there are {', '.join(fields)}"
            raise BadInput("is not a field here", field=where, value=worst["input"], mend=mend) from None
        about = next((fields[str(part)] for part in reversed(path) if part in fields), ProcedureForm.model_fields[str(path[0])].description)
        raise BadInput(worst["msg"].replace("Input ", ""), field=where, value=worst["input"], mend=about or "") from None


def _path(loc: tuple[int | str, ...], value: Any) -> list[int | str]:
    """The part of a pydantic location that leads through the file: without the names of union branches."""
    path: list[int | str] = []
    for part in loc:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            if part != loc[-1] or not isinstance(value, dict):
                continue
        path.append(part)
    return path


def _check_names(form: ProcedureForm) -> None:
    for name in form.state:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise BadInput("is no name that an expression can use", field=f"state.{name}", value=name, mend="use letters, digits and _")
        if name in RESERVED:
            raise BadInput("is the name of something else", field=f"state.{name}", value=name, mend=f"{', '.join(RESERVED)} are taken")
    for name in form.update:
        if name not in form.state:
            mend = "the step counts itself" if name == "step" else f"add it to the state, which has {', '.join(form.state) or 'nothing'}"
            raise BadInput("is not a name of the state", field=f"update.{name}", value=name, mend=mend)


def _check_syntax(form: ProcedureForm) -> None:
    whole: Sequence[str | MessageText] = [form.prompt] if isinstance(form.prompt, str) else form.prompt
    for number, part in enumerate(whole):
        where = "prompt" if part is form.prompt else f"prompt.{number}"
        if isinstance(part, str):
            check_syntax(part, where, expression=False)
        else:
            check_syntax(part.content, f"{where}.content", expression=False)
    expressions = {"until": form.until, "key": form.key, "check.step": form.check.step, "check.end": form.check.end}
    for where, expression in (*expressions.items(), *((f"update.{name}", text) for name, text in form.update.items())):
        if expression is not None:
            check_syntax(expression, where, expression=True)


def _json_only(value: Any, field: str) -> None:
    try:
        dumps(value, field).encode()
    except UnicodeEncodeError:
        raise BadInput("holds half a character (a lone surrogate)", field=field, value=value, mend="write whole characters") from None


def _regex(pattern: str, field: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        mend = "quote it with '…' so that \\ stays as it is"
        raise BadInput(f"is not a regular expression: {error}", field=field, value=pattern, mend=mend) from None


def _flags(form: FlagForm) -> tuple[RedFlag, ...]:
    flags: list[RedFlag] = []
    if form.max_tokens is not None:
        flags.append(TooLong(form.max_tokens))
    if form.mismatch is not None:
        _regex(form.mismatch, "flags.mismatch")
        flags.append(Mismatch(form.mismatch))
    if form.min_logprob is not None:
        flags.append(Unsure(form.min_logprob))
    return tuple(flags)


# Reading answers.


def reader(form: AnswerForm) -> Callable[[str], Any]:
    """What turns a model's text into an answer, or raises Flag."""
    if (form.regex is None) == (form.schema_ is None):
        value = form.model_dump(by_alias=True, exclude_defaults=True)
        raise BadInput("is either a regex or a schema", field="answer", value=value, mend="write {regex: …} or {schema: …}")
    if form.schema_ is not None:
        check = by_schema(form.schema_, "answer.schema")

        def read_json(text: str) -> Any:
            value = json_value(text)
            check(value)
            return value

        return read_json
    pattern = _regex(form.regex or "", "answer.regex")
    groups = sorted(pattern.groupindex)
    if pattern.groups > 1 and not groups:
        raise BadInput("has several unnamed groups", field="answer.regex", value=form.regex, mend="name them: (?P<sum>…)")
    if groups and form.type != "str":
        raise BadInput("is for a regex without named groups", field="answer.type", value=form.type, mend="use `types`")
    for name in form.types:
        if name not in groups:
            mend = f"its named groups are {', '.join(groups) or 'none'}"
            raise BadInput("is not a named group of the regex", field=f"answer.types.{name}", value=name, mend=mend)

    def read(text: str) -> Any:
        match = None
        for match in pattern.finditer(text):  # noqa: B007 (the last one counts)
            pass
        if match is None:
            raise Flag("no match")
        if groups:
            return {name: _typed(match[name], form.types.get(name, "str")) for name in groups}
        return _typed(match[min(1, pattern.groups)], form.type)

    return read


def _typed(text: str | None, kind: Type) -> Any:
    if text is None or kind == "str":
        return text
    if kind == "json":
        return json_value(text)
    try:
        value = int(text) if kind == "int" else float(text)
    except ValueError:
        raise Flag(f"not {kind}") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise Flag("not finite")
    return value


if __name__ == "__main__":
    SCHEMA.write_text(schema_text(), "utf-8")
