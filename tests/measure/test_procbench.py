"""ProcBench: the known answers of its sheet, all published-style problems replayed, scores, texts, both modes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from answering import Knowing, truths
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from keystep.errors import BadInput
from keystep.measure.bench import benchmark, journaled, many, settings_of
from keystep.measure.procbench import KINDS, Problem, extract, generate, geometric, load, score
from keystep.measure.procbench.bench import Settings
from keystep.measure.procbench.scoring import MISSING, matches
from keystep.run import Run
from keystep.run.flags import Flag
from keystep.run.vote import AheadBy, First

BENCH = benchmark("procbench")
SENTENCES = [
    "the old man saw a small red boat near the long grey wall, and then he went home with his dog to eat (late) some warm bread or so",
    "Rain fell on the roof all night.",
    "One two three four five six seven eight",
    "Nobody came.",
    "We saw nothing.",
    "It was not me.",
]

# question -> the states, the initial one first; written by hand or from the sheet
KNOWN = {
    (1, "String: cbab"): ["cbab", "abcb", "abbc"],
    (2, "Strings: [abcde, 12345]\nSets of Numbers: [(1, 0, 2), (0, 3, 2)]"): ["", "12", "12de"],
    (3, "Strings:\n['a1b2c', 'xyz']"): ["0", ["a1b2c", "3", "12", "36"], ["xyz", "3", "0", "0"], 36],
    (4, "Strings: [aaa, baa]\nSubstrings: [aa, ba]"): [[0, 0], [1, 1], [1, 2]],
    (5, "Strings: [ab, c]\nIndices: [1, 0]"): ["", "c", "cab"],
    (6, "Pairs:\n(a, b)\n(b, c)\nString:\nabz"): ["abz", "bbz", "bcz", "bcz"],
    (7, "String:\n0001100"): ["", ["0_3"], ["0_3", "1_2"], ["0_3", "1_2", "0_2"]],
    (8, "String:\nabcdef\nPositions:\n4, 1"): [["abcdef"], ["abcd", "ef"], ["a", "bcd", "ef"]],
    (9, "String:\nabcdef\nIndices:\n(0, 4), (1, 1)"): [["abcdef"], ["abcd", "ef"], ["abcd", "e", "f"]],
    (10, "Rules:\na, b -> c\nc, c -> d\nInitial state:\na, b, a, b"): [list("abab"), list("abc"), list("cc"), ["d"]],
    (11, "characters: abca\nrules:\na -> xy\nc -> zz"): ["abca", "xybca", "xybzza", "xybzzxy"],
    (12, "Sequence 1: 0, 6\nSequence 2: d, c, b\nN: 3"): ["", "0d", "0d6c", "0d6c0b"],
    (13, "Target: maay\nCandidate: mtlg, mafu, maay, maay"): [[""], "m", "ma", ["m", "ma", "maay"]],
    (14, "Sentence:\nAb a"): [[0] * 26, [1, 1] + [0] * 24, [2, 1] + [0] * 24],
    (15, "Sentence: 1x1 0x2 1x3"): ["", "1", "100", "100111"],
    (16, "Initial string: a\nActions: pop_left, pop_right, push_right(b), push_left(c)"): ["a", "", "", "b", "cb"],
    (17, "String:\nabcdef\nIndices:\n(1, 4), (0, 2)"): ["abcdef", "adbcef", "dabcef"],
    (18, "Sentence:\nthe [2] sat [1]\nList:\n[(1, on), (2, cat)]"): ["the [2] sat [1]", "the [2] sat on", "the cat sat on"],
    (19, "String: hchouumkd\nSteps: \n1. c\n2. u\n3. h\n4. k\n5. d\n6. o\n7. h\n8. m"): [
        *("hchouumkd", "hhouumkd", "hhoumkd", "houmkd", "houmd", "houm", "hum", "um", "u")
    ],
    (20, "Sentence:\na b a c\nWords: [a, c]"): ["a b a c", "b a c", "b a"],
    (21, "N = 6\nOperations: [Add 1, Multiply 3]"): [6, 7, 21],
    (22, "Initial array:\nx----\nOperations: [\n (left, 2),\n (right, 5)\n]"): ["x----", "---x-", "---x-"],
    (23, "String: abc\nCommand: ['b', '4']"): [["b", "4"], ["c", "3"], ["a", "2"], ["b", "1"], "c"],
}


@pytest.mark.parametrize(("task", "question"), KNOWN, ids=lambda part: KINDS[part].name if isinstance(part, int) else "")
def test_known_states(task, question):
    kind = KINDS[task]
    config = kind.read(question)
    assert kind.states(config) == KNOWN[task, question]
    assert kind.question(config).strip() == question.strip()


def test_every_task_has_a_known_answer():
    assert {task for task, _ in KNOWN} == KINDS.keys() == set(range(1, 24))


def problems_of(tasks, lengths=(2, 3, 7), each=2, seed=0):
    return list(generate(tasks, lengths, each, seed, SENTENCES))


def test_generated_problems_are_what_they_say():
    for problem in problems_of(KINDS):
        states = problem.kind.states(problem.config)
        assert states == [problem.init, *problem.intermediate, problem.final]
        assert problem.steps == int(problem.id[7:9]) and problem.steps in (2, 3, 7)
        assert json.loads(json.dumps(problem.as_json())) == problem.as_json()


def test_a_problem_depends_on_its_own_address_alone():
    alone = list(generate([17], [7], 3, 5))
    assert alone == [p for p in generate([16, 17], [3, 7], 3, 5) if p.task == 17 and p.steps == 7]
    assert alone != list(generate([17], [7], 3, 6))


def test_the_longest_of_the_paper_can_be_drawn():
    assert [p.steps for p in generate([1, 10, 11, 13, 23], [25], 1, 0)] == [25] * 5


def data():
    where = os.environ.get("KEYSTEP_DATA")
    if where is None or not (Path(where) / "procbench").is_dir():
        pytest.skip("set KEYSTEP_DATA to the folder that holds procbench/")
    return Path(where) / "procbench"


def test_all_problems_made_with_the_reference_generators_replay():
    problems = load(data())
    assert len(problems) == 1440 and len({problem.id for problem in problems}) == 1440
    for problem in problems:
        assert problem.kind.states(problem.config) == [problem.init, *problem.intermediate, problem.final], problem.id
        assert problem.kind.question(problem.config).strip() == problem.question.strip()


def test_metrics():
    truth = ["a", "b", "c", "d"]

    def of(*predicted):
        found = score(truth, predicted)
        return found.pml, found.pa, found.sm, found.fm

    assert of("a", "b", "x", "d") == (2, 0.5, False, True)
    assert of("a", "b", "c") == (3, 0.75, False, False)
    assert of("a", "b", "c", "d", "d") == (4, 0.8, False, True)
    assert of("d") == (0, 0, False, True)
    assert of("a", "b", "c", "d") == (4, 1, True, True)
    assert of() == (0, 0, False, False)
    assert of("a", "b", "c", MISSING) == (3, 0.75, False, False)


@pytest.mark.parametrize(
    ("truth", "predicted", "same"),
    [
        (5, "5", True), (5, "x", False), (5, None, False), (5, [5], False), (5, float("inf"), False), (5, "9" * 5000, False),
        (5, {}, False),
        ("3", 3, True), ("abc", ["abc"], False), ("None", None, False), ("a", MISSING, False), ("abc", "abc ", False),
        ([1], [1, 1], False), ([1], ["1"], True), ([], [], False), (["a", "b"], "ab", False), ([1], None, False), ([1], {"0": 1}, False),
        (["a", "3"], ["a", 3], True), ([[1]], [[1]], True),
    ],
)  # fmt: skip
def test_elements_are_compared_by_the_type_of_the_truth(truth, predicted, same):
    assert matches(truth, predicted) is same


def test_a_list_deeper_than_python_goes_matches_nothing():
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert not matches("a", deep) and not matches(["a"], [deep]) and not matches(1, deep)


def test_the_geometric_law():
    for n, sm, pa in ((6, 0.735092, 0.838876), (16, 0.440127, 0.664850), (25, 0.277390, 0.549184)):
        found = geometric(0.95, n)
        assert (found[0], found[2]) == pytest.approx((sm, pa), abs=5e-7)
        assert found[1] == pytest.approx(0.95 * (1 - 0.95**n) / 0.05)
    assert geometric(1, 7) == (1, 7, 1) and geometric(0, 7) == (0, 0, 0)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.lists(st.integers(0, 3) | st.none() | st.text(max_size=2), max_size=8))
def test_scores_keep_their_order(truth, predicted):
    found = score(truth, predicted)
    assert 0 <= found.pa <= 1 and found.pml <= min(len(truth), len(predicted))
    assert found.sm == (found.pa == 1) and (found.fm or not found.sm)
    assert score(truth, truth).sm


def test_texts():
    two = {"intermediate": ["a"], "final": "b"}
    assert extract('Let me see {"x": 1}. {"final": "z"}\n```json\n{"intermediate": ["a"], "final": "b"}\n```') == two
    assert extract('{ "final": "b", "intermediate": ["a"]} done') == two
    assert extract('{"intermediate": [], "final": 1} then {"intermediate": ["a"], "final": "b"}') == two
    assert extract('{"task": "Sort", "notes": {"n": 2}, "intermediate": ["a"], "final": "b"}') == two  # other keys come first
    assert extract("Step 2: [1, 2]\nstep 1: 0x1\n**Final state:** 1e5") == {"intermediate": ["0x1", [1, 2]], "final": "1e5"}
    assert extract('final: "a b"') == {"intermediate": [], "final": "a b"}
    for text in ("", "the answer is b", '{"intermediate": "a", "final": "b"}', '{"intermediate": ["a"]}', "final:", '{"final":' * 9000):
        with pytest.raises(Flag):
            extract(text)


def test_long_hostile_texts_are_read_in_no_time():
    for part in ("* ", "step 1:", "final:", "final: *", "-", '{"final":', "[", "#\n", "step 1: *\n", '{"final": [ ', '{"intermediate": ['):
        with contextlib.suppress(Flag):
            extract(part * 200_000 + "x")


@settings(max_examples=300)
@given(st.text() | st.text(alphabet='{}[]":,final intermediate step 1\n'))
def test_no_text_makes_it_crash(text):
    try:
        found = extract(text)
    except Flag:
        return
    assert isinstance(found["intermediate"], list) and "final" in found


def answers_of(mode, problems, lm, rule=None):
    run = Run(lm, vote=rule or First(cap=1))
    asyncio.run(many(BENCH, Settings(mode=mode), problems, rule is not None).execute(run))
    return journaled(run, len(problems))


@pytest.mark.parametrize("mode", ["direct", "stepwise"])
def test_a_worker_that_knows_scores_1_on_every_task(mode):
    problems = [problem.as_json() for problem in problems_of(KINDS, lengths=(2, 4), each=1)]
    answers = answers_of(mode, problems, Knowing(truths(problems, mode)))
    scores = BENCH.score(Settings(mode=mode), problems, answers)
    assert {row["SM"] for row in scores["tables"]["By task"]} == {1.0} and len(scores["tables"]["By task"]) == 23
    assert scores["summary"]["PA"] == scores["summary"]["FM"] == scores["summary"]["step accuracy"] == 1
    assert scores["summary"]["unreadable"] == 0


def test_a_worker_that_errs_at_a_rate_follows_the_law():
    """5% unreadable steps, 400 problems of 10 steps, nobody votes; then a vote of 2 draws what is unreadable again."""
    problems = [problem.as_json() for problem in generate([17], [10], 400, 3)]
    lm = Knowing(truths(problems, "stepwise"), errs=0.05)
    answers = answers_of("stepwise", problems, lm)
    scores = BENCH.score(Settings(mode="stepwise"), problems, answers)
    row = scores["tables"]["By length"][0]
    assert stats.binomtest(round(row["SM"] * 400), 400, 0.95**10).pvalue > 1e-3
    assert scores["summary"]["step accuracy"] == pytest.approx(0.95, abs=0.01)
    assert row["PA"] == pytest.approx(row["law PA"], abs=0.04)
    voted = answers_of("stepwise", problems[:50], lm, AheadBy(2))
    assert BENCH.score(Settings(mode="stepwise"), problems[:50], voted)["summary"]["SM"] == 1


def test_groups_of_lengths():
    problems = [p.as_json() for p in generate([22], range(2, 26), 10, 0)]
    rows = BENCH.score(Settings(), problems, [[] for _ in problems])["tables"]["By group of lengths"]
    assert {row["group"]: row["problems"] for row in rows} == {"short": 50, "medium": 100, "long": 90}
    assert {row["PA"] for row in rows} == {0.0} and {row["unreadable"] for row in rows} == {1.0}


def test_a_cut_answer_gets_its_prefix():
    """The truth after j steps and nothing behind it: PML j, however long the problem is."""
    problem = next(iter(generate([17], [8], 1, 0)))
    for j in range(9):
        states = [*problem.intermediate, problem.final][:j]
        answer = {"intermediate": states[:-1], "final": states[-1]} if states else None
        found = BENCH.score(Settings(), [problem.as_json()], [[answer]])["summary"]
        assert (found["PML"], found["SM"]) == (j, j == 8)
        assert found["PA"] == j / 8


def test_lenient_settings():
    problem = next(iter(generate([23], [4], 1, 0)))
    states = {"intermediate": [problem.init, *problem.intermediate], "final": problem.final}
    twice = {"intermediate": [*problem.intermediate, problem.final], "final": problem.final}

    def sm(answer, **options):
        return BENCH.score(Settings(**options), [problem.as_json()], [[answer]])["summary"]["SM"]

    assert (sm(states), sm(states, drop_given_pair=True)) == (0, 1)
    assert (sm(twice), sm(twice, drop_repeated_final=True)) == (0, 1)


def test_a_final_state_that_the_truth_repeats_is_not_dropped():
    problem = Problem("task06/x", 6, "Pairs:\n(a, b)\nString:\nac", "ac", ["bc"], "bc")  # its last step changes nothing
    lenient = Settings(drop_repeated_final=True)
    for states, pa in ((["bc"], 1), (["bc", "bc"], 1), ([], 0.5)):
        answer = {"intermediate": states, "final": "bc"}
        assert BENCH.score(lenient, [problem.as_json()], [[answer]])["summary"]["PA"] == pa


def published(problem):
    label = {"init": problem.init, "intermediate": problem.intermediate, "final": problem.final}
    return {
        "prompt": f"Do it.\n[Question]\n{problem.question}\n",
        "label": label,
        "task_name": f"task{problem.task:02}",
        "example_name": "0003",
    }


def test_files_of_every_format(tmp_path):
    problem = next(iter(generate([17], [3], 1, 0)))
    row = published(problem)
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"label": json.dumps(row["label"])}))
    for part, name, text in (("prompt", "0003.txt", row["prompt"]), ("label", "0003.json", json.dumps(row["label"]))):
        folder = tmp_path / "folder" / "task17" / part
        folder.mkdir(parents=True)
        (folder / name).write_text(text)
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    for file in ("a.jsonl", "a.parquet", "folder"):
        for found in load(tmp_path / file):
            assert (found.id, found.init, found.intermediate, found.final) == (
                "task17/0003",
                problem.init,
                problem.intermediate,
                problem.final,
            )
            assert found.config == problem.config and found.prompt == row["prompt"]
    direct = BENCH.procedure(Settings(), found.as_json())
    assert direct.prompt(0).startswith("Do it.\n[Question]")  # the published text where there is one
    assert len(load(tmp_path)) == 4


@pytest.mark.parametrize(
    "row",
    [
        [], 7, {}, {"task": "task99", "question": "q", "init": "", "intermediate": [], "final": ""},
        {"task": "task17", "question": "q", "init": "", "intermediate": "x", "final": ""},
        {"task": "task17", "question": 3, "init": "", "intermediate": [], "final": ""},
        {"task": "task17", "question": "q", "init": "", "intermediate": [None], "final": ""},
        {"task": "task17", "question": "q", "init": "", "intermediate": [], "final": 1.5},
        {"task": "task17", "question": "q", "init": "", "intermediate": [], "final": True},
        {"task_name": "task17", "prompt": "[Question]\nx", "label": "{"},
    ],
)  # fmt: skip
def test_an_entry_that_is_no_problem_is_refused_by_name(tmp_path, row):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(BadInput, match="entry 1"):
        load(tmp_path / "a.jsonl")


def test_a_question_of_another_task_is_refused_where_it_is_needed():
    problem = Problem("task17/x", 17, "String: cbab", "cbab", [], "abbc")
    BENCH.procedure(Settings(), problem.as_json())
    with pytest.raises(BadInput, match=r"problem task17/x: is no question of Rotate"):
        BENCH.procedure(Settings(mode="stepwise"), problem.as_json())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tasks": [0]}, "set tasks: is no task"),
        ({"tasks": [14]}, "set tasks: needs sentences"),
        ({"sentences": "none.txt"}, "set sentences: cannot be read"),
        ({"data": "none"}, "cannot be read .*name a file that is there"),
        ({"shortest": 9, "longest": 3}, "no problem is left"),
        ({"tasks": [23], "shortest": 40, "longest": 40}, "set shortest, longest: no instance of FindCyclic"),
    ],
)
def test_settings_that_cannot_be(given, said, tmp_path, monkeypatch):
    from keystep.measure.procbench import problems as module

    monkeypatch.setattr(module, "TRIES", 50)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=said):
        BENCH.problems(settings_of(BENCH, given), 0)


def test_sentences_come_from_a_file(tmp_path):
    (tmp_path / "s.txt").write_text("\n".join([*SENTENCES, "naïve lines are left out", ""]), "utf-8")
    found = BENCH.problems(Settings(sentences=str(tmp_path / "s.txt"), tasks=[14, 18, 20], shortest=7, longest=7, each=3), 0)
    assert len(found) == 9 and not any("ï" in problem["question"] for problem in found)
    with pytest.raises(BadInput, match="of exactly so many different words"):
        BENCH.problems(Settings(sentences=str(tmp_path / "s.txt"), tasks=[14], shortest=60, longest=60), 0)
    (tmp_path / "s.txt").write_text("ï\n")
    with pytest.raises(BadInput, match="no usable sentence"):
        BENCH.problems(Settings(sentences=str(tmp_path / "s.txt")), 0)


def test_oracle_with_corruptions_is_scored_at_its_first_one():
    draw, problems, answers, firsts = random.Random(1), [], [], []
    for problem in generate([21], range(2, 26), 4, 1):
        states = [*problem.intermediate, problem.final]
        wrong = [draw.random() < 0.2 for _ in states]
        firsts.append(wrong.index(True) if any(wrong) else len(states))
        states = [state + 1 if bad else state for state, bad in zip(states, wrong, strict=True)]
        problems.append(problem.as_json())
        answers.append([{"intermediate": states[:-1], "final": states[-1]}])
    scores = BENCH.score(Settings(), problems, answers)
    assert scores["summary"]["PML"] == pytest.approx(np.mean(firsts))
    hit = {row["state"]: row["first wrong here"] for row in scores["tables"]["First wrong state"]}
    assert all(hit[place + 1] == firsts.count(place) - sum(p["id"][7:9] == f"{place:02}" and f == place
               for p, f in zip(problems, firsts, strict=True)) for place in range(25))  # fmt: skip
