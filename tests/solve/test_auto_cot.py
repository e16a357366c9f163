"""Auto-CoT: the known answers of its sheet, the checks one by one, selection and its report, batches, resume, the commands, the data."""

from __future__ import annotations

import asyncio
import json
import os
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from solver_case import text_of
from typer.testing import CliRunner
from worker import Scripted

from keystep.cli import app
from keystep.errors import BadInput, BudgetSpent, ChangedWork, MissingExtra
from keystep.lm.base import LM, Message
from keystep.run import AheadBy, Budget, Journal, Run, Sampling
from keystep.run.vote import First
from keystep.solve.answers import kind
from keystep.solve.auto_cot import AutoCot, Demo, Heuristics, Selection, cleaned, read_demos, unresolving_rate
from keystep.solve.auto_cot.clusters import at_random, clustered, encoded, in_cluster, nearest, tfidf
from keystep.solve.questions import gsm8k_solutions, zero_shot_log
from keystep.solve.solver import solver, task_of
from keystep.task import Task

DATA = os.environ.get("KEYSTEP_AUTO_COT_DATA")
NUMBER = kind("number")
HATS = Demo(question="Q: Tom has 2 hats and buys 2. How many now?\nA:", rationale="Let's think step by step. 2 + 2 = 4.", pred_ans="4")


def a_run(lm, vote=None, temperature=0.0, **options):
    return Run(lm, vote=vote or First(cap=4), sampling=Sampling(temperature=temperature), **options)


def sums(count):
    """Questions of two kinds, adding hats and taking away eggs."""
    rows = []
    for n in range(count):
        a, b = 10 + n, 2 + n % 5
        text = f"A shop has {a} red hats and gets {b} hats. How many hats?" if n % 2 else f"Of {a} eggs {b} break. How many eggs are left?"
        rows.append({"question": text, "answer": str(a + b if n % 2 else a - b)})
    return rows


class Adder(Scripted):
    """Answers the questions of `sums`, with demonstrations or without."""

    def __init__(self) -> None:
        super().__init__(lambda request, index: self.says(text_of(request.prompt)))

    def says(self, prompt):
        asked = re.findall(r"(?:Of (\d+) eggs (\d+) break)|(?:has (\d+) red hats and gets (\d+) hats)", prompt)[-1]
        eggs = bool(asked[0])
        a, b = (int(part) for part in asked if part)
        answer = a - b if eggs else a + b
        if prompt.endswith("numerals) is"):
            return f" {answer}"
        if "The answer is" in prompt:  # demonstrations are followed
            return f"{a} {'-' if eggs else '+'} {b} = {answer}. The answer is {answer}."
        return f"{a} {'-' if eggs else '+'} {b} = {answer}" + ("" if eggs and a % 4 == 0 else ".")


@pytest.mark.parametrize(
    ("question", "rationale", "answer", "why"),
    [
        ("How many?", "So 8 + 23 = 31.", "31", None),
        ("How many?", "1\n2\n3\n4\n5\nso 31.", "31", "6 lines"),
        ("How many?", "1\n\n2\n\n3\n\n4\n\nso 31.", "31", None),
        ("How many?", "So 8 + 23 = 31", "31", "full stop"),
        ("How many?", "It was easy. 31 - 8 = 23 pieces left.", "31", None),
        ("How many?", "31 - 8 = 23. So many pieces left.", "31", None),  # among the last ten words
        ("How many?", "31 pieces. " + "One two three four five six seven eight nine ten eleven.", "31", "last sentence"),
        ("How many?", "So 23 pieces.", "3", None),  # a part of a number
        ("How many?", "All is well.", None, "no answer"),
        ("word " * 59, "So 31.", "31", "61 words"),
        ("word " * 58, "So 31.", "31", None),
        ("How many?", ".", "31", "last sentence"),
    ],
)
def test_checks(question, rationale, answer, why):
    found = Heuristics().rejected(NUMBER, question, rationale, answer)
    assert found is None if why is None else why in found


def test_checks_that_are_changed():
    seven = "\n".join("1234567") + "."
    assert "more than 5" in Heuristics().rejected(kind("aqua"), "Q", seven, "A")
    assert Heuristics().rejected(kind("last-letters"), "Q", seven, "ab") is None
    assert Heuristics(steps=9).rejected(kind("aqua"), "Q", seven, "A") is None
    text = "One. Two. Three. Four. Five. Six is 3.5."
    assert Heuristics().rejected(kind("aqua"), "Q", text, "A") is None
    assert "6 sentences" in Heuristics(counted="sentences").rejected(kind("aqua"), "Q", text, "A")
    assert Heuristics(full_stop=False, answer_at_end=False).rejected(NUMBER, "Q", "so it is", "4") is None


@given(st.text(max_size=60), st.text(max_size=60), st.none() | st.text(max_size=5), st.sampled_from(["number", "aqua", "text", "letters"]))
def test_checks_take_anything(question, rationale, answer, name):
    found = Heuristics().rejected(kind(name), question, rationale, answer)
    assert found is None or found


def test_the_form_of_a_demonstration():
    demo = Demo(question="Q: x\nA:", rationale="Let's think step by step. y.", pred_ans="4")
    assert AutoCot().demonstrated([demo]) == "Q: x\nA: Let's think step by step. y. The answer is 4.\n\n"
    assert demo.asked == "x"
    made = AutoCot().demo("x", "2 + 2\n\n= 4.  So the answer is 4.", "4")
    assert made.rationale == "Let's think step by step. 2 + 2 = 4." and made.question == demo.question
    for end in ("The answer is 3.5.", "Therefore, the answer is (C)", "So the answer is $4.00!", ""):
        assert AutoCot().demo("x", f"2 + 2 = 4. {end}\n", "4").rationale == "Let's think step by step. 2 + 2 = 4."
    kept = "The answer is near. " + "It is far. " * 20
    assert AutoCot().demo("x", kept, "4").rationale == f"Let's think step by step. {kept.strip()}"


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("number", "... The answer is 1,234.", "1234"),
        ("number", "First 3 then 5 apples", "5"),
        ("number", "The answer is 3 or 5", "3"),
        ("number", "The answer is 3. Or the answer is", None),
        ("aqua", "The answer is (B) or C", "B"),
        ("csqa", "B, no, C", "C"),
        ("strategyqa", "Yes. The answer is no.", "no"),
        ("last-letters", 'The answer is "y a".', "ya"),
    ],
)
def test_cleaning(name, text, answer):
    assert cleaned(kind(name), text) == answer
    assert cleaned(NUMBER, "3 or 5", zero_shot=True) == "3"


def test_published_answers_are_compared_as_texts():
    published = AutoCot(rules="published")
    assert not published.right("18.0", "18") and published.right("18", "18.0") and AutoCot().right("18.0", "18")
    assert cleaned(NUMBER, "The answer is 18.0", "published") == "18.0" and cleaned(NUMBER, "The answer is 3.", "published") == "3"


def test_centres_and_clusters():
    line = np.array([[0.0], [1], [2], [9]])
    assert clustered(line, 1).members == [[2, 1, 0, 3]] and clustered(line, 1).distances == [[1, 2, 3, 6]]
    every = clustered(line, 50)
    assert sorted(every.members) == [[0], [1], [2], [3]] and len(every) == 4
    assert len(clustered(np.zeros((5, 2)), 3)) == 1
    two = clustered(line, 2)
    assert sorted(map(sorted, two.members)) == [[0, 1, 2], [3]] and two.of(3) != two.of(0)
    with pytest.raises(BadInput):
        clustered(line, 0)


def test_texts_that_are_alike_are_near():
    rows = [row["question"] for row in sums(40)]
    vectors = tfidf(rows)
    found = clustered(vectors, 2)
    assert sorted(map(sorted, found.members)) == [list(range(0, 40, 2)), list(range(1, 40, 2))]
    assert all(number % 2 == 1 for number in nearest(vectors, vectors[7], 8)) and nearest(vectors, vectors[7], 1) == [7]
    draw = np.random.default_rng(0)
    assert len(set(at_random(40, 8, draw))) == 8 and len(at_random(3, 8, draw)) == 3
    assert all(number % 2 == 0 for number in in_cluster(found, found.of(0), 8, draw))
    long = [f"word{n} other{n % 7} third{n % 11} more{n % 3}" for n in range(200)]
    assert tfidf(long).shape == (200, 100) and np.allclose(np.linalg.norm(tfidf(long), axis=1), 1)
    with pytest.raises(BadInput, match="no words"):
        tfidf(["?", "!"])


def test_encoders(monkeypatch):
    class Embedding(LM):
        name = "e"

        def sample(self, request):
            raise NotImplementedError

        async def embed(self, texts):
            return [[len(text), 1.0] for text in texts]

    monkeypatch.setattr("keystep.solve.auto_cot.clusters.lm", lambda name: Embedding())
    assert asyncio.run(encoded(["a", "bcd"], "http://host/v1#e")).tolist() == [[1, 1], [3, 1]]
    monkeypatch.undo()
    with pytest.raises(BadInput, match=r"encoder: is no encoder .*'nosuch'"):
        asyncio.run(encoded(["a"], "nosuch"))
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(MissingExtra, match="encode"):
        asyncio.run(encoded(["a"], "sentence-transformers:x"))


def test_unresolving_rate():
    zero = [False] * 128 + [True] * 472
    assert 100 * unresolving_rate(zero, [False] * 60 + [True] * 540) == pytest.approx(46.9, abs=0.03)
    assert 100 * unresolving_rate(zero, [False] * 33 + [True] * 567) == pytest.approx(25.8, abs=0.03)
    assert unresolving_rate([True], [False]) is None


def selected(rows, lm=None, run=None, **options):
    selection = Selection(solver=options.pop("solver", AutoCot(style="completion")), rows=rows, **options)
    return (run or a_run(lm or Adder())).solve_sync(selection, Task(goal="demonstrations"))


def test_selection_says_what_it_did():
    rows = sums(24)
    lm = Adder()
    found = selected(rows, lm, clusters=2)
    assert len(found.demo) == 2 and sum(report.size for report in found.clusters) == 24
    for demo, report in zip(found.demo, found.clusters, strict=True):
        taken = report.tried[report.accepted]
        assert taken.question == demo.asked and taken.rejected is None and report.accepted == len(report.tried) - 1 == demo.rank
        assert all(each.rejected == "the rationale does not end with a full stop" for each in report.tried[:-1])
        assert [each.distance for each in report.tried] == sorted(each.distance for each in report.tried)
        assert report.wrong == 0 and demo.gold_ans == demo.pred_ans == rows[taken.row]["answer"]
        assert demo.rationale == f"Let's think step by step. {re.search(r'[0-9]+ . [0-9]+ = [0-9]+[.]', demo.rationale)[0]}"
    assert found.calls == lm.drawn == 2 * sum(len(report.tried) for report in found.clusters)
    assert found.settings["clusters"] == 2 and found.settings["heuristics"]["steps"] == 5
    assert found == selected(rows, clusters=2)


def test_a_cluster_without_a_demonstration():
    silent = Scripted(lambda request, index: "7" if "numerals" in text_of(request.prompt) else "no end 7")
    found = selected(sums(6), silent, clusters=2)
    assert found.demo == [] and [report.accepted for report in found.clusters] == [None, None] and found.calls == 12
    assert [len(report.tried) for report in found.clusters] == [report.size for report in found.clusters]
    assert found.clusters[0].wrong == 1
    assert len(selected(sums(6), silent, clusters=2, fallback=True).demo) == 2


def test_more_clusters_than_questions_and_one():
    assert len(selected(sums(3), clusters=8).clusters) == 3
    one = selected([row for n, row in enumerate(sums(9)) if n % 2], clusters=1)
    assert len(one.clusters) == 1 and len(one.demo) == 1


def test_chains_that_are_there_already_are_not_asked_for():
    rows = [{**row, "rationale": f"It is {row['answer']}.", "prediction": row["answer"]} for row in sums(10)]
    lm = Adder()
    found = selected(rows, lm, clusters=2)
    assert lm.drawn == found.calls == 0 and all(demo.rationale.startswith("Let's think step by step. It is") for demo in found.demo)
    empty = selected([{**row, "rationale": "", "prediction": ""} for row in sums(10)], lm, clusters=2)  # as a table's empty cells are read
    assert lm.drawn and len(empty.demo) == 2


@pytest.mark.parametrize("style", ["chat", "completion"])
def test_demonstrations_are_followed(style, tmp_path):
    demos = selected(sums(12), clusters=2)
    file = tmp_path / "demos.json"
    file.write_text(demos.model_dump_json())
    lm, row = Adder(), sums(40)[31]
    made = solver("auto-cot", {"demos": str(file), "style": style})
    found = a_run(lm).solve_sync(made, task_of(row))
    assert found.answer == row["answer"] and found.details["way"] == "few-shot" and lm.drawn == 1
    assert [demo["cluster"] for demo in found.details["demonstrations"]] == [0, 1]
    prompt = lm.requests[0].prompt
    if style == "completion":
        assert prompt == made.demonstrated(demos.demo) + f"Q: {row['question']}\nA: Let's think step by step."
    else:
        assert [message.role for message in prompt] == ["user", "assistant"] * 2 + ["user"]
        assert prompt[0] == Message("user", f"{demos.demo[0].asked}\n\nLet's think step by step.")
        assert prompt[1].content == AutoCot()._conclusion(
            demos.demo[0].rationale.removeprefix("Let's think step by step. "), demos.demo[0].pred_ans
        )
    assert made.identity()["demonstrations"] and made.identity() != AutoCot(style=style).identity()


def test_no_demonstration_of_the_question_itself():
    own = [{"question": "Q: Is it?\nA:", "rationale": "x.", "pred_ans": "4"}, HATS.model_dump()]
    task = task_of({"question": "Is it?", "demos": own})
    lm = Scripted(["4. The answer is 4."])
    assert len(a_run(lm).solve_sync(AutoCot(), task).details["demonstrations"]) == 1
    assert len(a_run(lm).solve_sync(AutoCot(leave_out=False), task).details["demonstrations"]) == 2
    with pytest.raises(BadInput, match="demos"):
        a_run(lm).solve_sync(AutoCot(), task_of({"question": "Is it?", "demos": [{"question": 1}]}))


def test_few_shot_votes_and_empty_answers():
    task = task_of({"question": "Is it?", "demos": [HATS.model_dump()]})
    texts = ["The answer is 4.", "2 + 2. The answer is 4", "The answer is", "no", "4"]
    lm = Scripted(texts)
    assert a_run(lm, AheadBy(3), 0.7).solve_sync(AutoCot(), task).answer == "4" and lm.drawn == 5
    assert a_run(Scripted(["no"])).solve_sync(AutoCot(), task).answer == ""


def test_batches():
    """The first batch is Zero-Shot-CoT exactly; every later one has demonstrations of those before it only."""
    rows = sums(25)
    lm = Adder()
    found = selected(rows, lm, clusters=2, batch=10)
    assert [each["row"] for each in found.answers] == list(range(25)) and all(each["correct"] for each in found.answers)
    assert [each["batch"] for each in found.answers] == [0] * 10 + [1] * 10 + [2] * 5
    alone = [a_run(Adder()).solve_sync(AutoCot(style="completion"), task_of(row)).answer for row in rows[:10]]
    assert [each["answer"] for each in found.answers[:10]] == alone and {each["demonstrations"] for each in found.answers[:10]} == {0}
    assert {each["demonstrations"] for each in found.answers[10:]} == {2} and len(found.demo) == 2
    assert found.calls == lm.drawn == 2 * 10 + 15
    later = [text_of(request.prompt) for request in lm.requests if "The answer is" in text_of(request.prompt)]
    for prompt in later[:10]:
        shown = re.findall(r"Q: (.*?)\nA:", prompt)[:-1]
        assert len(shown) == 2 and set(shown) <= {row["question"] for row in rows[:10]}


def test_a_stopped_selection_goes_on():
    rows, journal = sums(24), Journal()
    whole = Adder()
    expected = selected(rows, whole, clusters=2, batch=6)
    drawn = 0
    for budget in (1, 5, 11, 40):
        lm = Adder()
        run = a_run(lm, journal=journal, id="r", budget=Budget(calls=budget))
        with suppress(BudgetSpent):
            assert selected(rows, run=run, clusters=2, batch=6) == expected
        drawn += lm.drawn
    assert drawn <= whole.drawn + 3 * 6  # what was under way at each stop
    last = a_run(Adder(), journal=journal, id="r")
    assert selected(rows, run=last, clusters=2, batch=6) == expected
    with pytest.raises(ChangedWork):
        selected(rows[1:], run=a_run(Adder(), journal=journal, id="r"), clusters=2, batch=6)


def test_bad_selections():
    with pytest.raises(BadInput, match="clusters"):
        Selection(solver=AutoCot(), rows=sums(2), clusters=0)
    with pytest.raises(BadInput, match="batch"):
        Selection(solver=AutoCot(), rows=sums(2), batch=0)
    with pytest.raises(BadInput, match="no questions"):
        Selection(solver=AutoCot(), rows=[])
    with pytest.raises(BadInput, match="is no question"):
        selected([{"answer": 1}])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"demo": [1]}', '{"demo": [{"question": "x"}]}', "[" * 9999, "\ud800"])
def test_files_that_hold_no_demonstrations(text, tmp_path):
    file = tmp_path / "d.json"
    file.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(BadInput, match="set demos"):
        read_demos(file)


def test_the_published_form_is_read(tmp_path):
    file = tmp_path / "multiarith"
    file.write_text(json.dumps({"demo": [{"question": "Q: x\nA:", "rationale": "y.", "pred_ans": "4", "gold_ans": "4"}]}))
    assert AutoCot(demos=str(file))._filed()[0].asked == "x"


# On the command line.


@pytest.fixture
def lm(tmp_path, monkeypatch):
    model = Adder()
    monkeypatch.setattr("keystep.cli.job.lm", lambda name, **options: model)
    monkeypatch.chdir(tmp_path)
    Path("q.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in sums(20)))
    return model


def command(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def test_demos_are_made_and_used(lm):
    line = ["demos", "--inputs", "q.jsonl", "--out", "demos.json", "--clusters", "2", "--set", "style=completion"]
    stopped = command(*line, "--budget-calls", "1")
    assert stopped.exit_code == 3 and "the same command goes on" in stopped.stderr and not Path("demos.json").exists()
    result = command(*line)
    assert result.exit_code == 0, result.stderr
    assert "2 demonstrations in demos.json" in result.stdout
    short = command(*line[:4], "other.json", *line[5:], "--check", "words=14").stdout
    assert "none: all were rejected" in short and "15 words, more than 14" in " ".join(short.split()) and "1 demonstrations" in short
    first, drawn = Path("demos.json").read_text(), lm.drawn
    found = json.loads(command(*line, "--json").stdout)
    assert lm.drawn == drawn and found["demo"] == json.loads(first)["demo"] and found["calls"] == 4
    solved = command("solve", "auto-cot", "--inputs", "q.jsonl", "--set", "demos=demos.json", "--set", "style=completion", "--json")
    assert json.loads(solved.stdout)["accuracy"] == 1 and json.loads(solved.stdout)["samples"] == 20


def test_demos_in_batches(lm):
    line = ["demos", "--inputs", "q.jsonl", "--out", "d.json", "--batch", "8", "--answers", "a.jsonl", "--clusters", "2"]
    result = command(*line, "--set", "style=completion", "--json")
    found = json.loads(result.stdout)
    assert (found["answered"], found["accuracy"]) == (20, 1) and found["samples"] == 2 * 8 + 12
    assert [json.loads(text)["batch"] for text in Path("a.jsonl").read_text().splitlines()] == [0] * 8 + [1] * 8 + [2] * 4
    assert "20 answered, 20 of 20 right" in command(*line, "--set", "style=completion").stdout


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--clusters", "0"], "clusters: must be at least 1"),
        (["--means-seed", "-1"], "means-seed: must be from 0"),
        (["--check", "steps=0"], "check steps: must be at least 1"),
        (["--answers", "a.jsonl"], "--answers: is for --batch"),
        (["--set", "demos=x.json"], "--set demos: is what this command makes"),
        (["--check", "nosuch=1"], "--check: is no check"),
        (["--check", "counted=words"], "--check counted"),
        (["--encoder", "nosuch"], "encoder: is no encoder"),
        (["--set", "kind=x"], "kind: is no kind of answer"),
        (["--inputs", "none.jsonl"], "inputs: there is no such file"),
    ],
)
def test_bad_commands(lm, more, said):
    result = command("demos", "--inputs", "q.jsonl", "--out", "d.json", *more)
    assert result.exit_code == 2 and said in result.stderr and result.stdout == "" and lm.drawn == 0 and not Path("d.json").exists()


def test_questions_on_the_command_line(tmp_path):
    assert command("questions").stdout.split() == [
        "gsm8k",
        "gsm8k-solutions",
        "svamp",
        "aqua",
        "decomp",
        "zero-shot-log",
        "last-letters",
        "coin-flip",
    ]
    lines = command("questions", "coin-flip", "--count", "3").stdout.splitlines()
    assert len(lines) == 3 and json.loads(lines[0]).keys() == {"id", "question", "answer"}
    out = tmp_path / "l.jsonl"
    assert "2 questions in" in command("questions", "last-letters", "--count", "2", "--out", str(out)).stderr
    assert len(out.read_text().splitlines()) == 2
    assert command("questions", "nosuch").exit_code == 2


LOG = """***
1st data
Q: Two hats and
two more?
A: Let's think step by step. 2 + 2 = 4.

So many: four.
Therefore, the answer (arabic numerals) is 4.
pred_mode : 4
GT : 4
***
Q: What is lost?
pred_mode : 9
***
Q: At 5:30?
A: So it is 5:30.
Therefore, the answer is 5:30.
pred_mode : 5:30
"""


def test_logs_of_zero_shot_runs(tmp_path):
    """No rationale of an earlier block is taken for one that is missing, and answers keep their colons."""
    first, second = zero_shot_log(LOG)
    assert first["question"] == "Two hats and\ntwo more?" and first["rationale"] == "2 + 2 = 4.\n\nSo many: four."
    assert (first["prediction"], first["answer"]) == ("4", "4") and second["prediction"] == "5:30" and "answer" not in second
    lm = Scripted([""])
    found = selected([first], lm, heuristics=Heuristics(answer_at_end=False))
    assert lm.drawn == 0 and found.demo[0].rationale == "Let's think step by step. 2 + 2 = 4. So many: four."


@pytest.mark.skipif(not DATA, reason="KEYSTEP_AUTO_COT_DATA names no folder")
def test_recorded_chains():
    """The checks choose better chains: error of those that pass and of those that fail, for the systems of the sheet."""
    text = (Path(DATA) / "gsm8k_example_model_solutions.jsonl").read_text("utf-8")
    checks = Heuristics(words=62, full_stop=False, answer_at_end=False)  # 60 without "Q:" and "A:"
    known = {"6b_finetuning": (0.749, 0.902, 1023), "175b_finetuning": (0.610, 0.799, 1020), "175b_verification": (0.372, 0.654, 1013)}
    solving = AutoCot(kind="gsm8k")
    for model, (passing, failing, size) in known.items():
        errors = {True: [], False: []}
        for row in gsm8k_solutions(text, model):
            last = row["rationale"].rstrip().rpartition("\n")[2]
            fine = checks.rejected(solving.of, row["question"], row["rationale"], row["prediction"]) is None and row["prediction"] in last
            errors[fine].append(not solving.right(row["prediction"], row["answer"]))
        assert np.mean(errors[True]) == pytest.approx(passing, abs=0.0005) and np.mean(errors[False]) == pytest.approx(failing, abs=0.0005)
        assert len(errors[True]) == size
    rows = gsm8k_solutions(text)
    found = selected(rows, Scripted([""]), solver=solving, heuristics=Heuristics(full_stop=False))
    assert len(found.demo) == 8 and found.calls == 0 and sum(report.size for report in found.clusters) == 1319
    assert found == selected(rows, Scripted([""]), solver=replace(solving), heuristics=Heuristics(full_stop=False))
