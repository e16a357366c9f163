"""DaSLaM's solver and what it reads: known answers of the sheet, how answers go from prompt to prompt, real data."""

import json
import os
from dataclasses import astuple
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker import Scripted

from keystep.errors import BadInput, StepFailed
from keystep.lm.base import as_messages
from keystep.run import Flag, Run, Sampling
from keystep.run.vote import First
from keystep.solve.daslam import rewards
from keystep.solve.daslam.problems import Problem, apart, load, problem
from keystep.solve.daslam.solver import DaSLaM
from keystep.solve.daslam.text import answer_of, context_of, same_answer, sub_questions, with_options
from keystep.solve.solver import solver, task_of

DATA = os.environ.get("KEYSTEP_DASLAM_DATA")
QUESTION = "Tom has 3 apples. He buys 4. How many now?"


# What is read out of texts.


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("x [[Answer: 8]] y", "8"),
        ("[[Answer:8]]", "8"),
        ("[[Answer: 7]] no, [[Answer: 8]]", "8"),
        ("[[Ans: 8]]", ""),
        ("### [[Answer: 8]]", ""),
        ("It is 8. ### [[Answer: 9]]", "It is 8."),
        (" eight ", "eight"),
    ],
)
def test_answers(text, answer):
    assert answer_of(text) == answer


def test_sub_questions():
    assert sub_questions("A? B?") == [] and sub_questions("A? B? C?") == ["A?", "B?", "C?"]
    assert sub_questions("A? B?", fewest=1) == ["A?", "B?"]
    assert sub_questions("1. How\n many?\n- And\tthen? * Who? (4) 5 of what? rest ### D?", 1) == [
        "How many?",
        "And then?",
        "Who?",
        "5 of what?",
    ]
    assert sub_questions("??? ?", 1) == []


def test_contexts():
    assert context_of(QUESTION) == "Tom has 3 apples. He buys 4"
    assert context_of("How many are 3.5 and 4.5?") == "" and context_of("A kilo is 3.50. What are 2.5 kilos?") == "A kilo is 3.50"
    assert context_of("Find the sum.") == "Find the sum"


@given(st.text(), st.integers(1, 4))
def test_any_text_is_read(text, fewest):
    found = sub_questions(text, fewest)
    assert len(found) == 0 or len(found) >= fewest
    assert all(sub.endswith("?") and "?" not in sub[:-1] and sub == " ".join(sub.split()) for sub in found)
    assert context_of(text) in text and "###" not in answer_of(text)
    same_answer(text, "A")


@pytest.mark.parametrize(
    ("answer", "expected", "same"),
    [
        ("8", "8", True),
        ("$1,200.00", "1200", True),
        ("20%", "20", True),
        ("8", "9", False),
        ("Yes.", "yes", True),
        ("A) 5", "A", True),
        ("(a)", "A", True),
        ("A", "A", True),
        ("a lot", "A", False),
        ("B) A", "A", False),
        ("", "8", False),
        ("nan", "nan", True),
        ("inf", "Infinity", False),
    ],
)
def test_right_answers(answer, expected, same):
    assert same_answer(answer, expected) is same and DaSLaM().right(answer, expected) is same


# The five rewards.


@pytest.mark.parametrize(
    ("asked", "code", "paper"),
    [("abe", 0.25, 0.5), ("abcd", 1.0, 1.0), ("", 0.0, 0.0), ("uvwxyz", -1.5, 0.0)],
)
def test_coverage(asked, code, paper):
    nouns = frozenset("abcd")
    assert rewards.coverage(nouns, frozenset(asked), "code") == code
    assert rewards.coverage(nouns, frozenset(asked), "paper") == rewards.coverage(nouns, frozenset(asked)) == paper
    assert rewards.coverage(frozenset(), frozenset(asked), "code") == rewards.coverage(frozenset(), frozenset(asked)) == 1


def test_consistency_pays_length_in_the_code_only():
    assert rewards.consistency([0.8] * 8, [], "code") == pytest.approx(1.6) and rewards.consistency([0.8] * 8, []) == pytest.approx(0.8)
    assert rewards.consistency([0.8, 0.4], [True, False], "paper") == pytest.approx(1.1)
    outcome = rewards.Outcome("Q", "", ["a?", "b?", "c?"], ["[[Answer: 8]]", "[[Answer: ]]", ""], "", "", "8", "3 + 5 = 8")
    alike = rewards.parts(outcome, "paper", similarity=lambda one, other: 0.0)
    assert alike.consistency == pytest.approx(1 / 3)  # an answer that is empty stands in no reference
    assert rewards.consistency([], [], "code") == rewards.consistency([], []) == 0


def test_proximity():
    lines = [(0.6, 0.8), (0.8, 0.6), (0.5, 0.5)]
    assert [rewards.proximity([line], "code") for line in lines] == pytest.approx([0.3, -1.4, -1.25])
    assert rewards.proximity(lines, "code") == pytest.approx(-2.35) and rewards.proximity(lines) == pytest.approx(0.0)
    assert rewards.proximity([]) == rewards.proximity([], "code") == 0


def test_order():
    assert [rewards.order("3+4*2", new, "code") for new in ("3+4", "3*4", "2*4+3")] == [0.5, -0.5, 1.0]
    assert rewards.operations("the cost using pieces") == ["sin", "cos", "pi"]
    assert rewards.order("3+4*2", "2*4+3") == 0.5 and rewards.order("3+4*2", "3+4") == pytest.approx(2 / 3)
    assert rewards.order("the cost using pieces", "none") == 1.0  # no operation in either


def outcome(**changes):
    given = {
        "question": QUESTION,
        "context": "Tom has 3 apples. He buys 4",
        "sub_questions": ["How many apples does Tom have after he buys 4?"],
        "sub_answers": ["3 + 4 = 7 apples\n[[Answer: 7]]"],
        "first": "Tom has 4. [[Answer: 4]]",
        "final": "3 + 4 = 7\n[[Answer: 7]]",
        "expected": "7",
        "reference": "3 + 4 = 7",
    }
    return rewards.Outcome(**given | changes)


def test_a_right_decomposition_is_worth_more_than_a_wrong_one_whatever_else_it_covers():
    good, bad = outcome(), outcome(final="7 and 3 + 4 = 7\n[[Answer: 8]]")
    nothing = outcome(sub_questions=[], sub_answers=[], final="[[Answer: 4]]")
    value = {
        name: rewards.total(rewards.parts(each), rewards.WEIGHTS["clean"]) for name, each in locals().copy().items() if name != "value"
    }
    assert value["good"] > value["bad"] + 1.5 and value["bad"] > value["nothing"]
    assert rewards.parts(nothing).consistency == 0 and rewards.parts(good).correctness == 1


@pytest.mark.parametrize("form", rewards.FORMS)
@given(texts=st.lists(st.text(max_size=30), min_size=7, max_size=7), n=st.integers(0, 3))
def test_rewards_of_any_texts_are_finite_and_the_clean_ones_bounded(form, texts, n):
    found = rewards.parts(rewards.Outcome(texts[0], texts[1], [texts[2]] * n, [texts[3]] * n, *texts[4:]), form)
    assert all(abs(value) < 100 for value in astuple(found))
    if form == "clean":
        assert all(-1.0001 <= value <= 1.0001 for value in astuple(found))


def test_no_such_form():
    with pytest.raises(BadInput, match="reward: is no form"):
        rewards.parts(outcome(), "nice")


# Coordination.


def solved(settings, says, asked=QUESTION, **more):
    prompts = []

    def answer(request, index):
        prompts.append("\n\n".join(str(message.content) for message in as_messages(request.prompt)))
        return says(prompts[-1])

    made = solver("daslam", settings)
    found = Run(Scripted(answer), vote=First(cap=2), sampling=Sampling()).solve_sync(made, task_of({"question": asked, **more}))
    return found, prompts


def says(prompt):
    if "Break the question" in prompt:
        return "How many has Tom at first? How many does he buy? How many is that together?"
    return f"Said {len(prompt)}. [[Answer: {len(prompt)}]]"


def test_answers_are_shared_by_default_and_asked_alone_where_wanted():
    found, prompts = solved({}, says)
    _, decomposer, one, two, three, final = prompts
    assert found.details["first"] in decomposer and QUESTION in decomposer
    assert QUESTION not in one and "Tom has 3 apples. He buys 4. How many has Tom at first?" in one and "answered already" not in one
    answers = found.details["sub_answers"]
    assert answers[0] in two and answers[0] in three and answers[1] in three
    assert all(answer in final for answer in answers) and QUESTION in final and found.answer == str(len(final))
    assert found.details["sub_questions"] == ["How many has Tom at first?", "How many does he buy?", "How many is that together?"]
    found, prompts = solved({"share_answers": False}, says)
    assert all("answered already" not in prompt for prompt in prompts[2:5]) and "answered already" in prompts[5]


@pytest.mark.parametrize("share", [True, False])
def test_in_turn_asks_the_same(share):
    """What training does without a plan is what solving does with one."""
    found, prompts = solved({"share_answers": share}, says)
    again = []

    class InTurn:
        async def solve(self, task, ctx):
            return await DaSLaM(share_answers=share).in_turn(task.goal, found.details["sub_questions"], ctx)

    lm = Scripted(lambda request, index: again.append(request.prompt) or says(request.prompt))
    final, answers = Run(lm, vote=First(), sampling=Sampling()).solve_sync(InTurn(), task_of({"question": QUESTION}))
    assert again == prompts[2:] and final == found.details["final"] and answers == found.details["sub_answers"]


def test_without_feedback_the_decomposer_does_not_see_the_first_answer():
    found, prompts = solved({"feedback": False}, says)
    assert found.details["first"] not in prompts[1] and QUESTION in prompts[1]


def test_too_few_sub_questions_count_as_none_and_too_many_are_flagged():
    found, prompts = solved({"fewest": 4}, says)
    assert found.details["sub_questions"] == [] and len(prompts) == 3 and prompts[2] == prompts[0]
    with pytest.raises(Flag, match="more than 2"):
        DaSLaM(most=2).read("A? B? C?")
    with pytest.raises(BadInput, match="fewest"):
        solver("daslam", {"fewest": 3, "most": 2})


def test_an_answer_without_marks_is_flagged_unless_it_is_not_wanted():
    with pytest.raises(StepFailed, match=r"no \[\[Answer"):
        solved({}, lambda prompt: "seven")
    assert solved({"marked": False}, lambda prompt: "seven")[0].answer == "seven"
    with pytest.raises(Flag):
        DaSLaM().said_at_last("[[Ans: 8]]")
    assert DaSLaM(marked=False).said_at_last("") == ""


def test_options_are_shown_and_have_to_be_texts():
    _, prompts = solved({}, says, options=["A) 7", "B) 8"])
    assert "A) 7\nB) 8" in prompts[0] and "A) 7" in prompts[1] and "A) 7" not in prompts[2] and "A) 7" in prompts[-1]
    with pytest.raises(BadInput, match="options: are a list of texts"):
        solved({}, says, options="A) 7")


def test_another_model_decomposes(monkeypatch):
    other = Scripted(["Who buys? What?"])
    monkeypatch.setattr("keystep.solve.daslam.solver._model", lambda name: other)
    found, prompts = solved({"decomposer": "hf:small"}, says)
    assert found.details["sub_questions"] == ["Who buys?", "What?"] and other.drawn == 1 and len(prompts) == 4
    assert DaSLaM(decomposer="hf:small").identity()["decomposer_model"] == other.identity()


# Files of problems.


def test_three_kinds_of_rows():
    mine = problem({"question": "Q?", "answer": 7, "reasoning": ["a", "b"], "sub_questions": "A?\nB?", "options": ["A) 1"]})
    assert mine == Problem("Q?\nOptions:\nA) 1", "7", "a\nb", ("A?", "B?"))
    aqua = problem({"question": "Q?", "options": ["A)1", "B)2"], "rationale": "so\nB", "correct": "B"})
    assert aqua == Problem("Q?\nOptions:\nA)1\nB)2", "B", "so\nB")
    gsm = problem({"question": "Q?", "answer": "How many? ** 3 + 4 = <<3+4=7>>7 left\nAnd then? ** 7\n#### 7"})
    assert gsm == Problem("Q?", "7", "3 + 4 = 7 left\n7", ("How many?", "And then?"))
    assert with_options("Q?", None) == "Q?"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answer": "7"}, "row 0, question: is no question"),
        ({"question": "Q?"}, "row 0, answer: is no answer"),
        ({"question": "Q?", "answer": None}, "row 0, answer: is no answer"),
        ({"question": "Q?", "answer": "7", "sub_questions": 7}, "row 0, sub_questions: are a list"),
        ({"question": "Q?", "answer": "7", "reasoning": 7}, "row 0, reasoning: is a text"),
        ({"question": "Q?", "answer": "7", "options": "A"}, "row 0, options: are a list"),
    ],
)
def test_rows_that_are_no_problem(row, said, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(BadInput, match=said):
        load(file)


@given(st.integers(2, 30), st.integers(0, 5), st.integers(0, 3))
def test_no_question_is_trained_on_and_judged_by(n, times, seed):
    problems = [Problem(f"Q{at % n}?", "7") for at in range(n * (times + 1))]
    trained, held = apart(problems, n // 2, seed)
    assert len(trained) + len(held) == len(problems) and len({p.question for p in held}) == n // 2
    assert not {p.question for p in trained} & {p.question for p in held}
    assert apart(problems, n // 2, seed) == (trained, held)
    with pytest.raises(BadInput, match="held_out"):
        apart(problems, n, seed)


@pytest.mark.skipif(not DATA, reason="KEYSTEP_DASLAM_DATA names the folder of AQuA and GSM8K")
def test_real_files():
    """Every row is a problem; GSM8K's own steps compute in their own order, AQuA's letters are right by themselves."""
    socratic = load(Path(DATA) / "gsm8k_test_socratic.jsonl")
    assert len(socratic) == 1319 and all(p.sub_questions and p.reasoning and "<<" not in p.reasoning for p in socratic)
    assert sum(len(sub_questions(" ".join(p.sub_questions), 1)) == len(p.sub_questions) for p in socratic) > 1250
    for each in socratic[:200]:
        same = outcome(
            question=each.question, final=f"{each.reasoning}\n[[Answer: {each.answer}]]", expected=each.answer, reference=each.reasoning
        )
        found = rewards.parts(same)
        assert found.correctness == 1 and found.order > 0.99 and found.proximity >= 0
    for name in ("aqua_dev.jsonl", "aqua_test.jsonl"):
        aqua = load(Path(DATA) / name)
        assert len(aqua) == 254 and all(p.answer in "ABCDE" and "Options:\nA)" in p.question for p in aqua)
        assert all(same_answer(f"{p.answer}) so", p.answer) for p in aqua)
