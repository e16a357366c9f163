"""`add`, `multiply`, `sort` and `edits` from the command line, and a file of questions and answers as inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from worker import Worker

from keystep.lm.embedded.model import WEIGHTS

ITEMS = [
    {"id": "mul-0", "question": "Multiply the following numbers:\n46048 × 42098", "answer": "1938528704"},
    {"id": "mul-1", "question": "Multiply the following numbers:\n23434 × 98696", "answer": "2312842064"},
]
STORY = "Ann has 12 apples. Ann gives Bob three apples. Ann doubles the number of apples. How many apples does Ann have now?"
LISTS = [{"id": "sort-0", "question": "Sort the following list:\n[-6352, -9181, 988, -1976]", "answer": "[-9181,-6352,-1976,988]"}]


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "steps", "result"),
    [
        (["add", "--set", "a=998", "--set", "b=7"], 3, {"sum": 1005}),
        (["multiply", "--set", "a=12345", "--set", "b=67890"], 25, {"product": 838102050}),
        (["letters", "--set", "text=to be or not"], 11, {"letters": "oert"}),
        (["problem", "--set", f"question={STORY}"], 10, {"answer": 18}),
        (["sort", "--set", "values=[3, -7, 3, 0]"], 5, {"sorted": [-7, 0, 3, 3]}),
        (
            ["edits", "--set", "values=[4, 4, 5, 6]", "--set", "operations=[swap 0 3, insert 17 2, count 4]"],
            3,
            {"list": [6, 4, 17, 5, 4], "counts": [2]},
        ),
    ],
)
def test_a_procedure_and_its_result(keystep, use, arguments, steps, result):
    use(Worker([0.9, 0.1]))
    found = json.loads(keystep("run", *arguments, "--ahead-by", "5", "--json").stdout)
    assert found["correct"] is True and found["result"] == result and found["steps"] <= steps


@pytest.mark.parametrize(("name", "items"), [("multiply", ITEMS), ("sort", LISTS)])
def test_items_as_inputs(keystep, use, here, name, items):
    use(Worker([0.9, 0.1]))
    arguments = ("run", name, "--inputs", lines(here / "items.jsonl", items), "--ahead-by", "5")
    found = json.loads(keystep(*arguments, "--json").stdout)
    assert found["correct"] is True and found["rows"]["finished"] == len(items)
    written = [json.loads(line) for line in (here / "items.results.jsonl").read_text().splitlines()]
    results = {row["row"]: next(iter(row["result"].values())) for row in written}
    assert [results[number] for number in range(len(items))] == [json.loads(item["answer"]) for item in items]


def test_an_item_whose_answer_is_another_is_wrong(keystep, use, here):
    use(Worker())
    path = lines(here / "items.jsonl", [ITEMS[0], {**ITEMS[1], "answer": "1"}])
    result = keystep("run", "multiply", "--inputs", path, "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["rows"]["wrong"] == 1


def test_a_table_of_numbers_as_inputs(keystep, use, here):
    use(Worker())
    (here / "numbers.csv").write_text("a,b\n12,34\n5,678\n")
    keystep("run", "multiply", "--inputs", "numbers.csv", "--quiet")
    written = [json.loads(line) for line in (here / "numbers.results.jsonl").read_text().splitlines()]
    assert sorted(row["result"]["product"] for row in written) == [408, 3390]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["multiply", "--set", "a=-3"], "a: is a whole number of at most 1000 digits, without a sign (got '-3')"),
        (["multiply", "--set", "c=3"], "its settings are"),
        (["multiply", "--set", "question=two times three"], "question: does not hold one pair of numbers"),
        (["letters", "--set", "text=it's"], "text: has a word that is not 1 to 12 letters"),
        (
            ["problem", "--set", "question=Ann eats 3 apples. How many apples does Ann have now?"],
            "question: is of no template (got 'Ann eats 3",
        ),
        (["sort", "--set", "values=[1, two]"], "values: is a list of whole numbers"),
    ],
)
def test_settings_that_cannot_be(keystep, here, arguments, message):
    result = keystep("run", *arguments)
    assert result.exit_code == 2 and message in result.stderr and list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "given", "ensemble"),
    [
        ("add", ["a=31415", "b=98765"], "arithmetic"),
        ("multiply", ["a=314", "b=98765"], "arithmetic"),
        ("sort", ["size=30"], "pairs"),
        ("edits", ["values=[3, 14, 15, 92, 65]", "operations=[rotate 2, insert 35 1, reverse, delete 4, extract 1 3]"], "lists"),
        ("letters", ["text=Xqzu aaab b Mississippi kk opq", "glue=comma"], "strings"),
        ("problem", ["operations=4", "instance=7"], "problems"),
    ],
)
def test_the_embedded_models_do_them(keystep, name, given, ensemble):
    if not (WEIGHTS / f"{ensemble}.safetensors").exists():
        pytest.skip(f"the ensemble {ensemble} is not in this checkout")
    settings = [part for setting in given for part in ("--set", setting)]
    assert json.loads(keystep("run", name, *settings, "--json").stdout)["correct"] is True
