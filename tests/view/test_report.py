"""The page of a run: what it says, that it asks nothing of others, that nothing of a run can act in it, and its size."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from filled import HOSTILE, Filled, Taken, many, sample, step
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markupsafe import escape
from worker import Scripted, Worker

from keystep.errors import BadInput, StepFailed, Undecided
from keystep.plan import Plan, Ref, Step
from keystep.run import AheadBy, Journal, Many, Procedure, Run
from keystep.run.builtin import Hanoi
from keystep.run.skills import PromptSkill, ToolSkill
from keystep.run.tables import runs
from keystep.skill import SkillLibrary
from keystep.view import report
from keystep.view.facts import clip
from keystep.view.page import page, read

MOST = 2_000_000


def words(page):
    return " ".join(Taken(page).text.split())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The journal of a finished run of 63 steps, and its outcome."""
    path = tmp_path_factory.mktemp("runs") / "a.db"
    spec = {"procedure": "hanoi", "settings": {"disks": 6}, "forecast": FORECAST}
    run = Run(Worker([0.7, 0.15]), vote=AheadBy(3), journal=path, id="r", seed=2, spec=spec)
    outcome = run.execute_sync(Hanoi(disks=6))
    run.close()
    journal = Journal(path)
    yield journal, outcome
    journal.close()


def estimate(value, low, high):
    return {"value": value, "low": low, "high": high}


FORECAST = {
    "success": estimate(0.9999999, 0.995, 1.0), "calls": estimate(250, 10, 100_000), "tokens_in": estimate(5, 4, 6),
    "tokens_out": estimate(9000, 1, 10**9), "cost": estimate(0, 0, 0), "seconds": estimate(1, 0, 1e9),
}  # fmt: skip


def test_the_figures_are_the_outcome(finished):
    journal, outcome = finished
    known, _ = read(journal, "r")
    for name in ("steps", "samples", "flagged", "tokens_in", "tokens_out", "cost", "first_error_step"):
        assert known[name] == getattr(outcome, name)
    assert (known["status"], known["verdict"], round(known["votes_per_step"], 4)) == ("finished", "right", outcome.votes_per_step)
    assert sum(each["steps"] for each in known["bins"]) == sum(each["steps"] for each in known["sizes"]) == 63
    assert sum(each["count"] for each in known["flags"]) == outcome.flagged > 0
    hardest = known["hard_steps"][0]
    assert hardest["samples"] == max(each["most"] for each in known["bins"]) == len(hardest["votes"]) or hardest["samples"] > 12
    assert sum(each["votes"] for each in hardest["candidates"]) + hardest["flagged"] == hardest["samples"]
    json.dumps(known, allow_nan=False)


def test_the_page_says_them(finished):
    journal, outcome = finished
    page = report(journal, "r")
    said = words(page)
    assert "63 steps, every one right" in said and "first to lead by 3, seed 2" in said and "worker" in said
    assert f"{outcome.votes_per_step:.2f}" in said and f"{outcome.flagged} of {outcome.samples} samples were thrown away" in said
    assert "yes expected with > 0.99999 (0.99500 to > 0.99999)" in said
    assert re.search(r"Tokens in .* expected 5 \(4 to 6\), outside", said) and f"{outcome.samples} expected 250 (10 to 100,000)" in said
    assert "Cost" not in said  # nothing had a price
    bars = [attributes for attributes in Taken(page).all("g") if "data-first" in attributes]
    templates = [attributes["id"] for attributes in Taken(page).all("template")]
    assert len(bars) == len(templates) == 63 and templates[5] == "bin-5"
    assert "Step 5" in page.split('<template id="bin-5">')[1].split("</template>")[0]


def test_nothing_is_asked_of_any_other_place(finished):
    page = report(finished[0], "r")
    taken = Taken(page)
    names = {"src", "href", "srcset", "action", "data", "poster", "xlink:href", "background", "formaction", "manifest", "ping"}
    links = [value for _, attributes in taken.elements for name, value in attributes.items() if name in names]
    assert set(links) == {"#content", "data:,"}
    assert not re.search(r"url\(|@import|https?:", taken.inside["style"])
    assert not re.search(r"https?:|import\s*\(|importScripts|XMLHttpRequest|WebSocket|sendBeacon", taken.inside["script"])
    assert not any(tag in ("iframe", "object", "embed", "base", "form", "img") for tag, _ in taken.elements)
    assert not any(name.startswith("on") or name == "style" for _, attributes in taken.elements for name in attributes)
    [meta] = [each for each in taken.all("meta") if each.get("http-equiv")]
    rules = dict(rule.split(" ", 1) for rule in meta["content"].split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'" and "connect-src" not in rules
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(taken.inside[tag].encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"


def shape(page):
    """The page's elements without their texts and figures."""
    return [(tag, tuple(attributes)) for tag, attributes in Taken(page).elements]


@given(st.lists(st.sampled_from(HOSTILE) | st.text(max_size=30), min_size=9, max_size=9))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_hostile_text_stays_text(tmp_path, texts):
    """Whatever is written in a run, the page has the same elements as with harmless words."""

    def made_of(name, path, key, flag, text, answer, model, why, result):
        (tmp_path / "a.db").unlink(missing_ok=True)
        made = Filled(tmp_path / "a.db")
        scope = made.place(path or "p")
        votes = json.dumps({key or "k": 2, "other": 1})
        made.put("steps", [step(scope, 0, 4, 1, candidates=votes, name=name or "n", answer=json.dumps(answer))])
        kept = {**sample(scope, 0, 0, text or "t", key or "k", None), "model": model or "m"}
        made.put("samples", [kept, sample(scope, 0, 1, text or "t", None, "x" + flag.replace(":", ""))])
        identity = json.dumps({"work": {}, "model": model or "m", "vote": flag or "v", "seed": 0})
        made.change(
            runs.update().values(name=name or "n", why=why or "w", result=json.dumps(result or "r"), identity=identity, status="stopped")
        )
        try:
            return report(made.journal, "r")
        finally:
            made.close()

    texts = [text.encode(errors="replace").decode() for text in texts]
    hostile = made_of(*texts)
    assert shape(hostile) == shape(made_of(*["words"] * 9))
    for text in (texts[4], texts[2]):
        assert str(escape(clip(text or "t", 240))) in hostile or not text


def test_a_run_named_to_be_hostile_can_be_shown(tmp_path):
    made = Filled(tmp_path / "a.db", HOSTILE[0])
    assert HOSTILE[0] in words(report(made.journal, HOSTILE[0]))
    made.close()


def test_a_secret_is_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "opensesame-42")
    made = Filled(tmp_path / "a.db")
    scope = made.place()
    made.put("steps", [step(scope, 0, 4, 1, candidates='{"opensesame-42":2,"2":1}')])
    made.put(
        "samples", [sample(scope, 0, 0, "it is opensesame-42", None, "no opensesame-42"), sample(scope, 0, 1, "Bearer sk-abcdefghijklmnop")]
    )
    made.put("steps", [step(scope, 1, 9, 1, candidates='{"1":2,"2":1}')])
    made.put("samples", [sample(scope, 1, 0, "-" * 394 + "opensesame-42", None, "x")])  # where a text is cut
    made.change(runs.update().values(why="opensesame-42", status="stopped"))
    page = report(made.journal, "r")
    assert "opensesame" not in page and "sk-abcdef" not in page and page.count("[redacted]") > 3
    made.close()


def test_fifty_thousand_steps_make_a_page_that_is_not_too_large(tmp_path):
    made = Filled(tmp_path / "a.db")
    many(made, 50_000)
    known, aggregate = read(made.journal, "r")
    written = page(made.journal, known, aggregate)
    assert 0.9 * MOST < len(written.encode()) <= MOST
    assert "would make the page too large" not in written  # every bin has the texts of its hardest step at least
    assert known["steps"] == 50_000 and 120 < len(known["bins"]) <= 240 and known["flags"] == [{"reason": "malformed", "count": 3125}]
    assert known["disputed"] == 3125 and {each.id for each in aggregate.places.values()} == {1}
    made.close()


@pytest.mark.slow
def test_a_million_steps_make_a_page_of_two_megabytes_in_memory_that_does_not_grow(tmp_path):
    # The peak of the child's own memory; getrusage would count what this process had when it made the child.
    child = "import re, sys; from pathlib import Path; from keystep.run import Journal; from keystep.view import report; "
    child += "text = report(Journal(sys.argv[1]), 'r'); assert len(text.encode()) <= 2_000_000 and sys.argv[2] in text; "
    child += "print(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])"
    peaks = {}
    for count in (100_000, 1_000_000):
        made = Filled(tmp_path / f"{count}.db")
        many(made, count, letters=200)
        made.close()
        call = [sys.executable, "-c", child, str(tmp_path / f"{count}.db"), f"{count:,}"]
        peaks[count] = int(subprocess.check_output(call))
    assert peaks[1_000_000] < 1.1 * peaks[100_000]


def test_a_run_that_has_done_nothing(tmp_path):
    made = Filled(tmp_path / "a.db")
    said = words(report(made.journal, "r"))
    assert "Interrupted after 0 steps" in said and "No step was disputed" in said  # nobody holds it
    with pytest.raises(BadInput, match="no such run"):
        report(made.journal, "s")
    made.close()


def test_a_wrong_run(tmp_path):
    run = Run(Worker([0.9], wrong_at=["0/4"]), vote=AheadBy(2), journal=tmp_path / "a.db", id="r", spec={"procedure": "hanoi"})
    run.execute_sync(Hanoi(disks=4))
    assert "Wrong at step 4 of 15" in words(report(run.journal, "r"))
    run.close()


def test_an_undecided_run_until_a_person_has_spoken(tmp_path):
    texts = ["move = [1, 0, 1]\nnext_state = [[3, 2], [1], []]", "move = [1, 0, 2]\nnext_state = [[3, 2], [], [1]]", "no <b>idea"]
    spec = {"procedure": "hanoi", "settings": {"disks": 3}}
    run = Run(Scripted(lambda request, i: texts[i % 3]), vote=AheadBy(3, cap=12), journal=tmp_path / "a.db", id="r", spec=spec)
    with pytest.raises(Undecided):
        run.execute_sync(Hanoi(disks=3))
    page = report(run.journal, "r")
    said = words(page)
    assert "Undecided after 0 steps" in said and "no <b>idea" in said and f"keystep decide r STEP ANSWER --journal {tmp_path}/a.db" in said
    assert "12 samples" in said and "4 flagged" in said and "[[1,0,1],[[3,2],[1],[]]]" in said
    run.journal.decide("r", "0", [[1, 0, 2], [[3, 2], [], [1]]])
    said = words(report(run.journal, "r"))
    assert "decided by a person" in said and "Stopped after 0 of 7 steps" in said
    run.close()


class Counted(Procedure):
    """Adds 1 so often; some settings raise, some are wrong."""

    name = "counted"

    def __init__(self, row):
        self.row = row

    def start(self):
        return 0

    def prompt(self, state):
        return "say 1"

    def update(self, state, answer):
        if self.row.get("raises") == state:
            raise ValueError(f"<i>cannot</i> do {state}")
        return state + 1

    def done(self, state):
        return state == 4

    def identity(self):
        return "counted"

    def check(self, answers):
        return 2 if self.row.get("wrong") else None


def test_many_inputs(tmp_path):
    rows = [{}, {"wrong": True}, {"raises": 1}, {}, {"raises": 3}]
    journal = Journal(tmp_path / "a.db")
    for attempt in range(3):
        many_rows = Many(Counted, rows, max_crashes=3)
        run = Run(Scripted(["1"]), vote=AheadBy(2), journal=journal, id="r")
        many_rows.execute_sync(run)
        known, _ = read(journal, "r")
        counts = {name: known["rows"][name] for name in ("total", "finished", "wrong", "failed", "set_aside", "running")}
        left = {"failed": 0, "set_aside": 2} if attempt == 2 else {"failed": 2, "set_aside": 0}
        assert counts == {"total": 5, "finished": 3, "wrong": 1, "running": 0, **left}
    said = words(report(journal, "r"))
    assert "3 of 5 rows finished, 1 wrong" in said and "2 set aside" in said and "of each step, all rows together" in said
    assert "row 2 set aside ValueError: <i>cannot</i> do 1" in said and "row 1 wrong wrong at step 2 4 8" in said
    journal.close()


def test_a_plan_with_its_skills_and_what_failed_before(tmp_path):
    def fail():
        raise ValueError("<no>")

    b, c = Step(id="b", skill="b", inputs={"x": Ref(step="a")}), Step(id="c", skill="c", needs=("b",), pre="false")
    plan = Plan(steps=(Step(id="a", skill="a"), b, c))
    library = SkillLibrary(
        [ToolSkill("hasty", fail, cost=0, can=["a"]), PromptSkill("a", "say 1", cost=2), ToolSkill("b", lambda x: 2), ToolSkill("c", fail)]
    )
    run = Run(Scripted(["1"]), vote=AheadBy(2), journal=tmp_path / "a.db", id="r")
    with pytest.raises(StepFailed):
        run.execute_sync(plan, library)
    known, _ = read(run.journal, "r")
    [shown] = known["plans"]
    a, b, c = shown["steps"]
    assert (a["skill"], a["samples"], a["failed"]) == ("a", 2, [{"skill": "hasty", "why": "ValueError: <no>"}])
    assert (b["skill"], b["needs"], c["needs"], c["skill"], c["seconds"]) == ("b", ["a"], ["b"], None, None)
    said = words(report(run.journal, "r"))
    assert "hasty failed ValueError: <no>" in said and "b after a" in said and "not done yet" in said
    run.close()


@given(st.text(max_size=400), st.integers(10, 300))
def test_a_cut_text_takes_no_more_room_than_it_may(text, limit):
    cut = clip(text, limit)
    assert len(str(escape(cut)).encode()) <= limit
    clean = text.encode(errors="replace").decode()
    assert cut == clean if len(str(escape(clean)).encode()) <= limit else cut.endswith("…") and clean.startswith(cut[:-1])


def test_importing_keystep_loads_none_of_it():
    seen = "import sys, keystep; sys.exit(any(name.startswith(('keystep.view', 'jinja2')) for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", seen], check=False).returncode == 0


def test_the_files_of_the_page_are_packaged():
    import keystep.view

    there = {path.suffix for path in Path(keystep.view.__file__).parent.iterdir()}
    packaged = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert {".html", ".css", ".js"} <= there and all(f'"view/*{suffix}"' in packaged for suffix in (".html", ".css", ".js"))


def test_the_wording_of_select_has_no_dialect():
    """The statements compile for PostgreSQL as well."""
    from sqlalchemy.dialects import postgresql

    asked = []
    journal = Journal()
    journal.begin("r", "test", None, {"work": {"rows": {}}})
    select = journal.select
    journal.select = lambda statement: asked.append(str(statement.compile(dialect=postgresql.dialect()))) or select(statement)
    report(journal, "r")
    assert len(asked) > 4 and all(text.startswith("SELECT") for text in asked)
    assert sa.select(runs.c.id).compile(dialect=postgresql.dialect()) is not None
    journal.close()
