"""The sandboxed template language: what it gives, what it refuses, and that nothing leads out of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keystep.errors import BadInput
from keystep.run import templates
from keystep.run.templates import check_syntax, evaluate, render

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
STATE = {"items": [1, 2], "n": 3, "word": "a<b", "rows": [{"k": "b", "v": 2}, {"k": "a", "v": 1}], "none": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ s.items }} {{ s.n }} {{ s.none }}", "[1, 2] 3 None"),
        ("{{ s.word | tojson }} {{ s.rows[1] | tojson }}", '"a<b" {"k": "a", "v": 1}'),
        ("{% for r in s.rows %}\n{{ loop.index }}. {{ r.k }}\n{% endfor %}\nend\n", "1. b\n2. a\nend\n"),
        ("{% if s.n > 2 %}big{% else %}small{% endif %}", "big"),
        ("{{ s.rows | map(attribute='k') | join(', ') }}; {{ '-'.join(['x', 'y']) }}", "b, a; x-y"),
        ("{{ s.rows | join('+', attribute='v') }}", "2+1"),
        ("{{ '%.2f|%5s' | format(2 / 3, 'a') }} {{ 'a-b'.replace('-', '+') }} {{ 1 ~ 'x' ~ s.n }}", "0.67|    a a+b 1x3"),
        ("{% set total = s.rows | sum(attribute='v') %}{{ total * 2 }} {{ range(3) }} {{ 2.345 | round(1) }}", "6 [0, 1, 2] 2.3"),
        ("{% for x in s['items'] if x > 1 %}{% for y in 'ab' %}{{ x }}{{ y }}{{ loop.last }} {% endfor %}{% endfor %}", "2aFalse 2bTrue "),
        ("{{ s.word.upper().split('<') }} {{ s.get('nope', 'no') }} {{ s.nope is defined }}", "['A', 'B'] no False"),
        ("{{ s.nope | default('d') }}", "d"),
        ("{{ 'x\ny' | indent(2, true) }}{# nothing #}{% raw %}{{ }}{% endraw %}", "  x\n  y{{ }}"),
    ],
)  # fmt: skip
def test_renders(text: str, expected: str) -> None:
    assert render(text, {"s": STATE}, "prompt") == expected


def test_evaluates_to_json() -> None:
    assert evaluate("{'b': s.n + 1, 'a': (1, 2)}", {"s": STATE}, "update") == {"a": [1, 2], "b": 4}
    assert list(evaluate("dict(s, zz=1, aa=2)", {"s": {"m": 1}}, "update")) == ["aa", "m", "zz"]  # as a journal gives it back
    assert evaluate("s['items'] + [3]", {"s": STATE}, "update") == [1, 2, 3]
    assert evaluate("result + 1", {"result": 4}, "update") == 5
    assert evaluate("s.rows | selectattr('v', 'gt', 1) | map(attribute='k') | list", {"s": STATE}, "update") == ["b"]


def test_an_evaluated_value_is_a_copy() -> None:
    state = {"rows": [[1]]}
    evaluate("s.rows", {"s": state}, "update")[0].append(2)
    assert state == {"rows": [[1]]}


@given(JSON)
def test_json_goes_through_unchanged(value: object) -> None:
    assert evaluate("x", {"x": value}, "f") == value
    assert json.loads(render("{{ x | tojson }}", {"x": value}, "f")) == value


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("a\n{{ nope }}", 2, "nope"),
        ("\n\n{{ s.nope.deeper }}", 3, "nope"),
        ("{% for x in s.rows %}\n{{ x.zzz }}\n{% endfor %}", 2, "zzz"),
        ("ok\n{{ 1 + }}", 2, "unexpected"),
        ("{% if s.n %}\nno end", 2, "endif"),
        ("\n{{ s.n | nofilter }}", 2, "nofilter"),
        ("{{ s.n / 0 }}", 1, "division"),
        ("{{ s.word + 1 }}", 1, "str"),
        ("{{ s.rows | map('upper') }}", 1, "list"),
    ],
)
def test_errors_name_the_field_the_line_and_what_is_wrong(text: str, line: int, word: str) -> None:
    with pytest.raises(BadInput) as caught:
        render(text, {"s": STATE}, "prompt.1")
    assert caught.value.field == "prompt.1"
    assert caught.value.problem.startswith(f"line {line}: ")
    assert word in caught.value.problem
    assert caught.value.value == text.splitlines()[line - 1].strip()


def test_syntax_is_checked_without_values() -> None:
    check_syntax("{{ anything.at.all }}", "prompt", expression=False)
    check_syntax("anything.at.all > 3", "until", expression=True)
    for text, expression in (("{{ a b }}", False), ("a b", True), ("", True), ("{{ a }}", True), ("{% macro m() %}{% endmacro %}", False)):
        with pytest.raises(BadInput, match=r"^until: line 1"):
            check_syntax(text, "until", expression=expression)
    with pytest.raises(BadInput, match="is not a text"):
        check_syntax(7, "until", expression=True)  # type: ignore[arg-type]


class Secret:
    """A Python object that has got among the names; it must stay a closed box."""

    token = "hidden-token"

    def method(self) -> str:
        return self.token


ESCAPES = [
    "{{ ''.__class__ }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ ''['__class__'] }}", "{{ [].__class__.__base__ }}",
    "{{ s | attr('__class__') }}", "{{ s.items.__self__ }}", "{{ ().__class__.__bases__[0] }}", "{{ x.__init__.__globals__ }}",
    "{{ range.__globals__ }}", "{{ dict.mro() }}", "{{ dict.__subclasses__() }}", "{{ dict.fromkeys('ab') }}", "{{ self }}",
    "{{ self.__init__ }}", "{{ self._TemplateReference__context }}", "{{ cycler.__init__.__globals__.os }}", "{{ lipsum.__globals__ }}",
    "{{ joiner }}", "{{ namespace() }}", "{{ config }}", "{{ '{0.__class__}'.format(s) }}", "{{ '{0}'.format_map(s) }}",
    "{{ '{0.__class__}' | format(s) }}", "{{ '%s' % s }}", "{{ ('%(a)s' | format(s)).__class__ }}",
    "{{ s | map('attr', '__class__') | list }}",
    "{{ [s] | map(attribute='__class__') | list }}", "{{ [s] | selectattr('__class__') | list }}",
    "{{ ['', ''] | sort(attribute='__class__') }}",
    "{{ [s] | sum(attribute='__len__') }}", "{{ [''] | join(attribute='__class__') }}", "{{ s.update({'n': 9}) }}",
    "{{ s['items'].append(1) }}",
    "{{ s['items'].__iadd__([1]) }}", "{{ s.pop('n') }}", "{% set s.n = 9 %}", "{% set ns.x = 1 %}", "{% import 'os' as os %}",
    "{% include '/etc/passwd' %}", "{% extends 'x' %}", "{% from 'x' import y %}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% call s() %}{% endcall %}", "{% block b %}{% endblock %}", "{% filter upper %}x{% endfilter %}", "{% set b %}x{% endset %}",
    "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}", "{% for a in [1] %}{{ loop.__class__ }}{% endfor %}",
    "{% for a in [1] %}{{ loop._iterable }}{% endfor %}", "{% for a in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% with a = 1 %}{% endwith %}", "{% autoescape true %}{% endautoescape %}", "{% do s.clear() %}",
    "{{ box.token }}", "{{ box['token'] }}",
    "{{ box.method() }}", "{{ box }}", "{{ [box] }}", "{{ box ~ '' }}", "{{ [box] | join }}",
    "{{ [box] | map(attribute='token') | join }}",
    "{{ box | string }}", "{{ box | tojson }}", "{{ '%s' | format(box) }}", "{{ box() }}", "{{ print('x') }}", "{{ s | random }}",
    "{{ s | pprint }}", "{{ s | xmlattr }}", "{{ s | urlize }}", "{{ s is callable }}", "{{ box.__dict__ }}",
    "{{ [1].__getitem__(0) }}",
    "{{ (1).__add__(1) }}", "{{ (1.5).hex() }}", "{{ ''.encode() }}", "{{ ''.translate({}) }}", "{{ ''.maketrans }}",
    "{{ s.__len__() }}",
    "{{ s['items']['append'](3) }}", "{{ (s.items | first).real }}", "{{ caller() }}", "{{ super() }}", "{{ s.items.sort() }}",
]  # fmt: skip


@pytest.mark.parametrize("text", ESCAPES)
def test_nothing_leads_out(text: str) -> None:
    state = {"items": [1, 2], "n": 3}
    with pytest.raises(BadInput) as caught:
        render(text, {"s": state, "x": 1, "box": Secret()}, "prompt")
    assert "hidden-token" not in str(caught.value)
    assert state == {"items": [1, 2], "n": 3}


HUGE = [
    "{{ 'a' * 10 ** 12 }}", "{{ [0] * 10 ** 12 }}", "{{ 10 ** 12 * 'a' }}", "{{ 9 ** (9 ** 9) }}",
    "{{ 'a' | center(10 ** 10) }}", "{{ 'a'.ljust(10000000000) }}", "{{ 'a'.zfill(10000000000) }}", "{{ '%10000000000d' | format(1) }}",
    "{{ '%*d' | format(10000000000, 1) }}", "{{ '%10000000000d' % 1 }}", "{{ range(10 ** 12) }}", "{{ range(10 ** 12) | list }}",
    "{% for a in range(10 ** 5) %}{% for b in range(10 ** 5) %}{% endfor %}{% endfor %}",
    "{% for a in range(30000) %}{% for b in 'abcdefghij' * 100 %}{% endfor %}{% endfor %}",
    "{% for a in range(1000) %}{{ 'x' * 1000000 }}{% endfor %}",
    "{% for a in range(99) %}{% set b = a %}{% if range(99999) %}{% endif %}{% endfor %}",
    "{{ 'a' | indent(10 ** 10) }}", "{{ 'a\nb' | indent(10 ** 10) }}",
    "{% set x = 'a' * 100000 %}{{ x.replace('a', x) }}", "{% set x = 'a' * 100000 %}{{ x | replace('a', x) }}",
    "{% set x = 'a' * 100000 %}{{ x.join(x) }}", "{% set x = 'a' * 100000 %}{{ x | join(x) }}",
    "{% set x = 'abc' %}" + "{% set x = x ~ x %}" * 60,
    "{% set x = 'abc' %}" + "{% set x = x + x %}" * 60, "{% set x = [1] %}" + "{% set x = [x, x] %}" * 60,
    "{% set x = 10 %}" + "{% set x = x * x %}" * 60, "{% set x = [[0] * 100000] %}{{ (x * 100000) | sum(start=[]) }}",
    "{{ 10 ** 4301 }}", "{{ " + "9" * 6000 + " }}", "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "{% if 1 %}" * 300 + "{% endif %}" * 300,
]  # fmt: skip


@pytest.mark.parametrize("text", HUGE, ids=range(len(HUGE)))
def test_what_it_builds_is_bounded(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "LIMIT", 300_000)
    with pytest.raises(BadInput):
        render(text, {}, "prompt")


@given(st.text(alphabet="{}%_.[]()'\"|~*+- \nabs01classinitmroforinif", max_size=60), st.booleans())
def test_any_text_renders_or_is_refused(text: str, expression: bool) -> None:
    names = {"s": {"a": 1}, "a": "b", "box": Secret()}
    try:
        value = evaluate(text, names, "f") if expression else render(text, names, "f")
    except BadInput as error:
        assert error.field == "f"
    else:
        assert "hidden-token" not in json.dumps(value)


NAME = st.sampled_from(["a", "x", "__class__", "__init__", "__globals__", "items", "append", "mro", "format", "_private", "upper", "token"])
ATOM = st.sampled_from(["s", "box", "range", "dict", "''", "[1]", "{'a': 1}", "1", "loop", "self", "true", "s.a"])


@given(
    ATOM,
    st.lists(st.tuples(st.sampled_from([".{}", "['{}']", "|attr('{}')", "|map(attribute='{}')|list", ".{}()", "|{}"]), NAME), max_size=4),
)
def test_no_chain_of_accesses_gives_anything_but_json(atom: str, chain: list[tuple[str, str]]) -> None:
    text = atom + "".join(form.format(name) for form, name in chain)
    try:
        value = evaluate(text, {"s": {"a": "b"}, "box": Secret()}, "f")
    except BadInput:
        return
    assert "hidden-token" not in json.dumps(value)
