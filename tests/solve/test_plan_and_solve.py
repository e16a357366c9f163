"""Plan-and-Solve: the known answers of its sheet, both styles of prompts, self-consistency, votes on conclusions, worked solutions."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from faulty_server import serving
from hypothesis import given
from hypothesis import strategies as st
from solver_case import text_of
from worker import Scripted

from keystep.errors import BadInput, Undecided
from keystep.lm.base import Message
from keystep.lm.endpoint import Endpoint
from keystep.lm.server import app as server
from keystep.run import AheadBy, Run, Sampling
from keystep.run.vote import First
from keystep.solve.answers import KINDS, candidates, canonical, kind, majority, read, same
from keystep.solve.paired import difference, mcnemar
from keystep.solve.plan_and_solve import CLAUSES, TRIGGERS, PlanAndSolve, accuracy_by_samples
from keystep.solve.questions import coin_flip, heads_up, joined_letters, last_letters, questions
from keystep.solve.solver import solver, task_of
from keystep.solve.worked import equations, error_class, intermediates, missing, sections

DATA = os.environ.get("KEYSTEP_PLAN_AND_SOLVE_DATA")
SOLUTIONS = os.environ.get("KEYSTEP_AUTO_COT_DATA")
QUESTION = task_of({"question": "How many?"})


@pytest.mark.parametrize(
    ("name", "text", "published", "mended"),
    [
        ("number", " $1,234.50 per day", "1234.5", "1234.5"),
        ("number", " 5-3 = 2", "2", "2"),
        ("number", " 10-4", "-4", "4"),
        ("number", " 3/4", "4", "0.75"),
        ("number", " 12.", "12", "12"),
        ("number", "twenty", None, None),
        ("number", " 50%", "50", "50"),
        ("number", " 1. 5", "5", "5"),
        ("number", "it is -7 degrees", "-7", "-7"),
        ("number", "each costs $.75", "75", "0.75"),
        ("number", "so x = -.5.", "5", "-0.5"),
        ("number", "it is \u22125 degrees", "5", "-5"),
        ("number", "in all 1 234 567 people", "567", "1234567"),
        ("number", "1\u202f000.5", "0.5", "1000.5"),
        ("number", "in 2020 150 people", "150", "150"),
        ("number", "room no.5", "5", "5"),
        ("number", "1/0", "0", None),
        ("number", "9" * 400, None, None),
        ("aqua", "Answer: (C)", "A", "C"),
        ("aqua", "(C) Both", "C", "C"),
        ("aqua", "the ans is E", "E", "E"),
        ("aqua", "Because B", "B", "B"),
        ("aqua", "A man would say C", "A", "C"),
        ("aqua", "A is right", "A", "A"),
        ("aqua", "option D) 12", "D", "D"),
        ("aqua", "none", None, None),
        ("csqa", "A|B", "A|B", None),
        ("csqa", "|", "|", None),
        ("csqa", "(C): bank.", "C", "C"),
        ("coin-flip", "Yes, no doubt.", "no", "no"),
        ("coin-flip", "No. Yes", "yes", "yes"),
        ("coin-flip", "I know nothing", None, None),
        ("last-letters", ' "y a j o".', "yajo", "yajo"),
        ("text", " The  bank. ", "The bank", "The bank"),
    ],
)
def test_readers(name, text, published, mended):
    assert read(kind(name), text, "published") == published
    assert read(kind(name), text, "mended") == mended


@pytest.mark.parametrize(
    ("name", "answer", "expected", "right"),
    [
        ("gsm8k", "18", "9 * 2 = <<9*2=18>>18\n#### 18", True),
        ("gsm8k", "18", "9 eggs\nA: 18", True),
        ("gsm8k", "1000", "1,000", True),
        ("number", "0.3333", "0.33333", True),
        ("number", "0.334", "0.3333", True),
        ("number", "0.335", "0.3333", False),
        ("number", "18", "nothing", False),
        ("decimal", "3.1", "3.14", True),
        ("decimal", "3.2", "3.14", False),
        ("decimal", "x", "3", False),
        ("aqua", "C", "C", True),
        ("last-letters", "yajo", "YAJO", True),
        ("coin-flip", "yes", "Yes", True),
        ("text", "the bank", "The Bank.", True),
        ("text", None, "", False),
    ],
)
def test_right_answers(name, answer, expected, right):
    assert same(kind(name), answer, expected) is right


@given(st.sampled_from(sorted(KINDS)), st.text(max_size=80), st.sampled_from(["mended", "published"]))
def test_readers_read_anything(name, text, rules):
    for candidate in candidates(kind(name), text, rules):
        one = canonical(kind(name), candidate)
        assert one is None or canonical(kind(name), one) == one
    found = read(kind(name), text, rules)
    assert found is None or same(kind(name), found, found)


@given(st.integers(-(10**12), 10**12))
def test_whole_numbers_are_read_as_they_are(number):
    assert read(kind("number"), f"so it is ${number:,}.") == str(number)
    assert read(kind("number"), f"{number}.0") == str(number)


def test_majority():
    votes = ["5", None, "5", "7", None, None]
    assert majority(votes, "published") is None and majority(votes) == "5"
    assert majority(["2", "1", "1", "2"]) == "2" and majority([None]) is None and majority([]) is None


def test_coins_and_letters():
    assert heads_up([True, False, False, True]) == "yes" and heads_up([False, True, True, True]) == "no"
    assert heads_up([False, True, False, False]) == "no" and joined_letters(["Whitney", "Erika", "Tj", "Benito"]) == "yajo"
    assert last_letters(5, seed=1) == last_letters(5, seed=1) != last_letters(5, seed=2)
    rows = coin_flip(400)
    assert 0.4 < sum(row["answer"] == "yes" for row in rows) / 400 < 0.6
    for row in rows[:20]:
        assert row["answer"] == heads_up([True] * row["question"].count(" flips the"))


def test_the_published_averages():
    """Table 2 of the paper, as the sheet has it."""
    rows = {
        70.4: (83.8, 56.4, 85.3, 38.9, 88.1, 69.9),
        72.87: (87.2, 58.2, 88.1, 42.5, 89.2, 72.0),
        76.62: (91.8, 59.3, 92.2, 46.0, 94.7, 75.7),
    }
    for mean, row in rows.items():
        assert sum(row) / 6 == pytest.approx(mean, abs=0.006)


def says(prompt):
    return " 9 eggs.\n" if prompt.endswith("numerals) is") else "Plan: take away.\nCalculation: 16 - 7 = 9, not 5"


def solved(lm, settings=None, vote=None, temperature=0.0, task=QUESTION):
    run = Run(lm, vote=vote or First(cap=4), sampling=Sampling(temperature=temperature))
    return run.solve_sync(solver("plan-and-solve", settings), task)


def test_two_calls_chat_style():
    lm = Scripted(lambda request, index: says(text_of(request.prompt)))
    found = solved(lm, {"trigger": "201"})
    trigger = PlanAndSolve().prompt_text("trigger-201.txt")
    first, second = (request.prompt for request in lm.requests)
    assert first == (Message("user", f"How many?\n\n{trigger}"),)
    assert second == (
        *first,
        Message("assistant", found.details["reasoning"]),
        Message("user", "Therefore, the answer (arabic numerals) is"),
    )
    assert found.answer == "9" and found.details["calls"] == 2 and found.details["sections"]["plan"] == "take away."
    assert lm.requests[1].max_tokens == 32 and lm.requests[1].stop == ("\n\n",) and lm.requests[1].temperature == 0


def test_two_calls_completion_style():
    lm = Scripted(lambda request, index: says(text_of(request.prompt)))
    found = solved(lm, {"trigger": "101", "style": "completion", "answer_trigger_of": "code", "reasoning_tokens": 256})
    first, second = (request.prompt for request in lm.requests)
    assert first == "Q: How many?\nA: Let's think step by step." and lm.requests[0].max_tokens == 256
    assert second == f"{first} {found.details['reasoning']} Therefore, the answer is"
    assert found.answer == "5" and found.details["extraction_output"].endswith("not 5")  # it repeats itself: the last number counts


@pytest.mark.parametrize(("style", "api"), [("chat", "chat"), ("completion", "completions")])
@pytest.mark.parametrize("samples", [1, 4])
def test_both_styles_over_http(style, api, samples):
    lm = Scripted(lambda request, index: says(text_of(request.prompt)))

    async def ask(url):
        endpoint = Endpoint("m", f"{url}/v1", "none", api=api, timeout=20)
        try:
            run = Run(endpoint, vote=First(cap=4), sampling=Sampling(temperature=0.0))
            return await run.solve(solver("plan-and-solve", {"style": style, "samples": samples}), QUESTION)
        finally:
            await endpoint.close()

    with serving(server({"m": lm})) as url:
        found = asyncio.run(ask(url))
    assert found.answer == "9" and lm.drawn == 2 * samples
    assert isinstance(lm.requests[-1].prompt, str) == (style == "completion")  # a lone user message is read as a text
    assert {request.stop for request in lm.requests} == {(), ("\n\n",)} and {request.max_tokens for request in lm.requests} == {512, 32}


def test_no_second_call_where_the_answer_is_said():
    lm = Scripted(["Both 3 and 4. The answer is 3. No: Therefore, the answer is 4."])
    assert solved(lm).answer == "4" and lm.drawn == 1
    assert solved(Scripted(["So the answer is 4", "9"]), {"shortcut": False}).details["calls"] == 2
    unclear = Scripted(lambda request, index: "4" if "numerals" in text_of(request.prompt) else "The answer is clear.")
    assert solved(unclear).answer == "4"
    assert solved(unclear, {"rules": "published"}).answer == ""  # the published code does not look again


def test_the_wording():
    every = [PlanAndSolve(trigger=number).wording() for number in TRIGGERS]
    assert len(set(every)) == len(TRIGGERS)
    assert PlanAndSolve(kind="svamp").wording() == PlanAndSolve(trigger="307").wording()
    assert PlanAndSolve(trigger="Plan {{ first }}.").wording() == "Plan {{ first }}."
    texts = [PlanAndSolve(clauses=list(CLAUSES[:n])).wording() for n in range(1, 7)]
    assert [len(text) for text in texts] == sorted({len(text) for text in texts})
    assert "plan" not in PlanAndSolve(clauses=["variables"]).wording().lower()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"trigger": "999"}, "trigger: is no trigger"),
        ({"trigger": "101", "clauses": ["plan"]}, "exclude each other"),
        ({"clauses": ["think"]}, "clauses"),
        ({"samples": 0}, "samples: must be at least 1"),
        ({"kind": "svamps"}, "kind: is no kind of answer"),
        ({"style": "prose"}, "style"),
        ({"answer_tokens": 0}, "answer_tokens: must be"),
        ({"temperature": 3}, "temperature"),
    ],
)
def test_bad_settings(settings, said):
    with pytest.raises(BadInput, match=said):
        solver("plan-and-solve", settings)


def test_programs_are_carried_out():
    """Zero-shot-PoT: one call for a number, two for a letter; a program that fails is drawn again where another one may come."""
    task = task_of({"question": "Hens lay 16 eggs a day, 3 are eaten, the rest is sold for 2 dollars each. How much is that?"})
    good = "```python\ndef solver():\n    sold = 16 - 3\n    return sold * 2\n```\nThe answer is 99."
    lm = Scripted([good])
    found = solved(lm, {"trigger": "pot"}, task=task)
    assert found.answer == "26" and lm.drawn == found.details["calls"] == 1
    assert text_of(lm.requests[0].prompt) == f"{task.goal}\n\n{PlanAndSolve().prompt_text('trigger-pot.txt')}"
    bad = "```python\nimport os\nans = os.getpid()\n```"
    assert solved(Scripted([bad, good]), {"trigger": "pot"}, task=task).answer == ""  # greedily the same would come again
    assert solved(Scripted([bad, good]), {"trigger": "pot"}, task=task, temperature=0.7).answer == "26"
    tally = Scripted([good, bad, good.replace("3", "4"), good])
    assert solved(tally, {"trigger": "pot"}, vote=AheadBy(2, cap=9), task=task, temperature=0.7).answer == "26"
    assert solved(Scripted([good]), {"trigger": "pot", "samples": 3}, task=task).details["answers"] == ["26"] * 3
    for of, value, answer in (("yes-no", "3 > 2", "yes"), ("letters", "'y' + 'a'", "ya"), ("number", "3 / 10 ** 5", "3e-05")):
        assert solved(Scripted([f"ans = {value}"]), {"trigger": "pot", "kind": of}, task=task).answer == answer
    assert PlanAndSolve().right("3e-05", "0.00003") and solved(Scripted(["ans = 2 ** 3000"]), {"trigger": "pot"}, task=task).answer == ""


def test_an_answer_that_cannot_be_read():
    blank = Scripted(lambda request, index: "I do not know.")
    found = solved(blank)
    assert found.answer == "" and blank.drawn == 2 and not PlanAndSolve().right("", "0")  # once more would be the same: it counts as wrong
    again = Scripted(lambda request, index: "so it is 7" if index == 2 or "numerals" not in text_of(request.prompt) else "who knows")
    assert solved(again, temperature=0.7).answer == "7" and again.drawn == 4
    with pytest.raises(Undecided):
        solved(blank, vote=AheadBy(2, cap=5), temperature=0.7)


def test_self_consistency():
    """Of ten reasonings each is read by itself; None counts by the published rule only."""
    texts = ["6", "none", "none", "7", "6", "none", "none", "7", "7", "none"]

    def answer(request, index):
        number = int(request.key.split("sample-")[1].split("/")[0])
        return f"reasoning {number}" if "numerals" not in text_of(request.prompt) else texts[number]

    lm = Scripted(answer)
    found = solved(lm, {"samples": 10})
    assert found.answer == "7" and found.details["answers"] == [None if text == "none" else text for text in texts]
    assert found.details["reasoning"] == "reasoning 3" and found.details["calls"] == lm.drawn == 20
    assert {request.temperature for request in lm.requests[:10]} == {0.7} and lm.requests[-1].temperature == 0
    assert solved(Scripted(answer), {"samples": 10, "rules": "published"}).answer == ""
    assert solved(Scripted(answer), {"samples": 2}).answer == "6"


def test_accuracy_by_samples():
    answers, right = ["7", "6", "7", None], [True, False, True, False]
    found = accuracy_by_samples(answers, right)
    assert found == {1: 0.5, 3: 0.75}  # of 6, 7, None the 6 is seen first
    assert accuracy_by_samples(["1"] * 10, [True] * 10) == {1: 1, 3: 1, 5: 1, 10: 1}


def test_votes_are_on_what_reasonings_come_to():
    texts = ["6 + 1 = 7", "so that is 8", "it has no end", "3 and 4 are 7", "1 + 6 gives 7"]
    lm = Scripted(lambda request, index: "7" if "numerals" in text_of(request.prompt) else texts[index % 5])
    found = solved(lm, vote=AheadBy(2), temperature=0.7)
    assert found.answer == "7" and found.details["reasoning"] == texts[0] and lm.drawn == 2 + 2 + 1 + 2


def test_sections():
    text = "Given: 3 eggs\n**Plan:**\n1. Add.\n2. Solve for x\n### Solution\n3 + 4 = 7\nAnswer: 7"
    assert sections(text) == {"variables": "3 eggs", "plan": "1. Add.\n2. Solve for x", "steps": "3 + 4 = 7", "answer": "7"}
    assert set(sections("Given that he plans, the answer is 3. Plan").values()) == {None}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("She has 16 - 3 - 4 = 9 left.", [("16 - 3 - 4", True)]),
        ("so $2 x 9 = $18 and 1,000 + 5 = 1,004", [("2 * 9", True), ("1000 + 5", False)]),
        ("10/3 = 3.33, 10 / 3 = 3.34", [("10 / 3", True), ("10 / 3", False)]),
        ("50% * 20 = 10; 1/4 = 25%", [("50% * 20", True), ("1 / 4", True)]),
        ("Step 2. 3 + 4 = 7", [("3 + 4", True)]),
        ("(2 + 3) * 4 = 20 = 19 + 1", [("( 2 + 3 ) * 4", True)]),
        ("16 - 3 = <<16-3=13>>13", [("16 - 3", True)]),
        ("2x = 4, x = 2, = 3, 1/0 = 5, ((((1 + 2 = 3", [("1 + 2", True)]),
        ("-3 + 5 = 2, 4 - 9 = -5", [("- 3 + 5", True), ("4 - 9", True)]),
    ],
)
def test_equations(text, found):
    assert [(each.left, each.holds) for each in equations(text)] == found


@given(st.text(alphabet="0123456789.,+-*/x×÷=()%$ ab\n", max_size=120))
def test_equations_in_anything(text):
    for each in equations(text):
        assert each.left and each.right
    assert 0 <= missing(text, [1, 2]) <= 1


def test_error_classes():
    gold = "16-3=<<16-3=13>>13\n13*2=<<13*2=26>>26"
    assert intermediates(gold) == [13, 26] and intermediates("3 + 4 = 7") == [7]
    values = intermediates(gold)
    assert error_class("anything", values, True) is None
    assert error_class("16 - 3 = 12, 12 * 2 = 24", values, False) == "calculation"
    assert error_class("16 * 2 = 32", values, False) == "missing-step" and missing("16 - 3 = 13", values) == 0.5
    assert error_class("16 - 3 = 13 and 13 * 2 = 26, so 1 + 26 = 27", values, False) == "semantic"


def test_pairs():
    assert mcnemar(10, 2) == pytest.approx(0.0386, abs=5e-5) and mcnemar(4, 4) == mcnemar(0, 0) == 1
    stats = pytest.importorskip("scipy.stats")
    assert mcnemar(3, 12) == pytest.approx(stats.binomtest(3, 15).pvalue)
    gain, low, high = difference([False] * 40 + [True] * 60, [True] * 20 + [False] * 20 + [True] * 60, resamples=2000)
    assert gain == 0.2 and 0.1 < low < 0.2 < high < 0.3
    with pytest.raises(BadInput):
        difference([True], [])


@pytest.mark.parametrize(("name", "file"), [("nosuch", None), ("svamp", None), ("coin-flip", Path("x")), ("aqua", Path("nowhere"))])
def test_benchmarks_that_cannot_be_read(name, file):
    with pytest.raises(BadInput):
        questions(name, file)


def test_benchmark_rows(tmp_path):
    file = tmp_path / "f"
    file.write_text(json.dumps([{"ID": "a", "Body": "Two hats", "Question": "How many?", "Answer": 2.0}]))
    assert questions("svamp", file) == [{"id": "a", "question": "Two hats. How many?", "answer": "2"}]
    file.write_text(json.dumps({"question": "Q?", "options": ["A)1", "B)2"], "correct": "B"}))
    assert questions("aqua", file) == [{"id": "aqua-0", "question": "Q? Answer Choices: (A)1 (B)2", "answer": "B"}]
    file.write_text('{"no": 1}')
    with pytest.raises(BadInput, match="cannot be read as gsm8k"):
        questions("gsm8k", file)


@pytest.mark.skipif(not DATA, reason="KEYSTEP_PLAN_AND_SOLVE_DATA names no folder")
def test_the_published_questions():
    rows = {name: questions(name, Path(DATA) / file) for name, file in (("svamp", "SVAMP.json"), ("aqua", "aqua_test.jsonl"))}
    assert len(rows["svamp"]) == 1000 and len(rows["aqua"]) == 254
    for name, found in rows.items():
        for row in found:
            assert same(kind(name), read(kind(name), f"The answer is {row['answer']}."), row["answer"])
    lm = Scripted(lambda request, index: next(row["answer"] for row in rows["svamp"] if row["question"] in text_of(request.prompt)))
    made = solver("plan-and-solve", {"kind": "svamp"})
    assert all(made.right(solved(lm, {"kind": "svamp"}, task=task_of(row)).answer, row["answer"]) for row in rows["svamp"][::50])


@pytest.mark.skipif(not SOLUTIONS, reason="KEYSTEP_AUTO_COT_DATA names no folder")
def test_recorded_solutions_are_scored_as_published():
    from keystep.solve.questions import gsm8k_solutions

    text = (Path(SOLUTIONS) / "gsm8k_example_model_solutions.jsonl").read_text("utf-8")
    shares = {"6b_finetuning": 21.68, "6b_verification": 39.04, "175b_finetuning": 34.72, "175b_verification": 56.25}
    of = kind("gsm8k")
    for model, share in shares.items():
        rows = gsm8k_solutions(text, model)
        right = [same(of, read(of, row["prediction"]), row["answer"]) for row in rows]
        assert len(rows) == 1319 and 100 * sum(right) / 1319 == pytest.approx(share, abs=0.01)
        flags = [json.loads(line)[model]["is_correct"] for line in text.splitlines()]
        assert sum(a != b for a, b in zip(flags, right, strict=True)) <= 3
    worked = [row["answer"] for row in gsm8k_solutions(text)]
    wrong = sum(not each.holds for solution in worked for each in equations(solution))
    assert sum(len(equations(solution)) for solution in worked) > 3500 and wrong < 200
