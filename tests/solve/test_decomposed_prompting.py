"""Decomposed Prompting: the grammar, the operators, the handlers, limits, program files, and the sheet's known answers."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path

import pytest
from case_decomposed_prompting import CASE, says
from hypothesis import given
from hypothesis import strategies as st
from solver_case import text_of
from worker import Scripted

from keystep.errors import BadInput, KeystepError, MissingExtra, StepFailed, Undecided
from keystep.plan import Plan
from keystep.run import Budget, Journal, Run, Sampling
from keystep.run.flags import Flag
from keystep.run.skills import PromptSkill, ToolSkill
from keystep.run.vote import First
from keystep.skill import Skill
from keystep.solve.decomposed_prompting.decomposer import Decomposer
from keystep.solve.decomposed_prompting.grammar import combined, line_of, post, questions, read_line
from keystep.solve.decomposed_prompting.handlers import Limits, PromptHandler, SkillHandler, every, tool
from keystep.solve.decomposed_prompting.program import Program, built, program_text, read_form
from keystep.solve.decomposed_prompting.scoring import as_set, drop
from keystep.solve.decomposed_prompting.solver import DecomposedPrompting, answered, details
from keystep.solve.solver import judged, solver, task_of

FRAMES = {file: DecomposedPrompting().prompt_text(file) for file in DecomposedPrompting.prompt_files}


def solved(made, question, lm, **inputs):
    run = Run(lm, vote=First(cap=3), sampling=Sampling())
    return run.solve_sync(made, task_of({"question": question, **inputs}))


def scripted(answer):
    return Scripted(lambda request, index: answer(text_of(request.prompt)))


def tree_of(program, question, lm=None, **inputs):
    """The tree of a question, by a program made in Python."""

    class Solving:
        async def solve(self, task, ctx):
            return await answered(program, task, ctx)

    return solved(Solving(), question, lm or Scripted(["nothing"]), **inputs)


def lines(*texts):
    """A model that emits these lines, one after the other."""
    return scripted(lambda prompt: texts[prompt.count("\nQS: ")])


def decomposer(name="main", **options):
    return Decomposer(name, FRAMES["decomposer.txt"], **options)


def program(*handlers, **options):
    return Program([decomposer(), *handlers], "main", **options)


# The grammar.

NAMES = {"qa", "split"}


@pytest.mark.parametrize(
    ("text", "answers", "said"),
    [
        ("[EOQ]", [], "the end before the first step"),
        ("split the words", [1], "not a step"),
        ("[split]x [", [1], None),
        ("[nobody] Who?", [1], "no such handler"),
        ("[split]", [1], "no question"),
        ("[ split ] x", [1], "not a step"),
        ("(projects) [qa] #1", [[1]], "no such operator"),
        ("(project_sorted) [qa] #1", [[1]], "no such operator"),
        ("(project) #1", [[1]], "not a step"),
        ("[qa] #2", [1], "refers to a step that is not there"),
        ("[qa] #0", [1], "refers to a step that is not there"),
        ("[qa] #" + "9" * 400, [1], "refers to a step that is not there"),
        ("(project) [qa] nothing", [[1]], "goes through one step, and its question has none or several"),
        ("(project) [qa] #1 #2", [[1], [2]], "goes through one step, and its question has none or several"),
        ("(project) [qa] #1", [{"a": 1}], "goes through what is no list"),
        ("(project) [qa] #1", [5], "goes through what is no list"),
        ("(projectValues) [qa] #1", [[1, 2]], "goes through what are no pairs"),
        ("(filterKeys) [qa] #1", ["text"], "goes through what is no list"),
        ("(filter(#3)) [qa] #1 #2", [[1], [2], [3]], "goes through a step that its question does not have"),
        ("(project(#1)) [qa] #1", [[1]], "goes through a step that its question does not have"),
        ("(select(#1)) [qa] #1", [[1]], "select goes through no list"),
        ("(filter) [qa] #1 #2", [[1], [2]], "goes through one step, and its question has none or several"),
    ],
)
def test_lines_that_do_not_fit_are_flagged(text, answers, said):
    if said is None:
        assert read_line(text, NAMES, answers).text == "x ["
        return
    with pytest.raises(Flag, match=re.escape(said)):
        read_line(text, NAMES, answers)


def test_a_line_is_the_first_one_without_its_label():
    assert line_of("  \n QS: [qa] Who?\nA: me\nQS: [EOQ]", "QS:") == "[qa] Who?"
    with pytest.raises(Flag, match="empty"):
        line_of(" QS: \n", "QS:")
    assert read_line("[EOQ]", NAMES, [1]) is None


def test_references_are_json_in_select_and_raw_in_project():
    answers = ["Musa", ["Musa", 'say "hi"', 3], None]
    assert questions(read_line("[qa] in #1?", NAMES, answers), answers) == ['in "Musa"?']
    assert questions(read_line("[qa] #2 and #3", NAMES, answers), answers) == ['["Musa", "say \\"hi\\"", 3] and null']
    line = read_line('(project) [qa] in "#2"?', NAMES, answers)
    assert questions(line, answers) == ['in "Musa"?', 'in "say "hi""?', 'in "3"?']
    assert combined(line, answers, ["a", "b", "c"]) == [["Musa", "a"], ['say "hi"', "b"], [3, "c"]]


def test_a_number_of_several_digits_is_one_reference():
    """The published code reads #12 as #1 and a 2."""
    answers = [f"answer {number}" for number in range(1, 13)]
    line = read_line("[qa] #12, #1, #11", NAMES, answers)
    assert questions(line, answers) == ['"answer 12", "answer 1", "answer 11"'] and line.references() == [1, 11, 12]


def test_what_an_answer_says_is_no_reference():
    answers = ["#2 and #1", ["#1"], "x"]
    assert questions(read_line("[qa] #1 #3", NAMES, answers), answers) == ['"#2 and #1" "x"']
    assert questions(read_line("(project) [qa] #2", NAMES, answers), answers) == ["#1"]


@pytest.mark.parametrize(
    ("text", "first", "asked", "given", "found"),
    [
        ("(project) [qa] #1?", ["a", "b"], ["a?", "b?"], [1, 2], [["a", 1], ["b", 2]]),
        ("(project_values) [qa] #1?", ["a", "b"], ["a?", "b?"], [1, 2], [1, 2]),
        ("(project_keys) [qa] #1?", ["a", "b"], ["a?", "b?"], [1, 2], ["a", "b"]),
        ("(project_values_flat_unique) [qa] #1?", ["a", "b"], ["a?", "b?"], [[1, 2], [2, [3]]], [1, 2, 3]),
        ("(project_values_flat) [qa] #1?", ["a", "b"], ["a?", "b?"], [[1, 2], [2, [3]]], [1, 2, 2, 3]),
        ("(project) [qa] #1?", [], [], [], []),
        ("(project_values) [qa] #1?", "one", ["one?"], [1], [1]),
        ("(projectValues) [qa] #1?", [["k", "v"], ["l", 2]], ["v?", "2?"], ["x", "y"], [["k", "x"], ["l", "y"]]),
        ("(projectKeys) [qa] #1?", [["k", "v"], ["l", 2]], ["k?", "l?"], ["x", "y"], [["x", "v"], ["y", 2]]),
        ("(projectKeys_keys) [qa] #1?", [["k", "v"]], ["k?"], ["x"], ["x"]),
        ("(filter) [qa] #1?", ["a", "b", "c", "d", "e"], ["a?", "b?", "c?", "d?", "e?"], ["Yes", True, 1, "no", None], ["a", "b", "c"]),
        ("(filterValues) [qa] #1?", [["k", "v"], ["l", 2]], ["v?", "2?"], ["no", "yes"], [["l", 2]]),
        ("(filterKeys_values) [qa] #1?", [["k", "v"], ["l", 2]], ["k?", "l?"], ["TRUE", "no"], ["v"]),
    ],
)
def test_operators(text, first, asked, given, found):
    line = read_line(text, NAMES, [first])
    assert questions(line, [first]) == asked and combined(line, [first], given) == found


def test_a_filter_over_one_of_two_lists():
    answers = [["a", "b"], ["b"]]
    assert read_line("(filter(#1)_flat_unique) [qa] Is #1 in #2?", NAMES, answers).after == ("flat", "unique")
    line = read_line("(filter(#1)) [qa] Is #1 in #2?", NAMES, answers)
    assert questions(line, answers) == ['Is a in ["b"]?', 'Is b in ["b"]?'] and combined(line, answers, ["no", "yes"]) == ["b"]


def test_paragraphs_of_the_context():
    line = read_line("(project_values) [qa] Who, by #C?", NAMES, [], paragraphs=2)
    assert questions(line, [], 2) == ["Who, by PARA_1?", "Who, by PARA_2?"] and line.references() == []
    assert questions(read_line("[qa] #C", NAMES, [], 2), [], 2) == ['["PARA_1", "PARA_2"]']
    assert questions(read_line("(project) [qa] #C", NAMES, []), []) == []


def test_post_operations_of_the_sheet():
    value = [[1, [2, 3]], [3, 4], [3, 4]]
    assert post("flat", value) == [1, 2, 3, 3, 4, 3, 4]
    assert post("unique", post("flat", value)) == [1, 2, 3, 4]
    assert post("unique", value) == [[1, [2, 3]], [3, 4]]
    assert post("values", [["a", [1]], ["b", [2]]]) == [[1], [2]] and post("keys", [["a", 1], ["b", 2]]) == ["a", "b"]
    assert post("unique", [1, True, 1.0, "1"]) == [1, True, 1.0, "1"]  # by JSON text
    for name, wrong in (("keys", [1]), ("values", [[1]]), ("flat", "text")):
        with pytest.raises(StepFailed, match=f"post-operation {name}"):
            post(name, wrong)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4), lambda inner: st.lists(inner, max_size=3), max_leaves=6
)


@given(st.lists(VALUES, max_size=5))
def test_flat_and_unique_keep_what_they_should(value):
    flat = post("flat", value)
    assert not any(isinstance(part, list) for part in flat) and post("flat", flat) == flat
    once = post("unique", value)
    texts = [json.dumps(part) for part in value]
    assert [json.dumps(part) for part in once] == list(dict.fromkeys(texts)) and post("unique", once) == once


@given(
    st.text(max_size=40) | st.from_regex(r"(\([a-zA-Z_]{0,12}\) ?)?\[[a-z]{0,5}\] .{0,10}(#[0-9]{1,3})?", fullmatch=True), st.lists(VALUES)
)
def test_any_text_is_a_line_or_flagged(text, answers):
    try:
        line = read_line(line_of(text, "QS:"), NAMES, answers, 2)
    except Flag:
        return
    if line is not None:
        asked = questions(line, answers, 2)
        try:
            combined(line, answers, [None] * len(asked), 2)
        except StepFailed as error:
            assert line.after and "post-operation" in str(error)


# Handlers.


def handler(**options):
    return PromptHandler("qa", FRAMES["handler.txt"], **options)


@pytest.mark.parametrize(
    ("options", "text", "value"),
    [
        ({}, ' A: ["a", 1] ', ["a", 1]),
        ({}, "Paris\nQ: next", "Paris"),
        ({}, '"12"', "12"),
        ({}, "12", 12),
        ({}, "[(M, 1), (u, 2)]", "[(M, 1), (u, 2)]"),
        ({}, "NaN", "NaN"),
        ({"empty": True}, "  ", ""),
        ({"answer": r"answer is (.*)\."}, "First 3.\nThe answer is 4.\nThe answer is [5].", [5]),
        ({"answer": r"(?P<a>\d) (?P<b>\d)"}, "1 2", {"a": "1", "b": "2"}),
        ({"gives": "list"}, "[]", []),
        ({"gives": {"type": "integer"}}, "7", 7),
    ],
)
def test_replies(options, text, value):
    assert handler(**options).read(text) == value


@pytest.mark.parametrize(
    ("options", "text", "said"),
    [
        ({}, " \n", "empty"),
        ({}, "A:", "empty"),
        ({}, "```json", "a code fence"),
        ({"answer": "answer is (.*)"}, "No idea", "no match"),
        ({"gives": "list"}, '["a", ', "not by the schema"),
        ({"gives": "text"}, "12", "not by the schema"),
        ({"gives": "pairs"}, "[[1, 2], [3]]", "not by the schema"),
        ({"gives": "number"}, "seven", "not by the schema"),
        ({"gives": "yes or no"}, "perhaps", "not by the schema"),
    ],
)
def test_replies_that_are_drawn_again(options, text, said):
    with pytest.raises(Flag, match=said):
        handler(**options).read(text)


def test_handlers_of_every_kind_in_one_program():
    """A prompt, a decomposer below it, a function, a skill of keystep's, and a skill of one's own with a model of its own."""

    class Small(Skill):
        async def call(self, inputs, ctx):
            return (await ctx.ask(f"double {inputs['question']}", lm=Scripted(["42"]), parse=int)).value

    made = Program(
        [
            decomposer(uses=["inner", "small", "add", "shout", "note"]),
            decomposer("inner", uses=["qa"]),
            handler(),
            tool("add", lambda question: sum(json.loads(question))),
            SkillHandler(Small("small")),
            SkillHandler(ToolSkill("shout", lambda question, context: f"{question.upper()} {context}")),
            SkillHandler(PromptSkill("note", "Note this: {{ inputs.question }}")),
        ],
        "main",
    )

    def says(prompt):
        if prompt.startswith("QC: all"):
            texts = ["[inner] go", "[small] 21", "[add] [#2, 1]", "[shout] #3", "[note] #4", "[EOQ]"]
            return texts[prompt.count("\nQS: ")]
        if prompt.startswith("QC: go"):
            return "[EOQ]" if "\nA:" in prompt else "[qa] the inner question"
        return "noted" if prompt.startswith("Note this: ") else "fine"

    lm = scripted(says)
    tree = tree_of(made, "all", lm, context="a text")
    assert [line["answer"] for line in tree["lines"]] == ["fine", 42, 43, "43 ['a text']", "noted"]
    found = details(tree)
    assert found["calls"] == {"main": 6, "inner": 2, "qa": 1, "small": 1, "add": 1, "shout": 1, "note": 1}
    assert found["model_calls"] == 6 + 2 + 1 + 1 and Plan.model_validate(found["plan"]).order() == ["1", "2", "3", "4", "5"]
    assert [sorted(step.first()) for step in Plan.model_validate(found["plan"]).steps] == [[], [], ["2"], ["3"], ["4"]]


def test_a_dearer_handler_is_tried_where_the_cheaper_fails():
    cheap = tool("cheap", lambda question: 1 // 0, can=["work"])
    dear = tool("dear", lambda question: "done", can=["work"], cost=5.0)
    tree = tree_of(program(cheap, dear), "q", lines("[work] it", "[EOQ]"))
    assert tree["answer"] == "done" and tree["lines"][0]["calls"][0]["handler"] == "dear"


def test_what_fails_below_is_said_as_it_is():
    def broken(question):
        raise ValueError("no tool for this")

    with pytest.raises(StepFailed, match="no tool for this"):
        tree_of(program(tool("work", broken)), "q", lines("[work] it"))
    inner = decomposer("inner")
    with pytest.raises(Undecided, match=r"q1/main/1/q1/inner/0: none of 3 samples was a valid answer: not a step"):
        tree_of(program(inner), "q", scripted(lambda prompt: "[inner] go" if prompt.startswith("QC: q") else "nonsense"))


def test_a_flagged_line_is_drawn_again():
    lm = Scripted(lambda request, index: ["nonsense", "[work] it"][index] if "\nA:" not in str(request.prompt) else "[EOQ]")
    assert tree_of(program(tool("work", lambda question: "done")), "q", lm)["answer"] == "done"


def test_the_decomposer_may_use_what_it_is_told_to():
    with pytest.raises(BadInput, match=r"handler main.uses: is no handler \(got 'nobody'\)"):
        Program([decomposer(uses=["nobody"])], "main")
    made = Program([decomposer(uses=["a"]), tool("a", len), tool("b", len)], "main")
    with pytest.raises(Undecided, match="no such handler"):
        tree_of(made, "q", lines("[b] it"))
    with pytest.raises(BadInput, match="main: is no handler"):
        Program([tool("a", len)], "main")
    with pytest.raises(BadInput, match="a handler's name has no blanks"):
        tool("two words", len)


def test_pointers_choose_the_paragraphs_that_are_shown():
    lm = scripted(lambda prompt: ["(project_values) [qa] Say #C", "[EOQ]"][prompt.count("\nQS: ")] if "QC:" in prompt else prompt[:1])
    tree = tree_of(program(handler(context=True)), "q", lm, context=["xa", "yb"])
    assert tree["answer"] == ["x", "y"]
    with pytest.raises(BadInput, match=r"inputs.context: is a text or a list of texts"):
        tree_of(program(), "q", context=[1])


# Limits.


def endless(prompt):
    return "[main] again"


def test_depth_steps_calls_and_tokens_end_a_question():
    with pytest.raises(StepFailed, match=r"set max_depth: decomposers call one another deeper than that \(got 3\)"):
        tree_of(program(limits=Limits(depth=3)), "q", scripted(endless))
    counting = tool("work", lambda question: len(question))
    tree = tree_of(program(counting, limits=Limits(steps=4)), "q", scripted(lambda prompt: "[work] it"))
    assert len(tree["lines"]) == tree["calls"] == 4 and tree["answer"] == 2  # an end of its own
    with pytest.raises(StepFailed, match=r"set max_calls: the question takes more than it may \(got 7\)"):
        tree_of(program(counting, limits=Limits(calls=7)), "q", scripted(lambda prompt: "[work] it"))
    many = lines("[work] it", "(project) [list] #1", "[EOQ]")
    wide = [tool("work", lambda question: list(range(500))), tool("list", lambda question: 1)]
    with pytest.raises(StepFailed, match="set max_calls"):
        tree_of(program(*wide, limits=Limits(calls=100)), "q", many)
    with pytest.raises(StepFailed, match=r"set max_tokens: the question takes more than it may \(got 50\)"):
        tree_of(program(counting, limits=Limits(tokens=50)), "q", scripted(lambda prompt: "[work] it"))
    with pytest.raises(BadInput, match="set max_depth: is at least 1"):
        DecomposedPrompting(max_depth=0)


def test_a_limit_holds_for_a_resumed_question_too():
    """31 calls are needed; stopped midway and resumed, 30 are too few all the same."""
    for calls, fits in ((31, True), (30, False)):
        journal, task = Journal(), task_of({"question": CASE.question})
        made = DecomposedPrompting(program="letters", max_calls=calls)
        with pytest.raises(KeystepError, match="budget"):
            Run(CASE.model(), vote=First(), journal=journal, id="r", budget=Budget(calls=15)).solve_sync(made, task)
        again = Run(CASE.model(), vote=First(), journal=journal, id="r")
        if fits:
            assert again.solve_sync(made, task).answer == CASE.answer
        else:
            with pytest.raises(StepFailed, match="max_calls"):
                again.solve_sync(made, task)
        journal.close()


# Known answers.


def test_letters_of_five_words():
    lm = CASE.model()
    found = solved(DecomposedPrompting(program="letters"), CASE.question, lm)
    assert found.answer == "s i h b z" and lm.drawn == 31 == found.details["model_calls"]
    assert found.details["calls"] == {"decompose": 4, "split": 6, "str_position": 15, "arr_position": 5, "merge": 1}
    plan = Plan.model_validate(found.details["plan"])
    assert [step.skill for step in plan.steps] == ["split", "str_position", "merge"] and plan.steps[2].first() == {"2"}


@pytest.mark.parametrize("words", [1, 2, 7])
def test_letters_take_six_and_five_calls_a_word(words):
    question = CASE.question.replace("Musa Haiying Schmidt Robinson Afzal", " ".join(["Turing"] * words))
    assert solved(DecomposedPrompting(program="letters"), question, CASE.model()).details["model_calls"] == 6 + 5 * words


NUMBERED = re.compile(r"\d+\. ")


def reverses(prompt):
    """A model that plays the decomposer, remove_numbers, cot and join of the shipped program for list reversal."""
    if not prompt.endswith("QS:"):
        question = re.findall(r"^Q: (.*)\nA:$", prompt, re.MULTILINE)[-1]
        texts = re.findall(r'"([^"]*)"', question)
        if question.startswith("Remove"):
            return json.dumps(NUMBERED.sub("", texts[0]))
        if question.startswith("Reverse"):
            return f'So the reversed sequence is "{", ".join(texts[0].split(", ")[::-1])}".'
        return json.dumps(", ".join(texts))
    query, *done = re.split(r"\nQS:", prompt[prompt.rindex("QC: ") + 4 :])
    items = re.findall(r'"([^"]*)"', query)[0].split(", ")
    half = len(items) // 2
    numbered = [f"{number}. {item}" for number, item in enumerate(items, 1)]
    if len(items) < 4:
        said = [f'[extract] They are few: "{", ".join(items)}".', "[cot] Reverse the sequence #1."]
    else:
        said = [
            f'[extract] The items are "{", ".join(numbered)}". It is "{", ".join(part)}".' for part in (numbered[:half], numbered[half:])
        ]
        said += [f"[remove_numbers] Remove the numbers from #{step}." for step in (1, 2)]
        said += [f"[reverse] Reverse the sequence #{step}." for step in (3, 4)] + ["[join] #6 #5"]
    return [*said, "[EOQ]"][len(done) - 1]


@pytest.mark.parametrize(("items", "calls"), [(1, 4), (3, 4), (4, 19), (5, 19), (6, 19), (7, 34), (8, 49), (10, 49)])
def test_calls_of_recursive_reversal(items, calls):
    words = [f"item{number}" for number in range(items)]
    lm = scripted(reverses)
    found = solved(DecomposedPrompting(program="reversal"), f'Reverse the sequence "{", ".join(words)}".', lm)
    assert found.answer == ", ".join(words[::-1]) and lm.drawn == calls == found.details["model_calls"]
    assert max(node["question"].count(",") for node in every(found.details["tree"]) if node["handler"] == "cot") < 3


def test_the_metric_of_drop():
    assert drop(["a", "b"], ["b", "a"]) == (1, 1) and drop(["a", "a"], ["a"]) == (0, 0.5)
    assert drop("12", "12.0") == (1, 1) and drop("John Smith", "Smith") == (0, 0.67) and drop("3 cats", "4 cats") == (0, 0)
    assert drop("a a g", "g")[0] == 1.0  # so letters are compared exactly
    assert not DecomposedPrompting(program="letters").right("a a g", "g")


def test_answers_that_are_lists_are_compared_as_sets():
    made = DecomposedPrompting(program="commaqa")
    assert made.right('["B", "a"]', '["a", "b"]') and not made.right('["a"]', '["a", "b"]') and made.right("a", '["a"]')
    assert as_set("[]", "[]") and not as_set("[]", '["a"]')


# Retrieval.


@pytest.fixture
def library(tmp_path):
    (tmp_path / "texts/deeper").mkdir(parents=True)
    (tmp_path / "texts/rivers.txt").write_text("The Danube flows through Vienna.\n\nThe Rhine flows through Basel.\n")
    (tmp_path / "texts/deeper/towns.md").write_text("Vienna is the capital of Austria.\n\n\n\nBasel is a town of Switzerland.")
    (tmp_path / "texts/notes.csv").write_text("Vienna,not read")
    return tmp_path


LIBRARY = """
main: main
handlers:
  main: {kind: decomposer}
  find: {kind: retriever, folder: texts, top: 1}
  read: {kind: prompt, retrieve: {folder: texts, top: 1}}
  all: {kind: prompt, pooled: true}
"""


def test_retrieval_and_reading(library):
    made = built(read_form(LIBRARY, "p.yaml"), library, FRAMES, Limits())
    prompts = []

    def says(prompt):
        if prompt.startswith("QC:"):
            texts = ["[find] Which river flows through Vienna?", "[read] Basel, a town of what?", "[all] Which two?", "[EOQ]"]
            return texts[prompt.count("\nQS: ")]
        prompts.append(prompt)
        return "fine"

    tree = tree_of(made, "q", scripted(says))
    river, town = "rivers: The Danube flows through Vienna.", "towns: Basel is a town of Switzerland."
    assert tree["lines"][0]["answer"] == [river] and tree["passages"] == [river, town]
    assert prompts[0].startswith(town) and "Danube" not in prompts[0] and prompts[1].startswith(f"{river}\n\n{town}\n\nQ: Which two?")
    assert made.handlers[1].passages.best("nothing of this kind", 3) == [] and made.handlers[1].passages.best("", 3) == []
    best = made.handlers[1].passages.best("flows through Basel Switzerland", 10)
    assert best[0] == town and len(best) == 3


def test_folders_that_cannot_be_searched(tmp_path):
    (tmp_path / "texts").mkdir()
    with pytest.raises(BadInput, match=r"folder: has no text in \.txt or \.md files"):
        built(read_form(LIBRARY, "p.yaml"), tmp_path, FRAMES, Limits())
    (tmp_path / "texts/a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="folder: cannot be read"):
        built(read_form(LIBRARY, "p.yaml"), tmp_path, FRAMES, Limits())


def test_retrieval_without_its_library(library, monkeypatch):
    from keystep.solve.decomposed_prompting import retrieval

    retrieval._index.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
    with pytest.raises(MissingExtra, match=r"pip install 'keystep\[solve\]'"):
        built(read_form(LIBRARY, "p.yaml"), library, FRAMES, Limits())


# Program files.


@pytest.mark.parametrize("name", ["questions", "letters", "reversal", "commaqa"])
def test_shipped_programs_load(name):
    program = DecomposedPrompting(program=name).load()
    assert isinstance(program.library.fitting(program.main)[0], Decomposer)
    text, _ = program_text(name)
    # Every line of the examples can be emitted, in its place.
    for main, form in read_form(text, name).handlers.items():
        for example in form.examples.split("\n\n") if form.kind == "decomposer" else []:
            answers = []
            for line, answer in re.findall(r"^QS: (.*)(?:\nA: (.*))?$", example, re.MULTILINE):
                assert (read_line(line, set(form.uses or read_form(text, name).handlers), answers) is None) == (line == "[EOQ]"), main
                answers.append(json.loads(answer) if answer else None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("main: x", r"handlers: Field required"),
        ("main: x\nhandlers: {}", "handlers: Dictionary should have at least 1 item"),
        ("main: y\nhandlers: {x: {kind: calculator}}", r"main: is no handler \(got 'y'\)"),
        ("main: x\nhandlers:\n  x: {kind: robot}", r"handlers.x.kind: .* \(p.yaml, line 3\)"),
        (
            "main: x\nhandlers:\n  x:\n    kind: tool\n    examples: a",
            r"handlers.x: is not for a tool \(p.yaml, line 5\) \(got 'examples'\)",
        ),
        ("main: x\nhandlers: {x: {kind: tool}}", "handlers.x: a tool has a match or a value"),
        ("main: x\nhandlers: {x: {kind: tool, match: '('}}", "handler x.match: is not a regular expression"),
        ("main: x\nhandlers: {x: {kind: tool, value: '{{'}}", "handler x.value"),
        ("main: x\nhandlers: {x: {kind: retriever}}", "handlers.x.folder: is missing"),
        ("main: x\nhandlers: {x: {kind: prompt, gives: lists}}", r"handler x.gives: is no type \(got 'lists'\)"),
        ("main: x\nhandlers: {x: {kind: prompt, gives: {type: 7}}}", "handler x.gives"),
        ("main: x\nhandlers: {x: {kind: prompt, frame: '{{ open'}}", "handler x.frame"),
        ("main: x\nhandlers: {x: {kind: prompt, model: nosuch}}", "model: no such model"),
        ("main: x\nhandlers: {x y: {kind: calculator}}", "a handler's name has no blanks"),
        ("main: [", "p.yaml: is not YAML of this kind"),
    ],
)
def test_program_files_that_cannot_be_used(text, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text(text)
    with pytest.raises(BadInput, match=said):
        solver("decomposed-prompting", {"program": "p.yaml"}).load()


def test_programs_that_are_not_there():
    for name in ("nosuch", "nosuch.yaml", "../letters", "."):
        with pytest.raises(BadInput, match="set program: "):
            solver("decomposed-prompting", {"program": name})


def test_tools_without_code(tmp_path):
    (tmp_path / "p.yaml").write_text("""
main: main
score: exact
handlers:
  main: {kind: decomposer}
  pick: {kind: tool, match: '"([^"]*)"'}
  swap: {kind: tool, match: '(?P<a>\\w+) and (?P<b>\\w+)', value: 'match.b ~ " and " ~ match.a'}
  long: {kind: tool, value: 'question | length'}
  sum: {kind: calculator}
""")
    made = DecomposedPrompting(program=str(tmp_path / "p.yaml"))
    script = lines(
        '[pick] It is "x" or "[1, 2]"', "[swap] you and me", "[long] four", "[sum] What is (2 + 3) * #3?", "[sum] 1,000 / 8", "[EOQ]"
    )
    found = solved(made, "q", script)
    assert [line["answer"] for line in found.details["tree"]["lines"]] == [[1, 2], "me and you", 4, 20, 125.0]
    with pytest.raises(StepFailed, match=r"handler pick.match: does not match the question"):
        solved(made, "q", lines("[pick] nothing"))
    with pytest.raises(StepFailed, match="has nothing to calculate"):
        solved(made, "q", lines("[sum] nothing"))
    with pytest.raises(KeystepError, match="division"):
        solved(made, "q", lines("[sum] 1 / 0"))


def test_the_program_of_the_page(tmp_path):
    page = (Path(__file__).parents[2] / "docs/methods/decomposed-prompting.md").read_text("utf-8")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.md").write_text("Danube and Wien flow through Vienna.")
    [written] = [block for block in page.split("```") if block.lstrip().startswith("main:")]
    (tmp_path / "p.yaml").write_text(written)

    def answers(prompt):
        if "QC:" not in prompt:
            assert "Danube and Wien flow" in prompt
            return '["Danube", "Wien"]'
        asked = prompt.rpartition("QC:")[2].count("QS: [")
        return ["[find] Which rivers flow through Vienna?", "[count] #1", "[EOQ]"][asked]

    assert solved(DecomposedPrompting(program=str(tmp_path / "p.yaml")), "How many?", scripted(answers)).answer == "2"


def test_a_changed_program_or_folder_is_another_work(library):
    (library / "p.yaml").write_text(LIBRARY)
    made = DecomposedPrompting(program=str(library / "p.yaml"))
    before = made.identity()
    (library / "texts/rivers.txt").write_text("Other rivers.")
    changed = made.identity()
    assert changed != before
    (library / "p.yaml").write_text(LIBRARY.replace("top: 1", "top: 2"))
    assert made.identity() != changed


# The provided files: a symbolic handler for everything has to answer all of them.

DATA = os.environ.get("KEYSTEP_DECOMPOSED_PROMPTING_DATA")


def test_published_files(tmp_path):
    """With a passage the answer is a list of spans, in any order; without one it is the span."""
    from keystep.solve.questions import questions

    pairs = [{"question": "Who?", "answer": {"spans": ["b", "a"]}}, {"question": "Where?", "answer": {"spans": ["c"]}}]
    file = tmp_path / "part.json"
    file.write_text(json.dumps({"0": {"passage": " All are. ", "qa_pairs": pairs}, "1": {"qa_pairs": pairs[1:]}}))
    rows = questions("decomp", file)
    assert [row.get("context") for row in rows] == ["All are.", "All are.", None]
    assert [row["answer"] for row in rows] == [["b", "a"], ["c"], "c"] and len({row["id"] for row in rows}) == 3
    made = DecomposedPrompting(program="commaqa")
    assert judged(made, task_of(rows[0]), '["a", "b"]') and not judged(made, task_of(rows[0]), '["a"]')
    assert judged(made, task_of(rows[1]), '["c"]') and judged(made, task_of(rows[2]), "c")
    file.write_text('{"0": {"qa_pairs": [{"question": "Who?"}]}}')
    with pytest.raises(BadInput, match="cannot be read as decomp"):
        questions("decomp", file)


WITH_DATA = pytest.mark.skipif(DATA is None, reason="KEYSTEP_DECOMPOSED_PROMPTING_DATA names no folder")


def all_right(program, lm, file, share=1):
    from keystep.run import Many
    from keystep.solve.questions import questions
    from keystep.solve.solver import Solving

    made = DecomposedPrompting(program=program)
    rows = questions("decomp", Path(DATA or ".") / file)[::share]
    run = Run(lm, vote=First(cap=2), sampling=Sampling())
    outcome = asyncio.run(Many(lambda row: Solving(made, task_of(row)), rows).execute(run))
    assert outcome.correct is True, list(run.journal.row_lines(run.id, "failed", limit=3))
    run.close()
    return outcome


@WITH_DATA
@pytest.mark.parametrize("words", [3, 4, 5])
@pytest.mark.parametrize("glue", ["space", "semic"])
def test_the_letter_files(words, glue):
    outcome = all_right("letters", scripted(says), f"letter_cat_n{words}_eg100_pos2_{glue}.json", share=5)
    assert outcome.samples == 20 * (6 + 5 * words)


@WITH_DATA
@pytest.mark.parametrize(("count", "calls"), [(4, 19), (6, 19), (8, 49), (10, 49)])
def test_the_reversal_files(count, calls):
    outcome = all_right("reversal", scripted(reverses), f"reverse_test_{count}_normal_words.json", share=6)
    assert outcome.samples == 15 * calls


FACTS = {
    "born": r"(\S+) was born in (?:the year )?(\d+)",
    "from": r"(\S+) (?:is from the country of|grew up in the nation of) (\S+)",
    "acted": r"(\S+) (?:acted in|was an actor in) the movie (\S+)",
    "directed": r"movie: (?P<b>\S+) ; (?:directed by|director): (?P<a>\S+)",
    "written": r"(\S+) (?:wrote for|was one of the writers for) the movie (\S+)|movie: (?P<b>\S+) ; (?:writer|written by): (?P<a>\S+)",
    "produced": r"(\S+) (?:produced|was one of the producers of) the movie (\S+)(?: with others)?",
    "movie award": r"movie: (\S+) ; (?:award|awarded): (\S+)",
    "person award": r"(?:award: (?P<b>\S+) ; winner: (?P<a>\S+))|person: (\S+) ; award: (\S+)|"
    r"(?P<d>\S+) was awarded to (?P<c>\S+)|(\S+) won the (\S+) award",
}  # fmt: skip


def facts(context, kind):
    """(one, other) of every fact of a kind in the sentences."""
    for sentence in re.split(r"\. ?", context):
        if match := re.fullmatch(FACTS[kind], sentence):
            named = {name: text for name, text in match.groupdict().items() if text}
            if named:
                yield tuple(named[name] for name in sorted(named))
            else:
                yield tuple(text for text in match.groups() if text)


def reads_facts(prompt):
    """Plays all handlers of the shipped program for CommaQA, on sentences it reads by rule."""
    if prompt.endswith("QS:"):
        query, *done = re.split(r"\nQS:", prompt[prompt.rindex("QC: ") + 4 :])
        return [*program_for(query), "[EOQ]"][len(done) - 1]
    context, question = prompt.rsplit("\n\n", 2)[-2], re.findall(r"^Q: (.*)\nA:$", prompt, re.MULTILINE)[-1]
    for pattern, kind, forwards in (
        (r"Who was born in the year (\S+)\?", "born", False),
        (r"Who is from the country (\S+)\?", "from", False),
        (r"Who acted in the movie (\S+)\?", "acted", False),
        (r"Who directed the movie (\S+)\?", "directed", False),
        (r"Which movies has (\S+) acted in\?", "acted", True),
        (r"Which movies has (\S+) directed\?", "directed", True),
        (r"Which movies has (\S+) written\?", "written", True),
        (r"Which movies has (\S+) produced\?", "produced", True),
        (r"Which awards did the movie (\S+) win\?", "movie award", True),
        (r"Which awards did the person (\S+) win\?", "person award", True),
        (r"Which movies won the award (\S+)\?", "movie award", False),
        (r"Who won the award (\S+)\?", "person award", False),
    ):
        if match := re.fullmatch(pattern, question):
            pairs = [pair if forwards else pair[::-1] for pair in facts(context, kind)]
            return json.dumps([other for one, other in pairs if one == match[1]], ensure_ascii=False)
    raise AssertionError(question)


def program_for(query):
    people = {
        r"born in (\d+)": "[simp_qa] Who was born in the year {}?",
        r"from (?:the country )?(\S+?)": "[simp_qa] Who is from the country {}?",
    }
    each = "(project_values_flat_unique) "
    if match := re.fullmatch(r"What awards have the (actors|directors) of the (\S+) winning movies received\?", query):
        verb = {"actors": "acted in", "directors": "directed"}[match[1]]
        return [
            f"[aw_qa] Which movies won the award {match[2]}?",
            f"{each}[pos_qa] Who {verb} the movie #1?",
            f"{each}[aw_qa] Which awards did the person #2 win?",
        ]
    if match := re.fullmatch(r"What awards did the movies directed by the (\S+) winners receive\?", query):
        return [
            f"[aw_qa] Who won the award {match[1]}?",
            f"{each}[pos_qa] Which movies has #1 directed?",
            f"{each}[aw_qa] Which awards did the movie #2 win?",
        ]
    for pattern, first in people.items():
        if match := re.fullmatch(rf"What awards have movies (\w+) by people {pattern} won\?", query):
            work = f"{each}[pos_qa] Which movies has #1 {match[1]}?"
            return [first.format(match[2]), work, f"{each}[aw_qa] Which awards did the movie #2 win?"]
        if match := re.fullmatch(rf"What movies have (?:the )?(?:people|directors) {pattern} (acted in|directed|written)\?", query):
            return [first.format(match[1]), f"{each}[pos_qa] Which movies has #1 {match[2]}?"]
    raise AssertionError(query)


@WITH_DATA
@pytest.mark.parametrize(("file", "share"), [("commaqa_e_iid_test_eg100.json", 1), ("commaqa_e_compgen_test_eg300.json", 4)])
def test_the_commaqa_files(file, share):
    all_right("commaqa", scripted(reads_facts), file, share)
