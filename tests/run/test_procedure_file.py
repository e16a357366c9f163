"""Procedures from YAML files: what they mean, and that no file whatever gets further than a sentence that says what mends it."""

from __future__ import annotations

import asyncio
import copy
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from worker import Scripted, Worker

from keystep.errors import BadInput, ChangedWork, Stopped
from keystep.lm.base import Message
from keystep.lm.embedded import ledger
from keystep.run import AheadBy, First, Flag, Run, Sampling
from keystep.run.procedure import adapted
from keystep.run.procedure_file import SCHEMA, from_file, parse_setting, schema_text

EXAMPLE = Path(__file__).parents[2] / "src/keystep/cli/example.yaml"
COUNT: dict[str, Any] = {
    "name": "count",
    "state": {"total": 0, "parts": ["a", "b"]},
    "prompt": "{{ total }} at {{ step }}?",
    "answer": {"regex": r"(\d+)", "type": "int"},
    "update": {"total": "total + answer"},
    "until": "step >= 3",
    "max_steps": 10,
}


def made(tmp_path: Path, changes: dict[str, Any] | None = None, *, set: dict[str, Any] | None = None, **more: Any) -> Any:
    """COUNT with some parts replaced (None leaves one out), read from a file."""
    form = {name: part for name, part in {**copy.deepcopy(COUNT), **(changes or {}), **more}.items() if part is not None}
    path = tmp_path / "count.yaml"
    path.write_text(yaml.safe_dump(form), "utf-8")
    return from_file(path, set)


def refused(tmp_path: Path, text: str | bytes, settings: dict[str, Any] | None = None) -> BadInput:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    with pytest.raises(BadInput) as caught:
        from_file(path, settings)
    assert caught.value.field and caught.value.mend and str(caught.value)
    return caught.value


# What a file means.


def test_the_example_is_the_ledger_that_the_embedded_models_know():
    procedure = from_file(EXAMPLE)
    state = procedure.start()
    assert ledger.encode(procedure.prompt(state)) is not None
    run = Run(Worker([1.0]), vote=AheadBy(2))
    outcome = run.execute_sync(procedure)
    assert (outcome.correct, outcome.steps, outcome.procedure) == (True, 20, "ledger")
    assert outcome.result["total"] == sum(state["numbers"][word] for word in state["words"])


def test_a_wrong_step_is_found_by_the_check():
    outcome = Run(Worker([1.0], wrong_at=["0/7"]), vote=First()).execute_sync(from_file(EXAMPLE))
    assert (outcome.correct, outcome.first_error_step) == (False, 7)


@pytest.mark.parametrize(
    ("check", "answers", "expected"),
    [
        ({"end": "total == 6"}, [1, 2, 3], None),
        ({"end": "total == 6"}, [1, 2, 4], 3),
        ({"step": "answer == step + 1"}, [1, 2, 3], None),
        ({"step": "answer == step + 1"}, [1, 3, 3], 1),
        ({"step": "total == step * (step + 1) // 2", "end": "total == 8"}, [1, 2, 4], 3),
        ({"step": True, "end": False}, [1], 1),
    ],
)
def test_check_gives_the_first_wrong_step(tmp_path, check, answers, expected):
    assert made(tmp_path, check=check).check(answers) == expected


def test_without_a_check_nobody_can_tell(tmp_path):
    assert made(tmp_path).check is None
    assert Run(Scripted(["1"]), vote=First()).execute_sync(made(tmp_path)).correct is None


def test_state_update_until_and_step(tmp_path):
    procedure = made(tmp_path, state={"total": 0, "seen": [], "kept": "k"}, update={"seen": "seen + [[step, answer]]", "total": 9})
    state = procedure.update(procedure.update(procedure.start(), 4), 5)
    assert state == {"total": 9, "seen": [[0, 4], [1, 5]], "kept": "k", "step": 2}
    assert not procedure.done(state)
    assert procedure.done(procedure.update(state, 1))


def test_updates_all_see_the_state_before(tmp_path):
    procedure = made(tmp_path, state={"a": 1, "b": 2}, prompt="p", update={"a": "b", "b": "a"})
    assert procedure.update(procedure.start(), None) == {"a": 2, "b": 1, "step": 1}


def test_prompt_forms(tmp_path):
    state = {"total": 7, "step": 2}
    assert made(tmp_path).prompt(state) == "7 at 2?"
    assert made(tmp_path, prompt=["{{ total }}?", "What of {{ total }}?"]).prompt(state) == ["7?", "What of 7?"]
    chat = [{"role": "system", "content": "Add."}, {"role": "user", "content": "{{ total }}?"}]
    assert made(tmp_path, prompt=chat).prompt(state) == (Message("system", "Add."), Message("user", "7?"))


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ({"regex": r"\d+"}, "1 then 22", "22"),
        ({"regex": r"is (\d+)"}, "is 1, is 22.", "22"),
        ({"regex": r"is (\d+)", "type": "int"}, "is 022", 22),
        ({"regex": r"(?P<b>\w)=(?P<a>\d)", "types": {"a": "float"}}, "x=1 y=2", {"a": 2.0, "b": "y"}),
        ({"regex": r"(?P<a>x)?(?P<b>y)"}, "y", {"a": None, "b": "y"}),
        ({"regex": r"\{.*\}", "type": "json"}, 'so {"b": 1, "a": [2]}', {"a": [2], "b": 1}),
        ({"schema": {"type": "object", "required": ["a"]}}, ' {"b": 2, "a": 1}\n', {"a": 1, "b": 2}),
        ({"schema": {}}, "null", None),
    ],
)
def test_answers(tmp_path, answer, text, expected):
    read = made(tmp_path, answer=answer).parse(text, {})
    assert read == expected
    assert json.dumps(read) == json.dumps(read, sort_keys=True)  # as it comes back from a journal


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"regex": r"is (\d+)"}, "is x"),
        ({"regex": r"(\w+)", "type": "int"}, "seven"),
        ({"regex": r"(\d+)", "type": "int"}, "9" * 5000),
        ({"regex": r".*", "type": "float"}, "1e999"),
        ({"regex": r".*", "type": "float"}, "nan"),
        ({"regex": r".*", "type": "json"}, "{'a': 1}"),
        ({"schema": {}}, "NaN"),
        ({"schema": {}}, "[1e999]"),
        ({"schema": {}}, '"\\ud800"'),
        ({"schema": {}}, "[" * 100_000),
        ({"schema": {}}, "```json\n{}\n```"),
        ({"schema": {"type": "object"}}, "[]"),
        ({"schema": {"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}}}, '"x"'),
    ],
)
def test_malformed_answers_are_flagged_and_never_repaired(tmp_path, answer, text):
    procedure = made(tmp_path, answer=answer)
    with pytest.raises(Flag):
        procedure.parse(text, {})


@pytest.mark.parametrize("reference", ["http://127.0.0.1:1/schema.json", "#/$defs/missing", "file:///etc/passwd"])
def test_a_schema_fetches_nothing(tmp_path, reference):
    procedure = made(tmp_path, answer={"schema": {"$ref": reference}})
    with pytest.raises(BadInput, match=r"answer\.schema: cannot be applied"):
        procedure.parse("1", {})


def test_key_flags_sampling(tmp_path):
    flags = {"max_tokens": 5, "mismatch": "^1", "min_logprob": -1.5}
    procedure = made(tmp_path, key="answer // 10", flags=flags, sampling={"temperature": 0.3, "stop": ["."]})
    assert procedure.key(42) == 4
    assert [type(flag).__name__ for flag in procedure.flags] == ["TooLong", "Mismatch", "Unsure"]
    assert procedure.sampling == {"temperature": 0.3, "stop": (".",), "max_tokens": 5}  # an answer cut there is thrown away anyway
    assert made(tmp_path, flags={"max_tokens": 5}, sampling={"max_tokens": 9}).sampling["max_tokens"] == 9
    run = Run(Scripted(["12"]), sampling=Sampling(max_tokens=7))
    assert adapted(run.asking, procedure).sampling == Sampling(temperature=0.3, stop=(".",), max_tokens=7)
    answer = Run(Scripted(["12", "17", "33"]), vote=AheadBy(2)).ask_sync("q", key=procedure.key, parse=lambda text: int(text))
    assert (answer.value, answer.counts) == (12, {"1": 2})


def test_settings_replace_values_of_the_state(tmp_path):
    procedure = made(tmp_path, set={"total": 40})
    assert procedure.start() == {"total": 40, "parts": ["a", "b"], "step": 0}
    with pytest.raises(BadInput, match=r"set: is not a name of the state \(got 'totl'\)\. the state's names are parts, total"):
        made(tmp_path, set={"totl": 1})
    with pytest.raises(BadInput, match=r"set\.total: is not JSON"):
        made(tmp_path, set={"total": float("nan")})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1", 1), ("a=", None), ("a=1.5", 1.5), ("a=[1, b]", [1, "b"]), ("a={b: true}", {"b": True}), ("a=b=c", "b=c"), ("a='1'", "1"),
        ("a=no", "no"), ("a=12:30", "12:30"), ("a=2024-01-01", "2024-01-01"), ("a=010", 10), ("a=1e3", 1000.0), ("a=0x1f", 31),
    ],
)  # fmt: skip
def test_settings_are_read_as_yaml(text, expected):
    assert parse_setting(text) == ("a", expected)


@pytest.mark.parametrize(
    "text", ["", "a", "=1", "a=[", "a=*b", "a=&b [*b]", "a=!!python/name:os.system", "a={1: 2}", "a={b: 1, b: 2}", "a=" + "[" * 99]
)
def test_bad_settings_are_refused(text):
    with pytest.raises(BadInput) as caught:
        parse_setting(text)
    assert caught.value.field.startswith("set") and caught.value.mend


# Data files.


@pytest.mark.parametrize(
    ("name", "text", "first"),
    [
        ("r.csv", '\ufeffid,text\n1,"a, b"\n\n2,c\n', {"id": "1", "text": "a, b"}),
        ("r.tsv", "id\ttext\n1\ta, b\n2\tc\n", {"id": "1", "text": "a, b"}),
        ("r.jsonl", '{"id": 1}\n\n{"id": 2}\n', {"id": 1}),
        ("r.json", '[{"id": 1}, {"id": 2}]', {"id": 1}),
        ("r.txt", "one\ntwo\n", "one"),
    ],
)
def test_data_gives_a_record_to_every_step(tmp_path, name, text, first):
    (tmp_path / name).write_text(text, "utf-8")
    procedure = made(tmp_path, data=name, prompt="{{ data[step] | tojson }}", until="step >= data | length")
    assert json.loads(procedure.prompt(procedure.start())) == first
    outcome = Run(Scripted(["1"]), vote=First()).execute_sync(procedure)
    assert (outcome.steps, outcome.result["total"]) == (2, 2)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("r.csv", b"", "no usable header"),
        ("r.csv", b"a,a\n1,2\n", "no usable header"),
        ("r.csv", b"a,b\n1\n", "r.csv, line 2: 1 fields under 2 columns"),
        ("r.csv", b'a,b\n"1,2\n', "r.csv, line 2"),
        ("r.csv", b"a\n\xff\n", "not UTF-8"),
        ("r.csv", b"a\n" + b"x" * 200_000, "field larger"),
        ("r.jsonl", b"{}\n{]\n", "line 2 of r.jsonl is not JSON"),
        ("r.json", b"{}", "holds no list"),
        ("r.json", b"[NaN]", "NaN is not JSON"),
        ("r.json", b"[" * 100_000, "is not JSON"),
        ("r.xml", b"<a/>", "of a kind that is not read"),
        ("", b"", "cannot be read"),
    ],
)
def test_bad_data_is_refused(tmp_path, name, content, problem):
    (tmp_path / (name or "other")).write_bytes(content)
    with pytest.raises(BadInput, match=re.escape(problem)) as caught:
        made(tmp_path, data=name or "missing.csv")
    assert caught.value.field == "data" and caught.value.mend and "count.yaml, line" in str(caught.value)


# Resuming.


def test_identity_changes_with_what_decides_answers_and_only_with_that(tmp_path):
    (tmp_path / "r.txt").write_text("one\ntwo\n")
    same = made(tmp_path, data="r.txt").identity()
    assert made(tmp_path, data="r.txt", max_steps=11, check={"end": "true"}).identity() == same
    for changes in (
        {"prompt": "?"},
        {"update": {}},
        {"until": "step > 3"},
        {"key": "answer"},
        {"answer": {"regex": "(.)"}},
        {"name": "other"},
    ):
        assert made(tmp_path, data="r.txt", **changes).identity() != same
    assert made(tmp_path, data="r.txt", set={"total": 1}).identity() != same
    (tmp_path / "r.txt").write_text("one\nthree\n")
    assert made(tmp_path, data="r.txt").identity() != same


def test_a_run_that_met_its_bound_goes_on_when_the_bound_is_raised_and_not_when_the_prompt_changed(tmp_path):
    journal = tmp_path / "runs.db"
    lm = Scripted(["1"])
    with pytest.raises(Stopped, match="max_steps: did not end within its steps"):
        Run(lm, vote=First(), journal=journal, id="r").execute_sync(made(tmp_path, until="step >= 5", max_steps=3))
    with pytest.raises(ChangedWork, match=r"prompt"):
        Run(lm, vote=First(), journal=journal, id="r").execute_sync(made(tmp_path, until="step >= 5", prompt="other"))
    outcome = Run(lm, vote=First(), journal=journal, id="r").execute_sync(made(tmp_path, until="step >= 5"))
    assert (outcome.steps, outcome.result["total"], lm.drawn) == (5, 5, 5)


def test_prompts_after_a_resume_are_those_of_an_undisturbed_run(tmp_path):
    """The order of a mapping's names must not depend on whether the state came from the file or out of the journal."""
    parts = {"state": {"z": {"b": 1, "a": 2}, "last": None}, "prompt": "{{ z }} {{ last }}", "answer": {"schema": {}}}
    parts |= {"update": {"last": "answer"}, "until": "step >= 4"}
    whole, first, rest = (Scripted(['{"q": {"n": 1, "m": 2}}']) for _ in range(3))
    Run(whole, vote=First()).execute_sync(made(tmp_path, parts))
    journal = tmp_path / "runs.db"
    with pytest.raises(Stopped):
        Run(first, vote=First(), journal=journal, id="r").execute_sync(made(tmp_path, parts, max_steps=2))
    Run(rest, vote=First(), journal=journal, id="r").execute_sync(made(tmp_path, parts))
    assert [r.prompt for r in first.requests + rest.requests] == [r.prompt for r in whole.requests]


# What is refused.


@pytest.mark.parametrize(
    ("changes", "field", "problem", "mend"),
    [
        ({"max_steps": None}, "max_steps", "is missing", "A whole number above 0"),
        ({"max_steps": "10"}, "max_steps", "valid integer", "A whole number above 0"),
        ({"max_steps": 0}, "max_steps", "greater than 0", "A whole number above 0"),
        ({"max_steps": True}, "max_steps", "valid integer", "A whole number"),
        ({"untill": "x"}, "untill", "is not a field here", "did you mean until?"),
        ({"zzz": 1}, "zzz", "is not a field here", "there are name, state"),
        ({"prompt": 5}, "prompt", "valid string", "a list of paraphrases"),
        ({"prompt": []}, "prompt", "valid string", "a list of paraphrases"),
        ({"prompt": ["a", 5]}, "prompt.1", "valid string", "A template"),
        ({"prompt": [{"role": "user"}]}, "prompt.0.content", "is missing", "A template"),
        ({"prompt": [{"role": "boss", "content": ""}]}, "prompt.0.role", "'system', 'user' or 'assistant'", "system, user"),
        ({"prompt": "{{ total"}, "prompt", "", ""),
        ({"prompt": "{% include 'x' %}"}, "prompt", "not part of the template language", ""),
        ({"until": "step >="}, "until", "", ""),
        ({"until": None}, "until", "is missing", "An expression"),
        ({"key": "("}, "key", "", ""),
        ({"check": {"end": "1 +"}}, "check.end", "", ""),
        ({"check": {"stop": "1"}}, "check.stop", "is not a field here", "did you mean step?"),
        ({"update": {"total": "a b"}}, "update.total", "", ""),
        ({"update": {"totl": "1"}}, "update.totl", "not a name of the state", "parts, total"),
        ({"update": {"step": "1"}}, "update.step", "not a name of the state", "counts itself"),
        ({"state": {"step": 1}}, "state.step", "is the name of something else", "are taken"),
        ({"state": {"a-b": 1}}, "state.a-b", "no name that an expression can use", "letters"),
        ({"state": {"total": 0, "parts": [], "x": float("inf")}}, "state.x", "is not JSON", ""),
        ({"state": {"total": 0, "x": "\ud800"}}, "state.x", "half a character", "whole characters"),
        ({"state": [1]}, "state", "dictionary", "names and values"),
        ({"answer": {}}, "answer", "either a regex or a schema", "write"),
        ({"answer": {"regex": "a", "schema": {}}}, "answer", "either a regex or a schema", "write"),
        ({"answer": {"regex": "("}}, "answer.regex", "not a regular expression", "quote it"),
        ({"answer": {"regex": "(a)(b)"}}, "answer.regex", "several unnamed groups", "(?P<sum>…)"),
        ({"answer": {"regex": "(?P<a>b)", "type": "int"}}, "answer.type", "without named groups", "types"),
        ({"answer": {"regex": "(?P<a>b)", "types": {"b": "int"}}}, "answer.types.b", "not a named group", "named groups are a"),
        ({"answer": {"regex": "(?P<a>b)", "types": {"a": "date"}}}, "answer.types.a", "'int', 'float', 'str' or 'json'", "int, float"),
        ({"answer": {"schema": {"type": "objekt"}}}, "answer.schema.type", "not a JSON schema", "json-schema.org"),
        ({"flags": {"max_tokens": -1}}, "flags.max_tokens", "greater than 0", "Flag answers"),
        ({"flags": {"mismatch": "["}}, "flags.mismatch", "not a regular expression", "quote it"),
        ({"flags": {"min_logprob": 1}}, "flags.min_logprob", "less than or equal to 0", "Flag answers"),
        ({"sampling": {"temperature": -1}}, "sampling.temperature", "greater than or equal to 0", "0 is greedy"),
        ({"sampling": {"temperature": float("nan")}}, "sampling.temperature", "finite", "0 is greedy"),
        ({"sampling": {"top_p": 0}}, "sampling.top_p", "greater than 0", "at most 1"),
        ({"sampling": {"top_k": 5}}, "sampling.top_k", "is not a field here", "did you mean top_p?"),
        ({"sampling": {"stop": "."}}, "sampling.stop", "valid list", "end an answer"),
        ({"name": ""}, "name", "at least 1 character", "called"),
    ],
)  # fmt: skip
def test_bad_fields_are_named_with_their_line_value_and_mend(tmp_path, changes, field, problem, mend):
    with pytest.raises(BadInput) as caught:
        made(tmp_path, changes)
    error = caught.value
    assert error.field == field
    assert problem in str(error)
    assert mend in error.mend
    assert re.search(r"\(count\.yaml, line \d+\)", str(error))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is a mapping"),
        ("- 1", "is a mapping"),
        ("a: 1\na: 2", "the key 'a' stands there twice (line 2)"),
        ("a: [1\nb: 2", "line"),
        ("a: &x [1]\nb: *x", "aliases are not read"),
        ("a: !!python/object/apply:os.system [echo]", "the tag tag:yaml.org,2002:python"),
        ("a: !mine 1", "the tag !mine is not read"),
        ("1: 2", "a key is a text"),
        ("? [1]\n: 2", "a key is a text"),
        ("a: " + "[" * 60 + "]" * 60, "nested deeper"),
        ("a: " + "[" * 5000, "nested deeper"),
        ("a: \x00", "is not YAML"),
        ("a: " + "x" * 1_000_001, "has more than 1000000 characters"),
        ("---\na: 1\n---\nb: 2", "is not YAML of this kind"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_bad_yaml_is_refused(tmp_path, text, problem):
    assert problem in str(refused(tmp_path, text))


def test_an_alias_bomb_is_harmless(tmp_path):
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert "aliases are not read" in str(refused(tmp_path, "\n".join(lines)))


def test_errors_name_the_right_line(tmp_path):
    lines = EXAMPLE.read_text("utf-8").splitlines()
    number = next(number for number, line in enumerate(lines) if line.strip().startswith("total: answer.sum"))
    lines[number] = "  total: answer.sum +"
    assert f"(bad.yaml, line {number + 1})" in str(refused(tmp_path, "\n".join(lines)))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt": "{{ nothing }}"}, "prompt"),
        ({"prompt": ["fine", "{{ parts[9] }}"]}, "prompt.1"),
        ({"update": {"total": "parts[9]"}}, "update.total"),
        ({"update": {"total": "answer.sum"}}, "update.total"),
        ({"until": "step >= 1 and parts[9]"}, "until"),
        ({"check": {"step": "answer.x"}}, "check.step"),
        ({"check": {"end": "nothing"}}, "check.end"),
    ],
)
def test_an_expression_that_fails_on_the_way_is_named_with_its_step(tmp_path, changes, field):
    with pytest.raises(BadInput, match=rf"^{re.escape(field)}: at step \d+: ") as caught:
        Run(Scripted(["1"]), vote=First()).execute_sync(made(tmp_path, changes))
    assert caught.value.field == field


@pytest.mark.parametrize(
    "text",
    [
        "''.__class__.__mro__",
        "parts.__init__.__globals__",
        "data.__class__",
        "step.real",
        "cycler.__init__",
        "self._TemplateReference__context",
    ],
)
def test_expressions_do_not_reach_into_python(tmp_path, text):
    for changes in ({"prompt": f"{{{{ {text} }}}}"}, {"update": {"total": text}}, {"until": text}, {"check": {"step": text}}):
        with pytest.raises(BadInput):
            Run(Scripted(["1"]), vote=First()).execute_sync(made(tmp_path, changes))


# The published schema.


def test_the_shipped_json_schema_is_current():
    assert SCHEMA.read_text("utf-8") == schema_text(), "run python -m keystep.run.procedure_file"


def test_the_json_schema_takes_what_is_taken_and_refuses_what_is_refused():
    schema = json.loads(schema_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(yaml.safe_load(EXAMPLE.read_text("utf-8")))
    validator.validate({**COUNT, "update": {"total": 5}, "check": {"step": True}})
    for bad in ({"max_steps": 0}, {"untill": "x"}, {"prompt": []}, {"answer": {"regexp": "x"}}, {"flags": {"max_tokens": "5"}}):
        assert not validator.is_valid({**COUNT, **bad})


# Whatever stands in a file, there is a procedure or one sentence.

NAMES = st.text(max_size=6) | st.sampled_from(["regex", "schema", "role", "step"])
TEXTS = st.text(max_size=12) | st.sampled_from(["{{ x }}", "a.b", "step", "(", "\ud800"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
PLACES = [
    ["name"], ["state"], ["state", "total"], ["prompt"], ["answer"], ["answer", "regex"], ["answer", "type"], ["answer", "types"],
    ["answer", "schema"], ["update"], ["update", "total"], ["until"], ["max_steps"], ["key"], ["flags"], ["flags", "max_tokens"],
    ["flags", "mismatch"], ["flags", "min_logprob"], ["sampling"], ["sampling", "temperature"], ["sampling", "stop"], ["check"],
    ["check", "step"], ["check", "end"], ["data"], ["extra"],
]  # fmt: skip


def read_or_refused(path: Path, given: dict[str, Any] | None = None) -> None:
    """Read a file and begin its run; nothing but BadInput with a field and a mend may come of it."""
    try:
        procedure = from_file(path, given)
    except BadInput as error:
        assert error.field and error.mend
        return
    try:
        state = procedure.start()
        procedure.prompt(state)
        state = procedure.update(state, procedure.parse("12", state))
        procedure.done(state)
        json.dumps(procedure.identity(), allow_nan=False)
    except (BadInput, Flag):
        pass


@settings(max_examples=250)
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_any_value_in_any_field(place, value):
    form: dict[str, Any] = {**copy.deepcopy(COUNT), "flags": {}, "sampling": {}, "check": {}}
    *way, last = place
    part = form
    for name in way:
        part = part[name]
    part[last] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.yaml"
        path.write_text(json.dumps(form), "utf-8")
        read_or_refused(path)


@settings(max_examples=150)
@given(st.data())
def test_any_damage_to_the_text(data):
    text = EXAMPLE.read_text("utf-8")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for _ in range(data.draw(st.integers(1, 3))):
        at, cut = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 20))
        put = data.draw(st.text(max_size=5) | st.sampled_from(["&a ", "*a", "!!x ", "\t", ": ", "- ", "{", "'", "\x00"]))
        text = text[:at] + put + text[at + cut :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        read_or_refused(path)


@settings(max_examples=150)
@given(
    kind=st.sampled_from([".csv", ".tsv", ".jsonl", ".json", ".txt", ".odd"]),
    content=st.binary(max_size=60) | st.text(alphabet='a,"\n\t{}[]:1\r', max_size=60).map(str.encode),
)
def test_any_data_file(kind, content):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"r{kind}").write_bytes(content)
        path = Path(folder) / "p.yaml"
        path.write_text(json.dumps({**COUNT, "data": f"r{kind}", "prompt": "{{ data }}"}), "utf-8")
        read_or_refused(path)


@settings(max_examples=150)
@given(st.text(max_size=30) | st.text(alphabet="total=[]{}:,'\"1&*! ", max_size=20).map("total={}".format))
def test_any_setting(text):
    try:
        name, value = parse_setting(text)
    except BadInput as error:
        assert error.field and error.mend
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.yaml"
        path.write_text(json.dumps(COUNT), "utf-8")
        read_or_refused(path, {name: value})


def test_speculation_changes_nothing(tmp_path):
    async def follow(speculate: bool) -> Any:
        return await Run(Worker([0.8, 0.1], pause=True), vote=AheadBy(3), seed=3, speculate=speculate).execute(from_file(EXAMPLE))

    one, other = asyncio.run(follow(False)), asyncio.run(follow(True))
    assert one.result == other.result and one.correct
