"""The lines of a program: how they are read, what `#i` stands for, which questions a line asks and what becomes of their answers.

    [f] text                one question: every #i in it is answer i as JSON
    (project) [f] text      a question for every item of the list #i, the item inserted as it is; gives [[item, answer], …]
    (projectValues) …       #i is a list of pairs: asks about the second parts; gives [[first, answer], …]
    (projectKeys) …         the other way round: gives [[answer, second], …]
    (filter) …              keeps the items whose answer is yes, true or 1; (filter(#2)), with post-operations (filter(#2)_unique), names
                            the list where there are several #i
    (filterKeys) …          keeps the pairs whose first part's answer is yes; (filterValues) by the second parts
    (project_values_flat_unique) …   post-operations, from left to right: flat, unique, keys, values
    [EOQ]                   the end

`#C` is the list of pointers to the paragraphs of the context, PARA_1, PARA_2, … Numbers may have several digits; a reference inserted by
an answer is text and no reference.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from keystep.errors import StepFailed
from keystep.run.canonical import dumps
from keystep.run.flags import Flag

END = "[EOQ]"
CONTEXT = -1  # as the step that a line goes over: the paragraphs

_OPERATORS = ("select", "project", "projectValues", "projectKeys", "filter", "filterValues", "filterKeys")
_LINE = re.compile(r"(?:\(([A-Za-z]+)(?:\(#([0-9]+)\))?((?:_[A-Za-z]+)*)\)\s*)?\[([^\[\]\s]+)\]\s*(.*)")
_REFERENCE = re.compile(r"#([0-9]+|C\b)")
_YES = ("true", "yes", "1")


@dataclass(frozen=True, slots=True)
class Line:
    """One line, read. `over` is the step whose answer the operator goes through, None of `select`."""

    operator: str
    after: tuple[str, ...]
    handler: str
    text: str
    over: int | None

    def references(self) -> list[int]:
        """The steps it refers to, in rising order."""
        return sorted({_step(found) for found in _REFERENCE.findall(self.text)} - {CONTEXT})


def line_of(text: str, label: str = "") -> str:
    """The line in a model's text: the first that is not empty, without its label ("QS:").

    Raises:
        Flag: there is none.
    """
    text = text.strip().removeprefix(label).strip()
    if not text:
        raise Flag("empty")
    return text.splitlines()[0].strip()


def read_line(text: str, handlers: Collection[str], answers: Sequence[Any], paragraphs: int = 0) -> Line | None:
    """The line in `text`, or None of the end.

    Args:
        handlers: the names there are.
        answers: those of the lines before it.
        paragraphs: how many the context has.

    Raises:
        Flag: it is no line, or does not go with what there is.
    """
    if text == END:
        if not answers:
            raise Flag("the end before the first step")
        return None
    match = _LINE.fullmatch(text)
    if match is None:
        raise Flag("not a step")
    operator, named, after, handler, asked = match.groups()
    operator = operator or "select"
    posts = tuple((after or "").split("_")[1:])
    if operator not in _OPERATORS or not set(posts) <= _AFTER.keys():
        raise Flag("no such operator")
    if handler not in handlers:
        raise Flag("no such handler")
    if not asked:
        raise Flag("no question")
    found = list(dict.fromkeys(map(_step, _REFERENCE.findall(asked))))
    over = _over(operator, found, None if named is None else int(named))
    line = Line(operator, posts, handler, asked, over)
    for step in line.references():
        if not 1 <= step <= len(answers):
            raise Flag("refers to a step that is not there")
    if over is not None and not (over == CONTEXT and paragraphs):
        _items(line, answers, paragraphs)
    return line


def _step(reference: str) -> int:
    return CONTEXT if reference == "C" else int(reference)


def _over(operator: str, found: list[int], named: int | None) -> int | None:
    """The step that the operator goes through; `found` are those in its text, `named` the one in the operator."""
    if operator == "select":
        if named is not None:
            raise Flag("select goes through no list")
        return None
    if named is not None:
        if not operator.startswith("filter") or named not in found:
            raise Flag("goes through a step that its question does not have")
        return named
    if len(found) != 1:
        raise Flag("goes through one step, and its question has none or several")
    return found[0]


def _items(line: Line, answers: Sequence[Any], paragraphs: int) -> list[Any]:
    """What the operator goes through. A single text counts as a list of one."""
    if line.over == CONTEXT:
        return [f"PARA_{number}" for number in range(1, paragraphs + 1)]
    assert line.over is not None
    items = answers[line.over - 1]
    if isinstance(items, str) and line.operator in ("project", "filter"):
        return [items]
    if not isinstance(items, list):
        raise Flag("goes through what is no list")
    if line.operator.endswith(("Keys", "Values")) and not all(map(_is_pair, items)):
        raise Flag("goes through what are no pairs")
    return items


def questions(line: Line, answers: Sequence[Any], paragraphs: int = 0) -> list[str]:
    """The questions the line asks, in order; of a `select` one."""
    if line.over is None:
        return [_filled(line.text, answers, paragraphs, None, "")]
    items = _items(line, answers, paragraphs)
    part = {"Keys": 0, "Values": 1}.get(line.operator.removeprefix("project").removeprefix("filter"))
    shown = items if part is None else [item[part] for item in items]
    return [_filled(line.text, answers, paragraphs, line.over, item if isinstance(item, str) else written(item)) for item in shown]


def _filled(text: str, answers: Sequence[Any], paragraphs: int, over: int | None, item: str) -> str:
    def value(match: re.Match[str]) -> str:
        step = _step(match[1])
        if step == over:
            return item
        return written([f"PARA_{n}" for n in range(1, paragraphs + 1)] if step == CONTEXT else answers[step - 1])

    return _REFERENCE.sub(value, text)


def combined(line: Line, answers: Sequence[Any], given: Sequence[Any], paragraphs: int = 0) -> Any:
    """The line's answer, from those of its questions.

    Raises:
        StepFailed: a post-operation does not fit.
    """
    if line.over is None:
        found: Any = given[0]
    else:
        both = list(zip(_items(line, answers, paragraphs), given, strict=True))
        if line.operator.startswith("filter"):
            found = [item for item, answer in both if str(answer).strip().lower() in _YES]
        elif line.operator == "projectValues":
            found = [[item[0], answer] for item, answer in both]
        elif line.operator == "projectKeys":
            found = [[answer, item[1]] for item, answer in both]
        else:
            found = [[item, answer] for item, answer in both]
    for name in line.after:
        found = post(name, found)
    return found


def post(name: str, value: Any) -> Any:
    """A post-operation, by its name.

    Raises:
        StepFailed: the value is not what it works on.
    """
    if not isinstance(value, list):
        raise StepFailed("works on a list", field=f"post-operation {name}", value=value, mend="give the handler a type (`gives: list`)")
    return _AFTER[name](value)


def _flat(values: list[Any]) -> list[Any]:
    return [part for value in values for part in (_flat(value) if isinstance(value, list) else [value])]


def _unique(values: list[Any]) -> list[Any]:
    found: dict[str, Any] = {}
    for value in values:
        found.setdefault(dumps(value), value)
    return list(found.values())


def _part(name: str, number: int) -> Any:
    def take(values: list[Any]) -> list[Any]:
        if not all(map(_is_pair, values)):
            raise StepFailed("works on a list of pairs", field=f"post-operation {name}", value=values)
        return [value[number] for value in values]

    return take


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


_AFTER = {"flat": _flat, "unique": _unique, "keys": _part("keys", 0), "values": _part("values", 1)}


def written(value: Any) -> str:
    """JSON as prompts show it."""
    return json.dumps(value, ensure_ascii=False)
