"""What every benchmark of this room keeps: seeds, limits, JSON, hostile predictions, resume, the command line, the report."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner
from worker import Scripted

from keystep.cli import app
from keystep.errors import BudgetSpent
from keystep.measure.bench import BENCHMARKS, ask_one, benchmark, drawn, journaled, many, read_predictions, settings_of
from keystep.measure.page import page
from keystep.run import AheadBy, Budget, Journal, Run
from keystep.run.vote import First

EVERY = pytest.mark.parametrize("name", sorted(BENCHMARKS))
SMALL = {  # settings that keep a benchmark to a few problems
    "procbench": {"tasks": [13, 17, 23], "longest": 4},
    "long-horizon-execution": {"ways": ["conversation", "window-2"], "instances": 4, "horizon": 6, "size": 5, "drawn": 9},
    "taskbench": {"n": 12},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def of(name, seed=0):
    chosen = benchmark(name)
    found = settings_of(chosen, SMALL.get(name, {}))
    return chosen, found, drawn(chosen.problems(found, seed), 8, seed)


@EVERY
def test_problems_are_json_with_ids_and_the_same_for_a_seed(name):
    chosen, found, problems = of(name)
    again = chosen.problems(found, 0)
    assert again == chosen.problems(found, 0) and json.loads(json.dumps(again)) == again
    assert len({problem["id"] for problem in again}) == len(again)
    assert [problem for problem in again if problem in problems] == problems
    assert drawn(again, None, 0) is again and drawn(again, len(again) + 1, 0) is again


@EVERY
@pytest.mark.parametrize("text", ["", "I cannot say.", "null", "[" * 3000, '{"a": NaN, "b": 1e999}', '"\\ud800"'])
def test_a_worker_that_talks_nonsense_is_scored(name, text):
    """Unreadable answers are answers where nobody votes; nothing is asked twice, nothing fails."""
    chosen, found, problems = of(name)
    lm = Scripted([text])
    run = Run(lm, vote=First(cap=1), sampling=None)
    asyncio.run(many(chosen, found, problems, voted=False).execute(run))
    assert not list(run.journal.row_lines(run.id, "failed"))
    answers = journaled(run, len(problems))
    assert sum(map(len, answers)) == lm.drawn
    scores = chosen.score(found, problems, answers)
    text = json.dumps(scores, allow_nan=False)
    assert json.loads(text)["summary"].keys() == scores["summary"].keys()
    assert all(chart.lines for chart in chosen.charts(json.loads(text)))


@EVERY
def test_where_votes_decide_nonsense_is_drawn_again(name):
    chosen, found, problems = of(name)
    lm = Scripted(["nonsense"])
    answers = asyncio.run(ask_one(chosen, found, problems[0], lm, AheadBy(1, cap=7)))
    assert answers == [] and lm.drawn == 7


@EVERY
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_json_is_scored_or_left_out(name, data):
    """`predicted` and `score` take whatever JSON holds, in as many answers as there may be."""
    chosen, found, problems = of(name)
    fields = ("intermediate", "final", "text", "answers", "result", "task_nodes", "task_links", "task_steps")
    records = [data.draw(st.dictionaries(st.sampled_from(fields), JSON, max_size=4)) for _ in problems[:3]]
    answers = [chosen.predicted(found, problem, record) for problem, record in zip(problems[:3], records, strict=True)]
    raw = [data.draw(st.lists(JSON, max_size=4)) for _ in problems[:3]]
    for given_answers in (answers, raw):
        for end in (1, 3):
            json.dumps(chosen.score(found, problems[:end], given_answers[:end]), allow_nan=False)


@EVERY
def test_hostile_files_of_predictions(name, tmp_path):
    chosen, found, problems = of(name)
    id = problems[0]["id"]
    deep = '{"id": "' + id + '", "final": ' + "[" * 100_000 + "]" * 100_000 + "}"
    huge = json.dumps({"id": id, "intermediate": [0] * 200_000, "final": "x" * 200_000, "answers": [0] * 200_000})
    lines = ["", "not json", "[1]", '{"id": [1]}', '{"noid": 1}', deep, huge, huge, '{"id": "nobody"}', "\x00", '{"id": 9e999}', "9" * 9000]
    file = tmp_path / "p.jsonl"
    file.write_bytes("\n".join(lines).encode() + b'\n{"id": "\xff"}')
    answers, odd = read_predictions(chosen, found, problems, file)
    assert odd == {"unreadable_lines": 8, "unknown_ids": 2, "repeated_ids": 1, "missing": len(problems) - 1}
    json.dumps(chosen.score(found, problems, answers), allow_nan=False)


def bench(*arguments):
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def flags(name):
    pairs = [f"{key}={json.dumps(value)}" for key, value in SMALL.get(name, {}).items()]
    return [name, "--limit", "8", *(part for pair in pairs for part in ("--set", pair))]


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lm = Scripted(['<script>alert("x")</script> ]]> $x^2$ final: &amp;'])
    monkeypatch.setattr("keystep.cli.job.lm", lambda name, **options: lm)
    return lm


@EVERY
def test_the_same_command_again_asks_nothing_again(name, scripted, tmp_path):
    first = bench(*flags(name), "--json", "--model", "<b>hostile</b>")
    assert first.exit_code == 0, first.stderr
    found, asked = json.loads(first.stdout), scripted.drawn
    assert found["problems"] == 8 and found["failed"] == 0 and asked >= 8 and found["samples"] == asked
    assert {"model", "settings", "seed", "summary", "tables", "report", "run_id"} <= found.keys()
    again = json.loads(bench(*flags(name), "--json", "--model", "<b>hostile</b>").stdout)
    assert scripted.drawn == asked and again["summary"] == found["summary"]
    other = json.loads(bench(*flags(name), "--json", "--seed", "1").stdout)
    assert scripted.drawn > asked and other["run_id"] != found["run_id"]
    there, elsewhere = (json.loads(bench(*flags(name), "--json", "--base-url", url).stdout) for url in ("http://a/v1", "http://b/v1"))
    assert len({run["run_id"] for run in (found, there, elsewhere)}) == 3  # two servers' models of one name are two models
    report = (tmp_path / found["report"]).read_text("utf-8")
    assert "<script" not in report and "<b>hostile" not in report and "&lt;b&gt;hostile" in report
    assert report.count("<svg") == report.count("</svg>") >= 1
    assert not re.search(r"(?:src|href)=\"(?!#)", report)  # it needs nothing else
    assert json.loads((tmp_path / found["report"]).with_suffix(".json").read_text()) == again


@EVERY
def test_a_stopped_run_goes_on(name, scripted):
    chosen, found, problems = of(name)
    journal = Journal("runs.db")
    lms = [Scripted(["nonsense"]), Scripted(["nonsense"])]
    with pytest.raises(BudgetSpent):
        run = Run(lms[0], vote=First(cap=1), journal=journal, id="r", budget=Budget(calls=5))
        asyncio.run(many(chosen, found, problems, voted=False).execute(run))
    run = Run(lms[1], vote=First(cap=1), journal=journal, id="r")
    asyncio.run(many(chosen, found, problems, voted=False).execute(run))
    answers = journaled(run, len(problems))
    assert [lm.drawn for lm in lms] == [5, sum(map(len, answers)) - 5] and all(answers)
    journal.close()


@EVERY
def test_predictions_on_the_command_line(name, scripted, tmp_path):
    _, _, problems = of(name)
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": problems[0]["id"], "text": "nothing"}) + "\n{")
    result = json.loads(bench(*flags(name), "--predictions", "p.jsonl", "--json").stdout)
    assert (result["missing"], result["unreadable_lines"], scripted.drawn) == (7, 1, 0)
    shown = bench(*flags(name), "--predictions", "p.jsonl").stdout
    assert "p.jsonl" in shown and "unreadable lines" in shown and "report:" in shown


@EVERY
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--set", "nosuch=1"], "set nosuch: "),
        (["--limit", "0"], "--limit: is at least 1"),
        (["--set", "x"], "set: is written name=value"),
        (["--temperature", "-1"], "--temperature"),
        (["--ahead-by", "2", "--majority", "3"], "exclude each other"),
        (["--concurrency", "0"], "concurrency: is at least 1"),
        (["--predictions", "none.jsonl"], "--predictions: cannot be read"),
        (["--predictions", "."], "--predictions: cannot be read"),
        (["--journal", "/nowhere/x.db"], "--journal: the journal cannot be used"),
    ],
)
def test_bad_input(name, more, said, scripted):
    result = bench(*flags(name), *more)
    assert result.exit_code == 2 and said in result.stderr and result.stdout == ""


def test_names(scripted):
    assert bench().stdout.split() == sorted(BENCHMARKS)
    assert json.loads(bench("--json").stdout) == sorted(BENCHMARKS)
    result = bench("nosuch")
    assert result.exit_code == 2 and "NAME: is no benchmark (got 'nosuch')" in result.stderr


def test_a_model_that_answers_nothing_is_an_error_and_one_that_answers_some_is_not(tmp_path, monkeypatch):
    from keystep.errors import Refused

    class Refuses(Scripted):
        def __init__(self, after):
            super().__init__(["x"])
            self.after = after

        async def sample(self, request):
            if self.drawn >= self.after:
                raise Refused("was not made for this", field="prompt")
            async for sample in super().sample(request):
                yield sample

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("keystep.cli.job.lm", lambda name, **options: Refuses(0))
    result = bench(*flags("procbench"))
    assert result.exit_code == 2 and "answered none of the problems: prompt: was not made for this" in result.stderr
    monkeypatch.setattr("keystep.cli.job.lm", lambda name, **options: Refuses(3))
    result = bench(*flags("procbench"), "--json", "--seed", "4")
    assert result.exit_code == 3 and json.loads(result.stdout)["failed"] == 5 and "asks for them again" in result.stderr


def test_a_report_escapes_all_it_is_given():
    bad = "<img src=x onerror=alert(1)>\"'&"
    text = page(bad, {bad: bad, "list": [bad]}, {"summary": {bad: None}, "tables": {bad: [{bad: bad}], "empty": []}}, ["<svg></svg>"])
    assert "<img" not in text and text.count("&lt;img") >= 8
    assert "default-src 'none'" in text


@EVERY
def test_a_vote_that_buys_nothing_is_noted(name, scripted, recwarn):
    said = bench(*flags(name), "--majority", "3", "--model", "openai:one").stderr
    assert "note: at temperature 0 one model gives the same vote every time" in said and not recwarn.list
