"""The sandboxed template language of prompts, conditions and procedure files: a small part of Jinja.

What there is: text, `{{ … }}`, `{% if %}`, `{% for %}`, `{% set %}`, comments, `{% raw %}`; the operators; the filters, tests and methods
listed below; `range` and `dict`. A name or key that does not exist is an error, never an empty text. `state.items` is the key "items"
where the mapping has one. A block tag alone on its line leaves no blank line; the newline at the end of a text stays.

What there is not, so that a file from a stranger can be used: macros, imports, includes, any attribute of Python objects beside the listed
methods, random numbers. Every value goes in and comes out as JSON. Each rendering may build about five million characters and list items,
and whole numbers have at most about 4,000 digits; that bounds memory and loops. It is no bound on seconds, so a template can still be slow.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, Undefined, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.visitor import NodeTransformer

from keystep.errors import BadInput

T = TypeVar("T")

LIMIT = 5_000_000  # characters and items that one rendering may build
_BITS = 13_000  # of a whole number: below the 4,300 digits that Python would write


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FILTERS = _words("""abs capitalize count d default dictsort first float int items last length list lower map max min reject rejectattr
    reverse select selectattr sort title trim truncate unique upper wordcount""")
_TESTS = _words("""!= < <= == > >= boolean defined divisibleby eq equalto even false float ge greaterthan gt in integer iterable le lessthan
    lower lt mapping ne none number odd sequence string true undefined upper""")
_METHODS = {
    str: _words("""capitalize count endswith find index isalnum isalpha isdigit islower isspace isupper lower lstrip partition removeprefix
        removesuffix rfind rpartition rsplit rstrip split splitlines startswith strip title upper"""),
    dict: _words("get items keys values"),
    list: _words("count index"),
    LoopContext: _words("changed cycle depth depth0 first index index0 last length nextitem previtem revindex revindex0"),
}
_NODES = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Assign, nodes.Name, nodes.Const, nodes.Tuple, nodes.List,
    nodes.Dict, nodes.Pair, nodes.Keyword, nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Call, nodes.Getitem, nodes.Getattr, nodes.Slice,
    nodes.Concat, nodes.Compare, nodes.Operand, nodes.BinExpr, nodes.UnaryExpr,
)  # fmt: skip


def render(text: str, names: Mapping[str, Any], field: str) -> str:
    """The text with its templates filled in; `names` are JSON values.

    Raises:
        BadInput: it does not parse, names something that is not there, fails or builds too much; `field` and the line are named.
    """
    template = _compiled(text, field, False)
    return _run(lambda context: "".join(_counted(context, template.root_render_func(context))), template, names, text, field)


def evaluate(text: str, names: Mapping[str, Any], field: str) -> Any:
    """The value of an expression, as JSON: tuples become lists, keys are sorted. `names` are JSON values.

    Raises:
        BadInput: as for `render`, or the value is not JSON.
    """
    template = _compiled(text, field, True)

    def work(context: _Context) -> Any:
        for _ in template.root_render_func(context):
            pass
        return context.vars["result"]

    return _run(work, template, names, text, field)


def check_syntax(text: str, field: str, *, expression: bool) -> None:
    """Raise BadInput, naming `field` and the line, where `text` cannot be a template (or an expression)."""
    _compiled(text, field, expression)


def _compiled(text: str, field: str, expression: bool) -> Template:
    if not isinstance(text, str):
        raise BadInput("is not a text", field=field, value=text)
    try:
        return _compile(text, expression)
    except TemplateSyntaxError as error:
        raise _bad(error.message or "cannot be read", error.lineno, text, field) from None
    except Exception as error:  # numbers too long, nesting too deep: Python's own limits
        raise _bad(str(error), 1, text, field) from None


@lru_cache(maxsize=1024)
def _compile(text: str, expression: bool) -> Template:
    return _SANDBOX.compile_expression(text)._template if expression else _SANDBOX.from_string(text)


def _run(work: Callable[[_Context], T], template: Template, names: Mapping[str, Any], text: str, field: str) -> T:
    context = template.new_context(dict(names))
    assert isinstance(context, _Context)
    try:
        return work(context)
    except Exception as error:
        line, trace = 1, error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_globals.get("__jinja_template__") is template:
                line = template.get_corresponding_lineno(trace.tb_lineno)
            trace = trace.tb_next
        raise _bad(str(error) or type(error).__name__, line, text, field) from None


def _bad(problem: str, line: int, text: str, field: str) -> BadInput:
    lines = text.splitlines()
    return BadInput(f"line {line}: {problem}", field=field, value=lines[line - 1].strip() if 0 < line <= len(lines) else text)


class _Context(Context):
    """One rendering, and what it may still build."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.left = [LIMIT]

    def derived(self, locals: dict[str, Any] | None = None) -> Context:
        context = super().derived(locals)
        assert isinstance(context, _Context)
        context.left = self.left
        return context

    def spend(self, size: int) -> None:
        self.left[0] -= size
        if self.left[0] < 0:
            raise SecurityError(f"builds more than {LIMIT:,} characters and items")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, narrowed from a list of what is forbidden to lists of what is allowed."""

    context_class = _Context
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Undefined):
            return super().getattr(obj, attribute)
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        if isinstance(obj, str) and attribute in _COUNTING:
            return _Method(obj, _COUNTING[attribute])
        for kind, methods in _METHODS.items():
            if isinstance(obj, kind) and attribute in methods:
                return getattr(obj, attribute)
        return self.undefined(f"{_called(obj)} has no {attribute!r}")

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Undefined | str | list | tuple | dict):
            try:
                return obj[argument]
            except (TypeError, LookupError):
                pass
        return self.undefined(f"{_called(obj)} has no {argument!r}")

    def is_safe_callable(self, obj: Any) -> bool:
        if isinstance(obj, Undefined):
            return True  # the call itself says what is not there
        return obj is _range or obj is dict or isinstance(obj, _Method) or isinstance(getattr(obj, "__self__", None), tuple(_METHODS))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        assert isinstance(context, _Context)
        if operator == "%" and isinstance(left, str):
            raise SecurityError("texts are formatted with the filter `format`")
        for many, times in ((left, right), (right, left)):
            if isinstance(many, str | list | tuple):
                context.spend(len(many) * max(0, times) if operator == "*" and isinstance(times, int) else len(many))
        if isinstance(left, int) and isinstance(right, int):
            grown = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * max(0, right)}.get(operator, 0)
            if grown > _BITS:
                raise SecurityError("gives a number of thousands of digits")
        return super().call_binop(context, operator, left, right)

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Narrow().visit(source), *args, **kwargs)


class _Narrow(NodeTransformer):
    """Refuse what the language does not have; send loops, joins and assignments through filters that count (no user can write a name
    that begins with a blank)."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if not isinstance(node, _NODES) or getattr(node, "recursive", False):
            raise TemplateSyntaxError(f"{type(node).__name__.lower()} is not part of the template language", node.lineno)
        super().generic_visit(node, *args, **kwargs)
        if isinstance(node, nodes.For):
            node.iter = _filter(node.iter, " count")
        elif isinstance(node, nodes.Assign):
            node.node = _filter(node.node, " json")
        elif isinstance(node, nodes.Concat):
            return _filter(nodes.List(node.nodes, lineno=node.lineno), "join")
        return node


def _filter(node: nodes.Node, name: str) -> nodes.Filter:
    assert isinstance(node, nodes.Expr)
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


# What templates can call. All of it counts what it builds.


@pass_context
def _counted(context: _Context, values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        context.spend(len(value) + 1 if isinstance(value, str) else 1)
        yield value


@pass_context
def _as_json(context: _Context, value: Any) -> Any:
    """A bounded copy of `value` as JSON."""
    if isinstance(value, str):
        context.spend(len(value))
        return str(value)
    context.spend(1)
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, list | tuple):
        return [_as_json(context, part) for part in value]
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {str(name): _as_json(context, value[name]) for name in sorted(value)}
    if isinstance(value, Undefined):
        str(value)  # raises, and says what is not there
    raise TypeError(f"{_called(value)} is not a JSON value; add `| list` to a sequence, quote the keys of a mapping")


@pass_context
def _text(context: _Context, value: Any) -> str:
    """How a value is written into a text: as Python writes it, None included."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) else str(_as_json(context, value))


@pass_context
def _join(context: _Context, values: Iterable[Any], between: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        values = FILTERS["map"](context, values, attribute=attribute)
    parts = [_text(context, value) for value in values]
    context.spend(sum(map(len, parts)) + len(between) * len(parts))
    return between.join(parts)


@pass_context
def _replace(context: _Context, text: str, old: str, new: str, count: int = -1) -> str:
    found = text.count(old) if count < 0 else min(count, text.count(old))
    context.spend(len(text) + found * len(new))
    return text.replace(old, new, count)


@pass_context
def _indent(context: _Context, text: str, width: int = 4, first: bool = False) -> str:
    lines = text.split("\n")
    context.spend(len(text) + len(lines) * width)
    between = "\n" + " " * width
    return (" " * width if first else "") + between.join(lines)


@pass_context
def _format(context: _Context, text: str, *values: Any) -> str:
    if re.search(r"\*|\d{4}", text):
        raise SecurityError("a width has at most three digits")
    written = text % tuple(_as_json(context, value) for value in values)
    context.spend(len(written))
    return written


@pass_context
def _tojson(context: _Context, value: Any, indent: int | None = None) -> str:
    return json.dumps(_as_json(context, value), ensure_ascii=False, indent=None if indent is None else min(indent, 8))


def _round(value: float, digits: int = 0) -> float:
    return round(value, max(-30, min(digits, 30)))


@pass_context
def _range(context: _Context, *bounds: int) -> list[int]:
    context.spend(len(range(*bounds)))
    return list(range(*bounds))


@pass_context
def _sum(context: _Context, values: Iterable[Any], attribute: str | int | None = None) -> Any:
    if attribute is not None:
        values = FILTERS["map"](context, values, attribute=attribute)
    return sum(value + 0 for value in values)  # of numbers only: adding up lists builds long ones


@dataclass(frozen=True, slots=True)
class _Method:
    """A method of a text that may build a long one."""

    text: str
    function: Callable[..., str]

    @pass_context
    def __call__(self, context: _Context, *args: Any) -> str:
        return self.function(context, self.text, *args)


_COUNTING: dict[str, Callable[..., str]] = {"replace": _replace, "join": lambda context, between, values: _join(context, values, between)}


def _called(value: Any) -> str:
    names = {str: "a text", list: "a list", dict: "a mapping", int: "a number", float: "a number", type(None): "none"}
    return names.get(type(value), type(value).__name__)


_SANDBOX = _Sandbox(
    undefined=StrictUndefined, finalize=_text, autoescape=False, optimized=False, keep_trailing_newline=True, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip
_SANDBOX.globals = {"range": _range, "dict": dict}
_SANDBOX.filters = {name: FILTERS[name] for name in _FILTERS} | {
    "format": _format, "indent": _indent, "join": _join, "replace": _replace, "round": _round, "string": _text, "sum": _sum,
    "tojson": _tojson, " count": _counted, " json": _as_json,
}  # fmt: skip
_SANDBOX.tests = {name: TESTS[name] for name in _TESTS}
